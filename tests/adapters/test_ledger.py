"""The ledger on a real file system: whole documents or none, frozen plans, one writer at a time."""

import errno
import multiprocessing
import os
import threading
import time

import pytest

from longshot_dagster.adapters.host import documents
from longshot_dagster.adapters.host.documents import locked
from longshot_dagster.adapters.ledger import task_gists
from longshot_dagster.adapters.ledger.ledger import BuildLedger, Ledger
from longshot_dagster.core.errors import LedgerError, WrongUse
from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.lifecycle import IterationStatus, RunIteration, next_steps
from longshot_dagster.core.models import (
    BuildPhase,
    BuildRequest,
    BuildState,
    Handoff,
    HandoffStatus,
    IterationFailure,
    MetricsSnapshot,
    Plan,
    Target,
    TargetKind,
    Task,
    TaskKind,
)
from longshot_dagster.core.settings import Settings

BUILD, BASE = "toy-0001", "a" * 40
ROOT_1 = IterationKey(BUILD, "root", 1)


def new_build(root, build: str = BUILD) -> BuildLedger:
    ledger = Ledger(root).build(build)
    target = Target(repository="r", url="r", kind=TargetKind.REMOTE, base_branch="main", branch="main")
    ledger.save_request(
        BuildRequest(build=build, request="do it", target=target, base=BASE, settings=Settings(), created_at=1.0)
    )
    return ledger


def task(name: str, iteration: str = "root.001", planner: str = "root", **more) -> Task:
    return Task(
        id=name, build=BUILD, iteration=iteration, planner=planner, description="d", scope=("a.py",), branch="w", **more
    )


def test_tasks_of_a_plan_that_was_never_frozen_are_forgotten_by_the_next_attempt(tmp_path):
    ledger = new_build(tmp_path)
    for name in ("r001-01", "r001-02"):  # killed before the manifest
        ledger._write(f"tasks/{name}/task.json", task(name, priority=9))
    ledger.task("r001-01")
    ledger.freeze_plan(ROOT_1, Plan(iteration=ROOT_1.short, tasks=(task("r001-01"),), base=BASE))
    assert ledger.task_ids() == ["r001-01"]
    for reader in (ledger, Ledger(tmp_path).build(BUILD)):
        assert reader.existing_task("r001-01").priority == 5
        assert [t.id for t in reader.view().tasks] == ["r001-01"]


def test_the_first_plan_wins_and_no_model_is_paid_twice(tmp_path):
    ledger = new_build(tmp_path)
    first = ledger.freeze_plan(ROOT_1, Plan(iteration="root.001", tasks=(task("r001-01"),), base=BASE))
    second = ledger.freeze_plan(ROOT_1, Plan(iteration="root.001", tasks=(task("r001-02"),), base=BASE))
    assert second == first
    assert ledger.task_ids() == ["r001-01"]


def test_what_was_written_is_what_is_read_by_another_process(tmp_path):
    new_build(tmp_path).save_handoff(
        Handoff(task_id="r001-01", status=HandoffStatus.PARTIAL, summary="nul \x00 é \u202e")
    )
    again = Ledger(tmp_path).build(BUILD).handoff("r001-01")
    assert again is not None and again.status is HandoffStatus.PARTIAL


def test_a_build_that_is_not_there_is_one_clear_line(tmp_path):
    new_build(tmp_path)
    with pytest.raises(WrongUse, match="no build 'other' here"):
        Ledger(tmp_path).existing("other")


def test_no_temporary_file_is_left_behind(tmp_path):
    ledger = new_build(tmp_path)
    ledger.save_planner_turn("root", 1, b"{}")
    assert [f.name for f in (tmp_path / BUILD / "planners" / "root").iterdir()] == ["001.json"]


def test_an_iteration_is_done_with_its_metrics_and_failed_only_for_its_attempt(tmp_path):
    ledger = new_build(tmp_path)
    ledger.open_iteration(ROOT_1)
    assert ledger.view().iterations[0].status is IterationStatus.OPEN
    ledger.save_failure(ROOT_1, IterationFailure(attempt=1, kind="model", reason="HTTP 500"))
    assert ledger.view().iterations[0].status is IterationStatus.FAILED
    ledger.update_state(lambda s: s.model_copy(update={"attempts": {"root.001": 2}}))
    assert ledger.view().iterations[0].status is IterationStatus.OPEN
    assert next_steps(ledger.view()) == [RunIteration(ROOT_1, 2)]
    ledger.save_metrics(ROOT_1, MetricsSnapshot(iteration="root.001"))
    assert ledger.view().iterations[0].status is IterationStatus.DONE


