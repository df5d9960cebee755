"""Damaged documents of a real build: set aside, made anew from what git and the ledger hold, or run again; once, and said."""

import multiprocessing
import os
from pathlib import Path

import pytest
from repositories import World, bare, git

from longshot_dagster.adapters.ledger.ledger import BuildLedger, Ledger
from longshot_dagster.adapters.ledger.quarantine import Mended, note, set_aside
from longshot_dagster.core.errors import LedgerError
from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.lifecycle import RunIteration, next_steps
from longshot_dagster.core.models import BuildPhase, HandoffStatus, MetricsSnapshot, RepoState, Sweep

BROKEN = {
    "empty": lambda data: b"",
    "cut short": lambda data: data[: len(data) // 2],
    "one bit": lambda data: data[:40] + bytes([data[40] ^ 4]) + data[41:],
    "garbage": lambda data: os.urandom(len(data)),
    "zeros": lambda data: bytes(len(data)),
    "another document": lambda data: b'{\n "x": 1\n}',
}


@pytest.fixture
def world(tmp_path: Path) -> World:
    """One task landed, one in conflict with it, one handed in since the last checkpoint, one not begun; planned twice."""
    made = World(tmp_path, bare(tmp_path / "origin.git", {"a.txt": "one\n", "b.txt": "b\n", "c.txt": "c\n"}))
    names = {"r001-01": "a.txt", "r001-02": "a.txt", "r001-03": "b.txt", "r001-04": "c.txt"}
    tasks = {name: made.task(name, (path,)) for name, path in names.items()}
    made.plan(*tasks.values())
    made.ledger.update_state(lambda s: s.paused("earlier"))
    made.ledger.update_state(lambda s: s.moved(BuildPhase.RUNNING))
    base = made.mirror.fetch()
    made.worked(tasks["r001-01"], {"a.txt": "two\n"}, base=base)
    made.worked(tasks["r001-02"], {"a.txt": "three\n"}, base=base)
    queue = made.queue()
    queue.checkpoint()  # as after every plan
    queue.land(tasks["r001-01"])
    queue.land(tasks["r001-02"])
    made.worked(tasks["r001-03"], {"b.txt": "d\n"})
    return made


def at(world: World, name: str) -> Path:
    return Path(str(world.ledger.directory)) / name


def damage(world: World, name: str, how: str = "cut short") -> bytes:
    path = at(world, name)
    data = path.read_bytes()
    path.write_bytes(BROKEN[how](data))
    return data


def only_note(world: World) -> Mended:
    [found] = world.ledger.mended()
    return found


READERS = {
    "request.json": lambda x: x.request(),
    "iterations/root.001/plan.json": lambda x: x.plan(IterationKey(x.build, "root", 1)),
    "tasks/r001-01/task.json": lambda x: x.task("r001-01"),
    "tasks/r001-01/handoff.json": lambda x: x.handoff("r001-01"),
    "tasks/r001-01/run.json": lambda x: x.run("r001-01"),
    "tasks/r001-01/landing.json": lambda x: x.landing("r001-01"),
    "state.json": lambda x: x.state(),
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("name", READERS)
def test_what_git_or_the_ledger_still_holds_is_as_it_was(world: World, name: str, how: str) -> None:
    before = READERS[name](world.ledger)
    whole = damage(world, name, how)
    torn = at(world, name).read_bytes()
    assert READERS[name](world.ledger) == before
    assert at(world, name).read_bytes() == whole  # asset, ledger entry and checkpoint stay the same bytes
    found = only_note(world)
    assert found.document == name and found.wrong and at(world, found.kept).read_bytes() == torn
    READERS[name](world.ledger)
    assert len(world.ledger.mended()) == 1


def test_whatever_is_damaged_the_fold_sees_the_build_as_it_was(world: World) -> None:
    before = world.ledger.view()
    names = [n for n in READERS if n != "state.json"] + ["tasks/r001-02/landing.json"]
    for name in names:
        damage(world, name, "zeros")
    view = world.ledger.view()
    requeued = [t for t in view.tasks if t.landing is LandingState.QUEUED]
    assert [t.id for t in requeued] == ["r001-02"]  # a conflict is found again by merging
    assert world.queue().drain()[1].state is LandingState.CONFLICT
    assert world.ledger.view() == Ledger(world.home.builds).build(world.build).view()
    settled = [t for t in world.ledger.view().tasks if t.id != "r001-03"]
    assert settled == [t for t in before.tasks if t.id != "r001-03"]


def test_a_document_that_was_checkpointed_damaged_is_taken_from_an_older_checkpoint(world: World) -> None:
    before = world.ledger.handoff("r001-01")
    damage(world, "tasks/r001-01/handoff.json")
    world.ledger.save_landing(LandingOutcome(task="r001-04", state=LandingState.WITHHELD))
    cache = next(world.mirror.path.glob("longshot-checkpoint-*.json"))
    cache.unlink()
    assert world.queue().checkpoint() is None
    assert world.ledger.handoff("r001-01") == before


def test_what_landed_after_the_checkpoint_is_found_on_main_and_lands_no_second_time(world: World) -> None:
    head = world.main()
    local = f"refs/longshot/checkpoint/{world.build}"
    git(world.mirror.path, "update-ref", local, f"{local}~1")  # as if the lander had died before it
    at(world, "tasks/r001-01/landing.json").write_bytes(b"")
    assert world.ledger.landing("r001-01") == LandingOutcome(task="r001-01", state=LandingState.QUEUED)
    assert {o.task: o.state for o in world.queue().drain()}["r001-01"] is LandingState.LANDED
    assert git(world.origin, "rev-parse", "main~1").strip() == head


def test_a_checkpoint_whose_push_was_refused_is_not_believed(world: World) -> None:
    landed = world.ledger.landing("r001-01")
    assert landed is not None and landed.state is LandingState.LANDED
    git(world.origin, "update-ref", "refs/heads/main", f"{landed.commits[0]}~1")  # main never had it
    damage(world, "tasks/r001-01/landing.json")
    found = world.ledger.landing("r001-01")
    assert found is not None and found.state is LandingState.QUEUED


def test_a_lost_handoff_without_a_checkpoint_is_worked_on_again(world: World) -> None:
    damage(world, "tasks/r001-03/handoff.json")
    assert world.ledger.handoff("r001-03") is None and world.ledger.run("r001-03") is None
    assert only_note(world).became == "its task runs again"


@pytest.mark.parametrize("name", ["handoff.json", "run.json"])
def test_so_it_is_once_its_iteration_is_over_and_nobody_need_resume(world: World, name: str) -> None:
    key = IterationKey(world.build, "root", 1)
    world.ledger.save_landing(LandingOutcome(task="r001-03", state=LandingState.WITHHELD))
    world.ledger.save_metrics(key, MetricsSnapshot(iteration="root.001"))
    other = world.ledger
    other.view()
    damage(world, f"tasks/r001-03/{name}")
    assert world.ledger.run("r001-03") is None or world.ledger.handoff("r001-03") is None
    for ledger in (world.ledger, other):
        assert RunIteration(key, 2) in next_steps(ledger.view())
        assert ledger.landing("r001-03") is None and ledger.handoff("r001-03") is None


def test_of_what_landed_a_lost_handoff_is_made_anew_and_nothing_runs_again(world: World) -> None:
    git(world.mirror.path, "update-ref", "-d", f"refs/longshot/checkpoint/{world.build}")
    git(world.origin, "update-ref", "-d", f"refs/longshot/{world.build}")
    damage(world, "tasks/r001-01/handoff.json")
    found = world.ledger.handoff("r001-01")
    assert found is not None and (found.status, found.files_changed) == (HandoffStatus.COMPLETE, ["a.txt"])


def test_with_the_mirror_gone_the_targets_own_checkpoint_is_asked(world: World) -> None:
    before = world.ledger.handoff("r001-01")
    git(world.mirror.path, "update-ref", "-d", f"refs/longshot/checkpoint/{world.build}")
    damage(world, "tasks/r001-01/handoff.json")
    assert world.ledger.handoff("r001-01") == before


def test_the_handoff_of_an_earlier_worker_is_not_taken_for_this_ones(world: World) -> None:
    task = world.ledger.existing_task("r001-02")
    world.ledger.forget_work("r001-02")  # checkpointed, then set aside for another worker
    world.worked(task, {"a.txt": "four\n"}, status=HandoffStatus.PARTIAL)
    damage(world, "tasks/r001-02/handoff.json")
    assert world.ledger.handoff("r001-02") is None


@pytest.mark.parametrize("name", ["request.json", "iterations/root.001/plan.json"])
def test_without_any_checkpoint_a_request_or_a_plan_pauses_the_build_with_one_line(world: World, name: str) -> None:
    git(world.mirror.path, "update-ref", "-d", f"refs/longshot/checkpoint/{world.build}")
    git(world.origin, "update-ref", "-d", f"refs/longshot/{world.build}")
    whole = damage(world, name)
    torn = at(world, name).read_bytes()
    for _ in range(2):
        with pytest.raises(LedgerError, match=f"{world.build}: {name} is damaged .* no checkpoint holds it") as told:
            READERS[name](world.ledger)
        assert "\n" not in str(told.value)
    state = world.ledger.state()
    assert (state.phase, state.reason) == (BuildPhase.PAUSED, str(told.value))
    assert at(world, name).read_bytes() == torn and len(world.ledger.mended()) == 1
    at(world, name).write_bytes(whole)
    assert READERS[name](world.ledger) is not None


def test_metrics_that_are_lost_are_computed_again_by_a_run_of_their_own(world: World) -> None:
    key = IterationKey(world.build, "root", 1)
    world.ledger.save_metrics(key, MetricsSnapshot(iteration="root.001"))
    damage(world, "iterations/root.001/metrics.json")
    assert world.ledger.metrics(key) is None
    assert RunIteration(key, 2) in next_steps(world.ledger.view())


def test_a_missing_state_is_told_by_its_past(world: World) -> None:
    world.ledger.update_state(lambda s: s.paused("a reason"))
    before = world.ledger.state()
    at(world, "state.json").unlink()
    assert world.ledger.state() == before
    assert only_note(world).wrong == "it is missing"


def test_a_state_of_which_only_the_checkpoint_knows_is_paused(world: World) -> None:
    at(world, "phases.jsonl").write_bytes(b'{"at": 1, "phase": "run')
    damage(world, "state.json", "zeros")
    state = world.ledger.state()
    assert state.phase is BuildPhase.PAUSED and "longshot resume" in state.reason


def test_a_missing_request_is_still_a_build(world: World) -> None:
    before = world.ledger.request()
    at(world, "request.json").unlink()
    assert world.build in Ledger(world.home.builds).builds()
    assert Ledger(world.home.builds).existing(world.build).request() == before


def test_a_missing_task_of_a_plan_is_not_forgotten(world: World) -> None:
    before = world.ledger.view().tasks
    at(world, "tasks/r001-04/task.json").unlink()
    at(world, "tasks/r001-01/task.json").unlink()
    assert world.ledger.view().tasks == before
    assert world.ledger.task_ids() == [t.id for t in before]


def test_a_handoff_that_vanished_beside_its_landing_is_restored(world: World) -> None:
    before = world.ledger.view()
    at(world, "tasks/r001-01/handoff.json").unlink()
    assert Ledger(world.home.builds).build(world.build).view() == before


def test_a_plan_that_vanished_is_restored_before_any_planner_is_asked_again(world: World) -> None:
    before = world.ledger.view()
    at(world, "iterations/root.001/plan.json").unlink()
    assert Ledger(world.home.builds).build(world.build).view() == before


def test_a_lost_sweeps_number_is_given_to_no_other(world: World) -> None:
    sweep = Sweep(number=1, head=world.main(), started_at=1, ended_at=2)
    world.ledger.add_sweep(sweep)
    world.ledger.add_sweep(sweep)
    damage(world, "sweeps/2.json")
    assert [s.number for s in world.ledger.sweeps()] == [1]
    assert world.ledger.add_sweep(sweep).number == 3


def test_planners_memory_is_restored_from_the_checkpoint(world: World) -> None:
    world.ledger.save_planner_turn("root", 1, b'{"messages": ["hello"]}')
    world.queue().checkpoint()
    damage(world, "planners/root/001.json")
    assert world.ledger.planner_turn("root", 1) == b'{"messages":["hello"]}'


def test_what_is_only_noted_in_passing_counts_as_not_written(world: World) -> None:
    key = IterationKey(world.build, "root", 1)
    state = RepoState(head=world.main(), branch="main", files=1, tree=("a.txt",), log=())
    world.ledger.save_repo_state(key, state)
    damage(world, "iterations/root.001/repo_state.json", "garbage")
    assert world.ledger.repo_state(key) is None


def test_half_written_temporary_files_are_nobodys_documents(world: World) -> None:
    before = world.ledger.view()
    for name in ("tasks/r001-01/.handoff.json.x1", "iterations/root.001/.plan.json.x2", ".state.json.x3"):
        at(world, name).write_bytes(b'{"half')
    assert Ledger(world.home.builds).build(world.build).view() == before


def _read(root: Path, build: str) -> None:
    BuildLedger(Ledger(root).root / build, build).handoff("r001-01")


def test_many_processes_that_meet_it_mend_it_once(world: World) -> None:
    damage(world, "tasks/r001-01/handoff.json")
    spawn = multiprocessing.get_context("spawn")
    readers = [spawn.Process(target=_read, args=(world.home.builds, world.build)) for _ in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert [r.exitcode for r in readers] == [0, 0, 0]
    assert only_note(world).became == "restored from the checkpoint"


def test_what_is_in_quarantine_is_never_written_over(tmp_path: Path) -> None:
    for text in (b"1", b"2"):
        (tmp_path / "state.json").write_bytes(text)
        set_aside(tmp_path, "state.json")
    assert sorted(p.read_bytes() for p in (tmp_path / "quarantine").iterdir()) == [b"1", b"2"]
    note(tmp_path, Mended(at=1.0, document="state.json", wrong="it is empty", became="made anew"))
    assert BuildLedger(Ledger(tmp_path.parent).root / tmp_path.name, "toy-0001").mended()[0].line == (
        "state.json was damaged (it is empty): made anew"
    )


def test_settings_are_never_taken_from_a_checkpoint_that_others_can_write(world: World) -> None:
    git(world.mirror.path, "update-ref", "-d", f"refs/longshot/checkpoint/{world.build}")
    damage(world, "request.json")
    with pytest.raises(LedgerError, match="restore the file from a copy"):
        world.ledger.request()
