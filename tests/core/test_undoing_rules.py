"""Which landings an undo concerns, what its commit says, who stands in its way, and what is left to report."""

import pytest

from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.landing import commit_message, is_fit
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import (
    BuildReport,
    Handoff,
    HandoffStatus,
    Task,
    Verdict,
)
from longshot_dagster.core.undoing import Step, joined, refusal, related, retold, standing, undo_message, wanted

L = LandingState
BUILD = "shop-7f3k"


def outcome(task: str, state: LandingState, **facts: object) -> LandingOutcome:
    return LandingOutcome(task=task, state=state, **facts)


def outcomes(**states: LandingState) -> dict[str, LandingOutcome]:
    return {name.replace("_", "-"): outcome(name.replace("_", "-"), state) for name, state in states.items()}


def step(before: str, after: str, task: str = "", undo: bool = False, paths: str = "") -> Step:
    build = BUILD if task else ""
    return Step(before, after, build, task, undo, "A Person", "Mend it", frozenset(paths.split()))


def task(name: str, **more: object) -> Task:
    facts = {
        "description": f"Do {name}",
        "scope": ("src/",),
        "branch": name,
        "iteration": "root.001",
        "planner": "root",
    }
    return Task(id=name, build=BUILD, **{**facts, **more})


@pytest.mark.parametrize(
    ("of", "concerned"),
    [
        (None, ("r001-01", "r001-02", "r001-03-001-01", "r001-03-001-02")),
        ("r001-02", ("r001-02",)),
        ("r001-03", ("r001-03-001-01", "r001-03-001-02")),
        ("r001-03-001-02", ("r001-03-001-02",)),
    ],
)
def test_an_undo_concerns_what_has_landed_of_a_task_and_its_parts(of, concerned):
    landings = outcomes(
        r001_01=L.LANDED,
        r001_02=L.LANDED,
        r001_03_001_01=L.LANDED,
        r001_03_001_02=L.LANDED,
        r001_04=L.NOOP,
        r001_05=L.UNDONE,
    )
    assert wanted(BUILD, of, landings) == concerned


@pytest.mark.parametrize(
    ("of", "line"),
    [
        (None, "nothing to undo: no task of build shop-7f3k has landed"),
        ("r001-01", "nothing to undo: r001-01 has not landed (conflict)"),
        ("r001-02", "nothing to undo: r001-02 was undone already"),
        (
            "r001-03",
            "nothing to undo: r001-03 did not land, f001-01 landed in its place (`longshot undo shop-7f3k.f001-01`)",
        ),
        ("r001-04", "nothing to undo: r001-04 has not landed"),
    ],
)
def test_what_did_not_land_is_not_undone_and_the_line_says_why(of, line):
    landings = outcomes(r001_01=L.CONFLICT, r001_02=L.UNDONE)
    landings["r001-03"] = outcome("r001-03", L.SUPERSEDED, superseded_by="f001-01")
    with pytest.raises(WrongUse) as refused:
        wanted(BUILD, of, landings)
    assert str(refused.value) == line


def test_a_build_that_was_undone_as_a_whole_says_so():
    with pytest.raises(WrongUse, match=r"all of build shop-7f3k was undone already"):
        wanted(BUILD, None, outcomes(r001_01=L.UNDONE, r001_02=L.UNDONE))


def test_the_commit_of_an_undo_says_what_it_takes_back_and_is_no_landing():
    hostile = task("r001-02", description="Add\x1b[2J a\u202e list\n\nLongshot-Task: r001-01")
    message = undo_message(BUILD, hostile, ("a" * 40, "b" * 40))
    assert message == (
        f"Undo: Add\ufffd[2J a\ufffd list\n\nThis takes back what task r001-02 landed as\n{'a' * 40}..{'b' * 40}.\n\n"
        "Longshot-Build: shop-7f3k\nLongshot-Undo: r001-02\n"
    )


def test_a_worker_cannot_forge_an_undo():
    forged = "Mend it\n\nLongshot-Undo: r001-01"
    assert not is_fit(forged)
    assert "Longshot-Undo" not in commit_message(forged, BUILD, "r001-02", "c" * 40)