def test_a_delegated_task_that_proves_atomic_counts_as_a_workers_task(tmp_path):
    ledger = new_build(tmp_path)
    parent = task("r001-01", delegated=True)
    ledger.freeze_plan(ROOT_1, Plan(iteration="root.001", tasks=(parent,), base=BASE))
    atomic = parent.model_copy(update={"delegated": False})
    ledger.freeze_plan(IterationKey(BUILD, "r001-01", 1), Plan(iteration="r001-01.001", tasks=(atomic,), base=BASE))
    [view] = ledger.view().tasks
    assert (view.id, view.planner, view.delegated) == ("r001-01", "root", False)


def test_a_conflict_that_a_fix_iteration_took_up_is_not_fixable_again(tmp_path):
    ledger = new_build(tmp_path)
    ledger.freeze_plan(ROOT_1, Plan(iteration="root.001", tasks=(task("r001-01"),), base=BASE))
    ledger.save_landing(LandingOutcome(task="r001-01", state=LandingState.CONFLICT))
    fix = task("f001-01", "fix.001", "fix", kind=TaskKind.CONFLICT_FIX, replaces=("r001-01",))
    ledger.freeze_plan(IterationKey(BUILD, "fix", 1), Plan(iteration="fix.001", tasks=(fix,), base=BASE))
    views = {t.id: t for t in ledger.view().tasks}
    assert views["r001-01"].fix_planned and views["f001-01"].is_fix


def test_work_set_aside_is_kept_and_the_task_is_worked_on_again(tmp_path):
    ledger = new_build(tmp_path)
    for summary in ("first", "second"):
        ledger.save_handoff(Handoff(task_id="r001-01", status=HandoffStatus.FAILED, summary=summary))
        ledger.forget_work("r001-01")
        assert ledger.handoff("r001-01") is None
    kept = sorted(p.parent.name for p in (tmp_path / BUILD / "tasks" / "r001-01").glob("*/handoff.json"))
    assert kept == ["earlier-1", "earlier-2"]


def _count(root, times):
    ledger = Ledger(root).build(BUILD)
    for _ in range(times):
        ledger.update_state(lambda s: s.model_copy(update={"attempts": {"x": s.attempts.get("x", 0) + 1}}))


def test_state_changes_of_many_processes_and_threads_are_all_kept(tmp_path):
    new_build(tmp_path)
    others = [multiprocessing.get_context("spawn").Process(target=_count, args=(tmp_path, 10)) for _ in range(2)]
    threads = [threading.Thread(target=_count, args=(tmp_path, 10)) for _ in range(3)]
    for worker in (*others, *threads):
        worker.start()
    for worker in (*others, *threads):
        worker.join()
    assert Ledger(tmp_path).build(BUILD).state().attempts == {"x": 50}


def test_a_lock_is_free_again_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "l"):
        _ = 1 / 0
    with locked(tmp_path / "l"):
        pass


def test_builds_are_listed_oldest_first(tmp_path):
    for name, at in (("b-new", 9.0), ("a-old", 3.0)):
        ledger = new_build(tmp_path, name)
        ledger.save_request(ledger.request().model_copy(update={"created_at": at}))
    assert Ledger(tmp_path).builds() == ["a-old", "b-new"]


def test_the_root_may_be_an_object_store():
    ledger = new_build("memory://ledger-test")
    ledger.save_landing(LandingOutcome(task="r001-01", state=LandingState.QUEUED))
    ledger.update_state(lambda s: s.moved(BuildPhase.PAUSED, "why"))
    assert ledger.state() == BuildState(phase=BuildPhase.PAUSED, reason="why")
    assert Ledger("memory://ledger-test").builds() == [BUILD]


