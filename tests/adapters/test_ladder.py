"""The conflict ladder in the landing queue: what lands without a model, what is said of it, and what stays a conflict."""

import os
import stat
from pathlib import Path

import pytest
from repositories import World, bare, commit_on, files_at, git

from longshot_dagster.adapters.landing.second_look import SPARED, spared
from longshot_dagster.adapters.repository import syntax_driver
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.landing_records import ConcernKind, LandingState
from longshot_dagster.core.models import HandoffStatus, TaskKind
from longshot_dagster.core.settings import Settings

PACKAGE = '{\n  "name": "x",\n  "dependencies": {\n    "m": "1"\n  }\n}\n'
FILES = {"CHANGELOG.md": "# Changes\n", "package.json": PACKAGE, "a.py": "a = 1\n", "run.sh": "echo 1\n"}


def a_world(tmp_path: Path, **settings: object) -> World:
    return World(tmp_path, bare(tmp_path / "origin.git", FILES), Settings(merge_strategy="rebase", **settings))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return a_world(tmp_path)


def two(world: World, first: dict, second: dict, *more: dict):
    """Two tasks on one base, landed one after the other; the outcome of the second."""
    base = world.mirror.fetch()
    tasks = [world.task(f"r001-0{n}", tuple(edits)) for n, edits in enumerate((first, second), 1)]
    world.plan(*tasks)
    world.worked(tasks[0], first, base=base)
    world.worked(tasks[1], second, *more, base=base)
    assert world.queue().land(tasks[0]).state is LandingState.LANDED
    return world.queue().land(tasks[1])


def dependency(name: str) -> str:
    lines = sorted(['    "m": "1"', f'    "{name}": "1"'])
    return PACKAGE.replace('    "m": "1"', ",\n".join(lines))


def test_a_changelog_and_a_manifest_that_two_tasks_added_to_land_without_a_model(world):
    first = {"CHANGELOG.md": "# Changes\n- a\n", "package.json": dependency("a")}
    second = {"CHANGELOG.md": "# Changes\n- b\n", "package.json": dependency("b"), "b.py": "b = 1\n"}
    outcome = two(world, first, second)
    assert outcome.state is LandingState.LANDED and outcome.conflicts == ()
    assert outcome.landed_paths == ("CHANGELOG.md", "b.py", "package.json")
    assert outcome.commits == (world.main(),)
    found = files_at(world.origin)
    assert found["CHANGELOG.md"] == "# Changes\n- a\n- b"
    assert '"a": "1",\n    "b": "1",\n    "m": "1"\n' in found["package.json"]
    assert [(r.rung, r.path) for r in outcome.resolutions] == [("union", "CHANGELOG.md"), ("json", "package.json")]
    for resolution in outcome.resolutions:
        blobs = [git(world.origin, "rev-parse", f"{c}:{resolution.path}") for c in ("main^^", "main^", "main")]
        assert [resolution.base, resolution.ours, resolution.result] == blobs
        assert git(world.mirror.path, "rev-parse", f"{outcome.source}:{resolution.path}") == resolution.theirs


def test_a_branch_of_two_commits_whose_conflicts_were_resolved_lands_as_one_and_says_so(world):
    outcome = two(world, {"CHANGELOG.md": "# Changes\n- a\n"}, {"CHANGELOG.md": "# Changes\n- b\n"}, {"a.py": "2\n"})
    assert outcome.state is LandingState.LANDED and outcome.strategy == "squash" and len(outcome.commits) == 1
    # a.py is outside its scope, so it is claimed, too
    assert ConcernKind.CLAIMED in {c.kind for c in outcome.concerns}
    assert any(c.kind is ConcernKind.SQUASHED and "resolved" in c.text for c in outcome.concerns)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"package.json": dependency("a")}, {"package.json": dependency("a").replace('"a": "1"', '"a": "2"')}),
        ({"CHANGELOG.md": "# Changed\n"}, {"CHANGELOG.md": "# Changes\n- b\n"}),
        (
            {"CHANGELOG.md": "# Changes\n- a\n", "a.py": "a = 2\n"},
            {"CHANGELOG.md": "# Changes\n- b\n", "a.py": "a = 3\n"},
        ),
        ({"CHANGELOG.md": None}, {"CHANGELOG.md": "# Changes\n- b\n"}),
        ({"CHANGELOG.md": "-> a.py"}, {"CHANGELOG.md": "# Changes\n- b\n"}),
        ({"CHANGELOG.md": "# Changes\n- a\n"}, {"CHANGELOG.md": "# Changes\n<<<<<<< b\n"}),
    ],
)
def test_what_no_rule_resolves_wholly_stays_a_conflict_and_nothing_of_it_lands(world, first, second):
    outcome = two(world, first, second)
    assert outcome.state is LandingState.CONFLICT and outcome.conflicts and outcome.resolutions == ()
    assert world.main() == git(world.origin, "rev-parse", "main") and len(world.log()) == 2
    assert "<<<<<<<" not in "".join(files_at(world.origin).values())


def test_a_rung_that_is_switched_off_resolves_nothing(tmp_path):
    world = a_world(tmp_path, conflict_rungs="json,fix")
    outcome = two(world, {"CHANGELOG.md": "# Changes\n- a\n"}, {"CHANGELOG.md": "# Changes\n- b\n"})
    assert outcome.state is LandingState.CONFLICT


