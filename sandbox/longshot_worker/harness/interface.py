"""What a coding agent is to the worker: how it is started, what its output means, and what its run was worth.

A harness does nothing itself: `prepare` says what is to be started, `parse` and `finish` only look. The runner does the rest.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Iterable

from longshot_worker.handoff import HarnessResult

ZERO_TURNS = 3  # turns in a row without a token: its model does not answer, and it does not notice
_CALLS_PER_TURN = 3  # agents that do not tell their turns are bounded by their tool calls
_MAX_FINAL, _MAX_ERROR = 60_000, 2_000
_MAX_NUMBER = 10**12
_MAX_OPEN = 1_000
_BUDGET = "budget_exhausted"


@dataclass(frozen=True)
class Request:
    """What an agent is asked, and with what. Folders are absolute; times in seconds.

    `scratch` is outside of the repository, for the agent's configuration. `base_url` ends in `/v1`.
    `tools`: which of the programs in the harness's `tools` are there and work.
    """

    system_prompt: str
    prompt: str
    repo: str
    scratch: str
    model: str
    base_url: str
    max_tokens: int = 65_536
    context_tokens: int = 131_072
    temperature: float = 0.7
    llm_timeout_s: float = 600
    max_turns: int = 200
    command: str = ""
    tools: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Invocation:
    """What is started. It holds no secret: `key_env` names the variables that get the key of the model.

    `files`: text by absolute path, written first. `stdin`: all of the standard input. `reads`: files that `finish` is given.
    `excludes`: patterns of what the agent leaves in the repository and nobody wants.
    """

    argv: list[str]
    cwd: str
    env: dict[str, str] = field(default_factory=dict)
    key_env: tuple[str, ...] = ("LONGSHOT_LLM_API_KEY",)
    files: dict[str, str] = field(default_factory=dict)
    stdin: str = ""
    reads: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Usage:
    """Tokens. `input` has none that came from a cache."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0

    @property
    def total(self) -> int:
        return self.input + self.output + self.cache_read + self.cache_write


@dataclass(frozen=True)
class Event:
    """One thing that happened. `kind`:

    began       it works (again): nothing that was said about an end holds
    text        it said `text`; the last one is its final message
    final       `text` is its final message, whatever it said before
    line        one more line of plain text; all of them together are its final message
    turn        an answer of the model, with its `usage`
    usage       tokens that belong to no single answer
    tool_start  it calls tool `name` with `arguments`; said again of a call that is not over, it counts once
    tool_end    the call is over, `ok` or not, with its output `text`
    retry       its model failed, `text` says how, and it tries again
    error       it failed, `text` says how; what it says afterwards takes that back
    limit       it ran into a limit of its own, named in `text`
    done        it came to its end
    note        anything else worth keeping
    """

    kind: str
    text: str = ""
    name: str = ""
    id: str = ""
    ok: bool = True
    arguments: object = None
    usage: Usage | None = None
    cost_usd: float | None = None


class Tally:
    """What the events of one run add up to."""

    def __init__(self, max_turns: int = 200) -> None:
        self.final = self.error = self.limit = ""
        self.input = self.output = self.cached = 0
        self.cost_usd: float | None = None
        self.turns = self.tool_calls = self.tool_errors = self.retries = 0
        self.tools: dict[str, int] = {}
        self.done = False
        self._zero = 0
        self._spoke = False  # since the last turn
        self._open: set[str] = set()  # calls that are not over
        self._max_turns = max_turns

    @property
    def tokens(self) -> int:
        return self.input + self.output + self.cached

    @property
    def stalled(self) -> bool:
        """Does its model not answer any more, without its noticing?"""
        return self._zero >= ZERO_TURNS

    @property
    def exhausted(self) -> bool:
        """Has it had all the turns it may have?"""
        return self.turns > self._max_turns or self.tool_calls > _CALLS_PER_TURN * self._max_turns

    def add(self, event: Event) -> bool:
        """False for what was known already."""
        kind = event.kind
        if kind == "tool_start" and event.id and event.id[:200] in self._open:
            return False
        if kind == "began":
            self.done = False
        elif kind in ("text", "final"):
            self.final = event.text[-_MAX_FINAL:]
            if event.text.strip():
                self.error, self._spoke = "", True
        elif kind == "line":
            self.final = f"{self.final}{event.text}\n"[-_MAX_FINAL:]
        elif kind == "turn":
            self.turns += 1
        elif kind == "tool_start":
            self._called(event)
        elif kind == "tool_end":
            self._open.discard(event.id[:200])
            self.tool_errors += not event.ok
        elif kind == "retry":
            self.retries += 1
        elif kind == "error":
            self.error = event.text[:_MAX_ERROR] or "it gave no reason"
        elif kind == "limit":
            self.limit = event.text[:_MAX_ERROR]
        elif kind == "done":
            self.done = True
        if event.usage is not None:
            self._used(event.usage)
        if event.cost_usd:
            self.cost_usd = (self.cost_usd or 0.0) + event.cost_usd
        return True

    def _called(self, event: Event) -> None:
        self.tool_calls += 1
        name = event.name[:200]
        if len(self._open) < _MAX_OPEN:
            self._open.add(event.id[:200])
        self.final = ""  # what it said before it went on to work is not its last word
        self._zero, self._spoke = 0, True
        if name in self.tools or len(self.tools) < 100:
            self.tools[name] = self.tools.get(name, 0) + 1

    def _used(self, usage: Usage) -> None:
        self.input += usage.input
        self.output += usage.output
        self.cached += usage.cache_read + usage.cache_write
        self._zero = 0 if usage.total or self._spoke else self._zero + 1  # not every endpoint counts
        self._spoke = False


