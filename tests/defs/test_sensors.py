"""What the sensors open and close, from a ledger on disk and an instance of their own."""

import json
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import dagster as dg
import pytest
from dagster_doubles import BUILD, Script, ScriptedLongshot, ScriptedTools, begin, fresh

from longshot_dagster.adapters.host import leases
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.ledger import BuildLedger
from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.models import (
    BuildPhase,
    CheckName,
    CheckResult,
    CheckStatus,
    HandoffStatus,
    MetricsSnapshot,
    Sweep,
)
from longshot_dagster.defs import sensors, ticks

ROOT_1, ROOT_2 = IterationKey(BUILD, "root", 1), IterationKey(BUILD, "root", 2)


def tick(sensor: dg.SensorDefinition, home: Home, instance: dg.DagsterInstance, cursor: str | None = None) -> Any:
    context = dg.build_sensor_context(
        instance=instance, cursor=cursor, resources={"longshot": ScriptedLongshot(home=str(home.root))}
    )
    return sensor(context)


def keys(result: dg.SensorResult) -> list[str | None]:
    return [r.run_key for r in result.run_requests or []]


def play(home: Home, key: IterationKey, tasks: int = 1, landed: int = 1) -> BuildLedger:
    """`key` as far as its workers have come: planned, the first `landed` tasks landed."""
    tools = ScriptedTools(home, BUILD)
    tools.script.plans = {**tools.script.plans, key.short: [f"{key.short}-{n}.py" for n in range(tasks)]}
    tools.ledger.open_iteration(key)
    plan = tools.ledger.freeze_plan(key, tools.plan(key, tools.repo_state(tools.fetch()), tools.ledger.view()))
    for task in plan.tasks[:landed]:
        tools.run(task, lambda: False)
        tools.land(task)
    if landed == tasks:
        tools.ledger.save_metrics(key, MetricsSnapshot(iteration=key.short))
    return tools.ledger


def test_the_first_iteration_is_asked_for_with_its_partition_and_attempt(
    home: Home, instance: dg.DagsterInstance
) -> None:
    begin(home, Script())
    result = tick(sensors.replan, home, instance)
    (request,) = result.run_requests
    assert (request.run_key, request.partition_key) == (f"{ROOT_1}#1", str(ROOT_1))
    assert request.tags["dagster/retry_strategy"] == "ALL_STEPS"
    assert (request.tags["longshot/build"], request.tags["longshot/attempt"]) == (BUILD, "1")
    assert [list(r.partition_keys) for r in result.dynamic_partitions_requests] == [[str(ROOT_1)]]


def test_a_running_iteration_is_not_asked_for_at_every_tick(home: Home, instance: dg.DagsterInstance) -> None:
    begin(home, Script())
    first = tick(sensors.replan, home, instance)
    assert keys(tick(sensors.replan, home, instance, first.cursor)) == []
    long_ago = json.dumps({f"{ROOT_1}#1": time.time() - 3600})
    assert keys(tick(sensors.replan, home, instance, long_ago)) == [f"{ROOT_1}#1"]


def test_the_next_iteration_opens_after_three_handoffs_while_the_first_still_runs(
    home: Home, instance: dg.DagsterInstance
) -> None:
    begin(home, Script())
    play(home, ROOT_1, tasks=5, landed=2)
    asked = json.dumps({f"{ROOT_1}#1": time.time()})
    assert keys(tick(sensors.replan, home, instance, asked)) == []
    play(home, ROOT_1, tasks=5, landed=3)
    assert keys(tick(sensors.replan, home, instance, asked)) == [f"{ROOT_2}#1"]
    assert ROOT_2 in fresh(home).iterations()


def test_only_the_reconcile_sensor_opens_fix_iterations(home: Home, instance: dg.DagsterInstance) -> None:
    begin(home, Script(conflicts=frozenset({"r001-01"})))
    play(home, ROOT_1, tasks=1, landed=1)
    assert keys(tick(sensors.replan, home, instance)) == [f"{ROOT_2}#1"]
    assert keys(tick(sensors.reconcile, home, instance)) == [f"{BUILD}.fix.001#1"]


