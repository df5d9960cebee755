"""`longshot resume --repo URL`: builds that were begun elsewhere, listed and brought here from their checkpoints."""

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

from longshot_dagster.adapters import settings
from longshot_dagster.adapters.builds.restoring import Restorable, Restoring, behind
from longshot_dagster.adapters.gateway.gateway_client import Gateway
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.ledger import BuildLedger
from longshot_dagster.adapters.repository.mirror import Mirror
from longshot_dagster.adapters.sandboxes.providers import make_provider
from longshot_dagster.adapters.stack import stack
from longshot_dagster.adapters.stack.dagster_api import ENDED, DagsterApi
from longshot_dagster.cli import serving
from longshot_dagster.cli.asking import ask, served
from longshot_dagster.cli.building import JOB, OP, given_repository
from longshot_dagster.cli.following import BUILD_TAG, PARTITION_TAG
from longshot_dagster.cli.status import table
from longshot_dagster.cli.terminal import say, say_under, waiting
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.display import one_line
from longshot_dagster.core.endpoints import Endpoint
from longshot_dagster.core.errors import LongshotError, TakenOver, WrongUse
from longshot_dagster.core.models import BuildPhase, TargetKind
from longshot_dagster.core.orchestrating import Hold, Orchestrator, named, refusal, seen
from longshot_dagster.core.outlook import Outlook, outlook_facts
from longshot_dagster.core.report import duration

ATTEMPT_TAG = "longshot/attempt"
FINALIZATION_TAG = "longshot/finalization"
_REGISTER_SECONDS = 120.0
_NOTES_SHOWN = 8
_TRIES = 10


def show_builds(repo: str | None, land_on: str | None) -> int:
    """List what the repository holds checkpoints of. Raises WrongUse."""
    dotenv = settings.default_dotenv()
    home = settings.home(os.environ, dotenv)
    resolved = settings.resolve({}, {}, os.environ, dotenv, None)
    try:
        repository, _ = given_repository(repo or resolved.settings.git_repo_url)
    except WrongUse:
        raise WrongUse(
            "no build named; `longshot status` lists those of this installation, longshot resume --repo URL those that a "
            "repository has"
        ) from None
    with waiting("reading its checkpoints ..."):
        found = Restoring(home, repository, resolved, land_on, SystemClock()).builds()
    if not found:
        say("this repository holds no checkpoint of a build")
        return 0
    now = time.time()
    rows = []
    for kept in found:
        driven = kept.driven_by
        where = "-" if driven is None or driven.released else f"{named(driven)}, {seen(driven, now)}"
        age = duration(max(0.0, now - kept.created_at))
        rows.append((kept.build, kept.phase.value, f"{kept.handed_in}/{kept.tasks}", age, where, kept.request))
    table(("build", "state", "handed in", "age", "driven by", "request"), rows)
    say("to go on with one: longshot resume BUILD, with the same --repo")
    return 0


def repository_of(build: str, repo: str | None, configured: str) -> str:
    """Where a build that is not here may have its checkpoint. Raises WrongUse when nothing says so."""
    try:
        return given_repository(repo or configured)[0]
    except WrongUse:
        raise WrongUse(
            f"no build {build!r} here; `longshot status` lists those that are, and --repo URL looks for its checkpoint"
        ) from None


