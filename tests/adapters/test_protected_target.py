"""A target that lets everybody in until something is to land: the work is kept and the line names who said no."""

from pathlib import Path

import pytest
from repositories import World, bare, git

from longshot_dagster.core.errors import RepositoryError
from longshot_dagster.core.landing_records import ConcernKind, LandingState


def refuse(world: World, script: str) -> Path:
    """A rule of the server's own, in shell."""
    hook = world.origin / "hooks/pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\n{script}\n")
    hook.chmod(0o755)
    return hook


def test_a_protected_branch_is_named_with_its_own_words_and_the_work_waits(tmp_path: Path) -> None:
    world = World(tmp_path, bare(tmp_path / "r.git", {"README": "x\n"}))
    task = world.task("r001-01", ("a.txt",))
    world.plan(task)
    world.worked(task, {"a.txt": "a\n"})
    before = git(world.origin, "for-each-ref")
    hook = refuse(world, "echo 'main is protected, ask the owners' >&2; exit 1")
    with pytest.raises(RepositoryError) as raised:
        world.queue().land(task)
    line = str(raised.value)
    assert f"{world.origin} refused the push to main" in line
    assert "main is protected, ask the owners" in line
    assert "\n" not in line
    assert git(world.origin, "for-each-ref") == before
    waiting = world.ledger.landing(task.id)
    assert waiting is not None
    assert waiting.state is LandingState.QUEUED
    hook.unlink()
    assert world.queue().land(task).state is LandingState.LANDED


def test_one_branch_that_the_target_refuses_keeps_nobody_else_waiting(tmp_path: Path) -> None:
    world = World(tmp_path, bare(tmp_path / "r.git", {"README": "x\n"}))
    tasks = [world.task(f"r001-0{n}", (f"{n}.txt",)) for n in range(1, 7)]
    world.plan(*tasks)
    base = world.mirror.fetch()
    for n, task in enumerate(tasks, 1):
        world.worked(task, {f"{n}.txt": "token=verysecret\n" if n in (2, 5) else f"{n}\n"}, base=base)
    refuse(
        world,
        'while read old new ref; do case $ref in refs/heads/*) git log -p "$old..$new" | grep -q verysecret && '
        "{ echo 'a secret was found' >&2; exit 1; };; esac; done; exit 0",
    )
    outcomes = {o.task: o for o in world.queue().drain()}
    assert {t for t, o in outcomes.items() if o.state is LandingState.LANDED} == {f"r001-0{n}" for n in (1, 3, 4, 6)}
    for name in ("r001-02", "r001-05"):
        assert outcomes[name].state is LandingState.WITHHELD
        (concern,) = outcomes[name].concerns
        assert concern.kind is ConcernKind.REFUSED and "a secret was found" in concern.text
        assert git(world.mirror.path, "rev-parse", f"refs/longshot/work/{world.build}/{name}")
    assert "verysecret" not in git(world.origin, "log", "-p", "main")


def test_a_branch_that_takes_nothing_at_all_withholds_nobody(tmp_path: Path) -> None:
    world = World(tmp_path, bare(tmp_path / "r.git", {"README": "x\n"}))
    tasks = [world.task(f"r001-0{n}", (f"{n}.txt",)) for n in range(1, 6)]
    world.plan(*tasks)
    base = world.mirror.fetch()
    for n, task in enumerate(tasks, 1):
        world.worked(task, {f"{n}.txt": f"{n}\n"}, base=base)
    refuse(world, "echo 'main is protected' >&2; exit 1")
    with pytest.raises(RepositoryError, match="main is protected"):
        world.queue().land(tasks[0])
    assert {world.ledger.landing(t.id).state for t in tasks[:1]} == {LandingState.QUEUED}  # type: ignore[union-attr]
    (world.origin / "hooks/pre-receive").unlink()
    assert {o.state for o in world.queue().drain()} == {LandingState.LANDED}
