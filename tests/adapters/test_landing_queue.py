"""The landing queue against real repositories: what lands, what does not, and that it lands once."""

import json
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from repositories import BUILD, World, bare, commit_on, files_at, git, trailers

from longshot_dagster.adapters.landing.queue import LandingQueue
from longshot_dagster.adapters.repository.branch import commit
from longshot_dagster.adapters.repository.landed import already_landed
from longshot_dagster.adapters.repository.mirror import Mirror
from longshot_dagster.adapters.repository.object_store import Entry, graft, tree_of
from longshot_dagster.adapters.repository.object_store import write as write_object
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.errors import RepositoryError, WrongUse
from longshot_dagster.core.landing import gathering_s
from longshot_dagster.core.landing_records import ConcernKind, LandingState
from longshot_dagster.core.models import (
    CheckName,
    CheckResult,
    CheckStatus,
    HandoffStatus,
    TaskKind,
)
from longshot_dagster.core.settings import MergeStrategy, Settings

FILES = {"README.md": "hello\n", "src/a.py": "a = 1\n", "src/b.py": "b = 1\n"}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, bare(tmp_path / "origin.git", FILES))


def with_strategy(tmp_path: Path, strategy: str, **settings: object) -> World:
    return World(tmp_path, bare(tmp_path / "origin.git", FILES), Settings(merge_strategy=strategy, **settings))


def one(world: World, scope: tuple[str, ...], *commits: object, name: str = "r001-01", **more: object):
    task = world.task(name, scope, **more)
    world.plan(task)
    world.worked(task, *commits)
    return task, world.queue().land(task)


def kinds(outcome) -> set[ConcernKind]:
    return {c.kind for c in outcome.concerns}


# --- what lands ------------------------------------------------------------------------------------------------------


def test_a_branch_inside_its_scope_lands_with_its_three_trailers(world):
    task, outcome = one(world, ("src/",), {"src/a.py": "a = 2\n", "src/c.py": "c = 1\n"})
    assert outcome.state is LandingState.LANDED
    assert outcome.landed_paths == ("src/a.py", "src/c.py")
    assert files_at(world.origin)["src/a.py"] == "a = 2"
    assert outcome.commits == (world.main(),)
    assert trailers(world.origin, "main") == [
        f"Longshot-Build: {BUILD}",
        "Longshot-Task: r001-01",
        f"Longshot-Source: {outcome.source}",
    ]
    shown = git(world.origin, "log", "-1", "--format=%an <%ae> | %cn <%ce>", "main")
    assert shown == "A Worker <worker@example.invalid> | longshot queue <queue@longshot.invalid>"
    assert world.ledger.landing(task.id) == outcome
    assert world.queue().land(task) == outcome


@pytest.mark.parametrize("strategy", list(MergeStrategy))
def test_every_strategy_lands_a_stale_branch_of_two_commits_as_git_would(tmp_path, strategy):
    world = with_strategy(tmp_path, strategy)
    base = world.mirror.fetch()
    task = world.task("r001-01", ("src/",))
    world.plan(task)
    world.worked(task, ("one", {"src/a.py": "a = 2\n"}), ("two", {"src/n.py": "n = 1\n"}), base=base)
    commit_on(world.origin, "main", {"other.txt": "stranger\n"})
    outcome = world.queue().land(task)
    assert outcome.state is LandingState.LANDED
    assert files_at(world.origin) == {
        "README.md": "hello",
        "other.txt": "stranger",
        "src/a.py": "a = 2",
        "src/b.py": "b = 1",
        "src/n.py": "n = 1",
    }
    subjects = world.log("--first-parent")
    if strategy is MergeStrategy.REBASE:
        assert subjects[:2] == ["two", "one"] and len(outcome.commits) == 2
        assert all("Longshot-Task: r001-01" in trailers(world.origin, c) for c in outcome.commits)
    else:
        assert subjects[:2] == ["Do r001-01", "by hand"]
    if strategy is MergeStrategy.MERGE_COMMIT:
        assert "one" in world.log() and len(git(world.origin, "log", "-1", "--format=%P", "main").split()) == 2
    if strategy is MergeStrategy.FAST_FORWARD:
        assert kinds(outcome) == {ConcernKind.SQUASHED} and outcome.strategy == "squash"