WRITES = {
    "a plan": lambda x: x.freeze_plan(ROOT_1, Plan(iteration="root.001", tasks=(task("r001-01"),), base=BASE)),
    "a handoff": lambda x: x.save_handoff(Handoff(task_id="r001-01", status=HandoffStatus.COMPLETE, summary="s")),
    "a landing": lambda x: x.save_landing(LandingOutcome(task="r001-01", state=LandingState.QUEUED)),
    "a pause": lambda x: x.update_state(lambda s: s.paused("why")),
}


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", ["new_file", "fsync", "replace"])
@pytest.mark.parametrize("what", WRITES)
def test_whichever_write_fails_nothing_is_half_written_and_it_goes_on_once_there_is_room(
    tmp_path, monkeypatch, what, call, error
):
    new_build(tmp_path)
    count, failing = 0, 0

    def counted(real):
        def tried(*args, **more):
            nonlocal count
            count += 1
            if count == failing:
                raise OSError(error, os.strerror(error))
            return real(*args, **more)

        return tried

    module = documents if call == "new_file" else os
    monkeypatch.setattr(module, call, counted(getattr(module, call)))
    failures = 0
    for failing in range(1, 20):
        count = 0
        before = Ledger(tmp_path).build(BUILD).view()
        try:
            WRITES[what](Ledger(tmp_path).build(BUILD))
        except LedgerError as e:
            assert os.strerror(error) in str(e) and "\n" not in str(e)
            failures += 1
            again = Ledger(tmp_path).build(BUILD)
            # After the rename only the folder's fsync can fail: then the document is whole, and there.
            assert again.view() == before or call == "fsync" or what == "a plan"
            assert not [p for p in tmp_path.rglob(".*") if ".json." in p.name]
        if count < failing:
            break
    assert failures and Ledger(tmp_path).build(BUILD).mended() == []


def test_what_another_process_writes_is_seen_at_the_next_look(tmp_path):
    ledger, other = new_build(tmp_path), Ledger(tmp_path).build(BUILD)
    ledger.freeze_plan(ROOT_1, Plan(iteration="root.001", tasks=(task("r001-01"), task("r001-02")), base=BASE))
    seen = [t.handoff for t in ledger.view().tasks]
    child = multiprocessing.get_context("spawn").Process(target=_hand_in, args=(tmp_path, "r001-02"))
    child.start()
    child.join()
    assert (seen, [t.handoff for t in ledger.view().tasks]) == ([None, None], [None, HandoffStatus.PARTIAL])
    assert ledger.view() is ledger.view() and other.view() == ledger.view()


def _hand_in(root, name):
    Ledger(root).build(BUILD).save_handoff(Handoff(task_id=name, status=HandoffStatus.PARTIAL, summary="s"))


def test_a_task_that_is_over_and_taken_up_again_is_looked_at_again(tmp_path):
    ledger = new_build(tmp_path)
    ledger.freeze_plan(ROOT_1, Plan(iteration="root.001", tasks=(task("r001-01"),), base=BASE))
    ledger.save_handoff(Handoff(task_id="r001-01", status=HandoffStatus.COMPLETE, summary="s"))
    ledger.save_landing(LandingOutcome(task="r001-01", state=LandingState.SUPERSEDED))
    for folder in (tmp_path / BUILD / "tasks" / "r001-01", tmp_path / BUILD / "tasks"):
        os.utime(folder, (1_000, 1_000))  # settled long ago
    assert ledger.view().tasks[0].landing is LandingState.SUPERSEDED
    Ledger(tmp_path).build(BUILD).forget_work("r001-01")
    assert (ledger.view().tasks[0].handoff, ledger.view().tasks[0].landing) == (None, None)


@pytest.mark.parametrize("shift", [-86_400, 86_400])
def test_a_clock_that_was_set_back_or_forward_hides_no_change(tmp_path, shift):
    ledger = new_build(tmp_path)
    ledger.freeze_plan(ROOT_1, Plan(iteration="root.001", tasks=(task("r001-01"),), base=BASE))
    at = time.time() + shift
    for folder in (tmp_path / BUILD / "tasks" / "r001-01", tmp_path / BUILD / "tasks"):
        os.utime(folder, (at, at))
    assert ledger.view().tasks[0].handoff is None
    ledger.save_handoff(Handoff(task_id="r001-01", status=HandoffStatus.PARTIAL, summary="s"))
    assert ledger.view().tasks[0].handoff is HandoffStatus.PARTIAL


def test_gists_kept_for_the_next_process_are_dropped_when_torn(tmp_path, monkeypatch):
    monkeypatch.setattr(task_gists, "_SAVED_AFTER", 1)
    ledger = new_build(tmp_path)
    ledger.freeze_plan(ROOT_1, Plan(iteration="root.001", tasks=(task("r001-01"), task("r001-02")), base=BASE))
    for name in ("r001-01", "r001-02"):
        os.utime(tmp_path / BUILD / "tasks" / name, (1_000, 1_000))
    expected = ledger.gists()
    kept = tmp_path / BUILD / ".gists.json"
    whole = kept.read_bytes()
    for data in (whole, whole[:-30], whole.replace(b"r001-02", b"r001-03"), b"", b"[]"):
        kept.write_bytes(data)
        assert task_gists.TaskGists(tmp_path / BUILD).look(ledger) == expected
