"""A build in flight while the tool is replaced: the previous version's ledger goes on, a newer one's is told apart."""

import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from repositories import ENV, World, files_at, git

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.host.supervisor_lock import lock_path
from longshot_dagster.adapters.ledger.ledger import BuildLedger, Ledger
from longshot_dagster.adapters.repository.mirror import Mirror
from longshot_dagster.adapters.stack import stack
from longshot_dagster.cli import main
from longshot_dagster.cli.resuming import woken
from longshot_dagster.core.errors import LedgerError, WrongUse
from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.landing_records import LandingState
from longshot_dagster.core.ledger_schema import unreadable
from longshot_dagster.core.lifecycle import RunIteration, next_steps
from longshot_dagster.core.models import SCHEMA, BuildPhase
from longshot_dagster.version import __version__

BUILD = "shop-api-7f3k"
# Written by the release before schema 2, paused in its second round: one task landed, one withheld, one under a
# subplanner landed, one handed in and queued when it was interrupted, one never begun.
# The same build in schema 2, written by release 0.2.0.
DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(params=["ledger-1", "ledger-2"])
def written(request: pytest.FixtureRequest) -> Path:
    """The folder with the build as that version left it."""
    folder: Path = DATA / request.param
    return folder


@pytest.fixture
def world(tmp_path: Path, written: Path) -> World:
    """That build in a home of this version, with its repository and its worker's branch in the mirror."""
    found = object.__new__(World)
    found.root, found.origin, found.build, found.plans = tmp_path, tmp_path / "origin.git", BUILD, 2
    found.home = Home(tmp_path / "home")
    there = found.home.builds / BUILD
    shutil.copytree(written / BUILD, there)
    request = there / "request.json"
    request.write_text(request.read_text(encoding="utf-8").replace("@REPOSITORY@", str(found.origin)), encoding="utf-8")
    git(tmp_path, "init", "-q", "--bare", "-b", "main", str(found.origin))
    _import(found.origin)
    git(found.origin, "update-ref", "-d", f"refs/longshot/work/{BUILD}/r002-01")
    found.request = found.ledger.request()
    found.mirror = Mirror(found.home, found.request.target)
    _import(found.mirror.git.directory)
    return found


def _import(repository: Path | None) -> None:
    data = (DATA / "ledger-1" / "repository.fast-export").read_bytes()
    subprocess.run(["git", "fast-import", "--quiet"], cwd=repository, input=data, env=ENV, check=True)


def test_a_build_of_the_previous_version_goes_on_where_it_stood(world: World) -> None:
    ledger = world.ledger
    before = ledger.view()
    assert (before.phase, len(before.tasks)) == (BuildPhase.PAUSED, 6)
    ledger.update_state(lambda s: woken(s, before, set()))
    steps = next_steps(ledger.view())
    assert steps == [
        RunIteration(IterationKey(BUILD, "r001-03", 1), 2),
        RunIteration(IterationKey(BUILD, "root", 2), 2),
        RunIteration(IterationKey(BUILD, "r001-03", 2), 1),  # its one task was handed in: the subplanner is asked again
    ]
    assert [t.id for t in ledger.view().tasks if not t.delegated and t.handoff is None] == ["r002-02"]


def test_what_it_had_handed_in_lands_and_what_had_landed_lands_no_second_time(world: World) -> None:
    again = world.ledger.existing_task("r002-02")
    world.worked(again, {"shop/stock.py": "def stock():\n    return 4\n"})
    states = {o.task: o.state for o in world.queue().drain()}
    assert states == {
        "r001-01": LandingState.LANDED,
        "r001-02": LandingState.SUPERSEDED,
        "r001-03-001-01": LandingState.LANDED,
        "r002-01": LandingState.LANDED,
        "r002-02": LandingState.LANDED,
    }
    assert files_at(world.origin)["shop/sale.py"] == "SALE = 5"
    tasks = git(world.origin, "log", "--reverse", "--format=%(trailers:key=Longshot-Task,valueonly,separator=)", "main")
    assert tasks.split() == ["r001-01", "r001-03-001-01", "r002-01", "r002-02"]


