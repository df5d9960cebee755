"""`longshot status`: what is there to be copied is never cut, and what is empty takes no room."""

import json
from pathlib import Path

import pytest
from told import a_build, hand_off, own_home, plan

from longshot_dagster.adapters.builds.examining_builds import examine_builds
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.apart import Apart
from longshot_dagster.cli import main
from longshot_dagster.cli.status import table
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.findings import Standing
from longshot_dagster.core.ids import ROOT, IterationKey
from longshot_dagster.core.models import Plan, Task, WorkerRun


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return own_home(tmp_path, monkeypatch)


@pytest.mark.parametrize("columns", [60, 80])
def test_names_are_whole_in_a_narrow_terminal_and_the_rest_is_cut_with_a_sign(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    build = "build-the-weather-station-accord-t7sr"
    table(("build", "state", "why", "request"), [(build, "green", "a reason " * 5, "a request " * 5)])
    head, row = capsys.readouterr().out.splitlines()
    assert row.startswith(f"{build}  green  ")
    assert len(row) <= max(columns, len(build) + 40)
    assert row.endswith("…")
    assert head.split() == ["build", "state", "why", "request"]


def test_a_wide_terminal_cuts_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    table(("task", "why", "what"), [("r001-01", "w" * 60, "x" * 60)])
    assert capsys.readouterr().out.splitlines()[1] == f"r001-01  {'w' * 60}  {'x' * 60}"


def test_one_task_is_shown_alone(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = a_build(home)
    first, second = plan(ledger, ROOT, 1, 2)
    hand_off(ledger, first.id, 1100.0)
    for name in (f"todo-0001.{second.id}", second.id):
        assert main.run(["status", name]) == 0
        rows = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
        assert second.id in rows and first.id not in rows


def test_of_one_task_it_says_where_it_was_worked_on_and_why(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = a_build(home)
    first, _ = plan(ledger, ROOT, 1, 2)
    run = WorkerRun(
        task=first.id,
        provider="local",
        harness="pi",
        harness_status="completed",
        base="a" * 40,
        started_at=1,
        ended_at=2,
    )
    moved = {
        "sandbox": "local:sb-1",
        "route": "modal rests for 12 s (quota)",
        "tried": ("modal with pi: no sandbox: \x1b[31mquota",),
    }
    ledger.save_run(run.model_copy(update=moved))
    assert main.run(["status", first.id]) == 0
    shown = capsys.readouterr().out
    assert "  before    modal with pi: no sandbox: " in shown and "\x1b" not in shown
    assert "  worker    pi at local: completed (modal rests for 12 s (quota))" in shown
    assert main.run(["logs", ledger.build]) == 0
    assert f"{first.id} moved to local with pi; modal with pi: no sandbox:" in capsys.readouterr().out


def test_a_damaged_document_is_said_in_status_logs_and_doctor(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = a_build(home)
    first, _ = plan(ledger, ROOT, 1, 2)
    hand_off(ledger, first.id, 1100.0)
    assert examine_builds(Home(home)) == []
    handoff = home / "builds" / ledger.build / "tasks" / first.id / "handoff.json"
    handoff.write_bytes(b"[/bold]\x1b[2J")
    assert main.run(["status", ledger.build]) == 0
    shown = capsys.readouterr().out
    said = f"tasks/{first.id}/handoff.json was damaged ("
    assert said in shown and "its task runs again" in shown and "\x1b" not in shown
    assert main.run(["logs", ledger.build]) == 0
    assert said in capsys.readouterr().out
    (found,) = examine_builds(Home(home))
    assert (found.standing, found.what) == (
        Standing.OK,
        f"1 damaged document was mended; the damaged bytes are in quarantine (longshot logs {ledger.build}); "
        "if it happens again, have the disk looked at",
    )


def test_a_plan_that_nothing_holds_any_more_is_for_a_person_to_mend(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = a_build(home)
    plan(ledger, ROOT, 1, 1)
    path = home / "builds" / ledger.build / "iterations" / IterationKey(ledger.build, ROOT, 1).short / "plan.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:40])
    assert main.run(["status", ledger.build]) != 0
    assert "restore the file from a copy" in capsys.readouterr().err
    (found,) = examine_builds(Home(home))
    assert found.standing is Standing.TO_DO and found.remedy.endswith(f"longshot resume {ledger.build}")
    path.write_bytes(whole)
    assert [f.standing for f in examine_builds(Home(home))] == [Standing.OK], "it is here again"


def test_a_task_that_is_held_back_says_for_whom(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = a_build(home)
    key = IterationKey(ledger.build, ROOT, 1)
    facts = {"build": ledger.build, "iteration": key.short, "planner": ROOT, "description": "d", "branch": "w"}
    rename = Task(id="r001-01", scope=("src/",), exclusive=("src/",), **facts)
    inside = Task(id="r001-02", scope=("src/a.py",), **facts)
    ledger.open_iteration(key)
    ledger.freeze_plan(
        key, Plan(iteration=key.short, tasks=(rename, inside), base="a" * 40, planned_at=SystemClock().now())
    )
    assert main.run(["status", ledger.build]) == 0
    assert "lets r001-01 go first" in capsys.readouterr().out
    Apart(ledger, 100.0, SystemClock()).begun([rename.id])
    assert main.run(["status", ledger.build, "--json"]) == 0
    why = {t["task"]: t["why"] for t in json.loads(capsys.readouterr().out)["task_list"]}
    assert why[inside.id] == "waits for r001-01, which works alone on src/"
    assert "alone" not in why[rename.id]
