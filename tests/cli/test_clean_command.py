"""`longshot clean` as a person meets it: what would go, the question, and one clear line for every mistake."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "adapters"))
from repositories import World, bare, git

from longshot_dagster.adapters.ledger.ledger import Ledger
from longshot_dagster.cli import main
from longshot_dagster.core.models import BuildPhase

OLD, PAUSED = "old-build-1111", "paused-build-2222"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A build of long ago that has finished, and one that has not."""
    origin = bare(tmp_path / "origin.git", {"a.py": "1\n"})
    paused, old = World(tmp_path, origin, build=PAUSED), World(tmp_path, origin, build=OLD)
    task = old.task("r001-01", ("src/",))
    old.plan(task)
    old.worked(task, {"src/x.py": "1\n"})
    old.queue().land(task)
    old.ledger.update_state(lambda s: s.moved(BuildPhase.FINALIZING).moved(BuildPhase.FINISHED))
    paused.ledger.update_state(lambda s: s.paused("by hand"))
    monkeypatch.setenv("LONGSHOT_HOME", str(old.home.root))
    monkeypatch.chdir(tmp_path)
    return old


def builds(world: World) -> list[str]:
    return Ledger(world.home.builds).builds()


def test_a_dry_run_names_builds_sizes_and_refs_and_removes_nothing(world, capsys):
    assert main.run(["clean", "--dry-run"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith(f"{OLD}: ended ") and f"1 ref on {world.origin}, 2 in the mirror" in shown[0]
    assert shown[-1] == "nothing was removed: this was a dry run" and len(shown) == 2
    assert set(builds(world)) == {OLD, PAUSED}
    assert git(world.origin, "for-each-ref", "refs/longshot") != ""


def test_without_a_terminal_it_needs_yes(world, capsys):
    assert main.run(["clean"]) == 2
    said = capsys.readouterr()
    assert said.err == "longshot: nothing was removed: there is no terminal to ask on; --yes does it without asking\n"
    assert set(builds(world)) == {OLD, PAUSED}


def test_yes_removes_and_a_second_time_there_is_nothing(world, capsys):
    assert main.run(["clean", "--yes"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("removed 1 build, ")
    assert builds(world) == [PAUSED]
    assert main.run(["clean", "--yes"]) == 0
    assert capsys.readouterr().out == "nothing to remove\n"


def test_json_is_one_document(world, capsys):
    assert main.run(["clean", "--yes", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (removed,) = told["removed"]
    assert (removed["build"], removed["refs"], removed["mirror_refs"]) == (OLD, [f"refs/longshot/{OLD}"], 2)
    assert told["freed_bytes"] == removed["bytes"] > 0
    assert (told["dry_run"], told["left"], told["notes"], told["waiting_for_dagster"]) == (False, [], [], [])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--older-than", "soon"],
            "--older-than 'soon' is not a number of days; 30 is the default, 0 means all finished",
        ),
        (["--older-than", "-1"], "--older-than '-1' is not a number of days"),
        (["--older-than", "nan"], "--older-than 'nan' is not a number of days"),
        (
            ["--build", PAUSED],
            f"{PAUSED} is paused; only what has finished is removed (longshot resume {PAUSED} goes on)",
        ),
        (["--build", "nope"], "no build 'nope' here"),
        (["--build", "../x"], "'../x' is not a build name"),
    ],
)
def test_wrong_use_is_one_line_and_removes_nothing(world, capsys, arguments, line):
    assert main.run(["clean", "--yes", *arguments]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"longshot: {line}") and said.err.count("\n") == 1 and said.out == ""
    assert set(builds(world)) == {OLD, PAUSED}


def test_a_repository_out_of_reach_keeps_its_build_until_it_is_named(world, capsys):
    request = world.ledger.request()
    away = request.target.model_copy(
        update={"url": "http://127.0.0.1:1/x.git", "repository": "http://127.0.0.1:1/x.git"}
    )
    world.ledger.save_request(request.model_copy(update={"target": away}))
    assert main.run(["clean", "--yes"]) == 1
    shown = capsys.readouterr().out
    assert shown.startswith(f"{OLD} is left: git ls-remote: ") and f"longshot clean --build {OLD}" in shown
    assert OLD in builds(world)
    assert main.run(["clean", "--yes", "--build", OLD]) == 0
    assert "its refs on http://127.0.0.1:1/x.git stay: git ls-remote" in capsys.readouterr().out
    assert builds(world) == [PAUSED]
