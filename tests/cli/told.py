"""Builds as a person would have them in a home, written by hand; their texts are hostile."""

import os
from pathlib import Path

import pytest

from longshot_dagster.adapters.ledger.ledger import BuildLedger, Ledger
from longshot_dagster.core.ids import FIX, ROOT, IterationKey, task_id
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import (
    BuildPhase,
    BuildReport,
    BuildRequest,
    CheckName,
    CheckResult,
    CheckStatus,
    Handoff,
    HandoffMetrics,
    HandoffStatus,
    Plan,
    Sweep,
    Target,
    TargetKind,
    Task,
    Verdict,
    WorkerRun,
)
from longshot_dagster.core.settings import Settings

OID = "a" * 40
HOSTILE = "[/bold]\x1b[2J\u202e 日本語"


def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """LONGSHOT_HOME of this process, empty."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("LONGSHOT_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    return home


def a_build(home: Path, name: str = "todo-0001", *, created_at: float = 1000.0, prices: bool = False) -> BuildLedger:
    """Just begun: a request, nothing planned."""
    ledger = Ledger(home / "builds").build(name)
    settings = Settings(llm_price_in=1.0, llm_price_out=3.0) if prices else Settings()
    ledger.save_request(
        BuildRequest(
            build=name,
            request=f"Build a todo API {HOSTILE}",
            target=Target(repository="r", url="/srv/t.git", kind=TargetKind.REMOTE, base_branch="main", branch="main"),
            base=OID,
            settings=settings,
            created_at=created_at,
            rehearsal=True,
        )
    )
    return ledger


def plan(ledger: BuildLedger, planner: str, number: int, tasks: int, delegated: tuple[int, ...] = ()) -> list[Task]:
    """`planner`'s round `number` with so many tasks, of which those at positions `delegated` go to subplanners."""
    key = IterationKey(ledger.build, planner, number)
    made = [
        Task(
            id=task_id(key, n),
            build=ledger.build,
            iteration=key.short,
            planner=planner,
            description=f"Task {n} of {key.short} {HOSTILE}\nmore",
            scope=("a",),
            branch="w",
            delegated=n in delegated,
        )
        for n in range(1, tasks + 1)
    ]
    ledger.open_iteration(key)
    ledger.freeze_plan(key, Plan(iteration=key.short, tasks=tuple(made), base=OID, planned_at=1000.0 + number))
    return made


def hand_off(
    ledger: BuildLedger, task: str, at: float = 1100.0, status: HandoffStatus = HandoffStatus.COMPLETE
) -> None:
    ledger.save_run(
        WorkerRun(
            task=task,
            provider="local",
            harness="builtin",
            harness_status="completed",
            base=OID,
            started_at=at - 60,
            ended_at=at,
        )
    )
    metrics = HandoffMetrics(lines_added=3, lines_removed=1)
    ledger.save_handoff(
        Handoff(task_id=task, status=status, summary=f"done {HOSTILE}", files_changed=["a"], metrics=metrics)
    )


def land(ledger: BuildLedger, task: str, state: LandingState = LandingState.LANDED, at: float = 1101.0) -> None:
    """Queued at `at`, and `state` by way of whatever comes before it, a second for each."""
    outcome = LandingOutcome(task=task, state=LandingState.QUEUED, history=((LandingState.QUEUED, at),))
    before = {LandingState.SUPERSEDED: LandingState.CONFLICT, LandingState.UNDONE: LandingState.LANDED}
    for step in (before.get(state), state):
        if step and step is not LandingState.QUEUED:
            at += 1
            outcome = outcome.moved(step, at, landed_paths=("a",), reason=f"why {HOSTILE}", superseded_by="r002-01")
    ledger.save_landing(outcome)


def sweep(ledger: BuildLedger, number: int, status: CheckStatus, at: float = 1200.0) -> None:
    check = CheckResult(name=CheckName.TEST, command="make test", status=status)
    skipped = CheckResult(name=CheckName.LINT, command="", status=CheckStatus.SKIPPED)
    ledger.save_sweep(Sweep(number=number, head=OID, checks=(skipped, check), started_at=at - 5, ended_at=at))


def finish(ledger: BuildLedger, verdict: Verdict = Verdict.GREEN) -> None:
    ledger.save_report(
        BuildReport(
            build=ledger.build,
            verdict=verdict,
            head=OID,
            branch="main",
            tasks=1,
            landed=1,
            superseded=0,
            health="green",
        )
    )
    ledger.update_state(lambda s: s.moved(BuildPhase.FINALIZING))
    ledger.update_state(lambda s: s.moved(BuildPhase.FINISHED, verdict=verdict))


def a_large_scene(home: Path) -> BuildLedger:
    """One task of every kind below root, a subplanner and the fixes; main is red."""
    ledger = a_build(home, prices=True)
    tasks = plan(ledger, ROOT, 1, 9, delegated=(9,))
    for task, state in zip(tasks, LandingState, strict=False):
        hand_off(ledger, task.id)
        land(ledger, task.id, state)
    plan(ledger, tasks[8].id, 1, 2)
    plan(ledger, FIX, 1, 1)
    sweep(ledger, 1, CheckStatus.RED)
    return ledger


def touch(path: Path, at: float) -> None:
    os.utime(path, (at, at))
