"""`longshot resume` of a build that is not here, or that somebody else drives: what a person is told, before anything is spent."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "adapters"))
from repositories import BUILD, World, bare, git

from longshot_dagster.adapters.ledger.ledger import Ledger
from longshot_dagster.adapters.ledger.orchestrator import Seat
from longshot_dagster.cli import main
from longshot_dagster.cli.restoring import newest_attempts
from longshot_dagster.core.models import BuildPhase

REF = f"refs/longshot/{BUILD}"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A build that another home drives; LONGSHOT_HOME is empty, and there is no model to be spent on."""
    made = World(tmp_path / "one", bare(tmp_path / "origin.git", {"a.py": "1\n"}))
    made.plan(made.task("r001-01", ("a.py",)))
    assert made.queue().checkpoint() is None
    monkeypatch.setenv("LONGSHOT_HOME", str(tmp_path / "two"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    return made


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main.run(arguments)
    out = capsys.readouterr()
    return code, out.out, out.err


def test_what_a_repository_has_to_be_resumed_is_listed_with_who_drives_it(world, capsys) -> None:
    code, out, _ = said(capsys, "resume", "--repo", str(world.origin))
    assert code == 0
    head, row, hint = out.splitlines()
    assert head.split()[0] == "build" and row.split()[:3] == [BUILD, "running", "0/1"]
    assert "the longshot on " in row and "longshot resume BUILD" in hint


def test_a_repository_without_checkpoints_says_so(world, capsys, tmp_path: Path) -> None:
    empty = bare(tmp_path / "empty.git", {"a": "1"})
    assert said(capsys, "resume", "--repo", str(empty))[:2] == (0, "this repository holds no checkpoint of a build\n")


def test_a_build_that_is_driven_elsewhere_is_refused_in_one_line(world, capsys) -> None:
    code, _, err = said(capsys, "resume", BUILD, "--repo", str(world.origin))
    assert (code, err.count("\n")) == (2, 1)
    assert f"build {BUILD} is driven by the longshot on " in err and f"longshot resume {BUILD} --take-over" in err


def test_nothing_is_taken_over_before_a_model_is_there(world, capsys) -> None:
    before = git(world.origin, "rev-parse", REF)
    code, _, err = said(capsys, "resume", BUILD, "--repo", str(world.origin), "--take-over", "--yes")
    assert code == 2 and "no model endpoint is configured" in err
    assert git(world.origin, "rev-parse", REF) == before


def test_a_build_that_is_nowhere_is_told_how_to_be_found(world, capsys) -> None:
    code, _, err = said(capsys, "resume", BUILD)
    assert code == 2 and f"no build '{BUILD}' here" in err and "--repo URL looks for its checkpoint" in err


def test_a_build_of_this_home_that_was_taken_over_is_refused_too(world, capsys, monkeypatch, tmp_path: Path) -> None:
    other = World(tmp_path / "three", world.origin)
    other.mirror.fetch()
    Seat(other.mirror, BUILD).noted(git(world.origin, "rev-parse", REF), 1.0, released=True)
    assert other.queue().checkpoint(held=True) is None
    world.ledger.update_state(lambda s: s.moved(BuildPhase.PAUSED, "taken over"))
    monkeypatch.setenv("LONGSHOT_HOME", str(world.home.root))
    code, _, err = said(capsys, "resume", BUILD)
    assert code == 2 and f"build {BUILD} is driven by the longshot on " in err
    assert Ledger(world.home.builds).build(BUILD).state().phase is BuildPhase.PAUSED


def test_status_explains_a_build_and_as_json_too(world, capsys, monkeypatch) -> None:
    monkeypatch.setenv("LONGSHOT_HOME", str(world.home.root))
    code, out, _ = said(capsys, "status", BUILD)
    assert code == 0
    assert "  done      none of 1 tasks in 1 planning rounds" in out.splitlines()
    assert f"  next      nothing, as Longshot is not running: longshot resume {BUILD}" in out.splitlines()
    explained = json.loads(said(capsys, "status", BUILD, "--json")[1])["explained"]
    assert set(explained) == {"done", "missing", "next"}


def test_a_run_key_is_never_launched_twice() -> None:
    from longshot_dagster.adapters.stack.dagster_api import ActiveRun, DagsterApi

    class Api(DagsterApi):
        def __init__(self) -> None: ...

        def every_run(self):
            tags = [
                {"dagster/partition": "b.root.001", "longshot/attempt": "2"},
                {"dagster/partition": "b.root.001", "longshot/attempt": "1"},
                {"dagster/partition": "b", "longshot/attempt": "3", "longshot/finalization": "1"},
                {"dagster/partition": "b.r001-01"},
                {"dagster/partition": "other.root.001", "longshot/attempt": "9"},
            ]
            return iter([ActiveRun(str(n), "FAILURE", "planning_iteration", t) for n, t in enumerate(tags)])

    assert newest_attempts(Api(), "b") == {"root.001": 2, "finalize.001": 3}
