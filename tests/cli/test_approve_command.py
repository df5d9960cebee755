"""`longshot approve` as a person meets it: what it shows, asks, refuses and returns."""

import json
import os
import pty
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from longshot_dagster.cli.main import run
from longshot_dagster.core.landing_records import LandingState
from longshot_dagster.core.models import BuildPhase

sys.path.append(str(Path(__file__).resolve().parents[1] / "adapters"))
from repositories import BUILD, World, bare, files_at

AGENTS = "AGENTS.md"
TASK = f"{BUILD}.r001-01"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A paused build of one task, which was to write a file and has strayed into agents' instructions."""
    monkeypatch.setenv("LONGSHOT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    made = World(tmp_path, bare(tmp_path / "origin.git", {"a": "1\n", AGENTS: "Be kind.\n"}))
    task = made.task("r001-01", ("a",), description="Write 2 [/bold]")
    made.plan(task)
    made.worked(task, {"a": "2\n", AGENTS: "Be \x1b[31mquick.\n"})
    assert made.queue().land(task).state is LandingState.LANDED
    made.ledger.update_state(lambda s: s.paused("cancelled by hand"))
    return made


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """What is written here is typed by the person."""
    master, slave = pty.openpty()
    with os.fdopen(slave, "r", encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield master
    os.close(master)


def test_it_shows_the_diff_asks_and_lands_it(world, terminal, capsys):
    os.write(terminal, b"y\n")
    assert run(["approve", TASK]) == 0
    told = capsys.readouterr()
    assert "Land exactly this on main?" in told.err and "\x1b" not in told.out
    lines = told.out.splitlines()
    assert lines[0] == f"r001-01 (Write 2 [/bold]) wants to change protected paths on main of {world.origin}:"
    assert "-Be kind." in lines and any(line.startswith("+Be ") for line in lines)
    assert f"r001-01 has landed what you approved on main at {world.main()[:12]}, which nobody has checked yet" in lines
    assert files_at(world.origin)["a"] == "2" and "quick" in files_at(world.origin)[AGENTS]


def test_a_no_and_no_terminal_change_nothing(world, terminal, capsys):
    before = world.main()
    os.write(terminal, b"n\n")
    assert run(["approve", "r001-01", "--build", BUILD]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("longshot: nothing was approved")
    assert world.main() == before
    assert not (world.ledger.directory / "approvals").exists()


def test_for_programs_it_says_who_and_what(world, capsys):
    assert run(["approve", TASK, "--yes", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["task"], told["paths"], told["landing"]) == ("r001-01", [AGENTS], "landed")
    assert told["approved"]["digest"] == told["digest"] and told["approved"]["by"]
    assert run(["approve", TASK, "--yes"]) == 2
    assert capsys.readouterr().err == f"longshot: {TASK}: what was approved has landed already\n"


def test_status_says_what_waits_for_a_person_until_it_has_landed(world, capsys):
    def told():
        run(["status", BUILD, "--json"])
        return json.loads(capsys.readouterr().out)

    assert told()["explained"]["approve"] == f"{AGENTS}: longshot approve {TASK}"
    assert "AGENTS" not in told()["explained"].get("missing", "")
    assert told()["task_list"][0]["why"] == f"waits for approval of {AGENTS}: longshot approve {TASK}"
    assert run(["approve", TASK, "--yes"]) == 0
    capsys.readouterr()
    assert "approve" not in told()["explained"] and told()["task_list"][0]["why"] == ""


def test_a_finished_build_says_how_it_goes_on(world, capsys):
    for phase in (BuildPhase.RUNNING, BuildPhase.FINALIZING, BuildPhase.FINISHED):
        world.ledger.update_state(lambda s, phase=phase: s.moved(phase))
    assert run(["approve", TASK, "--yes"]) == 0
    assert f"to be checked and reported anew: longshot resume {BUILD}" in capsys.readouterr().out


def test_what_is_no_task_or_a_build_is_one_line(world, capsys):
    assert run(["approve", BUILD, "--yes"]) == 2
    assert "name one of its tasks" in capsys.readouterr().err
    assert run(["approve", "r009-09", "--build", BUILD]) == 2
    assert "no task" in capsys.readouterr().err
