"""Everything there is to say about one build: what the summary, the page, the Markdown and the timeline are made of."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import (
    BuildReport,
    BuildRequest,
    BuildState,
    Handoff,
    HandoffStatus,
    IterationFailure,
    Plan,
    Sweep,
    Task,
    WorkerRun,
)
from longshot_dagster.core.report import duration, headline


class Tone(StrEnum):
    """How good a thing is, for a colour that is never the only sign of it."""

    GOOD = "good"
    QUIET = "quiet"  # as it should be, and nothing to look at
    OPEN = "open"
    WARN = "warn"
    BAD = "bad"


_BY_LANDING = {
    LandingState.LANDED: Tone.GOOD,
    LandingState.NOOP: Tone.QUIET,
    LandingState.SUPERSEDED: Tone.QUIET,
    LandingState.QUEUED: Tone.OPEN,
    LandingState.UNDONE: Tone.WARN,
    LandingState.WITHHELD: Tone.BAD,
    LandingState.CONFLICT: Tone.BAD,
}


@dataclass(frozen=True)
class TaskFacts:
    """One task with everything the ledger holds about it; `earlier` are runs that were set aside for another."""

    task: Task
    handoff: Handoff | None = None
    landing: LandingOutcome | None = None
    run: WorkerRun | None = None
    earlier: tuple[WorkerRun, ...] = ()
    interrupted: bool = False  # an unfinished one of which part of the work is kept

    @property
    def outcome(self) -> str:
        """What became of it, in a word or three."""
        match self.landing.state if self.landing else None:
            case None if self.handoff is None:
                if self.interrupted:
                    return "partial (interrupted)"
                return "its parts are planned" if self.task.delegated else "unfinished"
            case None:
                return "done by its parts" if self.task.delegated else "waits to land"
            case LandingState.NOOP if self.handoff and self.handoff.status is not HandoffStatus.COMPLETE:
                return self.handoff.status.value
            case LandingState.NOOP:
                return "nothing to land"
            case state:
                return state.value

    @property
    def tone(self) -> Tone:
        if self.landing is None:
            return Tone.QUIET if self.task.delegated and self.handoff else Tone.OPEN
        if self.landing.state is LandingState.NOOP and self.outcome != "nothing to land":
            return Tone.BAD
        return _BY_LANDING[self.landing.state]

    @property
    def why(self) -> str:
        """The reason of an outcome that has one."""
        if self.landing is None:
            return ""
        if self.landing.state is LandingState.SUPERSEDED and self.landing.superseded_by:
            return f"by {self.landing.superseded_by}"
        return self.landing.reason


@dataclass(frozen=True)
class Round:
    """One planning round. `ended_at` is when its plan was frozen, in seconds since the epoch."""

    key: IterationKey
    plan: Plan | None = None
    ended_at: float | None = None
    failure: IterationFailure | None = None

    @property
    def started_at(self) -> float | None:
        if self.ended_at is None or self.plan is None:
            return None
        return self.ended_at - self.plan.duration_ms / 1000


@dataclass(frozen=True)
class Pause:
    """A stretch in which the build stood still, in seconds since the epoch."""

    start: float
    end: float
    reason: str


@dataclass(frozen=True)
class Places:
    """Where everything of the build is: paths, and the refs of branches that workers handed in."""

    ledger: str
    page: str
    markdown: str
    document: str
    mirror: str
    work_refs: str
    checkpoint: str


@dataclass(frozen=True)
class OutcomeFigures:
    """What the tasks of one outcome took; the shares are of all workers' time and tokens, 0 to 1."""

    outcome: str
    tasks: int
    worker_s: float
    worker_share: float
    tokens: int
    token_share: float

    @property
    def row(self) -> tuple[str, ...]:
        """One row of a table; the outcome's text still has to be shown safely."""
        took = (duration(self.worker_s), f"{self.worker_share:.0%}")
        return self.outcome, str(self.tasks), *took, f"{self.tokens:,}", f"{self.token_share:.0%}"


