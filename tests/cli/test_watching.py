"""What a person is told while a build runs: each fact once, when it is new."""

import os
import shutil
from pathlib import Path

import pytest

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger import task_gists
from longshot_dagster.adapters.ledger.ledger import BuildLedger, Ledger
from longshot_dagster.cli.showing import Objects, show
from longshot_dagster.cli.watching import BuildWatch
from longshot_dagster.core.errors import LedgerError
from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import (
    BuildPhase,
    BuildRequest,
    CheckName,
    CheckResult,
    CheckStatus,
    Handoff,
    HandoffStatus,
    IterationFailure,
    Plan,
    Sweep,
    Target,
    TargetKind,
    Task,
)
from longshot_dagster.core.settings import Settings

OID = "a" * 40
KEY = IterationKey("b", "root", 1)


def ledger_with_plan(tmp_path: Path) -> BuildLedger:
    ledger = Ledger(tmp_path).build("b")
    ledger.open_iteration(KEY)
    task = Task(
        id="r001-01", build="b", iteration="root.001", planner="root", description="d", scope=("a",), branch="w/r001-01"
    )
    ledger.freeze_plan(KEY, Plan(iteration="root.001", tasks=(task,), base=OID))
    return ledger


def test_every_fact_is_told_once(tmp_path: Path) -> None:
    ledger = ledger_with_plan(tmp_path)
    watch = BuildWatch(ledger)
    assert watch.look() == ["root.001 planned 1 task"]
    assert watch.look() == []
    ledger.save_handoff(Handoff(task_id="r001-01", status=HandoffStatus.COMPLETE, summary="it\x1b[0m is\ndone"))
    ledger.save_landing(LandingOutcome(task="r001-01", state=LandingState.QUEUED))
    assert watch.look() == ["r001-01 handed off complete, +0 -0 in 0 files: it\ufffd[0m is"]
    ledger.save_landing(LandingOutcome(task="r001-01", state=LandingState.LANDED, landed_paths=("a",)))
    assert watch.look() == ["r001-01 landed 1 file"]
    check = CheckResult(name=CheckName.TEST, command="t", status=CheckStatus.RED)
    ledger.save_sweep(Sweep(number=1, head=OID, checks=(check,), started_at=1, ended_at=2))
    assert watch.look() == ["sweep 1 RED: test"]
    ledger.save_failure(KEY, IterationFailure(attempt=1, kind="model", reason="401"))
    ledger.update_state(lambda s: s.moved(BuildPhase.PAUSED, "401"))
    assert watch.look() == ["root.001 failed: 401", "paused: 401"]
    assert watch.look() == []
    assert watch.tally.line(61) == "root.001, 0 at work, 1 handed off, 1 landed, 0 tokens, 1 min 01 s"


def test_a_task_that_landed_long_ago_is_not_looked_at_until_it_is_taken_up_again(tmp_path: Path) -> None:
    ledger = ledger_with_plan(tmp_path)
    ledger.save_handoff(Handoff(task_id="r001-01", status=HandoffStatus.COMPLETE, summary="done"))
    ledger.save_landing(LandingOutcome(task="r001-01", state=LandingState.LANDED, landed_paths=("a",)))
    folder = tmp_path / "b" / "tasks"
    for old in (folder / "r001-01", folder):
        os.utime(old, (1, 1))
    watch = BuildWatch(ledger)
    assert watch.look()[-1] == "r001-01 landed 1 file"
    assert watch.look() == []
    hidden = LandingOutcome(task="r001-01", state=LandingState.CONFLICT, reason="nobody says so")
    (folder / "r001-01" / "landing.json").write_bytes(hidden.model_dump_json().encode())
    (folder / "r001-01" / "new").touch()
    assert watch.look() == []  # the price of one look at the folder of all tasks
    task_gists.touch(tmp_path / "b")
    assert watch.look() == ["r001-01 conflict: nobody says so"]


def test_a_watch_that_begins_late_catches_up(tmp_path: Path) -> None:
    ledger = ledger_with_plan(tmp_path)
    ledger.save_landing(LandingOutcome(task="r001-01", state=LandingState.CONFLICT, reason="both changed a"))
    watch = BuildWatch(ledger)
    assert watch.look() == ["root.001 planned 1 task", "r001-01 conflict: both changed a"]
    assert watch.tally.count(LandingState.CONFLICT) == 1


def test_who_follows_a_build_that_is_removed_is_told_so(tmp_path: Path) -> None:
    home = Home(tmp_path)
    ledger = ledger_with_plan(home.builds)
    target = Target(repository="r", url="r", kind=TargetKind.REMOTE, base_branch="main", branch="main")
    ledger.save_request(
        BuildRequest(build="b", request="do it", target=target, base=OID, settings=Settings(), created_at=1.0)
    )

    class Removing(Objects):
        def wait(self, seconds: float) -> bool:
            shutil.rmtree(home.builds)
            return True

    with Removing() as shown, pytest.raises(LedgerError, match=r"^build b is gone: there is no .*/b any more$"):
        show(home, ledger, shown, deserted=lambda: False)
