"""The contract of the threaded executor: the same events as Dagster's own executors, and what only it promises."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from inspect import Parameter
from pathlib import Path

import dagster as dg
import dagster_jobs
import pytest
from dagster._core.definitions.decorators.op_decorator import DecoratedOpFunction
from dagster._core.definitions.dependency import NodeHandle
from dagster_doubles import instance_config

from longshot_dagster.adapters.host import leases
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.defs import run_context

_EXECUTORS_OWN = {"ENGINE_EVENT", "LOGS_CAPTURED", "STEP_WORKER_STARTING", "STEP_WORKER_STARTED"}
_RESOURCES = {"RESOURCE_INIT_STARTED", "RESOURCE_INIT_SUCCESS", "RESOURCE_INIT_FAILURE"}


Events = dict[str, list[str]]


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


def test_the_private_modules_were_written_for_this_version_of_dagster() -> None:
    look_at = (
        "defs/executor.py, defs/ready_steps.py, defs/run_context.py, defs/event_storage.py, defs/event_text.py and"
        " defs/launcher.py"
    )
    assert dg.__version__ == "1.13.27", f"compare {look_at} with what they take the place of; then change this line"


@pytest.fixture(scope="module")
def of_a_process_per_step(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Events]:
    """What `everything` does with Dagster's own executor, in an instance as stock as it comes."""
    with dg.instance_for_test(temp_dir=str(tmp_path_factory.mktemp("stock"))) as stock:
        return everything("multiprocess", stock)


def everything(executor: str, instance: dg.DagsterInstance) -> tuple[str, Events]:
    """The run's status, and every step's events in their order."""
    instance.event_log_storage.set_concurrency_slots("two", 1)
    job = dg.build_reconstructable_job(
        "dagster_jobs", "build", ("everything", executor), reconstructor_working_directory=str(Path(__file__).parent)
    )
    with dg.execute_job(job, instance=instance, tags={"dagster/partition": "b"}) as result:
        events: Events = {}
        for entry in instance.all_logs(result.run_id):
            event = entry.dagster_event
            if event and event.step_key and event.event_type_value not in _EXECUTORS_OWN | _RESOURCES:
                events.setdefault(event.step_key, []).append(event.event_type_value)
        found = instance.get_run_by_id(result.run_id)
    info = instance.event_log_storage.get_concurrency_info("two")
    assert (info.claimed_slots, info.pending_steps) == ([], [])
    assert found is not None
    return found.status.value, events


@pytest.mark.parametrize("executor", ["in_process", "threaded", "threaded_freely"])
def test_everything_has_the_same_events_in_the_same_order_as_with_a_process_per_step(
    executor: str, instance: dg.DagsterInstance, of_a_process_per_step: tuple[str, Events]
) -> None:
    status, events = everything(executor, instance)
    assert (status, events) == of_a_process_per_step
    assert status == "FAILURE" and "after_a_failure" not in events
    assert events["second_time"].count("STEP_UP_FOR_RETRY") == 1
    assert events["after_a_retry"][-1] == "HOOK_COMPLETED"
    assert events["after_a_skip"] == ["STEP_SKIPPED"]
    assert {"doubled[n1]", "total", "of_nothing", "tagged_too"} <= events.keys()


def execute(name: str, instance: dg.DagsterInstance) -> dg.JobExecutionResult:
    return dg.execute_job(dg.reconstructable(getattr(dagster_jobs, name)), instance=instance)


@pytest.mark.parametrize("shape", sorted(dagster_jobs.SHAPES))
def test_a_job_has_the_same_events_as_in_process(shape: str, instance: dg.DagsterInstance) -> None:
    assert events_of(shape, "threaded", instance) == events_of(shape, "in_process", instance)


