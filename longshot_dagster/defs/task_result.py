"""The asset `task_result`: one partition per task, its audit record, and a way to run one task again by hand."""

from collections.abc import Callable
from typing import Literal

import dagster as dg
from pydantic import Field

from longshot_dagster.core.errors import LongshotError, WrongUse
from longshot_dagster.core.ids import parse_task_partition
from longshot_dagster.core.landing_records import LANDING_TRANSITIONS, LandingOutcome, LandingState
from longshot_dagster.core.models import (
    MAX_LINE,
    Handoff,
    HandoffStatus,
    Task,
)
from longshot_dagster.defs import partitions
from longshot_dagster.defs.executor import cancellation
from longshot_dagster.defs.metadata import task_metadata_from
from longshot_dagster.defs.pausing import plainly
from longshot_dagster.defs.resources import BuildTools, LongshotResource
from longshot_dagster.defs.task_materialization import TASK_RESULT, UPSTREAM

Deed = Literal["work", "land", "report"]


class TaskResultConfig(dg.Config):
    """How far a task is repeated."""

    again: bool = Field(
        default=False,
        description=(
            "Set the task's earlier work aside and give it to a new worker, which costs tokens. "
            "Without it, finished work is only landed or reported again. A task that has landed is never worked on again."
        ),
    )


@dg.asset(
    key=TASK_RESULT,
    partitions_def=partitions.tasks,
    group_name="longshot",
    deps=[dg.AssetDep(name, partition_mapping=dg.AllPartitionMapping()) for name in UPSTREAM],
    kinds={"agent"},
    pool=partitions.SANDBOX_POOL,
)
def task_result(
    context: dg.AssetExecutionContext, config: TaskResultConfig, longshot: LongshotResource
) -> dg.MaterializeResult:
    """One task's record: status, diff, branch, commits, tokens, checks, concerns. Iterations write it.

    Materialize a partition by hand to work on a task that was never handed in, or to land again one that did not land;
    a task that has landed is only reported anew. Materializing the missing partitions repairs a build; one that had
    finished is then finalized anew.
    """
    build, task_id = parse_task_partition(context.partition_key)
    with plainly():
        tools = longshot.tools(build)
        task, landing = redo(tools, task_id, config.again, cancellation(context.run.run_id).is_set)
        handoff = tools.ledger.handoff(task_id)
        if handoff is None:
            raise WrongUse(f"task {task_id} went to a subplanner; its handoff comes once its parts are done")
    return dg.MaterializeResult(metadata=task_metadata_from(tools.ledger, task, handoff, landing))


def deed(handoff: Handoff | None, landing: LandingOutcome | None, again: bool) -> Deed:
    """What materializing a task by hand does, from how far it has come."""
    if handoff is None:
        return "work"
    state = landing.state if landing else None
    if state is LandingState.QUEUED:  # it may be on the branch already, which only its lander finds out
        return "land"
    if state in (LandingState.LANDED, LandingState.SUPERSEDED) or (state is LandingState.UNDONE and not again):
        return "report"
    if state is LandingState.NOOP:  # an empty diff is no answer from a worker that says it failed
        return "work" if again and handoff.status is not HandoffStatus.COMPLETE else "report"
    return "work" if again else "land"


def redo(
    tools: BuildTools, task_id: str, again: bool, cancelled: Callable[[], bool]
) -> tuple[Task, LandingOutcome | None]:
    """Work on the task, land it or leave it, as `deed` says; idempotent unless `again`."""
    ledger = tools.ledger
    task = work_form(tools, task_id)
    landing = ledger.landing(task_id)
    what = deed(ledger.handoff(task_id), landing, again)
    if task.delegated or what == "report":
        return task, landing
    if what == "work":
        # What an interrupted worker has done is no finished work: the new one goes on from there.
        aside = ledger.forget_work(task_id) if ledger.handoff(task_id) else None
        try:
            ledger.reopen()
            tools.worker.run(task, cancelled)
        except BaseException:
            if aside is not None:
                ledger.recall_work(task_id, aside)  # its iteration has ended: nobody else would ever hand it in
            raise
    else:
        requeue(tools, task_id)
    ledger.reopen()  # again after work: whatever was finalizing the build may have ended it meanwhile
    try:
        return task, tools.landing.land(task)
    except LongshotError as e:
        if landing is not None and landing.settled:
            withhold(tools, task_id, f"landing it again failed: {e}")
        raise


def withhold(tools: BuildTools, task_id: str, reason: str) -> None:
    """Settle a task that is queued and that no iteration lands any more; the build would wait for it without end."""
    with tools.ledger.lock("landing"):
        landing = tools.ledger.landing(task_id)
        if landing is not None and not landing.settled:
            tools.ledger.save_landing(landing.moved(LandingState.WITHHELD, tools.clock.now(), reason=reason[:MAX_LINE]))


def requeue(tools: BuildTools, task_id: str) -> None:
    """A conflict or a withheld branch is looked at anew: main, or the reason it was withheld for, may have changed."""
    with tools.ledger.lock("landing"):
        landing = tools.ledger.landing(task_id)
        if landing is not None and LandingState.QUEUED in LANDING_TRANSITIONS[landing.state]:
            tools.ledger.save_landing(landing.moved(LandingState.QUEUED, tools.clock.now()))


def work_form(tools: BuildTools, task_id: str) -> Task:
    """The task as some iteration gave it to a worker; a delegated one that no worker got, as it was planned."""
    ledger = tools.ledger
    for key in ledger.iterations():
        plan = ledger.plan(key)
        if found := next((t for t in plan.dispatched if t.id == task_id), None) if plan else None:
            return found
    return ledger.existing_task(task_id)
