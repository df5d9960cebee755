"""One task materialized by hand: what is missing is done, what is done is not done twice."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster_doubles import BUILD, Script, ScriptedTools, begin, fresh

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.core.errors import Cancelled, ModelUnavailable, RepositoryError, WrongUse
from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.lifecycle import Finalize, next_steps
from longshot_dagster.core.models import (
    BuildPhase,
    Handoff,
    HandoffStatus,
    MetricsSnapshot,
    Plan,
    Sweep,
    Task,
)
from longshot_dagster.defs.finalize import finalize
from longshot_dagster.defs.sensors import finalization_request
from longshot_dagster.defs.task_result import deed, redo

FIRST = IterationKey(BUILD, "root", 1)
TASK = "r001-01"


def planned(home: Home, script: Script) -> ScriptedTools:
    script.plans = {"root.001": ["a.py"]}
    begin(home, script)
    tools = ScriptedTools(home, BUILD)
    tools.ledger.freeze_plan(FIRST, tools.plan(FIRST, tools.repo_state(tools.fetch()), tools.ledger.view()))
    return tools


def materialize(instance: dg.DagsterInstance, home: Home, again: bool = False) -> dg.ExecuteInProcessResult:
    from dagster_doubles import definitions

    partition = f"{BUILD}.{TASK}"
    instance.add_dynamic_partitions("tasks", [partition])
    found = definitions(str(home.root))
    return found.resolve_implicit_global_asset_job_def().execute_in_process(
        run_config={"ops": {"task_result": {"config": {"again": again}}}},
        asset_selection=[dg.AssetKey("task_result")],
        partition_key=partition,
        instance=instance,
        raise_on_error=False,
    )


def test_a_task_that_was_never_handed_in_is_worked_on_and_landed(home: Home, instance: dg.DagsterInstance) -> None:
    script = Script()
    planned(home, script)
    result = materialize(instance, home)
    assert result.success
    (record,) = result.asset_materializations_for_node("task_result")
    assert str(record.metadata["landing"].value) == "landed"
    assert (script.worked, script.landed) == ([TASK], [TASK])


def test_a_landed_task_is_only_reported_even_when_asked_for_again(home: Home, instance: dg.DagsterInstance) -> None:
    script = Script()
    planned(home, script)
    materialize(instance, home)
    assert materialize(instance, home, again=True).success
    assert (script.worked, script.landed) == ([TASK], [TASK])


def test_every_state_that_a_landing_went_through_is_shown_with_its_time(
    home: Home, instance: dg.DagsterInstance
) -> None:
    planned(home, Script(statuses={TASK: HandoffStatus.FAILED}))
    materialize(instance, home)
    ledger = fresh(home)
    withheld = ledger.landing(TASK)
    assert withheld is not None
    ledger.save_landing(withheld.moved(LandingState.QUEUED, 0).moved(LandingState.LANDED, 61.5))
    (record,) = materialize(instance, home).asset_materializations_for_node("task_result")
    shown = str(record.metadata["landing history"].value).replace("\\", "")  # as Markdown needs it
    first, *rest = shown.splitlines()
    assert first.endswith(": withheld")
    assert rest == ["- 1970-01-01T00:00:00.000+00:00: queued", "- 1970-01-01T00:01:01.500+00:00: landed"]


def test_a_failed_task_is_worked_on_again_when_asked_for(home: Home, instance: dg.DagsterInstance) -> None:
    script = Script(statuses={TASK: HandoffStatus.FAILED})
    planned(home, script)
    materialize(instance, home)
    assert materialize(instance, home).success
    assert script.worked == [TASK]
    script.statuses = {}
    assert materialize(instance, home, again=True).success
    assert script.worked == [TASK, TASK]
    landing = fresh(home).landing(TASK)
    assert landing is not None and landing.state is LandingState.LANDED
    assert (Path(str(fresh(home).directory)) / "tasks" / TASK / "earlier-1" / "handoff.json").exists()


def test_a_task_that_nobody_planned_is_refused_in_one_line(home: Home, instance: dg.DagsterInstance) -> None:
    begin(home, Script())
    result = materialize(instance, home)
    (failed,) = [e.step_failure_data for e in result.all_events if e.is_step_failure]
    assert failed.user_failure_data is not None
    assert f"build {BUILD} has no task" in str(failed.user_failure_data.description)


def test_a_conflict_is_tried_again_once_main_has_moved(home: Home, instance: dg.DagsterInstance) -> None:
    script = Script(conflicts=frozenset({TASK}))
    planned(home, script)
    materialize(instance, home)
    script.conflicts = frozenset()
    assert materialize(instance, home).success
    assert (script.worked, script.landed) == ([TASK], [TASK])


def test_a_task_that_cannot_be_worked_on_again_keeps_what_it_had(home: Home, instance: dg.DagsterInstance) -> None:
    script = Script(statuses={TASK: HandoffStatus.FAILED})
    planned(home, script)
    materialize(instance, home)
    script.worker_raises = {TASK: ModelUnavailable("down")}
    assert not materialize(instance, home, again=True).success
    handoff, landing = fresh(home).handoff(TASK), fresh(home).landing(TASK)
    assert handoff is not None and landing is not None
    assert (handoff.status, landing.state) == (HandoffStatus.FAILED, LandingState.WITHHELD)
    script.worker_raises, script.statuses = {}, {}
    assert materialize(instance, home, again=True).success
    assert script.landed == [TASK]


def test_a_landing_by_hand_that_fails_leaves_nothing_queued(home: Home) -> None:
    class Unreachable(ScriptedTools):
        def land(self, task: Task) -> LandingOutcome:
            raise RepositoryError("no route to host")

    script = Script(conflicts=frozenset({TASK}))
    tools = planned(home, script)
    tools.run(tools.ledger.existing_task(TASK), lambda: False)
    tools.land(tools.ledger.existing_task(TASK))
    with pytest.raises(RepositoryError):
        redo(Unreachable(home, BUILD), TASK, False, lambda: False)
    landing = fresh(home).landing(TASK)
    assert landing is not None
    assert (landing.state, landing.reason) == (
        LandingState.WITHHELD,
        "landing it again failed: no route to host",
    )


def test_what_has_landed_meanwhile_is_not_set_aside(home: Home) -> None:
    tools = planned(home, Script())
    task = tools.ledger.existing_task(TASK)
    tools.run(task, lambda: False)
    tools.land(task)
    with pytest.raises(WrongUse, match="has landed meanwhile"):
        tools.ledger.forget_work(TASK)


def test_a_finished_build_is_open_again_once_one_of_its_tasks_is_worked_on_anew(home: Home) -> None:
    script = Script(statuses={TASK: HandoffStatus.FAILED})
    tools = planned(home, script)
    done(tools)
    assert reported(home) == (BuildPhase.FINISHED, 0)
    script.statuses = {}
    redo(tools, TASK, True, lambda: False)
    steps = next_steps(fresh(home).view())
    assert [finalization_request(fresh(home), s).run_key for s in steps if isinstance(s, Finalize)] == [
        f"{BUILD}#finalize.001.2"
    ]
    assert finalize(tools, 1, lambda: False) is not None
    assert reported(home) == (BuildPhase.FINISHED, 1)
    assert (Path(str(fresh(home).directory)) / "earlier-report-1.json").exists()


def test_a_retry_that_is_interrupted_leaves_the_task_as_it_was_and_the_build_to_be_finalized(home: Home) -> None:
    script = Script(statuses={TASK: HandoffStatus.FAILED})
    tools = planned(home, script)
    done(tools)
    script.waits_for_cancel = True
    with pytest.raises(Cancelled):
        redo(tools, TASK, True, lambda: True)
    view = fresh(home).view()
    assert [(t.handoff, t.landing) for t in view.tasks] == [(HandoffStatus.FAILED, LandingState.WITHHELD)]
    assert next_steps(view) == [Finalize(1)]


def test_work_that_was_interrupted_is_not_set_aside(home: Home) -> None:
    tools = planned(home, Script())
    kept = Handoff(task_id=TASK, status=HandoffStatus.PARTIAL, summary="half", files_changed=["a.py"])
    tools.ledger.save_interrupted(kept)
    redo(tools, TASK, True, lambda: False)
    assert fresh(home).interrupted(TASK) == kept


def test_a_task_that_is_given_to_a_new_worker_during_the_last_sweep_is_waited_for(home: Home) -> None:
    class Retried(ScriptedTools):
        def sweep(self, *given: Any) -> Sweep:
            if self.ledger.handoff(TASK) is not None:
                self.ledger.forget_work(TASK)
            return super().sweep(*given)

    script = Script(statuses={TASK: HandoffStatus.FAILED})
    planned(home, script)
    done(Retried(home, BUILD))
    assert (fresh(home).state().phase, fresh(home).report()) == (BuildPhase.RUNNING, None)
    script.statuses = {}
    tools = ScriptedTools(home, BUILD)
    redo(tools, TASK, True, lambda: False)
    assert next_steps(fresh(home).view()) == [Finalize(1)]
    assert finalize(tools, 1, lambda: False) is not None
    assert reported(home) == (BuildPhase.FINISHED, 1)


def test_what_a_retry_lands_is_finalized_though_its_build_has_finished_meanwhile(home: Home) -> None:
    class Finishing(ScriptedTools):
        def run(self, task: Task, cancelled: Callable[[], bool]) -> Handoff:
            self.ledger.update_state(lambda s: s.moved(BuildPhase.FINALIZING).moved(BuildPhase.FINISHED))
            return super().run(task, cancelled)

    script = Script(statuses={TASK: HandoffStatus.FAILED})
    done(planned(home, script))
    script.statuses = {}
    redo(Finishing(home, BUILD), TASK, True, lambda: False)
    assert script.landed == [TASK]
    assert next_steps(fresh(home).view()) == [Finalize(1)]


def done(tools: ScriptedTools) -> None:
    """The whole build, to its report."""
    redo(tools, TASK, False, lambda: False)
    tools.ledger.save_metrics(FIRST, MetricsSnapshot(iteration=FIRST.short))
    last = IterationKey(BUILD, "root", 2)
    tools.ledger.open_iteration(last)
    tools.ledger.freeze_plan(last, Plan(iteration=last.short, base=tools.fetch(), tasks=(), handoffs_seen=(TASK,)))
    tools.ledger.save_metrics(last, MetricsSnapshot(iteration=last.short))
    finalize(tools, 1, lambda: False)


def reported(home: Home) -> tuple[BuildPhase, int]:
    report = fresh(home).report()
    assert report is not None
    return fresh(home).state().phase, report.landed


COMPLETE = Handoff(task_id=TASK, status=HandoffStatus.COMPLETE, summary="")
FAILED = Handoff(task_id=TASK, status=HandoffStatus.FAILED, summary="")


@pytest.mark.parametrize(
    ("handoff", "state", "again", "expected"),
    [
        (None, None, False, "work"),
        (None, None, True, "work"),
        (COMPLETE, None, False, "land"),
        (COMPLETE, LandingState.QUEUED, False, "land"),
        (COMPLETE, LandingState.QUEUED, True, "land"),
        (COMPLETE, LandingState.CONFLICT, False, "land"),
        (COMPLETE, LandingState.CONFLICT, True, "work"),
        (FAILED, LandingState.WITHHELD, False, "land"),
        (FAILED, LandingState.WITHHELD, True, "work"),
        (FAILED, LandingState.NOOP, False, "report"),
        (FAILED, LandingState.NOOP, True, "work"),
        (COMPLETE, LandingState.NOOP, True, "report"),
        (COMPLETE, LandingState.LANDED, True, "report"),
        (COMPLETE, LandingState.SUPERSEDED, True, "report"),
    ],
)
def test_what_materializing_by_hand_does(
    handoff: Handoff | None, state: LandingState | None, again: bool, expected: str
) -> None:
    landing = LandingOutcome(task=TASK, state=state) if state else None
    assert deed(handoff, landing, again) == expected