def test_a_fresh_branch_is_fast_forwarded_and_recorded_under_its_own_ref(tmp_path):
    world = with_strategy(tmp_path, "fast-forward")
    _, outcome = one(world, ("src/",), ("one", {"src/a.py": "2\n"}), ("two", {"src/b.py": "2\n"}))
    assert outcome.strategy == "fast-forward" and outcome.source == world.main() == outcome.commits[-1]
    assert git(world.origin, "rev-parse", f"refs/longshot/landed/{BUILD}/r001-01") == world.main()


def test_a_branch_outside_its_scope_lands_only_what_is_inside(world):
    owner = world.task("r001-02", ("src/b.py",))
    task = world.task("r001-01", ("src/a.py",))
    world.plan(task, owner)
    world.worked(task, ("one", {"src/a.py": "2\n"}), ("two", {"src/b.py": "stray\n"}))
    outcome = world.queue().land(task)
    assert outcome.state is LandingState.LANDED and outcome.landed_paths == ("src/a.py",)
    assert outcome.withheld_paths == ("src/b.py",)
    assert kinds(outcome) == {ConcernKind.OUT_OF_SCOPE, ConcernKind.SQUASHED}
    assert "r001-02" in outcome.concerns[0].text
    assert files_at(world.origin)["src/b.py"] == "b = 1"
    assert "stray" not in git(world.origin, "log", "-p", "main")


def test_an_unowned_path_is_claimed_by_the_first_who_lands_it(world):
    first, second = world.task("r001-01", ("src/a.py",)), world.task("r001-02", ("src/b.py",))
    world.plan(first, second)
    base = world.mirror.fetch()
    world.worked(first, {"src/a.py": "2\n", "tool.py": "first\n"}, base=base)
    world.worked(second, {"src/b.py": "2\n", "tool.py": "second\n"}, base=base)
    assert kinds(world.queue().land(first)) == {ConcernKind.CLAIMED}
    outcome = world.queue().land(second)
    assert outcome.state is LandingState.LANDED and outcome.withheld_paths == ("tool.py",)
    assert "r001-01" in next(c.text for c in outcome.concerns if c.kind is ConcernKind.OUT_OF_SCOPE)
    assert files_at(world.origin)["tool.py"] == "first"


def test_lock_files_and_build_output_are_withheld_unless_the_directory_is_named(world):
    edits = {"src/a.py": "2\n", "package-lock.json": "{}\n", "node_modules/x.js": "x\n", "build/make.py": "m\n"}
    _, outcome = one(world, ("src/", "package-lock.json", "build/"), edits)
    assert outcome.landed_paths == ("build/make.py", "src/a.py")
    assert set(outcome.withheld_paths) == {"package-lock.json", "node_modules/x.js"}
    assert ConcernKind.GENERATED in kinds(outcome)


def test_a_deletion_and_a_mode_change_land(world):
    _, outcome = one(world, ("src/",), {"src/a.py": None, "src/l": "-> b.py"})
    assert outcome.state is LandingState.LANDED
    assert "src/a.py" not in files_at(world.origin)
    assert git(world.origin, "ls-tree", "main", "src/l").startswith("120000")


def test_edits_follow_a_rename_on_the_landing_branch(tmp_path):
    text = "".join(f"line {n}\n" for n in range(40))
    world = World(tmp_path, bare(tmp_path / "origin.git", {"old.py": text, "k": "k\n"}))
    task = world.task("r001-01", ("old.py",))
    world.plan(task)
    world.worked(task, {"old.py": text.replace("line 7\n", "line seven\n")})
    commit_on(world.origin, "main", {"old.py": None, "new.py": text})
    outcome = world.queue().land(task)
    assert outcome.state is LandingState.LANDED and outcome.landed_paths == ("new.py",)
    assert "line seven" in files_at(world.origin)["new.py"]


# --- what does not land ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [HandoffStatus.PARTIAL, HandoffStatus.BLOCKED, HandoffStatus.FAILED])
def test_a_handoff_that_is_not_complete_is_withheld(world, status):
    task = world.task("r001-01", ("src/",))
    world.plan(task)
    world.worked(task, {"src/a.py": "2\n"}, status=status)
    before = world.main()
    outcome = world.queue().land(task)
    assert outcome.state is LandingState.WITHHELD and kinds(outcome) == {ConcernKind.NOT_COMPLETE}
    assert world.main() == before


