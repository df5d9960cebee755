"""A target that lets everybody in until something is to land: the work is kept and the line names who said no."""

from pathlib import Path

import pytest
from repositories import World, bare, git

from longshot_dagster.core.errors import RepositoryError
from longshot_dagster.core.landing_records import LandingState


def test_a_protected_branch_is_named_with_its_own_words_and_the_work_waits(tmp_path: Path) -> None:
    world = World(tmp_path, bare(tmp_path / "r.git", {"README": "x\n"}))
    task = world.task("r001-01", ("a.txt",))
    world.plan(task)
    world.worked(task, {"a.txt": "a\n"})
    before = git(world.origin, "for-each-ref")
    hook = world.origin / "hooks/pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho 'main is protected, ask the owners' >&2\nexit 1\n")
    hook.chmod(0o755)
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
