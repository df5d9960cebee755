"""`longshot undo` and `longshot reset` as a person meets them: what they show, ask, refuse and return."""

import json
import os
import pty
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from longshot_dagster.cli.main import run
from longshot_dagster.core.landing_records import LandingState

sys.path.append(str(Path(__file__).resolve().parents[1] / "adapters"))
from repositories import BUILD, World, bare, commit_on, files_at, git


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A paused build of two landed tasks; the second has changed a line of the first."""
    monkeypatch.setenv("LONGSHOT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    made = World(tmp_path, bare(tmp_path / "origin.git", {"a": "1\n"}))
    for name, text in (("r001-01", "2\n"), ("r001-02", "3\n")):
        task = made.task(name, ("a",), description=f"Write {text.strip()} [/bold]")
        made.plan(task)
        made.worked(task, {"a": text})
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


def test_a_task_is_shown_and_taken_back(world, capsys):
    before = world.main()
    assert run(["undo", "r001-02", "--yes"]) == 0
    head = world.main()
    assert capsys.readouterr().out.splitlines() == [
        f"to be undone on main of {world.origin},",
        "each by a commit that reverts it, the newest landing first:",
        "  r001-02  Write 3 [/bold] (1 file)",
        f"  r001-02 undone: taken back by {head[:12]}",
        f"main is at {head[:12]}, which nobody has checked yet",
        f"to have it back: git revert {head[:12]}",
        f"made anew: longshot retry {BUILD}.r001-02",
    ]
    assert git(world.origin, "rev-parse", "main^") == before
    assert files_at(world.origin) == {"a": "2"}
    run(["status", BUILD, "--json"])
    tasks = {t["task"]: t for t in json.loads(capsys.readouterr().out)["task_list"]}
    assert (tasks["r001-01"]["landing"], tasks["r001-02"]["landing"]) == ("landed", "undone")
    assert tasks["r001-02"]["why"] == f"taken back by {head[:12]}"


def test_undone_twice_and_what_others_build_on_and_without_a_terminal_anything_are_one_line_each(world, capsys):
    assert run(["undo", "r001-02"]) == 2
    assert capsys.readouterr().err == (
        "longshot: nothing was undone: there is no terminal to ask on; --yes does it without asking\n"
    )
    assert run(["undo", f"{BUILD}.r001-01", "--yes"]) == 2
    said = capsys.readouterr().err
    assert said == (
        f"longshot: r001-01 was not undone: {BUILD}.r001-02 builds on it (a); first `longshot undo {BUILD}.r001-02`\n"
    )
    assert run(["undo", BUILD, "--yes"]) == 0
    assert files_at(world.origin) == {"a": "1"}
    assert run(["undo", "r001-01", "--yes"]) == 2
    assert capsys.readouterr().err == "longshot: nothing to undo: r001-01 was undone already\n"


@pytest.mark.parametrize(("typed", "code", "text"), [("\n", 2, "3"), ("y\n", 0, "1")])
def test_a_person_is_asked_and_only_yes_undoes(world, terminal, capsys, typed, code, text):
    os.write(terminal, typed.encode())
    assert run(["undo", BUILD]) == code
    assert files_at(world.origin) == {"a": text}
    said = capsys.readouterr()
    assert "Undo 2 tasks? [y/N]" in said.err
    assert ("nothing was undone" in said.err) == (code == 2)


def test_for_programs_there_is_one_document_and_nothing_else(world, capsys):
    before = world.main()
    assert run(["undo", BUILD, "--yes", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["build"], found["branch"], found["before"], found["head"]) == (BUILD, "main", before, world.main())
    assert [(t["task"], t["commit"]) for t in found["undone"]] == [
        ("r001-02", git(world.origin, "rev-parse", "main^")),
        ("r001-01", world.main()),
    ]
    assert found["verdict"] is None


def test_a_reset_shows_the_loss_asks_and_says_how_to_restore_it(world, terminal, capsys):
    commit_on(world.origin, "main", {"b": "1\n"}, "By hand")
    head = world.main()
    os.write(terminal, b"y\n")
    assert run(["reset", "--repo", str(world.origin)]) == 0
    said = capsys.readouterr()
    assert "Set main back? [y/N]" in said.err
    lines = said.out.splitlines()
    assert lines[0] == f"main of {world.origin} would go back to its first commit {world.request.base[:12]}"
    assert lines[1] == "that takes 3 commits from it, by A Worker; the newest:"
    assert lines[5] == f"unfinished builds stand on it: {BUILD}; what they have landed goes, too"
    assert world.main() == world.request.base
    backup = lines[6].rpartition(" ")[2]
    assert git(world.origin, "rev-parse", backup) == head
    assert lines[7].startswith(f"to restore it: git --git-dir={world.origin} update-ref refs/heads/main {backup} ")


def test_a_branch_that_steers_a_terminal_does_not_reach_it_by_way_of_the_question(world, terminal, capsys):
    branch = "main\u202e\u009b2J"
    git(world.origin, "update-ref", f"refs/heads/{branch}", "main")
    os.write(terminal, b"n\n")
    assert run(["reset", "--repo", str(world.origin), "--land-on", branch]) == 2
    said = capsys.readouterr()
    assert "Set main\ufffd2J back? [y/N]" in said.err
    assert set("\u202e\u009b").isdisjoint(said.out + said.err)


def test_a_reset_needs_a_terminal_or_yes_and_does_nothing_twice(world, capsys):
    assert run(["reset", "--repo", str(world.origin)]) == 2
    assert capsys.readouterr().err == (
        "longshot: nothing was reset: there is no terminal to ask on; --yes does it without asking\n"
    )
    assert run(["--reset", "--repo", str(world.origin), "--yes"]) == 0
    capsys.readouterr()
    assert run(["--reset", "--repo", str(world.origin), "--yes"]) == 0
    assert capsys.readouterr().out == f"nothing to reset: main of {world.origin} holds nothing after its first commit\n"
