"""An agent's transcript as lines to read: what it said, what it called, what came back, each cut to size.

The transcript was written inside a sandbox: any line may be anything, and none may break what is shown.
"""

import json
import math
from typing import Any

from longshot_dagster.core.display import display, one_line

_SAID_LINES = 60
_PROMPT_LINES = 8
_OUTPUT_LINES = 12
_ARGUMENTS = 400
_WIDTH = 400
_MAX_LINE = 1 << 20


def parse(line: bytes) -> dict[str, Any]:
    """One JSON line of a transcript; what is not one becomes a `note`."""
    try:
        found = json.loads(line[:_MAX_LINE], parse_constant=_no_number, parse_float=_number)
    except (ValueError, RecursionError):
        return {"type": "note", "text": f"unreadable line of {len(line):,} bytes: {one_line(_decoded(line[:200]))}"}
    return found if isinstance(found, dict) else {"type": "note", "text": one_line(found)}


def render(event: dict[str, Any]) -> list[str]:
    """The lines of one event: the first begins with its time, the rest is indented."""
    kind = str(event.get("type", ""))
    match kind:
        case "start":
            head = f"begins: {_field(event, 'harness')} with {_field(event, 'model')}"
            lines = [head, *_cut(event.get("prompt"), _PROMPT_LINES, 0)]
        case "turn":
            said = _cut(event.get("text"), _SAID_LINES, 0)
            lines = [f"turn ({_count(event, 'tokens_in')} tokens in, {_count(event, 'tokens_out')} out)", *said]
        case "said":
            lines = _cut(event.get("text"), _SAID_LINES, 0) or [""]
        case "tool_start":
            lines = [f"> {_field(event, 'name')} {_arguments(event.get('arguments'))}".rstrip()]
        case "tool_end":
            output = _cut(event.get("text"), _OUTPUT_LINES * 2 // 3, _OUTPUT_LINES // 3)
            failed = [] if event.get("ok", True) else ["failed"]
            lines = [*failed, *(f"| {line}" for line in output)] or ["| (nothing)"]
        case "harness_end":
            error = f": {_field(event, 'error')}" if event.get("error") else ""
            lines = [f"ends: {_field(event, 'status')}{error}, {_count(event, 'turns')} turns"]
        case "result":
            checks = event.get("checks")
            shown = "; ".join(one_line(c, 100) for c in checks[:20]) if isinstance(checks, list) else ""
            lines = [f"hands in: {_field(event, 'status')}" + (f"; {shown}" if shown else "")]
        case "error":
            lines = [f"error ({_field(event, 'what')}): {_field(event, 'text')}"]
        case "compaction":
            lines = [f"the conversation is compacted to {_count(event, 'tokens')} tokens"]
        case "note":
            lines = [_field(event, "text")]
        case _:
            rest = {k: v for k, v in event.items() if k not in ("at", "type")}
            lines = [f"{one_line(kind, 40) or 'event'} {_arguments(rest)}"]
    at = _clock(event.get("at"))
    return [f"{at if i == 0 else ' ' * len(at)}  {line}" for i, line in enumerate(lines)]


def _no_number(word: str) -> None:
    """NaN and infinities: Python reads and writes them, though no JSON has them."""


def _number(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _clock(at: object) -> str:
    """Minutes and seconds since the worker began."""
    number = isinstance(at, (int, float)) and not isinstance(at, bool) and 0 <= at < 1e6
    seconds = int(at) if number else 0  # type: ignore[call-overload]
    return f"{seconds // 60:02d}:{seconds % 60:02d}" if number else "     "


def _field(event: dict[str, Any], name: str) -> str:
    return one_line(event.get(name, ""), 500)


def _count(event: dict[str, Any], name: str) -> str:
    value = event.get(name)
    return f"{value:,}" if isinstance(value, int) and abs(value) < 1e12 else "?"


def _arguments(value: object) -> str:
    if value in (None, {}, ""):
        return ""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError):
        return "…"
    return one_line(text[: _ARGUMENTS * 4], _ARGUMENTS)


def _cut(text: object, first: int, last: int) -> list[str]:
    """At most `first` lines from the beginning and `last` from the end, and how many are left out between."""
    if not text:
        return []
    lines = [line.expandtabs(4).rstrip() for line in display(text, "plain", 60_000).strip("\n").split("\n")]
    if len(lines) > first + last + 1:
        left_out = len(lines) - first - last
        lines = [*lines[:first], f"… {left_out} more lines …", *(lines[-last:] if last else [])]
    return [line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "…" for line in lines]


def _decoded(data: bytes) -> str:
    return data.decode("utf-8", "replace")