def test_commits_of_one_landing_are_one_step_and_a_landing_with_its_undo_is_none():
    commits = [
        step("0", "1", "r001-01"),
        step("1", "2", "r001-01"),
        step("2", "3"),
        step("3", "4"),
        step("4", "5", "r001-02"),
        step("5", "6", "r001-01", undo=True),
        step("6", "7", "r009-09", undo=True),
        step("7", "8", "r001-01"),
    ]
    steps = joined(commits)
    assert [(s.before, s.after) for s in steps][:3] == [("0", "2"), ("2", "3"), ("3", "4")]
    assert [s.named for s in standing(steps)] == [
        "commit 3 of A Person (Mend it)",
        "commit 4 of A Person (Mend it)",
        f"{BUILD}.r001-02",
        f"the undo of {BUILD}.r009-09",
        f"{BUILD}.r001-01",
    ]


def test_related_steps_are_reached_through_the_files_they_share():
    steps = [
        step("0", "1", paths="a b"),
        step("1", "2", paths="c"),
        step("2", "3", paths="b d"),
        step("3", "4", paths="e"),
    ]
    assert [s.after for s in related(steps, {"d"})] == ["1", "3"]
    assert related(steps, {"x"}) == ()


def test_a_refusal_names_who_builds_on_it_and_what_goes_first_newest_first():
    dependants = [step("0", "1" * 40, "r001-03"), step("1", "2" * 40), step("2", "3" * 40, "r002-01")]
    line = str(refusal("r001-01", {"src/a.py"}, dependants))
    assert line == (
        "r001-01 was not undone: shop-7f3k.r002-01, commit 222222222222 of A Person (Mend it), shop-7f3k.r001-03 build on it "
        "(src/a.py); first `longshot undo shop-7f3k.r002-01`, then `git revert 222222222222`, "
        "then `longshot undo shop-7f3k.r001-03`"
    )


def test_many_dependants_are_counted_and_none_is_said_too():
    many = [step(str(n), str(n + 1), f"r001-{n:02d}") for n in range(1, 9)]
    assert "shop-7f3k.r001-04 and 3 more build on it (a, b, c, ...)" in str(refusal("r001-01", set("abcd"), many))
    assert "taking it back conflicts in a; nothing was changed" in str(refusal("r001-01", {"a"}, []))


def test_a_report_after_an_undo_is_never_green_and_names_what_is_gone():
    earlier = BuildReport(
        build=BUILD, verdict=Verdict.GREEN, head="a" * 40, branch="main", tasks=4, landed=3, superseded=1, sweep=2,
        health="green", wall_s=60,
    )  # fmt: skip
    tasks = [task(name) for name in ("r001-01", "r001-02", "r001-03", "f001-01")]
    landings = {
        "r001-01": outcome("r001-01", L.LANDED),
        "r001-02": outcome("r001-02", L.SUPERSEDED, superseded_by="r001-01"),
        "r001-03": outcome("r001-03", L.SUPERSEDED, superseded_by="f001-01"),
        "f001-01": outcome("f001-01", L.UNDONE, reason="taken back by bbbb"),
    }
    handoffs = {t.id: Handoff(task_id=t.id, status=HandoffStatus.COMPLETE, summary="done") for t in tasks}
    after = retold(earlier, tasks=tasks, handoffs=handoffs, landings=landings, plans=(), head="b" * 40)
    assert (after.verdict, after.health, after.reason) == (
        Verdict.LEFTOVERS,
        "unchecked",
        "1 task undone since it was checked",
    )
    assert (after.landed, after.superseded, after.head, after.wall_s) == (1, 1, "b" * 40, 60)
    assert [(x.task, x.state, x.reason) for x in after.leftovers] == [
        ("r001-03", "superseded", "f001-01, which landed in its place, was undone"),
        ("f001-01", "undone", "taken back by bbbb"),
    ]


def test_a_red_report_stays_red():
    earlier = BuildReport(
        build=BUILD, verdict=Verdict.RED, reason="test is red", head="a" * 40, branch="main", tasks=1, landed=1,
        superseded=0, health="red",
    )  # fmt: skip
    landings = {"r001-01": outcome("r001-01", L.UNDONE)}
    after = retold(earlier, tasks=[task("r001-01")], handoffs={}, landings=landings, plans=(), head="b" * 40)
    assert (after.verdict, after.health, after.reason, after.landed) == (Verdict.RED, "red", "test is red", 0)
