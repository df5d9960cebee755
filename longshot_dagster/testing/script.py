"""What the scripted model says and does: the format of a script, and which of its parts answers a request.

A script is a TOML or JSON file beside the files its workers write:

    [[planners]]                     # `root`, or a pattern found in the description of a subplanner's own task
    planner = "root"
    [[planners.rounds]]              # one for each planning round; after the last one: nothing left to plan
    scratchpad = "..."
    look = [{read = "SPEC.md"}]
    tasks = [{description = "...", scope = ["a.py"]}]

    [[workers]]                      # the first entry that matches the task's message plays the worker
    match = "^The moon$"             # `^` and `$` match at lines
    files = "solution/moon"          # where `write` finds its contents
    steps = [[{write = "moon.py"}, {write = "test_moon.py"}], {bash = "make test"}]
    final = {status = "complete", summary = "..."}

    [[reconciler]]                   # the first entry that matches the failing output plans the fixes
    match = "TypeError"
    tasks = [...]

    [[faults]]                       # `times` requests of `role` whose message matches `match` fail like this
    role = "worker"
    fault = "429"
    times = 2
"""

import json
import re
import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.models import PlannedTask, TaskKind

# What `{bash = "make test"}` means: the one argument that a bare text stands for.
_MAIN_ARGUMENT = {"bash": "command", "grep": "pattern", "find": "glob_pattern"}


class Role(StrEnum):
    ROOT = "root"
    SUBPLANNER = "subplanner"
    WORKER = "worker"
    RECONCILER = "reconciler"
    OTHER = "other"


class FaultKind(StrEnum):
    BAD_REQUEST = "400"
    UNAUTHORIZED = "401"
    RATE_LIMITED = "429"
    SERVER_ERROR = "500"
    PROSE = "prose"  # a friendly answer without any JSON or tool call
    TRUNCATED = "truncated"  # the right answer, cut in half
    EMPTY = "empty"
    HANG = "hang"  # no answer until the client gives up
    DROP = "drop"  # a stream that begins and is over, without a word; a whole answer that never comes
    LOOP = "loop"  # one and the same command, for ever


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Pattern(_Part):
    """Base of whatever is chosen by a regular expression."""

    match: str = Field(default="", description="regular expression, `^` and `$` at lines; empty matches everything")

    @field_validator("match")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as broken:
            raise ValueError(f"is not a regular expression: {broken}") from None
        return value

    def matches(self, text: str) -> bool:
        return re.search(self.match, text, re.MULTILINE) is not None


class Action(_Part):
    """One tool call, written as `{tool = arguments}`; a bare text is the tool's main argument (mostly `path`)."""

    tool: str
    arguments: dict[str, Any]

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if not isinstance(value, dict) or len(value) != 1:
            raise ValueError("an action names one tool, as in {bash = 'make test'}")
        ((tool, arguments),) = value.items()
        if isinstance(arguments, str):
            arguments = {_MAIN_ARGUMENT.get(tool, "path"): arguments}
        return {"tool": tool, "arguments": arguments}


Step = tuple[Action, ...]


def _steps(value: Any) -> Any:
    """A step is one action or a list of actions that one answer asks for together."""
    return [step if isinstance(step, list) else [step] for step in value] if isinstance(value, list) else value


class Round(_Part):
    scratchpad: str = ""
    look: tuple[Step, ...] = Field(default=(), description="read-only tool calls before the plan")
    tasks: tuple[PlannedTask, ...] = ()
    delay_s: float = Field(default=0, ge=0, description="seconds before each answer of this round")

    _looks = field_validator("look", mode="before")(_steps)

    @property
    def reply(self) -> str:
        return plan_json(self.scratchpad, self.tasks)


class PlannerScript(_Part):
    planner: str = Field(description="`root`, or a pattern found in what the subplanner is asked to plan")
    rounds: tuple[Round, ...] = ()

    def round(self, number: int) -> Round:
        """The `number`-th planning round, from 1; beyond the script nothing is left to plan."""
        return self.rounds[number - 1] if 1 <= number <= len(self.rounds) else Round(scratchpad="Nothing is left.")