def test_a_drained_build_is_finalized_and_nothing_else_starts_meanwhile(
    home: Home, instance: dg.DagsterInstance
) -> None:
    begin(home, Script())
    play(home, ROOT_1)
    ledger = play(home, ROOT_2, tasks=0, landed=0)
    (request,) = tick(sensors.finalize, home, instance).run_requests
    assert (request.run_key, request.partition_key) == (f"{BUILD}#finalize.001.1", BUILD)
    ledger.update_state(lambda s: s.moved(BuildPhase.FINALIZING))
    red = CheckResult(name=CheckName.TEST, command="make test", status=CheckStatus.RED)
    green = red.model_copy(update={"status": CheckStatus.GREEN})
    for number, check in ((1, green), (2, red)):
        ledger.save_sweep(
            Sweep(number=number, head=f"{number}" * 40, checks=(check,), started_at=number, ended_at=number)
        )
    assert keys(tick(sensors.reconcile, home, instance)) == []


@pytest.mark.parametrize("phase", [BuildPhase.PAUSED, BuildPhase.FINISHED])
def test_a_paused_or_finished_build_is_left_alone(phase: BuildPhase, home: Home, instance: dg.DagsterInstance) -> None:
    ledger = begin(home, Script())
    ledger.update_state(lambda s: s.model_copy(update={"phase": phase}))
    for sensor in (sensors.replan, sensors.reconcile, sensors.finalize):
        assert keys(tick(sensor, home, instance)) == []


@pytest.mark.parametrize("what", ["request.json", "state.json", "iterations/strange"])
def test_a_broken_ledger_stops_its_own_build_only(what: str, home: Home, instance: dg.DagsterInstance) -> None:
    begin(home, Script())
    broken = home.builds / "broken-0001"
    (broken / what).parent.mkdir(parents=True)
    (broken / "request.json").write_bytes((home.builds / BUILD / "request.json").read_bytes())
    if what.endswith(".json"):
        (broken / what).write_text('{"phase": "of a later version"}', encoding="utf-8")
    else:
        (broken / what).mkdir()
    assert keys(tick(sensors.replan, home, instance)) == [f"{ROOT_1}#1"]
    ended(instance, dg.DagsterRunStatus.FAILURE, **{"longshot/build": broken.name})
    ended(instance, dg.DagsterRunStatus.FAILURE)
    tick(sensors.failed_runs, home, instance)
    assert fresh(home).state().phase is BuildPhase.PAUSED


def test_a_subplanner_that_is_done_hands_in_its_task(home: Home, instance: dg.DagsterInstance) -> None:
    pytest.importorskip("longshot_dagster.core.planning")
    begin(home, Script())
    tools = ScriptedTools(home, BUILD)
    plan = tools.plan(ROOT_1, tools.repo_state(tools.fetch()), tools.ledger.view())
    parent = _task(ROOT_1, "big/", delegated=True)
    tools.ledger.freeze_plan(ROOT_1, plan.model_copy(update={"tasks": (parent,)}))
    tools.ledger.save_metrics(ROOT_1, MetricsSnapshot(iteration="root.001"))
    part = IterationKey(BUILD, parent.id, 1)
    play(home, part)
    play(home, IterationKey(BUILD, parent.id, 2), tasks=0, landed=0)
    result = tick(sensors.replan, home, instance)
    assert [e.partition for e in result.asset_events] == [f"{BUILD}.{parent.id}"]
    handoff = fresh(home).handoff(parent.id)
    assert handoff is not None and handoff.status is HandoffStatus.COMPLETE
    assert tick(sensors.replan, home, instance).asset_events == []


def _task(key: IterationKey, scope: str, delegated: bool) -> Any:
    from longshot_dagster.core.ids import task_id
    from longshot_dagster.core.models import Task

    name = task_id(key, 1)
    return Task(
        id=name,
        build=BUILD,
        iteration=key.short,
        planner=key.planner,
        description="big",
        scope=(scope,),
        branch=f"worker/{name}",
        delegated=delegated,
    )


# --- ended runs --------------------------------------------------------------------------------------------------------


def ended(instance: dg.DagsterInstance, status: dg.DagsterRunStatus, **tags: str) -> dg.DagsterRun:
    """A run of the first attempt at root.001 as Dagster has recorded it."""
    ours = {
        "dagster/partition": str(ROOT_1),
        "longshot/build": BUILD,
        "longshot/attempt": "1",
        "dagster/will_retry": "false",
    }
    run = dg.DagsterRun(job_name="planning_iteration", run_id=str(uuid4()), status=status, tags=ours | tags)
    return instance.add_run(run)


