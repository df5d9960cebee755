"""Who of a build is at work, and so who may start: read from its ledger, whichever of its processes they are in.

No document says who has what to himself. A task is at work from the moment it is given its slot, of which `tasks/<id>/.begun`
is the mark, until its landing is settled; what it has to itself its frozen plan says. Whoever gives slots marks them under
one lock of the ledger, so that two processes never start what may not be together. A process that dies takes nothing along
that would have to be given back (`core/apart.py`, `at_work`).
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from longshot_dagster.adapters.ledger.ledger import BuildLedger
from longshot_dagster.core.apart import LANDING_S, HeldBack, Nearness, Start, at_work, start, work_of
from longshot_dagster.core.clock import Clock
from longshot_dagster.core.errors import LongshotError
from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.models import Plan

_SEEN_S = 5.0


class Apart:
    """One run's look at its build; used by one thread at a time. Where nothing can be locked, nobody is kept apart."""

    def __init__(self, ledger: BuildLedger, worker_timeout_s: float, clock: Clock) -> None:
        self._ledger = ledger
        self._deadline_s = worker_timeout_s + LANDING_S
        self._clock = clock
        self._near = Nearness()
        self._planned: dict[str, float] = {}  # exclusive task -> when, in seconds since the epoch
        self._plans: dict[IterationKey, Plan] = {}
        self._seen: dict[str, tuple[float, bool]] = {}  # task -> when looked at, monotonic, and was it at work

    @contextmanager
    def starting(self, waiting: Sequence[str]) -> Iterator[Start]:
        """Which of `waiting`, oldest first, may start. No other process of the build gives a slot until this is left.

        A ledger that cannot be read keeps nobody waiting: landing does without this.
        """
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(self._ledger.lock("starting"))
                found = self._start(waiting)
            except (LongshotError, OSError):
                found = Start(tuple(waiting), {})
            yield found

    def begun(self, tasks: Iterable[str]) -> None:
        """They have their slots; called before `starting` is left."""
        for task in tasks:
            self._seen.pop(task, None)
            with contextlib.suppress(LongshotError, OSError):
                if mark := self._mark(task):
                    with open(mark, "ab") as file:  # noqa: PTH123 - for each of a thousand tasks
                        os.utime(file.fileno())

    def held_back(self) -> dict[str, HeldBack]:
        """Of every planned task that nobody has begun and that may not start: what it waits for. Raises LedgerError."""
        plans = (self._ledger.plan(key) for key in self._ledger.iterations())
        if not any(task.exclusive for plan in plans if plan for task in plan.tasks):
            return {}
        self._read_plans()
        gists = self._ledger.gists()
        free = [
            task
            for task in self._near.works
            if (gist := gists.get(task)) and gist.handoff is None and not gist.cancelled and not self._at_work(task)
        ]
        return dict(self._start(free).held)

    def _start(self, waiting: Sequence[str]) -> Start:
        self._read_plans()
        if not self._near.colliding and not self._near.near:
            return Start(tuple(waiting), {})
        others = self._near.others(waiting)
        strict = {other for task in waiting for other in self._near.colliding.get(task, ())}
        busy = {task for task in others if (self._at_work(task) if task in strict else self._seen_at_work(task))}
        return start(waiting, self._near, busy, {t for t in others - busy if self._expected(t)})

    def _read_plans(self) -> None:
        """Frozen plans never change, so that only new ones are looked at."""
        for key in self._ledger.iterations():
            if key in self._plans or (plan := self._ledger.plan(key)) is None:
                continue
            self._plans[key] = plan
            for task in plan.dispatched:
                self._near.add(work_of(task))
                if task.exclusive:
                    self._planned[task.id] = plan.planned_at or 0.0

    def _seen_at_work(self, task: str) -> bool:
        """A moment ago, which will do where nothing but a preference depends on it."""
        now, known = self._clock.monotonic(), self._seen.get(task)
        if known is None or not 0 <= now - known[0] < _SEEN_S:
            known = self._seen[task] = (now, self._at_work(task))
        return known[1]

    def _at_work(self, task: str) -> bool:
        landing = self._ledger.landing(task)
        if landing is not None and landing.settled:
            return False
        handed_in = landing is not None or self._there(task, "handoff.json")
        return at_work(self._begun_s(task), self._deadline_s, handed_in, lambda: self._ledger.at_work(task))

    def _expected(self, task: str) -> bool:
        """Is it exclusive, and about to start? What nobody takes up keeps its turn no longer than it would have been at work."""
        planned = self._planned.get(task)
        if planned is None or self._there(task, "handoff.json") or self._ledger.cancel_requested(task):
            return False
        return 0 <= self._clock.now() - planned < self._deadline_s

    def _begun_s(self, task: str) -> float | None:
        mark = self._mark(task)
        try:
            return self._clock.now() - os.stat(mark).st_mtime if mark else None  # noqa: PTH116 - often
        except FileNotFoundError:
            return None

    def _there(self, task: str, name: str) -> bool:
        lock = self._ledger.work_lock(task)
        return lock is not None and lock.with_name(name).exists()

    def _mark(self, task: str) -> str:
        lock = self._ledger.work_lock(task)
        return str(lock.with_name(".begun")) if lock else ""
