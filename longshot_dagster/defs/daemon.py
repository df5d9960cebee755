"""Dagster's daemon, whose sensors look as soon as a run says that something is due: `python -m longshot_dagster.defs.daemon`.

Stock, sensors look every five seconds, whatever their interval says (`MIN_INTERVAL_LOOP_TIME`), and half of the time from a
handoff to the next plan is spent waiting for that.

One of the few modules that import private ones of Dagster, whose version is pinned; tests/defs/test_daemon.py is the contract.
"""

import argparse
import contextlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import dagster as dg
from dagster._core.workspace.context import IWorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster._daemon.controller import create_daemon_of_type, daemon_controller_from_instance
from dagster._daemon.daemon import DagsterDaemon, SensorDaemon
from dagster._daemon.sensor import execute_sensor_iteration_loop
from dagster._utils.interrupts import capture_interrupts

from longshot_dagster.adapters.home import Home
from longshot_dagster.adapters.waking import Listening

_SENSORS_REST_S = 1.1  # a sensor is not asked again within its minimum interval, one second


class WokenSensorDaemon(SensorDaemon):
    """Waits between two looks for a word from `adapters/waking.py`, as long as the stock class waits for nothing."""

    def core_loop(self, workspace_process_context: IWorkspaceProcessContext, shutdown_event: threading.Event) -> Any:
        home = Home(Path(os.environ["LONGSHOT_HOME"]).expanduser())
        with contextlib.closing(Listening(home, shutdown_event.is_set, _SENSORS_REST_S)) as pauses:
            yield from execute_sensor_iteration_loop(
                workspace_process_context,
                self._logger,
                cast(threading.Event, pauses),  # of which the loop knows `wait` alone
                threadpool_executor=self._threadpool_executor,
                submit_threadpool_executor=self._submit_threadpool_executor,
                instrument_elapsed=self.instrument_elapsed,
            )


def daemons(instance: dg.DagsterInstance) -> Sequence[DagsterDaemon[Any]]:
    return [
        WokenSensorDaemon(settings=instance.get_sensor_settings())
        if kind == SensorDaemon.daemon_type()
        else create_daemon_of_type(kind, instance)
        for kind in instance.get_required_daemon_types()
    ]


def main() -> None:
    """Until SIGTERM. DAGSTER_HOME and LONGSHOT_HOME must be set."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--workspace", type=Path, required=True)
    target = WorkspaceFileTarget(paths=[str(options.parse_args().workspace)])
    with (
        contextlib.suppress(KeyboardInterrupt),  # how SIGTERM and SIGINT end it
        capture_interrupts(),
        dg.DagsterInstance.get() as instance,
        daemon_controller_from_instance(instance, target, gen_daemons=daemons) as controller,
    ):
        controller.check_daemon_loop()


if __name__ == "__main__":
    main()
