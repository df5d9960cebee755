"""`longshot cancel BUILD|TASK` and `longshot retry TASK`: what is under way is stopped, what did not land is done anew."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

import click

from longshot_dagster.adapters import settings
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.ledger import BuildLedger, Ledger
from longshot_dagster.adapters.stack import stack
from longshot_dagster.adapters.stack.dagster_api import ENDED, DagsterApi
from longshot_dagster.cli import serving
from longshot_dagster.cli.following import BUILD_TAG, end_runs, interruptible, kept
from longshot_dagster.cli.naming import build_or_task, named_task
from longshot_dagster.cli.terminal import say, waiting
from longshot_dagster.core.display import one_line
from longshot_dagster.core.ending import runs_end_s
from longshot_dagster.core.errors import LongshotError, WrongUse
from longshot_dagster.core.ids import IterationKey, task_partition
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import (
    BuildPhase,
    BuildState,
    Handoff,
    Task,
    Verdict,
)
from longshot_dagster.core.report import EXIT_BY_VERDICT, EXIT_INTERRUPTED
from longshot_dagster.core.settings import RungName
from longshot_dagster.core.steering import landed_well, why_not_cancel, why_not_retry
from longshot_dagster.core.working import BY_A_PERSON

_HAND_IN_SECONDS = 20.0
_LOOK_SECONDS = 0.3
_NOT_LANDED = EXIT_BY_VERDICT[Verdict.LEFTOVERS]


def cancel(name: str, as_json: bool) -> int:
    """0 once the build stands still, or the task is marked. Raises WrongUse when there is nothing to cancel."""
    home = settings.home(os.environ, settings.default_dotenv())
    builds = Ledger(home.builds)
    build, task = build_or_task(builds, name)
    ledger = builds.existing(build)
    return _cancel_build(home, ledger, as_json) if task is None else _cancel_task(ledger, task, as_json)


def retry(task: str, detach: bool, as_json: bool) -> int:
    """0 when the task has landed or had nothing to land (or, with `detach`, is begun), 3 when not. Raises WrongUse."""
    dotenv = settings.default_dotenv()
    home = settings.home(os.environ, dotenv)
    builds = Ledger(home.builds)
    build, name = named_task(builds, task)
    ledger = builds.existing(build)
    _must_be_open_to_a_retry(ledger, name)
    endpoints = settings.endpoints(os.environ, dotenv)
    with interruptible():
        with _quiet(as_json):
            serving.model_reachable(home, endpoints)
            api = stack.api(home, serving.in_background(home, dotenv, endpoints))
        return retry_in(api, ledger, name, detach, as_json)


# --- cancel ----------------------------------------------------------------------------------------------------------


def _cancel_build(home: Home, ledger: BuildLedger, as_json: bool) -> int:
    build, phase = ledger.build, ledger.state().phase
    if phase is BuildPhase.FINISHED:
        raise WrongUse(
            f"{build} has finished; there is nothing to cancel (longshot undo {build} takes back what landed)"
        )
    ledger.update_state(_cancelled_by_hand)
    if info := stack.running(home):
        end_runs(build, stack.api(home, info), ledger.request().settings.max_workers)
    if as_json:
        state = ledger.state()
        _print({"build": build, "phase": state.phase.value, "reason": state.reason, "kept": ledger.kept_work()})
        return 0
    say(f"{build} was paused already" if phase is BuildPhase.PAUSED else f"{build} is cancelled")
    say(f"{kept(ledger)}; to go on: longshot resume {build}")
    return 0


def _cancelled_by_hand(state: BuildState) -> BuildState:
    """Paused; what it had been paused for already counts no more: nobody waits for that to pass."""
    return state if state.phase is BuildPhase.FINISHED else state.moved(BuildPhase.PAUSED, "cancelled by hand")


def _cancel_task(ledger: BuildLedger, name: str, as_json: bool) -> int:
    tasks = _for_workers(ledger, ledger.existing_task(name))
    if not tasks:
        raise WrongUse(
            f"{name} is its subplanner's, and no part of it is left to cancel; longshot status {ledger.build}"
        )
    phase = ledger.state().phase
    if tasks == [name] and (refusal := why_not_cancel(ledger.build, name, phase, *_documents(ledger, name))):
        raise WrongUse(refusal)
    for task in tasks:
        ledger.request_cancel(task, time.time())
    with waiting("its worker is stopped"):
        _await_handoffs(ledger, tasks)
    if as_json:
        _print({"build": ledger.build, "tasks": [_cancelled(ledger, t) for t in tasks]})
        return 0
    for task in tasks:
        say(f"{task} {_what_becomes_of(ledger, task)}")
    return 0


def _for_workers(ledger: BuildLedger, task: Task) -> list[str]:
    """The task itself, or the unfinished parts of one that a subplanner has."""
    if not task.delegated or task.id in _worked(ledger):
        return [task.id]
    worked = _worked(ledger)
    parts = [t for t in ledger.task_ids() if t.startswith(f"{task.id}-") and t in worked]
    return [t for t in parts if ledger.handoff(t) is None]


def _worked(ledger: BuildLedger) -> dict[str, IterationKey]:
    """Tasks that an iteration gives to workers, and which one does."""
    plans = {key: ledger.plan(key) for key in ledger.iterations()}
    return {t.id: key for key, plan in plans.items() if plan for t in plan.dispatched}


def _await_handoffs(ledger: BuildLedger, tasks: Sequence[str]) -> None:
    """Until nobody is at any of them; who is at one notices within a second and hands in."""
    deadline = time.monotonic() + _HAND_IN_SECONDS
    while any(ledger.handoff(t) is None and ledger.at_work(t) for t in tasks) and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)


def _what_becomes_of(ledger: BuildLedger, task: str) -> str:
    handoff = ledger.handoff(task)
    if handoff is not None and BY_A_PERSON not in handoff.concerns:
        return f"was handed in as {handoff.status.value} at that very moment; longshot status {ledger.build} shows it"
    if handoff is not None:
        return f"is cancelled, handed in as {handoff.status.value}{_size(handoff)}; nothing of it lands"
    if ledger.state().under_way:
        return f"is cancelled, and handed in as soon as a slot is free{_size(ledger.interrupted(task))}; nothing of it lands"
    return f"is cancelled; longshot resume {ledger.build} hands it in without working on it"


def _size(handoff: Handoff | None) -> str:
    if handoff is None or not handoff.files_changed:
        return ""
    files = len(handoff.files_changed)
    return f" with {files} file{'s' if files > 1 else ''} changed"


def _cancelled(ledger: BuildLedger, task: str) -> dict[str, object]:
    handoff = ledger.handoff(task)
    return {
        "task": task,
        "handoff": handoff.status.value if handoff else None,
        "files_changed": handoff.files_changed if handoff else [],
    }


def _documents(ledger: BuildLedger, task: str) -> tuple[Handoff | None, LandingOutcome | None]:
    return ledger.handoff(task), ledger.landing(task)


# --- retry -----------------------------------------------------------------------------------------------------------


def retry_in(api: DagsterApi, ledger: BuildLedger, name: str, detach: bool, as_json: bool) -> int:
    """`retry` in the running stack behind `api`."""
    finished = ledger.state().phase is BuildPhase.FINISHED
    run = api.materialize_task(task_partition(ledger.build, name), again=True, tags={BUILD_TAG: ledger.build})
    if detach:
        return _begun(ledger, name, run, as_json)
    with _quiet(as_json):
        say(f"{name} goes to a new worker")
        try:
            with waiting(f"{name} waits for a slot, or its worker is at it ..."):
                _await(api, run)
        except KeyboardInterrupt:
            return _given_up(api, ledger, name, run)
    return _retried(api, ledger, name, run, finished, as_json)


def _must_be_open_to_a_retry(ledger: BuildLedger, name: str) -> None:
    """Raises WrongUse with the reason why the task is not to be worked on again."""
    worked = _worked(ledger)
    if name not in worked:
        parts = [t for t in worked if t.startswith(f"{name}-") and not landed_well(*_documents(ledger, t))]
        named = f"; parts that did not land: {', '.join(parts[:10])}" if parts else ""
        raise WrongUse(f"{name} is its subplanner's, no worker's{named}")
    refusal = why_not_retry(
        ledger.build,
        name,
        ledger.state().phase,
        *_documents(ledger, name),
        at_work=ledger.at_work(name),
        expected=ledger.metrics(worked[name]) is None,
        redone_by=_redone_by(ledger, name),
        fixed=RungName.FIX in ledger.request().settings.rungs,
    )
    if refusal:
        raise WrongUse(refusal)


def _redone_by(ledger: BuildLedger, name: str) -> str:
    """A task that is to take its place and is not settled yet; empty when there is none."""
    plans = (ledger.plan(key) for key in ledger.iterations())
    redoing = [t.id for plan in plans if plan for t in plan.dispatched if name in t.replaces]
    landings = {t: ledger.landing(t) for t in redoing}
    return next((t for t, landing in landings.items() if landing is None or not landing.settled), "")


def _await(api: DagsterApi, run: str) -> None:
    while api.status(run) not in ENDED:
        time.sleep(_LOOK_SECONDS)


def _begun(ledger: BuildLedger, name: str, run: str, as_json: bool) -> int:
    if as_json:
        _print({"build": ledger.build, "task": name, "run": run})
    else:
        say(f"{name} goes to a new worker; to see what it does: longshot logs {ledger.build} --task {name} --follow")
    return 0


def _given_up(api: DagsterApi, ledger: BuildLedger, name: str, run: str) -> int:
    """Ctrl-C: the task is again what it was before."""
    with contextlib.suppress(KeyboardInterrupt, LongshotError):
        api.terminate([run])
        deadline = time.monotonic() + runs_end_s(1)
        while api.status(run) not in ENDED and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
    say(f"interrupted; {name} is as it was; to try again: longshot retry {task_partition(ledger.build, name)}")
    return EXIT_INTERRUPTED


def _retried(api: DagsterApi, ledger: BuildLedger, name: str, run: str, finished: bool, as_json: bool) -> int:
    handoff, landing = _documents(ledger, name)
    succeeded = api.status(run) == "SUCCESS"
    well = succeeded and landed_well(handoff, landing)
    reason = (landing.reason if landing else "") if succeeded else api.failure(run)[1]
    if as_json:
        _print(
            {
                "build": ledger.build,
                "task": name,
                "run": run,
                "handoff": handoff.status.value if handoff else None,
                "landing": landing.state.value if landing else None,
                "commits": list(landing.commits) if landing else [],
                "reason": reason,
            }
        )
        return 0 if well else _NOT_LANDED
    if not succeeded:
        say(
            f"{name} was not worked on to its end, and is as it was: {one_line(reason, 500) or 'the UI shows run ' + run}"
        )
    elif handoff and landing:
        say(one_line(f"{name} handed in {handoff.status.value}: {handoff.summary}", 300))
        had = "had nothing to land" if landing.state is LandingState.NOOP else landing.state.value
        say(one_line(f"{name} {had}{': ' + reason if reason else ''}", 500))
    if finished:
        say(f"{ledger.build} was open again for this, and is finalized anew; to see how: longshot watch {ledger.build}")
    return 0 if well else _NOT_LANDED


# --- output ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _quiet(as_json: bool) -> Iterator[None]:
    """What is said on the way goes to stderr where stdout is one document."""
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield


def _print(document: Mapping[str, object]) -> None:
    click.echo(json.dumps(document, indent=1))
