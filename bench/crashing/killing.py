"""Kills at moments: SIGKILL to one process of a build at work, and the time until what was hit goes on."""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from crashing.endpoint import Endpoint
from crashing.installation import Installation
from crashing.moments import PHASES, Caught, Moments
from longshot_dagster.adapters.ledger.ledger import BuildLedger
from longshot_dagster.core.errors import LongshotError

PATIENCE_S = 90.0  # for a moment to come
RESUME_S = 180.0  # what has not gone on by then is lost
SETTLE_S = 120.0  # for enough workers to be at work again
_LET_GO_EVERY_S = 20.0


@dataclass(frozen=True)
class Kill:
    """`resume_s` is None when what was hit did not go on."""

    phase: str
    target: str
    what: str
    in_flight: int
    resume_s: float | None


def order(kills: int, targets: Sequence[str], seed: int) -> list[tuple[str, str]]:
    """(phase, target) of every kill: all phases in turn, each time with other targets."""
    mixed = list(targets)
    random.Random(seed).shuffle(mixed)
    rounds = ((PHASES[n % len(PHASES)], n // len(PHASES)) for n in range(kills))
    return [(phase, mixed[(PHASES.index(phase) + turn) % len(mixed)]) for phase, turn in rounds]


@dataclass
class Killing:
    installation: Installation
    endpoint: Endpoint
    moments: Moments
    ledger: BuildLedger
    say: Callable[[str], None]

    def all(self, wanted: Sequence[tuple[str, str]]) -> list[Kill]:
        """One kill after the other; ends early when the build does, or when no workers come back."""
        done: list[Kill] = []
        for number, (phase, target) in enumerate(wanted, 1):
            kill = self._one(phase, target, number)
            if kill is None:
                continue
            done.append(kill)
            took = "did not go on" if kill.resume_s is None else f"went on after {kill.resume_s:.1f} s"
            self.say(f"  {number:3} {phase}: {kill.target} killed, {kill.what}; {kill.in_flight} in flight; {took}")
            if self.installation.exit_code is not None:
                break
        return done

    def _one(self, phase: str, target: str, number: int) -> Kill | None:
        if not self.moments.stocked(time.monotonic() + SETTLE_S):
            self.say(f"  {number:3} {phase}: only {len(self.endpoint.in_flight())} workers are at work; not killed")
            return None
        stage = "before" if number % 2 else "after"
        caught = self.moments.catch(phase, PATIENCE_S, stage)
        in_flight = len(self.endpoint.in_flight())
        if caught is None:
            self.endpoint.plans_held = False
            self.say(f"  {number:3} {phase}: did not come within {PATIENCE_S:.0f} s; nothing was killed")
            return None
        before = self._signs(caught.iteration)
        under_way = {self.moments.runs.iteration(run) for run in self.moments.runs.living}
        known = under_way.union(self.endpoint.asked_since(0))
        asked, began = len(self.endpoint.log), time.monotonic()
        try:
            self._strike(target, caught, whole=number % 2 == 0)
        finally:
            caught.thaw()
            self.endpoint.plans_held = False
        return Kill(phase, target, caught.what, in_flight, self._resumed(target, caught, asked, known, before, began))

    def _strike(self, target: str, caught: Caught, whole: bool) -> None:
        """SIGKILL. `whole`: a push dies with its run, as when a container is ended; else it goes on without it."""
        pid = caught.pid if target == "run" else self.installation.pid_of(target)
        if not pid:
            raise LongshotError(f"there is no {target} to kill")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        for child in caught.push if target == "run" and whole else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)

    # --- going on ----------------------------------------------------------------------------------------------------

    def _resumed(
        self, target: str, caught: Caught, asked: int, known: set[str], before: frozenset[str], began: float
    ) -> float | None:
        """Seconds until the iteration goes on whose run was killed, until a new planning round is asked for after the death
        of what starts them, until anybody is asked after the gateway's."""
        for _ in self._waiting(began, plans=target not in ("run", "gateway")):
            subjects = self.endpoint.asked_since(asked)
            if target == "run":
                on = any(s == caught.iteration or self._belongs(s, caught.iteration) for s in subjects)
                on = on or bool(self._signs(caught.iteration) - before)
            elif target == "gateway":
                on = bool(subjects)
            else:
                on = any("." in s and s not in known for s in subjects)
            if on or self.installation.exit_code is not None:
                return time.monotonic() - began
        return None

    def _waiting(self, began: float, plans: bool) -> Iterator[None]:
        """Looks until RESUME_S are over. `plans`: a planner is to be asked, so some work is let finish."""
        due = time.monotonic()
        while (now := time.monotonic()) < began + RESUME_S:
            if plans and now >= due:
                self.moments.bring_plans()
                due = now + _LET_GO_EVERY_S
            yield
            time.sleep(0.2)

    def _belongs(self, task: str, iteration: str) -> bool:
        return "." not in task and self.moments.iteration_of(task) == iteration

    def _signs(self, iteration: str) -> frozenset[str]:
        """Documents that say how far an iteration has come."""
        folder = self.moments.folder
        own = {str(p) for p in folder.glob(f"iterations/{iteration}/*.json") if not p.name.startswith(".")}
        tasks = {t for t in self.ledger.task_ids() if self._belongs(t, iteration)}
        handed = {t for t in tasks if self.ledger.handoff(t) is not None}
        landed = {f"{t} landed" for t in tasks if (o := self.ledger.landing(t)) is not None and o.settled}
        sweeps = {f"sweep {s.number}" for s in self.ledger.sweeps() if s.iteration == iteration}
        return frozenset(own | handed | landed | sweeps)
