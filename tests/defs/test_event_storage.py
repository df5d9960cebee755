"""The event log under the load that broke the stock one: a pool claimed from six processes at once."""

import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from longshot_dagster.defs import event_storage
from longshot_dagster.defs.event_storage import KeptSqliteEventLogStorage

LIMIT, PROCESSES, CLAIMS = 2, 6, 10
# Forked from one process without threads or connections: importing Dagster six times costs more than the claims.
_CLAIMS = """
import multiprocessing, os, sys, time
from pathlib import Path
from longshot_dagster.defs.event_storage import KeptSqliteEventLogStorage
directory, processes, claims = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
fork = multiprocessing.get_context("fork")
start, held = fork.Barrier(processes), directory / "held"

def claim(number):
    storage, run = KeptSqliteEventLogStorage(str(directory)), f"run-{number}"
    start.wait(60)
    for n in range(claims):
        while not storage.claim_concurrency_slot("two", run, f"step {n}").is_claimed:
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


def test_more_runs_than_connections_are_written_and_read(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_storage, "_MAX_OPEN", 2)
    runs = [f"{n:08d}-0000-4000-8000-000000000000" for n in range(4)]
    for run_id in (*runs, *runs):
        instance.report_engine_event("noted", run_id=run_id, job_name="job")
    assert [len(instance.event_log_storage.get_logs_for_run(run_id)) for run_id in runs] == [2] * 4


def test_what_was_wiped_is_gone(instance: dg.DagsterInstance) -> None:
    run_id = "00000000-0000-4000-8000-000000000000"
    instance.report_engine_event("noted", run_id=run_id, job_name="job")
    instance.event_log_storage.wipe()
    assert list(instance.event_log_storage.get_logs_for_run(run_id)) == []
