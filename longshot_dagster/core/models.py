"""The facts of a build: the documents of the ledger, as frozen, validated types (a landing's are in `landing_records.py`).

What crosses to a model or a sandbox (`Plan`, `Handoff`) is camelCase on the wire, as the specification has it; our own
records are snake_case. Sizes are bounded here, once: what comes from a model, an agent or a repository is hostile.
"""

from enum import StrEnum
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator
from pydantic.alias_generators import to_camel

from longshot_dagster.core import ids, scope
from longshot_dagster.core.display import one_line
from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.needs import Needs
from longshot_dagster.core.settings import Origin, Settings

SCHEMA = 3  # of the ledger: 2 has undone landings, 3 has checksums
OLDEST_SCHEMA = 1  # that this version reads

MAX_REQUEST = 100_000
MAX_TEXT = 20_000
MAX_LINE = 2_000
MAX_DIFF = 400_000  # characters shown in a handoff; git holds the whole of it
MAX_LIST = 200
MAX_PATH = 4_096
MAX_COUNT = 10**15  # of anything counted elsewhere: JSON knows whole numbers that no arithmetic of ours survives
MAX_TASKS = ids.MAX_POSITION  # of one plan: a bound, not advice; the prompts ask for what can be specified now
MAX_SUBJECT = 72  # of a commit: git's own habit

Oid = Annotated[str, StringConstraints(pattern=r"^(?:[0-9a-f]{40}|[0-9a-f]{64})$")]
Text = Annotated[str, StringConstraints(max_length=MAX_TEXT)]
Line = Annotated[str, StringConstraints(max_length=MAX_LINE)]
RepoPath = Annotated[str, StringConstraints(max_length=MAX_PATH)]


class Record(BaseModel):
    """Base of our own documents."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Wire(BaseModel):
    """Base of what models and sandboxes write: camelCase, unknown fields dropped."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True, serialize_by_alias=True
    )


# --- the request -----------------------------------------------------------------------------------------------------


class TargetKind(StrEnum):
    REMOTE = "remote"  # a URL or a bare repository: lands on `branch` there
    CHECKOUT = "checkout"  # a work tree without an origin: lands on longshot/<build>, the work tree is not touched


class Target(Record):
    """Where a build reads from and lands to; decided once, when the build starts."""

    repository: str = Field(description="what the person gave: URL or path, credentials never included")
    url: str = Field(description="what git fetches from and pushes to")
    kind: TargetKind
    base_branch: str = Field(description="the branch work starts from")
    branch: str = Field(description="the only branch this build ever moves")


class BuildRequest(Record):
    """`request.json`: what a person asked for, with every setting resolved and frozen."""

    schema_version: int = SCHEMA
    written_by: str = Field(default="", description="version of longshot that last wrote to this ledger")
    build: str
    request: Annotated[str, StringConstraints(min_length=1, max_length=MAX_REQUEST, strip_whitespace=True)]
    target: Target
    base: Oid = Field(description="head of the base branch when the build started")
    settings: Settings
    origins: dict[str, Origin] = Field(
        default_factory=dict, description="where each setting that is no default came from"
    )
    created_at: float
    rehearsal: bool = Field(
        default=False, description="True when the scripted model answers: no result of a real model"
    )

    @field_validator("build")
    @classmethod
    def _build(cls, value: str) -> str:
        return ids.check_build_id(value)