@dataclass(frozen=True)
class RoundFigures:
    """What the tasks of one planning round took. Seconds are None when no worker of it has ended."""

    iteration: str
    tasks: int
    landed: int
    median_s: float | None
    longest_s: float | None
    planner_tokens: int
    worker_tokens: int


@dataclass(frozen=True)
class Figures:
    """Sums that a person asks for and no single document holds."""

    outcomes: tuple[OutcomeFigures, ...] = ()
    rounds: tuple[RoundFigures, ...] = ()
    most_at_once: int = 0
    mean_at_once: float = 0.0  # over the time in which at least one worker was at work


@dataclass(frozen=True)
class LastWord:
    """A build as its ledger shows it at `told_at`. While it is not `final`, `report` says how it stands so far."""

    request: BuildRequest
    state: BuildState
    report: BuildReport
    final: bool
    tasks: tuple[TaskFacts, ...]
    rounds: tuple[Round, ...]
    sweeps: tuple[Sweep, ...]
    pauses: tuple[Pause, ...]
    places: Places
    told_at: float

    @property
    def build(self) -> str:
        return self.request.build

    @property
    def standing(self) -> str:
        """The verdict, or how the build stands that has none."""
        return self.report.verdict.value if self.final else f"not finished ({self.state.phase.value})"

    @property
    def tone(self) -> Tone:
        if not self.final:
            return Tone.OPEN
        return {"green": Tone.GOOD, "red": Tone.BAD}.get(self.report.verdict.value, Tone.WARN)

    @property
    def sentence(self) -> str:
        """The whole in one plain sentence; a build that has not ended is never called green."""
        if self.final:
            return headline(self.report)
        why = f": {self.state.reason}" if self.state.reason else ""
        done = f"{self.report.landed} of {self.report.tasks} planned tasks landed so far"
        return f"{done}; the build is {self.state.phase.value}{why}"

    @property
    def undone(self) -> tuple[TaskFacts, ...]:
        return tuple(t for t in self.tasks if t.landing and t.landing.state is LandingState.UNDONE)

    @property
    def undone_since(self) -> tuple[TaskFacts, ...]:
        """What was taken back after the report was written, which therefore still counts it."""
        known = {left.task for left in self.report.leftovers}
        return tuple(t for t in self.undone if t.task.id not in known)

    @property
    def final_sweep(self) -> Sweep | None:
        """The sweep that the report speaks of; of an unfinished build the newest."""
        if self.final:
            return next((s for s in self.sweeps if s.number == self.report.sweep), None)
        return self.sweeps[-1] if self.sweeps else None

    @property
    def landed_files(self) -> tuple[str, ...]:
        """Every path that landed and was not taken back, sorted."""
        return tuple(sorted({p for t in self.landed if t.landing for p in t.landing.landed_paths}))

    @property
    def landed(self) -> tuple[TaskFacts, ...]:
        """In the order in which they landed."""
        found = [t for t in self.tasks if t.landing and t.landing.state is LandingState.LANDED]
        return tuple(sorted(found, key=lambda t: (when(t.landing, LandingState.LANDED) or 0.0, t.task.id)))


def when(landing: LandingOutcome | None, state: LandingState) -> float | None:
    """Seconds since the epoch at which `landing` last became `state`."""
    return next((at for s, at in reversed(landing.history) if s is state), None) if landing else None


def newest_head(request: BuildRequest, tasks: Iterable[TaskFacts], sweeps: Iterable[Sweep]) -> str:
    """The landing branch as the ledger last saw it, without asking git."""
    seen = [(0.0, request.base)]
    for facts in tasks:
        at = when(facts.landing, LandingState.LANDED)
        if facts.landing and facts.landing.commits and at is not None:
            seen.append((at, facts.landing.commits[-1]))
    seen += [(s.started_at, s.head) for s in sweeps]
    return max(seen)[1]
