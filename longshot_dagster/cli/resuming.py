"""`longshot resume BUILD`: a paused build goes on where it stood; one that is under way is followed; one of another
machine is restored from its checkpoint first.

`longshot continue BUILD` is the same without the following.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from longshot_dagster.adapters import settings
from longshot_dagster.adapters.host import leases
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.ledger import BuildLedger, Ledger
from longshot_dagster.adapters.stack import stack
from longshot_dagster.adapters.stack.dagster_api import ActiveRun, DagsterApi
from longshot_dagster.adapters.stack.ui_access import UiAccess
from longshot_dagster.cli import restoring, serving
from longshot_dagster.cli.dashboard import check_terminal
from longshot_dagster.cli.following import (
    BUILD_TAG,
    PARTITION_TAG,
    conclude,
    follow,
    interruptible,
    pause,
    runs_of,
)
from longshot_dagster.cli.terminal import say, waiting
from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.ids import task_partition
from longshot_dagster.core.lifecycle import BuildView, IterationStatus
from longshot_dagster.core.models import BuildPhase, BuildRequest, BuildState
from longshot_dagster.core.steering import orphans

_CANCELING_SECONDS = 30.0


@dataclass(frozen=True)
class Elsewhere:
    """Where a build that is not here may be, and what a person has said about that."""

    repo: str | None = None
    land_on: str | None = None
    take_over: bool = False
    yes: bool = False


def resume(
    build: str | None, max_tokens: str | None, dashboard: bool = False, elsewhere: Elsewhere = Elsewhere()
) -> int:
    """Exit code of the build, followed to its end; without a name, what a repository has to be resumed is listed.

    Raises WrongUse.
    """
    if build is None:
        return restoring.show_builds(elsewhere.repo, elsewhere.land_on)
    if dashboard:
        check_terminal()
    name = build
    return _woken(
        name, max_tokens, lambda home, api, _: follow(home, name, api, dashboard=dashboard), elsewhere=elsewhere
    )


def go_on(build: str) -> int:
    """0 as soon as the build is under way; one that has finished is shown, with its exit code. Raises WrongUse."""

    def say_where(home: Home, _: DagsterApi, woken: bool) -> int:
        if not woken:
            say(f"{build} is under way already")
        info = stack.running(home)
        link = f", or {UiAccess(home).link(info.port)}" if info else ""
        say(f"to watch it: longshot watch {build}{link}")
        return 0

    return _woken(build, None, say_where)


def _woken(
    build: str,
    max_tokens: str | None,
    then: Callable[[Home, DagsterApi, bool], int],
    elsewhere: Elsewhere = Elsewhere(),
) -> int:
    """What `then` returns of (home, API, was it woken?); a build that has finished is shown instead."""
    dotenv = settings.default_dotenv()
    home = settings.home(os.environ, dotenv)
    ledger = _here(home, dotenv, build, elsewhere)
    if ledger.state().phase is BuildPhase.FINISHED:
        say(f"{build} has finished already")
        return conclude(home, ledger)
    if max_tokens is not None:
        _raise_budget(ledger, max_tokens)
    endpoints = settings.endpoints(os.environ, dotenv)
    serving.model_reachable(home, endpoints)
    with interruptible():
        api = stack.api(home, serving.in_background(home, dotenv, endpoints))
        return then(home, api, _go_on(home, ledger, api))


def _here(home: Home, dotenv: Path | None, build: str, elsewhere: Elsewhere) -> BuildLedger:
    """The build's ledger, as new as any. Raises WrongUse while another installation drives it, or when there is none."""
    arrival = restoring.Arrival(home, dotenv, take_over=elsewhere.take_over, yes=elsewhere.yes)
    builds = Ledger(home.builds)
    if not builds.build(build).exists():
        if (home.root / "demo" / "builds" / build).exists():
            builds.existing(build)  # says where it is
        configured = settings.resolve({}, {}, os.environ, dotenv, None).settings.git_repo_url
        repository = restoring.repository_of(build, elsewhere.repo, configured)
        with interruptible():
            return arrival.from_repository(build, repository, elsewhere.land_on)
    ledger = builds.existing(build)
    if ledger.state().phase is not BuildPhase.PAUSED:
        return ledger  # under way here, or finished: its next push asks whose it is
    with interruptible():
        return arrival.caught_up(ledger)


