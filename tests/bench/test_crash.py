"""What the crash bench counts as lost, as done twice, as well; its model, which never plans an item twice; its watch."""

import json
from pathlib import Path
from typing import Any

import crash
import pytest
from crashing.assignment import Item, first_files, item_of, items
from crashing.endpoint import Endpoint
from crashing.judging import Landed, accounted, by_phase, is_well, landed_twice, repeated_lines, slowest
from crashing.killing import Kill, order
from crashing.moments import PHASES
from crashing.replaying import branch_sizes, landed_commits, lists_on_main, replayed_tree
from crashing.watching import Watch
from restoring.loop import git, make_repository

from longshot_dagster.adapters.host.shipped import prompt
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import Handoff, HandoffStatus, Task
from longshot_dagster.testing.answers import Answer, understand

TARGETS = ("run", "daemon", "code server", "gateway")
WELL: dict[str, Any] = {
    "tasks": 100,
    "kills": 20,
    "kills_wanted": 20,
    "kills_by_phase": dict.fromkeys(PHASES, 4),
    "accounted": 100,
    "asked_twice": 0,
    "landed_twice": 0,
    "tree_equal": True,
    "resume_s_max": 31.0,
    "in_flight_min": 10,
    "left_over": 0,
    "exit_code": 0,
}


# --- the verdict -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"accounted": 99},
        {"tasks": 0, "accounted": 0},
        {"asked_twice": 1},
        {"landed_twice": 1},
        {"tree_equal": False},
        {"resume_s_max": 60.0},
        {"resume_s_max": None},  # something never went on
        {"in_flight_min": 9},
        {"kills": 19},
        {"kills_by_phase": {**dict.fromkeys(PHASES, 4), "push": 2}},
        {"left_over": 1},
        {"exit_code": 5},
    ],
)
def test_whatever_is_lost_twice_or_left_is_not_well(wrong: dict[str, Any]) -> None:
    assert is_well(WELL, "disjoint", 10)
    assert not is_well(WELL | wrong, "disjoint", 10)


def test_work_that_collides_may_leave_something_that_the_report_names() -> None:
    assert is_well(WELL | {"exit_code": 4}, "conflicting", 10)


def test_the_slowest_is_unknown_when_something_did_not_go_on() -> None:
    kills = [Kill("push", "run", "", 10, 3.14), Kill("sweep", "run", "", 10, 9.96)]
    assert slowest(kills) == 10.0
    assert slowest([*kills, Kill("plan", "daemon", "", 10, None)]) is None
    assert slowest([]) is None
    assert by_phase(kills) == {"plan": 0, "dispatch": 0, "ledger write": 0, "push": 1, "sweep": 1}


@pytest.mark.parametrize("seed", range(3))
def test_twenty_kills_hit_each_of_four_processes_once_in_each_phase(seed: int) -> None:
    assert sorted(order(20, TARGETS, seed)) == sorted((phase, target) for phase in PHASES for target in TARGETS)


# --- what is counted -------------------------------------------------------------------------------------------------


def task(name: str, title: str) -> Task:
    return Task(
        id=name,
        build="b",
        iteration="root.001",
        planner="root",
        description=title,
        scope=("a",),
        branch=f"worker/{name}",
    )


def test_an_item_counts_once_a_task_of_it_has_a_handoff_and_a_settled_landing() -> None:
    tasks = [
        task(f"r001-0{n}", f"Item {number:04d}\n\nWrite it.") for n, number in ((1, 1), (2, 2), (3, 3), (4, 3), (5, 4))
    ]
    handed = {
        t.id: Handoff(task_id=t.id, status=HandoffStatus.COMPLETE, summary="s") for t in tasks if t.id != "r001-05"
    }
    states = (LandingState.LANDED, LandingState.QUEUED, LandingState.CONFLICT, LandingState.LANDED, LandingState.LANDED)
    landings = {t.id: LandingOutcome(task=t.id, state=state) for t, state in zip(tasks, states, strict=True)}
    assert accounted(items(4, "disjoint"), tasks, handed, landings) == {1, 3}


