"""What Dagster finds here."""

import dagster as dg

from longshot_dagster.defs import backlog, sensors
from longshot_dagster.defs.building import start_build
from longshot_dagster.defs.executor import threaded_executor
from longshot_dagster.defs.finalize import build_report, finalize_build
from longshot_dagster.defs.heartbeat import checkpoints
from longshot_dagster.defs.io_manager import JsonIOManager, LedgerIOManager
from longshot_dagster.defs.iteration import iteration, planning_iteration
from longshot_dagster.defs.resources import LongshotResource
from longshot_dagster.defs.task_result import task_result
from longshot_dagster.defs.undoing import record_undo

defs = dg.Definitions(
    assets=[iteration, task_result, build_report],
    jobs=[start_build, planning_iteration, finalize_build, record_undo],
    sensors=[*sensors.ALL, checkpoints, backlog.backlog_sensor],
    schedules=[backlog.recurring_backlog],
    resources={"longshot": LongshotResource(), "ledger": LedgerIOManager(), "io_manager": JsonIOManager()},
    executor=threaded_executor,
)
