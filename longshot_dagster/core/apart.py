"""Which waiting tasks may start beside those at work: exclusive work is alone on its paths, and the rest keeps its distance.

Nothing waits for a distance that costs something: of tasks with the same priority, one whose scope nobody is at work in
merely starts first. Only what a plan declares exclusive is waited for, and not for longer than its deadline.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from longshot_dagster.core import scope
from longshot_dagster.core.display import display
from longshot_dagster.core.models import PlannedTask, Task

LANDING_S = 300.0  # beyond its worker's timeout that exclusive work has to itself, to land in
BEGINS_S = 30.0  # from being given a slot to its worker's lock: a start-up and a look at the target
_MOST_NEAR = 64  # with so many others in its files, there is no keeping a distance


class Work(NamedTuple):
    """What decides beside whom a task may be at work. Priority 1 is first."""

    task: str
    priority: int
    scope: tuple[str, ...]
    alone_on: tuple[str, ...] = ()  # files and directories that nobody else may be at work in meanwhile

    @property
    def rank(self) -> tuple[int, str]:
        """In which order exclusive work takes its turn: by priority, then by name, which is by age."""
        return self.priority, self.task

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.scope, *self.alone_on)))


def work_of(task: Task) -> Work:
    return Work(task.id, task.priority, task.scope, task.exclusive)


def collision(a: Work, b: Work) -> str:
    """A path because of which the two may not be at work at once; empty when they may."""
    found = scope.overlap(a.alone_on, b.paths) or scope.overlap(b.alone_on, a.paths)
    return found[0] if found else ""


def kept_apart(a: PlannedTask, b: PlannedTask) -> bool:
    """Does what a plan declares see to it that the two are not at work at once?"""
    return bool(collision(Work("", 0, tuple(a.scope), a.alone_on), Work("", 0, tuple(b.scope), b.alone_on)))


def at_work(begun_s: float | None, deadline_s: float, handed_in: bool, lives: Callable[[], bool]) -> bool:
    """Is a task that has not settled at work, from its slot to its landing?

    `begun_s`: seconds since it was given a slot, None when it never was; `lives`: is its worker's lock held? A worker that
    has died is at work for `BEGINS_S` at most; one that has handed in, and does not land, until its deadline.
    """
    if begun_s is None or begun_s < 0:  # worked on again at a person's wish; or the clock was set back
        return lives()
    if begun_s >= deadline_s:
        return False
    return handed_in or begun_s < BEGINS_S or lives()


class Nearness:
    """Which tasks of a build meet in their files. Grows with its plans, at a cost in proportion to what is added."""

    def __init__(self) -> None:
        self.works: dict[str, Work] = {}
        self.colliding: dict[str, dict[str, str]] = {}  # task -> those never at work beside it, and the path
        self.near: dict[str, set[str]] = {}  # task -> others with something in their scope that is in its own
        self._scopes, self._exclusive = scope.Neighbours(), scope.Neighbours()
        self._names: list[str] = []

    def add(self, work: Work) -> None:
        if work.task in self.works:
            return
        met = [self._names[n] for n in self._exclusive.of(work.paths)]
        for other in self.works if work.alone_on else met:
            if path := collision(work, self.works[other]):
                self.colliding.setdefault(work.task, {})[other] = path
                self.colliding.setdefault(other, {})[work.task] = path
        near = [
            t for n in self._scopes.of(work.scope) if (t := self._names[n]) not in self.colliding.get(work.task, ())
        ]
        if len(near) <= _MOST_NEAR:
            self._scopes.add(len(self._names), work.scope)
            for other in near:
                self.near.setdefault(work.task, set()).add(other)
                self.near.setdefault(other, set()).add(work.task)
        if work.alone_on:
            self._exclusive.add(len(self._names), work.paths)
        self.works[work.task] = work
        self._names.append(work.task)

    def others(self, tasks: Collection[str]) -> set[str]:
        """Whatever meets one of `tasks` and is none of them."""
        found: set[str] = set()
        for task in tasks:
            found.update(self.colliding.get(task, ()), self.near.get(task, ()))
        return found.difference(tasks)


@dataclass(frozen=True)
class HeldBack:
    """Why a task does not start though it could have a slot."""

    task: str
    behind: str
    path: str
    behind_waits: bool  # the other one waits as well, and has its turn first
    behind_is_alone: bool  # it is the other one that is exclusive

    @property
    def why(self) -> str:
        path = display(self.path, "plain", 120)
        if not self.behind_is_alone:
            return f"waits for {self.behind}, as it is to work alone on {path}"
        if self.behind_waits:
            return f"lets {self.behind} go first, which is to work alone on {path}"
        return f"waits for {self.behind}, which works alone on {path}"


@dataclass(frozen=True)
class Start:
    """`order`: tasks that may start, of each priority the preferred ones first. Every other waits behind something."""

    order: tuple[str, ...]
    held: Mapping[str, HeldBack]


def start(waiting: Sequence[str], near: Nearness, busy: Collection[str], expected: Collection[str]) -> Start:
    """Which of `waiting`, oldest first, may start now, all of them at once if there is room.

    `busy`: tasks at work; `expected`: exclusive ones that wait elsewhere. What collides takes its turn by rank, so that
    two never wait for each other, and exclusive work is not overtaken for ever by what comes after it.
    """
    held = _held_back(waiting, near, busy, expected) if near.colliding else {}
    free = [task for task in waiting if task not in held]
    return Start(tuple(_spread(free, near, busy) if near.near else free), held)


def _held_back(
    waiting: Sequence[str], near: Nearness, busy: Collection[str], expected: Collection[str]
) -> dict[str, HeldBack]:
    held: dict[str, HeldBack] = {}
    starting: set[str] = set()
    for work in sorted((near.works[t] for t in waiting if t in near.works), key=lambda w: w.rank):
        for other, path in near.colliding.get(work.task, {}).items():
            ahead = near.works[other]
            waits = ahead.rank < work.rank and bool(ahead.alone_on) and (other in expected or other in held)
            if other in busy or other in starting or waits:
                held[work.task] = HeldBack(work.task, other, path, other not in busy, bool(ahead.alone_on))
                break
        else:
            starting.add(work.task)
    return held


def _spread(tasks: Sequence[str], near: Nearness, busy: Collection[str]) -> list[str]:
    """The same tasks: of each priority first a set that meets neither itself nor what is at work, oldest first."""
    placed: set[str] = set()
    met: dict[str, int] = {}
    for task in tasks:
        met[task] = sum(other in busy or other in placed for other in near.near.get(task, ()))
        if not met[task]:
            placed.add(task)
    if len(placed) == len(tasks):
        return list(tasks)
    return sorted(tasks, key=lambda t: (near.works[t].priority if t in near.works else 0, met[t]))


def preferred(entitled: Sequence[str], wanted: Mapping[str, int]) -> list[str]:
    """In place of `entitled` as many others of the same priorities: the first of each in `wanted`, step -> priority."""
    room = Counter(wanted[step] for step in entitled)
    first: dict[int, list[str]] = {priority: [] for priority in room}
    missing = len(entitled)
    for step, priority in wanted.items():
        if not missing:
            break
        if len(first.get(priority, ())) < room[priority]:
            first[priority].append(step)
            missing -= 1
    return [first[wanted[step]].pop(0) for step in entitled]
