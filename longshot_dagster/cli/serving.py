"""`longshot up`, `down` and `ui`: the stack of a home, from a terminal."""

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from longshot_dagster.adapters import settings
from longshot_dagster.adapters.gateway import endpoint_news
from longshot_dagster.adapters.gateway.gateway_client import Gateway
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.host.supervisor_lock import supervisor_pid
from longshot_dagster.adapters.settings import BacklogPlace
from longshot_dagster.adapters.stack import stack
from longshot_dagster.adapters.stack.stack import StackInfo
from longshot_dagster.adapters.stack.ui_access import UiAccess
from longshot_dagster.cli.terminal import complain, say, waiting
from longshot_dagster.core.endpoints import Endpoint
from longshot_dagster.core.errors import WrongUse

_STARTING = "starting Dagster's code server, daemon and UI ..."


def up(detach: bool, home: Home | None = None) -> int:
    """Serve until Ctrl-C, or in the background; says where when something serves already."""
    dotenv = settings.default_dotenv()
    # A home that is named here is the demo's, which has no backlog, and no model once it is built.
    looked_at = home is not None
    backlog = settings.backlog({}, None, home) if home else None
    home = home or settings.home(os.environ, dotenv)
    backlog = backlog or backlog_place(home, dotenv, beside=Path.cwd())
    endpoints = settings.endpoints(os.environ, dotenv)
    port = settings.ui_port(os.environ, dotenv)
    settings.resolve({}, {}, os.environ, dotenv, None)  # a typo is said now, not when the first build starts
    if info := stack.running(home):
        say("Longshot runs already; `longshot down` stops it")
        _say_where(home)(info)
        return 0
    if not endpoints and not looked_at:
        say("no model endpoint is configured (LLM_BASE_URL or LLM_ENDPOINTS): builds cannot start until there is one")
    if backlog.folder.is_dir():
        say(f"backlog: {backlog.folder}, at most {backlog.builds} builds at once; `longshot backlog` lists it")
    if detach:
        _say_where(home)(in_background(home, dotenv, endpoints, backlog))
        return 0
    from longshot_dagster.adapters.stack.supervisor import Supervisor

    say("starting Longshot (Ctrl-C stops it) ...")
    with contextlib.ExitStack() as until_ready:

        def ready(info: StackInfo) -> None:
            until_ready.close()
            _say_where(home)(info)

        until_ready.enter_context(waiting(_STARTING))
        Supervisor(
            home,
            port=port,
            endpoints=endpoints,
            environ={**os.environ, **backlog.variables, **settings.executor_variable(os.environ, dotenv)},
            dotenv=settings.inheritable(dotenv),
            say=say,
            on_ready=ready,
        ).run()
    tidied(home)
    say("stopped")
    return 0


def in_background(
    home: Home, dotenv: Path | None, endpoints: Sequence[Endpoint], backlog: BacklogPlace | None = None
) -> StackInfo:
    """The home's stack with the person's own settings, started if there is none.

    A folder `backlog` that merely lies where a build was asked for is not taken up: `longshot up` alone does that.
    """
    port, inherited = settings.ui_port(os.environ, dotenv), settings.inheritable(dotenv)
    environ = {**os.environ, **(backlog or backlog_place(home, dotenv)).variables}
    environ |= settings.executor_variable(os.environ, dotenv)
    with waiting(_STARTING):
        return stack.ensure(home, endpoints, port=port, environ=environ, dotenv=inherited, say=say)


def model_reachable(home: Home, endpoints: Sequence[Endpoint]) -> None:
    """Have the gateway running, with `endpoints` if there are any; says so when that moves the builds under way to others.

    Raises WrongUse when there is neither.
    """
    gateway = Gateway(home)
    before = {e["host"] for e in gateway.status()["endpoints"]} if endpoints and gateway.alive() else set()
    gateway.ensure(endpoints or None)
    if endpoints:
        endpoint_news.tell(home, endpoints)  # a gateway that dies is started again with these
    if before and before != {e.host for e in endpoints}:
        say(
            f"from now on every build here asks {', '.join(e.host for e in endpoints)}, not {', '.join(sorted(before))}"
        )


def backlog_place(home: Home, dotenv: Path | None, beside: Path | None = None) -> BacklogPlace:
    """A folder beside the command that came with a repository is not taken up unless a person names it.

    Raises WrongUse for a folder that a person has named and that is not there.
    """
    place = settings.backlog(os.environ, dotenv, home, beside)
    if beside is not None and place.folder == beside.absolute() / "backlog" and not place.named:
        from longshot_dagster.adapters.repository.committed import (
            is_committed,  # few commands need git before they begin
        )

        if is_committed(place.folder):
            complain(
                "git tracks backlog/ here, so it is left alone; to have it built: LONGSHOT_BACKLOG=backlog longshot up"
            )
            return settings.backlog(os.environ, dotenv, home)
    if place.named and not place.folder.is_dir():
        raise WrongUse(f"LONGSHOT_BACKLOG={place.folder} is not a folder; make it, or name another")
    return place


def down(home: Home | None = None) -> int:
    """Idempotent."""
    home = home or settings.home(os.environ, settings.default_dotenv())
    if supervisor_pid(home):
        say("stopping Longshot; builds under way are paused ...")
    with waiting("ending runs and processes ..."):
        stopped = stack.stop(home)
    tidied(home)
    say("stopped" if stopped else "Longshot is not running")
    return 0


def tidied(home: Home) -> None:
    """No sandbox stays behind; what killed workers had done is kept for their builds."""
    if not any((home.root / "sandboxes").glob("sb-*")):
        return
    from longshot_dagster.adapters.builds.tidying import tidy  # git, which few commands need

    with waiting("keeping what killed workers had done ..."):
        kept = tidy(home)
    if kept:
        say(f"kept what killed workers had done of {', '.join(kept[:5])}{' and others' if len(kept) > 5 else ''}")


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
