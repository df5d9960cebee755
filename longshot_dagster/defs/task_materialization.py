"""The record of a task under the asset `task_result`, written by whichever run has worked on it or landed it."""

import dagster as dg

from longshot_dagster.core import ids
from longshot_dagster.core.display import one_line
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import Handoff, Task
from longshot_dagster.defs.metadata import Metadata, task_metadata_from
from longshot_dagster.defs.resources import BuildTools

TASK_RESULT = dg.AssetKey("task_result")
UPSTREAM = ("repo_state", "plan")

# A record of finished work is never out of date. Dagster would call it "Unsynced" whenever an iteration, of any build,
# materializes one of its upstream assets, and offer to do the work again; so it is told that it has seen them all.
_ALWAYS_IN_SYNC = {
    "dagster/code_version": "record",
    **{f"dagster/input_data_version/{name}": "record" for name in UPSTREAM},
    **{f"dagster/input_event_pointer/{name}": str(2**62) for name in UPSTREAM},
}


def materialization(build: str, task: Task, handoff: Handoff, metadata: Metadata) -> dg.AssetMaterialization:
    return dg.AssetMaterialization(
        asset_key=TASK_RESULT,
        partition=ids.task_partition(build, task.id),
        description=one_line(handoff.summary, 300),
        metadata=metadata,
        tags=_ALWAYS_IN_SYNC,
    )


def report_task(context: dg.OpExecutionContext, tools: BuildTools, task: Task, landing: LandingOutcome | None) -> None:
    """Log the task's record as an event of the current run, and anew the records of tasks that its landing superseded.

    A conflict's fix that had nothing to do has none, but what it was to redo has landed meanwhile.
    """
    _log(context, tools, task, landing)
    idle = landing is not None and landing.state is LandingState.NOOP
    for name in task.replaces:
        replaced, outcome = tools.ledger.task(name), tools.ledger.landing(name)
        if replaced is not None and outcome is not None and (idle or outcome.superseded_by == task.id):
            _log(context, tools, replaced, outcome)


def _log(context: dg.OpExecutionContext, tools: BuildTools, task: Task, landing: LandingOutcome | None) -> None:
    handoff = tools.ledger.handoff(task.id)
    if handoff is not None:
        found = task_metadata_from(tools.ledger, task, handoff, landing)
        context.log_event(materialization(tools.ledger.build, task, handoff, found))


def close_parent(tools: BuildTools, task_id: str) -> dg.AssetMaterialization | None:
    """Hand in a delegated task from its parts' handoffs; None when that has been done."""
    from longshot_dagster.core.planning import aggregate

    ledger = tools.ledger
    if ledger.handoff(task_id) is not None:
        return None
    parent = ledger.existing_task(task_id)
    parts = [t for t in map(ledger.existing_task, ledger.task_ids()) if t.planner == task_id and t.id != task_id]
    handoffs = [h for t in parts if (h := ledger.handoff(t.id))]
    handoff = aggregate(parent, handoffs, [o for t in parts if (o := ledger.landing(t.id))])
    ledger.save_handoff(handoff)
    return materialization(ledger.build, parent, handoff, task_metadata_from(ledger, parent, handoff, None))
