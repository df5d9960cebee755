"""The event log under the load that broke the stock one: a pool claimed from six processes at once."""

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.events import DagsterEvent, DagsterEventType, StepMaterializationData
from dagster._core.events.log import EventLogEntry
from sqlalchemy.exc import OperationalError

from longshot_dagster.defs import event_storage
from longshot_dagster.defs.event_storage import KeptSqliteEventLogStorage

LIMIT, PROCESSES, CLAIMS = 2, 6, 10
# Forked from one process without threads or connections: importing Dagster six times costs more than the claims.
_CLAIMS = """
import multiprocessing, os, sys, time
from pathlib import Path
from typing import Any
from longshot_dagster.defs.event_storage import KeptSqliteEventLogStorage
directory, processes, claims = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
fork = multiprocessing.get_context("fork")
start, held = fork.Barrier(processes), directory / "held"

def claim(number):
    storage, run = KeptSqliteEventLogStorage(str(directory)), f"run-{number}"
    start.wait(60)
    for n in range(claims):
        # half of them as Dagster's own executors claim, half as ours does
        while not (
            storage.claim_slots("two", run, {f"step {n}": 0}, 0, None).steps
            if number % 2
            else storage.claim_concurrency_slot("two", run, f"step {n}").is_claimed
        ):
            time.sleep(0.001)
        (held / run).touch()
        time.sleep(0.02)
        together = len(list(held.iterdir()))
        (held / run).unlink()
        storage.free_concurrency_slot_for_step(run, f"step {n}")
        os.write(1, b"%d\\n" % together)  # in one piece
    storage.dispose()

forked = [fork.Process(target=claim, args=(n,)) for n in range(processes)]
for process in forked:
    process.start()
for process in forked:
    process.join()
"""


