"""What the ledger keeps of work that was interrupted, cancelled, set aside or begun anew."""

import os
import shutil
from pathlib import Path

import pytest

from longshot_dagster.adapters.host.exclusive import claim
from longshot_dagster.adapters.ledger.ledger import BuildLedger, Ledger
from longshot_dagster.adapters.ledger.task_documents import Uncancelled
from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import (
    BuildPhase,
    BuildReport,
    BuildRequest,
    Handoff,
    HandoffStatus,
    Plan,
    Target,
    TargetKind,
    Task,
    Verdict,
    WorkerRun,
)
from longshot_dagster.core.settings import Settings

BUILD, BASE, TASK = "toy-0001", "a" * 40, "r001-01"
PARTIAL = Handoff(task_id=TASK, status=HandoffStatus.PARTIAL, summary="half", files_changed=["a.py"])
FAILED = Handoff(task_id=TASK, status=HandoffStatus.FAILED, summary="none")
RUN = WorkerRun(
    task=TASK, provider="local", harness="builtin", harness_status="cancelled", base=BASE, started_at=1, ended_at=2
)


def new_build(root: Path) -> BuildLedger:
    ledger = Ledger(root).build(BUILD)
    target = Target(repository="r", url="r", kind=TargetKind.REMOTE, base_branch="main", branch="main")
    ledger.save_request(
        BuildRequest(build=BUILD, request="do it", target=target, base=BASE, settings=Settings(), created_at=1.0)
    )
    task = Task(
        id=TASK, build=BUILD, iteration="root.001", planner="root", description="d", scope=("a.py",), branch="w"
    )
    ledger.freeze_plan(IterationKey(BUILD, "root", 1), Plan(iteration="root.001", tasks=(task,), base=BASE))
    return ledger


def finish(ledger: BuildLedger, verdict: Verdict = Verdict.LEFTOVERS) -> None:
    ledger.save_report(
        BuildReport(build=BUILD, verdict=verdict, head=BASE, branch="main", tasks=1, landed=0, superseded=0)
    )
    ledger.update_state(
        lambda s: s.moved(BuildPhase.FINALIZING).moved(BuildPhase.FINISHED, verdict=verdict),
    )


def test_interrupted_work_is_kept_until_the_task_is_handed_in(tmp_path: Path) -> None:
    ledger = new_build(tmp_path)
    assert (ledger.interrupted(TASK), ledger.kept_work()) == (None, [])
    ledger.save_interrupted(PARTIAL)
    assert (ledger.interrupted(TASK), ledger.kept_work()) == (PARTIAL, [TASK])
    assert [t.handoff for t in ledger.view().tasks] == [None], "the task stays unfinished"
    ledger.save_handoff(FAILED)
    assert ledger.kept_work() == []


def test_the_first_request_to_cancel_stays(tmp_path: Path) -> None:
    ledger = new_build(tmp_path)
    assert not ledger.cancel_requested(TASK) and ledger.cancel_request(TASK) is None
    ledger.request_cancel(TASK, 5.0)
    ledger.request_cancel(TASK, 9.0)
    found = ledger.cancel_request(TASK)
    assert ledger.cancel_requested(TASK) and found is not None and found.at == 5.0


def test_work_set_aside_takes_its_interruption_and_its_cancellation_along(tmp_path: Path) -> None:
    ledger = new_build(tmp_path)
    ledger.save_interrupted(PARTIAL)
    ledger.request_cancel(TASK, 5.0)
    ledger.save_run(RUN)
    ledger.save_handoff(PARTIAL)
    aside = ledger.forget_work(TASK)
    assert (ledger.interrupted(TASK), ledger.cancel_requested(TASK), ledger.run(TASK)) == (None, False, None)
    ledger.recall_work(TASK, aside)
    assert (ledger.interrupted(TASK), ledger.cancel_requested(TASK), ledger.handoff(TASK)) == (PARTIAL, True, PARTIAL)


def test_a_handoff_that_another_process_has_set_aside_is_not_remembered(tmp_path: Path) -> None:
    sensors, worker = new_build(tmp_path), Ledger(tmp_path).build(BUILD)
    worker.save_handoff(FAILED)
    assert sensors.handoff(TASK) == FAILED
    worker.forget_work(TASK)
    assert sensors.handoff(TASK) is None
    worker.save_handoff(PARTIAL)
    assert sensors.handoff(TASK) == PARTIAL


