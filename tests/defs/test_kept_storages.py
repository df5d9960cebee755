"""The contract of our run and schedule storages, and of how we make a run's event log: as Dagster's own, only kept open."""

import contextlib
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.errors import DagsterInvariantViolationError, DagsterRunAlreadyExists
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin, RemoteInstigatorOrigin, RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.runs import SqliteRunStorage
from dagster._core.storage.schedules import SqliteScheduleStorage
from dagster._core.storage.sqlite import create_db_conn_string

from longshot_dagster.defs import schema
from longshot_dagster.defs.event_storage import KeptSqliteEventLogStorage
from longshot_dagster.defs.kept_storages import KeptSqliteRunStorage, KeptSqliteScheduleStorage

TICK = TickData(
    instigator_origin_id="origin",
    instigator_name="replan",
    instigator_type=InstigatorType.SENSOR,
    status=TickStatus.STARTED,
    timestamp=1.0,
    selector_id="selector",
)


@pytest.fixture
def databases(tmp_path: Path, _empty_databases: Path) -> Path:
    """A folder with empty ones, of runs and of schedules, which Dagster's own code has made."""
    for kind, name in (("run_storage", "runs.db"), ("schedule_storage", "schedules.db")):
        shutil.copy(_empty_databases / kind / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def runs(databases: Path) -> Iterator[KeptSqliteRunStorage]:
    storage = KeptSqliteRunStorage.from_config_value(None, {"base_dir": str(databases)})
    yield storage
    storage.dispose()


@pytest.fixture
def schedules(databases: Path) -> Iterator[KeptSqliteScheduleStorage]:
    storage = KeptSqliteScheduleStorage.from_config_value(None, {"base_dir": str(databases)})
    yield storage
    storage.dispose()


def structure(database: Path) -> list[tuple[str, str]]:
    """Every table and index with its definition, and the revision."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        found = sorted(connection.execute("SELECT name, coalesce(sql, '') FROM sqlite_master").fetchall())
        return [*found, ("revision", connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])]


def connections(storage: KeptSqliteRunStorage | KeptSqliteScheduleStorage, name: str) -> int:
    """How many file descriptors this process has open on the database."""
    database = (Path(storage._conn_string.removeprefix("sqlite://")).parent / f"{name}.db").resolve()
    found = 0
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += fd.readlink() == database
    return found


def test_a_runs_log_is_made_as_dagster_makes_it(tmp_path: Path, _empty_databases: Path) -> None:
    for name in ("stock", "ours"):
        (tmp_path / name).mkdir()
        shutil.copy(_empty_databases / "event_log_storage" / "index.db", tmp_path / name)
    stock, ours = SqliteEventLogStorage(str(tmp_path / "stock")), KeptSqliteEventLogStorage(str(tmp_path / "ours"))
    for storage in (stock, ours):
        assert storage.get_logs_for_run("run") == []
        storage.dispose()
    assert structure(tmp_path / "ours" / "run.db") == structure(tmp_path / "stock" / "run.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "ours" / "run.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_runs_log_that_many_open_at_once_is_made_once(tmp_path: Path, _empty_databases: Path) -> None:
    shutil.copy(_empty_databases / "event_log_storage" / "index.db", tmp_path)
    start, failed = threading.Barrier(8), []

    def first_look() -> None:
        storage = KeptSqliteEventLogStorage(str(tmp_path))
        start.wait(30)
        try:
            storage.get_logs_for_run("run")
        except Exception as e:
            failed.append(e)
        finally:
            storage.dispose()

    threads = [threading.Thread(target=first_look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert ("revision", schema.newest_revision()) in structure(tmp_path / "run.db")


def test_a_current_index_is_known_to_have_all_of_it(tmp_path: Path, _empty_databases: Path) -> None:
    shutil.copy(_empty_databases / "event_log_storage" / "index.db", tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "index.db")) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        columns = {row[1] for row in connection.execute("PRAGMA table_info(asset_keys)")}
    ours = KeptSqliteEventLogStorage(str(tmp_path))
    assert ours.all_asset_keys() == []
    assert ours._tables and ours._tables <= tables
    assert ours._asset_columns == columns
    assert not ours.has_table("unheard_of") and not ours.has_asset_key_col("unheard_of")
    ours.dispose()


def test_a_log_of_which_only_a_part_was_made_is_made_whole(tmp_path: Path, _empty_databases: Path) -> None:
    shutil.copy(_empty_databases / "event_log_storage" / "index.db", tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "run.db")) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
    storage = KeptSqliteEventLogStorage(str(tmp_path))
    assert storage.get_logs_for_run("run") == []
    storage.dispose()
    assert ("revision", schema.newest_revision()) in structure(tmp_path / "run.db")


def test_what_dagster_has_written_is_read_and_the_other_way_round(
    databases: Path, runs: KeptSqliteRunStorage, schedules: KeptSqliteScheduleStorage
) -> None:
    stock_runs = SqliteRunStorage(create_db_conn_string(str(databases), "runs"))
    stock_schedules = SqliteScheduleStorage(create_db_conn_string(str(databases), "schedules"))
    stock_runs.add_run(dg.DagsterRun(job_name="job", run_id="first", tags={"a": "b"}))
    stock_schedules.create_tick(TICK)
    before = [structure(databases / f"{name}.db") for name in ("runs", "schedules")]
    runs.add_run(dg.DagsterRun(job_name="job", run_id="second"))
    tick = schedules.create_tick(TICK.with_status(status=TickStatus.SUCCESS))
    schedules.update_tick(tick.with_status(TickStatus.SKIPPED))
    for storage in (runs, stock_runs):
        assert [r.run_id for r in storage.get_runs()] == ["second", "first"]
        assert [r.run_id for r in storage.get_runs(dg.RunsFilter(tags={"a": "b"}))] == ["first"]
    for kept in (schedules, stock_schedules):
        assert {t.status for t in kept.get_ticks("origin", "selector")} == {TickStatus.SKIPPED, TickStatus.STARTED}
    assert [structure(databases / f"{name}.db") for name in ("runs", "schedules")] == before


def noted(database: Path) -> list[tuple[object, ...]]:
    """What is stored of sensors, but when."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        jobs = connection.execute("SELECT job_origin_id, selector_id, status, job_type, job_body FROM jobs").fetchall()
        columns = "selector_id, repository_selector_id, status, instigator_type, instigator_body"
        return [*jobs, *connection.execute(f"SELECT {columns} FROM instigators").fetchall()]


def test_how_a_sensor_stands_is_noted_as_dagster_notes_it(
    databases: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stock = tmp_path_factory.mktemp("stock")
    shutil.copy(databases / "schedules.db", stock / "schedules.db")
    storages = [
        KeptSqliteScheduleStorage.from_config_value(None, {"base_dir": str(databases)}),
        SqliteScheduleStorage.from_local(str(stock)),
    ]
    first, later = (sensor_state(InstigatorStatus.DECLARED_IN_CODE), sensor_state(InstigatorStatus.RUNNING, cursor="7"))
    for storage in storages:
        with pytest.raises(DagsterInvariantViolationError, match="not present"):
            storage.update_instigator_state(first)
        storage.add_instigator_state(first)
        assert storage.update_instigator_state(later) == later
        assert storage.get_instigator_state(later.instigator_origin_id, later.selector_id) == later
        storage.dispose()
    assert noted(databases / "schedules.db") == noted(stock / "schedules.db")


def test_a_sensor_that_one_table_has_lost_is_not_refused(databases: Path, schedules: KeptSqliteScheduleStorage) -> None:
    """As stock: what names the sensor in `jobs` changes with the address of the code, what names it beside that does not."""
    schedules.add_instigator_state(sensor_state(InstigatorStatus.RUNNING))
    with contextlib.closing(sqlite3.connect(databases / "schedules.db")) as connection, connection:
        connection.execute("DELETE FROM jobs")
    later = sensor_state(InstigatorStatus.RUNNING, cursor="7")
    schedules.update_instigator_state(later)
    assert schedules.get_instigator_state(later.instigator_origin_id, later.selector_id) == later


def sensor_state(status: InstigatorStatus, cursor: str | None = None) -> InstigatorState:
    location = GrpcServerCodeLocationOrigin(host="localhost", socket="code.sock", location_name="longshot")
    origin = RemoteInstigatorOrigin(RemoteRepositoryOrigin(location, "__repository__"), "replan")
    return InstigatorState(origin, InstigatorType.SENSOR, status, SensorInstigatorData(min_interval=1, cursor=cursor))


def test_an_instance_has_our_storages(instance: dg.DagsterInstance) -> None:
    assert isinstance(instance.run_storage, KeptSqliteRunStorage)
    assert isinstance(instance.schedule_storage, KeptSqliteScheduleStorage)


def test_a_failed_write_leaves_nothing_behind(runs: KeptSqliteRunStorage) -> None:
    run = dg.DagsterRun(job_name="job", run_id="one")
    runs.add_run(run)
    with pytest.raises(DagsterRunAlreadyExists):
        runs.add_run(run)
    runs.add_run(dg.DagsterRun(job_name="job", run_id="two"))
    assert {r.run_id for r in runs.get_runs()} == {"one", "two"}


def test_connections_are_used_again_and_closed_in_the_end(runs: KeptSqliteRunStorage) -> None:
    def twelve_at_once() -> int:
        together = threading.Barrier(12)

        def ask() -> None:
            with runs.connect() as connection:
                connection.exec_driver_sql("SELECT count(*) FROM runs")
                together.wait(30)

        threads = [threading.Thread(target=ask) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return connections(runs, "runs")

    assert [twelve_at_once() for _ in range(3)] == [12] * 3  # SQLite keeps the descriptors of those that were closed
    runs.dispose()
    assert connections(runs, "runs") == 0


@pytest.mark.parametrize("opened", [False, True])
def test_a_forked_process_never_shares_a_connection(schedules: KeptSqliteScheduleStorage, opened: bool) -> None:
    if opened:
        schedules.create_tick(TICK)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            schedules.create_tick(TICK)
            code = 0
        except RuntimeError:
            code = 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == (2 if opened else 0)
    assert len(schedules.get_ticks("origin", "selector")) == 1