def test_a_task_that_comes_back_after_others_or_with_more_commits_than_its_branch_had_has_landed_twice() -> None:
    once = [Landed("1", "r001-01", "a"), Landed("2", "r001-01", "a"), Landed("3", "r001-02", "b")]
    assert landed_twice(once, {"a": 2, "b": 1}) == []
    assert landed_twice([*once, Landed("4", "r001-01", "a")], {"a": 2, "b": 1}) == ["r001-01"]
    assert landed_twice(once, {"a": 1, "b": 1}) == ["r001-01"]
    assert landed_twice([*once, Landed("4", "r001-02", "other")], {"a": 2, "b": 1}) == ["r001-02"]


def test_a_line_that_two_workers_have_added_is_found() -> None:
    assert repeated_lines(["a\nb\n", "b\nc\nb\n"]) == ["b"]


# --- the model -------------------------------------------------------------------------------------------------------


def ask(endpoint: Endpoint, role: str, message: str, answers: int = 0) -> Answer:
    names = ("read", "write", "bash", "ls")
    body: dict[str, Any] = {
        "messages": [
            {"role": "system", "content": prompt(role)},
            {"role": "user", "content": message},
            *[{"role": "assistant", "content": "..."}] * answers,
        ],
        "tools": [{"type": "function", "function": {"name": n}} for n in names],
    }
    asked = understand(body)
    endpoint.take(asked, stream=False, authorized=True)
    return endpoint.reply(asked)


def titles(plan: Answer) -> list[str]:
    return [found["description"].splitlines()[0] for found in json.loads(plan.content)["tasks"]]


def test_a_round_that_is_asked_again_gets_the_same_plan_and_the_next_one_goes_on_there(tmp_path: Path) -> None:
    endpoint = Endpoint(items(5, "disjoint"), 2, 2, tmp_path, paced=False)
    assert titles(ask(endpoint, "root-planner", "# Planning round root.001\n")) == ["Item 0001", "Item 0002"]
    assert titles(ask(endpoint, "root-planner", "# Planning round root.002\n")) == ["Item 0003", "Item 0004"]
    assert titles(ask(endpoint, "root-planner", "# Planning round root.001\n")) == ["Item 0001", "Item 0002"]
    assert endpoint.left == 1
    assert titles(ask(endpoint, "root-planner", "# Planning round root.003\n")) == ["Item 0005"]
    assert titles(ask(endpoint, "root-planner", "# Planning round root.004\n")) == []


def test_a_paced_worker_waits_for_its_last_answer_until_it_is_let_go(tmp_path: Path) -> None:
    endpoint = Endpoint(items(1, "conflicting"), 1, 1, tmp_path, paced=True)
    message = "# Task r001-01\n\nKind: plan\n\nItem 0001\n"
    assert [call.tool for call in ask(endpoint, "worker", message).calls] == ["write", "bash"]
    last = ask(endpoint, "worker", message, answers=1)
    assert last.held is not None
    assert last.held()
    assert endpoint.in_flight() == ["r001-01"]
    endpoint.let_go(["r001-01"])
    assert not last.held()
    assert endpoint.in_flight() == []


def test_asking_for_what_the_ledger_holds_already_is_noted(tmp_path: Path) -> None:
    endpoint = Endpoint(items(2, "disjoint"), 2, 1, tmp_path, paced=False)
    ask(endpoint, "root-planner", "# Planning round root.001\n")
    ask(endpoint, "worker", "# Task r001-01\n\nItem 0001\n")
    for document in ("iterations/root.001/plan.json", "tasks/r001-01/handoff.json"):
        (tmp_path / "b" / document).parent.mkdir(parents=True)
        (tmp_path / "b" / document).write_text("{}")
    assert endpoint.asked_twice == []
    ask(endpoint, "root-planner", "# Planning round root.001\n")
    ask(endpoint, "worker", "# Task r001-01\n\nItem 0001\n")
    ask(endpoint, "worker", "# Task r001-02\n\nItem 0002\n")
    assert endpoint.asked_twice == ["root.001", "r001-01"]


