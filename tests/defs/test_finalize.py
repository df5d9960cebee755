"""The end of a build: reported, sent back for fixes, or sent back because something was left to do."""

from pathlib import Path

import dagster as dg
import pytest
from dagster_doubles import BUILD, Script, ScriptedTools, begin, fresh

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.core.errors import SandboxError
from longshot_dagster.core.finalizing import AskForFixes, Report, outcome
from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.lifecycle import BuildView, IterationStatus, IterationView, RunIteration, next_steps
from longshot_dagster.core.models import (
    BuildPhase,
    CheckName,
    CheckResult,
    CheckStatus,
    MetricsSnapshot,
    Sweep,
    Verdict,
)
from longshot_dagster.defs.finalize import finalize
from longshot_dagster.defs.iteration import sweep_main

FIX_1 = IterationKey(BUILD, "fix", 1)


def drained(home: Home, script: Script, **settings: object) -> ScriptedTools:
    """A build whose planner is done and whose one task has landed."""
    script.plans = {"root.001": ["a.py"]}
    begin(home, script, **settings)
    tools = ScriptedTools(home, BUILD)
    for number in (1, 2):
        iterate(tools, IterationKey(BUILD, "root", number))
    return tools


def iterate(tools: ScriptedTools, key: IterationKey, sweep: int | None = None) -> None:
    tools.ledger.open_iteration(key)
    plan = tools.plan(key, tools.repo_state(tools.fetch()), tools.ledger.view())
    for task in tools.ledger.freeze_plan(key, plan.model_copy(update={"sweep": sweep})).tasks:
        tools.run(task, lambda: False)
        tools.land(task)
    tools.ledger.save_metrics(key, MetricsSnapshot(iteration=key.short))


def test_a_green_build_is_reported_on_a_page_and_in_the_ui_and_finished(
    home: Home, instance: dg.DagsterInstance
) -> None:
    drained(home, Script())
    instance.add_dynamic_partitions("builds", [BUILD])
    here = str(Path(__file__).parent)
    mine = dg.build_reconstructable_job(
        "dagster_doubles", "job", (str(home.root), "finalize_build"), reconstructor_working_directory=here
    )
    with dg.execute_job(mine, instance=instance, tags={"dagster/partition": BUILD}) as result:
        assert result.success
    report = fresh(home).report()
    assert report is not None and report.verdict is Verdict.GREEN
    assert (fresh(home).state().phase, fresh(home).state().verdict) == (BuildPhase.FINISHED, Verdict.GREEN)
    folder = home.builds / BUILD
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    written = (folder / "report.md").read_text(encoding="utf-8")
    assert written.startswith(r"# toy\-0001: green")
    record = instance.get_latest_materialization_event(dg.AssetKey("build_report"))
    assert record is not None and record.asset_materialization is not None
    shown = {name: value.value for name, value in record.asset_materialization.metadata.items()}
    assert {k: shown[k] for k in ("verdict", "tasks", "landed", "left over", "cost", "page")} == {
        "verdict": "green",
        "tasks": 1,
        "landed": 1,
        "left over": 0,
        "cost": "unknown",
        "page": str(folder / "report.html"),
    }
    assert "![timeline](data:image/svg+xml;base64," in str(shown["report"])


def test_a_page_that_cannot_be_written_is_not_worth_a_build(home: Home) -> None:
    tools = drained(home, Script())
    (home.builds / BUILD / "report.html").mkdir()
    report = finalize(tools, 1, lambda: False)
    assert report is not None and report.verdict is Verdict.GREEN
    assert fresh(home).state().phase is BuildPhase.FINISHED


def test_a_red_main_goes_back_for_fixes_as_often_as_allowed(home: Home) -> None:
    script = Script(check=CheckStatus.RED)
    tools = drained(home, script, finalization_max_attempts=1)
    assert finalize(tools, 1, lambda: False) is None
    assert tools.ledger.state().phase is BuildPhase.RUNNING
    assert next_steps(tools.ledger.view()) == [RunIteration(FIX_1, 1)]
    script.plans = {**script.plans, "fix.001": ["a.py"]}
    iterate(tools, FIX_1, sweep=1)
    report = finalize(tools, 2, lambda: False)
    assert report is not None and report.verdict is Verdict.RED
    assert report.finalization_attempts == 1


def test_a_red_main_that_fixing_did_not_move_is_not_tried_for_ever(home: Home) -> None:
    tools = drained(home, Script(check=CheckStatus.RED))
    assert finalize(tools, 1, lambda: False) is None
    iterate(tools, FIX_1, sweep=1)
    report = finalize(tools, 2, lambda: False)
    assert report is not None and report.verdict is Verdict.RED


