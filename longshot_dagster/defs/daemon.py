"""Dagster's daemon, whose sensors look as soon as a run says that something is due: `python -m longshot_dagster.defs.daemon`.

Stock, sensors look every five seconds, whatever their interval says (`MIN_INTERVAL_LOOP_TIME`), and half of the time from a
handoff to the next plan is spent waiting for that. And all of them look as often when there is nothing to see, at 30 ms of
CPU a tick: ours rest as long as each would find nothing (`adapters/stack/stillness.py`). Nor do they, or the queue of runs, wait
out an hour by which the clock was set back.

One of the few modules that import private ones of Dagster, whose version is pinned; tests/defs/test_daemon.py is the contract.
"""

import argparse
import contextlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import dagster as dg
from dagster._core.remote_representation.external import RemoteSensor
from dagster._core.run_coordinator import QueuedRunCoordinator
from dagster._core.scheduler.instigation import InstigatorState, SensorInstigatorData
from dagster._core.workspace.context import IWorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster._daemon import daemon as stock_daemon
from dagster._daemon import sensor as stock_sensor
from dagster._daemon.controller import create_daemon_of_type, daemon_controller_from_instance
from dagster._daemon.daemon import DaemonIterator, DagsterDaemon, SensorDaemon
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon
from dagster._daemon.sensor import execute_sensor_iteration_loop
from dagster._utils.interrupts import capture_interrupts

from longshot_dagster.adapters import settings
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.host.waking import Listening
from longshot_dagster.adapters.stack.stillness import Stillness

_SENSORS_REST_S = 1.1  # a sensor is not asked again within its minimum interval, one second


class WokenSensorDaemon(SensorDaemon):
    """Waits between two looks for a word from `adapters/host/waking.py`, as long as the stock class waits for nothing."""

    def core_loop(self, workspace_process_context: IWorkspaceProcessContext, shutdown_event: threading.Event) -> Any:
        home = Home(Path(os.environ["LONGSHOT_HOME"]).expanduser())
        still = stillness(home, workspace_process_context.instance)
        with (
            _resting(still),
            contextlib.closing(Listening(home, shutdown_event.is_set, _SENSORS_REST_S, still.lasts)) as listening,
        ):
            yield from execute_sensor_iteration_loop(
                workspace_process_context,
                self._logger,
                cast(threading.Event, _Pauses(listening, still)),
                threadpool_executor=self._threadpool_executor,
                submit_threadpool_executor=self._submit_threadpool_executor,
                instrument_elapsed=self.instrument_elapsed,
            )


class _Pauses:
    """Between two looks: the part of an event that the loop knows."""

    def __init__(self, listening: Listening, still: Stillness) -> None:
        self._listening = listening
        self._still = still

    def wait(self, seconds: float) -> None:
        self._listening.wait(seconds)
        self._still.look_again()


@contextlib.contextmanager
def _resting(still: Stillness) -> Iterator[None]:
    """No sensor ticks that would find nothing, unless its last tick did not end well, which has Dagster repeat it."""
    as_before = stock_sensor.is_under_min_interval

    def rests(
        state: InstigatorState, remote_sensor: RemoteSensor, minimum_allowed_min_interval: int | None = None
    ) -> bool:
        if as_before(state, remote_sensor, minimum_allowed_min_interval):
            return True
        ended, elapsed = state.instigator_data, stock_sensor.get_elapsed(state)
        well = isinstance(ended, SensorInstigatorData) and ended.last_tick_success_timestamp is not None
        return well and elapsed is not None and still.rests(remote_sensor.name, elapsed)

    stock_sensor.is_under_min_interval = rests
    try:
        yield
    finally:
        stock_sensor.is_under_min_interval = as_before


def stillness(home: Home, instance: dg.DagsterInstance) -> Stillness:
    badly = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED])

    def ended() -> object:
        found = instance.get_run_records(badly, limit=1, order_by="update_timestamp")
        return [(r.dagster_run.run_id, r.dagster_run.status, r.update_timestamp) for r in found]

    return Stillness(home, settings.backlog(os.environ, None, home).folder, ended)


class ShortQueueDaemon(QueuedRunCoordinatorDaemon):
    """Asks one question a second of an empty queue, as it mostly is; stock reads every run that is under way and settings."""

    def run_iteration(
        self, workspace_process_context: IWorkspaceProcessContext, fixed_iteration_time: float | None = None
    ) -> DaemonIterator:
        queued = dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED])
        if workspace_process_context.instance.get_run_ids(queued, limit=1):
            yield from super().run_iteration(workspace_process_context, fixed_iteration_time)


def daemons(instance: dg.DagsterInstance) -> Sequence[DagsterDaemon[Any]]:
    return [_daemon(kind, instance) for kind in instance.get_required_daemon_types()]


def _daemon(kind: str, instance: dg.DagsterInstance) -> DagsterDaemon[Any]:
    if kind == SensorDaemon.daemon_type():
        return WokenSensorDaemon(settings=instance.get_sensor_settings())
    if kind == ShortQueueDaemon.daemon_type() and isinstance(instance.run_coordinator, QueuedRunCoordinator):
        return ShortQueueDaemon(interval_seconds=instance.run_coordinator.dequeue_interval_seconds)
    return create_daemon_of_type(kind, instance)


def wait_by_steady_clocks() -> None:
    """Stock, all daemons wait until the wall clock is where it was, and a second: so no run would leave the queue meanwhile."""
    stock_daemon.time = SimpleNamespace(time=time.monotonic, sleep=time.sleep)  # type: ignore[assignment, attr-defined]
    stock_sensor.is_under_min_interval = _is_under_min_interval


def _is_under_min_interval(
    state: InstigatorState, remote_sensor: RemoteSensor, minimum_allowed_min_interval: int | None = None
) -> bool:
    """Never of a sensor that has last looked in the future."""
    elapsed = stock_sensor.get_elapsed(state)
    if elapsed is None or elapsed < 0:
        return False
    return elapsed < max(remote_sensor.min_interval_seconds or 0, minimum_allowed_min_interval or 0)


def main() -> None:
    """Until SIGTERM. DAGSTER_HOME and LONGSHOT_HOME must be set."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--workspace", type=Path, required=True)
    target = WorkspaceFileTarget(paths=[str(options.parse_args().workspace)])
    wait_by_steady_clocks()
    with (
        contextlib.suppress(KeyboardInterrupt),  # how SIGTERM and SIGINT end it
        capture_interrupts(),
        dg.DagsterInstance.get() as instance,
        daemon_controller_from_instance(instance, target, gen_daemons=daemons) as controller,
    ):
        controller.check_daemon_loop()


if __name__ == "__main__":
    main()
