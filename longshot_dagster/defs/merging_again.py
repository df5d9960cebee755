"""Conflicts that main has meanwhile resolved: they land as they are, before a fix is planned and before one starts."""

import contextlib

import dagster as dg

from longshot_dagster.core.errors import RepositoryError
from longshot_dagster.core.ids import FIX, IterationKey
from longshot_dagster.core.landing_records import LandingState
from longshot_dagster.core.lifecycle import fixable_conflicts
from longshot_dagster.core.models import Handoff, Task, TaskKind
from longshot_dagster.defs.resources import BuildTools
from longshot_dagster.defs.task_materialization import report_task


def merge_again(context: dg.OpExecutionContext, tools: BuildTools, key: IterationKey) -> None:
    """Before an iteration of fixes is planned: merge once more what conflicts, where main has moved in those files."""
    conflicts = fixable_conflicts(tools.ledger.view()) if key.planner == FIX else ()
    if not conflicts:
        return
    from longshot_dagster.core.planning import MAX_CONFLICT_FIXES

    with contextlib.suppress(RepositoryError):  # they are in conflict as before, and get their fix tasks
        for outcome in tools.landing.look_again(*conflicts[:MAX_CONFLICT_FIXES]):
            if outcome is not None and outcome.state is not LandingState.CONFLICT:
                report_task(context, tools, tools.ledger.existing_task(outcome.task), outcome)


def spared_fix(tools: BuildTools, task: Task) -> Handoff | None:
    """Just before a conflict's fix starts: does what it is to redo merge by now? Then no worker is needed."""
    if task.kind is not TaskKind.CONFLICT_FIX:
        return None
    from longshot_dagster.adapters.landing.second_look import spared

    return spared(tools.ledger, tools.landing.look_again, tools.mirror.fetch, tools.clock, task)
