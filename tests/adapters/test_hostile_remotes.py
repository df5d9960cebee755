"""What a target can do to a landing queue: each a clear outcome, nothing lost, nothing counted that is not there."""

import os
from pathlib import Path

import pytest
from repositories import BUILD, World, bare, commit_on, files_at, git

from longshot_dagster.adapters.landing.queue import MAX_ROUNDS
from longshot_dagster.adapters.ledger.orchestrator import Seat
from longshot_dagster.adapters.repository import git as git_commands
from longshot_dagster.adapters.repository.intake import work_ref
from longshot_dagster.adapters.repository.mirror import Update
from longshot_dagster.adapters.repository.stale_locks import remove_stale_locks
from longshot_dagster.core.errors import LostRace, RepositoryError
from longshot_dagster.core.landing_records import LandingState
from longshot_dagster.core.models import Task
from longshot_dagster.core.settings import Settings

FILES = {"README.md": "hello\n", "src/a.py": "a = 1\n"}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, bare(tmp_path / "origin.git", FILES), Settings(merge_strategy="squash"))


def some(world: World, count: int) -> list[Task]:
    """Tasks that have been worked on, each with a file of its own."""
    tasks = [world.task(f"r001-{n:02d}", (f"{n}.py",)) for n in range(1, count + 1)]
    world.plan(*tasks)
    base = world.mirror.fetch()
    for n, task in enumerate(tasks, 1):
        world.worked(task, {f"{n}.py": f"{n}\n"}, base=base)
    return tasks


def hook(repository: Path, name: str, script: str) -> Path:
    path = repository / "hooks" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)
    return path


def states(world: World) -> set[LandingState]:
    return {o.state for o in world.queue().drain()}


# --- a main that does what it likes ----------------------------------------------------------------------------------


def test_a_main_that_was_forced_back_is_landed_on_as_it_is_and_nothing_comes_back_that_was_taken_away(world):
    first, second = some(world, 2)
    queue, before = world.queue(), world.main()
    assert queue.land(first).state is LandingState.LANDED
    git(world.origin, "update-ref", "refs/heads/main", before)
    theirs = commit_on(world.origin, "main", {"person.txt": "p\n"})
    assert queue.land(second).onto == theirs
    assert set(files_at(world.origin)) == {*FILES, "person.txt", "2.py"}


def test_a_main_that_was_rewritten_without_the_past_is_respected(world):
    (task,) = some(world, 1)
    orphan = git(world.origin, "commit-tree", "-m", "new past", git(world.origin, "mktree", stdin=b""))
    git(world.origin, "update-ref", "refs/heads/main", orphan)
    assert world.queue().land(task).onto == orphan
    assert files_at(world.origin) == {"1.py": "1"}


def test_a_main_that_was_deleted_is_not_made_anew_and_the_work_waits(world):
    (task,) = some(world, 1)
    before = world.main()
    git(world.origin, "update-ref", "-d", "refs/heads/main")
    with pytest.raises(RepositoryError, match="has neither main nor its base branch"):
        world.queue().land(task)
    assert world.ledger.landing(task.id).state is LandingState.QUEUED
    git(world.origin, "update-ref", "refs/heads/main", before)
    assert states(world) == {LandingState.LANDED}


def test_a_landing_branch_that_is_gone_with_what_had_landed_is_not_begun_anew(tmp_path):
    world = World(tmp_path, bare(tmp_path / "origin.git", FILES), land_on="result")
    first, second = some(world, 2)
    assert world.queue().land(first).state is LandingState.LANDED
    held = git(world.origin, "rev-parse", "result")
    git(world.origin, "update-ref", "-d", "refs/heads/result")
    with pytest.raises(RepositoryError) as refused:
        world.queue().land(second)
    assert f"push commit {held} there again as result, then longshot resume {BUILD}" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "result" not in git(world.origin, "for-each-ref", "--format=%(refname:short)", "refs/heads")
    git(world.origin, "update-ref", "refs/heads/result", held)
    assert states(world) == {LandingState.LANDED}
    assert set(files_at(world.origin, "result")) == {*FILES, "1.py", "2.py"}


# --- people who never rest -------------------------------------------------------------------------------------------


def racing(world: World, monkeypatch: pytest.MonkeyPatch, allowed: int) -> tuple[object, list[str], list[int]]:
    """A queue before whose every push of more than `allowed` landings a person pushes; their commits, and the sizes tried."""
    queue = world.queue()
    push, merged, people, sizes = queue.mirror.push, queue._round.merged, [], []

    def counted(entries, *rest):
        sizes.append(len(entries))
        return merged(entries, *rest)

    def overtaken(updates: list[Update]) -> str | None:
        if sizes[-1] > allowed:
            theirs = git(world.origin, "commit-tree", "main^{tree}", "-p", "main", "-m", "person")
            people.append(theirs)
            git(world.origin, "update-ref", "refs/heads/main", theirs)
        return push(updates)

    monkeypatch.setattr(queue._round, "merged", counted)
    monkeypatch.setattr(queue.mirror, "push", overtaken)
    return queue, people, sizes


