"""What the end of a run means for its build: nothing while Dagster retries it, a pause with its reason otherwise."""

import dagster as dg

from longshot_dagster.adapters.ledger.ledger import BuildLedger, Ledger
from longshot_dagster.core.display import one_line
from longshot_dagster.core.errors import LedgerError, WrongUse
from longshot_dagster.core.ids import parse_iteration_key, parse_task_partition
from longshot_dagster.core.models import BuildPhase, Plan
from longshot_dagster.core.steering import orphans
from longshot_dagster.defs import partitions
from longshot_dagster.defs.pausing import cancelled_reason, fail_finalization, fail_iteration, pause

_WILL_RETRY = "dagster/will_retry"
_PARTITION = "dagster/partition"
_TAGGED_WITHIN_S = 5.0


def undecided(record: dg.RunRecord, now: float) -> bool:
    """Dagster writes the status first and whether it retries a moment later."""
    run = record.dagster_run
    tagged = _WILL_RETRY in run.tags or run.status is not dg.DagsterRunStatus.FAILURE
    return not tagged and 0 <= now - record.update_timestamp.timestamp() < _TAGGED_WITHIN_S


def note_end(instance: dg.DagsterInstance, builds: Ledger, run: dg.DagsterRun) -> None:
    """Record the failed or cancelled attempt and pause its build; idempotent, and blind to attempts that are history.

    Runs that no sensor asked for (launched by hand, so without our tags) concern nobody but who launched them; except for
    a retry that was killed at its task, which nothing else would ever hand in.
    """
    build, attempt = run.tags.get(partitions.BUILD_TAG), run.tags.get(partitions.ATTEMPT_TAG, "")
    if build is None or run.tags.get(_WILL_RETRY) == "true":
        return
    try:
        if not attempt.isdigit():
            _note_end_of_retry(instance, builds.existing(build), run)
            return
        ledger = builds.existing(build)
        if ledger.state().phase is BuildPhase.FINISHED:
            return
        cancelled = run.status is dg.DagsterRunStatus.CANCELED
        reason = cancelled_reason(build) if cancelled else failure_line(instance, run)
        if number := run.tags.get(partitions.FINALIZATION_TAG):
            fail_finalization(ledger, int(number), int(attempt), reason)
        else:
            key = parse_iteration_key(run.tags.get(_PARTITION, ""))
            fail_iteration(ledger, key, int(attempt), "cancelled" if cancelled else "crash", reason)
    except (WrongUse, LedgerError):
        return  # a build whose ledger was removed, or cannot be read: no reason to note no other run's end


def _note_end_of_retry(instance: dg.DagsterInstance, ledger: BuildLedger, run: dg.DagsterRun) -> None:
    """Raises WrongUse for a run that is no task's."""
    partition = run.tags.get(_PARTITION, "")
    _, task = parse_task_partition(partition)
    if not ledger.state().under_way or task not in orphans(ledger.view(), _plans(ledger)):
        return
    (newest,) = instance.get_runs(dg.RunsFilter(tags={_PARTITION: partition}), limit=1)
    if newest.run_id == run.run_id:
        pause(ledger, f"the retry of {task} was cut short; longshot resume {ledger.build}")


def _plans(ledger: BuildLedger) -> list[Plan]:
    return [plan for key in ledger.iterations() if (plan := ledger.plan(key))]


def failure_line(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    """The innermost error of the first failed step, else of the run, in one line."""
    for kind in (dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE):
        for entry in instance.all_logs(run.run_id, of_type=kind):
            event = entry.dagster_event
            failed = event.step_failure_data if event and kind is dg.DagsterEventType.STEP_FAILURE else None
            error = failed.error if failed else None
            while error is not None and error.cause is not None:
                error = error.cause
            text = error.message if error else (event.message if event else None) or entry.user_message
            return one_line(f"{run.job_name} failed: {text}", 500)
    return f"{run.job_name} failed without saying why; its log is in the UI"
