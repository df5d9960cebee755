"""The job `record_undo`: what the UI shows of tasks and of their build's report, recorded anew after an undo."""

import dagster as dg
from pydantic import Field

from longshot_dagster.defs import partitions
from longshot_dagster.defs.executor import threaded_executor
from longshot_dagster.defs.finalize import report_record
from longshot_dagster.defs.pausing import plainly
from longshot_dagster.defs.resources import LongshotResource
from longshot_dagster.defs.task_materialization import report_task


class UndoneTasks(dg.Config):
    """What `longshot undo` has taken back."""

    build: str = Field(description="name of the build")
    tasks: list[str] = Field(description="its tasks whose record is to be written anew")


@dg.op(name="record_undo")
def record_tasks(context: dg.OpExecutionContext, config: UndoneTasks, longshot: LongshotResource) -> None:
    """Log the records of tasks and report as the ledger has them now; nothing is worked on and nothing lands."""
    with plainly():
        tools = longshot.tools(config.build)
        for name in config.tasks:
            report_task(context, tools, tools.ledger.existing_task(name), tools.ledger.landing(name))
        if tools.ledger.report() is not None:
            found = report_record(tools)
            context.log_event(dg.AssetMaterialization("build_report", partition=config.build, metadata=found))


@dg.graph
def recording() -> None:
    """The one step of `record_undo`."""
    record_tasks()


record_undo = recording.to_job(
    name="record_undo",
    executor_def=threaded_executor,
    tags=partitions.RETRY_TAGS,
    description="Record undone tasks anew, so that their partitions of `task_result` say so. `longshot undo` starts it.",
)