class WorkerScript(Pattern):
    kind: TaskKind | None = Field(default=None, description="plan, conflict-fix or check-fix; absent: any")
    files: str = Field(default="", description="folder beside the script where `write` finds its contents")
    steps: tuple[Step, ...] = ()
    final: str | dict[str, Any] = "Done."
    delay_s: float = Field(default=0, ge=0, description="seconds before the first answer")

    _each = field_validator("steps", mode="before")(_steps)

    @property
    def last_words(self) -> str:
        return self.final if isinstance(self.final, str) else json.dumps(self.final, indent=2, ensure_ascii=False)


class ReconcilerScript(Pattern):
    tasks: tuple[PlannedTask, ...] = Field(default=(), max_length=5)

    @property
    def reply(self) -> str:
        return plan_json("", self.tasks)


class Fault(Pattern):
    """`times` requests of `role` fail; a fault without `times` stays."""

    role: Role | Literal["any"] = "any"
    fault: FaultKind
    times: int | None = Field(default=None, ge=1)

    def hits(self, role: Role, text: str) -> bool:
        return self.role in ("any", role) and self.matches(text)


_BLOCKED = WorkerScript(final={"status": "blocked", "summary": "The script has no part for this task."})


class Script(_Part):
    planners: tuple[PlannerScript, ...] = ()
    workers: tuple[WorkerScript, ...] = ()
    reconciler: tuple[ReconcilerScript, ...] = ()
    default_worker: WorkerScript = _BLOCKED
    faults: tuple[Fault, ...] = ()

    def planner(self, role: Role, text: str) -> PlannerScript:
        """The planner that `text`, everything the conversation's user messages say, is addressed to."""
        for entry in self.planners:
            if role is Role.ROOT and entry.planner == "root":
                return entry
            if role is Role.SUBPLANNER and entry.planner != "root" and re.search(entry.planner, text, re.MULTILINE):
                return entry
        return PlannerScript(planner=role)

    def worker(self, kind: TaskKind, text: str) -> WorkerScript:
        fitting = (w for w in self.workers if w.kind in (None, kind) and w.matches(text))
        return next(fitting, self.default_worker)

    def fixes(self, text: str) -> ReconcilerScript:
        return next((r for r in self.reconciler if r.matches(text)), ReconcilerScript())

    def with_contents(self, folder: Path) -> Self:
        """The script with the text of every file its workers write; raises WrongUse for one that is missing."""
        workers = tuple(_with_contents(worker, folder) for worker in self.workers)
        return self.model_copy(update={"workers": workers})


def load(path: Path) -> Script:
    """The script in `path` (.toml or .json) with all it refers to; raises WrongUse with one line."""
    try:
        text = path.read_text(encoding="utf-8")
        raw = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
        return Script.model_validate(raw).with_contents(path.parent)
    except OSError as missing:
        raise WrongUse(f"script {path}: {missing.strerror}") from None
    except ValidationError as wrong:
        first = wrong.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise WrongUse(f"script {path}: {where}: {first['msg']}") from None
    except ValueError as wrong:
        raise WrongUse(f"script {path} cannot be read: {wrong}") from None


def plan_json(scratchpad: str, tasks: tuple[PlannedTask, ...]) -> str:
    """A planner's answer, as the prompts ask for it."""
    written = [task.model_dump(mode="json", by_alias=True) for task in tasks]
    return json.dumps({"scratchpad": scratchpad, "tasks": written}, indent=2, ensure_ascii=False)


def _with_contents(worker: WorkerScript, folder: Path) -> WorkerScript:
    steps = tuple(tuple(_filled(action, folder / worker.files) for action in step) for step in worker.steps)
    return worker.model_copy(update={"steps": steps})


def _filled(action: Action, files: Path) -> Action:
    if action.tool != "write" or "content" in action.arguments:
        return action
    path = str(action.arguments.get("path", ""))
    source = files / str(action.arguments.get("from", path))
    try:
        content = source.read_text(encoding="utf-8")
    except OSError as missing:
        raise WrongUse(f"the script writes {path} from {source}: {missing.strerror}") from None
    return action.model_copy(update={"arguments": {"path": path, "content": content}})