class BuildPhase(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    FINALIZING = "finalizing"
    FINISHED = "finished"


BUILD_TRANSITIONS: dict[BuildPhase, frozenset[BuildPhase]] = {
    BuildPhase.RUNNING: frozenset({BuildPhase.PAUSED, BuildPhase.FINALIZING}),
    BuildPhase.PAUSED: frozenset({BuildPhase.RUNNING}),
    BuildPhase.FINALIZING: frozenset({BuildPhase.RUNNING, BuildPhase.PAUSED, BuildPhase.FINISHED}),
    BuildPhase.FINISHED: frozenset(),
}


class Verdict(StrEnum):
    GREEN = "green"  # everything landed or superseded by what landed, checks green
    LEFTOVERS = "leftovers"  # checks not red, but named tasks did not land, or nothing was changed or checked
    RED = "red"


class BuildState(Record):
    """`state.json`: the one document of a build that changes (under the ledger's lock)."""

    phase: BuildPhase = BuildPhase.RUNNING
    reason: Line = Field(default="", description="why it is paused, in one line")
    attempts: dict[str, int] = Field(default_factory=dict, description="iteration or `finalize.nnn` -> attempt, from 1")
    verdict: Verdict | None = None

    def moved(self, phase: BuildPhase, reason: str = "", verdict: Verdict | None = None) -> Self:
        """The next state; raises ValueError for a transition that is not drawn in BUILD_TRANSITIONS."""
        if phase is not self.phase and phase not in BUILD_TRANSITIONS[self.phase]:
            raise ValueError(f"a build that is {self.phase} cannot become {phase}")
        return self.model_copy(update={"phase": phase, "reason": reason[:MAX_LINE], "verdict": verdict or self.verdict})

    def reopened(self, finalization: str) -> Self:
        """A finished build running again, because one of its tasks is worked on anew; `finalization` gets a new attempt.

        Raises ValueError unless it is finished.
        """
        if self.phase is not BuildPhase.FINISHED:
            raise ValueError(f"a build that is {self.phase} cannot be reopened")
        attempts = {**self.attempts, finalization: self.attempts.get(finalization, 1) + 1}
        return self.model_copy(
            update={"phase": BuildPhase.RUNNING, "reason": "", "verdict": None, "attempts": attempts}
        )

    @property
    def under_way(self) -> bool:
        return self.phase in (BuildPhase.RUNNING, BuildPhase.FINALIZING)

    def paused(self, reason: str) -> Self:
        """Paused if it was under way; the first reason stays, and a finished build stays finished."""
        return self.moved(BuildPhase.PAUSED, reason) if self.under_way else self


# --- plans -----------------------------------------------------------------------------------------------------------


class PlannedTask(Wire):
    """One task as a planner writes it; `id` and `branch` of the model's making are dropped: names are ours."""

    description: Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT, strip_whitespace=True)]
    scope: list[RepoPath] = Field(min_length=1, max_length=100)
    acceptance: Text = ""
    priority: int = Field(default=5, ge=1, le=10, description="1 is first")
    replaces: list[str] = Field(
        default_factory=list, max_length=20, description="ids of unlanded tasks this one redoes"
    )
    exclusive: bool | list[RepoPath] = Field(
        default=False,
        description="nobody else is at work in its scope, or in these paths, from its start to its landing",
    )
    needs: Needs | None = Field(default=None, description="what it asks of the place it is worked in")

    @property
    def alone_on(self) -> tuple[str, ...]:
        """Where nobody else may be at work meanwhile; nothing for all but exclusive tasks."""
        if isinstance(self.exclusive, bool):
            return tuple(self.scope) if self.exclusive else ()
        return tuple(self.exclusive)

    @field_validator("needs", mode="after")
    @classmethod
    def _needs(cls, value: Needs | None) -> Needs | None:
        return value if value and value.line else None

    @field_validator("exclusive", mode="before")
    @classmethod
    def _exclusive(cls, value: object) -> object:
        if isinstance(value, bool | None):
            return bool(value)
        if not isinstance(value, list) or not all(isinstance(path, str) for path in value):
            raise ValueError("say true, for the task's whole scope, or list paths")
        if len(value) > 100:
            raise ValueError("at most 100 paths, please: name directories")
        try:
            return list(scope.normalise_all(value))
        except WrongUse as e:
            raise ValueError(str(e)) from e

    @field_validator("scope")
    @classmethod
    def _scope(cls, value: list[str]) -> list[str]:
        try:
            return list(scope.normalise_all(value))
        except WrongUse as e:  # a model's mistake: pydantic tells it, and it may answer again
            raise ValueError(str(e)) from e


class PlanReply(Wire):
    """What a planner answers."""

    scratchpad: Annotated[str, StringConstraints(max_length=60_000)] = ""
    tasks: list[PlannedTask] = Field(default_factory=list, max_length=MAX_TASKS)


class TaskKind(StrEnum):
    PLAN = "plan"
    CONFLICT_FIX = "conflict-fix"
    CHECK_FIX = "check-fix"


