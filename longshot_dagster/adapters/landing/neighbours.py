"""The other unfinished builds that land on the same branch: what their tasks own there, and what of theirs is on it.

Those of this home are in its ledger. Those of another home, and what a lander pushed that died before writing it down,
are on the branch alone; a push there is the one moment at which everybody who lands meets.
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping

from longshot_dagster.adapters.ledger.ledger import BuildLedger, Ledger
from longshot_dagster.adapters.repository.branch import raw_changes
from longshot_dagster.adapters.repository.git import Git
from longshot_dagster.adapters.repository.landed import TRAILERS
from longshot_dagster.core.errors import LongshotError
from longshot_dagster.core.ids import check_build_id, check_task_id, task_partition
from longshot_dagster.core.landing import Ownership, holdings
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import BuildRequest, Task

_NAMED = 500  # paths in one command


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

    def taken_since(
        self, git: Git, base: str, onto: str, paths: Collection[str], known: Mapping[str, LandingOutcome]
    ) -> dict[str, str]:
        """path -> full name of the task that has put its own version on the branch between `base` and `onto`.

        Of the build itself only tasks whose landing nobody has written down: `known` says all about the others. People's
        commits and fast-forwards name no task, and take nothing.
        """
        both = frozenset(paths).intersection(c.path for c in raw_changes(git, base, onto))
        if not both:
            return {}
        named = [f":(literal){p}" for p in sorted(both)] if len(both) <= _NAMED else []
        options = ("--first-parent", "-z", "--no-renames", "--name-only", f"--format=%x01{TRAILERS}")
        listed = git.run("log", *options, onto, f"^{base}", "--", *named).out.decode("utf-8", "surrogateescape")
        found: dict[str, str] = {}
        for record in listed.split("\x01")[1:]:
            build, task, _, *names = (*record.split("\0"), "", "")
            settled = build == self._request.build and task in known and known[task].settled
            if (taker := None if settled else _full_name(build, task)) is not None:
                found |= dict.fromkeys(both.intersection(n.lstrip("\n") for n in names), taker)
        return found

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


def _full_name(build: str, task: str) -> str | None:
    """None for trailers that no queue has written."""
    with contextlib.suppress(ValueError, LongshotError):
        return task_partition(check_build_id(build), check_task_id(task))
    return None


def _tasks(ledger: BuildLedger) -> list[Task]:
    """Those that can be read: a document that is broken, or just being taken away, must not keep others from landing."""
    found = []
    for name in ledger.task_ids():
        with contextlib.suppress(LongshotError):
            found.append(ledger.existing_task(name))
    return found
