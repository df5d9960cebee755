"""What opens work: every tick asks the pure rules of `core/lifecycle.py` about each unfinished build and does what they say.

A tick may be repeated or lost at any point: run keys make a launch happen once, and the ledger says what is due.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TypeGuard

import dagster as dg

from longshot_dagster.adapters.host import leases
from longshot_dagster.adapters.landing.shared_main import SharedMain, view_beside_others
from longshot_dagster.adapters.ledger.ledger import BuildLedger
from longshot_dagster.core.clock import Clock, SystemClock
from longshot_dagster.core.errors import LedgerError, WrongUse
from longshot_dagster.core.ids import FIX, ROOT
from longshot_dagster.core.lifecycle import (
    BuildView,
    CloseParent,
    Finalize,
    RunIteration,
    Step,
    fixable_sweep,
    next_steps,
)
from longshot_dagster.core.models import BuildPhase
from longshot_dagster.core.settings import Settings
from longshot_dagster.defs import partitions
from longshot_dagster.defs.ended_runs import note_end, undecided
from longshot_dagster.defs.finalize import finalize_build
from longshot_dagster.defs.iteration import planning_iteration
from longshot_dagster.defs.pausing import finalization_name, reason_of
from longshot_dagster.defs.resources import LongshotResource
from longshot_dagster.defs.task_materialization import close_parent
from longshot_dagster.defs.ticks import instance_of, longshot_of

CLOCK: Clock = SystemClock()
RUNNING = dg.DefaultSensorStatus.RUNNING
_LOST_RUNS = "Marks runs failed whose process has died without a word (its lease is free), so that they are retried."
_FAILED_RUNS = "Pauses a build, with the reason, when a run of it was cancelled or has failed and is not retried."
_FINALIZE = "Finalizes a build whose planners are done and whose tasks are settled."
_RECONCILE = "Opens a fix iteration for conflicts and for a main that has become red; one at a time per build."
_ORPHAN_SANDBOXES = (
    "Ends sandboxes that nobody answers for: of builds that are over, of tasks that are handed in, of dead sweeps. What a "
    "killed worker of an unfinished build did is left for whoever goes on with it (`longshot sandboxes --reap` keeps it)."
)
_REPLAN = (
    "Opens the next iteration of a planner that has enough new handoffs, and hands in a subplanner's task once done."
)
Due = tuple[BuildLedger, Step]

_QUEUE_PRIORITY = {ROOT: "2", FIX: "0"}  # of runs that queue; a subplanner's are between: who plans gives others work
_ASK_AGAIN_S = 60  # a lost launch is asked for again after this; Dagster drops what it has launched already
_LEASE_TAKEN_S = 5  # a run that has just started may not hold its lease yet
_OVERLAP_S = 10  # a run's end becomes visible a little after its time stamp


def health_check_interval() -> int:
    """HEALTH_CHECK_INTERVAL of this installation; its default when the settings cannot be read (`start_build` says why)."""
    from longshot_dagster.adapters.settings import launched

    try:
        return max(1, launched({}, {}).settings.health_check_interval)
    except WrongUse:
        return int(Settings.model_fields["health_check_interval"].default)


@dg.sensor(job=planning_iteration, minimum_interval_seconds=1, default_status=RUNNING, description=_REPLAN)
def replan(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    longshot = longshot_of(context)
    due = list(_due(context, longshot, lambda s: isinstance(s, CloseParent) or _is_iteration(s, fix=False)))
    events = [
        event
        for ledger, step in due
        if isinstance(step, CloseParent) and (event := close_parent(longshot.tools(ledger.build), step.task))
    ]
    return _iterations(context, due, events)


@dg.sensor(
    job=planning_iteration,
    minimum_interval_seconds=health_check_interval(),
    default_status=RUNNING,
    description=_RECONCILE,
)
def reconcile(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    longshot = longshot_of(context)
    return _iterations(context, list(_due(context, longshot, lambda s: _is_iteration(s, fix=True))), [])


@dg.sensor(job=finalize_build, minimum_interval_seconds=1, default_status=RUNNING, description=_FINALIZE)
def finalize(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    longshot = longshot_of(context)
    due = [(x, s) for x, s in _due(context, longshot, lambda s: isinstance(s, Finalize)) if isinstance(s, Finalize)]
    requests = [finalization_request(ledger, step) for ledger, step in due]
    add = partitions.builds.build_add_request([ledger.build for ledger, _ in due])
    return _result(context, requests, [add] if due else [], [])


@dg.sensor(minimum_interval_seconds=1, default_status=RUNNING, description=_FAILED_RUNS)
def failed_runs(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    longshot, instance, now = longshot_of(context), instance_of(context), CLOCK.now()
    # A clock that was set back leaves ends behind the cursor, and some in the future: then all are looked at, once.
    seen = float(context.cursor or 0)
    was_set_back = seen > now
    since = newest = 0.0 if was_set_back else seen
    ended = dg.RunsFilter(
        statuses=[dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED],
        updated_after=datetime.fromtimestamp(max(0.0, since - _OVERLAP_S), UTC),
        updated_before=None if was_set_back else datetime.fromtimestamp(now + _OVERLAP_S, UTC),
    )
    page = None if was_set_back else 500
    for record in instance.get_run_records(ended, limit=page, order_by="update_timestamp", ascending=True):
        if undecided(record, now):
            newest = seen if was_set_back else newest
            break
        note_end(instance, longshot.ledger(), record.dagster_run)
        newest = min(now, max(newest, record.update_timestamp.timestamp()))
    return dg.SensorResult(cursor=str(newest))


@dg.sensor(minimum_interval_seconds=10, default_status=RUNNING, description=_LOST_RUNS)
def lost_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    longshot, instance = longshot_of(context), instance_of(context)
    lost = list(_without_process(instance, longshot))
    for run in lost:
        if run.status is dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run, message="The run's process died while it was being cancelled.")
        else:
            instance.report_run_failed(run, message="The run's process died without a word.")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    return dg.SkipReason(f"{len(lost)} runs had lost their process")


@dg.sensor(minimum_interval_seconds=60, default_status=RUNNING, description=_ORPHAN_SANDBOXES)
def orphan_sandboxes(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    from longshot_dagster.adapters.workers.orphans import (
        Orphanage,
    )  # the worker's and the repository's modules, which no tick needs

    orphanage = Orphanage(longshot_of(context).installation(), CLOCK)
    reaped = orphanage.reap(orphanage.found(), keep=False)
    ended = f"{reaped.ended} sandboxes that nobody answered for were ended"
    return dg.SkipReason("; ".join([ended, *orphanage.unreachable, *reaped.left])[:2_000])


ALL = [replan, reconcile, finalize, failed_runs, lost_runs, orphan_sandboxes]


def iteration_request(ledger: BuildLedger, step: RunIteration) -> dg.RunRequest:
    return dg.RunRequest(
        run_key=step.run_key,
        partition_key=str(step.key),
        tags={
            partitions.BUILD_TAG: ledger.build,
            partitions.ATTEMPT_TAG: str(step.attempt),
            partitions.PRIORITY_TAG: _QUEUE_PRIORITY.get(step.key.planner, "1"),
            **partitions.RETRY_TAGS,
        },
    )


def finalization_request(ledger: BuildLedger, step: Finalize) -> dg.RunRequest:
    name = finalization_name(step.number)
    attempt = ledger.state().attempts.get(name, 1)
    return dg.RunRequest(
        run_key=f"{ledger.build}#{name}.{attempt}",
        partition_key=ledger.build,
        tags={
            partitions.BUILD_TAG: ledger.build,
            partitions.FINALIZATION_TAG: str(step.number),
            partitions.ATTEMPT_TAG: str(attempt),
            **partitions.RETRY_TAGS,
        },
    )


def _due(
    context: dg.SensorEvaluationContext, longshot: LongshotResource, wanted: Callable[[Step], bool]
) -> Iterator[Due]:
    """What is due in every build; while one is being finalized, nothing else of it starts."""
    for ledger in longshot.ledger().unfinished():
        try:
            view = view_beside_others(longshot.installation(), ledger)
        except (LedgerError, WrongUse) as e:
            context.log.error(f"{ledger.build}: {reason_of(e)}")
            continue
        for step in next_steps(view):
            startable = view.phase is not BuildPhase.FINALIZING or isinstance(step, Finalize)
            if wanted(step) and startable and _is_ours(longshot, ledger, view, step):
                yield ledger, step


def _is_ours(longshot: LongshotResource, ledger: BuildLedger, view: BuildView, step: Step) -> bool:
    """False for a new fix iteration whose red main another build has just taken up; taken up here when it is True."""
    known = {i.key for i in view.iterations}
    if not _is_iteration(step, fix=True) or step.key in known or fixable_sweep(view) is None:
        return True
    return not SharedMain(longshot.installation(), ledger.request()).claim_mending(ledger, step.key)


def _is_iteration(step: Step, *, fix: bool) -> TypeGuard[RunIteration]:
    return isinstance(step, RunIteration) and (step.key.planner == FIX) is fix


def _iterations(
    context: dg.SensorEvaluationContext, due: Sequence[Due], events: Sequence[dg.AssetMaterialization]
) -> dg.SensorResult:
    """Note every due iteration in the ledger, then ask for its partition and its run."""
    runs = [(ledger, step) for ledger, step in due if isinstance(step, RunIteration)]
    for ledger, step in runs:
        ledger.open_iteration(step.key)
    add = partitions.iterations.build_add_request([str(step.key) for _, step in runs])
    return _result(context, [iteration_request(*run) for run in runs], [add] if runs else [], events)


def _result(
    context: dg.SensorEvaluationContext,
    due: Iterable[dg.RunRequest],
    add: list[dg.AddDynamicPartitionsRequest],
    events: Sequence[dg.AssetMaterialization],
) -> dg.SensorResult:
    """Ask for what was not asked for lately: an iteration stays due while it runs, and a tick should stay cheap."""
    asked: dict[str, float] = json.loads(context.cursor or "{}")
    now = CLOCK.now()
    requests = {str(r.run_key): r for r in due}
    new = [r for key, r in requests.items() if not 0 <= now - asked.get(key, 0.0) <= _ASK_AGAIN_S]
    noted = {key: asked.get(key, now) if requests[key] not in new else now for key in requests}
    if new:
        instance_of(context)  # which Dagster is about to ask for their partitions
    return dg.SensorResult(
        run_requests=new,
        dynamic_partitions_requests=add if new else [],
        asset_events=list(events),
        cursor=json.dumps(noted),
    )


def _without_process(instance: dg.DagsterInstance, longshot: LongshotResource) -> Iterator[dg.DagsterRun]:
    home = longshot.installation()
    status = dg.DagsterRunStatus
    # Starting, too: a fork of the run starter holds its lease from its first moment.
    under_way = dg.RunsFilter(statuses=[status.STARTING, status.STARTED, status.CANCELING])
    for record in instance.get_run_records(under_way):
        run = record.dagster_run
        young = 0 <= CLOCK.now() - record.update_timestamp.timestamp() < _LEASE_TAKEN_S
        if young or not leases.known(home, run.run_id) or leases.holder(home, run.run_id) is not None:
            continue
        now = instance.get_run_by_id(run.run_id)  # it may have ended properly just before it let go of its lease
        if now is not None and now.status is run.status:
            yield now