class Task(Record):
    """`tasks/<id>/task.json`: one piece of work, frozen when planned."""

    id: str
    build: str
    iteration: str = Field(description="short key of the iteration that planned it, e.g. root.002")
    planner: str = Field(description="root, fix, or the id of the delegated task it is part of")
    kind: TaskKind = TaskKind.PLAN
    description: str = Field(min_length=1, max_length=MAX_TEXT * 4)
    scope: tuple[str, ...] = Field(min_length=1)
    acceptance: str = ""
    priority: int = Field(default=5, ge=1, le=10)
    branch: str
    delegated: bool = Field(default=False, description="goes to a subplanner, not to a worker")
    replaces: tuple[str, ...] = Field(default=(), description="tasks that are superseded once this one lands")
    exclusive: tuple[str, ...] = Field(
        default=(), description="files and directories that nobody else is at work in, from its start to its landing"
    )
    needs: Needs | None = Field(default=None, description="what it asks of the place it is worked in")

    @field_validator("id", "planner")
    @classmethod
    def _id(cls, value: str) -> str:
        return value if value in (ids.ROOT, ids.FIX) else ids.check_task_id(value)

    @property
    def title(self) -> str:
        """The first line of the description, as long as the subject of a commit may be."""
        line = one_line(self.description.strip().split("\n", 1)[0], 200)
        return line if len(line) <= MAX_SUBJECT else line[: MAX_SUBJECT - 1].rstrip() + "…"


class Plan(Record):
    """`iterations/<key>/plan.json`: the frozen manifest. If it exists, no model is asked again."""

    iteration: str
    tasks: tuple[Task, ...] = Field(description="everything planned, delegated tasks included")
    handoffs_seen: tuple[str, ...] = Field(default=(), description="tasks whose handoffs this planning round was given")
    sweep: int | None = Field(default=None, description="the sweep a fix iteration answers")
    base: Oid = Field(description="the commit the planner read")
    scratchpad: str = ""
    tokens: int = 0
    duration_ms: int = 0
    planned_at: float | None = Field(default=None, description="when it was frozen; None in older ledgers")
    notes: tuple[Line, ...] = Field(default=(), description="what of the planner's answer could not be taken, and why")

    @property
    def dispatched(self) -> tuple[Task, ...]:
        """The tasks that go to workers, by priority and then as they were planned."""
        return tuple(sorted((t for t in self.tasks if not t.delegated), key=lambda t: t.priority))

    @cached_property
    def by_id(self) -> dict[str, Task]:
        """The tasks that go to workers; asked for by each of a thousand of them."""
        return {t.id: t for t in self.tasks if not t.delegated}

    def given(self, task: str) -> Task | None:
        """The task as a worker gets it; None when the plan has none of that name for a worker."""
        return self.by_id.get(task)


# --- handoffs --------------------------------------------------------------------------------------------------------


class HandoffStatus(StrEnum):
    COMPLETE = "complete"
    PARTIAL = "partial"
    BLOCKED = "blocked"
    FAILED = "failed"


class HandoffMetrics(Wire):
    lines_added: int = Field(default=0, ge=0, le=MAX_COUNT)
    lines_removed: int = Field(default=0, ge=0, le=MAX_COUNT)
    files_created: int = Field(default=0, ge=0, le=MAX_COUNT)
    files_modified: int = Field(default=0, ge=0, le=MAX_COUNT)
    tokens_used: int = Field(default=0, ge=0, le=MAX_COUNT)
    tool_call_count: int = Field(default=0, ge=0, le=MAX_COUNT)
    duration_ms: int = Field(default=0, ge=0, le=MAX_COUNT)


class Handoff(Wire):
    """`tasks/<id>/handoff.json`: the specification's contract, field for field (seed/architecture.txt)."""

    task_id: str
    status: HandoffStatus
    summary: Text
    diff: Annotated[str, StringConstraints(max_length=MAX_DIFF + 200)] = ""
    files_changed: list[RepoPath] = Field(default_factory=list, max_length=5_000)
    concerns: list[Line] = Field(default_factory=list, max_length=MAX_LIST)
    suggestions: list[Line] = Field(default_factory=list, max_length=MAX_LIST)
    metrics: HandoffMetrics = Field(default_factory=HandoffMetrics)


class CheckName(StrEnum):
    INSTALL = "install"
    COMPILE = "compile"
    TYPES = "types"
    LINT = "lint"
    TEST = "test"


class CheckStatus(StrEnum):
    GREEN = "green"
    RED = "red"
    RED_BEFORE = "red-before"  # red in the worker's branch, and as red on its base: does not block landing
    TIMEOUT = "timeout"
    SKIPPED = "skipped"


class CheckResult(Record):
    """One check as it ran in a sandbox."""

    name: CheckName
    command: Line
    status: CheckStatus
    exit_code: int | None = None
    output: Annotated[str, StringConstraints(max_length=40_000)] = Field(default="", description="tail of both streams")
    duration_ms: int = Field(default=0, le=MAX_COUNT)

    @property
    def red(self) -> bool:
        return self.status in (CheckStatus.RED, CheckStatus.TIMEOUT)


