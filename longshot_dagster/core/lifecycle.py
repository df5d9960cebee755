"""What happens next in a build, decided by a pure fold over its ledger.

The `replan`, `reconcile` and `finalize` sensors ask `next_steps` and carry out what it says; nothing else opens work.
Whatever it returns is idempotent: asked twice of the same ledger it names the same iterations, and the run key of an
iteration is its name and attempt, which Dagster launches once.
"""

from dataclasses import dataclass
from enum import StrEnum

from longshot_dagster.core import ids
from longshot_dagster.core.ids import FIX, ROOT, IterationKey
from longshot_dagster.core.landing_records import LandingState
from longshot_dagster.core.models import BuildPhase, HandoffStatus

ROOT_REPLANS_AFTER = 3  # new handoffs at least (seed/architecture.txt, "default: 3")
SUBPLANNER_REPLANS_AFTER = 1
REPLANS_AFTER_SHARE = 10  # one new handoff for so many tasks still at work; see `replans_after`
SUBPLANNER_MAX_ITERATIONS = 20
MAX_DEPTH = 3
DELEGATE_FROM = 4  # files in scope
REGRESSION_ROUNDS = 3  # of fixes for a regression since main was last seen well; then finalization decides


class IterationStatus(StrEnum):
    OPEN = "open"
    FAILED = "failed"
    DONE = "done"


@dataclass(frozen=True)
class IterationView:
    """One iteration as the ledger shows it."""

    key: IterationKey
    status: IterationStatus
    attempt: int = 1
    planned: bool = False
    tasks: tuple[str, ...] = ()
    handoffs_seen: tuple[str, ...] = ()
    sweep: int | None = None


@dataclass(frozen=True)
class TaskView:
    id: str
    planner: str
    delegated: bool = False
    is_fix: bool = False
    handoff: HandoffStatus | None = None
    landing: LandingState | None = None
    fix_planned: bool = False  # a fix iteration has taken its conflict up

    @property
    def settled(self) -> bool:
        """A worker's task is settled when its landing is; a delegated one when its handoff is written."""
        if self.delegated:
            return self.handoff is not None
        return self.handoff is not None and self.landing is not None and self.landing is not LandingState.QUEUED


@dataclass(frozen=True)
class SweepView:
    number: int
    head: str
    red: bool
    regression: bool  # a check is red that an earlier sweep of this build saw green, or markers are on main
    last_well: int = 0  # number of the newest sweep that was not red


@dataclass(frozen=True)
class BuildView:
    build: str
    phase: BuildPhase
    iterations: tuple[IterationView, ...] = ()
    tasks: tuple[TaskView, ...] = ()
    sweep: SweepView | None = None  # the newest
    finalize_attempt: int = 0  # finalizations that have ended red so far
    final_sweep: int | None = None  # the sweep the last finalization ended with
    mended_by: str = ""  # another build on the same branch, whose fix iteration answers its red main at the moment
    finalization_max_attempts: int = 3
    max_iterations: int = 100
    fixes_conflicts: bool = True  # CONFLICT_RUNGS


@dataclass(frozen=True)
class RunIteration:
    """Have the run of this iteration's current attempt running."""

    key: IterationKey
    attempt: int

    @property
    def run_key(self) -> str:
        return f"{self.key}#{self.attempt}"


@dataclass(frozen=True)
class CloseParent:
    """The subplanner of this task is done: write the parent's handoff from its children's."""

    task: str


@dataclass(frozen=True)
class Finalize:
    """Drain, sweep and either report or ask for fixes. `number` counts from 1."""

    number: int


Step = RunIteration | CloseParent | Finalize


def next_steps(view: BuildView) -> list[Step]:
    """Everything that should be under way now and may not be yet."""
    if view.phase in (BuildPhase.PAUSED, BuildPhase.FINISHED):
        return []
    steps: list[Step] = [
        RunIteration(i.key, i.attempt) for i in view.iterations if i.status is not IterationStatus.DONE
    ]
    steps += _planning(view, ROOT)
    closing = False
    for task in view.tasks:
        if task.delegated and task.handoff is None:
            more = _planning(view, task.id)
            closing = closing or any(isinstance(s, CloseParent) for s in more)
            steps += more
    steps += _fixing(view)
    if not steps and not closing and _drained(view) and not waits_for_mending(view):
        steps.append(Finalize(view.finalize_attempt + 1))
    return steps


def opens_work(view: BuildView) -> bool:
    """Is something due that is not under way, and that need not wait for the next look at main's health?"""
    known = {i.key for i in view.iterations}
    return any(
        not isinstance(s, RunIteration) or (s.key not in known and s.key.planner != FIX) for s in next_steps(view)
    )


def planner_done(view: BuildView, planner: str) -> bool:
    """Has `planner` said, with every handoff before it, that nothing is left to plan (or used up its iterations)?"""
    rounds = _rounds(view, planner)
    if not rounds or rounds[-1].status is not IterationStatus.DONE or _owned_active(view, planner):
        return False
    if len(rounds) >= _max_rounds(view, planner):
        return True
    return not rounds[-1].tasks and not _unseen(view, planner)