def _go_on(home: Home, ledger: BuildLedger, api: DagsterApi) -> bool:
    """False when it was under way already."""
    pause_if_idle(ledger, api)
    if ledger.state().phase is not BuildPhase.PAUSED:
        return False
    wake(home, ledger, api)
    say(f"{ledger.build} goes on")
    return True


def pause_if_idle(ledger: BuildLedger, api: DagsterApi) -> None:
    """A build under way without a run may have lost one for good (deleted or ended by hand in the UI): it is woken, too.

    Had the sensors been about to start one, there would be two of the same iteration, which do its work once.
    """
    if not runs_of(api, ledger.build):
        pause(ledger, "no run of it was there")


def wake(home: Home, ledger: BuildLedger, api: DagsterApi) -> None:
    """Set a paused build running, with a new attempt for whatever stands still."""
    with waiting("waiting for its last runs to end ..."):
        _let_runs_end(ledger.build, api)
    runs = runs_of(api, ledger.build)
    dead = [r for r in runs if _is_dead(home, r)]
    busy = {r.tags.get(PARTITION_TAG, "") for r in runs if r not in dead}
    view = ledger.view()
    # First what is to go on, then the reaping: the end of a run that has a successor pauses nothing.
    plans = [plan for i in view.iterations if (plan := ledger.plan(i.key))]
    for partition in (task_partition(ledger.build, t) for t in orphans(view, plans)):
        if partition not in busy:
            api.materialize_task(partition, again=False, tags={BUILD_TAG: ledger.build})
    ledger.update_state(lambda s: woken(s, view, busy))
    api.terminate([r.id for r in dead], now=True)


def woken(state: BuildState, view: BuildView, busy: set[str]) -> BuildState:
    """`state` running again; `busy` are the partitions whose run is alive. A run key is never launched twice, hence the attempts."""
    if state.phase is not BuildPhase.PAUSED:
        return state
    attempts = dict(state.attempts)
    for i in view.iterations:
        # One that has failed gets a new attempt even while its run still lives, with other tasks of it at work: that run
        # never comes back to what failed, and its end would pause the build again. Each task is worked on by one only.
        if i.status is IterationStatus.FAILED or (i.status is IterationStatus.OPEN and str(i.key) not in busy):
            attempts[i.key.short] = attempts.get(i.key.short, 1) + 1
    if view.build not in busy:
        finalization = f"finalize.{view.finalize_attempt + 1:03d}"
        attempts[finalization] = attempts.get(finalization, 1) + 1
    return state.moved(BuildPhase.RUNNING).model_copy(update={"attempts": attempts})


def _is_dead(home: Home, run: ActiveRun) -> bool:
    """Dagster thinks that it runs, and its process is gone."""
    started = run.status in ("STARTED", "CANCELING")
    return started and leases.known(home, run.id) and leases.holder(home, run.id) is None


def _let_runs_end(build: str, api: DagsterApi) -> None:
    deadline = time.monotonic() + _CANCELING_SECONDS
    while any(r.status == "CANCELING" for r in runs_of(api, build)) and time.monotonic() < deadline:
        time.sleep(0.3)


def _raise_budget(ledger: BuildLedger, max_tokens: str) -> None:
    given = settings.resolve({}, {"max_tokens_per_build": max_tokens}, {}, None, None)
    request = ledger.request()
    changed = request.settings.model_copy(update={"max_tokens_per_build": given.settings.max_tokens_per_build})
    if ledger.state().phase is not BuildPhase.PAUSED:
        raise WrongUse(f"{request.build} is under way; its budget can be changed while it is paused")
    ledger.save_request(
        BuildRequest.model_validate({**dict(request), "settings": changed, "origins": request.origins | given.origins})
    )
