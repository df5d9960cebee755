"""The contract of the threaded executor: the same events as Dagster's own executors, and what only it promises."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import dagster as dg
import dagster_jobs
import pytest

from longshot_dagster.adapters import leases
from longshot_dagster.adapters.home import Home

_EXECUTORS_OWN = {"ENGINE_EVENT", "LOGS_CAPTURED", "STEP_WORKER_STARTING", "STEP_WORKER_STARTED"}
_RESOURCES = {"RESOURCE_INIT_STARTED", "RESOURCE_INIT_SUCCESS", "RESOURCE_INIT_FAILURE"}


def events_of(shape: str, executor: str, instance: dg.DagsterInstance) -> tuple[bool, list[tuple[str, str]]]:
    reconstructable = dg.build_reconstructable_job(
        "dagster_jobs", "build", (shape, executor), reconstructor_working_directory=str(Path(__file__).parent)
    )
    result = dg.execute_job(reconstructable, instance=instance)
    found = [
        (e.event_type_value, e.step_key or "")
        for e in result.all_events
        if e.event_type_value not in _EXECUTORS_OWN | _RESOURCES
    ]
    return result.success, sorted(found)


def execute(name: str, instance: dg.DagsterInstance) -> dg.JobExecutionResult:
    return dg.execute_job(dg.reconstructable(getattr(dagster_jobs, name)), instance=instance)


@pytest.mark.parametrize("shape", sorted(dagster_jobs.SHAPES))
def test_a_job_has_the_same_events_as_in_process(shape: str, instance: dg.DagsterInstance) -> None:
    assert events_of(shape, "threaded", instance) == events_of(shape, "in_process", instance)


def test_a_skip_has_the_same_events_as_with_a_process_per_step(instance: dg.DagsterInstance) -> None:
    assert events_of("skipped", "threaded", instance) == events_of("skipped", "multiprocess", instance)


def test_mapped_steps_start_in_the_order_of_their_outputs_and_landings_first(instance: dg.DagsterInstance) -> None:
    dagster_jobs.order_of_work()
    assert execute("one_at_a_time", instance).success
    assert dagster_jobs.order_of_work() == ["work 3", "land 3", "work 1", "land 1", "work 2", "land 2"]


def test_a_pool_is_never_overrun_and_its_slots_come_back(instance: dg.DagsterInstance) -> None:
    instance.event_log_storage.set_concurrency_slots("two", 2)
    assert execute("in_a_pool", instance).success
    info = instance.event_log_storage.get_concurrency_info("two")
    assert (info.claimed_slots, info.pending_steps) == ([], [])


def test_a_pool_of_none_holds_its_steps_until_the_limit_is_raised(instance: dg.DagsterInstance) -> None:
    instance.event_log_storage.set_concurrency_slots("two", 0)
    done: list[bool] = []
    thread = threading.Thread(target=lambda: done.append(execute("in_a_pool", instance).success))
    thread.start()
    while len(instance.event_log_storage.get_concurrency_info("two").pending_steps) < 8:
        assert thread.is_alive()
    assert done == []
    instance.event_log_storage.set_concurrency_slots("two", 2)
    thread.join(60)
    assert done == [True]


def test_a_tag_limit_is_kept(instance: dg.DagsterInstance) -> None:
    assert execute("one_per_tag", instance).success


_YAML = """
telemetry: {enabled: false}
compute_logs: {module: dagster._core.storage.noop_compute_log_manager, class: NoOpComputeLogManager}
"""
_RUN = """
import dagster as dg, dagster_jobs
with dg.DagsterInstance.get() as instance:
    dg.execute_job(dg.reconstructable(dagster_jobs.waiting), instance=instance)
"""


def test_a_cancelled_run_ends_at_once_and_no_step_of_it_succeeds(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text(_YAML, encoding="utf-8")
    home = Home(tmp_path / "home")
    environment = {**os.environ, "DAGSTER_HOME": str(tmp_path), "LONGSHOT_HOME": str(home.root)}
    environment["PYTHONPATH"] = str(Path(__file__).parent)
    argv = [sys.executable, "-W", "ignore", "-c", _RUN]
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            run_id, same = (process.stdout.readline().decode().strip() for _ in range(2))
            assert run_id == same
            assert leases.holder(home, run_id) == process.pid
            process.send_signal(signal.SIGINT)
            process.wait(30)
        finally:
            process.kill()
    assert leases.holder(home, run_id) is None
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert {e.step_key for e in _events(instance, run_id, dg.DagsterEventType.STEP_FAILURE)} == {
            "waits",
            "waits_too",
        }
        assert not _events(instance, run_id, dg.DagsterEventType.STEP_SUCCESS)


def _events(instance: dg.DagsterInstance, run_id: str, kind: dg.DagsterEventType) -> list[dg.DagsterEvent]:
    return [e.dagster_event for e in instance.all_logs(run_id, of_type=kind) if e.dagster_event]