def test_somebody_who_pushes_all_the_time_makes_batches_smaller_and_everything_lands(world, monkeypatch):
    tasks = some(world, 5)
    queue, people, sizes = racing(world, monkeypatch, allowed=1)
    assert {o.state for o in queue.drain()} == {LandingState.LANDED}
    assert sizes[:4] == [5, 2, 1, 2] and len(world.log()) == 1 + len(tasks) + len(people)
    assert set(files_at(world.origin)) == {*FILES, *(t.scope[0] for t in tasks)}
    assert set(people) <= set(git(world.origin, "log", "--first-parent", "--format=%H", "main").split())
    assert world.log().count("person") == len(people)


def test_a_race_that_is_lost_every_time_is_said_and_the_task_stays_queued(world, monkeypatch):
    (task,) = some(world, 1)
    queue, people, _ = racing(world, monkeypatch, allowed=0)
    with pytest.raises(LostRace, match=f"main of .* moved {MAX_ROUNDS} times while landing; the tasks stay queued"):
        queue.land(task)
    assert len(people) == MAX_ROUNDS and world.main() == people[-1]
    monkeypatch.undo()
    assert states(world) == {LandingState.LANDED}


# --- a target that is slow, or can do less ---------------------------------------------------------------------------


def test_a_push_that_came_through_though_its_answer_never_did_is_landed_once(world, monkeypatch):
    first, second = some(world, 2)
    slow = hook(world.origin, "post-receive", "cat > /dev/null; exec sleep 60 > /dev/null 2>&1")
    queue = world.queue()
    monkeypatch.setattr(git_commands, "NETWORK_TIMEOUT_S", 2.0)
    with pytest.raises(RepositoryError, match="git push did not end within 2 seconds"):
        queue.land(first)
    assert world.ledger.landing(first.id).state is LandingState.QUEUED
    assert "1.py" in files_at(world.origin)
    slow.unlink()
    monkeypatch.undo()
    outcome = queue.land(first)
    assert (outcome.state, outcome.reason) == (LandingState.LANDED, "found on the landing branch")
    assert queue.land(second).state is LandingState.LANDED
    assert len(world.log()) == 3


def test_a_push_that_never_came_through_is_made_again(world, monkeypatch):
    (task,) = some(world, 1)
    slow = hook(world.origin, "pre-receive", "exec sleep 60")
    before = world.main()
    monkeypatch.setattr(git_commands, "NETWORK_TIMEOUT_S", 2.0)
    with pytest.raises(RepositoryError, match="did not end within"):
        world.queue().land(task)
    assert world.main() == before and world.ledger.landing(task.id).state is LandingState.QUEUED
    slow.unlink()
    monkeypatch.undo()
    assert states(world) == {LandingState.LANDED}


def test_a_target_that_cannot_move_several_refs_at_once_still_gets_landing_and_checkpoint(world):
    git(world.origin, "config", "receive.advertiseAtomic", "false")
    first, second = some(world, 2)
    queue = world.queue()
    assert queue.land(first).state is queue.land(second).state is LandingState.LANDED
    assert set(files_at(world.origin)) == {*FILES, "1.py", "2.py"}
    assert '"landed"' in git(world.origin, "show", f"refs/longshot/{BUILD}:tasks/r001-02/landing.json")


def test_without_that_a_push_that_lost_the_race_leaves_nothing_of_it_there(world):
    git(world.origin, "config", "receive.advertiseAtomic", "false")
    old = world.mirror.fetch()
    theirs = commit_on(world.origin, "main", {"person.txt": "p\n"})
    refused = world.mirror.push([Update("refs/heads/main", old, old), Update("refs/longshot/x", None, old)])
    assert refused and "\n" not in refused
    assert git(world.origin, "for-each-ref", "--format=%(refname) %(objectname)") == f"refs/heads/main {theirs}"


def test_without_that_a_checkpoint_that_was_refused_is_not_taken_for_published_and_is_told(world):
    """Unnoted, the next beat is due at once; noted, it would be believed to be there."""
    git(world.origin, "config", "receive.advertiseAtomic", "false")
    hook(world.origin, "update", f'case "$1" in refs/longshot/{BUILD}) exit 1;; esac')
    (task,) = some(world, 1)
    queue = world.queue()
    assert queue.land(task).state is LandingState.LANDED
    assert files_at(world.origin)["1.py"] == "1"
    assert Seat(world.mirror, BUILD).last() is None
    (world.origin / "hooks" / "update").unlink()
    assert queue.checkpoint() is None
    published = git(world.origin, "rev-parse", f"refs/longshot/{BUILD}")
    assert Seat(world.mirror, BUILD).last().commit == published


