"""The Dagster UI behind our guard: `python -m longshot_dagster.defs.webserver --port P --workspace FILE`."""

import argparse
import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.host.loopback import loopback
from longshot_dagster.adapters.settings import STACK_MARK
from longshot_dagster.adapters.stack.ui_access import UiAccess
from longshot_dagster.adapters.stack.web_guard import App, WebGuard
from longshot_dagster.core.web_guard import allowed_hosts


@contextlib.asynccontextmanager
async def _lifespan(app: Any) -> AsyncIterator[None]:
    with contextlib.suppress(asyncio.CancelledError):  # how uvicorn ends it on SIGTERM
        yield


def guarded(app: App, home: Home, port: int) -> WebGuard:
    """`app` for this installation's owner only, on `port` of this machine."""
    access = UiAccess(home)
    token = access.token()
    return WebGuard(app, token, allowed_hosts(port, token), access.redeem, os.environ.get(STACK_MARK, ""))


def serve(home: Home, port: int, workspace: Path) -> None:
    """Serve the workspace until SIGTERM. DAGSTER_HOME must be set."""
    # Heavy, and needed by nothing that merely imports this module.
    import uvicorn
    from dagster import DagsterInstance
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import WorkspaceFileTarget
    from dagster_webserver.app import create_app_from_workspace_process_context
    from dagster_webserver.version import __version__

    with DagsterInstance.get() as instance:
        instance.optimize_for_webserver(statement_timeout=15_000, pool_recycle=3600, max_overflow=20)
        target = WorkspaceFileTarget(paths=[str(workspace)])
        with WorkspaceProcessContext(instance, target, version=__version__) as context:
            app = create_app_from_workspace_process_context(context, live_data_poll_rate=2000, lifespan=_lifespan)
            # Requests in flight get two seconds when the stack stops; a page's open websocket would never end.
            config = uvicorn.Config(
                guarded(app, home, port),
                log_level="warning",
                timeout_graceful_shutdown=2,
                server_header=False,
                proxy_headers=False,  # else X-Forwarded-For would name any client it likes
            )
            server = uvicorn.Server(config)
            server.run(loopback(port))
            if not server.started:
                raise SystemExit(1)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--port", type=int, required=True)
    options.add_argument("--workspace", type=Path, required=True)
    given = options.parse_args()
    serve(Home(Path(os.environ["LONGSHOT_HOME"])), given.port, given.workspace)


if __name__ == "__main__":
    main()