@pytest.mark.parametrize(
    ("status", "state"),
    [
        (CheckStatus.RED, LandingState.WITHHELD),
        (CheckStatus.TIMEOUT, LandingState.WITHHELD),
        (CheckStatus.RED_BEFORE, LandingState.LANDED),
        (CheckStatus.SKIPPED, LandingState.LANDED),
    ],
)
def test_red_checks_withhold_unless_the_base_was_red_too(world, status, state):
    task = world.task("r001-01", ("src/",))
    world.plan(task)
    checks = (CheckResult(name=CheckName.TEST, command="make test", status=status),)
    world.worked(task, {"src/a.py": "2\n"}, checks=checks)
    assert world.queue().land(task).state is state


def test_nothing_committed_an_empty_diff_and_what_main_already_holds_are_noops(world):
    names = ("r001-01", "r001-02", "r001-03", "r001-04")
    tasks = [world.task(n, ("src/",)) for n in names]
    world.plan(*tasks)
    base = world.mirror.fetch()
    world.worked(tasks[0])
    world.worked(tasks[1], ("empty", {}))
    world.worked(tasks[2], {"src/a.py": "2\n"}, base=base)
    world.worked(tasks[3], {"src/a.py": "2\n"}, base=base)
    states = [o.state for o in world.queue().drain()]
    assert states == [LandingState.NOOP, LandingState.NOOP, LandingState.LANDED, LandingState.NOOP]


def test_nothing_in_scope_is_withheld(world):
    world.plan(world.task("r001-02", ("src/b.py",)))
    _, outcome = one(world, ("src/a.py",), {"src/b.py": "2\n"})
    assert outcome.state is LandingState.WITHHELD and outcome.reason == "nothing of it is in scope"


def test_a_delegated_parent_never_lands(world):
    parent = world.task("r001-01", ("src/",), delegated=True)
    world.plan(parent)
    with pytest.raises(WrongUse, match="children"):
        world.queue().land(parent)
    assert world.queue().drain() == []


def test_a_conflict_names_files_contents_and_the_landed_task(world):
    first, second = world.task("r001-01", ("src/a.py",)), world.task("r001-02", ("src/a.py",))
    world.plan(first, second)
    base = world.mirror.fetch()
    world.worked(first, {"src/a.py": "a = 2\n"}, base=base)
    world.worked(second, {"src/a.py": "a = 3\n"}, base=base)
    landed, conflict = world.queue().drain()
    assert landed.state is LandingState.LANDED and conflict.state is LandingState.CONFLICT
    (file,) = conflict.conflicts
    assert (file.path, file.kind, file.ours, file.theirs) == ("src/a.py", "contents", "a = 2\n", "a = 3\n")
    assert "<<<<<<<" in file.merged and "|||||||" in file.merged and "a = 1" in file.merged
    assert conflict.conflict_with == ("r001-01",)
    assert files_at(world.origin)["src/a.py"] == "a = 2"


def test_a_deleted_file_that_was_changed_elsewhere_is_a_conflict_with_one_side(world):
    task = world.task("r001-01", ("src/a.py",))
    world.plan(task)
    world.worked(task, {"src/a.py": None})
    commit_on(world.origin, "main", {"src/a.py": "a = 9\n"})
    (file,) = world.queue().land(task).conflicts
    assert (file.kind, file.ours, file.theirs, file.merged) == ("modify/delete", "a = 9\n", None, None)


def test_links_that_leave_submodules_and_ci_files_are_withheld(world):
    edits = {
        "src/a.py": "2\n",
        "src/passwd": "-> /etc/passwd",
        "src/up": "-> ../../x",
        ".github/workflows/x.yml": "on: push\n",
    }
    _, outcome = one(world, ("src/",), edits)
    assert outcome.landed_paths == ("src/a.py",)
    assert set(outcome.withheld_paths) == {"src/passwd", "src/up", ".github/workflows/x.yml"}
    assert {ConcernKind.UNSAFE_PATH, ConcernKind.PROTECTED} <= kinds(outcome)