def test_a_mode_that_one_side_changed_is_kept(world):
    base = world.mirror.fetch()
    task = world.task("r001-01", ("CHANGELOG.md",))
    world.plan(task)
    world.worked(task, {"CHANGELOG.md": "# Changes\n- b\n"}, base=base)
    work = world.root / f"{world.origin.name}-stranger"
    (work / "CHANGELOG.md").write_text("# Changes\n- a\n")
    (work / "CHANGELOG.md").chmod(0o755)
    git(work, "commit", "-q", "-am", "x")
    git(work, "push", "-q", "origin", "HEAD:main")
    assert world.queue().land(task).state is LandingState.LANDED
    assert git(world.origin, "ls-tree", "main", "CHANGELOG.md").startswith("100755")


# --- the syntax-aware driver -----------------------------------------------------------------------------------------


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Stands for mergiraf: called as git calls it, it joins two sides that hold one line each."""

    def install(body: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir()
        program = folder / "mergiraf"
        program.write_text(
            f"#!/bin/sh\n[ \"$1 $2\" = 'merge --git' ] && [ \"$6 $7\" = '-p file.py' ] || exit 9\n{body}\n"
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        syntax_driver.syntax_rung.cache_clear()

    yield install
    monkeypatch.undo()
    syntax_driver.syntax_rung.cache_clear()


@pytest.mark.parametrize(
    ("body", "landed"),
    [
        ('cat "$5" >>"$4"', "a = 2\na = 3"),
        ("exit 1", None),
        ('echo "<<<<<<< ours" >>"$4"', None),
        (': >"$4"', None),
        ("kill -9 $$", None),
    ],
)
def test_a_driver_that_knows_the_syntax_is_asked_last(world, driver, body, landed):
    driver(body)
    outcome = two(world, {"a.py": "a = 2\n"}, {"a.py": "a = 3\n"})
    assert outcome.state is (LandingState.LANDED if landed else LandingState.CONFLICT)
    assert files_at(world.origin)["a.py"] == (landed or "a = 2")
    assert [r.rung for r in outcome.resolutions] == (["syntax"] if landed else [])


# --- looked at again -------------------------------------------------------------------------------------------------


def in_conflict(world: World):
    outcome = two(world, {"a.py": "a = 2\n"}, {"a.py": "a = 3\n"})
    assert outcome.state is LandingState.CONFLICT
    return outcome


def test_a_conflict_is_merged_again_only_once_main_has_moved_in_those_files(world):
    before = in_conflict(world)
    commit_on(world.origin, "main", {"other.py": "1\n"})
    assert world.queue().look_again("r001-02") == [before]
    commit_on(world.origin, "main", {"a.py": "a = 1\n"})
    (after,) = world.queue().look_again("r001-02")
    assert after.state is LandingState.LANDED and after.conflicts == () and files_at(world.origin)["a.py"] == "a = 3"
    assert [s for s, _ in after.history][-3:] == [LandingState.CONFLICT, LandingState.QUEUED, LandingState.LANDED]
    assert world.queue().look_again("r001-02") == [after]


def test_a_conflict_that_is_another_one_now_is_described_anew(world):
    before = in_conflict(world)
    head = commit_on(world.origin, "main", {"a.py": "a = 7\n"})
    (after,) = world.queue().look_again("r001-02")
    assert after.state is LandingState.CONFLICT and after.onto == head != before.onto
    assert (after.conflicts[0].ours, after.conflicts[0].base) == ("a = 7\n", "a = 1\n")


def test_where_re_merging_is_switched_off_a_conflict_is_left_to_its_fix(tmp_path):
    world = a_world(tmp_path, conflict_rungs="fix")
    before = in_conflict(world)
    commit_on(world.origin, "main", {"a.py": "a = 1\n"})
    assert world.queue().look_again("r001-02") == [before]


def test_a_fix_whose_task_merges_by_now_is_handed_in_without_a_worker(world):
    in_conflict(world)
    fix = world.task("f001-01", ("a.py",), kind=TaskKind.CONFLICT_FIX, planner="fix", replaces=("r001-02",))
    world.plan(fix)
    queue, clock = world.queue(), SystemClock()
    assert spared(world.ledger, queue.look_again, world.mirror.fetch, clock, fix) is None
    assert world.ledger.handoff(fix.id) is None
    commit_on(world.origin, "main", {"a.py": "a = 1\n"})
    handoff = spared(world.ledger, queue.look_again, world.mirror.fetch, clock, fix)
    assert handoff.status is HandoffStatus.COMPLETE and "no worker" in handoff.summary.lower()
    assert world.ledger.run(fix.id).harness_status == SPARED
    assert world.queue().land(fix).state is LandingState.NOOP
    assert world.ledger.landing("r001-02").state is LandingState.LANDED
    assert spared(world.ledger, queue.look_again, world.mirror.fetch, clock, fix) is None


def test_a_conflict_stays_one_when_the_target_cannot_be_reached(world):
    before = in_conflict(world)
    fix = world.task("f001-01", ("a.py",), kind=TaskKind.CONFLICT_FIX, planner="fix", replaces=("r001-02",))
    world.plan(fix)
    queue = world.queue()
    world.origin.rename(world.root / "gone.git")
    assert spared(world.ledger, queue.look_again, world.mirror.fetch, SystemClock(), fix) is None
    assert world.ledger.landing("r001-02") == before