def test_without_that_work_that_the_target_does_not_take_is_said_to_be_only_here(world):
    git(world.origin, "config", "receive.advertiseAtomic", "false")
    hook(world.origin, "update", 'case "$1" in refs/longshot/work/*) exit 1;; esac')
    some(world, 1)
    refused = world.queue().checkpoint()
    assert refused and refused.startswith("what has not landed is only here: ") and "\n" not in refused
    assert git(world.origin, "rev-parse", f"refs/longshot/{BUILD}")


# --- what vanishes ---------------------------------------------------------------------------------------------------


def test_a_branch_that_only_the_target_still_keeps_is_fetched_back(world):
    (task,) = some(world, 1)
    world.queue().checkpoint()
    world.mirror.path.rename(world.root / "away.git")
    assert world.queue().land(task).state is LandingState.LANDED


def test_a_branch_that_nobody_has_any_more_is_withheld_with_what_to_do(world):
    (task,) = some(world, 1)
    world.mirror.path.rename(world.root / "away.git")
    assert work_ref(BUILD, task.id) not in git(world.origin, "for-each-ref")
    outcome = world.queue().land(task)
    assert outcome.state is LandingState.WITHHELD and "run the task again" in outcome.reason


# --- locks of our own ------------------------------------------------------------------------------------------------


def test_locks_that_a_killed_git_left_in_our_mirror_keep_nothing_from_landing(world):
    (task,) = some(world, 1)
    commit_on(world.origin, "main", {"person.txt": "p\n"})
    mirror = world.mirror.path
    left = [mirror / "refs/longshot/fetched/heads/main.lock", mirror / "packed-refs.lock"]
    for lock in left:
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
        os.utime(lock, (1.7e9, 1.7e9))
    assert world.queue().land(task).state is LandingState.LANDED
    assert not any(lock.exists() for lock in left)


def test_a_lock_in_the_target_is_not_ours_to_take_away(world):
    (task,) = some(world, 1)
    lock = world.origin / "refs/heads/main.lock"
    lock.touch()
    with pytest.raises(RepositoryError, match=r"refused the push to main: .*lock"):
        world.queue().land(task)
    assert lock.exists() and world.ledger.landing(task.id).state is LandingState.QUEUED
    lock.unlink()
    assert states(world) == {LandingState.LANDED}


def test_a_fresh_lock_stays_while_a_git_is_alive_that_may_hold_it(world):
    some(world, 1)  # whose branch was taken in by a git that stays for more
    lock = world.mirror.path / "packed-refs.lock"
    lock.touch()
    made = lock.stat().st_mtime
    assert remove_stale_locks(world.mirror.path, made + 1) == [] and lock.exists()
    assert remove_stale_locks(world.mirror.path, made + 3600) == [lock] and not lock.exists()


@pytest.mark.parametrize("git_lives", [True, False])
def test_a_lock_that_was_left_before_the_clock_was_set_back_is_taken_away(world, git_lives):
    if git_lives:
        some(world, 1)
    else:
        world.mirror.fetch()
    lock = world.mirror.path / "packed-refs.lock"
    lock.touch()
    assert remove_stale_locks(world.mirror.path, lock.stat().st_mtime - 3600) == [lock]


def test_where_no_git_lives_a_lock_is_nobodys_and_other_files_are_left_alone(tmp_path):
    mirror = tmp_path / "m.git"
    for name in ("refs/heads/main", "refs/heads/main.lock", "objects/x.lock", "longshot-landing.lock"):
        (mirror / name).parent.mkdir(parents=True, exist_ok=True)
        (mirror / name).touch()
    now = (mirror / "refs/heads/main.lock").stat().st_mtime
    assert remove_stale_locks(mirror, now) == [mirror / "refs/heads/main.lock"]
    assert (mirror / "refs/heads/main").exists() and (mirror / "longshot-landing.lock").exists()


# --- the order of a batch --------------------------------------------------------------------------------------------


def test_of_a_batch_the_branch_that_collides_with_many_goes_last_and_the_urgent_first(tmp_path):
    files = {name: f"{name}\n" for name in ("a", "b", "c")}
    world = World(tmp_path, bare(tmp_path / "origin.git", files), Settings(merge_strategy="squash"))
    hub = world.task("r001-01", ("a", "b", "c"))
    others = [world.task(f"r001-0{n}", (name,)) for n, name in enumerate("ab", 2)]
    urgent = world.task("r001-04", ("c",), priority=1)
    world.plan(hub, *others, urgent)
    base = world.mirror.fetch()
    world.worked(hub, dict.fromkeys(files, "hub\n"), base=base)
    for task in (*others, urgent):
        world.worked(task, {task.scope[0]: f"{task.id}\n"}, base=base)
    outcomes = {o.task: o.state for o in world.queue().drain()}
    assert outcomes.pop(hub.id) is LandingState.CONFLICT
    assert set(outcomes.values()) == {LandingState.LANDED}
    landed = [world.ledger.landing(t.id).commits[0] for t in (urgent, *others)]
    assert git(world.origin, "log", "--reverse", "--format=%H", "main").split()[1:] == landed
