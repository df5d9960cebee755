"""The other unfinished builds that land on the same branch: what their tasks own there, and what of theirs is on it."""

import contextlib
from collections.abc import Collection, Iterator

from longshot_dagster.adapters.ledger import BuildLedger, Ledger
from longshot_dagster.core.errors import LongshotError
from longshot_dagster.core.ids import task_partition
from longshot_dagster.core.landing import Ownership, holdings
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import BuildRequest, Task


class Neighbours:
    """Read whenever a branch strays; one object per landing queue, so that what never changes is read once."""

    def __init__(self, ledger: BuildLedger, request: BuildRequest) -> None:
        self._builds = Ledger(str(ledger.directory.parent))
        self._request = request
        self._landed: dict[tuple[str, str], LandingOutcome] = {}

    def holdings(self) -> Ownership:
        """Every path that a task of theirs owns or has claimed, by the task's full name."""
        return Ownership({}, {}).beside(*(holdings(b.build, _tasks(b), self._landings(b)) for b in self._others()))

    def touching(self, paths: Collection[str]) -> tuple[str, ...]:
        """Full names of their landed tasks that changed one of `paths`."""
        return tuple(
            task_partition(ledger.build, outcome.task)
            for ledger in self._others()
            for outcome in self._landings(ledger).values()
            if outcome.state is LandingState.LANDED and set(paths) & set(outcome.landed_paths)
        )

    def _others(self) -> Iterator[BuildLedger]:
        mine = self._request.target
        for ledger in self._builds.unfinished():
            try:
                theirs = ledger.request().target
            except LongshotError:
                continue  # whoever works on that one is told; this one is well
            if ledger.build != self._request.build and (theirs.url, theirs.branch) == (mine.url, mine.branch):
                yield ledger

    def _landings(self, ledger: BuildLedger) -> dict[str, LandingOutcome]:
        found = {}
        for task in ledger.task_ids():
            outcome = self._landed.get((ledger.build, task))
            with contextlib.suppress(LongshotError):
                outcome = outcome or ledger.landing(task)
            if outcome is not None:
                found[task] = outcome
                if outcome.state is LandingState.LANDED:  # only of a finished build is that taken back
                    self._landed[ledger.build, task] = outcome
        return found


def _tasks(ledger: BuildLedger) -> list[Task]:
    """Those that can be read: a document that is broken, or just being taken away, must not keep others from landing."""
    found = []
    for name in ledger.task_ids():
        with contextlib.suppress(LongshotError):
            found.append(ledger.existing_task(name))
    return found
