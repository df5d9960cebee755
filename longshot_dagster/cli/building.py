"""`longshot "REQUEST"`: check what can be checked here, have a stack running, start the build in it, follow it."""

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longshot_dagster.adapters import settings
from longshot_dagster.adapters.builds.starting import check_request, new_build_name
from longshot_dagster.adapters.gateway.gateway_client import Gateway
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.ledger import Ledger
from longshot_dagster.adapters.repository.targets import resolve_target
from longshot_dagster.adapters.sandboxes.providers import make_provider
from longshot_dagster.adapters.settings import Resolved
from longshot_dagster.adapters.stack import stack
from longshot_dagster.adapters.stack.dagster_api import ENDED, ApiUnavailable, DagsterApi
from longshot_dagster.adapters.stack.ui_access import UiAccess
from longshot_dagster.adapters.workers.harness_layers import HarnessLayers
from longshot_dagster.cli import serving
from longshot_dagster.cli.asking import before_spending
from longshot_dagster.cli.dashboard import check_terminal
from longshot_dagster.cli.following import BUILD_TAG, follow, interrupt, interruptible, kept, way_on
from longshot_dagster.cli.terminal import say, waiting
from longshot_dagster.core import errors
from longshot_dagster.core.errors import LongshotError, WrongUse
from longshot_dagster.core.report import EXIT_INTERRUPTED

JOB = OP = "start_build"
_START_SECONDS = 600
_CODE_SERVER_SECONDS = 30
_PREPARING = "preparing the repository and asking the model for a sign of life ..."


@dataclass(frozen=True)
class Order:
    """One build as the command line has checked it."""

    build: str
    request: str
    repository: str
    land_on: str | None
    resolved: Resolved


def build(
    request: str,
    *,
    repo: str | None,
    land_on: str | None,
    flags: Mapping[str, str | None],
    yes: bool,
    dashboard: bool = False,
) -> int:
    """Exit code of a new build in the person's own environment. Raises LongshotError."""
    if dashboard:
        check_terminal()
    dotenv = settings.default_dotenv()
    home = settings.home(os.environ, dotenv)
    resolved = settings.resolve({}, flags, os.environ, dotenv, None)
    text = check_request(request)
    name = new_build_name(text)
    repository, assumed = given_repository(repo or resolved.settings.git_repo_url)
    target = resolve_target(repository, resolved.settings, name, land_on)
    provider, note = make_provider(resolved.settings, resolved.origins, home)
    agent = HarnessLayers(home).agents(resolved.settings).note(provider)
    endpoints = settings.endpoints(os.environ, dotenv)
    if not endpoints:
        Gateway(home).ensure()  # one that runs has some
    home.check_room()
    before_spending(
        home,
        target,
        resolved,
        build=name,
        request=text,
        repository=repository,
        land_on=land_on,
        endpoints=endpoints,
        sandboxes=f"{note}; {agent}",
        assumed=assumed,
        yes=yes,
    )
    serving.model_reachable(home, endpoints)
    say(f"sandboxes: {note}; {agent}")
    if resolved.settings.max_workers == 0:
        say(
            "MAX_WORKERS is 0: tasks wait until the limit of pool `sandbox` is raised in the UI (Deployment, Concurrency)"
        )
    with interruptible():
        info = serving.in_background(home, dotenv, endpoints)
        say(f"watch  {UiAccess(home).link(info.port)}")
        order = Order(name, text, repository, land_on, resolved)
        return run(home, stack.api(home, info), order, dashboard=dashboard)


def run(home: Home, api: DagsterApi, order: Order, *, stays: bool = True, dashboard: bool = False) -> int:
    """Start `order` in a running stack and follow it; its exit code."""
    say(f"build {order.build}")
    try:
        _start(home, api, order)
    except KeyboardInterrupt:
        if not Ledger(home.builds).build(order.build).exists():
            say("interrupted before the build had begun; nothing was changed")
            return EXIT_INTERRUPTED
        begun = Ledger(home.builds).existing(order.build)
        with contextlib.suppress(KeyboardInterrupt):  # it has begun: the sensors would carry it on
            interrupt(begun, api)
        say(f"interrupted; {kept(begun)}; {way_on(order.build, stays)}")
        return EXIT_INTERRUPTED
    return follow(home, order.build, api, stays=stays, dashboard=dashboard)


def given_repository(given: str) -> tuple[str, bool]:
    """(URL or absolute path, was it assumed from the current folder?)"""
    if given:
        path = Path(given).expanduser()
        local = "://" not in given and path.exists()
        return (str(path.absolute()) if local else given), False
    here = Path.cwd()
    inside = next((p for p in (here, *here.parents) if (p / ".git").exists()), None)
    if inside is None:
        raise WrongUse("no repository: give --repo PATH_OR_URL, set GIT_REPO_URL, or start inside a git checkout")
    return str(inside), True


def _start(home: Home, api: DagsterApi, order: Order) -> None:
    """Returns once `request.json` is written; raises what the job says in its one line."""
    run_id = _launched(api, _run_config(order), {BUILD_TAG: order.build})
    ledger = Ledger(home.builds).build(order.build)
    deadline = time.monotonic() + _START_SECONDS
    try:
        with waiting(_PREPARING) as tell:
            while not ledger.exists():
                status = api.status(run_id)
                if status in ENDED and not ledger.exists():
                    raise _refusal(*api.failure(run_id))
                if time.monotonic() > deadline:
                    raise LongshotError(f"the build did not start within {_START_SECONDS} s; the UI shows run {run_id}")
                tell(_preparing(home))
                time.sleep(0.3)
    except KeyboardInterrupt:
        api.terminate([run_id], now=True)
        raise


def _preparing(home: Home) -> str:
    """What the job is doing: git fetches a large repository into a pack that grows below the mirrors."""
    packs = home.mirrors.glob("*.git/objects/pack/tmp_pack_*")
    fetched = 0
    for pack in packs:
        with contextlib.suppress(OSError):  # it has just been given its name
            fetched += pack.stat().st_size
    return f"fetching the repository, {fetched / 1e6:,.0f} MB so far ..." if fetched >= 1e6 else _PREPARING


def _launched(api: DagsterApi, run_config: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    deadline = time.monotonic() + _CODE_SERVER_SECONDS
    while True:
        try:
            return api.launch(JOB, run_config, tags)
        except LongshotError as e:
            # The code server may just be starting again; anything else is final.
            passing = isinstance(e, ApiUnavailable) or "Unreachable" in str(e)
            if not passing or time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _run_config(order: Order) -> dict[str, Any]:
    values, origins = settings.as_launch(order.resolved)
    config: dict[str, Any] = {
        "request": order.request,
        "repository": order.repository,
        "build": order.build,
        "settings": values,
        "origins": origins,
    }
    if order.land_on:
        config["land_on"] = order.land_on
    return {"ops": {OP: {"config": config}}}


def _refusal(class_name: str, line: str) -> LongshotError:
    """The error that ended the job, as the kind it was there: its exit code is ours."""
    kind = getattr(errors, class_name, None)
    known = isinstance(kind, type) and issubclass(kind, LongshotError)
    return (kind if known and kind else LongshotError)(line or "the build did not start; the UI shows why")
