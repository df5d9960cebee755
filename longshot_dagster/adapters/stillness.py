"""Whether the sensors would find nothing to do, seen at a small part of what their ticks cost.

A tick is two processes, a dozen questions and four writes; a look here reads what has changed in the ledger. Nothing
depends on it being right: who is in doubt lets the sensors look, and they look anyway before long.
"""

import time
from collections.abc import Callable
from pathlib import Path

from longshot_dagster.adapters import leases
from longshot_dagster.adapters.home import Home
from longshot_dagster.adapters.ledger import Ledger
from longshot_dagster.core.lifecycle import BuildView, RunIteration, next_steps

AT_WORK_S = 15.0  # no longer while there are builds: their checkpoints are due once a minute
IDLE_S = 30.0
_TAKEN_WITHIN_S = 60.0
SETTLES_S = 10.0  # a run's end is decided, and a lost process believed, some seconds after it happened


class Stillness:
    """Of one home. `newest_run` is anything that differs once a run has changed; `backlog` the folder of its items."""

    def __init__(
        self,
        home: Home,
        backlog: Path,
        newest_run: Callable[[], object],
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._home = home
        self._ledger = Ledger(home.builds)
        self._backlog = backlog
        self._newest_run = newest_run
        self._monotonic = monotonic
        self._now = now
        self._seen: object = None
        self._freed: set[str] = set()
        self._moved_at = monotonic()

    def lasts(self, waited_s: float) -> bool:
        """May the sensors, who have not looked for `waited_s`, rest on?"""
        try:
            builds = self._ledger.unfinished()
            if waited_s >= (AT_WORK_S if builds else IDLE_S) or self._backlog.is_dir():
                return False
            seen = (self._newest_run(), self._free_leases(), [(b.build, b.state()) for b in builds])
            if seen != self._seen:
                self._seen, self._moved_at = seen, self._monotonic()
            if self._monotonic() - self._moved_at < SETTLES_S:
                return False
            return not any(_has_work(b.view()) for b in builds)
        except Exception:  # what cannot be read, the sensors say
            return False

    def _free_leases(self) -> frozenset[str]:
        """Runs whose process has ended; the file of one that is known to have is not opened again."""
        found = {path.name.removeprefix("run-"): path for path in self._home.leases.glob("run-*")}
        free = {run for run in found.keys() - self._freed if leases.holder(self._home, run) is None}
        now = self._now()
        # A file that is younger may be about to be locked; one of the future, before the clock was set back, is not.
        self._freed |= {run for run in free if not 0 <= now - found[run].stat().st_mtime <= _TAKEN_WITHIN_S}
        return frozenset(free | self._freed)


def _has_work(view: BuildView) -> bool:
    """Is something due that is not under way, or may another build on the branch have changed what is due?"""
    if view.sweep is not None and view.sweep.red:
        return True
    known = {i.key for i in view.iterations}
    return any(not isinstance(s, RunIteration) or s.key not in known for s in next_steps(view))
