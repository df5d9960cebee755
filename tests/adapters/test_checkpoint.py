"""The checkpoint: every fact of the ledger beside main, nothing that is no fact, and never in main's way."""

import json
import os
from pathlib import Path

import pytest
from repositories import BUILD, World, bare, files_at, git

from longshot_dagster.adapters.host.documents import parsed
from longshot_dagster.adapters.ledger.checkpoint import Checkpoint
from longshot_dagster.core.landing_records import LandingOutcome
from longshot_dagster.core.models import HandoffStatus
from longshot_dagster.core.settings import Settings

REF = f"refs/longshot/{BUILD}"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, bare(tmp_path / "origin.git", {"a.py": "1\n"}))


def land(world: World, name: str, content: str):
    task = world.task(name, ("a.py",))
    world.plan(task)
    world.worked(task, {"a.py": content})
    return world.queue().land(task)


def test_a_landing_brings_the_facts_along_as_they_will_be(world):
    world.ledger.save_transcript("r001-01", b"{}\n")
    outcome = land(world, "r001-01", "2\n")
    facts = files_at(world.origin, REF)
    assert set(facts) == {
        "orchestrator.json",
        "request.json",
        "iterations/root.001/plan.json",
        "tasks/r001-01/task.json",
        "tasks/r001-01/run.json",
        "tasks/r001-01/handoff.json",
        "tasks/r001-01/landing.json",
    }
    assert parsed(LandingOutcome, facts["tasks/r001-01/landing.json"].encode()) == (outcome, "")
    assert "Checkpoint" not in git(world.origin, "log", "--format=%s", "main")


def test_checkpoints_follow_each_other_and_match_the_ledger(world):
    for n in range(1, 4):
        land(world, f"r001-0{n}", f"{n + 1}\n")
    assert git(world.origin, "rev-list", "--count", REF) == "3"
    on_disk = {
        p.relative_to(world.ledger.directory).as_posix(): p.read_text().strip()
        for p in Path(str(world.ledger.directory)).rglob("*.json")
    }
    there = files_at(world.origin, REF)
    assert json.loads(there.pop("orchestrator.json"))["released"] is False
    assert there == on_disk


def test_what_was_set_aside_leaves_the_checkpoint(world):
    task = world.task("r001-01", ("a.py",))
    world.plan(task)
    world.worked(task, {"a.py": "2\n"}, status=HandoffStatus.PARTIAL)
    assert world.queue().land(task).state == "withheld"
    world.ledger.forget_work("r001-01")
    assert world.queue().checkpoint() is None
    names = set(files_at(world.origin, REF))
    assert "tasks/r001-01/landing.json" not in names and "tasks/r001-01/earlier-1/landing.json" in names


def test_a_plan_is_pushed_without_a_landing(world):
    world.plan(world.task("r001-01", ("a.py",)))
    before = world.main()
    assert world.queue().checkpoint() is None
    assert "iterations/root.001/plan.json" in files_at(world.origin, REF) and world.main() == before


def test_only_what_has_changed_is_taken_again(world):
    """A thousand tasks that are done cost a look at their folders, and what a folder has lost is lost there, too."""
    for n in range(1, 3):
        land(world, f"r001-0{n}", f"{n + 1}\n")
    folders = Path(str(world.ledger.directory))
    old = 1_700_000_000
    for folder in (folders / "tasks" / "r001-01", folders / "tasks" / "r001-02"):
        os.utime(folder, (old, old))
    assert world.queue().checkpoint() is None
    (folders / "tasks" / "r001-01" / "run.json").write_bytes(b"{}")  # in place, which a document never is
    os.utime(folders / "tasks" / "r001-01", (old, old))
    (folders / "tasks" / "r001-02" / "run.json").unlink()
    assert world.queue().checkpoint() is None
    there = files_at(world.origin, REF)
    assert there["tasks/r001-01/run.json"] != "{}"
    assert "tasks/r001-02/run.json" not in there and "tasks/r001-02/handoff.json" in there


def test_values_between_steps_and_broken_documents_are_no_facts(world):
    for name in ("io/run/step.json", "quarantine/state.json", ".hidden/x.json", "tasks/.hidden.json"):
        path = Path(str(world.ledger.directory / name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"{}")
    assert world.queue().checkpoint() is None
    assert set(files_at(world.origin, REF)) == {"orchestrator.json", "request.json"}
    assert world.queue()._keeper().checkpoint_document("request.json") == (
        Path(str(world.ledger.directory / "request.json")).read_bytes()
    )
    assert world.queue()._keeper().checkpoint_document("state.json") is None


def test_a_local_checkpoint_stays_in_the_mirror(tmp_path):
    world = World(tmp_path, bare(tmp_path / "o.git", {"a.py": "1\n"}), Settings(checkpoint="local"))
    for n in (1, 2):
        land(world, f"r001-0{n}", f"{n + 1}\n")
    assert git(world.origin, "for-each-ref", "--format=%(refname)") == "refs/heads/main"
    keeper = Checkpoint(world.mirror.git, world.mirror.path, world.ledger.directory, BUILD)
    assert git(world.mirror.path, "rev-list", "--count", keeper.local_head()) == "2"


def test_a_checkpoint_that_cannot_be_pushed_is_told_and_stops_nothing(world):
    world.mirror.fetch()
    world.origin.rename(world.root / "away")
    assert "\n" not in (world.queue().checkpoint() or "\n")
