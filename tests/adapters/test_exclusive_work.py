"""Exclusive work across the processes of a build: what they know of one another is in the ledger, and dies with nobody."""

import os
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from repositories import World, bare

from longshot_dagster.adapters.host.exclusive import claim
from longshot_dagster.adapters.ledger.apart import Apart
from longshot_dagster.core.apart import BEGINS_S, LANDING_S
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.models import CancelRequest, Plan

TIMEOUT_S = 1000.0


class Later(SystemClock):
    """The same clock, so many seconds on."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def now(self) -> float:
        return super().now() + self.seconds


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, bare(tmp_path / "origin.git", {"src/a.py": "1\n"}))


def process(world: World, later_s: float = 0.0) -> Apart:
    """One more process of the build."""
    return Apart(world.ledger, TIMEOUT_S, Later(later_s))


def free(who: Apart, *waiting: str) -> tuple[str, ...]:
    with who.starting(waiting) as found:
        return found.order


def begin(who: Apart, *waiting: str) -> tuple[str, ...]:
    with who.starting(waiting) as found:
        who.begun(found.order)
        return found.order


@pytest.fixture
def planned(world: World):
    """A rename of `src/` in the first round; in the second, work in it and work beside it."""
    rename = world.task("r001-01", ("src/",), exclusive=("src/",))
    inside = world.task("r002-01", ("src/a.py",), iteration="root.002")
    beside = world.task("r002-02", ("docs/a.md",), iteration="root.002")
    plan(world, 1, rename)
    plan(world, 2, inside, beside)
    return rename, inside, beside


def plan(world: World, number: int, *tasks) -> None:
    key = IterationKey(world.build, "root", number)
    world.ledger.open_iteration(key)
    at = SystemClock().now()
    world.ledger.freeze_plan(key, Plan(iteration=key.short, tasks=tasks, base=world.request.base, planned_at=at))


def test_what_another_process_has_begun_is_waited_for_until_it_has_landed(world, planned):
    rename, inside, beside = planned
    first, second = process(world), process(world)
    assert begin(first, rename.id) == (rename.id,)
    assert begin(second, inside.id, beside.id) == (beside.id,)
    with claim(world.ledger.work_lock(rename.id)):
        assert free(process(world, BEGINS_S + 1), inside.id) == ()
    world.worked(rename, {"src/b.py": "1\n"})
    assert free(process(world, BEGINS_S + 1), inside.id) == ()  # handed in, and not on main yet
    world.queue().land(rename)
    assert begin(second, inside.id) == (inside.id,)


def test_exclusive_work_waits_for_what_was_begun_before_it_was_planned(world):
    inside = world.task("r001-01", ("src/a.py",))
    plan(world, 1, inside)
    here = process(world)
    assert begin(here, inside.id) == (inside.id,)
    plan(world, 2, world.task("r002-01", ("src/",), iteration="root.002", exclusive=("src/",)))
    with here.starting(["r002-01"]) as found:
        assert found.held["r002-01"].why == "waits for r001-01, as it is to work alone on src/"


def test_a_process_that_died_holds_nothing_up_and_what_it_began_may_begin_again(world, planned):
    rename, inside, _ = planned
    begin(process(world), rename.id)  # and dies
    mark = world.ledger.work_lock(rename.id).with_name(".begun")
    os.utime(mark, (1.0, 1.0))
    assert begin(process(world), rename.id) == (rename.id,)  # and dies again
    assert mark.stat().st_mtime > 1.0
    assert free(process(world), rename.id) == (rename.id,)
    soon, later = process(world, BEGINS_S - 5), process(world, BEGINS_S + 1)
    assert free(soon, inside.id) == ()
    with later.starting([inside.id]) as found:  # it has its turn first, when its run is repeated
        assert found.held[inside.id].behind_waits
    assert free(process(world, TIMEOUT_S + LANDING_S + 1), inside.id) == (inside.id,)


def test_work_that_never_lands_has_its_files_to_itself_until_its_deadline(world, planned):
    rename, inside, _ = planned
    begin(process(world), rename.id)
    world.worked(rename, {"src/b.py": "1\n"})
    assert free(process(world, TIMEOUT_S + LANDING_S - 5), inside.id) == ()
    assert free(process(world, TIMEOUT_S + LANDING_S + 5), inside.id) == (inside.id,)


def test_nobody_waits_for_work_that_a_person_has_cancelled(world, planned):
    rename, inside, _ = planned
    assert free(process(world), inside.id) == ()
    world.ledger._write(f"tasks/{rename.id}/cancel.json", CancelRequest(at=1.0))
    assert free(process(world), inside.id) == (inside.id,)


def test_two_processes_never_begin_what_may_not_be_together(world):
    """Both are let go at once, many times, on a pair of which either may go first."""
    for n in range(1, 21):
        a = world.task(f"r{n:03d}-01", (f"{n}.py",), iteration=f"root.{n:03d}")
        plan(world, n, a, world.task(f"r{n:03d}-02", (f"{n}.py",), iteration=f"root.{n:03d}", exclusive=(f"{n}.py",)))
    gate, begun = threading.Barrier(2), [[], []]

    def go(which: int) -> None:
        who = process(world)
        for n in range(1, 21):
            gate.wait(30)
            begun[which].append(begin(who, f"r{n:03d}-{which + 1:02d}"))

    threads = [threading.Thread(target=go, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(a) + len(b) for a, b in zip(*begun, strict=True)] == [1] * 20


def test_a_mark_from_the_future_holds_nobody_up(world, planned):
    rename, inside, _ = planned
    begin(process(world), rename.id)
    mark = world.ledger.work_lock(rename.id).with_name(".begun")
    ahead = SystemClock().now() + 10 * TIMEOUT_S
    os.utime(mark, (ahead, ahead))
    late = process(world, TIMEOUT_S + LANDING_S + 1)  # past the turn that it would have had
    assert free(late, inside.id) == (inside.id,)


def test_a_build_without_exclusive_work_only_marks_who_has_begun(world):
    tasks = [world.task(f"r001-{n:02d}", (f"{n}.py",)) for n in (1, 2)]
    plan(world, 1, *tasks)
    assert begin(process(world), "r001-02", "r001-01") == ("r001-02", "r001-01")
    assert process(world).held_back() == {}


def test_of_equal_tasks_those_are_preferred_whose_files_another_process_is_not_at(world):
    first, again = world.task("r001-01", ("a.py",)), world.task("r002-01", ("a.py",), iteration="root.002")
    other = world.task("r002-02", ("b.py",), iteration="root.002")
    plan(world, 1, first)
    plan(world, 2, again, other)
    begin(process(world), first.id)
    assert free(process(world), again.id, other.id) == (other.id, again.id)


def test_a_ledger_that_cannot_be_read_keeps_nobody_waiting(world, planned, monkeypatch):
    here = process(world)

    @contextmanager
    def broken(_name):
        raise OSError(28, "No space left on device")
        yield

    monkeypatch.setattr(here._ledger, "lock", broken)
    assert free(here, "r002-01") == ("r002-01",)


def test_who_waits_for_whom_is_there_for_a_person_to_read(world, planned):
    rename, inside, _ = planned
    begin(process(world), rename.id)
    assert {t: h.why for t, h in process(world).held_back().items()} == {
        inside.id: f"waits for {rename.id}, which works alone on src/"
    }