class Harness:
    """One coding agent. Whoever writes one sets the attributes and writes `prepare` and `parse`.

    `skips`  beginnings of output lines that are not worth looking at
    `tools`  programs it uses where they are there; `Request.tools` says which are
    `api`    what it speaks to its model: chat, responses or messages; `binary`: its command on PATH
    """

    name = ""
    api = "chat"
    binary = ""
    tools: tuple[str, ...] = ()
    skips: tuple[bytes, ...] = ()

    def prepare(self, request: Request) -> Invocation:
        """Pure. Raises ValueError, in one line, for a configuration that cannot work."""
        raise NotImplementedError

    def parse(self, line: str) -> Iterable[Event]:
        """What one line of its standard output says; an empty list for a line that says nothing. Pure.

        The line may be anything; whatever this raises counts as a line that says nothing.
        """
        raise NotImplementedError

    def finish(self, tally: Tally, ended: str, exit_code: int, files: dict[str, str]) -> HarnessResult:
        """What the run was worth. `ended`: `exited`, `wall` (its time was up), `idle` (no sign of life), `killed` (by a limit).

        `files`: those of `Invocation.reads` that are there. Judged by events; an exit code says nothing.
        """
        return judged(tally, ended, exit_code)


def judged(tally: Tally, ended: str, exit_code: int) -> HarnessResult:
    """The one rule for every agent that tells events."""
    status, error = _verdict(tally, ended, exit_code)
    if status == "llm_error" and _BUDGET in error:
        status = "budget"
    return HarnessResult(
        status,
        error,
        tally.final,
        tally.tool_calls,
        min(tally.input + tally.cached, _MAX_NUMBER),
        min(tally.output, _MAX_NUMBER),
        tally.turns,
        tally.tool_errors,
        tally.retries,
        tally.cost_usd,
    )


def _verdict(tally: Tally, ended: str, exit_code: int) -> tuple[str, str]:
    if tally.stalled:
        return "stalled", f"{ZERO_TURNS} turns in a row without a token"
    if tally.limit:
        return "limit", tally.limit
    if ended == "killed":
        return "limit", f"{tally.turns} turns and {tally.tool_calls} tool calls were not enough"
    finished = tally.done and not tally.error and bool(tally.final.strip())
    if ended != "exited" and finished:  # it had said all it had to say, and then did not go
        return "completed", ""
    if ended == "wall":
        return "timeout", "the time for this task is up"
    if ended == "idle":
        return ("llm_error", tally.error) if tally.error else ("stalled", "it gave no sign of life any more")
    if tally.error:
        return "llm_error", tally.error
    if not tally.done:
        return "crashed", f"it ended with exit code {exit_code} in the middle of its work"
    if not tally.final.strip():
        return "empty", "its last answer was empty"
    return "completed", ""


# --- reading what anybody may have written ---------------------------------------------------------------------------


def json_line(line: str) -> dict:
    """The JSON object of `line`; an empty one when it is none."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def inner(value: object, *keys: str) -> dict:
    """The object at `keys` below `value`; an empty one when there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def objects(value: object) -> list[dict]:
    """The objects of a list; none when it is no list."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def text(value: object) -> str:
    """`value` when it is a text, and otherwise what it looks like; nothing for null."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    try:
        return "" if value is None else json.dumps(value)[:20_000]
    except (ValueError, RecursionError):
        return ""


def number(value: object) -> int:
    """A count; 0 for anything that is none."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < _MAX_NUMBER
    return int(value) if good else 0  # type: ignore[arg-type]


def amount(value: object) -> float | None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e6
    return float(value) if good else None  # type: ignore[arg-type]
