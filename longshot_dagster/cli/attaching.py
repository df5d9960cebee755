"""`longshot watch [BUILD]`: see a build that is under way, from any terminal; it starts nothing and ends nothing."""

import os
import time

from longshot_dagster.adapters import settings
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.ledger import BuildLedger, Ledger
from longshot_dagster.adapters.stack import stack
from longshot_dagster.cli.dashboard import check_terminal, screen
from longshot_dagster.cli.following import conclude, interruptible
from longshot_dagster.cli.naming import newest
from longshot_dagster.cli.showing import End, Lines, Objects, echo_json, show
from longshot_dagster.cli.terminal import say
from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.report import EXIT_PAUSED, exit_code

_PAST = 20
_RESTART_SECONDS = 10.0  # a stack that is being started again is not away


def watch(build: str | None, dashboard: bool, as_json: bool) -> int:
    """The build's exit code once it has ended; 0 when the person leaves before. Raises WrongUse."""
    if dashboard and as_json:
        raise WrongUse("--dashboard is for a person, --json for a program; give one of them")
    if dashboard:
        check_terminal()
    home = settings.home(os.environ, settings.default_dotenv())
    builds = Ledger(home.builds)
    ledger = builds.existing(build or newest(builds))
    try:
        with interruptible():
            end = _show(home, ledger, dashboard, as_json)
    except KeyboardInterrupt:
        end = End.LEFT
    if as_json:
        return _last_object(ledger, end)
    if end is End.LEFT:
        if ledger.state().under_way:
            say(f"{ledger.build} goes on; `longshot watch {ledger.build}` shows it again")
        return 0
    if end is End.DESERTED:
        say(f"{ledger.build} stands still: Longshot is not running; to go on: longshot resume {ledger.build}")
        return EXIT_PAUSED
    return conclude(home, ledger)


def _show(home: Home, ledger: BuildLedger, dashboard: bool, as_json: bool) -> End:
    away_since: list[float] = []

    def deserted() -> bool:
        away_since.append(time.monotonic())
        return time.monotonic() - away_since[0] >= _RESTART_SECONDS or stack.read_info(home) is None

    if dashboard:
        with screen(home, ledger, leaving="q or Ctrl-C leaves, the build goes on") as shown:
            return show(home, ledger, shown, deserted=deserted)
    if as_json:
        with Objects() as objects:
            return show(home, ledger, objects, deserted=deserted)
    if ledger.request().rehearsal:
        say(f"watching {ledger.build} (a rehearsal: a scripted model answers); Ctrl-C only ends the watching")
    else:
        say(f"watching {ledger.build}; Ctrl-C only ends the watching")
    with Lines(_PAST, f"longshot logs {ledger.build}") as lines:
        return show(home, ledger, lines, deserted=deserted)


def _last_object(ledger: BuildLedger, end: End) -> int:
    """The stream's last object says how the build stands now."""
    state, report = ledger.state(), ledger.report()
    code = {End.LEFT: 0, End.DESERTED: EXIT_PAUSED, End.ENDED: exit_code(state, report)}[end]
    echo_json(
        {
            "at": round(time.time(), 3),
            "kind": "end",
            "why": end.value,
            "phase": state.phase.value,
            "reason": state.reason,
            "verdict": report.verdict.value if report and not state.under_way else None,
            "exit_code": code,
        }
    )
    return code
