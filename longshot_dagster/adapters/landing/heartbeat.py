"""A checkpoint of every build under way at least once a minute, and a last one that lets go of a build that stands still.

So that what a quiet build has done is on the target, too, and another installation knows whether somebody drives it.
"""

import argparse
import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from longshot_dagster.adapters.host.exclusive import claim
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.landing.queue import LandingQueue
from longshot_dagster.adapters.ledger.ledger import BuildLedger, Ledger
from longshot_dagster.adapters.ledger.orchestrator import Seat
from longshot_dagster.adapters.repository.mirror import Mirror
from longshot_dagster.core.clock import Clock, SystemClock
from longshot_dagster.core.errors import LongshotError, TakenOver
from longshot_dagster.core.orchestrating import BEAT_S
from longshot_dagster.core.settings import Checkpoint as CheckpointSetting

_PREFIX = "longshot-beat-"
_LET_GO_S = 10.0  # between two attempts to let go of a build


class Heartbeat:
    """Of one home; kept between looks, so that a target that is out of reach is not asked at each of them."""

    def __init__(self, home: Home, clock: Clock) -> None:
        self._home = home
        self._clock = clock
        self._tried: dict[str, float] = {}

    def beat(self, under_way: Iterable[BuildLedger]) -> list[str]:
        """Publish what is due; one line for each checkpoint that could not be pushed.

        A build that another installation has taken over is paused.
        """
        said = []
        driven = {ledger.build: ledger for ledger in under_way if _under_way(ledger)}
        quiet = [ledger for ledger in _held(self._home) if ledger.build not in driven]
        for ledger in (*driven.values(), *(x for x in quiet if not _at_work(x))):
            with contextlib.suppress(LongshotError):  # one that cannot be read is told of elsewhere
                if self._due(ledger) and (why := publish(self._home, ledger, self._clock, wait=False)):
                    said.append(f"{ledger.build}: {why}")
        return said

    def _due(self, ledger: BuildLedger) -> bool:
        request, now = ledger.request(), self._clock.monotonic()
        if request.settings.checkpoint is CheckpointSetting.LOCAL:
            return False
        beat = Seat(Mirror(self._home, request.target), ledger.build).last()
        under_way = _under_way(ledger)
        held = beat is not None and not beat.released and under_way
        # A clock that was set back must not keep a build from being heard of.
        if beat is not None and held and 0 <= self._clock.now() - beat.at < BEAT_S:
            return False
        if now - self._tried.get(ledger.build, -BEAT_S) < (BEAT_S if under_way else _LET_GO_S):
            return False
        self._tried[ledger.build] = now
        return True


def let_go(home: Home, clock: Clock) -> None:
    """The stack ends: nobody drives its builds any more. What cannot be said is found out by others in time."""
    for ledger in _held(home):
        with contextlib.suppress(LongshotError, OSError):
            publish(home, ledger, clock, held=False)


def publish(home: Home, ledger: BuildLedger, clock: Clock, *, held: bool | None = None, wait: bool = True) -> str:
    """Push a checkpoint of the build; why it could not be pushed, in one line. `wait`: for a lander that is at it.

    A build that was taken over elsewhere is paused, with the reason.
    """
    request = ledger.request()
    mirror = Mirror(home, request.target)
    with claim(mirror.landing_lock) as idle:
        pass
    if not idle and not wait:
        return ""  # a lander is at work: its push says all there is to say
    try:
        return LandingQueue(ledger, request, mirror, clock).checkpoint(held) or ""
    except TakenOver as e:
        reason = str(e)
        ledger.update_state(lambda state: state.paused(reason))
        Seat(mirror, ledger.build).forget()
        return reason


def _held(home: Home) -> Iterator[BuildLedger]:
    """Builds that this home has not let go of yet."""
    for path in sorted(home.mirrors.glob(f"*.git/{_PREFIX}*.json")):
        with contextlib.suppress(LongshotError):
            ledger = Ledger(home.builds).build(path.stem.removeprefix(_PREFIX))
            if ledger.exists():
                beat = Seat(Mirror(home, ledger.request().target), ledger.build).last()
                if beat is not None and not beat.released:
                    yield ledger


def _under_way(ledger: BuildLedger) -> bool:
    with contextlib.suppress(LongshotError):
        return ledger.state().under_way
    return False


def _at_work(ledger: BuildLedger) -> bool:
    """Is a worker still keeping what it has done?"""
    return any(ledger.handoff(t) is None and ledger.at_work(t) for t in ledger.task_ids())


def main() -> None:
    """Run by the supervisor as it ends, which bounds the time: a target out of reach must not keep a stack from ending."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--home", type=Path, required=True)
    let_go(Home(options.parse_args().home), SystemClock())


if __name__ == "__main__":
    main()