def test_a_run_that_failed_for_good_pauses_its_build(home: Home, instance: dg.DagsterInstance) -> None:
    begin(home, Script())
    ended(instance, dg.DagsterRunStatus.FAILURE)
    tick(sensors.failed_runs, home, instance)
    ledger = fresh(home)
    failure = ledger.failure(ROOT_1)
    assert failure is not None and (failure.kind, failure.attempt) == ("crash", 1)
    assert ledger.state().phase is BuildPhase.PAUSED
    assert "planning_iteration failed" in ledger.state().reason


def test_a_run_that_dagster_retries_pauses_nothing(home: Home, instance: dg.DagsterInstance) -> None:
    begin(home, Script())
    ended(instance, dg.DagsterRunStatus.FAILURE, **{"dagster/will_retry": "true"})
    tick(sensors.failed_runs, home, instance)
    assert fresh(home).state().phase is BuildPhase.RUNNING


def test_a_cancelled_run_says_how_to_go_on(home: Home, instance: dg.DagsterInstance) -> None:
    begin(home, Script())
    ended(instance, dg.DagsterRunStatus.CANCELED)
    tick(sensors.failed_runs, home, instance)
    assert fresh(home).state().reason == f"cancelled; longshot resume {BUILD}"


@pytest.mark.parametrize("situation", ["killed", "handed in", "tried again since", "its iteration goes on"])
def test_only_a_retry_that_left_its_task_undone_pauses_the_build(
    home: Home, instance: dg.DagsterInstance, situation: str
) -> None:
    begin(home, Script())
    ledger = play(home, ROOT_1, tasks=2, landed=1 if situation == "its iteration goes on" else 2)
    retry = {"dagster/partition": f"{BUILD}.r001-01", "longshot/attempt": ""}
    ended(instance, dg.DagsterRunStatus.FAILURE, **retry)
    if situation == "tried again since":
        ended(instance, dg.DagsterRunStatus.STARTED, **retry)
    if situation != "handed in":
        directory = Path(str(ledger.directory)) / "tasks" / "r001-01"
        (directory / "landing.json").unlink()
        (directory / "handoff.json").unlink()
    tick(sensors.failed_runs, home, instance)
    state = fresh(home).state()
    assert (state.phase is BuildPhase.PAUSED) is (situation == "killed")
    assert state.reason == (
        "" if situation != "killed" else f"the retry of r001-01 was cut short; longshot resume {BUILD}"
    )


def test_the_end_of_an_earlier_attempt_does_not_pause_a_resumed_build(home: Home, instance: dg.DagsterInstance) -> None:
    ledger = begin(home, Script())
    ended(instance, dg.DagsterRunStatus.FAILURE)
    cursor = tick(sensors.failed_runs, home, instance).cursor
    ledger.update_state(lambda s: s.moved(BuildPhase.RUNNING).model_copy(update={"attempts": {ROOT_1.short: 2}}))
    tick(sensors.failed_runs, home, instance, cursor)
    assert fresh(home).state().phase is BuildPhase.RUNNING


def test_a_reason_that_is_there_already_stays(home: Home, instance: dg.DagsterInstance) -> None:
    ledger = begin(home, Script())
    ledger.update_state(lambda s: s.moved(BuildPhase.PAUSED, "the budget is spent"))
    ended(instance, dg.DagsterRunStatus.FAILURE)
    tick(sensors.failed_runs, home, instance)
    assert fresh(home).state().reason == "the budget is spent"


def test_a_finalization_that_crashed_runs_under_a_new_key_once_resumed(
    home: Home, instance: dg.DagsterInstance
) -> None:
    begin(home, Script())
    play(home, ROOT_1)
    play(home, ROOT_2, tasks=0, landed=0)
    ended(instance, dg.DagsterRunStatus.FAILURE, **{"longshot/finalization": "1"})
    tick(sensors.failed_runs, home, instance)
    ledger = fresh(home)
    assert ledger.state().phase is BuildPhase.PAUSED
    ledger.update_state(lambda s: s.moved(BuildPhase.RUNNING))
    assert keys(tick(sensors.finalize, home, instance)) == [f"{BUILD}#finalize.001.2"]


class Clock:
    """A wall clock that a test sets."""

    def __init__(self) -> None:
        self.at = time.time()

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        raise AssertionError("a sensor waits for nothing")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(sensors, "CLOCK", clock)
    return clock


def test_a_lost_launch_is_asked_for_again_at_once_when_the_clock_was_set_back(
    home: Home, instance: dg.DagsterInstance, clock: Clock
) -> None:
    begin(home, Script())
    clock.at += 3600
    first = tick(sensors.replan, home, instance)
    clock.at += 30
    second = tick(sensors.replan, home, instance, first.cursor)
    assert keys(second) == []
    clock.at -= 3600
    third = tick(sensors.replan, home, instance, second.cursor)
    assert keys(third) == [f"{ROOT_1}#1"]
    clock.at += 30
    assert keys(tick(sensors.replan, home, instance, third.cursor)) == []


