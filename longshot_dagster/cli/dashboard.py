"""The dashboard: a running build as one screen, drawn anew every second and when something has changed."""

import contextlib
import os
import re
import select
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.ledger import BuildLedger
from longshot_dagster.adapters.stack import stack
from longshot_dagster.adapters.stack.dagster_api import DagsterApi, Pool
from longshot_dagster.adapters.stack.ui_access import UiAccess
from longshot_dagster.cli.watching import Tally
from longshot_dagster.core.costs import cost_usd
from longshot_dagster.core.dashboard import Occupancy, Scene, Stand, first_line, planner_rows, stands_of
from longshot_dagster.core.errors import LongshotError, WrongUse
from longshot_dagster.core.events import Event

if TYPE_CHECKING:
    from rich.live import Live

_POOL = "sandbox"
_POOL_EVERY = 2.0
_POOL_RETRY = 10.0
_POOL_TIMEOUT_S = 3.0
_FEED = 500
_WORKS = re.compile(r"run_worker\[(?P<task>[rf\d_]+)\]$")
_PARTITION_TAG = "dagster/partition"


def check_terminal() -> None:
    """Raises WrongUse where no screen can be drawn."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TERM", "dumb") == "dumb":
        raise WrongUse("--dashboard needs a terminal; without it the build is followed line by line")


def screen(home: Home, ledger: BuildLedger, *, leaving: str) -> "Screen":
    """`leaving` says what q and Ctrl-C do. Raises WrongUse without a terminal."""
    check_terminal()
    return Screen(home, ledger, leaving)


class Screen:
    """Full screen on this terminal until it is left; keys are read without an echo."""

    def __init__(self, home: Home, ledger: BuildLedger, leaving: str) -> None:
        self._ledger = ledger
        self._request = ledger.request()
        self._leaving = leaving
        self._slots = Slots(home, ledger.build)
        self._feed: deque[tuple[str, str, str]] = deque(maxlen=_FEED)
        self._drawn: object = None
        self._told = 0
        self._live: Live | None = None
        self._terminal: list[Any] | None = None

    def events(self, new: Sequence[Event]) -> None:
        self._told += len(new)
        for event in new:
            if not event.detail:
                at = time.strftime("%H:%M:%S", time.localtime(event.at))
                self._feed.append((at, event.line, tone(event)))

    def stands(self, tally: Tally, elapsed_s: float) -> None:
        """Draw how the build stands, if that is not what is drawn already."""
        from longshot_dagster.cli.drawing import draw, whole

        if self._live is None:
            return
        size = os.get_terminal_size(sys.stdout.fileno())
        now = (size, int(elapsed_s), self._told, tally.tokens)
        if now != self._drawn:
            self._drawn = now
            lines = draw(self.scene(tally, elapsed_s), size.columns, size.lines, self._leaving)
            self._live.update(whole(lines), refresh=True)

    def scene(self, tally: Tally, elapsed_s: float) -> Scene:
        occupancy = self._slots.look() if tally.state.under_way else None
        at_work = occupancy.at_work if occupancy else frozenset()
        stands = stands_of(tally.planned, tally.statuses, tally.landings, tally.interrupted, at_work)
        target, settings = self._request.target, self._request.settings
        return Scene(
            build=self._request.build,
            request=self._request.request,
            where=f"{target.branch} of {target.url}",
            rehearsal=self._request.rehearsal,
            state=tally.state,
            elapsed_s=int(elapsed_s),
            tokens=tally.tokens,
            cost_usd=cost_usd(tally.tokens_in, tally.tokens - tally.tokens_in, settings),
            occupancy=occupancy,
            planners=planner_rows(tally.tasks, stands, tally.rounds, tally.state.phase),
            counts=Counter(stands.values()),
            at_work=[(t, first_line(tally.tasks[t])) for t in sorted(stands) if stands[t] is Stand.AT_WORK],
            sweep=tally.sweep,
            sweep_age_s=int(time.time() - tally.sweep.ended_at) if tally.sweep else 0,
            feed=tuple(self._feed),
        )

    def wait(self, seconds: float) -> bool:
        """False as soon as q is pressed, or when the terminal is gone."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            readable, _, _ = select.select([sys.stdin], [], [], left)
            if readable:
                pressed = os.read(sys.stdin.fileno(), 64)
                if not pressed or b"q" in pressed.lower():
                    return False
        return True

    def __enter__(self) -> Self:
        import termios
        import tty

        from longshot_dagster.cli.drawing import full_screen

        keyboard = sys.stdin.fileno()
        self._terminal = termios.tcgetattr(keyboard)
        tty.setcbreak(keyboard)
        changed = termios.tcgetattr(keyboard)
        changed[6][termios.VSUSP] = b"\0"  # Ctrl-Z would leave the shell on our screen
        termios.tcsetattr(keyboard, termios.TCSADRAIN, changed)
        self._live = full_screen()
        try:
            self._live.__enter__()
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._live:
                self._live.__exit__(kind, error, trace)
        finally:
            self._live = None
            self._restore()

    def _restore(self) -> None:
        import termios

        if self._terminal is not None:
            with contextlib.suppress(termios.error):  # the terminal was closed
                termios.tcsetattr(sys.stdin.fileno(), termios.TCSAFLUSH, self._terminal)


class Slots:
    """Who is at work, asked of the running stack every other second; None while nobody can say."""

    def __init__(self, home: Home, build: str) -> None:
        self._home = home
        self._build = build
        self._partitions: dict[str, str] = {}
        self._due = 0.0
        self._found: Occupancy | None = None

    def look(self) -> Occupancy | None:
        now = time.monotonic()
        if now >= self._due:
            self._due = now + _POOL_EVERY
            try:
                self._found = self._ask()
            except (LongshotError, KeyError, TypeError):
                self._found = None
                self._due = now + _POOL_RETRY
        return self._found

    def _ask(self) -> Occupancy | None:
        info = stack.running(self._home)
        if info is None:
            return None
        api = DagsterApi(info.port, UiAccess(self._home).token(), _POOL_TIMEOUT_S)
        pool = api.pool(_POOL)
        self._learn(api, pool)
        ours = frozenset(t for run, step in pool.used if (t := self._task(run, step)))
        return Occupancy(len(pool.used), pool.limit, len(pool.waiting), ours)

    def _learn(self, api: DagsterApi, pool: Pool) -> None:
        runs = {run for run, _ in pool.used}
        if new := sorted(runs - self._partitions.keys()):
            found = api.tags(new)
            self._partitions |= {run: found.get(run, {}).get(_PARTITION_TAG, "") for run in new}

    def _task(self, run: str, step: str) -> str:
        """The task of this build that a step works on: one of many in an iteration's run, or the run's own."""
        build, _, rest = self._partitions[run].partition(".")
        if build != self._build:
            return ""
        found = _WORKS.search(step)
        return found["task"].replace("_", "-") if found else rest


def tone(event: Event) -> str:
    """good, bad or plain: how a line of the feed is coloured."""
    facts = event.facts
    if event.kind == "landing":
        return {"landed": "good", "conflict": "bad", "withheld": "bad", "undone": "bad"}.get(facts["state"], "plain")
    if event.kind == "swept":
        return "bad" if facts["red"] else "good" if facts["green"] else "plain"
    if event.kind == "handed_off":
        return "plain" if facts["status"] == "complete" else "bad"
    return "bad" if event.kind in ("failed", "interrupted") or facts.get("phase") == "paused" else "plain"
