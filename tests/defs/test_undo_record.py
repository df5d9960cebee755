"""The job `record_undo`: the UI's record of an undone task says so, and nothing is worked on or landed again."""

from pathlib import Path

import dagster as dg
from dagster_doubles import BUILD, Script, ScriptedTools, begin, fresh

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.landing_records import LandingState
from longshot_dagster.core.models import HandoffStatus
from longshot_dagster.defs.executor import threaded_executor
from longshot_dagster.defs.task_result import deed
from longshot_dagster.defs.undoing import recording

FIRST = IterationKey(BUILD, "root", 1)
TASK = "r001-01"


def undone(home: Home, script: Script) -> ScriptedTools:
    script.plans = {"root.001": ["a.py"]}
    begin(home, script)
    tools = ScriptedTools(home, BUILD)
    plan = tools.plan(FIRST, tools.repo_state(tools.fetch()), tools.ledger.view())
    [task] = tools.ledger.freeze_plan(FIRST, plan).tasks
    tools.run(task, lambda: False)
    landed = tools.land(task)
    tools.ledger.save_landing(landed.moved(LandingState.UNDONE, 2.0, reason="taken back by bbbb", undone_by="b" * 40))
    return tools


def test_an_undone_tasks_record_says_undone(home: Home, instance: dg.DagsterInstance, tmp_path: Path) -> None:
    from dagster_doubles import ScriptedLongshot

    script = Script()
    undone(home, script)
    job = recording.to_job(
        name="record_undo",
        resource_defs={"longshot": ScriptedLongshot(home=str(home.root))},
        executor_def=threaded_executor,
    )
    config = {"ops": {"record_undo": {"config": {"build": BUILD, "tasks": [TASK]}}}}
    assert job.execute_in_process(run_config=config, instance=instance).success
    event = instance.get_latest_materialization_event(dg.AssetKey("task_result"))
    assert event is not None and event.asset_materialization is not None
    record = event.asset_materialization
    assert record.partition == f"{BUILD}.{TASK}"
    assert record.metadata["landing"].value == "undone: taken back by bbbb"
    assert record.metadata["undone by"].value == "b" * 40
    assert (script.worked, script.landed) == ([TASK], [TASK])


def test_an_undone_task_is_only_worked_on_again_when_asked_for(home: Home) -> None:
    tools = undone(home, Script())
    handoff, landing = tools.ledger.handoff(TASK), fresh(home).landing(TASK)
    assert handoff is not None and handoff.status is HandoffStatus.COMPLETE
    assert (deed(handoff, landing, False), deed(handoff, landing, True)) == ("report", "work")