def fixable_conflicts(view: BuildView) -> tuple[str, ...]:
    """Tasks in conflict that no fix iteration has taken up. A fix task's own conflict is never fixed again: no chains."""
    if not view.fixes_conflicts:
        return ()
    return tuple(t.id for t in view.tasks if t.landing is LandingState.CONFLICT and not t.fix_planned and not t.is_fix)


def fixable_sweep(view: BuildView) -> int | None:
    """The newest sweep, if it is red, unanswered, and red for a reason that planned work would not mend.

    While planners still add work, acceptance tests of what is not built yet are red by right: only a regression is
    answered then, and only so often in a row: fixes that land and mend nothing would go on for ever. Once the root
    planner is done, finalization decides (`final_sweep`). Of several builds on one branch, one answers at a time.
    """
    return None if view.mended_by else _fixable_sweep(view)


def waits_for_mending(view: BuildView) -> bool:
    """Would this build answer its red main, if another one were not at it already?"""
    return bool(view.mended_by) and _fixable_sweep(view) is not None


def _fixable_sweep(view: BuildView) -> int | None:
    s = view.sweep
    answered = {i.sweep for i in view.iterations if i.key.planner == FIX}
    if s is None or not s.red or s.number in answered:
        return None
    if view.final_sweep == s.number:
        return s.number if view.finalize_attempt <= view.finalization_max_attempts else None
    tried = sum(number is not None and number > s.last_well for number in answered)
    return s.number if s.regression and view.finalize_attempt == 0 and tried < REGRESSION_ROUNDS else None


def replans_after(planner: str, unsettled: int) -> int:
    """New handoffs after which `planner` is asked again while `unsettled` of its tasks are not settled yet.

    The specification's number, and a tenth of what is still at work where that is more: a plan of a thousand tasks would
    otherwise be looked at anew every second, each time with next to nothing to say, by a process and a model that cost
    something. Up to 39 tasks (19 of a subplanner's) it is the specification's own.
    """
    least = ROOT_REPLANS_AFTER if planner == ROOT else SUBPLANNER_REPLANS_AFTER
    return max(least, unsettled // REPLANS_AFTER_SHARE)


def _planning(view: BuildView, planner: str) -> list[Step]:
    rounds = _rounds(view, planner)
    if not rounds:
        return [RunIteration(IterationKey(view.build, planner, 1), 1)]
    last = rounds[-1]
    if not last.planned:  # still planning; or failed, and then its own re-run is already among the steps
        return []
    if planner_done(view, planner):
        return [] if planner == ROOT else [CloseParent(planner)]
    if len(rounds) >= _max_rounds(view, planner):
        return []
    unseen, unsettled = _unseen(view, planner), sum(not t.settled for t in _owned(view, planner))
    if len(unseen) >= replans_after(planner, unsettled) or (unseen and not unsettled):
        return [RunIteration(IterationKey(view.build, planner, last.key.number + 1), 1)]
    return []


def _fixing(view: BuildView) -> list[Step]:
    rounds = _rounds(view, FIX)
    if rounds and rounds[-1].status is not IterationStatus.DONE:
        return []
    if fixable_conflicts(view) or fixable_sweep(view) is not None:
        return [RunIteration(IterationKey(view.build, FIX, len(rounds) + 1), 1)]
    return []


def _drained(view: BuildView) -> bool:
    return planner_done(view, ROOT) and all(t.settled for t in view.tasks)


def _rounds(view: BuildView, planner: str) -> list[IterationView]:
    return sorted((i for i in view.iterations if i.key.planner == planner), key=lambda i: i.key.number)


def _max_rounds(view: BuildView, planner: str) -> int:
    return view.max_iterations if planner == ROOT else SUBPLANNER_MAX_ITERATIONS


def _owned(view: BuildView, planner: str) -> list[TaskView]:
    # An atomic delegated task is worked on by its own subplanner's iteration: it owns itself.
    return [t for t in view.tasks if t.planner == planner]


def _owned_active(view: BuildView, planner: str) -> bool:
    return any(not t.settled for t in _owned(view, planner))


def _unseen(view: BuildView, planner: str) -> tuple[str, ...]:
    seen = {t for i in _rounds(view, planner) for t in i.handoffs_seen}
    return tuple(t.id for t in _owned(view, planner) if t.handoff is not None and t.id not in seen)


def should_delegate(scope: tuple[str, ...], depth: int) -> bool:
    """Scope of four or more files, and fewer than three subplanners above it."""
    return len(scope) >= DELEGATE_FROM and depth < MAX_DEPTH


def unseen_handoffs(view: BuildView, planner: str) -> tuple[str, ...]:
    """Tasks of `planner` whose handoffs its next planning round must be given."""
    return _unseen(view, planner)


def next_planner_number(view: BuildView, planner: str) -> int:
    rounds = _rounds(view, planner)
    return rounds[-1].key.number + 1 if rounds else 1


def parent_of(task: str) -> str:
    """`r001-02-001-03` is part of `r001-02`; a root or fix task is part of its planner."""
    if ids.depth(task) == 0:
        return ROOT if task.startswith("r") else FIX
    return task.rsplit("-", 2)[0]
