"""A red sweep: what the reconciler reads and which of its tasks are taken."""

from test_planning import BUILD, REQUEST, planned, state, task

from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.models import CheckName, CheckResult, CheckStatus, PlanReply, Sweep, TaskKind
from longshot_dagster.core.reconciling import check_fix_tasks, reconciler_message

FIX_1 = IterationKey(BUILD, "fix", 1)


def sweep(**more):
    red = CheckResult(
        name=CheckName.TEST, command="make test", status=CheckStatus.RED, exit_code=1, output="TypeError: x"
    )
    return Sweep(**{"number": 1, "head": "b" * 40, "checks": (red,), "started_at": 1, "ended_at": 2, **more})


def test_the_reconciler_reads_output_markers_commits_and_tasks_under_way():
    text = reconciler_message(
        FIX_1, "Build a toy", state(), sweep(conflict_markers=("m.py",)), [task("r001-07", ["c.py"])]
    )
    assert text.splitlines()[0] == "# Fix round fix.001"
    for words in ("make test", "TypeError: x", "m.py", "abc first", "r001-07 (c.py)", "Build a toy", "a.py"):
        assert words in text


def test_a_sweep_that_could_not_run_says_why():
    text = reconciler_message(FIX_1, "r", state(), sweep(checks=(), error="no space left"), [])
    assert "could not run: no space left" in text


def test_at_most_the_five_most_urgent_tasks_are_taken_after_the_conflicts():
    reply = PlanReply(tasks=[planned([f"f{n}.py"], f"fix {n}", priority=10 - n) for n in range(8)])
    tasks = check_fix_tasks(reply, FIX_1, REQUEST, first_position=3)
    assert [t.id for t in tasks] == ["f001-03", "f001-04", "f001-05", "f001-06", "f001-07"]
    assert [t.description for t in tasks] == ["fix 7", "fix 6", "fix 5", "fix 4", "fix 3"]
    assert {(t.kind, t.planner, t.delegated) for t in tasks} == {(TaskKind.CHECK_FIX, "fix", False)}


def test_a_fix_is_never_delegated_and_an_empty_answer_is_one():
    wide = PlanReply(tasks=[planned(["a", "b", "c", "d", "e"])])
    assert not check_fix_tasks(wide, FIX_1, REQUEST, 1)[0].delegated
    assert check_fix_tasks(PlanReply(), FIX_1, REQUEST, 1) == ()