def test_what_a_run_learns_of_its_ops_is_what_dagster_finds_and_stays_with_the_run() -> None:
    job = dagster_jobs.asked_for_different_things.to_job()
    learned = run_context.known(job)
    answers = set()
    for node in job.graph.nodes:
        handle = NodeHandle(node.name, None)
        stock, own = job.get_op(handle), learned.get_op(handle)
        assert own is learned.get_op(handle) and own is not stock and job.get_op(handle) is stock
        plain, kept = stock.definition.compute_fn, own.definition.compute_fn
        assert isinstance(plain, DecoratedOpFunction) and isinstance(kept, run_context.KnownFunction)
        for _ in range(2):
            found = (kept.has_context_arg(), kept.has_config_arg(), kept.get_output_annotation())
            assert found == (plain.has_context_arg(), plain.has_config_arg(), plain.get_output_annotation())
            assert kept.get_resource_args() == plain.get_resource_args()
            assert not kept.has_context_arg() or kept.get_context_arg() == plain.get_context_arg()
            answers.add(found)
    assert answers == {(True, True, int), (False, False, int), (False, False, Parameter.empty)}


def test_what_is_stored_of_an_event_is_the_same_whether_or_not_it_is_printed_as_well(
    tmp_path: Path, _empty_databases: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stored, printed = [], []
    for level in ("DEBUG", "INFO"):
        directory = tmp_path / level
        shutil.copytree(_empty_databases, directory)
        config = {**instance_config(directory), "python_logs": {"python_log_level": level}}
        with dg.instance_for_test(temp_dir=str(directory), overrides=config) as instance:
            job = dg.build_reconstructable_job(
                "dagster_jobs",
                "build",
                ("retried", "threaded"),
                reconstructor_working_directory=str(Path(__file__).parent),
            )
            with dg.execute_job(job, instance=instance) as result:
                entries = [e for e in instance.all_logs(result.run_id) if e.step_key and e.is_dagster_event]
        stored.append(
            [
                (e.level, re.sub(r"\d+(\.\d+)?m?s", "", e.user_message), e.step_key, e.job_name, e.dagster_event_type)
                for e in entries
            ]
        )
        printed.append("STEP_START" in capfd.readouterr().err)
    assert stored[0] == stored[1] and len(stored[0]) > 4
    assert printed == [True, False]


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


def test_tasks_wait_in_the_order_of_their_own_priority(instance: dg.DagsterInstance) -> None:
    dagster_jobs.order_of_work()
    instance.event_log_storage.set_concurrency_slots("two", 1)
    assert execute("urgent_ones_first", instance).success
    assert dagster_jobs.order_of_work() == [f"work {n}" for n in reversed(range(8))]


def test_a_pool_that_is_paused_and_then_without_a_limit_lets_all_waiting_steps_start(
    instance: dg.DagsterInstance,
) -> None:
    instance.event_log_storage.set_concurrency_slots("two", 0)
    done: list[bool] = []
    thread = threading.Thread(target=lambda: done.append(execute("urgent_ones_first", instance).success))
    thread.start()
    while len(instance.event_log_storage.get_concurrency_info("two").pending_steps) < 8:
        assert thread.is_alive()
    instance.event_log_storage.delete_concurrency_limit("two")
    thread.join(60)
    assert done == [True]
    assert instance.event_log_storage.get_concurrency_info("two").pending_steps == []


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


@pytest.mark.parametrize(
    ("number", "announced", "status"),
    [(signal.SIGINT, True, "CANCELED"), (signal.SIGTERM, False, "FAILURE")],
    ids=["cancelled in the UI", "a bare SIGTERM"],
)
def test_a_run_asked_to_stop_ends_at_once_and_no_step_of_it_succeeds(
    number: signal.Signals, announced: bool, status: str, tmp_path: Path
) -> None:
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
            if announced:
                with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
                    run = instance.get_run_by_id(run_id)
                    assert run is not None
                    instance.report_run_canceling(run)
            process.send_signal(number)
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
        ended = instance.get_run_by_id(run_id)
        assert ended is not None and ended.status.value == status


def _events(instance: dg.DagsterInstance, run_id: str, kind: dg.DagsterEventType) -> list[dg.DagsterEvent]:
    return [e.dagster_event for e in instance.all_logs(run_id, of_type=kind) if e.dagster_event]
