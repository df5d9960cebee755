"""How a build's tasks stand to its landing queue, at a price in proportion to what has changed since the last look."""

from collections.abc import Iterable, Mapping

from longshot_dagster.adapters.ledger.ledger import BuildLedger
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import Plan, Task
from longshot_dagster.core.task_gist import TaskGist


class Standings:
    """One queue's picture of its build. Asked for by one thread at a time, but for `given` and `began`."""

    def __init__(self, ledger: BuildLedger) -> None:
        self.ledger = ledger
        self._given: dict[str, Task] = {}
        self._waiting: dict[str, None] = {}
        self._plans: tuple[Plan, ...] = ()
        self._planned: dict[str, Task] = {}
        self._landed: dict[str, LandingOutcome] = {}
        self._gists: Mapping[str, TaskGist] = {}
        self.unfinished = 0  # tasks that were not handed in yet when `to_land` was last asked

    def given(self, task: Task) -> None:
        """`task` is worked on, whether a plan names it or not."""
        self._given[task.id] = task

    def queued(self, task: str) -> None:
        """This queue has just noted `task` as queued: it is seen whatever a folder's time says."""
        self._waiting[task] = None

    def wrote(self, outcomes: Iterable[LandingOutcome]) -> None:
        """These are in the ledger now."""
        for outcome in outcomes:
            if outcome.state is LandingState.LANDED:
                self._landed[outcome.task] = outcome
            if outcome.settled:
                self._waiting.pop(outcome.task, None)

    def tasks(self) -> dict[str, Task]:
        """Tasks that workers work on; an atomic delegated task appears as its subplanner's plan has it. Not to be changed."""
        plans = tuple(p for key in self.ledger.iterations() if (p := self.ledger.plan(key)))
        if len(plans) != len(self._plans) or any(a is not b for a, b in zip(plans, self._plans, strict=True)):
            self._plans, self._planned = plans, {t.id: t for plan in plans for t in plan.dispatched}
        given = self._given.copy()
        return self._planned if given.keys() <= self._planned.keys() else given | self._planned

    def all_tasks(self) -> list[Task]:
        """Those and every other that the ledger has."""
        worked = self.tasks()
        return [*worked.values(), *(self.ledger.existing_task(t) for t in self.ledger.task_ids() if t not in worked)]

    def to_land(self) -> list[Task]:
        """Worked tasks that are noted as queued, in no order that matters."""
        self._gists, tasks = self.ledger.gists(), self.tasks()
        names = {
            t for t, gist in self._gists.items() if gist.landing is LandingState.QUEUED
        } | self._waiting.copy().keys()
        self.unfinished = sum(t not in self._gists or self._gists[t].handoff is None for t in tasks)
        found = []
        for task in (tasks[name] for name in names if name in tasks):
            landing = self.ledger.landing(task.id)
            if landing is not None and not landing.settled:
                found.append(task)
            else:
                self._waiting.pop(task.id, None)
        return found

    def handed_in(self) -> list[Task]:
        """Worked tasks with a handoff."""
        gists = self.ledger.gists()

        def is_handed_in(task: str) -> bool:
            return gists[task].handoff is not None if task in gists else self.ledger.handoff(task) is not None

        return [task for task in self.tasks().values() if is_handed_in(task.id)]

    def outcomes(self) -> dict[str, LandingOutcome]:
        """Of every task that had one when `to_land` was last asked, sorted by task."""
        found = {t: self._outcome(t, gist.landing) for t, gist in self._gists.items() if gist.landing is not None}
        return {task: outcome for task, outcome in found.items() if outcome is not None}

    def _outcome(self, task: str, state: LandingState) -> LandingOutcome | None:
        known = self._landed.get(task)
        if known is not None and state is LandingState.LANDED:
            return known
        found = self.ledger.landing(task)
        if found is not None and found.state is LandingState.LANDED:
            self._landed[task] = found  # a build has a thousand of them; who takes one back changes its state
        else:
            self._landed.pop(task, None)
        return found
