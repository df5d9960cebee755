"""`longshot report`: every form of it, to the terminal and into a file, and one line for what cannot be."""

import json
import sys
from pathlib import Path

import pytest

from longshot_dagster.cli.main import run

sys.path.append(str(Path(__file__).resolve().parents[1] / "adapters"))
from reported import eventful

BUILD = "todo-api-7f3k"


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """(exit code, stdout, stderr) of `longshot report` in a home with one finished build."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LONGSHOT_HOME", str(tmp_path / "home"))
    eventful(tmp_path / "home")

    def report(*arguments: str) -> tuple[int, str, str]:
        code = run(["report", *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return report


def test_without_a_form_it_is_the_summary_with_what_to_do_next(told) -> None:
    code, out, _ = told(BUILD)
    assert told()[:2] == (code, out), "the newest is meant"
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == f"{BUILD}: 4 of 7 tasks landed, 1 superseded, 1 left over, checks green"
    assert "checks compile green, test green, lint skipped" in lines
    assert f"next   longshot retry {BUILD}.r002-01" in lines
    assert "\x1b" not in out and "\u202e" not in out


@pytest.mark.parametrize(
    ("form", "start"), [("--html", "<!doctype html>"), ("--markdown", r"# todo\-api\-7f3k: leftovers"), ("--json", "{")]
)
def test_every_form_is_one_document_on_stdout(told, form: str, start: str) -> None:
    code, out, err = told(BUILD, form)
    assert (code, err) == (0, "")
    assert out.startswith(start)
    if form == "--json":
        assert json.loads(out)["counts"]["landed"] == 4


@pytest.mark.parametrize(
    ("name", "start"),
    [("r.html", "<!doctype html>"), ("r.md", "# todo"), ("r.json", "{"), ("r.txt", f"{BUILD}: 4 of 7")],
)
def test_a_files_name_says_the_form(told, tmp_path: Path, name: str, start: str) -> None:
    code, out, _ = told(BUILD, "--output", name)
    assert (code, out) == (0, f"{BUILD}: leftovers; written to {name}\n")
    assert (tmp_path / name).read_text(encoding="utf-8").startswith(start)


def test_what_cannot_be_is_one_line(told) -> None:
    assert told(BUILD, "--html", "--output", "no/such/r.html") == (
        2,
        "",
        "longshot: no/such/r.html cannot be written: No such file or directory\n",
    )
    code, out, err = told("nope")
    assert (code, out) == (2, "")
    assert err.startswith("longshot: no build 'nope' here (newest: todo-api-7f3k)")
