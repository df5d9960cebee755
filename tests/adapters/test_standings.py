"""What a landing queue knows of its build: read once, and again only where something has changed."""

from pathlib import Path

import pytest
from repositories import World, bare

from longshot_dagster.adapters.host.documents import Documents
from longshot_dagster.adapters.landing.standings import Standings
from longshot_dagster.core.landing_records import LandingState


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, bare(tmp_path / "origin.git", {"a.py": "1\n"}))


def test_landing_one_task_reads_nothing_of_those_that_have_not_changed(world, monkeypatch):
    tasks = [world.task(f"r001-{n:02d}", (f"{n}.py",)) for n in range(20)]
    world.plan(*tasks)
    base, queue = world.mirror.fetch(), world.queue()
    for n, task in enumerate(tasks[:4]):
        world.worked(task, {f"{n}.py": "1\n"}, base=base)
    assert [queue.land(task).state for task in tasks[:3]] == [LandingState.LANDED] * 3
    asked: list[str] = []
    read = Documents._bytes
    monkeypatch.setattr(Documents, "_bytes", lambda self, name: asked.append(name) or read(self, name))
    assert queue.land(tasks[3]).state is LandingState.LANDED
    # A queue's own last landing may be seen as a change once; no task that waits, and none that landed before.
    assert {name.split("/")[1] for name in asked if name.startswith("tasks/")} <= {"r001-02", "r001-03"}
    assert "tasks/r001-03/handoff.json" in asked


def test_what_was_taken_back_is_known_by_one_who_knew_it_as_landed(world):
    task = world.task("r001-01", ("b.py",))
    world.plan(task)
    world.worked(task, {"b.py": "1\n"})
    landed = world.queue().land(task)
    standings = Standings(world.ledger)
    assert (standings.to_land(), standings.outcomes()) == ([], {"r001-01": landed})
    undone = landed.moved(LandingState.UNDONE, 9.0)
    world.ledger.save_landing(undone)
    assert (standings.to_land(), standings.outcomes()) == ([], {"r001-01": undone})


def test_a_task_of_no_plan_is_worked_on_once_it_was_given_and_waits_once_it_is_queued(world):
    standings, task = Standings(world.ledger), world.task("r001-01", ("b.py",))
    standings.given(task)
    assert (standings.tasks(), standings.handed_in(), standings.to_land()) == ({"r001-01": task}, [], [])
    standings.queued("r001-01")
    assert standings.to_land() == []  # what the ledger does not say is not believed
