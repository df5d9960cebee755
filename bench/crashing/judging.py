"""What a build that was killed again and again has come to: rules over what the ledger and git say."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from crashing.assignment import Item, Mode, item_of
from crashing.killing import Kill
from crashing.moments import PHASES
from longshot_dagster.core.landing_records import LandingOutcome
from longshot_dagster.core.models import Handoff, Task

RESUME_LIMIT_S = 60.0


@dataclass(frozen=True)
class Landed:
    """One commit that a task landed, as its trailers name it."""

    commit: str
    task: str
    source: str


def accounted(
    items: Sequence[Item],
    tasks: Iterable[Task],
    handoffs: Mapping[str, Handoff],
    landings: Mapping[str, LandingOutcome],
) -> set[int]:
    """Numbers of the items of which a task has both a handoff and a landing that is settled."""
    found = set()
    for task in tasks:
        landing, item = landings.get(task.id), item_of(task.description, items)
        if item and task.id in handoffs and landing is not None and landing.settled:
            found.add(item.number)
    return found


def landed_twice(commits: Sequence[Landed], sizes: Mapping[str, int]) -> list[str]:
    """Tasks that are on main more than once. `commits` oldest first; `sizes`: source -> commits of that branch."""
    found = []
    runs: dict[str, int] = {}
    for (task, source), group in groupby(commits, key=lambda c: (c.task, c.source)):
        runs[task] = runs.get(task, 0) + 1
        if runs[task] > 1 or len(list(group)) > sizes.get(source, 1):
            found.append(task)
    return sorted(set(found))


def repeated_lines(texts: Iterable[str]) -> list[str]:
    """Lines that a list holds more than once: somebody's work was done on top of itself."""
    found: list[str] = []
    for text in texts:
        lines = text.splitlines()
        found += sorted({line for line in lines if lines.count(line) > 1})
    return found


def by_phase(kills: Iterable[Kill]) -> dict[str, int]:
    done = list(kills)
    return {phase: sum(kill.phase == phase for kill in done) for phase in PHASES}


def is_well(figures: Mapping[str, Any], mode: Mode, flight: int) -> bool:
    """Nothing lost, nothing twice, nothing left, and every kill that was asked for took place."""
    phases = figures["kills_by_phase"]
    enough = figures["kills"] >= figures["kills_wanted"]
    evenly = min(phases.values()) >= min(3, figures["kills_wanted"] // len(PHASES))
    return bool(
        figures["accounted"] == figures["tasks"] > 0
        and figures["asked_twice"] == figures["landed_twice"] == 0
        and figures["tree_equal"]
        and (figures["resume_s_max"] is not None or not figures["kills"])
        and (figures["resume_s_max"] or 0) < RESUME_LIMIT_S
        and (figures["in_flight_min"] is None or figures["in_flight_min"] >= flight)
        and enough
        and evenly
        and figures["left_over"] == 0
        and (mode == "conflicting" or figures["exit_code"] == 0)
    )


def slowest(kills: Sequence[Kill]) -> float | None:
    """The longest time that anything took to go on; None when something did not, or nothing was killed."""
    times = [kill.resume_s for kill in kills]
    return None if not times or None in times else round(max(t for t in times if t is not None), 1)
