"""How many tokens an answer cost: read from what the endpoint says, estimated from its bytes when it says nothing."""

import json
from dataclasses import dataclass, replace

from longshot_dagster.core.costs import cost_usd
from longshot_dagster.core.settings import Settings

BYTES_PER_TOKEN = 4  # the usual rule of thumb for English and code; only used where an endpoint reports nothing
_MAX_LINE = 4 << 20
_MAX_TOKENS = 1_000_000_000

_CACHED_APART = ("cache_read_input_tokens", "cache_creation_input_tokens")

REHEARSAL_MODEL = "longshot-scripted-model"
REHEARSAL_FINGERPRINT = "rehearsal"


@dataclass(frozen=True)
class Usage:
    """Tokens of one key or one build. `cost_usd` is None where no prices are known: the gateway knows none."""

    tokens_in: int = 0
    tokens_out: int = 0
    requests: int = 0
    estimated: bool = False
    cost_usd: float | None = None

    @property
    def total(self) -> int:
        return self.tokens_in + self.tokens_out

    def priced(self, settings: Settings) -> "Usage":
        """The same with what it costs by the prices of a build, if both are set."""
        return replace(self, cost_usd=cost_usd(self.tokens_in, self.tokens_out, settings))

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.tokens_in + other.tokens_in,
            self.tokens_out + other.tokens_out,
            self.requests + other.requests,
            self.estimated or other.estimated,
        )


def reported(document: object) -> tuple[int, int] | None:
    """(in, out) as an answer reports them in `usage`, in the words of any of the usual interfaces; None when it does not.

    Tokens read from a cache count as read: OpenAI's counts hold them, Anthropic tells them apart from the others.
    """
    if not isinstance(document, dict):
        return None
    usage = document.get("usage")
    if not isinstance(usage, dict):
        inner = document.get("response") or document.get("message")
        usage = inner.get("usage") if isinstance(inner, dict) else None
    if not isinstance(usage, dict):
        return None
    tokens_in = _count(usage.get("prompt_tokens", usage.get("input_tokens")))
    for apart in _CACHED_APART:
        if (cached := _count(usage.get(apart))) is not None:
            tokens_in = min((tokens_in or 0) + cached, _MAX_TOKENS)
    tokens_out = _count(usage.get("completion_tokens", usage.get("output_tokens")))
    if tokens_in is None and tokens_out is None:
        return None
    return tokens_in or 0, tokens_out or 0


def is_rehearsal(document: object) -> bool:
    """Does this answer, or this piece of a streamed one, come from the scripted model?"""
    if not isinstance(document, dict):
        return False
    inner = document.get("response") or document.get("message")
    answers = (document, inner) if isinstance(inner, dict) else (document,)
    return any(
        a.get("system_fingerprint") == REHEARSAL_FINGERPRINT or a.get("model") == REHEARSAL_MODEL for a in answers
    )


def estimated(sent_bytes: int, received_bytes: int) -> tuple[int, int]:
    return -(-sent_bytes // BYTES_PER_TOKEN), -(-received_bytes // BYTES_PER_TOKEN)


class StreamMeter:
    """Reads a server-sent event stream as it passes: the last usage it reports, and the bytes of text it carries."""

    def __init__(self) -> None:
        self.usage: tuple[int, int] | None = None
        self.text_bytes = 0
        self.rehearsal = False
        self._rest = b""

    def feed(self, chunk: bytes) -> None:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > _MAX_LINE:  # no event is that long; do not collect what a broken endpoint pours out
            self._rest = b""
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip())

    def end(self) -> None:
        """The stream is over; its last line may lack a line break."""
        self.feed(b"\n")

    def _event(self, data: bytes) -> None:
        if data == b"[DONE]":
            return
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            self.text_bytes += len(data)
            return
        if (found := reported(document)) is not None:
            # A stream of Anthropic's reports its input first and its output last.
            before = self.usage or (0, 0)
            self.usage = (found[0] or before[0], found[1] or before[1])
        self.rehearsal = self.rehearsal or is_rehearsal(document)
        self.text_bytes += _text_length(document)


def _text_length(document: object) -> int:
    if not isinstance(document, dict):
        return 0
    choices = document.get("choices")
    deltas = [c.get("delta") for c in choices if isinstance(c, dict)] if isinstance(choices, list) else []
    deltas.append(document.get("delta"))
    return sum(_strings(d) for d in deltas)


def _strings(value: object) -> int:
    if isinstance(value, str):
        return len(value.encode("utf-8", "replace"))
    if isinstance(value, dict):
        return sum(_strings(v) for v in value.values())
    return sum(_strings(v) for v in value) if isinstance(value, list) else 0


def _count(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return None
    return min(value, _MAX_TOKENS)