def test_a_sweep_that_cannot_run_is_nobodys_red_main(home: Home) -> None:
    tools = drained(home, Script())
    broken = Sweep(number=1, head=tools.fetch(), error="no sandbox", started_at=1, ended_at=2)
    tools.sweep = lambda *_: broken  # type: ignore[method-assign]
    with pytest.raises(SandboxError, match="could not be checked: no sandbox"):
        finalize(tools, 1, lambda: False)
    assert tools.ledger.report() is None


def test_what_draining_leaves_to_do_is_done_before_the_sweep(home: Home) -> None:
    script = Script()
    tools = drained(home, script)
    task = tools.ledger.existing_task("r001-01")
    (Path(str(tools.ledger.directory)) / "tasks" / task.id / "landing.json").unlink()
    script.conflicts = frozenset({task.id})
    assert finalize(tools, 1, lambda: False) is None
    assert script.swept == []
    state = tools.ledger.state()
    assert (state.phase, state.attempts) == (BuildPhase.RUNNING, {"finalize.001": 2})
    assert next_steps(tools.ledger.view()) == [RunIteration(FIX_1, 1)]


def test_without_finalization_nothing_is_swept_and_nothing_called_green(home: Home) -> None:
    script = Script()
    report = finalize(drained(home, script, finalization_enabled=False), 1, lambda: False)
    assert report is not None
    assert (script.swept, report.health, report.verdict) == ([], "unchecked", Verdict.LEFTOVERS)


def test_a_finalization_repeated_after_its_report_only_finishes(home: Home) -> None:
    script = Script()
    tools = drained(home, script)
    first = finalize(tools, 1, lambda: False)
    assert finalize(ScriptedTools(home, BUILD), 1, lambda: False) == first
    assert len(script.swept) == 1


def test_a_build_paused_between_its_report_and_its_end_finishes_once_resumed(home: Home) -> None:
    tools = drained(home, Script())
    finalize(tools, 1, lambda: False)
    for phase in (BuildPhase.PAUSED, BuildPhase.RUNNING):
        tools.ledger.update_state(lambda s, p=phase: s.model_copy(update={"phase": p, "verdict": None}))  # type: ignore[misc]
    finalize(ScriptedTools(home, BUILD), 1, lambda: False)
    assert (fresh(home).state().phase, fresh(home).state().verdict) == (BuildPhase.FINISHED, Verdict.GREEN)


def test_without_finalization_a_red_sweep_of_the_last_commit_is_not_forgotten(home: Home) -> None:
    tools = drained(home, Script(check=CheckStatus.RED), finalization_enabled=False)
    sweep_main(tools, "root.002", lambda: False)
    report = finalize(tools, 1, lambda: False)
    assert report is not None
    assert (report.verdict, report.sweep) == (Verdict.RED, 1)


def test_what_was_removed_from_the_branch_after_it_landed_is_left_over(home: Home) -> None:
    class Mirror(ScriptedTools):
        def commits_since(self, base: str, head: str) -> frozenset[str]:
            return frozenset({"b" * 40})

    drained(home, Script())
    tools = Mirror(home, BUILD)
    landing = tools.ledger.landing("r001-01")
    assert landing is not None
    tools.ledger.save_landing(landing.model_copy(update={"commits": ("a" * 40,)}))
    report = finalize(tools, 1, lambda: False)
    assert report is not None
    assert (report.verdict, [left.task for left in report.leftovers]) == (Verdict.LEFTOVERS, ["r001-01"])
    assert "removed from the branch" in report.leftovers[0].reason
    assert report.landed == 0


@pytest.mark.parametrize(
    ("number", "answered", "status", "expected"),
    [
        (1, False, CheckStatus.RED, AskForFixes(7)),
        (3, False, CheckStatus.RED, AskForFixes(7)),
        (4, False, CheckStatus.RED, Report()),
        (1, True, CheckStatus.RED, Report()),
        (1, False, CheckStatus.GREEN, Report()),
        (1, False, CheckStatus.SKIPPED, Report()),
    ],
)
def test_how_a_finalization_ends(number: int, answered: bool, status: CheckStatus, expected: object) -> None:
    check = CheckResult(name=CheckName.TEST, command="make test", status=status)
    sweep = Sweep(number=7, head="a" * 40, checks=(check,), started_at=1, ended_at=2)
    fix = IterationView(FIX_1, IterationStatus.DONE, planned=True, sweep=7 if answered else 6)
    view = BuildView(BUILD, BuildPhase.FINALIZING, iterations=(fix,))
    assert outcome(view, number, sweep) == expected
