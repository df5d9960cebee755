"""One planning round through the real executor, the real ledger and scripted model, sandboxes and git."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dagster as dg
import pytest
from dagster_doubles import BUILD, Script, ScriptedTools, begin, definitions, fresh

from longshot_dagster.adapters.host.exclusive import claim
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.core.errors import BudgetExhausted, Cancelled, ModelUnavailable
from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.lifecycle import Finalize, RunIteration, next_steps
from longshot_dagster.core.models import (
    BuildPhase,
    CheckStatus,
    HandoffStatus,
    RepoState,
    Sweep,
    TaskKind,
)
from longshot_dagster.defs.iteration import await_retried, complete, sweep_main

FIRST = IterationKey(BUILD, "root", 1)


def run(instance: dg.DagsterInstance, home: Home, key: IterationKey = FIRST, **tags: str) -> dg.JobExecutionResult:
    instance.add_dynamic_partitions("iterations", [str(key)])
    with dg.execute_job(
        dg.build_reconstructable_job(
            "dagster_doubles",
            "job",
            (str(home.root), "planning_iteration"),
            reconstructor_working_directory=str(Path(__file__).parent),
        ),
        instance=instance,
        tags={"dagster/partition": str(key), **tags},
    ) as result:
        return result


def failures(result: dg.JobExecutionResult) -> list[str]:
    found = [e.step_failure_data.user_failure_data for e in result.all_events if e.is_step_failure]
    return [f.description for f in found if f and f.description]


def record_of(instance: dg.DagsterInstance, task: str) -> dg.AssetMaterialization:
    found = instance.fetch_materializations(
        dg.AssetRecordsFilter(dg.AssetKey("task_result"), asset_partitions=[f"{BUILD}.{task}"]), limit=1
    ).records
    assert found, task
    materialization = found[0].asset_materialization
    assert materialization is not None
    return materialization


def unsynced_reasons(instance: dg.DagsterInstance, home: Home, task: str) -> list[str]:
    # What the UI's badge is made of; there is no public way to ask.
    from dagster._core.definitions.data_version import CachingStaleStatusResolver
    from dagster._core.loader import LoadingContextForTest

    graph = definitions(str(home.root)).resolve_asset_graph()
    resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
    return [cause.reason for cause in resolver.get_stale_causes(dg.AssetKey("task_result"), f"{BUILD}.{task}")]


def test_an_iteration_materializes_six_assets_and_a_record_per_task(instance: dg.DagsterInstance, home: Home) -> None:
    script = Script(plans={"root.001": ["a.py", "b.py", "c.py"]})
    ledger = begin(home, script)
    result = run(instance, home)
    assert result.success
    assets = {e.asset_key.path[-1] for e in result.all_events if e.is_step_materialization and e.asset_key}
    assert assets == {"repo_state", "plan", "handoffs", "landings", "health", "metrics", "task_result"}
    assert sorted(instance.get_dynamic_partitions("tasks")) == [f"{BUILD}.r001-0{n}" for n in (1, 2, 3)]
    metrics = ledger.metrics(FIRST)
    assert metrics is not None
    assert (metrics.tasks, metrics.landed, metrics.health) == (3, 3, "green")
    checks = {
        e.asset_check_evaluation_data.check_name: e.asset_check_evaluation_data.passed
        for e in result.all_events
        if e.event_type_value == "ASSET_CHECK_EVALUATION"
    }
    assert checks == {"checks_pass": True, "no_conflict_markers": True, "all_landed": True}
    assert not list(home.builds.rglob("*.pickle"))


def test_a_task_costs_seven_events_and_no_file_between_its_steps(instance: dg.DagsterInstance, home: Home) -> None:
    begin(home, Script(plans={"root.001": ["a.py"]}))
    events = [e for e in run(instance, home).all_events if e.step_key]
    shown = {
        s: [e.event_type_value for e in events if e.step_key.endswith(f"{s}[r001_01]")] for s in ("run_worker", "land")
    }
    assert shown == {
        "run_worker": ["STEP_START", "STEP_OUTPUT", "STEP_SUCCESS"],
        "land": ["STEP_START", "ASSET_MATERIALIZATION", "STEP_OUTPUT", "STEP_SUCCESS"],
    }
    said = [e.step_output_data.metadata for e in events if "run_worker[" in e.step_key and e.is_successful_output]
    assert [{name: value.value for name, value in each.items()} for each in said] == [
        {"task": "r001-01", "status": "complete"}
    ]
    assert not list(home.builds.rglob("run_worker*.json"))


def test_a_task_record_can_be_read_and_carries_no_markup(instance: dg.DagsterInstance, home: Home) -> None:
    begin(home, Script(plans={"root.001": ["a.py"]}))
    run(instance, home)
    record = record_of(instance, "r001-01")
    metadata = {name: str(value.value) for name, value in record.metadata.items()}
    assert metadata["status"] == "complete"
    assert metadata["landing"] == "landed"
    assert metadata["diff"].startswith("````diff\n+hello")
    assert metadata["iteration"] == "root.001"
    assert metadata["rehearsal"].startswith("a scripted model")
    assert metadata["transcript"].endswith("tasks/r001-01/transcript.jsonl")
    assert metadata["summary"] == r"wrote a\.py \<img src=x\> \[/bold\]"


def test_a_task_record_is_never_called_unsynced(instance: dg.DagsterInstance, home: Home) -> None:
    begin(home, Script(plans={"root.001": ["a.py"], "root.002": []}))
    run(instance, home)
    run(instance, home, IterationKey(BUILD, "root", 2))  # repo_state and plan are newer now
    assert unsynced_reasons(instance, home, "r001-01") == []


def test_an_empty_plan_has_no_workers_and_still_measures(instance: dg.DagsterInstance, home: Home) -> None:
    ledger = begin(home, Script())
    assert run(instance, home).success
    assert ledger.metrics(FIRST) is not None
    assert next_steps(fresh(home).view()) == [Finalize(1)]


def test_a_repeated_run_asks_nobody_again(instance: dg.DagsterInstance, home: Home) -> None:
    script = Script(plans={"root.001": ["a.py", "b.py"]})
    begin(home, script)
    assert run(instance, home).success
    assert run(instance, home).success
    assert (script.planned, sorted(script.worked), len(script.swept)) == (["root.001"], ["r001-01", "r001-02"], 1)


@pytest.mark.parametrize("error", [ModelUnavailable("no endpoint answers"), BudgetExhausted("the budget is spent")])
def test_a_worker_without_a_model_pauses_the_build_and_leaves_its_task_unfinished(
    instance: dg.DagsterInstance, home: Home, error: Exception
) -> None:
    instance.event_log_storage.set_concurrency_slots("sandbox", 1)  # one after the other
    script = Script(plans={"root.001": ["a.py", "b.py", "c.py"]}, worker_raises={"r001-02": error})
    begin(home, script)
    result = run(instance, home)
    assert not result.success
    assert failures(result) == [str(error), f"not begun, because the build is paused: {error}"]
    assert script.worked == ["r001-01", "r001-02"]
    ledger = fresh(home)
    assert (ledger.state().phase, ledger.state().reason) == (BuildPhase.PAUSED, str(error))
    assert ledger.handoff("r001-01") and not ledger.handoff("r001-02")
    assert ledger.failure(FIRST) is not None
    assert next_steps(ledger.view()) == []


def test_a_run_that_was_queued_when_its_build_was_paused_asks_no_model(
    instance: dg.DagsterInstance, home: Home
) -> None:
    script = Script(plans={"root.001": ["a.py"]})
    begin(home, script).update_state(lambda s: s.moved(BuildPhase.PAUSED, "interrupted by Ctrl-C"))
    assert not run(instance, home, **{"longshot/build": BUILD, "longshot/attempt": "1"}).success
    assert (script.planned, fresh(home).state().reason) == ([], "interrupted by Ctrl-C")
    failure = fresh(home).failure(FIRST)
    assert failure is not None and failure.attempt == 1  # so that a resume gives it a new one


def test_a_planner_that_is_not_understood_pauses_in_one_line(instance: dg.DagsterInstance, home: Home) -> None:
    begin(home, Script(plans={"root.001": ModelUnavailable("every endpoint answered 500\nsecond line")}))
    result = run(instance, home)
    assert failures(result) == ["every endpoint answered 500 second line"]
    assert fresh(home).state().reason == "every endpoint answered 500 second line"


def test_a_resumed_iteration_works_only_on_what_is_missing(instance: dg.DagsterInstance, home: Home) -> None:
    script = Script(plans={"root.001": ["a.py", "b.py"]}, worker_raises={"r001-02": ModelUnavailable("down")})
    begin(home, script)
    run(instance, home, **{"longshot/attempt": "1"})
    script.worker_raises = {}
    ledger = fresh(home)
    ledger.update_state(lambda s: s.moved(BuildPhase.RUNNING).model_copy(update={"attempts": {"root.001": 2}}))
    assert next_steps(ledger.view()) == [RunIteration(FIRST, 2)]
    assert run(instance, home, **{"longshot/attempt": "2"}).success
    assert (script.planned, sorted(script.worked)) == (["root.001"], ["r001-01", "r001-02", "r001-02"])


def test_an_attempt_left_behind_by_a_resume_pauses_nothing(instance: dg.DagsterInstance, home: Home) -> None:
    begin(home, Script(plans={"root.001": ModelUnavailable("down")}))
    fresh(home).update_state(lambda s: s.model_copy(update={"attempts": {"root.001": 2}}))
    assert not run(instance, home, **{"longshot/attempt": "1"}).success
    assert fresh(home).state().phase is BuildPhase.RUNNING


def test_a_red_main_fails_its_check_and_not_the_run(instance: dg.DagsterInstance, home: Home) -> None:
    begin(home, Script(plans={"root.001": ["a.py"]}, check=CheckStatus.RED))
    result = run(instance, home)
    assert result.success
    checks = {
        e.asset_check_evaluation_data.check_name: e.asset_check_evaluation_data
        for e in result.all_events
        if e.event_type_value == "ASSET_CHECK_EVALUATION"
    }
    assert not checks["checks_pass"].passed
    assert checks["checks_pass"].metadata["build"].value == BUILD
    assert checks["no_conflict_markers"].passed


def test_what_does_not_land_is_a_result(instance: dg.DagsterInstance, home: Home) -> None:
    begin(
        home,
        Script(
            plans={"root.001": ["a.py", "b.py", "c.py"]},
            statuses={"r001-01": HandoffStatus.FAILED},
            conflicts=frozenset({"r001-02"}),
        ),
    )
    assert run(instance, home).success
    states = {t.id: t.landing for t in fresh(home).view().tasks}
    assert states == {
        "r001-01": LandingState.WITHHELD,
        "r001-02": LandingState.CONFLICT,
        "r001-03": LandingState.LANDED,
    }


def test_a_conflict_that_merges_by_now_lands_before_a_fix_is_planned(instance: dg.DagsterInstance, home: Home) -> None:
    script = Script(plans={"root.001": ["a.py", "b.py"]}, conflicts=frozenset({"r001-01", "r001-02"}))
    begin(home, script)
    assert run(instance, home).success
    script.merges_by_now = frozenset({"r001-01"})
    assert run(instance, home, IterationKey(BUILD, "fix", 1)).success
    assert str(record_of(instance, "r001-01").metadata["landing"].value).startswith("landed")
    assert str(record_of(instance, "r001-02").metadata["landing"].value).startswith("conflict")


def test_a_fix_of_what_merges_by_now_needs_no_worker(instance: dg.DagsterInstance, home: Home) -> None:
    script = Script(plans={"root.001": ["a.py"], "fix.001": ["a.py"]}, conflicts=frozenset({"r001-01"}))
    ledger = begin(home, script)
    assert run(instance, home).success
    script.replaces, script.kind = {"f001-01": ("r001-01",)}, TaskKind.CONFLICT_FIX
    key = IterationKey(BUILD, "fix", 1)
    state = RepoState(head="1" * 40, branch="main", files=1, tree=(), log=())
    ledger.open_iteration(key)
    ledger.freeze_plan(key, ScriptedTools(home, BUILD).plan(key, state, ledger.view()))
    script.merges_by_now = frozenset({"r001-01"})
    assert run(instance, home, key).success
    assert script.worked == ["r001-01"]
    assert str(record_of(instance, "r001-01").metadata["landing"].value).startswith("landed")
    handoff = fresh(home).handoff("f001-01")
    assert handoff is not None and handoff.status is HandoffStatus.COMPLETE


def test_a_landing_that_supersedes_another_task_renews_that_tasks_record(
    instance: dg.DagsterInstance, home: Home
) -> None:
    script = Script(
        plans={"root.001": ["a.py"], "fix.001": ["a.py"]},
        conflicts=frozenset({"r001-01"}),
        replaces={"f001-01": ("r001-01",)},
    )
    begin(home, script)
    assert run(instance, home).success
    assert str(record_of(instance, "r001-01").metadata["landing"].value).startswith("conflict")
    assert run(instance, home, IterationKey(BUILD, "fix", 1)).success
    assert str(record_of(instance, "r001-01").metadata["landing"].value).startswith("superseded")


def test_the_guard_names_the_task_whose_documents_are_gone(home: Home) -> None:

    from longshot_dagster.core.errors import IncompleteIteration
    from longshot_dagster.defs.iteration import complete

    begin(home, Script(plans={"root.001": ["a.py", "b.py"]}))
    tools = ScriptedTools(home, BUILD)
    plan = tools.ledger.freeze_plan(FIRST, tools.plan(FIRST, tools.repo_state(tools.fetch()), tools.ledger.view()))
    tools.run(plan.tasks[0], lambda: False)
    tools.land(plan.tasks[0])
    with pytest.raises(IncompleteIteration, match=r"root\.001 has no result of r001-02"):
        complete(tools, plan)


def test_a_task_that_a_person_retries_meanwhile_is_waited_for(home: Home) -> None:
    begin(home, Script(plans={"root.001": ["a.py"]}, statuses={"r001-01": HandoffStatus.FAILED}))
    tools = ScriptedTools(home, BUILD)
    plan = tools.ledger.freeze_plan(FIRST, tools.plan(FIRST, tools.repo_state(tools.fetch()), tools.ledger.view()))
    tools.run(plan.tasks[0], lambda: False)
    tools.land(plan.tasks[0])
    tools.ledger.forget_work("r001-01")
    tools.script.statuses = {}
    lock = tools.ledger.work_lock("r001-01")
    assert lock is not None
    with ThreadPoolExecutor(1) as pool, claim(lock):
        with pytest.raises(Cancelled):
            await_retried(tools, plan, lambda: True)
        waiting = pool.submit(await_retried, tools, plan, lambda: False)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.3)
        tools.run(plan.tasks[0], lambda: False)
        waiting.result(timeout=30)
    assert [o.state for o in complete(tools, plan)[1]] == [LandingState.LANDED]


def test_main_is_not_swept_again_while_nothing_lands(instance: dg.DagsterInstance, home: Home) -> None:
    script = Script(plans={"root.001": ["a.py"]})
    begin(home, script)
    run(instance, home)
    second = IterationKey(BUILD, "root", 2)
    assert run(instance, home, second).success
    assert len(script.swept) == 1
    metrics = fresh(home).metrics(second)
    assert metrics is not None and metrics.health == "green"


def test_a_sweep_that_began_while_a_branch_was_being_pushed_is_not_the_last_word(home: Home) -> None:
    script = Script()
    begin(home, script)
    tools = ScriptedTools(home, BUILD)
    before = sweep_main(tools, "root.001", lambda: False)
    dated = LandingOutcome(task="r001-01", state=LandingState.LANDED, history=((LandingState.LANDED, 1.0),))
    script.landed.append("r001-01")  # pushed after the sweep began, though dated before
    tools.ledger.save_landing(dated)
    after = sweep_main(tools, "root.002", lambda: False)
    assert before.head != after.head == tools.fetch()


def test_a_sweep_that_could_not_run_is_tried_again(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(home, Script())
    tools = ScriptedTools(home, BUILD)
    with monkeypatch.context() as broken:
        broken.setattr(
            tools,
            "sweep",
            lambda head, n, *_: Sweep(number=n, head=head, error="the disk is full", started_at=1, ended_at=2),
        )
        assert sweep_main(tools, "root.001", lambda: False).red
    assert sweep_main(tools, "root.002", lambda: False).green


def test_two_runs_of_one_iteration_ask_the_planner_once(instance: dg.DagsterInstance, home: Home) -> None:
    script = Script(plans={"root.001": ["a.py"]})
    ledger = begin(home, script)
    with ThreadPoolExecutor(1) as pool:
        with ledger.lock(f"planning-{FIRST.short}"):  # as the other run holds it while its planner is asked
            late = pool.submit(run, instance, home)
            tools = ScriptedTools(home, BUILD)
            plan = tools.plan(FIRST, tools.repo_state(tools.fetch()), ledger.view())
            with pytest.raises(TimeoutError):
                late.result(timeout=1.5)
            ledger.freeze_plan(FIRST, plan)
        assert late.result(timeout=60).success
    assert script.planned == ["root.001"]
