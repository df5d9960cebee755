"""Following a build to its end: progress, the interrupt that pauses it, the summary and the exit code."""

import contextlib
import time
from collections.abc import Iterator

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.ledger import BuildLedger, Ledger
from longshot_dagster.adapters.stack import stack
from longshot_dagster.adapters.stack.dagster_api import ActiveRun, DagsterApi
from longshot_dagster.adapters.stack.ui_access import UiAccess
from longshot_dagster.cli.dashboard import screen
from longshot_dagster.cli.showing import End, Lines, show
from longshot_dagster.cli.terminal import say, waiting
from longshot_dagster.cli.watching import BuildWatch
from longshot_dagster.core.ending import runs_end_s
from longshot_dagster.core.errors import LongshotError
from longshot_dagster.core.report import EXIT_INTERRUPTED, EXIT_PAUSED, exit_code, summary_lines

BUILD_TAG = "longshot/build"
PARTITION_TAG = "dagster/partition"
_LAST_RUN_SECONDS = 30.0


def follow(home: Home, build: str, api: DagsterApi, *, stays: bool = True, dashboard: bool = False) -> int:
    """Show `build` until it ends, pauses or is interrupted; its exit code. `stays`: the UI can be looked at afterwards.

    `dashboard`: as one screen; whoever leaves it is shown lines.
    """
    ledger = Ledger(home.builds).existing(build)
    try:
        _watch(home, ledger, dashboard)
    except KeyboardInterrupt:
        with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C shortens the wait, the build is paused already
            interrupt(ledger, api)
        say(f"interrupted; {kept(ledger)}; {way_on(build, stays)}")
        return EXIT_INTERRUPTED
    if not stays:
        let_runs_end(build, api)
    return conclude(home, ledger, stays=stays)


def _watch(home: Home, ledger: BuildLedger, dashboard: bool) -> None:
    watch = BuildWatch(ledger)

    def deserted() -> bool:
        stack.pause_builds(home, "Longshot itself has ended; `longshot resume` starts it again")
        return False  # the next look finds it paused

    if dashboard:
        with screen(home, ledger, leaving="q shows lines instead   Ctrl-C interrupts the build") as drawn:
            if show(home, ledger, drawn, watch=watch, deserted=deserted) is not End.LEFT:
                return
    with Lines() as shown:
        show(home, ledger, shown, watch=watch, deserted=deserted)


def interrupt(ledger: BuildLedger, api: DagsterApi) -> None:
    """Pause the build, so that nothing new starts, and end its runs."""
    pause(ledger, "interrupted by Ctrl-C")
    end_runs(ledger.build, api, ledger.request().settings.max_workers)


def end_runs(build: str, api: DagsterApi, workers: int = 1) -> None:
    """Every run of the build has ended when this returns, unless one takes no notice; its workers have kept their work."""
    deadline = time.monotonic() + runs_end_s(workers)
    with contextlib.suppress(LongshotError), waiting("ending its workers; what they have done is kept ..."):
        api.terminate([r.id for r in runs_of(api, build)])
        while (left := runs_of(api, build)) and time.monotonic() < deadline:
            time.sleep(0.2)
        api.terminate([r.id for r in left], now=True)


def kept(ledger: BuildLedger) -> str:
    """How little is lost of a build that was stopped, in a few words."""
    tasks = len(ledger.kept_work())
    return f"the work of {tasks} task{'s' if tasks > 1 else ''} so far is kept" if tasks else "nothing is lost"


def way_on(build: str, stays: bool) -> str:
    """How a stopped build goes on. A demo's does not: its model ends with the command."""
    return f"to go on: longshot resume {build}" if stays else "`longshot demo` begins anew"


def let_runs_end(build: str, api: DagsterApi) -> None:
    """Wait until Dagster has written down the build's last run: its report is there a moment before the run's end is."""
    deadline = time.monotonic() + _LAST_RUN_SECONDS
    with contextlib.suppress(LongshotError), waiting("waiting for the end of the last run ..."):
        while runs_of(api, build) and time.monotonic() < deadline:
            time.sleep(0.2)


def pause(ledger: BuildLedger, reason: str) -> None:
    ledger.update_state(lambda state: state.paused(reason))


def runs_of(api: DagsterApi, build: str) -> list[ActiveRun]:
    """The build's runs that have not ended."""
    return [r for r in api.active() if r.belongs_to(build)]


def conclude(home: Home, ledger: BuildLedger, *, stays: bool = True) -> int:
    """Print how a build stands that is not under way any more; its exit code."""
    state, report, request = ledger.state(), ledger.report(), ledger.request()
    code = exit_code(state, report)
    info = stack.running(home) if stays else None
    link = UiAccess(home).link(info.port) if info else ""
    if code == EXIT_PAUSED or report is None:
        say(f"{ledger.build} is {state.phase.value}: {state.reason or 'no reason recorded'}")
        say(f"nothing is lost; {way_on(ledger.build, stays)}")
        return code
    checks = next((s.checks for s in ledger.sweeps() if s.number == report.sweep), ())
    for line in summary_lines(report, request, checks=checks, report_path=str(ledger.report_path()), link=link):
        say(line)
    return code


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM ends a build as Ctrl-C does; SIGINT works even where a background shell has set it to be ignored."""
    import signal

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    before = {n: signal.signal(n, end) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)
