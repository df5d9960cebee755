"""In which order the branches of one batch are merged: the urgent first, and of equals those that leave room for most others."""

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from longshot_dagster.core import scope
from longshot_dagster.core.landing import Change, is_withheld_as_generated
from longshot_dagster.core.models import Task


@dataclass(frozen=True)
class Footprint:
    """What one branch may collide in: the paths of it that its task's scope lets land. Priority 1 is first."""

    task: str
    priority: int
    paths: frozenset[str]


def footprint(task: Task, changes: Iterable[Change]) -> Footprint:
    """Lock files are everybody's and land from nobody, and what strays is its owner's or the first one's: neither collides."""
    own = (c.path for c in changes if scope.covers(task.scope, c.path))
    return Footprint(task.id, task.priority, frozenset(p for p in own if not is_withheld_as_generated(p, task.scope)))


def landing_order(waiting: Iterable[Footprint]) -> list[str]:
    """Names in the order of merging; the same for the same branches, in whatever order they are given.

    By priority. Among equals first a set whose members share no path with one another or with what is before them, chosen
    greedily by the fewest rivals; then the rest, also by rivals. A rival counts once per shared path; ties go by name,
    which is by age. One branch that touches what ten others touch would cost those ten, so it goes after them.
    """
    groups: dict[int, list[Footprint]] = {}
    for found in waiting:
        groups.setdefault(found.priority, []).append(found)
    order: list[str] = []
    taken: set[str] = set()
    for priority in sorted(groups):
        group = groups[priority]
        chosen = _apart(group, taken)
        chosen_names = {f.task for f in chosen}
        order += [f.task for f in (*chosen, *_by_rivals([f for f in group if f.task not in chosen_names]))]
        taken.update(path for f in group for path in f.paths)
    return order


def _apart(group: Sequence[Footprint], taken: set[str]) -> list[Footprint]:
    """A large set without a shared path, greedily; `taken`: paths of what is merged before."""
    there = {f.task: f for f in group if f.paths.isdisjoint(taken)}
    on: dict[str, set[str]] = {}
    for found in there.values():
        for path in found.paths:
            on.setdefault(path, set()).add(found.task)
    rivals = {f.task: sum(len(on[p]) - 1 for p in f.paths) for f in there.values()}
    heap = [(number, task) for task, number in rivals.items()]
    heapq.heapify(heap)
    chosen: list[Footprint] = []
    while heap:
        number, task = heapq.heappop(heap)
        if task not in rivals or number != rivals[task]:
            continue  # put off, or counted anew since
        chosen.append(there[task])
        del rivals[task]
        for rival in {r for path in there[task].paths for r in on[path]} & rivals.keys():
            del rivals[rival]
            for path in there[rival].paths:
                on[path].discard(rival)
                for other in on[path] & rivals.keys():
                    rivals[other] -= 1
                    heapq.heappush(heap, (rivals[other], other))
        for path in there[task].paths:
            on[path].clear()
    return chosen


def _by_rivals(group: Sequence[Footprint]) -> list[Footprint]:
    on = Counter(path for f in group for path in f.paths)
    return sorted(group, key=lambda f: (sum(on[p] - 1 for p in f.paths), f.task))
