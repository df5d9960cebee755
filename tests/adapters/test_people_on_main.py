"""People commit to the landing branch while a build runs: every commit of theirs stays, and so does what it says."""

from pathlib import Path
from random import Random

import pytest
from repositories import World, bare, commit_on, files_at, git

from longshot_dagster.core.landing_records import LandingState
from longshot_dagster.core.settings import MergeStrategy, Settings

LINES = 60  # of the file that both sides edit, each in blocks of its own


def page(edits: dict[int, str]) -> str:
    return "".join(f"{edits.get(n, f'line {n}')}\n" for n in range(LINES))


def world_with(tmp_path: Path, strategy: str, **files: str) -> World:
    files = {"page.txt": page({}), "docs/guide.md": "guide\n", **files}
    return World(tmp_path, bare(tmp_path / "origin.git", files), Settings(merge_strategy=strategy))


def first_parents(world: World) -> list[str]:
    return git(world.origin, "log", "--first-parent", "--format=%H", "main").split()


@pytest.mark.parametrize("strategy", list(MergeStrategy))
def test_a_person_pushes_between_every_two_landings_and_nothing_of_either_is_lost(tmp_path, strategy):
    world = world_with(tmp_path, strategy)
    tasks = [world.task(f"r001-0{n}", ("page.txt", f"new{n}/")) for n in range(1, 5)]
    world.plan(*tasks)
    base, theirs, ours = world.mirror.fetch(), {}, {}
    for n, task in enumerate(tasks):
        mine = {n * 12: f"agent {n}"}  # on the first base: as stale as can be
        world.worked(task, {"page.txt": page(mine), f"new{n + 1}/x.py": f"{n}\n"}, base=base)
    people = []
    for n, task in enumerate(tasks):
        theirs[n * 12 + 6] = f"person {n}"
        gone = {"docs/guide.md": None} if n == 2 else {}
        edits = {"page.txt": page(theirs | ours), f"notes/{n}.md": f"note {n}\n", **gone}
        people.append(commit_on(world.origin, "main", edits, f"person {n}"))
        assert world.queue().land(task).state is LandingState.LANDED
        ours[n * 12] = f"agent {n}"
    people.append(commit_on(world.origin, "main", {"page.txt": page(theirs | ours | {59: "the end"})}, "person last"))
    assert [oid for oid in reversed(first_parents(world)) if oid in people] == people
    found = files_at(world.origin)
    assert found["page.txt"] == page(theirs | ours | {59: "the end"}).strip()
    assert {f"notes/{n}.md" for n in range(4)} <= set(found) and "docs/guide.md" not in found
    assert {f"new{n}/x.py" for n in range(1, 5)} <= set(found)


def test_where_a_person_and_a_task_want_the_same_line_the_person_keeps_it(tmp_path):
    world = world_with(tmp_path, "rebase")
    task = world.task("r001-01", ("page.txt",))
    world.plan(task)
    world.worked(task, {"page.txt": page({5: "agent"})})
    theirs = commit_on(world.origin, "main", {"page.txt": page({5: "person"})})
    outcome = world.queue().land(task)
    assert (outcome.state, outcome.conflict_with) == (LandingState.CONFLICT, ())
    assert world.main() == theirs


def test_what_a_person_takes_back_by_hand_is_not_brought_back(tmp_path):
    world = world_with(tmp_path, "rebase")
    first, second = world.task("r001-01", ("page.txt",)), world.task("r001-02", ("page.txt",))
    world.plan(first, second)
    world.worked(first, {"page.txt": page({5: "agent"})})
    assert world.queue().land(first).state is LandingState.LANDED
    base = world.mirror.fetch()
    commit_on(world.origin, "main", {"page.txt": page({})}, 'Revert "agent"')
    world.worked(second, {"page.txt": page({5: "agent", 30: "more"})}, base=base)
    assert world.queue().land(second).state is LandingState.LANDED
    assert files_at(world.origin)["page.txt"] == page({30: "more"}).strip()
    assert (
        world.queue().land(first).state is LandingState.LANDED
    )  # the ledger's word; main is left as the person has it
    assert files_at(world.origin)["page.txt"] == page({30: "more"}).strip()


def test_whatever_the_order_main_is_everybodys_work_together(tmp_path):
    """Random owners of random blocks, stale bases, pushes in the middle of a landing: main equals the plain sum."""
    chance = Random(1)
    world = world_with(tmp_path, chance.choice(list(MergeStrategy)))
    blocks = list(range(0, LINES, 6))
    chance.shuffle(blocks)
    names = {f"r001-{n:02d}": block for n, block in enumerate(blocks[:6], 1)}
    tasks = {name: world.task(name, ("page.txt",)) for name in names}
    world.plan(*tasks.values())
    on_main: dict[int, str] = {}
    people, waiting, seen = [], [], dict(on_main)
    base = world.mirror.fetch()
    for name in names:
        if chance.random() < 0.5:
            base, seen = world.mirror.fetch(), dict(on_main)
        world.worked(tasks[name], {"page.txt": page(seen | {names[name]: name})}, base=base)
        waiting.append(name)
        while waiting and chance.random() < 0.4:
            landed = waiting.pop(chance.randrange(len(waiting)))
            assert world.queue().land(tasks[landed]).state is LandingState.LANDED
            on_main[names[landed]] = landed
        if chance.random() < 0.7 and len(people) < 4:
            block = blocks[6 + len(people)]
            on_main[block] = f"person {block}"
            people.append(commit_on(world.origin, "main", {"page.txt": page(on_main)}))
    assert {o.state for o in world.queue().drain()} == {LandingState.LANDED}
    on_main |= {block: name for name, block in names.items()}
    assert files_at(world.origin)["page.txt"] == page(on_main).strip()
    assert set(people) <= set(first_parents(world))
