"""The contract of our daemon: Dagster's sensor loop waits for what we give it, and for nothing else."""

import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.scheduler.instigation import SensorInstigatorData
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import EmptyWorkspaceTarget
from dagster._daemon import daemon as stock_daemon
from dagster._daemon import sensor as stock_sensor
from dagster._daemon.daemon import SensorDaemon
from dagster._daemon.sensor import MIN_INTERVAL_LOOP_TIME

from longshot_dagster.adapters import waking
from longshot_dagster.adapters.home import Home
from longshot_dagster.defs.daemon import WokenSensorDaemon, daemons, wait_by_steady_clocks


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


class Hour:
    """How long ago a sensor looked."""

    def __init__(self, ago_s: float) -> None:
        self.instigator_data = SensorInstigatorData(last_tick_start_timestamp=time.time() - ago_s)
        self.min_interval_seconds = 10


@pytest.fixture
def _steady(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stock_daemon, "time", time)
    monkeypatch.setattr(stock_sensor, "is_under_min_interval", stock_sensor.is_under_min_interval)
    wait_by_steady_clocks()


@pytest.mark.usefixtures("_steady")
@pytest.mark.parametrize(("ago_s", "waits"), [(-3600.0, False), (-1.0, False), (5.0, True), (11.0, False)])
def test_a_sensor_does_not_wait_until_the_clock_is_where_it_was(ago_s: float, waits: bool) -> None:
    looked = Hour(ago_s)
    assert stock_sensor.is_under_min_interval(looked, looked) is waits  # type: ignore[arg-type]


@pytest.mark.usefixtures("_steady")
def test_nor_does_the_queue_of_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interval of 0.6 s, during which the clock is set back an hour."""
    wall = [time.time()]
    monkeypatch.setattr(time, "time", lambda: wall[0])
    looks: list[float] = []

    class Looking(stock_daemon.IntervalDaemon[Any]):
        @classmethod
        def daemon_type(cls) -> str:
            return "LOOKING"

        def run_iteration(self, workspace_process_context: object) -> Generator[None, None, None]:
            looks.append(time.monotonic())
            yield None

    with Looking(0.6) as daemon:
        loop = daemon.core_loop(None, threading.Event())
        while len(looks) < 2 and time.monotonic() - (looks or [time.monotonic()])[0] < 20:
            next(loop)
            wall[0] -= 3600 if looks and wall[0] > looks[0] else 0
    assert len(looks) == 2 and looks[1] - looks[0] >= 0.6


def _seconds_of(looks: object) -> float:
    begun = time.monotonic()
    next(looks)  # type: ignore[call-overload]
    return time.monotonic() - begun
