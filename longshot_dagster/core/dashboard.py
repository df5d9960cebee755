"""What the dashboard shows of a build: every task's state in one word, the planners as a tree, the figures."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from longshot_dagster.core.ids import FIX, ROOT
from longshot_dagster.core.landing_records import LandingState
from longshot_dagster.core.models import (
    BuildPhase,
    BuildState,
    CheckStatus,
    HandoffStatus,
    Sweep,
    Task,
)


class Stand(StrEnum):
    """Where a task is, in the order in which a task gets there."""

    WAITING = "waiting"
    AT_WORK = "at work"
    INTERRUPTED = "interrupted"
    LANDING = "landing"  # handed in, and its turn to land has not come
    LANDED = "landed"
    NOTHING = "nothing to land"
    CONFLICT = "conflict"
    WITHHELD = "withheld"
    UNDONE = "undone"
    SUPERSEDED = "superseded"


_BY_LANDING = {
    LandingState.QUEUED: Stand.LANDING,
    LandingState.LANDED: Stand.LANDED,
    LandingState.NOOP: Stand.NOTHING,
    LandingState.CONFLICT: Stand.CONFLICT,
    LandingState.WITHHELD: Stand.WITHHELD,
    LandingState.SUPERSEDED: Stand.SUPERSEDED,
    LandingState.UNDONE: Stand.UNDONE,
}


@dataclass(frozen=True)
class Occupancy:
    """The pool of sandbox slots, which all builds of this installation share, and who of this build is at work.

    `limit` is None when nothing limits it.
    """

    used: int
    limit: int | None
    waiting: int
    at_work: frozenset[str] = frozenset()


@dataclass(frozen=True)
class PlannerRow:
    """One planner; `depth` is how far it is indented, `rounds` its newest planning round, `thinking` whether it plans."""

    name: str
    depth: int
    title: str
    rounds: int
    thinking: bool
    counts: Mapping[Stand, int]

    @property
    def total(self) -> int:
        return sum(self.counts.values())


@dataclass(frozen=True)
class Scene:
    """Everything on the screen at one moment. Texts are raw: whoever draws them passes them through `core/display.py`."""

    build: str
    request: str
    where: str
    rehearsal: bool
    state: BuildState
    elapsed_s: float
    tokens: int
    cost_usd: float | None
    occupancy: Occupancy | None
    planners: Sequence[PlannerRow]
    counts: Mapping[Stand, int]
    at_work: Sequence[tuple[str, str]]  # task, title
    sweep: Sweep | None
    sweep_age_s: float
    feed: Sequence[tuple[str, str, str]] = ()  # time of day, line, tone (good, bad, plain); newest last


def stand(
    *,
    handoff: HandoffStatus | None,
    landing: LandingState | None,
    at_work: bool,
    interrupted: bool,
) -> Stand:
    """Where a worker's task is. What was handed in without a landing yet waits for its turn."""
    if landing is not None:
        return _BY_LANDING[landing]
    if handoff is not None:
        return Stand.LANDING
    if at_work:
        return Stand.AT_WORK
    return Stand.INTERRUPTED if interrupted else Stand.WAITING


def planner_rows(
    tasks: Mapping[str, Task], stands: Mapping[str, Stand], rounds: Mapping[str, tuple[int, bool]], phase: BuildPhase
) -> list[PlannerRow]:
    """The planners as a tree, root first and the fixes last; a delegated task is a planner of its own.

    `rounds` is planner -> (number of its newest round, is that round planned?).
    """
    owned: defaultdict[str, Counter[Stand]] = defaultdict(Counter)
    children: defaultdict[str, list[str]] = defaultdict(list)
    for name, task in tasks.items():
        if name in stands:
            owned[task.planner][stands[name]] += 1
        elif task.delegated:
            children[task.planner].append(name)
    rows: list[PlannerRow] = []

    def walk(planner: str, depth: int) -> None:
        number, done = rounds.get(planner, (0, False))
        thinking = not done and phase is BuildPhase.RUNNING
        title = first_line(tasks[planner]) if planner in tasks else ""
        rows.append(PlannerRow(planner, depth, title, number, thinking, owned.get(planner, Counter())))
        for child in sorted(children.get(planner, ())):
            walk(child, depth + 1)

    walk(ROOT, 0)
    if FIX in rounds or FIX in owned:
        walk(FIX, 0)
    return rows


def first_line(task: Task) -> str:
    """What a task is about, raw."""
    return task.description.partition("\n")[0][:200]


def stands_of(
    planned: Collection[str],
    statuses: Mapping[str, HandoffStatus],
    landings: Mapping[str, LandingState],
    interrupted: Collection[str],
    at_work: Collection[str],
) -> dict[str, Stand]:
    """Where every worker's task is. A delegated task is none: its parts are."""
    return {
        name: stand(
            handoff=statuses.get(name),
            landing=landings.get(name),
            at_work=name in at_work,
            interrupted=name in interrupted,
        )
        for name in planned
    }


def sweep_words(sweep: Sweep | None) -> tuple[str, str]:
    """(green, red or unchecked; the checks by name)"""
    if sweep is None:
        return "unchecked", "main has not been swept yet"
    ran = [c for c in sweep.checks if c.status is not CheckStatus.SKIPPED]
    checks = ", ".join(f"{c.name.value} {c.status.value}" for c in ran)
    if sweep.error:
        return "red", f"the sweep could not run: {sweep.error}"
    if sweep.red:
        markers = f"conflict markers in {len(sweep.conflict_markers)} files" if sweep.conflict_markers else ""
        return "red", ", ".join(x for x in (checks, markers) if x)
    return ("green", checks) if sweep.green else ("unchecked", checks or "nothing to check")
