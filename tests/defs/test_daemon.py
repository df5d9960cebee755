"""The contract of our daemon: Dagster's sensor loop waits for what we give it, and for nothing else."""

import threading
import time
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import EmptyWorkspaceTarget
from dagster._daemon.daemon import SensorDaemon
from dagster._daemon.sensor import MIN_INTERVAL_LOOP_TIME

from longshot_dagster.adapters import waking
from longshot_dagster.adapters.home import Home
from longshot_dagster.defs.daemon import WokenSensorDaemon, daemons


def test_every_daemon_that_dagster_wants_is_there_and_one_is_ours(instance: dg.DagsterInstance) -> None:
    found = daemons(instance)
    try:
        assert [d.daemon_type() for d in found] == list(instance.get_required_daemon_types())
        assert [type(d) for d in found if isinstance(d, SensorDaemon)] == [WokenSensorDaemon]
    finally:
        for daemon in found:
            daemon.__exit__(None, None, None)


def test_a_word_wakes_the_sensor_loop_long_before_its_time(
    instance: dg.DagsterInstance, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGSHOT_HOME", str(home.root))
    stop = threading.Event()
    with (
        WorkspaceProcessContext(instance, EmptyWorkspaceTarget()) as workspace,
        WokenSensorDaemon(settings={}) as daemon,
    ):
        looks = daemon.core_loop(workspace, stop)
        next(looks)  # it listens
        waking.wake(home)
        waits = [_seconds_of(looks) for _ in range(4)]
        assert sum(waits) < MIN_INTERVAL_LOOP_TIME - 1
        stop.set()
        looks.close()
    assert not Path(waking.socket_path(home)).exists()
    home.leave_runtime()


def _seconds_of(looks: object) -> float:
    begun = time.monotonic()
    next(looks)  # type: ignore[call-overload]
    return time.monotonic() - begun