def test_six_processes_never_hold_more_slots_than_the_pool_has(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    storage = instance.event_log_storage
    assert isinstance(storage, KeptSqliteEventLogStorage)
    storage.set_concurrency_slots("two", LIMIT)
    directory = tmp_path / "dagster" / "event_log_storage"
    (directory / "held").mkdir()
    argv = [sys.executable, "-W", "ignore", "-c", _CLAIMS, str(directory), str(PROCESSES), str(CLAIMS)]
    together = [int(n) for n in subprocess.run(argv, stdout=subprocess.PIPE, check=True, timeout=120).stdout.split()]
    assert len(together) == PROCESSES * CLAIMS
    assert max(together) <= LIMIT


@pytest.fixture
def pool(instance: dg.DagsterInstance) -> KeptSqliteEventLogStorage:
    """With one slot in the pool `two`."""
    storage = instance.event_log_storage
    assert isinstance(storage, KeptSqliteEventLogStorage)
    storage.set_concurrency_slots("two", 1)
    return storage


def claim(
    storage: KeptSqliteEventLogStorage, run: str, *steps: str, priority: int = 0, at_most: int | None = None
) -> tuple[str, ...]:
    return storage.claim_slots("two", run, dict.fromkeys(steps, priority), 0, at_most).steps


def test_a_slot_goes_to_the_highest_priority_of_all_runs_and_then_to_the_oldest(
    pool: KeptSqliteEventLogStorage,
) -> None:
    assert claim(pool, "a", "busy") == ("busy",)
    waiting = {"old": ("b", 0), "urgent": ("c", 5), "new": ("a", 0)}
    assert [claim(pool, run, step, priority=first) for step, (run, first) in waiting.items()] == [()] * 3
    order, holder = [], ("a", "busy")
    while waiting:
        pool.free_concurrency_slot_for_step(*holder)
        asked = [claim(pool, run, step, priority=first) for step, (run, first) in reversed(waiting.items())]
        ((won,),) = filter(None, asked)
        holder = (waiting.pop(won)[0], won)
        order.append(won)
    assert order == ["urgent", "old", "new"]


def test_a_step_whose_run_does_not_look_gives_way(
    pool: KeptSqliteEventLogStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(pool, "a", "busy")
    claim(pool, "dead", "first", priority=9)
    pool.free_concurrency_slot_for_step("a", "busy")
    assert claim(pool, "b", "second") == (), "its turn has only begun"
    monkeypatch.setattr(event_storage, "_TURN_S", -1.0)
    assert claim(pool, "b", "second") == ("second",)


def test_what_a_run_has_no_room_for_is_left_to_others(pool: KeptSqliteEventLogStorage) -> None:
    pool.set_concurrency_slots("two", 5)
    assert claim(pool, "a", "one", "two", "three", at_most=2) == ("one", "two")
    assert claim(pool, "b", "four", "five") == ("four", "five")


def test_a_pool_that_was_paused_while_busy_is_not_overrun_when_it_goes_on(pool: KeptSqliteEventLogStorage) -> None:
    pool.set_concurrency_slots("two", 4)
    busy = claim(pool, "a", "a1", "a2", "a3", "a4")
    pool.set_concurrency_slots("two", 0)
    assert claim(pool, "b", "b1", "b2") == ()
    pool.set_concurrency_slots("two", 4)
    assert claim(pool, "b", "b1", "b2") == ()
    for step in busy:
        pool.free_concurrency_slot_for_step("a", step)
    assert claim(pool, "b", "b1", "b2") == ("b1", "b2")


def test_a_lowered_limit_holds_once_the_busy_ones_have_ended(pool: KeptSqliteEventLogStorage) -> None:
    pool.set_concurrency_slots("two", 3)
    busy = claim(pool, "a", "a1", "a2", "a3")
    pool.set_concurrency_slots("two", 1)
    taken = []
    for step in busy:
        pool.free_concurrency_slot_for_step("a", step)
        taken.append(len(claim(pool, "b", *(x for x in ("b1", "b2", "b3")))))
    info = pool.get_concurrency_info("two")
    assert sum(taken) == 1 and len(info.claimed_slots) == info.slot_count == 1


def test_a_long_line_is_not_compared_with_every_slot(pool: KeptSqliteEventLogStorage) -> None:
    pool.set_concurrency_slots("two", 100)
    steps = dict.fromkeys((f"step[{n}]" for n in range(1_000)), 0)
    held = list(pool.claim_slots("two", "a", steps, 0, None).steps)
    assert held == list(steps)[:100]
    counted: list[int] = []
    with pool.index_connection() as connection:
        driver = connection.connection.driver_connection
    assert driver is not None
    driver.set_progress_handler(lambda: counted.append(1), 1_000)
    for step in held[:3]:
        pool.free_concurrency_slot_for_step("a", step)
        waiting = {s: 0 for s in steps if s not in held}
        held += pool.claim_slots("two", "a", waiting, 99, None).steps
    driver.set_progress_handler(None, 1_000)
    assert held[100:] == ["step[100]", "step[101]", "step[102]"]
    assert len(counted) < 300  # thousands of instructions of the database; compared with each, over two thousand


def test_a_claim_that_fails_halfway_leaves_nothing_behind(pool: KeptSqliteEventLogStorage) -> None:
    with pytest.raises(sqlite3.Error):
        pool.claim_slots("two", "a", {"a1": 0, "a2": object()}, 0, None)  # type: ignore[dict-item]
    info = pool.get_concurrency_info("two")
    assert (info.pending_steps, info.claimed_slots) == ([], [])
    assert claim(pool, "b", "b1") == ("b1",)


def test_without_a_limit_everybody_starts_and_nobody_is_left_in_line(pool: KeptSqliteEventLogStorage) -> None:
    claim(pool, "a", "busy")
    assert claim(pool, "b", "b1", "b2") == ()
    pool.delete_concurrency_limit("two")
    found = pool.claim_slots("two", "b", {"b1": 0, "b2": 0}, 0, None)
    assert (found.steps, found.limit) == (("b1", "b2"), None)
    assert [p.step_key for p in pool.get_concurrency_info("two").pending_steps] == ["busy"]


def test_a_run_that_ends_gives_back_its_slots_and_its_places(pool: KeptSqliteEventLogStorage) -> None:
    claim(pool, "a", "a1", "a2")
    claim(pool, "b", "b1")
    pool.free_concurrency_slots_for_run("a")
    assert claim(pool, "b", "b1") == ("b1",)
    assert [p.run_id for p in pool.get_concurrency_info("two").pending_steps] == ["b"]


def test_more_runs_than_connections_are_written_and_read(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_storage, "_MAX_OPEN", 2)
    runs = [f"{n:08d}-0000-4000-8000-000000000000" for n in range(4)]
    for run_id in (*runs, *runs):
        instance.report_engine_event("noted", run_id=run_id, job_name="job")
    assert [len(instance.event_log_storage.get_logs_for_run(run_id)) for run_id in runs] == [2] * 4


@pytest.mark.parametrize("opened", [False, True])
def test_a_forked_process_opens_the_event_log_itself(tmp_path: Path, _empty_databases: Path, opened: bool) -> None:
    shutil.copytree(_empty_databases / "event_log_storage", tmp_path / "events")
    storage = KeptSqliteEventLogStorage(str(tmp_path / "events"))
    if opened:
        storage.set_concurrency_slots("two", 1)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            storage.set_concurrency_slots("two", 2)
            code = 0
        except RuntimeError:  # what it inherited is left as it is, and one of its own works
            storage.dispose()
            own = KeptSqliteEventLogStorage(str(tmp_path / "events"))
            own.set_concurrency_slots("two", 2)
            own.dispose()
            code = 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == (2 if opened else 0)
    assert storage.get_concurrency_info("two").slot_count == 2
    storage.dispose()


def test_what_was_wiped_is_gone(instance: dg.DagsterInstance) -> None:
    run_id = "00000000-0000-4000-8000-000000000000"
    instance.report_engine_event("noted", run_id=run_id, job_name="job")
    instance.event_log_storage.wipe()
    assert list(instance.event_log_storage.get_logs_for_run(run_id)) == []


def _said(path: Path) -> list[str]:
    """What is in the run's database, asked of the file and not of the storage that writes it."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return [message for (message,) in connection.execute("SELECT event FROM event_logs ORDER BY id")]


def test_a_partition_that_is_taken_away_is_gone_also_for_a_run_at_work(instance: dg.DagsterInstance) -> None:
    storage = instance.event_log_storage
    assert isinstance(storage, KeptSqliteEventLogStorage)
    with storage.gathering():
        assert not instance.has_dynamic_partition("builds", "b")
        instance.add_dynamic_partitions("builds", ["b"])
        assert [instance.has_dynamic_partition("builds", "b") for _ in range(2)] == [True, True]
        instance.delete_dynamic_partition("builds", "b")
        assert not instance.has_dynamic_partition("builds", "b")
        instance.add_dynamic_partitions("builds", ["b"])
        assert instance.has_dynamic_partition("builds", "b")
    with dg.DagsterInstance.from_ref(instance.get_ref()) as another:
        another.delete_dynamic_partition("builds", "b")
    assert not instance.has_dynamic_partition("builds", "b")


def test_events_of_steps_are_written_together_and_never_after_what_came_later(instance: dg.DagsterInstance) -> None:
    storage = instance.event_log_storage
    assert isinstance(storage, KeptSqliteEventLogStorage)
    run = instance.create_run_for_job(dg.job(name="empty")(lambda: None))
    database = Path(storage.path_for_shard(run.run_id))
    with storage.gathering():
        for n in range(3):
            instance.report_engine_event(f"step says {n}", run)
        assert [e.message for e in storage.get_logs_for_run(run.run_id)] == [f"step says {n}" for n in range(3)]
        instance.report_engine_event("last words", run)
        instance.report_run_failed(run, message="failed")
        kinds = [json.loads(text)["dagster_event"]["event_type_value"] for text in _said(database)]
        assert kinds == ["ENGINE_EVENT"] * 4 + ["PIPELINE_FAILURE"]
        instance.report_engine_event("said at the very end", run)
    assert "said at the very end" in _said(database)[-1]


def test_rows_written_together_are_what_they_would_be_alone(instance: dg.DagsterInstance) -> None:
    storage, rows = instance.event_log_storage, []
    assert isinstance(storage, KeptSqliteEventLogStorage)
    materialization = dg.AssetMaterialization("asset", partition="é", tags={"dagster/data_version": "1"})
    record = DagsterEvent(
        DagsterEventType.ASSET_MATERIALIZATION.value,
        "empty",
        step_key="a step",
        event_specific_data=StepMaterializationData(materialization),
    )
    for way in (contextlib.nullcontext, storage.gathering):
        run_id = instance.create_run_for_job(dg.job(name="empty")(lambda: None)).run_id
        with way():
            for seconds in (1_700_000_000.0, 1_700_000_000.25):
                for told in (record, None):
                    storage.store_event(EventLogEntry(None, 10, "é", run_id, seconds, "a step", "empty", told))
        for shard in (run_id, "index"):
            with contextlib.closing(sqlite3.connect(storage.path_for_shard(shard))) as connection:
                found = connection.execute(
                    "SELECT * FROM event_logs WHERE run_id = ? ORDER BY id", (run_id,)
                ).fetchall()
            rows.append([[str(value).replace(run_id, "RUN") for value in row[1:]] for row in found])
    assert rows[:2] == rows[2:] and [len(found) for found in rows] == [4, 2, 4, 2]


def test_events_that_cannot_be_written_wait_until_they_can(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = instance.event_log_storage
    assert isinstance(storage, KeptSqliteEventLogStorage)
    run_id = "00000000-0000-4000-8000-000000000000"
    full, room = [True], storage._engine

    def engine(shard: str) -> object:
        if full[0] and shard == run_id:
            raise OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))
        return room(shard)

    monkeypatch.setattr(storage, "_engine", engine)
    with storage.gathering():
        instance.report_engine_event("kept", run_id=run_id, job_name="job")
        with pytest.raises(OperationalError):
            storage.get_logs_for_run(run_id)
        full[0] = False
        assert [e.message for e in storage.get_logs_for_run(run_id)] == ["kept"]


def test_records_of_an_asset_are_written_together_as_they_would_be_alone(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    storage = instance.event_log_storage
    assert isinstance(storage, KeptSqliteEventLogStorage)
    run = instance.create_run_for_job(dg.job(name="empty")(lambda: None))
    index = Path(storage.path_for_shard("index"))
    report(instance, run, "alone", "a0")
    with storage.gathering():
        for n in range(3):
            report(instance, run, "together", f"a{n}")
        assert found(instance, "together") == ["a0", "a1", "a2"]  # this process sees them at once
        report(instance, run, "together", "a3")
        instance.report_run_failed(run, message="failed")
        assert sum("together" in text for text in _said(index)) == 4  # and others before they see how the run ended
        report(instance, run, "together", "a4")
    assert found(instance, "together") == [f"a{n}" for n in range(5)]
    newest = instance.get_latest_materialization_event(dg.AssetKey("together"))
    assert newest is not None and newest.dagster_event is not None
    assert newest.dagster_event.partition == "a4"
    assert instance.get_materialized_partitions(dg.AssetKey("together")) == {f"a{n}" for n in range(5)}
    assert instance.get_event_tags_for_asset(
        dg.AssetKey("together"), filter_event_id=last_id(instance, "together")
    ) == [{"dagster/data_version": "a4"}]
    logged = [e.dagster_event for e in storage.get_logs_for_run(run.run_id)]
    assert [e.partition for e in logged if e and e.asset_key] == ["a0", "a0", "a1", "a2", "a3", "a4"]


def test_records_that_cannot_be_written_wait_until_they_can(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = instance.event_log_storage
    assert isinstance(storage, KeptSqliteEventLogStorage)
    run = instance.create_run_for_job(dg.job(name="empty")(lambda: None))
    full, room = [True], storage._store_asset_event

    def store(*arguments: Any) -> None:
        if full[0]:
            raise OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))
        room(*arguments)

    monkeypatch.setattr(storage, "_store_asset_event", store)
    with storage.gathering():
        report(instance, run, "kept", "a")
        with pytest.raises(OperationalError):
            found(instance, "kept")
        full[0] = False
        report(instance, run, "kept", "b")
        assert found(instance, "kept") == ["a", "b"]


def report(instance: dg.DagsterInstance, run: dg.DagsterRun, asset: str, partition: str) -> None:
    materialization = dg.AssetMaterialization(asset, partition=partition, tags={"dagster/data_version": partition})
    event = DagsterEvent(
        DagsterEventType.ASSET_MATERIALIZATION.value,
        "empty",
        event_specific_data=StepMaterializationData(materialization),
    )
    instance.report_dagster_event(event, run.run_id)


def found(instance: dg.DagsterInstance, asset: str) -> list[str | None]:
    """Partitions of the asset's records in the index, oldest first."""
    records = instance.fetch_materializations(dg.AssetKey(asset), limit=10, ascending=True).records
    return [record.partition_key for record in records]


def last_id(instance: dg.DagsterInstance, asset: str) -> int:
    return instance.fetch_materializations(dg.AssetKey(asset), limit=1).records[0].storage_id
