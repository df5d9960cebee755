"""One question to an OpenAI-compatible endpoint, with tools, and its answer or the reason why there is none."""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_MAX_ANSWER = 32 << 20
# The gateway does the patient retrying of a model that refuses; these are for what it cannot pass on.
_WAITS_S = (1.0, 3.0)
# A gateway that is gone itself is started again, which takes its time on a busy host; meanwhile nobody answers at all.
_AWAY_S = 120.0
_AWAY_WAIT_S = 3.0
_CONTEXT = re.compile(
    r"context|too long|too large|max(imum)?[ _-](input|prompt|model|total|seq)?.{0,20}(token|length)|token limit", re.I
)


class ModelError(Exception):
    """Raised when there is no answer. `kind`: llm_error, budget, context (the conversation is too long) or timeout."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(" ".join(text.split())[:500])
        self.kind = kind


@dataclass(frozen=True)
class Call:
    """A tool call; `arguments` is None when what the model wrote is not a JSON object."""

    id: str
    name: str
    arguments: dict[str, object] | None


@dataclass(frozen=True)
class Reply:
    text: str
    calls: list[Call] = field(default_factory=list)
    cut: bool = False  # the answer ran into max_tokens
    tokens_in: int = 0
    tokens_out: int = 0


class Chat:
    """Chat completions at `base_url`; `until` (monotonic seconds) bounds every wait."""

    def __init__(
        self,
        base_url: str,
        until: float,
        timeout_s: float,
        waits_s: Sequence[float] = _WAITS_S,
        *,
        away_s: float = _AWAY_S,
        **options: object,
    ) -> None:
        self._url = urlsplit(base_url)
        self._until = until
        self._timeout_s = timeout_s
        self._waits_s = waits_s
        self._away_s = away_s
        self._options = options

    def ask(self, messages: list[dict[str, object]]) -> Reply:
        """Raises ModelError."""
        body = json.dumps({**self._options, "messages": messages, "stream": False}).encode()
        waits, gone = iter(self._waits_s), None
        while True:
            try:
                status, answer = self._post(body)
                problem = f"HTTP {status}: {_message(answer)}"
            except (OSError, http.client.HTTPException) as e:
                status, answer, problem = 0, b"", f"no answer from the model: {e or type(e).__name__}"
            if status == 200:
                return _reply(answer)
            now, wait = time.monotonic(), next(waits, None)
            if status == 0:
                gone = now if gone is None else gone
                if wait is None and now - gone < self._away_s:
                    wait = _AWAY_WAIT_S
            if wait is None or not (status in (0, 408, 429) or status >= 500) or now + wait > self._until:
                break
            time.sleep(wait)
        raise ModelError(_kind(status, answer, time.monotonic() >= self._until), problem)

    def _post(self, body: bytes) -> tuple[int, bytes]:
        left = min(self._timeout_s, self._until - time.monotonic())
        if left <= 0:
            raise TimeoutError("the worker's time is up")
        connection = http.client.HTTPConnection(self._url.hostname or "127.0.0.1", self._url.port or 80, timeout=left)
        try:
            connection.request("POST", f"{self._url.path}/chat/completions", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read(_MAX_ANSWER)
        finally:
            connection.close()


def _kind(status: int, answer: bytes, late: bool) -> str:
    error = _error(answer)
    if status == 403 and error.get("type") == "budget_exhausted":
        return "budget"
    if status == 413 or (status in (400, 422) and _CONTEXT.search(_message(answer))):
        return "context"
    return "timeout" if late else "llm_error"


def _error(answer: bytes) -> dict[str, object]:
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return {}
    error = found.get("error", found) if isinstance(found, dict) else {}
    return error if isinstance(error, dict) else {"message": str(error)}


def _message(answer: bytes) -> str:
    return str(_error(answer).get("message") or answer[:300].decode("utf-8", "replace"))


def _reply(answer: bytes) -> Reply:
    """Raises ModelError when the body is no chat completion; tolerates what endpoints leave out."""
    try:
        found = json.loads(answer)
        choice = found["choices"][0]
        message = choice["message"]
        calls = [_call(c, n) for n, c in enumerate(message.get("tool_calls") or [])]
        text = message.get("content") or ""
        text = text if isinstance(text, str) else "".join(str(p.get("text", "")) for p in text)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as e:
        raise ModelError(
            "llm_error", f"the endpoint's answer is no chat completion ({type(e).__name__}): {answer[:200]!r}"
        ) from e
    usage = found.get("usage") if isinstance(found.get("usage"), dict) else {}
    return Reply(
        text.strip(),
        calls,
        choice.get("finish_reason") == "length",
        _number(usage, "prompt_tokens"),
        _number(usage, "completion_tokens"),
    )


def _call(call: dict[str, object], position: int) -> Call:
    function = call["function"]
    assert isinstance(function, dict)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            arguments = None
    return Call(
        str(call.get("id") or f"call_{position}"),
        str(function.get("name", ""))[:200],
        arguments if isinstance(arguments, dict) else None,
    )


def _number(usage: dict[str, object], name: str) -> int:
    value = usage.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
