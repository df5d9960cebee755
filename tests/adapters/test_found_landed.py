"""A lander died after its push. What it landed is found by its trailers, and believed only when it is the branch's work."""

from pathlib import Path

import pytest
from repositories import BUILD, World, bare, commit_on, files_at, git

from longshot_dagster.core.landing_records import ConcernKind, LandingOutcome, LandingState
from longshot_dagster.core.models import Task
from longshot_dagster.core.settings import MergeStrategy, Settings

FILES = {"README.md": "hello\n", "src/a.py": "a = 1\n", "src/b.py": "b = 1\n"}


def world_with(tmp_path: Path, strategy: str = "squash") -> World:
    return World(tmp_path, bare(tmp_path / "origin.git", FILES), Settings(merge_strategy=strategy))


def forged(task: Task, source: str, subject: str = "Looks fine") -> str:
    return f"{subject}\n\nLongshot-Build: {BUILD}\nLongshot-Task: {task.id}\nLongshot-Source: {source}\n"


def forget(world: World, outcome: LandingOutcome) -> None:
    """As if the lander had died between push and ledger."""
    queued = LandingOutcome(task=outcome.task, state=LandingState.QUEUED, history=outcome.history[:1])
    world.ledger.save_landing(queued)


@pytest.mark.parametrize("strategy", list(MergeStrategy))
def test_what_was_landed_in_part_is_found_as_it_was_with_its_concerns(tmp_path, strategy):
    world = world_with(tmp_path, strategy)
    task, owner = world.task("r001-01", ("src/a.py",)), world.task("r001-02", ("src/b.py",))
    world.plan(task, owner)
    edits = {"src/a.py": "2\n", "src/b.py": "stray\n", "tool.py": "t\n", "uv.lock": "l\n"}
    world.worked(task, ("one", edits), ("two", {"src/a.py": "3\n"}))
    commit_on(world.origin, "main", {"other.txt": "stranger\n"})
    outcome = world.queue().land(task)
    assert outcome.landed_paths == ("src/a.py", "tool.py")
    forget(world, outcome)
    again = world.queue().land(task)
    assert (again.state, again.reason) == (LandingState.LANDED, "found on the landing branch")
    assert (again.commits, again.onto, again.landed_paths) == (outcome.commits, outcome.onto, outcome.landed_paths)
    assert again.withheld_paths == outcome.withheld_paths
    told = {c for c in outcome.concerns if c.kind is not ConcernKind.SQUASHED}
    assert set(again.concerns) == told


def test_what_another_task_has_claimed_since_is_still_this_ones(tmp_path):
    world = world_with(tmp_path)
    task, other = world.task("r001-01", ("src/a.py",)), world.task("r001-02", ("src/b.py",))
    world.plan(task, other)
    world.worked(task, {"src/a.py": "2\n", "tool.py": "t\n"})
    outcome = world.queue().land(task)
    world.plan(world.task("r002-01", ("tool.py",)))
    forget(world, outcome)
    again = world.queue().land(task)
    assert again.landed_paths == ("src/a.py", "tool.py") and again.withheld_paths == ()
    assert [c.path for c in again.concerns if c.kind is ConcernKind.CLAIMED] == ["tool.py"]


@pytest.mark.parametrize(
    "edits",
    [
        pytest.param({"notes.txt": "n\n"}, id="something else"),
        pytest.param({"src/a.py": "not what the worker wrote\n", "src/n.py": "n\n"}, id="its paths with other content"),
        pytest.param({"src/a.py": "a = 2\n"}, id="half of its work"),
        pytest.param({"src/a.py": "a = 2\n", "src/n.py": "n\n", "README.md": "mine\n"}, id="its work and more"),
        pytest.param({}, id="nothing at all"),
    ],
)
def test_a_commit_that_only_says_so_does_not_count_and_the_work_lands(tmp_path, edits):
    world = world_with(tmp_path)
    task = world.task("r001-01", ("src/a.py", "src/n.py"))
    world.plan(task)
    source = world.worked(task, {"src/a.py": "a = 2\n", "src/n.py": "n\n"})
    theirs = commit_on(world.origin, "main", edits, forged(task, str(source)))
    outcome = world.queue().land(task)
    if edits.get("src/a.py", "").startswith("not"):  # a person's word against the agent's, as ever
        assert outcome.state is LandingState.CONFLICT and world.main() == theirs
    elif "README.md" in edits:
        assert (outcome.state, outcome.reason) == (LandingState.NOOP, "main already holds it")
    else:
        assert outcome.state is LandingState.LANDED and outcome.commits == (world.main(),) != (theirs,)
        assert files_at(world.origin)["src/a.py"] == "a = 2" and files_at(world.origin)["src/n.py"] == "n"


def test_a_copy_of_the_landing_beside_a_forgery_is_told_apart(tmp_path):
    world = world_with(tmp_path)
    task = world.task("r001-01", ("src/",))
    world.plan(task)
    source = world.worked(task, {"src/a.py": "a = 2\n"})
    commit_on(world.origin, "main", {"bait.txt": "x\n"}, forged(task, str(source)))
    forget(world, outcome := world.queue().land(task))
    commit_on(world.origin, "main", {"bait.txt": "y\n"}, forged(task, str(source)))
    head = world.main()
    again = world.queue().land(task)
    assert (again.commits, again.landed_paths) == (outcome.commits, ("src/a.py",))
    assert world.main() == head


def test_what_somebody_resolved_by_hand_under_its_name_counts_when_it_is_all_of_it(tmp_path):
    """No merge of ours gives it, and it is in the task's own paths: its work must not land a second time."""
    world = world_with(tmp_path)
    task = world.task("r001-01", ("src/a.py",))
    world.plan(task)
    source = world.worked(task, {"src/a.py": "a = 2\n"})
    commit_on(world.origin, "main", {"src/a.py": "a = 5\n"})
    made = commit_on(world.origin, "main", {"src/a.py": "a = 25\n"}, forged(task, str(source)))
    outcome = world.queue().land(task)
    assert (outcome.state, outcome.commits) == (LandingState.LANDED, (made,))


def test_a_ref_that_says_forwarded_counts_only_when_main_holds_the_commits(tmp_path):
    world = world_with(tmp_path, "fast-forward")
    task = world.task("r001-01", ("src/",))
    world.plan(task)
    source = world.worked(task, {"src/a.py": "a = 2\n"})
    git(world.origin, "fetch", "-q", str(world.mirror.path), "refs/longshot/work/*:refs/longshot/landed/*")
    assert git(world.origin, "rev-parse", f"refs/longshot/landed/{BUILD}/{task.id}") == source
    outcome = world.queue().land(task)
    assert outcome.state is LandingState.LANDED and world.main() == source
    forget(world, outcome)
    assert world.queue().land(task).reason == "found on the landing branch"


def test_where_the_branch_itself_is_gone_the_trailers_count(tmp_path):
    world = world_with(tmp_path)
    task = world.task("r001-01", ("src/",))
    world.plan(task)
    world.worked(task, {"src/a.py": "a = 2\n"})
    forget(world, outcome := world.queue().land(task))
    world.mirror.path.rename(tmp_path / "away.git")
    git(world.origin, "for-each-ref", "--format=delete %(refname)", "refs/longshot/work")
    again = World.queue(world).land(task)
    assert (again.state, again.commits, again.landed_paths) == (LandingState.LANDED, outcome.commits, ("src/a.py",))