def test_the_end_of_a_run_is_noted_though_the_clock_was_set_back_long_before(
    home: Home, instance: dg.DagsterInstance, clock: Clock
) -> None:
    """By an hour, and no sensor has looked for half of one."""
    begin(home, Script())
    cursor = str(clock.at + 1800)
    ended(instance, dg.DagsterRunStatus.FAILURE)
    clock.at += 1790
    cursor = tick(sensors.failed_runs, home, instance, cursor).cursor
    assert fresh(home).state().phase is BuildPhase.PAUSED
    assert float(cursor) <= clock.at


def test_the_end_of_a_run_that_lies_in_the_future_is_noted_once(
    home: Home, instance: dg.DagsterInstance, clock: Clock
) -> None:
    ledger = begin(home, Script())
    ended(instance, dg.DagsterRunStatus.FAILURE)
    cursor = str(clock.at)
    clock.at -= 3600
    cursor = tick(sensors.failed_runs, home, instance, cursor).cursor
    assert ledger.state().phase is BuildPhase.PAUSED
    assert float(cursor) == clock.at
    clock.at += 5
    seen: list[str] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sensors, "note_end", lambda *_: seen.append("noted"))
        tick(sensors.failed_runs, home, instance, cursor)
    assert seen == [], "it would be at every tick for an hour"


def test_an_end_that_is_not_decided_yet_is_not_passed_over_when_the_clock_was_set_back(
    home: Home, instance: dg.DagsterInstance, clock: Clock
) -> None:
    begin(home, Script())
    run = ended(instance, dg.DagsterRunStatus.FAILURE)
    untagged = dg.DagsterRun(job_name="planning_iteration", run_id=str(uuid4()), status=dg.DagsterRunStatus.FAILURE)
    instance.add_run(untagged)
    cursor = str(clock.at + 3600)
    clock.at = time.time()
    assert tick(sensors.failed_runs, home, instance, cursor).cursor == cursor
    assert run.tags["dagster/will_retry"] == "false"
    clock.at += 5
    assert float(tick(sensors.failed_runs, home, instance, cursor).cursor) < clock.at


def test_a_run_of_the_future_whose_process_is_gone_is_marked_failed(
    home: Home, instance: dg.DagsterInstance, clock: Clock
) -> None:
    lost = ended(instance, dg.DagsterRunStatus.STARTED)
    (Path(home.leases) / f"run-{lost.run_id}").write_text("1", encoding="utf-8")
    tick(sensors.lost_runs, home, instance)
    assert [r.status for r in instance.get_runs()] == [dg.DagsterRunStatus.STARTED], "it has just started"
    clock.at -= 3600
    tick(sensors.lost_runs, home, instance)
    assert [r.status for r in instance.get_runs()] == [dg.DagsterRunStatus.FAILURE]


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED])
def test_a_run_whose_process_is_gone_is_marked_failed(
    home: Home, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, status: dg.DagsterRunStatus
) -> None:
    monkeypatch.setattr(sensors, "_LEASE_TAKEN_S", -1)
    lost, alive, unknown = (ended(instance, status) for _ in range(3))
    leases.hold(home, alive.run_id)
    (Path(home.leases) / f"run-{lost.run_id}").write_text("1", encoding="utf-8")
    tick(sensors.lost_runs, home, instance)
    found = {run.run_id: run.status for run in instance.get_runs()}
    assert found == {lost.run_id: dg.DagsterRunStatus.FAILURE, alive.run_id: status, unknown.run_id: status}


def test_ticks_share_one_instance_with_what_dagster_asks_of_it(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ticks, "_opened", [])
    contexts = [tick_of(instance), tick_of(instance)]
    found = [ticks.instance_of(context) for context in contexts]
    assert found[0] is found[1]
    assert [context.instance for context in contexts] == found
    found[0].dispose()


def tick_of(instance: dg.DagsterInstance) -> dg.SensorEvaluationContext:
    """What a code server is given: where the instance is, not the instance."""
    return dg.SensorEvaluationContext(
        instance_ref=instance.get_ref(),
        last_tick_completion_time=None,
        last_run_key=None,
        cursor=None,
        repository_name=None,
    )
