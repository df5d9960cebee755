"""`longshot up`, `down` and `ui`: the stack of a home, from a terminal."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from longshot_dagster.adapters import settings, stack
from longshot_dagster.adapters.home import Home
from longshot_dagster.adapters.stack import StackInfo
from longshot_dagster.adapters.ui_access import UiAccess
from longshot_dagster.cli.terminal import say
from longshot_dagster.core.endpoints import Endpoint
from longshot_dagster.core.errors import WrongUse


def up(detach: bool, home: Home | None = None) -> int:
    """Serve until Ctrl-C, or in the background; says where when something serves already."""
    dotenv = settings.default_dotenv()
    home = home or settings.home(os.environ, dotenv)
    endpoints = settings.endpoints(os.environ, dotenv)
    port = settings.ui_port(os.environ, dotenv)
    settings.resolve({}, {}, os.environ, dotenv, None)  # a typo is said now, not when the first build starts
    if info := stack.running(home):
        say("Longshot runs already; `longshot down` stops it")
        _say_where(home)(info)
        return 0
    if not endpoints:
        say("no model endpoint is configured (LLM_BASE_URL or LLM_ENDPOINTS): builds cannot start until there is one")
    if detach:
        _say_where(home)(in_background(home, dotenv, endpoints))
        return 0
    from longshot_dagster.adapters.supervisor import Supervisor

    say("starting Longshot (Ctrl-C stops it) ...")
    Supervisor(
        home,
        port=port,
        endpoints=endpoints,
        environ=os.environ,
        dotenv=settings.inheritable(dotenv),
        say=say,
        on_ready=_say_where(home),
    ).run()
    say("stopped")
    return 0


def in_background(home: Home, dotenv: Path | None, endpoints: Sequence[Endpoint]) -> StackInfo:
    """The home's stack with the person's own settings, started if there is none."""
    port, inherited = settings.ui_port(os.environ, dotenv), settings.inheritable(dotenv)
    return stack.ensure(home, endpoints, port=port, environ=os.environ, dotenv=inherited, say=say)


def down(home: Home | None = None) -> int:
    """Idempotent."""
    home = home or settings.home(os.environ, settings.default_dotenv())
    if stack.supervisor_pid(home):
        say("stopping Longshot; builds under way are paused ...")
    say("stopped" if stack.stop(home) else "Longshot is not running")
    return 0


def ui(plain: bool) -> int:
    """`plain` prints a link under 127.0.0.1. Raises WrongUse when nothing serves."""
    home = settings.home(os.environ, settings.default_dotenv())
    info = stack.running(home)
    if info is None:
        raise WrongUse("Longshot is not running; `longshot up` starts it")
    _say_where(home, plain)(info)
    return 0


def _say_where(home: Home, plain: bool = False) -> Callable[[StackInfo], None]:
    return lambda info: say(f"Dagster UI, this link logs in once: {UiAccess(home).link(info.port, plain=plain)}")