@pytest.mark.parametrize("strategy", list(MergeStrategy))
def test_forged_trailers_never_reach_the_landing_branch(tmp_path, strategy):
    world = with_strategy(tmp_path, strategy)
    forged = "Fine\n\nlongshot-task : r009-09\nLong\u200bshot-Source: 123\n\nLONGSHOT-BUILD: other\x1b[31m"
    _, outcome = one(world, ("src/",), (forged, {"src/a.py": "2\n"}))
    assert outcome.state is LandingState.LANDED
    text = git(world.origin, "log", "--format=%B", "main")
    assert "r009-09" not in text and "other" not in text and "\x1b" not in text
    assert trailers(world.origin, "main")[1] == "Longshot-Task: r001-01"


def test_history_that_touched_what_may_not_land_is_squashed_even_when_it_was_taken_back(world):
    world.plan(world.task("r001-02", ("src/b.py",)))
    _, outcome = one(
        world, ("src/a.py",), ("one", {"src/b.py": "secret\n"}), ("two", {"src/b.py": "b = 1\n", "src/a.py": "2\n"})
    )
    assert outcome.state is LandingState.LANDED and kinds(outcome) == {ConcernKind.SQUASHED}
    assert "secret" not in git(world.origin, "log", "-p", "main")


def test_a_checkout_without_an_origin_gets_a_branch_and_its_work_tree_stays(tmp_path):
    work = tmp_path / "work"
    git(tmp_path, "clone", "-q", str(bare(tmp_path / "origin.git", FILES)), "work")
    git(work, "remote", "remove", "origin")
    (work / "README.md").write_text("dirty\n")
    (work / "new.txt").write_text("untracked\n")
    before = (git(work, "status", "--porcelain", "--branch"), git(work, "rev-parse", "HEAD"))
    world = World(tmp_path, work, repository=str(work))
    _, outcome = one(world, ("src/",), {"src/a.py": "2\n"})
    assert outcome.state is LandingState.LANDED
    assert files_at(work, f"longshot/{BUILD}")["src/a.py"] == "2"
    assert files_at(work, f"longshot/{BUILD}")["README.md"] == "hello"
    assert (git(work, "status", "--porcelain", "--branch"), git(work, "rev-parse", "HEAD")) == before
    assert "ambiguous" not in git(work, "log", "-1", f"longshot/{BUILD}", "--")


@pytest.mark.parametrize("kind", ["bare", "checkout"])
def test_an_empty_repository_is_built_from_nothing(tmp_path, kind):
    place = tmp_path / "empty"
    place.mkdir()
    git(place, "init", "-q", "-b", "main", *(["--bare"] if kind == "bare" else []))
    world = World(tmp_path, place, repository=str(place))
    _, outcome = one(world, ("src/",), {"src/a.py": "1\n"})
    assert outcome.state is LandingState.LANDED
    assert files_at(place, world.request.target.branch) == {"src/a.py": "1"}


def test_a_landing_branch_that_does_not_exist_starts_from_the_base(tmp_path):
    world = World(tmp_path, bare(tmp_path / "origin.git", FILES), land_on="result")
    before = git(world.origin, "rev-parse", "main")
    _, outcome = one(world, ("src/",), {"src/a.py": "2\n"})
    assert outcome.onto == before == git(world.origin, "rev-parse", "main")
    assert files_at(world.origin, "result")["src/a.py"] == "2"


# --- replaced tasks --------------------------------------------------------------------------------------------------


def test_a_fix_that_lands_supersedes_what_it_replaces(world):
    first, second = world.task("r001-01", ("src/a.py",)), world.task("r001-02", ("src/a.py",))
    fix = world.task("f001-01", ("src/a.py",), kind=TaskKind.CONFLICT_FIX, planner="fix", replaces=("r001-02",))
    world.plan(first, second)
    base = world.mirror.fetch()
    world.worked(first, {"src/a.py": "a = 2\n"}, base=base)
    world.worked(second, {"src/a.py": "a = 3\n"}, base=base)
    world.queue().drain()
    world.plan(fix)
    world.worked(fix, {"src/a.py": "a = 23\n"})
    assert world.queue().land(fix).state is LandingState.LANDED
    replaced = world.ledger.landing("r001-02")
    assert (replaced.state, replaced.superseded_by) == (LandingState.SUPERSEDED, "f001-01")


