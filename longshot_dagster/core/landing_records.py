"""What became of one branch: the states of a landing, and the facts that the queue writes down with them."""

from enum import StrEnum
from typing import Any, Self

from pydantic import Field

from longshot_dagster.core.models import MAX_TEXT, Line, Oid, Record, RepoPath


class LandingState(StrEnum):
    QUEUED = "queued"
    LANDED = "landed"
    NOOP = "noop"  # nothing to land: empty diff, or main already holds it
    CONFLICT = "conflict"
    WITHHELD = "withheld"  # red checks, handoff not complete, hostile bundle, or nothing in scope
    SUPERSEDED = "superseded"  # a task that replaces or fixes it has landed
    UNDONE = "undone"  # it had landed, and a person took it back


LANDING_TRANSITIONS: dict[LandingState, frozenset[LandingState]] = {
    LandingState.QUEUED: frozenset(
        {LandingState.LANDED, LandingState.NOOP, LandingState.CONFLICT, LandingState.WITHHELD}
    ),
    LandingState.CONFLICT: frozenset({LandingState.QUEUED, LandingState.SUPERSEDED}),
    LandingState.WITHHELD: frozenset({LandingState.QUEUED, LandingState.SUPERSEDED}),
    LandingState.LANDED: frozenset({LandingState.UNDONE}),
    LandingState.UNDONE: frozenset({LandingState.SUPERSEDED}),
    LandingState.NOOP: frozenset({LandingState.SUPERSEDED}),
    LandingState.SUPERSEDED: frozenset(),
}


class ConcernKind(StrEnum):
    OUT_OF_SCOPE = "out-of-scope"
    GENERATED = "generated"
    UNSAFE_PATH = "unsafe-path"
    CLAIMED = "claimed"
    SQUASHED = "squashed"
    CHECK_RED = "check-red"
    NOT_COMPLETE = "not-complete"
    CONFLICT = "conflict"
    LOCK_FILE = "lock-file"  # it could not be made anew
    PROTECTED = "protected"  # lands once a person has approved it
    TOO_LARGE = "too-large"
    MARKERS = "conflict-markers"
    REVERTS = "reverts"  # landing it would take back what others did
    REFUSED = "refused"  # the target took others, and not this one: a rule of its own, or a secret that it found


class Concern(Record):
    """Something a person or planner should know about a landing."""

    kind: ConcernKind
    text: Line
    path: RepoPath = ""


class ConflictFile(Record):
    """One conflicted path, with what the fix task needs to see. Contents are None for binary, absent or large blobs."""

    path: RepoPath
    kind: Line = Field(description="git's own word: contents, modify/delete, rename/delete, add/add ...")
    base: str | None = Field(default=None, max_length=MAX_TEXT)
    ours: str | None = Field(default=None, max_length=MAX_TEXT)
    theirs: str | None = Field(default=None, max_length=MAX_TEXT)
    merged: str | None = Field(default=None, max_length=MAX_TEXT * 2, description="with conflict markers")


class Resolution(Record):
    """One file of a branch that landed though it did not merge, or a lock file made anew with it; contents as blob ids."""

    rung: Line
    path: RepoPath
    base: Oid | None = None
    ours: Oid | None = Field(default=None, description="as it was on the landing branch; None: it was not there")
    theirs: Oid | None = Field(
        default=None, description="as the task left it; None: a lock file, of which no task's lands"
    )
    result: Oid

    @property
    def line(self) -> str:
        """For people; the path is a repository's."""
        return f"{self.path}: {self.rung}, {(self.ours or 'new')[:12]} to {self.result[:12]}"


class Approval(Record):
    """`approvals/<task>.json`: a person wants just these changes to protected paths to land, and no others."""

    task: str
    digest: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of paths, modes and contents before and after")
    paths: tuple[RepoPath, ...] = Field(default=(), max_length=5_000)
    by: Line = Field(description="who: the account and host that said so")
    at: float


class LandingOutcome(Record):
    """`tasks/<id>/landing.json`: what became of one branch, with its history."""

    task: str
    state: LandingState
    reason: Line = ""
    strategy: str = ""
    onto: Oid | None = Field(default=None, description="head of the landing branch it was merged onto")
    source: Oid | None = Field(default=None, description="tip of the worker's branch")
    commits: tuple[Oid, ...] = Field(default=(), description="commits on the landing branch, oldest first")
    landed_paths: tuple[str, ...] = ()
    withheld_paths: tuple[str, ...] = ()
    conflicts: tuple[ConflictFile, ...] = ()
    conflict_with: tuple[str, ...] = Field(default=(), description="landed tasks that touched the conflicted paths")
    resolutions: tuple[Resolution, ...] = ()
    concerns: tuple[Concern, ...] = ()
    approved: Approval | None = Field(default=None, description="what landed of it because a person approved it")
    superseded_by: str | None = None
    undone_by: Oid | None = Field(default=None, description="the commit on the landing branch that took it back")
    history: tuple[tuple[LandingState, float], ...] = ()

    def moved(self, state: LandingState, at: float, **changes: Any) -> Self:
        """The next outcome; raises ValueError for a transition that is not drawn in LANDING_TRANSITIONS."""
        if state is not self.state and state not in LANDING_TRANSITIONS[self.state]:
            raise ValueError(f"{self.task}: a landing that is {self.state} cannot become {state}")
        return self.model_validate({**dict(self), **changes, "state": state, "history": (*self.history, (state, at))})

    @property
    def settled(self) -> bool:
        return self.state is not LandingState.QUEUED

    @property
    def keeps_back(self) -> bool:
        """Has some of a branch that has landed been withheld that no tool can make again?"""
        if self.state not in (LandingState.LANDED, LandingState.NOOP):
            return False
        generated = {c.path for c in self.concerns if c.kind is ConcernKind.GENERATED}
        return not generated.issuperset(self.withheld_paths)
