"""What the agent's last message says, and what the run as a whole is worth. Judged by what happened, never by an exit code."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

STATUSES = ("complete", "partial", "blocked", "failed")
# Words that agents use for them all the same.
_SAME = {
    "completed": "complete",
    "done": "complete",
    "success": "complete",
    "succeeded": "complete",
    "failure": "failed",
}
_MAX_TEXT, _MAX_LINE, _MAX_LIST = 20_000, 2_000, 200


@dataclass(frozen=True)
class HarnessResult:
    """How an agent's run ended.

    `status`: completed, empty, llm_error, limit, timeout, stalled, budget, crashed, config_error.
    `cost_usd` is what the agent itself believes it cost; None: it does not know.
    """

    status: str
    error: str = ""
    final: str = ""
    tool_calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    turns: int = 0
    tool_errors: int = 0
    retries: int = 0
    cost_usd: float | None = None


@dataclass(frozen=True)
class Said:
    """The handoff as the agent words it; `status` is empty when it gave none."""

    status: str = ""
    summary: str = ""
    concerns: list[str] = field(default_factory=list)
    suggestions: list[str] = field(default_factory=list)


def read_final(text: str) -> Said:
    """The last JSON object in `text` that has a known status; without one, the text itself is the summary."""
    for start in reversed([m.start() for m in re.finditer(r"\{", text[-60_000:])]):
        try:
            found, _ = json.JSONDecoder().raw_decode(text[-60_000:], start)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict) and (status := _status(found.get("status"))):
            return Said(
                status,
                _text(found.get("summary"), _MAX_TEXT),
                _lines(found.get("concerns")),
                _lines(found.get("suggestions")),
            )
    return Said(summary=_text(text.strip(), _MAX_TEXT))


def _status(value: object) -> str:
    """One of STATUSES; empty for anything else."""
    word = value.strip().lower() if isinstance(value, str) else ""
    word = _SAME.get(word, word)
    return word if word in STATUSES else ""


def judge(harness: HarnessResult, said: Said, changed: bool) -> str:
    """Status of the handoff. `complete` needs a run without error; anything else keeps what was done as `partial`."""
    if harness.status != "completed":
        return "partial" if changed else "failed"
    if said.status:
        return said.status
    return "complete" if changed else "partial"  # it changed nothing and never said that nothing was to be done


def _text(value: object, limit: int) -> str:
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value)
    # A lone surrogate can be written as JSON, but not read back by a strict reader.
    return text.encode("utf-8", "replace").decode("utf-8")[:limit]


def _lines(value: object) -> list[str]:
    items = value if isinstance(value, list) else [] if value is None else [value]
    return [line for item in items[:_MAX_LIST] if (line := _text(item, _MAX_LINE))]