def test_once_this_version_has_written_to_it_the_ledger_says_so(world: World, written: Path) -> None:
    read = json.loads((written / BUILD / "request.json").read_text(encoding="utf-8"))
    known = {"ledger-1": (1, None), "ledger-2": (2, "0.2.0")}[written.name]
    assert (read["schema_version"], read.get("written_by")) == known
    assert world.ledger.request().schema_version == known[0]
    world.ledger.update_state(lambda s: s.moved(BuildPhase.RUNNING))
    adopted = world.ledger.request()
    assert (adopted.schema_version, adopted.written_by) == (SCHEMA, __version__)
    changed = {"schema_version", "written_by"}
    assert adopted.model_dump(exclude=changed) == world.request.model_dump(exclude=changed)


def test_it_is_shown_as_it_stands(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LONGSHOT_HOME", str(world.home.root))
    assert main.run(["status", BUILD, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["phase"], shown["reason"], shown["landed"]) == ("paused", "interrupted by Ctrl-C", 2)
    stand = {t["task"]: (t["handoff"], t["landing"]) for t in shown["task_list"]}
    assert stand["r001-01"] == ("complete", "landed") and stand["r002-02"] == ("-", "-")
    assert main.run(["logs", BUILD]) == 0
    assert "r001-01" in capsys.readouterr().out
    assert world.ledger.mended() == [], "an old document without a checksum is no damaged one"


@pytest.fixture
def newer(world: World) -> BuildLedger:
    document = world.home.builds / BUILD / "request.json"
    found = json.loads(document.read_text(encoding="utf-8"))
    found |= {"schema_version": SCHEMA + 1, "written_by": "9.1.0", "a field of then": {}}
    document.write_text(json.dumps(found), encoding="utf-8")
    return Ledger(world.home.builds).build(BUILD)


NEWER = f"build {BUILD} needs longshot 9.1.0 or newer: its ledger has schema {SCHEMA + 1}, longshot {__version__} reads"


def test_a_newer_versions_ledger_is_neither_read_nor_written(newer: BuildLedger) -> None:
    before = Path(str(newer.directory / "state.json")).read_bytes()
    for touch in (newer.request, newer.view, lambda: newer.update_state(lambda s: s.moved(BuildPhase.RUNNING))):
        with pytest.raises(LedgerError, match=NEWER):
            touch()
    assert Path(str(newer.directory / "state.json")).read_bytes() == before
    assert stack.pause_builds(Home(Path(str(newer.directory)).parents[1]), "why") == []


@pytest.mark.parametrize("command", [["status", BUILD], ["resume", BUILD], ["logs", BUILD], ["status"]])
def test_a_newer_versions_build_is_one_clear_line_wherever_it_is_named(
    newer: BuildLedger, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LONGSHOT_HOME", str(Path(str(newer.directory)).parents[1]))
    monkeypatch.setenv("COLUMNS", "400")
    code = main.run(command)
    said = capsys.readouterr()
    if command == ["status"]:
        assert code == 0 and "needs longshot 9.1.0 or newer" in said.out
    else:
        assert code != 0 and said.err.startswith(f"longshot: {NEWER}") and said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("document", "line"),
    [
        (b'{"schema_version": 3}', ""),
        (b'{"schema_version": 2}', ""),
        (b'{"schema_version": 1}', ""),
        (b"{}", ""),
        (b"{", ""),
        (b"[]", ""),
        (
            b'{"schema_version": 4}',
            "build b needs a newer longshot: its ledger has schema 4, longshot 1.0 reads 1 to 3",
        ),
        (
            b'{"schema_version": 4, "written_by": "2.0\\u001b[1m\\n"}',
            "build b needs longshot 2.0\ufffd[1m or newer: its ledger has schema 4, longshot 1.0 reads 1 to 3",
        ),
        (
            b'{"schema_version": 0}',
            "build b needs the longshot that began it: its ledger has schema 0, longshot 1.0 reads 1 to 3",
        ),
    ],
)
def test_which_ledgers_can_be_read(document: bytes, line: str) -> None:
    assert unreadable("b", document, "1.0") == line


def test_while_another_versions_stack_runs_the_person_is_told_what_to_do(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    info = stack.StackInfo(pid=os.getpid(), port=1, version="0.0.9", started=1.0, ready=True)
    _ = home.logs
    stack.save_info(home, info)
    with lock_path(home).open("w") as lock:
        lock.write(str(os.getpid()))
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        told = f"the running stack is version 0.0.9, this command {__version__}: `longshot down`, then again"
        with pytest.raises(WrongUse, match=told):
            stack.ensure(home, [], port=0, environ={})