def test_a_fix_is_about_the_item_whose_branch_collided() -> None:
    text = "# Task f001-01\n\nItem 0002, redone after a conflict\n\n## What landed meanwhile\n\nItem 0001\n"
    assert item_of(text, items(3, "conflicting")) == Item(2, "conflicting")
    assert item_of("Item 0009", items(3, "conflicting")) is None


# --- git -------------------------------------------------------------------------------------------------------------


def landed_with_trailers(work: Path, name: str, path: str, text: str, source: str) -> None:
    (work / path).parent.mkdir(parents=True, exist_ok=True)
    (work / path).write_text(text)
    git(work, "add", "--all")
    git(work, "commit", "-q", "-m", f"{name}\n\nLongshot-Build: b\nLongshot-Task: {name}\nLongshot-Source: {source}")


def test_the_landed_work_replayed_with_plain_git_gives_the_same_tree_unless_a_commit_was_slipped_in(
    tmp_path: Path,
) -> None:
    (tmp_path / "first/lists").mkdir(parents=True)
    for path, text in first_files("conflicting").items():
        (tmp_path / "first" / path).write_text(text)
    bare, work = tmp_path / "bare.git", tmp_path / "work"
    make_repository(bare, tmp_path / "first", "The beginning")
    base = git(bare, "rev-parse", "main")
    git(tmp_path, "clone", "-q", str(bare), str(work))
    sources = {}
    for number in (1, 2):
        git(work, "checkout", "-q", "-B", f"b{number}", base)
        landed_with_trailers(work, "branch", f"items/{number}.txt", f"{number}\n", "none")
        sources[git(work, "rev-parse", "HEAD")] = base
    git(work, "push", "-q", str(bare), "b1", "b2")
    git(work, "checkout", "-q", "main")
    for number, source in enumerate(sources, 1):
        landed_with_trailers(work, f"r001-0{number}", f"items/{number}.txt", f"{number}\n", source)
    git(work, "push", "-q", str(bare), "main")

    landed = landed_commits(bare, base)
    assert [(c.task, c.source) for c in landed] == [(f"r001-0{n}", s) for n, s in enumerate(sources, 1)]
    assert branch_sizes(bare, sources) == dict.fromkeys(sources, 1)
    assert len(lists_on_main(bare)) == 20
    tree = replayed_tree(bare, bare, base, landed, sources, tmp_path / "replay")
    assert tree == git(bare, "rev-parse", "main^{tree}")

    (work / "README.md").write_text("not a task's\n")
    git(work, "commit", "-q", "-a", "-m", "Slipped in")
    git(work, "push", "-q", str(bare), "main")
    assert replayed_tree(bare, bare, base, landed_commits(bare, base), sources, tmp_path / "again") == tree
    assert tree != git(bare, "rev-parse", "main^{tree}")


# --- the moment ------------------------------------------------------------------------------------------------------


def test_a_name_is_seen_as_it_appears_and_so_is_one_in_a_folder_added_later(tmp_path: Path) -> None:
    with Watch() as watch:
        watch.add(tmp_path)
        watch.add(tmp_path / "missing")
        (tmp_path / "tasks").mkdir()
        assert watch.made(5) == [tmp_path / "tasks"]
        watch.add(tmp_path / "tasks")
        (tmp_path / "tasks/.run.json.x1").write_text("")
        assert watch.made(5) == [tmp_path / "tasks/.run.json.x1"]
        assert watch.made(0) == []


def test_a_wrong_number_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        crash.main(["--tasks", "many"])
    assert "--tasks" in capsys.readouterr().err