def test_a_reopened_build_is_seen_by_whoever_had_seen_it_finished(tmp_path: Path) -> None:
    ledger, sensors = new_build(tmp_path), Ledger(tmp_path)
    assert [b.build for b in sensors.unfinished()] == [BUILD]
    finish(ledger)
    assert sensors.unfinished() == [] == sensors.unfinished()
    ledger.reopen()
    assert [b.build for b in sensors.unfinished()] == [BUILD]
    finish(ledger, Verdict.GREEN)
    assert sensors.unfinished() == []


def test_a_build_is_reopened_with_its_report_aside_and_a_finalization_that_can_be_launched(tmp_path: Path) -> None:
    ledger = new_build(tmp_path)
    ledger.reopen()  # it runs: nothing happens
    assert ledger.state().attempts == {}
    for number in (1, 2):
        finish(ledger)
        ledger.reopen()
        assert ledger.report() is None and ledger.state().phase is BuildPhase.RUNNING
        assert ledger.state().attempts == {"finalize.001": number + 1}
    kept = sorted(p.name for p in (tmp_path / BUILD).glob("earlier-report-*.json"))
    assert kept == ["earlier-report-1.json", "earlier-report-2.json"]


def test_a_build_whose_reopening_was_cut_short_is_reopened(tmp_path: Path) -> None:
    ledger = new_build(tmp_path)
    finish(ledger)
    (tmp_path / BUILD / "report.json").rename(tmp_path / BUILD / "earlier-report-1.json")  # and then it was killed
    ledger.reopen()
    assert ledger.state().phase is BuildPhase.RUNNING


def test_a_report_whose_build_was_paused_before_it_had_finished_is_put_aside_too(tmp_path: Path) -> None:
    ledger = new_build(tmp_path)
    finish(ledger)
    report = ledger.report()
    assert report is not None
    paused = new_build(tmp_path / "other")
    paused.save_report(report)  # and then its process died, and the build was paused
    paused.update_state(lambda s: s.paused("its run was lost"))
    paused.reopen()
    assert (paused.report(), paused.state().phase) == (None, BuildPhase.PAUSED)


def test_a_build_that_was_cleaned_away_is_not_reopened(tmp_path: Path) -> None:
    ledger = new_build(tmp_path)
    shutil.rmtree(tmp_path / BUILD)
    with pytest.raises(WrongUse, match="cleaned it away"):
        ledger.reopen()
    assert not (tmp_path / BUILD / "state.json").exists()


def test_what_is_about_to_land_is_not_set_aside(tmp_path: Path) -> None:
    ledger = new_build(tmp_path)
    ledger.save_handoff(PARTIAL)
    ledger.save_landing(LandingOutcome(task=TASK, state=LandingState.QUEUED))
    with pytest.raises(WrongUse, match="about to land"):
        ledger.forget_work(TASK)
    assert ledger.handoff(TASK) == PARTIAL


def test_whoever_is_at_a_task_is_seen_from_outside(tmp_path: Path) -> None:
    ledger = new_build(tmp_path)
    assert not ledger.at_work(TASK)
    lock = ledger.work_lock(TASK)
    assert lock is not None
    with claim(lock) as mine:
        assert mine and ledger.at_work(TASK)
    assert not ledger.at_work(TASK)


def test_who_asks_twice_a_second_whether_a_task_is_cancelled_looks_only_after_a_change(tmp_path: Path) -> None:
    ledger, now, looks = new_build(tmp_path), [0.0], list[str]()
    tasks = Path(str(ledger.directory)) / "tasks"
    (tasks / TASK).mkdir(parents=True, exist_ok=True)
    os.utime(tasks, ns=(5_000_001, 5_000_001))
    uncancelled = Uncancelled(str(tasks), lambda: now[0])

    def heard(seconds: float) -> bool:
        now[0] += seconds
        return uncancelled.heard(TASK, looked)

    def looked(task: str) -> bool:
        looks.append(task)
        return ledger.cancel_requested(task)

    assert [heard(0.5) for _ in range(20)] == [False] * 20 and looks == [TASK]
    ledger.request_cancel(TASK, 7.0)
    assert heard(0.3) and heard(0.01) and ledger.cancel_heard(TASK)
