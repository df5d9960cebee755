"""Following a build to its end: progress, the interrupt that pauses it, the summary and the exit code."""

import contextlib
import time
from collections.abc import Iterator

from longshot_dagster.adapters import stack
from longshot_dagster.adapters.dagster_api import ActiveRun, DagsterApi
from longshot_dagster.adapters.gateway_client import Gateway
from longshot_dagster.adapters.home import Home
from longshot_dagster.adapters.ledger import BuildLedger, Ledger
from longshot_dagster.adapters.ui_access import UiAccess
from longshot_dagster.cli.terminal import Progress, progress, say
from longshot_dagster.cli.watching import BuildWatch
from longshot_dagster.core.errors import LongshotError
from longshot_dagster.core.models import BuildPhase
from longshot_dagster.core.report import EXIT_INTERRUPTED, EXIT_PAUSED, exit_code, summary_lines

LOOK_SECONDS = 0.4
BUILD_TAG = "longshot/build"
PARTITION_TAG = "dagster/partition"
_STACK_EVERY = 5.0
_TOKENS_EVERY = 1.0
_END_RUNS_SECONDS = 8.0
_LAST_RUN_SECONDS = 30.0


def follow(home: Home, build: str, api: DagsterApi, *, stays: bool = True) -> int:
    """Show `build` until it ends, pauses or is interrupted; its exit code. `stays`: the UI can be looked at afterwards."""
    ledger = Ledger(home.builds).existing(build)
    try:
        with progress() as shown:
            _watch(home, ledger, shown)
    except KeyboardInterrupt:
        with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C shortens the wait, the build is paused already
            interrupt(ledger, api)
        say(f"interrupted; to go on: longshot resume {build}")
        return EXIT_INTERRUPTED
    if not stays:
        let_runs_end(build, api)
    return conclude(home, ledger, stays=stays)


def _watch(home: Home, ledger: BuildLedger, shown: Progress) -> None:
    watch, gateway = BuildWatch(ledger), Gateway(home)
    started = ledger.request().created_at
    due_tokens = due_stack = 0.0
    while True:
        for line in watch.look():
            shown.line(line)
        now = time.monotonic()
        if now >= due_tokens:
            due_tokens = now + _TOKENS_EVERY
            with contextlib.suppress(LongshotError):
                usage = gateway.usage(ledger.build)
                watch.tally.tokens = usage.tokens_in + usage.tokens_out
        shown.status(watch.tally.line(time.time() - started))
        if watch.tally.state.phase in (BuildPhase.PAUSED, BuildPhase.FINISHED):
            return
        if now >= due_stack:
            due_stack = now + _STACK_EVERY
            if stack.supervisor_pid(home) is None:
                stack.pause_builds(home, "Longshot itself has ended; `longshot resume` starts it again")
        time.sleep(LOOK_SECONDS)


def interrupt(ledger: BuildLedger, api: DagsterApi) -> None:
    """Pause the build, so that nothing new starts, and end its runs."""
    pause(ledger, "interrupted by Ctrl-C")
    deadline = time.monotonic() + _END_RUNS_SECONDS
    with contextlib.suppress(LongshotError):
        api.terminate([r.id for r in runs_of(api, ledger.build)])
        while (left := runs_of(api, ledger.build)) and time.monotonic() < deadline:
            time.sleep(0.2)
        api.terminate([r.id for r in left], now=True)


def let_runs_end(build: str, api: DagsterApi) -> None:
    """Wait until Dagster has written down the build's last run: its report is there a moment before the run's end is."""
    deadline = time.monotonic() + _LAST_RUN_SECONDS
    with contextlib.suppress(LongshotError):
        while runs_of(api, build) and time.monotonic() < deadline:
            time.sleep(0.2)


def pause(ledger: BuildLedger, reason: str) -> None:
    ledger.update_state(lambda state: state.paused(reason))


def runs_of(api: DagsterApi, build: str) -> list[ActiveRun]:
    """The build's runs that have not ended."""
    return [r for r in api.active() if _belongs(r, build)]


def _belongs(run: ActiveRun, build: str) -> bool:
    partition = run.tags.get(PARTITION_TAG, "")
    return run.tags.get(BUILD_TAG) == build or partition == build or partition.startswith(f"{build}.")


def conclude(home: Home, ledger: BuildLedger, *, stays: bool = True) -> int:
    """Print how a build stands that is not under way any more; its exit code."""
    state, report, request = ledger.state(), ledger.report(), ledger.request()
    code = exit_code(state, report)
    info = stack.running(home) if stays else None
    link = UiAccess(home).link(info.port) if info else ""
    if code == EXIT_PAUSED or report is None:
        say(f"{ledger.build} is {state.phase.value}: {state.reason or 'no reason recorded'}")
        say(f"nothing is lost; to go on: longshot resume {ledger.build}")
        return code
    path = str(ledger.directory / "report.json")
    for line in summary_lines(report, request, report_path=path, link=link):
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