class Arrival:
    """One build on its way into this home."""

    def __init__(self, home: Home, dotenv: Path | None, *, take_over: bool, yes: bool) -> None:
        self._home = home
        self._dotenv = dotenv
        self._take_over = take_over
        self._yes = yes
        self._endpoints: tuple[Endpoint, ...] = ()

    def from_repository(self, build: str, repository: str, land_on: str | None) -> BuildLedger:
        """The ledger of a build that this home has nothing of. Raises WrongUse, also for a no."""
        found, restoring = self._read(build, repository, land_on)
        return self._carried_out(restoring, found, repository, known=False)

    def caught_up(self, ledger: BuildLedger) -> BuildLedger:
        """A build of this home; made again from its checkpoint when another installation has driven it on meanwhile.

        Raises WrongUse while that one still does.
        """
        with waiting("looking at its checkpoint ..."):
            hold, found = behind(self._home, ledger, SystemClock())
        if hold is Hold.OURS or found is None:
            return ledger
        self._check(ledger.build, hold, found)
        target = ledger.request().target
        land_on = target.branch if target.kind is TargetKind.REMOTE else None
        read, restoring = self._read(ledger.build, target.url, land_on)
        return self._carried_out(restoring, read, target.url, known=True)

    # --- steps -------------------------------------------------------------------------------------------------------

    def _read(self, build: str, repository: str, land_on: str | None) -> tuple[Restorable, Restoring]:
        resolved = settings.resolve({}, {}, os.environ, self._dotenv, None)
        restoring = Restoring(self._home, repository, resolved, land_on, SystemClock())
        with waiting("reading its checkpoint ..."):
            found = restoring.read(build)
        self._check(build, found.hold, found.driven_by)
        return found, restoring

    def _check(self, build: str, hold: Hold, found: Orchestrator | None) -> None:
        if found is None or hold in (Hold.OURS, Hold.FREE):
            return
        now = time.time()
        if hold is Hold.HELD and not self._take_over:
            raise WrongUse(refusal(build, found, now))
        say(f"taking {build} over from {named(found)}, last seen {seen(found, now)}")

    def _carried_out(self, restoring: Restoring, found: Restorable, repository: str, *, known: bool) -> BuildLedger:
        ended = found.state is not None and found.state.phase is BuildPhase.FINISHED
        rehearsal = False
        launched: dict[str, int] = {}
        api = None
        if not ended:
            self._show(found, known)
            serving.model_reachable(self._home, self._endpoints)
            rehearsal = bool(Gateway(self._home).status().get("rehearsal", False))
            api = stack.api(self._home, serving.in_background(self._home, self._dotenv, self._endpoints))
            launched = newest_attempts(api, found.request.build)
        with waiting("restoring it ..."):
            found, ledger, notes = self._taken(restoring, found, launched, rehearsal, known)
        for note in notes[:_NOTES_SHOWN]:
            say(one_line(note, 300))
        if len(notes) > _NOTES_SHOWN:
            say(f"and {len(notes) - _NOTES_SHOWN} more of that kind")
        if api is not None:
            with waiting("having Dagster know it ..."):
                _register(api, ledger, repository)
            if known:
                _forget_in_memory(self._home)
        say(f"{ledger.build} is here, restored from its checkpoint {found.commit[:12]}")
        return ledger

    def _taken(
        self, restoring: Restoring, found: Restorable, launched: Mapping[str, int], rehearsal: bool, known: bool
    ) -> tuple[Restorable, BuildLedger, list[str]]:
        """Whoever drives the build still lands meanwhile, so it is read anew until it stood still for that moment."""
        build = found.request.build
        for _ in range(_TRIES):
            with contextlib.suppress(TakenOver):
                return found, *restoring.carry_out(found, launched, rehearsal=rehearsal, keep_request=known)
            found = restoring.read(build)
            if found.hold is Hold.HELD and not self._take_over and found.driven_by is not None:
                raise WrongUse(refusal(build, found.driven_by, time.time()))
        raise LongshotError(f"build {build} was driven on {_TRIES} times while it was taken over; try again")

    def _show(self, found: Restorable, known: bool) -> None:
        """What will happen and what it may cost, by this person's settings; asks like a first build."""
        request = found.request
        self._home.check_room()
        _, note = make_provider(request.settings, request.origins, self._home)
        self._endpoints = settings.endpoints(os.environ, self._dotenv)
        if not self._endpoints:
            Gateway(self._home).ensure()  # one that runs has some
        if self._yes or known:
            return
        mirror = Mirror(self._home, request.target)
        outlook = Outlook(
            request.target,
            request.settings,
            note,
            tuple(e.label for e in self._endpoints) or served(self._home),
            mirror.repo_state(mirror.fetch()).files,
            request.request,
        )
        say(f"build {request.build}, by your settings from here on:")
        facts = [("asked for", one_line(request.request, 300)), ("so far", _so_far(found)), *outlook_facts(outlook)]
        for name, text in facts:
            say_under(f"  {name:<12}", text)
        ask("Go on with it?", "nothing was restored")


def _so_far(found: Restorable) -> str:
    tasks, handed_in = found.count("task.json"), found.count("handoff.json")
    return f"{tasks} tasks planned, {handed_in} handed in, {found.landed} landed"


def newest_attempts(api: DagsterApi, build: str) -> dict[str, int]:
    """Iteration or `finalize.nnn` -> newest attempt that Dagster here has a run of: a run key is never launched twice."""
    found: dict[str, int] = {}
    for run in api.every_run():
        if not run.belongs_to(build):
            continue
        name = _attempted(build, run.tags)
        attempt = run.tags.get(ATTEMPT_TAG, "")
        if name and attempt.isdigit():
            found[name] = max(found.get(name, 0), int(attempt))
    return found


def _attempted(build: str, tags: Mapping[str, str]) -> str:
    number = tags.get(FINALIZATION_TAG, "")
    if number.isdigit():
        return f"finalize.{int(number):03d}"
    return tags.get(PARTITION_TAG, "").removeprefix(f"{build}.")


def _register(api: DagsterApi, ledger: BuildLedger, repository: str) -> None:
    """`start_build` of a build that is there: Dagster gets its partitions and the fleet its limit."""
    request = ledger.request()
    values, origins = settings.as_launch(settings.Resolved(request.settings, dict(request.origins)))
    config = {
        "request": request.request,
        "repository": repository,
        "build": request.build,
        "settings": values,
        "origins": origins,
    }
    run_id = api.launch(JOB, {"ops": {OP: {"config": config}}}, {BUILD_TAG: request.build})
    deadline = time.monotonic() + _REGISTER_SECONDS
    while (status := api.status(run_id)) not in ENDED:
        if time.monotonic() > deadline:
            raise LongshotError(f"Dagster did not take the build up within {_REGISTER_SECONDS:.0f} s; see run {run_id}")
        time.sleep(0.3)
    if status != "SUCCESS":
        raise LongshotError(api.failure(run_id)[1] or f"Dagster did not take the build up; see run {run_id}")


def _forget_in_memory(home: Home) -> None:
    """Documents that never change are kept in the code server's memory, and some of this build's now have other words."""
    import signal

    info = stack.running(home)
    if info and (pid := info.children.get("code server")):
        os.kill(pid, signal.SIGKILL)  # the supervisor starts it again