def test_a_replaced_task_is_superseded_whether_it_ends_before_after_or_never_landed(world):
    old = [world.task(f"r001-0{n}", ("src/a.py",)) for n in (1, 2)]
    new = world.task("r002-01", ("src/a.py",), replaces=("r001-01", "r001-02"))
    world.plan(*old)
    world.plan(new)
    base = world.mirror.fetch()
    world.worked(old[0], {"src/a.py": "a = 7\n"}, base=base)  # has a handoff, was never queued
    world.worked(new, {"src/a.py": "a = 8\n"}, base=base)
    world.queue().land(new)
    assert world.ledger.landing("r001-01").superseded_by == "r002-01"
    world.worked(old[1], {"src/a.py": "a = 9\n"}, base=base)  # ends after its replacement has landed
    outcome = world.queue().land(old[1])
    assert (outcome.state, outcome.superseded_by) == (LandingState.SUPERSEDED, "r002-01")


# --- the push --------------------------------------------------------------------------------------------------------


def hook(repository: Path, name: str, script: str) -> None:
    path = repository / "hooks" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)


def test_a_refused_push_is_one_line_and_nothing_is_landed(world):
    hook(world.origin, "update", 'case $1 in refs/heads/main) echo "main is protected" >&2; exit 1;; esac')
    task = world.task("r001-01", ("src/",))
    world.plan(task)
    world.worked(task, {"src/a.py": "2\n"})
    with pytest.raises(RepositoryError, match="main is protected") as refused:
        world.queue().land(task)
    assert "\n" not in str(refused.value)
    assert world.ledger.landing(task.id).state is LandingState.QUEUED
    (world.origin / "hooks/update").unlink()
    assert world.queue().land(task).state is LandingState.LANDED


def test_a_forge_that_refuses_other_refs_gets_the_checkpoint_on_a_branch(world):
    hook(world.origin, "update", "case $1 in refs/heads/*) exit 0;; *) echo 'branches only' >&2; exit 1;; esac")
    one(world, ("src/",), {"src/a.py": "2\n"})
    facts = files_at(world.origin, f"longshot/checkpoint-{BUILD}")
    assert json.loads(facts["tasks/r001-01/landing.json"])["state"] == "landed"
    _, second = one(world, ("src/",), {"src/a.py": "3\n"}, name="r001-02")
    assert second.state is LandingState.LANDED
    assert git(world.origin, "rev-list", "--count", f"longshot/checkpoint-{BUILD}") == "2"


def test_a_forge_that_takes_nothing_but_main_still_takes_main(world):
    hook(world.origin, "pre-receive", "while read o n r; do [ $r = refs/heads/main ] || exit 1; done")
    _, outcome = one(world, ("src/",), {"src/a.py": "2\n"})
    assert outcome.state is LandingState.LANDED
    assert git(world.origin, "for-each-ref", "--format=%(refname)") == "refs/heads/main"


def test_a_stranger_who_pushes_between_merge_and_push_costs_one_more_round(world, monkeypatch):
    task = world.task("r001-01", ("src/",))
    world.plan(task)
    world.worked(task, {"src/a.py": "2\n"})
    queue = world.queue()
    push, raced = queue.mirror.push, []

    def push_after_a_stranger(updates):
        if not raced:
            raced.append(commit_on(world.origin, "main", {"stranger.txt": "s\n"}))
        return push(updates)

    monkeypatch.setattr(queue.mirror, "push", push_after_a_stranger)
    assert queue.land(task).onto == raced[0]
    assert {"stranger.txt", "src/a.py"} <= set(files_at(world.origin))
    assert world.log() == ["work", "by hand", "by hand"]


@pytest.mark.parametrize("strategy", list(MergeStrategy))
def test_a_lander_that_died_after_its_push_is_found_out_by_the_next(tmp_path, strategy):
    world = with_strategy(tmp_path, strategy)
    task, outcome = one(world, ("src/",), {"src/a.py": "2\n"})
    world.ledger.save_landing(outcome.model_copy(update={"state": LandingState.QUEUED}))
    head = world.main()
    again = world.queue().land(task)
    assert again.state is LandingState.LANDED and again.commits == outcome.commits
    assert again.landed_paths == ("src/a.py",)
    assert world.main() == head


