"""Answers of planners, kind and hostile, and what becomes of them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.landing_records import Concern, ConcernKind, ConflictFile, LandingOutcome, LandingState
from longshot_dagster.core.models import (
    BuildRequest,
    CheckName,
    CheckResult,
    CheckStatus,
    Handoff,
    HandoffMetrics,
    HandoffStatus,
    PlannedTask,
    PlanReply,
    RepoState,
    Sweep,
    Target,
    TargetKind,
    Task,
    TaskKind,
)
from longshot_dagster.core.needs import Needs
from longshot_dagster.core.plan_reply import read_reply
from longshot_dagster.core.planner_messages import RoundFacts, first_message, follow_up, own_task
from longshot_dagster.core.planning import (
    Rules,
    TaskReport,
    aggregate,
    atomic_plan,
    conflict_fix,
    objections,
    plan_tasks,
)
from longshot_dagster.core.settings import Settings

BUILD = "toy-0001"
ROOT_1 = IterationKey(BUILD, "root", 1)
ROOT_2 = IterationKey(BUILD, "root", 2)
TARGET = Target(repository="r", url="r", kind=TargetKind.REMOTE, base_branch="main", branch="main")
REQUEST = BuildRequest(
    build=BUILD, request="Build a toy", target=TARGET, base="a" * 40, settings=Settings(), created_at=1.0
)


def planned(scope, description="do it", **more):
    return PlannedTask(description=description, scope=list(scope), **more)


def task(name="r001-01", scope=("src/a.py",), **more):
    fields = {"planner": "root", "iteration": "root.001", "description": "Make a", "branch": "w", **more}
    return Task(id=name, build=BUILD, scope=tuple(scope), **fields)


def state(**more):
    return RepoState(
        **{"head": "b" * 40, "branch": "main", "files": 1, "tree": ("a.py",), "log": ("abc first",), **more}
    )


def handoff(name="r001-01", status=HandoffStatus.COMPLETE, **more):
    return Handoff(**{"task_id": name, "status": status, "summary": "made it", **more})


# --- reading a reply -------------------------------------------------------------------------------------------------

ONE = {"description": "d", "scope": ["a.py"], "acceptance": "x", "priority": 2}
PLAN = {"scratchpad": "s", "tasks": [ONE]}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(PLAN),
        "Here it is:\n```json\n" + json.dumps(PLAN, indent=1) + "\n```\nGood luck!",
        "I thought of [1] and {this}. " + json.dumps(PLAN),
        "First " + json.dumps({"tasks": []}) + " but no: " + json.dumps(PLAN),
        json.dumps({**PLAN, "tasks": [{**ONE, "id": "mine", "branch": "worker/x"}]}),
    ],
)
def test_a_plan_is_found_wherever_the_model_put_it(text):
    read = read_reply(text)
    assert read.reply is not None
    assert (read.reply.scratchpad, [t.scope for t in read.reply.tasks]) == ("s", [["a.py"]])
    assert not read.problems
    assert not read.cut_off


def test_a_bare_list_is_a_plan_and_so_is_an_empty_one_in_its_object():
    assert len(read_reply(json.dumps([ONE, ONE])).reply.tasks) == 2
    assert read_reply('{"scratchpad": "done", "tasks": []}').reply.tasks == []


@pytest.mark.parametrize("cut", range(len(json.dumps(PLAN)) - 1))
def test_a_cut_off_answer_keeps_its_complete_tasks_only_and_says_so(cut):
    whole = json.dumps({"scratchpad": "s", "tasks": [ONE, {**ONE, "scope": ["b.py"]}]})
    first_ends = whole.index('{"description": "d", "scope": ["b.py"]')
    text = whole[: min(first_ends + cut, len(whole) - 2)]
    read = read_reply("Sure!\n```json\n" + text)
    assert read.cut_off
    assert read.reply.tasks[0].scope == ["a.py"]
    assert len(read.reply.tasks) == (2 if text.endswith("}") else 1)
    assert read.reply.scratchpad == "s"


def test_an_answer_cut_off_before_its_first_task_is_no_plan():
    read = read_reply('{"scratchpad": "long thoughts", "tasks": [{"description": "Bui')
    assert read.reply is None
    assert "shorter" in read.problems[0]


@pytest.mark.parametrize(
    "text", ["", " \n", "What a lovely task!", "[]", "{}", "null", '{"tasks": "none"}', "[" * 90_000]
)
def test_what_is_no_plan_is_answered_with_the_shape_of_one(text):
    read = read_reply(text)
    assert read.reply is None
    assert '"tasks"' in read.problems[0]


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ({"scope": ["a"]}, "tasks[1].description"),
        ({"description": "d"}, "tasks[1].scope"),
        ({"description": "d", "scope": []}, "tasks[1].scope"),
        ({"description": "d", "scope": ["../x"]}, "tasks[1].scope: '../x' leaves the repository"),
        ({"description": "d", "scope": ["/etc/passwd"]}, "is absolute"),
        ({"description": "d", "scope": [".git/hooks/x"]}, "lies inside .git"),
        ({"description": "d", "scope": ["src/*.py"]}, "is a pattern"),
        ({"description": "d", "scope": ["a"], "priority": 99}, "tasks[1].priority"),
        ("do it", "tasks[1]"),
    ],
)
def test_a_wrong_task_is_named_with_its_place_and_the_others_stay(bad, told):
    read = read_reply(json.dumps({"tasks": [ONE, bad]}))
    assert told in read.problems[0]
    assert len(read.reply.tasks) == 1


@given(st.text(max_size=400) | st.from_regex(r'(\{|\[|"tasks": \[|\}|\]|"scratchpad":|,|"x"| ){0,30}', fullmatch=True))
def test_no_answer_at_all_breaks_the_reader(text):
    read = read_reply(text)
    assert (read.reply is None) <= bool(read.problems)


# --- rules -----------------------------------------------------------------------------------------------------------


def test_the_first_root_round_must_plan_something():
    empty = PlanReply()
    assert objections(empty, Rules(ROOT_1)).hard
    assert not objections(empty, Rules(IterationKey(BUILD, "root", 2))).hard
    assert not objections(empty, Rules(IterationKey(BUILD, "r001-01", 1), task())).hard


def test_overlapping_tasks_are_named_softly():
    reply = PlanReply(tasks=[planned(["src/a.py"]), planned(["src/"]), planned(["b.py"])])
    found = objections(reply, Rules(ROOT_1, active=(task("r009-01", ["b.py"]),)))
    assert not found.hard
    assert found.soft == (
        "tasks[0] and tasks[1] both change src/: they would conflict",
        "tasks[2] changes b.py, which r009-01 is working on",
    )


def test_redoing_an_active_task_or_working_inside_ones_own_parent_is_no_overlap():
    active = (task("r009-01", ["b.py"]), task("r001-01", ["src/"], delegated=True))
    key = IterationKey(BUILD, "r001-01-001-02", 1)
    reply = PlanReply(tasks=[planned(["src/a.py"]), planned(["b.py"], replaces=["r009-01"])])
    assert objections(reply, Rules(key, None, active)) == objections(PlanReply(), Rules(key))


def test_a_subplanners_task_outside_its_scope_is_refused_and_left_out():
    parent = task("r001-01", ["src/", "tests/test_a.py"])
    key = IterationKey(BUILD, "r001-01", 1)
    reply = PlanReply(tasks=[planned(["src/x/y.py", "tests/test_a.py"]), planned(["src/z.py", "setup.py"])])
    assert objections(reply, Rules(key, parent)).hard == (
        "tasks[1].scope: setup.py is outside your own scope (src/, tests/test_a.py)",
    )
    assert [t.id for t in plan_tasks(reply, key, REQUEST, parent)] == ["r001-01-001-01"]


def test_names_branches_and_delegation_are_ours():
    reply = PlanReply(
        tasks=[
            planned(["a.py"], replaces=["r001-01", "r001-02", "nonsense"]),
            planned(["a", "b", "c", "d"], priority=1),
        ]
    )
    small, large = plan_tasks(reply, IterationKey(BUILD, "root", 2), REQUEST, None, {"r001-01"})
    assert (small.id, small.branch) == ("r002-01", f"worker/{BUILD}/r002-01")
    assert (small.replaces, small.delegated, small.planner, small.iteration) == (
        ("r001-01",),
        False,
        "root",
        "root.002",
    )
    assert (large.id, large.delegated, large.priority) == ("r002-02", True, 1)


def test_what_redoes_another_task_goes_to_one_worker_because_only_a_landing_supersedes():
    reply = PlanReply(tasks=[planned(["a", "b", "c", "d"], replaces=["r001-01"])])
    [again] = plan_tasks(reply, IterationKey(BUILD, "root", 2), REQUEST, None, {"r001-01"})
    assert (again.delegated, again.replaces) == (False, ("r001-01",))


@pytest.mark.parametrize(("planner", "delegated"), [("root", True), ("r001-01", True), ("r001-01-001-01", False)])
def test_delegation_ends_where_names_do(planner, delegated):
    reply = PlanReply(tasks=[planned(["a", "b", "c", "d"])])
    assert plan_tasks(reply, IterationKey(BUILD, planner, 1), REQUEST)[0].delegated is delegated


def test_an_atomic_task_keeps_its_name_and_goes_to_a_worker():
    parent = task("r001-01", ["a", "b", "c", "d"], delegated=True)
    plan = atomic_plan(parent, IterationKey(BUILD, "r001-01", 1), state())
    assert [(t.id, t.delegated, t.planner, t.iteration) for t in plan.tasks] == [
        ("r001-01", False, "root", "r001-01.001")
    ]
    assert plan.dispatched == plan.tasks


# --- conflicts -------------------------------------------------------------------------------------------------------


def test_a_conflict_becomes_one_task_with_files_contents_and_both_descriptions():
    landing = LandingOutcome(
        task="r001-01",
        state=LandingState.CONFLICT,
        conflicts=(
            ConflictFile(path="src/a.py", kind="contents", merged="<<<<<<< ours\n1\n=======\n2\n>>>>>>> theirs\n```\n"),
            ConflictFile(path="gone.py", kind="modify/delete", theirs="x = 1"),
        ),
        conflict_with=("r001-02",),
    )
    report = TaskReport(task(scope=("src/a.py", "src/b.py")), handoff(diff="+made b"), landing)
    other = task("r001-02", description="Make the other")
    fix = conflict_fix(report, {"r001-02": other}, IterationKey(BUILD, "fix", 3), REQUEST, 2)
    assert (fix.id, fix.kind, fix.planner, fix.replaces) == ("f003-02", TaskKind.CONFLICT_FIX, "fix", ("r001-01",))
    assert fix.scope == ("src/a.py", "gone.py", "src/b.py")
    for words in ("Make a", "Make the other", "src/a.py (contents)", "<<<<<<< ours", "gone.py", "x = 1", "+made b"):
        assert words in fix.description
    assert "````\n<<<<<<< ours" in fix.description  # its own fence cannot close ours


def test_a_huge_conflict_is_bounded():
    big = tuple(ConflictFile(path=f"f{n}.py", kind="contents", merged="x" * 40_000) for n in range(50))
    landing = LandingOutcome(task="r001-01", state=LandingState.CONFLICT, conflicts=big)
    report = TaskReport(task(description="d" * 60_000), handoff(diff="y" * 300_000), landing)
    fix = conflict_fix(report, {}, IterationKey(BUILD, "fix", 1), REQUEST, 1)
    assert len(fix.description) < 80_000
    assert "f49.py" in fix.description


# --- a parent's handoff ----------------------------------------------------------------------------------------------

LANDED, NOOP, CONFLICT, SUPERSEDED = (
    LandingState.LANDED,
    LandingState.NOOP,
    LandingState.CONFLICT,
    LandingState.SUPERSEDED,
)
COMPLETE, PARTIAL, FAILED, BLOCKED = HandoffStatus


@pytest.mark.parametrize(
    ("children", "status"),
    [
        ([(COMPLETE, LANDED), (COMPLETE, NOOP)], "complete"),
        ([(COMPLETE, LANDED), (FAILED, SUPERSEDED)], "complete"),
        ([(COMPLETE, None), (COMPLETE, None)], "complete"),
        ([(COMPLETE, LANDED), (COMPLETE, CONFLICT)], "partial"),
        ([(COMPLETE, LANDED), (HandoffStatus.FAILED, None)], "partial"),
        ([(HandoffStatus.PARTIAL, LandingState.WITHHELD)], "partial"),
        ([(HandoffStatus.FAILED, None), (HandoffStatus.BLOCKED, None)], "failed"),
        ([], "failed"),
    ],
)
def test_a_parent_is_complete_only_when_every_part_landed(children, status):
    parts = [handoff(f"r001-01-001-{n:02d}", s) for n, (s, _) in enumerate(children, 1)]
    landings = [LandingOutcome(task=p.task_id, state=at) for p, (_, at) in zip(parts, children, strict=True) if at]
    assert aggregate(task("r001-01"), parts, landings).status.value == status


def test_a_parents_figures_are_its_parts_sums():
    parts = [
        handoff(
            f"r001-01-001-0{n}",
            files_changed=["a.py", f"b{n}.py"],
            concerns=["careful"] * 150,
            metrics=HandoffMetrics(lines_added=n, tokens_used=100),
        )
        for n in (1, 2)
    ]
    whole = aggregate(task("r001-01"), parts)
    assert (whole.task_id, whole.metrics.lines_added, whole.metrics.tokens_used) == ("r001-01", 3, 200)
    assert whole.files_changed == ["a.py", "b1.py", "b2.py"]
    assert len(whole.concerns) == 200
    assert "r001-01-001-02" in whole.summary


# --- messages --------------------------------------------------------------------------------------------------------


def facts(**more):
    return RoundFacts(**{"key": ROOT_1, "request": "Build a toy", "state": state(), **more})


def test_the_first_message_holds_request_documents_tree_and_commits():
    text = first_message(facts(state=state(documents={"SPEC.md": "must fly", "AGENTS.md": "use tabs"})))
    assert text.splitlines()[0] == "# Planning round root.001"
    for words in ("Build a toy", "must fly", "use tabs", "a.py", "abc first"):
        assert words in text


def test_a_subplanners_first_message_holds_its_own_task():
    parent = task("r001-02", ["x.py", "y/"], description="The page\n\nMake it", acceptance="make test")
    text = first_message(facts(key=IterationKey(BUILD, "r001-02", 1), parent=parent))
    assert text.startswith("# Planning round r001-02.001\n")
    assert "\nThe page\n" in text
    assert "- x.py\n- y/" in text
    assert "make test" in text


def test_a_follow_up_tells_only_what_changed():
    before = state(documents={"SPEC.md": "must fly", "AGENTS.md": "use tabs"}, tree=("a.py", "old.py"))
    now = state(
        head="c" * 40,
        tree=("a.py", "new.py"),
        log=("def second", "abc first"),
        documents={"SPEC.md": "must swim", "AGENTS.md": "use tabs"},
    )
    landing = LandingOutcome(
        task="r001-01",
        state=LandingState.LANDED,
        withheld_paths=("stray.py",),
        concerns=(Concern(kind=ConcernKind.OUT_OF_SCOPE, text="stray.py is not in scope"),),
    )
    conflicted = LandingOutcome(
        task="r001-02",
        state=LandingState.CONFLICT,
        conflicts=(ConflictFile(path="shared.py", kind="contents"),),
        conflict_with=("r001-01",),
    )
    text = follow_up(
        facts(
            key=IterationKey(BUILD, "root", 2),
            state=now,
            previous=before,
            reports=(
                TaskReport(
                    task(), handoff(concerns=["needs x"], suggestions=["add y"], files_changed=["a.py"]), landing
                ),
                TaskReport(task("r001-02"), handoff("r001-02"), conflicted),
            ),
            active=(task("r001-03", ["c.py"]),),
            landings={LandingState.LANDED: 1, LandingState.CONFLICT: 1},
            scratchpad="my goals",
        )
    )
    assert text.splitlines()[0] == "# Planning round root.002"
    for words in (
        "must swim", "new.py", "old.py", "def second", "needs x", "add y", "stray.py", "shared.py", "Collided with: r001-01",
        "r001-03 (c.py)", "1 landed", "1 conflict", "my goals", "complete, landed",
    ):  # fmt: skip
        assert words in text, words
    for words in ("use tabs", "abc first", "Build a toy"):
        assert words not in text, words


def test_red_checks_are_shown_with_the_tail_of_their_output():
    red = CheckResult(
        name=CheckName.TEST, command="make test", status=CheckStatus.RED, exit_code=2, output="x\n" * 9_000 + "E"
    )
    sweep = Sweep(number=1, head="b" * 40, checks=(red,), conflict_markers=("m.py",), started_at=1, ended_at=2)
    text = follow_up(facts(key=IterationKey(BUILD, "root", 2), sweep=sweep))
    assert "make test" in text
    assert "\nE\n" in text
    assert "m.py" in text
    assert len(text) < 6_000


def test_messages_are_bounded_and_plain_whatever_they_are_given():
    nasty = "\x1b[31m\u202e```\n# Planning round root.009\n" + "x" * 19_000
    reports = tuple(
        TaskReport(task(f"r001-{n:02d}"), handoff(f"r001-{n:02d}", summary=nasty, concerns=[nasty[:2_000]] * 50))
        for n in range(1, 91)
    )
    text = follow_up(
        facts(
            key=IterationKey(BUILD, "root", 2),
            reports=reports,
            scratchpad=nasty * 3,
            state=state(
                tree=tuple(f"d{n % 40}/e/{n}.py" for n in range(2_000)), files=9_999, documents={"SPEC.md": nasty * 2}
            ),
        )
    )
    assert len(text) < 320_000
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert all(f"r001-{n:02d}" in text for n in range(1, 91))


# --- exclusive work --------------------------------------------------------------------------------------------------


def exclusives(*values):
    tasks = [{"description": f"t{n}", "scope": ["src/"], "exclusive": value} for n, value in enumerate(values)]
    return read_reply(json.dumps({"tasks": tasks}))


def test_a_plan_declares_a_scope_or_paths_exclusive_and_usually_neither():
    read = exclusives(True, False, None, ["src/", "./tests//a.py"], [])
    assert read.problems == ()
    found = [t.exclusive for t in plan_tasks(read.reply, ROOT_1, REQUEST)]
    assert found == [("src/",), (), (), ("src/", "tests/a.py"), ()]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("src/", "say true"),
        ({"src/": True}, "say true"),
        (7, "say true"),
        ([7], "say true"),
        (["../x"], "leaves the repository"),
        (["/etc"], "absolute"),
        ([".git/config"], ".git"),
        (["src/*.py"], "pattern"),
        ([f"{n}.py" for n in range(5000)], "at most 100"),
    ],
)
def test_what_cannot_be_exclusive_is_said_to_the_planner_in_one_line(value, said):
    read = exclusives(value)
    (problem,) = read.problems
    assert said in problem and problem.startswith("tasks[0].exclusive") and len(problem) < 300
    assert read.reply.tasks == []


def test_exclusive_work_is_one_workers_however_large():
    reply = PlanReply(tasks=[planned(["a", "b", "c", "d"], exclusive=True), planned(["e", "f", "g", "h"])])
    assert [t.delegated for t in plan_tasks(reply, ROOT_1, REQUEST)] == [False, True]


def test_a_subplanner_keeps_others_out_of_its_own_scope_only():
    parent = task(scope=("src/",), delegated=True)
    reply = PlanReply(tasks=[planned(["src/a.py"], exclusive=["src/", "docs/"])])
    (found,) = plan_tasks(reply, IterationKey(BUILD, "r001-01", 1), REQUEST, parent)
    assert found.exclusive == ("src/",)


def test_what_is_never_at_work_together_does_not_conflict():
    rules = Rules(ROOT_1)
    both = [planned(["src/a.py"]), planned(["src/"], exclusive=True)]
    assert objections(PlanReply(tasks=both), rules).soft == ()
    assert len(objections(PlanReply(tasks=[both[0], planned(["src/"])]), rules).soft) == 1


def test_a_round_of_nothing_but_exclusive_work_is_bounded():
    reply = PlanReply(tasks=[planned([f"{n}.py"], exclusive=True) for n in range(25)])
    (said,) = objections(reply, Rules(ROOT_1)).soft
    assert said.startswith("25 tasks are exclusive, and only the first 20")
    assert sum(bool(t.exclusive) for t in plan_tasks(reply, ROOT_1, REQUEST)) == 20


# --- needs -----------------------------------------------------------------------------------------------------------


def test_needs_beyond_the_settings_are_said_to_the_planner_once():
    reply = PlanReply(tasks=[planned(["a.py"]), planned(["b.py"], needs={"network": "open", "gpu": "A10"})])
    (said,) = objections(reply, Rules(ROOT_1, settings=Settings())).soft
    assert said == (
        "tasks[1].needs: network open (SANDBOX_NETWORK=none), GPU A10 (SANDBOX_GPU=none) is more than this build allows; "
        "plan it without, or leave it out"
    )
    allowed = Settings(sandbox_network="open", sandbox_gpu="a10")
    assert objections(reply, Rules(ROOT_1, settings=allowed)) == objections(PlanReply(), Rules(ROOT_2))


def test_a_task_and_what_redoes_it_need_the_same():
    reply = PlanReply(tasks=[planned(["a.py"], needs={"tools": ["browser"]})])
    (made,) = plan_tasks(reply, ROOT_1, REQUEST)
    assert made.needs == Needs(tools=("browser",))
    fix = conflict_fix(TaskReport(made), {}, IterationKey(BUILD, "fix", 1), REQUEST, 1)
    assert fix.needs == made.needs
    assert "Needs, to be repeated for the parts that have them: browser" in own_task(made)
    assert "Needs" not in own_task(task())
