"""`longshot backlog` as a person and a script meet it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from longshot_dagster.adapters.host.documents import locked
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.cli import main, serving
from longshot_dagster.core.backlog import Book, Entry, Stage, Start
from longshot_dagster.core.errors import WrongUse


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The backlog beside which the command is given, with a home of its own."""
    found = tmp_path / "here" / "backlog"
    found.mkdir(parents=True)
    monkeypatch.chdir(found.parent)
    monkeypatch.setenv("LONGSHOT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "160")
    return found


def write(folder: Path, name: str, front: str = "", request: str = "Build it") -> None:
    (folder / f"{name}.md").write_text(f"---\n{front}\n---\n{request}\n", encoding="utf-8")


def test_the_list_says_how_each_item_stands_and_what_is_wrong_with_one(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, "api", "priority: 1")
    write(folder, "bad", "prio: \x1b[31m1")
    write(folder, "nightly", "cron: 0 0 1 1 *", "Mend it [/bold]")
    write(folder, "off", "enabled: false", "Never mind")
    write(folder, "done", "", "Build that")
    started(tmp_path, folder / "done.md")
    assert main.run(["backlog"]) == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert lines[0] == f"backlog {folder}: 0 of 2 builds under way"
    assert lines[1] == "Longshot is not running; `longshot up` starts what is waiting"
    table = {line.split()[0]: line.split(maxsplit=3) for line in lines[3:8]}
    assert table["api.md"][1:] == ["1", "waiting", "number 1 in the queue; 0 of 2 builds are under way"]
    assert table["nightly.md"][1:3] == ["5", "scheduled"]
    assert table["nightly.md"][3].startswith("next 20") and table["nightly.md"][3].endswith("-01-01 00:00 UTC")
    assert table["off.md"][1:] == ["5", "off", "enabled is false"]
    assert table["done.md"][2:] == ["done", "done-1234  edited since; a new file makes a new build"]
    assert lines[8] == "bad.md: line 2: a value has no control or invisible characters"
    assert "\x1b" not in said


def started(tmp_path: Path, item: Path) -> None:
    """The book of a stack that has built `item` as it was before its last edit."""
    start = Start(build="done-1234", contents="another", at=1.0, asked=1.0, stage=Stage.ENDED)
    entry = Entry(place=str(item), contents="another", written=1.0, changed=1.0, since=1.0, starts=(start,))
    home = Home(tmp_path / "home")
    home.root.mkdir()
    (home.root / "backlog.json").write_text(Book(entries=(entry,)).model_dump_json(), encoding="utf-8")


def test_for_programs_it_is_one_document(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, "api", "repository: ../r\npriority: 1")
    write(folder, "bad", "prio: 1")
    assert main.run(["backlog", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {k: found[k] for k in ("folder", "limit", "under_way", "running")} == {
        "folder": str(folder),
        "limit": 2,
        "under_way": 0,
        "running": False,
    }
    api, bad = found["items"]
    assert (api["item"], api["state"], api["priority"], api["repository"]) == (
        "api.md",
        "waiting",
        1,
        str(folder.parent / "r"),
    )
    assert (bad["item"], bad["state"], bad["build"], bad["builds"]) == ("bad.md", "malformed", None, [])
    assert bad["why"] == "line 2: prio is not a field; did you mean priority?"


def test_what_the_running_stack_reads_counts_not_where_the_command_is_given(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, elsewhere = Home(tmp_path / "home"), tmp_path / "elsewhere"
    home.root.mkdir()
    elsewhere.mkdir()
    write(elsewhere, "api")
    (home.root / "backlog.json").write_text(Book(folder=str(elsewhere), limit=7).model_dump_json(), encoding="utf-8")
    info = {"pid": 1, "port": 1, "version": "0", "started": 1.0}
    (home.root / "stack.json").write_text(json.dumps(info), encoding="utf-8")
    (home.root / "stack.lock").write_text("1", encoding="utf-8")
    with locked(home.root / "stack.lock"):  # as a supervisor holds it
        assert main.run(["backlog", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["folder"], found["limit"], found["running"]) == (str(elsewhere), 7, True)


def test_nothing_there_is_said_and_no_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["backlog"]) == 0
    assert "no items in it; docs/backlog.md says what one looks like" in capsys.readouterr().out
    folder.rmdir()
    assert main.run(["backlog"]) == 0
    assert "there is no folder " in capsys.readouterr().out


def test_a_folder_that_was_named_must_be_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LONGSHOT_BACKLOG", "typo")
    for command in (["backlog"], ["up"]):
        assert main.run(command) == 2
        said = capsys.readouterr().err
        assert said == f"longshot: LONGSHOT_BACKLOG={folder.parent}/typo is not a folder; make it, or name another\n"


def test_a_build_does_not_take_up_a_folder_that_merely_lies_there(folder: Path, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    assert serving.backlog_place(home, None).folder == home.root / "backlog"
    assert serving.backlog_place(home, None, beside=Path.cwd()).folder == folder


def test_a_folder_that_came_with_a_repository_has_to_be_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = Home(tmp_path / "home")
    (folder / "theirs.md").write_text("---\n---\nDo it", encoding="utf-8")
    for command in (["init", "-q"], ["add", "backlog"]):
        subprocess.run(["git", "-C", str(folder.parent), *command], check=True)
    assert serving.backlog_place(home, None, beside=Path.cwd()).folder == home.root / "backlog"
    assert "to have it built: LONGSHOT_BACKLOG=backlog longshot up" in capsys.readouterr().err
    monkeypatch.setenv("LONGSHOT_BACKLOG", "backlog")
    assert serving.backlog_place(home, None, beside=Path.cwd()).folder == folder


def test_a_book_that_cannot_be_read_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "backlog.json").write_text("[]", encoding="utf-8")
    assert main.run(["backlog"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_listing_loads_nothing_of_dagster(folder: Path) -> None:
    code = "import sys; from longshot_dagster.cli import main; main.run(['backlog']); print([m for m in ('dagster', 'rich', 'git') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_wrong_numbers_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSHOT_BACKLOG_BUILDS", "many")
    with pytest.raises(WrongUse, match="LONGSHOT_BACKLOG_BUILDS=many is not a number of builds"):
        serving.backlog_place(Home(folder), None)