def test_an_unreachable_target_leaves_the_task_queued(world):
    task = world.task("r001-01", ("src/",))
    world.plan(task)
    world.worked(task, {"src/a.py": "2\n"})
    world.origin.rename(world.root / "away.git")
    with pytest.raises(RepositoryError):
        world.queue().land(task)
    assert world.ledger.landing(task.id).state is LandingState.QUEUED
    (world.root / "away.git").rename(world.origin)
    assert [o.state for o in world.queue().drain()] == [LandingState.LANDED]


# --- many at once ----------------------------------------------------------------------------------------------------


def many(world: World, count: int) -> list:
    tasks = [world.task(f"r001-{n:02d}", (f"{world.build}{n}/",), priority=1 + n % 9) for n in range(1, count + 1)]
    world.plan(*tasks)
    base = world.mirror.fetch()
    for task in tasks:
        world.worked(task, {f"{task.scope[0]}x.py": f"{task.id}\n"}, base=base)
    return tasks


def count_pushes(origin: Path) -> Path:
    log = origin / "pushes"
    hook(origin, "post-receive", f"echo x >> {log}; cat > /dev/null")
    return log


def test_many_threads_land_everything_once_with_few_pushes(world):
    tasks, pushes = many(world, 10), count_pushes(world.origin)
    queue, gate = world.queue(), threading.Barrier(len(tasks))

    def land(task):
        gate.wait()
        return queue.land(task)

    with ThreadPoolExecutor(len(tasks)) as pool:
        outcomes = list(pool.map(land, tasks))
    assert {o.state for o in outcomes} == {LandingState.LANDED}
    assert sorted(world.log()) == sorted(["by hand"] + ["work"] * len(tasks))
    assert len(pushes.read_text().split()) <= 3
    assert len({o.commits for o in outcomes}) == len(tasks)


def _land_some(root: Path, origin: Path, build: str, names: list[str], gate) -> None:
    world = object.__new__(World)
    world.root, world.origin, world.build = root, origin, build
    from longshot_dagster.adapters.host.home import Home

    world.home = Home(root / "home")
    world.request = world.ledger.request()
    queue = world.queue()
    tasks = [world.ledger.task(name) for name in names]
    gate.wait()
    with ThreadPoolExecutor(4) as pool:
        assert all(o.state is LandingState.LANDED for o in pool.map(queue.land, tasks))
    os._exit(0)


def test_two_processes_and_two_builds_on_one_mirror_land_everything_once(world):
    other = World(world.root, world.origin, world.settings, build="other-build-2222")
    tasks, others = many(world, 6), many(other, 3)
    spawn = multiprocessing.get_context("spawn")
    gate = spawn.Barrier(3)
    parts = [[t.id for t in tasks[:4]], [t.id for t in tasks[2:]]]
    running = [spawn.Process(target=_land_some, args=(world.root, world.origin, BUILD, p, gate)) for p in parts]
    for process in running:
        process.start()
    gate.wait(60)
    with ThreadPoolExecutor(3) as pool:
        assert all(o.state is LandingState.LANDED for o in pool.map(other.queue().land, others))
    for process in running:
        process.join(60)
        assert process.exitcode == 0
    landed = git(
        world.origin,
        "log",
        "--format=%(trailers:key=Longshot-Task,valueonly)%(trailers:key=Longshot-Build,valueonly)",
        "main",
    )
    assert len([line for line in landed.splitlines() if line.startswith("r001")]) == 9


