"""Which sensors would find nothing to do, seen at a small part of what their ticks cost.

A tick is two processes, a dozen questions and four writes; a look here reads what has changed in the ledger. Nothing
depends on it being right: who is in doubt lets the sensors look, and they look anyway before long.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from longshot_dagster.adapters.host import leases
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.ledger import Ledger
from longshot_dagster.core.ids import FIX
from longshot_dagster.core.lifecycle import BuildView, CloseParent, Finalize, Step, next_steps

REPLAN, RECONCILE, FINALIZE = "replan", "reconcile", "finalize"
FAILED_RUNS, LOST_RUNS, CHECKPOINTS, BACKLOG = "failed_runs", "lost_runs", "checkpoints", "backlog"
OF_BUILDS = frozenset({REPLAN, RECONCILE, FINALIZE})
SENSORS = OF_BUILDS | {FAILED_RUNS, LOST_RUNS, CHECKPOINTS, BACKLOG}  # whose work can be seen from here

AT_WORK_S = 15.0  # no longer while there are builds: their checkpoints are due once a minute
IDLE_S = 30.0
_TAKEN_WITHIN_S = 60.0
SETTLES_S = 10.0  # a run's end is decided, and a lost process believed, some seconds after it happened


class Stillness:
    """Of one home, for any thread. `ended` is anything that differs once another run has failed or was cancelled;
    `backlog` the folder of its items.
    """

    def __init__(
        self,
        home: Home,
        backlog: Path,
        ended: Callable[[], object],
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._home = home
        self._ledger = Ledger(home.builds)
        self._backlog = backlog
        self._ended = ended
        self._monotonic = monotonic
        self._now = now
        self._guard = threading.Lock()
        self._known: dict[str, tuple[object, float]] = {}  # what was last seen, and since when
        self._freed: set[str] = set()
        self._wanted: frozenset[str] | None = None

    def lasts(self, waited_s: float) -> bool:
        """May the sensors, who have not looked for `waited_s`, rest on?"""
        try:
            if waited_s >= (AT_WORK_S if self._ledger.unfinished() else IDLE_S):
                return False
        except Exception:  # what cannot be read, the sensors say
            return False
        self.look_again()
        return not self._wanted_now()

    def look_again(self) -> None:
        """The sensors are about to look: what was seen before counts no longer."""
        with self._guard:
            self._wanted = None

    def rests(self, sensor: str, waited_s: float) -> bool:
        """Would `sensor`, which has not looked for `waited_s`, find nothing?"""
        return sensor in SENSORS and 0 <= waited_s < AT_WORK_S and sensor not in self._wanted_now()

    def _wanted_now(self) -> frozenset[str]:
        """The sensors that may find something; the same until `look_again`."""
        with self._guard:
            if self._wanted is None:
                try:
                    self._wanted = self._look()
                except Exception:  # what cannot be read, the sensors say
                    self._wanted = SENSORS
            return self._wanted

    def _look(self) -> frozenset[str]:
        builds = self._ledger.unfinished()
        wanted: frozenset[str] = frozenset()
        if self._moves("builds", [(b.build, b.state()) for b in builds]):
            wanted |= OF_BUILDS | {CHECKPOINTS}
        if self._moves("runs", self._ended()):
            wanted |= {FAILED_RUNS}
        if self._moves("leases", self._free_leases()):
            wanted |= {LOST_RUNS}
        if self._backlog.is_dir():
            wanted |= {BACKLOG}
        return wanted.union(*(_work_of(b.view()) for b in builds))

    def _moves(self, what: str, seen: object) -> bool:
        """Has it changed so lately that whoever looks at it may not be done?"""
        now = self._monotonic()
        before = self._known.get(what)
        if before is None or before[0] != seen:
            before = self._known[what] = (seen, now)
        return now - before[1] < SETTLES_S

    def _free_leases(self) -> frozenset[str]:
        """Runs whose process has ended; the file of one that is known to have is not opened again."""
        found = {path.name.removeprefix("run-"): path for path in self._home.leases.glob("run-*")}
        free = {run for run in found.keys() - self._freed if leases.holder(self._home, run) is None}
        now = self._now()
        # A file that is younger may be about to be locked; one of the future, before the clock was set back, is not.
        self._freed |= {run for run in free if not 0 <= now - found[run].stat().st_mtime <= _TAKEN_WITHIN_S}
        return frozenset(free | self._freed)


def _work_of(view: BuildView) -> frozenset[str]:
    """The sensors for which something is due that is not under way, or that another build on the branch may have changed."""
    if view.sweep is not None and view.sweep.red:
        return OF_BUILDS
    known = {i.key for i in view.iterations}
    return frozenset(
        _sensor_of(s) for s in next_steps(view) if isinstance(s, CloseParent | Finalize) or s.key not in known
    )


def _sensor_of(step: Step) -> str:
    if isinstance(step, Finalize):
        return FINALIZE
    return RECONCILE if not isinstance(step, CloseParent) and step.key.planner == FIX else REPLAN
