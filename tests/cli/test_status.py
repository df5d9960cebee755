"""`longshot status`: what is there to be copied is never cut, and what is empty takes no room."""

from pathlib import Path

import pytest
from told import a_build, hand_off, own_home, plan

from longshot_dagster.cli import main
from longshot_dagster.cli.status import table
from longshot_dagster.core.ids import ROOT


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
