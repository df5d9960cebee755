"""The contract of our daemon: Dagster's sensor loop waits for what we give it, and for nothing else."""

import shutil
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import SensorInstigatorData
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import EmptyWorkspaceTarget
from dagster._daemon import daemon as stock_daemon
from dagster._daemon import sensor as stock_sensor
from dagster._daemon.daemon import SensorDaemon
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon
from dagster._daemon.sensor import MIN_INTERVAL_LOOP_TIME
from dagster_doubles import instance_config

from longshot_dagster.adapters.host import waking
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.stack.stillness import SENSORS
from longshot_dagster.definitions import defs
from longshot_dagster.defs import daemon as ours
from longshot_dagster.defs.daemon import ShortQueueDaemon, WokenSensorDaemon, daemons, wait_by_steady_clocks


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
    """How long ago a sensor looked, and whether that went well."""

    name = "replan"

    def __init__(self, ago_s: float, *, well: bool = True) -> None:
        began = time.time() - ago_s
        self.instigator_data = SensorInstigatorData(
            last_tick_start_timestamp=began, last_tick_success_timestamp=began if well else None
        )
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


def test_the_queue_of_runs_is_looked_through_when_something_is_in_it(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    monkeypatch.setattr(QueuedRunCoordinatorDaemon, "run_iteration", lambda *_: iter([looked.append(1)]))
    with (
        WorkspaceProcessContext(instance, EmptyWorkspaceTarget()) as workspace,
        ShortQueueDaemon(interval_seconds=1) as queue,
    ):
        instance.run_storage.add_run(dg.DagsterRun(job_name="job", status=dg.DagsterRunStatus.STARTED))
        assert (list(queue.run_iteration(workspace)), looked) == ([], [])
        repository = RemoteRepositoryOrigin(GrpcServerCodeLocationOrigin(host="localhost", socket="s"), "repository")
        origin = RemoteJobOrigin(repository, "job")
        queued = dg.DagsterRun(job_name="job", status=dg.DagsterRunStatus.QUEUED, remote_job_origin=origin)
        instance.run_storage.add_run(queued)
        assert (list(queue.run_iteration(workspace)), looked) == ([None], [1])


def test_our_queue_is_asked_as_often_as_the_settings_say(tmp_path: Path, _empty_databases: Path) -> None:
    coordinator = {
        "module": "dagster._core.run_coordinator",
        "class": "QueuedRunCoordinator",
        "config": {"dequeue_interval_seconds": 3},
    }
    directory = tmp_path / "dagster"
    shutil.copytree(_empty_databases, directory)
    settings = {**instance_config(directory), "run_coordinator": coordinator}
    with dg.instance_for_test(temp_dir=str(directory), overrides=settings) as instance:
        (queue,) = (d for d in daemons(instance) if isinstance(d, QueuedRunCoordinatorDaemon))
        assert (type(queue), queue.interval_seconds) == (ShortQueueDaemon, 3)


class Nothing:
    """A stillness in which no sensor would find anything."""

    def __init__(self, home: Home, instance: dg.DagsterInstance) -> None:
        self.looks = 0

    def lasts(self, waited_s: float) -> bool:
        return False

    def look_again(self) -> None:
        self.looks += 1

    def rests(self, sensor: str, waited_s: float) -> bool:
        return sensor == Hour.name


@pytest.mark.usefixtures("_steady")
@pytest.mark.parametrize(("looked", "waits"), [(Hour(11.0), True), (Hour(11.0, well=False), False)])
def test_who_would_find_nothing_does_not_look_unless_it_has_failed(
    instance: dg.DagsterInstance, home: Home, monkeypatch: pytest.MonkeyPatch, looked: Any, waits: bool
) -> None:
    monkeypatch.setenv("LONGSHOT_HOME", str(home.root))
    monkeypatch.setattr(ours, "stillness", Nothing)
    before = stock_sensor.is_under_min_interval
    with (
        WorkspaceProcessContext(instance, EmptyWorkspaceTarget()) as workspace,
        WokenSensorDaemon(settings={}) as sensors,
    ):
        looks = sensors.core_loop(workspace, threading.Event())
        next(looks)
        assert stock_sensor.is_under_min_interval(looked, looked) is waits
        looks.close()
    assert stock_sensor.is_under_min_interval is before
    home.leave_runtime()


def test_whose_work_is_foreseen_is_a_sensor() -> None:
    assert {s.name for s in defs.sensors or ()} >= SENSORS


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
