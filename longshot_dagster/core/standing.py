"""How a build stands, in four facts for a person: what is done, what is being worked on, what is missing and why, what comes next."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from longshot_dagster.core.display import one_line
from longshot_dagster.core.ids import FIX, ROOT
from longshot_dagster.core.landing_records import LandingState
from longshot_dagster.core.lifecycle import (
    BuildView,
    Finalize,
    IterationStatus,
    RunIteration,
    TaskView,
    next_steps,
    replans_after,
    unseen_handoffs,
)
from longshot_dagster.core.models import BuildPhase
from longshot_dagster.core.protected import WAITS, is_waiting
from longshot_dagster.core.report import duration

_WELL = {
    LandingState.LANDED: "landed",
    LandingState.NOOP: "had nothing to land",
    LandingState.SUPERSEDED: "superseded",
}
_NAMED = 4  # tasks named of each kind; the table below and --json have them all
_KINDS = 6


@dataclass(frozen=True)
class AtWork:
    """A task whose worker lives at this moment; `where` is its sandbox's provider."""

    task: str
    where: str
    seconds: float


@dataclass(frozen=True)
class Standing:
    """`why`: of each task that is not settled well, what it waits for or what became of it.

    `driven`: a stack of this home runs. `mender`: the build that mends a red main this one waits for. `only_here`: finished
    work that has not landed and that the target does not take, because it accepts branches only.
    """

    view: BuildView
    reason: str = ""
    why: Mapping[str, str] | None = None
    at_work: tuple[AtWork, ...] = ()
    driven: bool = True
    mender: str = ""
    only_here: int = 0


def explained(standing: Standing) -> list[tuple[str, str]]:
    """(name, fact) in the order to be shown; plain text, one line each, safe to print. What there is none of is left out."""
    facts = [
        ("done", _done(standing.view)),
        ("running", _running(standing)),
        ("missing", _missing(standing)),
        ("approve", _to_approve(standing)),
        ("only here", _only_here(standing)),
        ("next", _next(standing)),
    ]
    return [(name, one_line(text, 900)) for name, text in facts if text]


def _worked(view: BuildView) -> list[TaskView]:
    """Tasks of workers; a delegated one counts by its parts, unless it proved atomic and was landed itself."""
    return [t for t in view.tasks if not t.delegated or t.landing is not None]


def _done(view: BuildView) -> str:
    tasks = _worked(view)
    if not tasks:
        return "nothing is planned yet"
    counts = Counter(t.landing for t in tasks)
    said = [f"{counts[state]} {word}" for state, word in _WELL.items() if counts[state]]
    return f"{', '.join(said) or 'none'} of {len(tasks)} tasks in {len(view.iterations)} planning rounds"


def _running(standing: Standing) -> str:
    work = sorted(standing.at_work, key=lambda w: -w.seconds)
    shown = [f"{w.task} for {duration(max(0.0, w.seconds))} ({w.where})" for w in work[:_NAMED]]
    planning = [i.key.short for i in standing.view.iterations if i.status is IterationStatus.OPEN and not i.planned]
    under_way = standing.view.phase is not BuildPhase.PAUSED and standing.view.phase is not BuildPhase.FINISHED
    if planning and under_way and standing.driven:
        shown.append(f"planning {_names(planning)}")
    if not shown:
        return ""
    more = len(work) - _NAMED
    return f"{len(work)} tasks: {', '.join(shown)}" + (f" and {more} more" if more > 0 else "") if work else shown[0]


def _missing(standing: Standing) -> str:
    """Grouped by reason, the most frequent first."""
    working = {w.task for w in standing.at_work}
    groups: dict[str, list[str]] = {}
    for task in standing.view.tasks:
        why = (standing.why or {}).get(task.id, "")
        if why and not is_waiting(why) and task.id not in working and not (task.delegated and task.handoff is not None):
            stand = f"{task.landing.value}: " if task.landing in _BAD else ""
            groups.setdefault(f"{stand}{one_line(why, 90)}", []).append(task.id)
    ordered = sorted(groups.items(), key=lambda g: (-len(g[1]), g[0]))
    said = [f"{_names(names)} ({why})" for why, names in ordered[:_KINDS]]
    more = sum(len(names) for _, names in ordered[_KINDS:])
    return "; ".join(said) + (f"; and {more} more" if more else "")


def _to_approve(standing: Standing) -> str:
    """What only a person can let land."""
    waits = [why for why in (standing.why or {}).values() if is_waiting(why)]
    more = f"; and {len(waits) - _NAMED} more" if len(waits) > _NAMED else ""
    return "; ".join(one_line(why, 200).removeprefix(WAITS).strip() for why in waits[:_NAMED]) + more


_BAD = (LandingState.CONFLICT, LandingState.WITHHELD, LandingState.UNDONE)


def _only_here(standing: Standing) -> str:
    if not standing.only_here:
        return ""
    return f"the work of {standing.only_here} tasks that have not landed: this repository takes branches only"


def _next(standing: Standing) -> str:
    view, build = standing.view, standing.view.build
    if view.phase is BuildPhase.FINISHED:
        left = any(t.landing not in _WELL for t in _worked(view))
        again = f"; longshot retry {build}.TASK gives a task to a new worker" if left else ""
        return f"nothing, it has ended: longshot report {build}{again}"
    if view.phase is BuildPhase.PAUSED:
        return f"nothing until you say so: longshot resume {build} (paused: {standing.reason or 'no reason recorded'})"
    if not standing.driven:
        return f"nothing, as Longshot is not running: longshot resume {build}"
    if standing.mender:
        return f"main is red, and build {standing.mender} mends it; this one waits for that"
    return "; ".join(_steps(view)) or "the next planning round, once more of its tasks are handed in"


def _steps(view: BuildView) -> Iterable[str]:
    known = {i.key: i for i in view.iterations}
    for step in next_steps(view):
        if isinstance(step, Finalize):
            yield "the last sweep of main, then the report"
        elif isinstance(step, RunIteration) and step.key not in known:
            asked = (
                "a round of fixes begins" if step.key.planner == FIX else f"planner {step.key.planner} is asked again"
            )
            yield f"{asked} ({step.key.short})"
    unsettled = sum(not t.settled for t in _worked(view))
    if unsettled:
        roots = sum(not t.settled for t in view.tasks if t.planner == ROOT)
        more = replans_after(ROOT, roots) - len(unseen_handoffs(view, ROOT))
        asked = (
            f"; the root planner is asked again after {more} more handoffs, or the last" if roots and more > 0 else ""
        )
        yield f"{unsettled} tasks are worked on or land as slots come free{asked}"


def _names(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return " ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