class CancelRequest(Record):
    """`tasks/<id>/cancel.json`: a person wants no more of this task."""

    at: float


class WorkerRun(Record):
    """`tasks/<id>/run.json`: how the task was worked on (beside the handoff, which stays the specification's)."""

    task: str
    attempt: int = 1
    provider: str
    sandbox: str = ""
    harness: str
    harness_status: str = Field(
        description="completed, empty, llm_error, limit, timeout, stalled, budget, crashed, config_error, cancelled"
    )
    error: Line = ""
    base: Oid
    head: Oid | None = Field(default=None, description="tip of the imported branch; None when nothing was committed")
    commits: int = 0
    checks: tuple[CheckResult, ...] = ()
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float | None = Field(default=None, description="None: unknown price")
    not_enforced: tuple[str, ...] = Field(default=(), description="defaults this provider or harness cannot enforce")
    route: Line = Field(default="", description="why this provider and this harness, in one line")
    tried: tuple[Line, ...] = Field(default=(), max_length=20, description="what came to nothing before, and where")
    started_at: float
    ended_at: float


# --- repository and health -------------------------------------------------------------------------------------------


class RepoState(Record):
    """`iterations/<key>/repo_state.json`: what an iteration found on main."""

    head: Oid
    branch: str
    files: int = Field(description="files in the tree")
    tree: tuple[str, ...] = Field(description="paths, at most 2,000, sorted")
    log: tuple[str, ...] = Field(description="newest 40 commits as `<short oid> <subject>`")
    documents: dict[str, str] = Field(
        default_factory=dict, description="SPEC.md, FEATURES.json, AGENTS.md, DECISIONS.md where present, cut to size"
    )


class Sweep(Record):
    """`sweeps/<n>.json`: one build-and-test of main in a clean checkout."""

    number: int = Field(ge=1)
    head: Oid
    iteration: str = ""
    checks: tuple[CheckResult, ...] = ()
    conflict_markers: tuple[RepoPath, ...] = ()
    error: Line = Field(default="", description="why the sweep itself could not run; such a sweep is not green")
    started_at: float
    ended_at: float
    made_by: str = Field(default="", description="the build on the same branch that made it; empty: this build")

    @property
    def green(self) -> bool:
        """True only when a check ran green and nothing is red."""
        ran = [c for c in self.checks if c.status is not CheckStatus.SKIPPED]
        return (
            bool(ran)
            and not self.error
            and not self.conflict_markers
            and all(c.status is CheckStatus.GREEN for c in ran)
        )

    @property
    def checked(self) -> bool:
        """False when the repository offers nothing to check: such a main is neither green nor red."""
        return any(c.status is not CheckStatus.SKIPPED for c in self.checks)

    @property
    def red(self) -> bool:
        return bool(self.error or self.conflict_markers or any(c.red for c in self.checks))


class MetricsSnapshot(Record):
    """`iterations/<key>/metrics.json`: figures of one iteration and of the build so far."""

    iteration: str
    tasks: int = 0
    landed: int = 0
    conflicts: int = 0
    withheld: int = 0
    tokens: int = 0
    tokens_build: int = Field(default=0, description="all planners and workers of the build so far")
    lines_added: int = 0
    lines_removed: int = 0
    worker_ms: int = 0
    iteration_ms: int = 0
    health: Literal["green", "red", "unchecked"] = "unchecked"


class IterationFailure(Record):
    """`iterations/<key>/failure.json`: why an attempt ended without its metrics; removed by the next attempt."""

    attempt: int
    kind: Literal["model", "plan", "budget", "repository", "cancelled", "crash"]
    reason: Line


class Leftover(Record):
    """A task that did not land and was not superseded."""

    task: str
    state: str
    reason: Line
    description: Line


class BuildReport(Record):
    """`report.json`: the last word on a build."""

    build: str
    verdict: Verdict
    reason: Line = ""
    head: Oid
    branch: str
    tasks: int
    landed: int
    superseded: int
    leftovers: tuple[Leftover, ...] = ()
    sweep: int | None = None
    health: Literal["green", "red", "unchecked"] = "unchecked"
    iterations: int = 0
    conflicts: int = 0
    tokens: int = 0
    cost_usd: float | None = None
    wall_s: float = 0
    finalization_attempts: int = 0
    rehearsal: bool = False

    @model_validator(mode="after")
    def _honest(self) -> Self:
        if self.verdict is Verdict.GREEN and (self.leftovers or self.health == "red"):
            raise ValueError("a report with leftovers or a red main is not green")
        return self