def counted(folder: Path, monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> int:
    """git processes that `action` makes us start."""
    folder.mkdir()
    monkeypatch.setenv("GIT_TRACE2_EVENT", str(folder))
    action()
    monkeypatch.delenv("GIT_TRACE2_EVENT")
    # Started by us: a session id of one level; `a/b` is git's own child.
    events = [json.loads(f.read_text().splitlines()[0]) for f in folder.iterdir()]
    return sum("/" not in e["sid"] for e in events)


def test_a_landed_task_takes_at_most_six_git_processes_and_a_batch_of_twenty_three(world, tmp_path, monkeypatch):
    def work(task):
        head = world.mirror.intake(BUILD, task.id, base, bundles[task.id])
        assert [f.path for f in world.mirror.diff(base, head).files] == [f"{task.id}.py"]
        world.delivered(task, base, head)
        return queue.land(task)

    base, store = world.mirror.fetch(), world.mirror.git
    queue = LandingQueue(world.ledger, world.request, world.mirror, SystemClock())
    tasks = [world.task(f"r001-{n:02d}", (f"r001-{n:02d}.py",)) for n in range(22)]
    world.plan(*tasks)
    bundles = {t.id: world.bundle(base, {f"{t.id}.py": "1\n"}) for t in tasks[:2]}
    work(tasks[0])  # what is kept for more questions is started now
    assert counted(tmp_path / "one", monkeypatch, lambda: work(tasks[1])) <= 6
    for task in tasks[2:]:
        new = Entry(f"{task.id}.py".encode(), "100644", write_object(store, "blob", b"1\n"))
        made = commit(store, graft(store, tree_of(store, base), [new]), (base,), task.id, 1.0)
        world.delivered(task, base, made)
    assert counted(tmp_path / "twenty", monkeypatch, queue.drain) <= 3
    assert {o.state for o in queue.drain()} == {LandingState.LANDED}
    assert len(world.log()) == 1 + len(tasks)


# --- what a queue remembers ------------------------------------------------------------------------------------------


def test_what_others_put_on_the_branch_or_take_off_it_is_seen_by_a_queue_that_has_looked_before(world):
    tasks = [world.task(f"r001-0{n}", (f"{n}.py",)) for n in range(4)]
    world.plan(*tasks)
    base, queue = world.mirror.fetch(), world.queue()
    for n, task in enumerate(tasks):
        world.worked(task, {f"{n}.py": "1\n"}, base=base)

    def lands_as_git_tells(task, lander):
        outcome = lander.land(task)
        remote = queue._read_remote()
        assert queue._history.at(remote) == already_landed(queue.mirror.git, world.request, remote)
        return outcome

    first = lands_as_git_tells(tasks[0], queue)
    lands_as_git_tells(tasks[1], world.queue())
    commit_on(world.origin, "main", {"by": "hand\n"})
    lands_as_git_tells(tasks[2], queue)
    git(world.origin, "update-ref", "refs/heads/main", first.commits[-1])
    commit_on(world.origin, "main", {"other": "past\n"})
    lands_as_git_tells(tasks[3], queue)
    assert {task for task, _ in queue._history.at(queue._read_remote())} == {"r001-00", "r001-03"}


def test_under_load_a_batch_waits_for_what_comes_meanwhile_and_after_a_quiet_time_none_waits(world):
    class Slept(SystemClock):
        at, slept = 100.0, ()

        def monotonic(self) -> float:
            return self.at

        def sleep(self, seconds: float) -> None:
            self.slept, self.at = (*self.slept, round(seconds, 3)), self.at + seconds

    clock, base = Slept(), world.mirror.fetch()
    queue = LandingQueue(world.ledger, world.request, world.mirror, clock, gathering_s=gathering_s)
    tasks = [world.task(f"r001-0{n}", (f"{n}.py",)) for n in range(3)]
    world.plan(*tasks)
    for n, (task, passed, slept) in enumerate(zip(tasks, (0.0, 0.25, 5.0), ((), (0.75,), (0.75,)), strict=True)):
        world.worked(task, {f"{n}.py": "1\n"}, base=base)
        clock.at += passed
        assert queue.land(task).state is LandingState.LANDED
        assert clock.slept == slept
    assert queue.land(tasks[0]).state is LandingState.LANDED and clock.slept == (0.75,)


def test_what_is_queued_while_a_batch_lands_is_left_for_the_next_one(world):
    class Handed(Mirror):
        def push(self, updates):
            if queue.ledger.landing("r001-02") is None:
                queue._enqueue(tasks[2])
            return super().push(updates)

    base, mirror = world.mirror.fetch(), Handed(world.home, world.request.target)
    queue = LandingQueue(world.ledger, world.request, mirror, SystemClock())
    tasks = [world.task(f"r001-0{n}", (f"{n}.py",)) for n in range(3)]
    world.plan(*tasks)
    for n, task in enumerate(tasks):
        world.worked(task, {f"{n}.py": "1\n"}, base=base)
    queue._enqueue(tasks[0])
    assert queue.land(tasks[1]).state is LandingState.LANDED
    states = [queue.ledger.landing(task.id).state for task in tasks]
    assert states == [LandingState.LANDED, LandingState.LANDED, LandingState.QUEUED]
    assert queue.land(tasks[2]).state is LandingState.LANDED
