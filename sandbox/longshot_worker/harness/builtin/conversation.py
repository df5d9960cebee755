"""The messages of one task, kept short enough for the model: old output becomes a stub, then old turns a list."""

from __future__ import annotations

import json

from longshot_worker.commands import clipped
from longshot_worker.harness.builtin.chat import Call, Reply

_CHARACTERS_PER_TOKEN = 3.5
_KEEP_TURNS = 6  # the newest turns stay whole for as long as possible
_STUB_FROM = 400


class Conversation:
    """System prompt and task first, always; then turns, each an assistant message with all of its tools' results."""

    def __init__(self, system: str, task: str, limit_tokens: int) -> None:
        self._head = [{"role": "system", "content": system}, {"role": "user", "content": task}]
        self._turns: list[list[dict[str, object]]] = []
        self._log: list[str] = []  # turns that became one line each
        self._limit = limit_tokens

    @property
    def messages(self) -> list[dict[str, object]]:
        lines = self._listed()
        cut = [f"({len(self._log) - len(lines)} earlier steps are not listed)"] if len(self._log) > len(lines) else []
        past = "Earlier steps of this task, shortened; look again at anything you need:\n" + "\n".join(cut + lines)
        head = (
            self._head
            if not lines
            else [self._head[0], {**self._head[1], "content": f"{self._head[1]['content']}\n\n{past}"}]
        )
        return [*head, *(message for turn in self._turns for message in turn)]

    def _listed(self) -> list[str]:
        """The newest of the shortened steps, in a fifth of the room at most."""
        room = int(0.2 * self._limit * _CHARACTERS_PER_TOKEN)
        lines: list[str] = []
        for line in reversed(self._log):
            room -= len(line) + 4
            if room < 0:
                break
            lines.insert(0, line)
        return lines

    @property
    def tokens(self) -> int:
        """An estimate; what the endpoint counts is only known afterwards."""
        return int(len(json.dumps(self.messages)) / _CHARACTERS_PER_TOKEN)

    def said(self, reply: Reply) -> None:
        message: dict[str, object] = {"role": "assistant", "content": reply.text}
        if reply.calls:
            message["tool_calls"] = [_wire(c) for c in reply.calls]
        self._turns.append([message])

    def result(self, call: Call, text: str) -> None:
        self._turns[-1].append({"role": "tool", "tool_call_id": call.id, "content": text})

    def tell(self, text: str) -> None:
        self._turns.append([{"role": "user", "content": text}])

    def compact(self, to: float = 0.6, force: bool = False) -> bool:
        """When above the limit (or `force`d), shrink to the fraction `to` of it (or of now); True when anything shrank."""
        before = self.tokens
        if not force and before <= self._limit:
            return False
        target = to * (min(before, self._limit) if force else self._limit)
        self._stub_outputs(target)
        while self.tokens > target and len(self._turns) > _KEEP_TURNS:
            self._log.extend(_lines(self._turns.pop(0)))
        for keep in (8_000, 2_000, 500):
            if self.tokens > target:
                self._clip(keep)
        return self.tokens < before

    def _stub_outputs(self, target: float) -> None:
        for turn in self._turns[:-_KEEP_TURNS]:
            if self.tokens <= target:
                return
            for message in turn:
                text = str(message["content"])
                if message["role"] == "tool" and len(text) > _STUB_FROM:
                    message["content"] = (
                        f"{text[:100]}\n[{len(text) - 100:,} characters dropped; call the tool again if you need them]"
                    )
            _shorten_arguments(turn[0], 200)

    def _clip(self, keep: int) -> None:
        for turn in self._turns:
            for message in turn:
                message["content"] = clipped(str(message["content"]), keep)
            _shorten_arguments(turn[0], keep)


def _wire(call: Call) -> dict[str, object]:
    # A model's broken JSON would break the chat template of some endpoints when it is sent back.
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": json.dumps(call.arguments or {})},
    }


def _calls(message: dict[str, object]) -> list[dict[str, str]]:
    calls = message.get("tool_calls")
    return [c["function"] for c in calls] if isinstance(calls, list) else []


def _shorten_arguments(message: dict[str, object], keep: int) -> None:
    for function in _calls(message):
        arguments = json.loads(function["arguments"])
        short = {
            k: f"{v[:keep]} [... {len(v) - keep:,} cut]" if isinstance(v, str) and len(v) > keep + 50 else v
            for k, v in arguments.items()
        }
        function["arguments"] = json.dumps(short)


def _lines(turn: list[dict[str, object]]) -> list[str]:
    """One line per call of a turn: the tool, its arguments and how its result begins."""
    results = [str(m["content"]).strip().splitlines() for m in turn[1:]]
    lines = [f"- you: {str(turn[0]['content'])[:200]}"] if turn[0]["content"] and turn[0]["role"] == "assistant" else []
    for function, result in zip(_calls(turn[0]), results):  # noqa: B905 - `strict` is Python 3.10
        lines.append(f"- {function['name']} {function['arguments'][:160]} -> {(result or [''])[0][:120]}")
    return lines
