"""`longshot doctor` as a person meets it: settings with their origin, what is well, what to do, and nothing left behind."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from longshot_dagster.cli import main
from longshot_dagster.cli.doctor import _masked
from longshot_dagster.core.usage import REHEARSAL_MODEL
from longshot_dagster.testing.script import Script
from longshot_dagster.testing.scripted_model import ScriptedModel

SECRET = "sk-never-shown"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A checkout with an origin, a scripted model, and a home that does not exist yet."""
    work = tmp_path / "work"
    for command in (["init", "-q", "--bare", "-b", "main", "r.git"], ["clone", "-q", "r.git", "work"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True, capture_output=True)
    (work / ".longshot.toml").write_text("worker_timeout = 60\n")
    for command in (
        ["checkout", "-qb", "main"],
        ["add", "-A"],
        ["commit", "-qm", "first"],
        ["push", "-q", "origin", "main"],
    ):
        subprocess.run(["git", *command], cwd=work, check=True)
    (work / ".env").write_text("MAX_WORKERS=3\n")
    monkeypatch.chdir(work)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("LONGSHOT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LLM_MODEL", REHEARSAL_MODEL)
    monkeypatch.setenv("LLM_API_KEY", SECRET)
    with ScriptedModel(Script(), 0) as model:
        monkeypatch.setenv("LLM_BASE_URL", f"http://127.0.0.1:{model.port}")
        yield tmp_path


def test_everything_is_well_and_nothing_is_left(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(p.name for p in here.iterdir())
    assert main.run(["doctor", "--json"]) == 0
    shown = capsys.readouterr()
    assert SECRET not in shown.out + shown.err
    found = json.loads(shown.out)
    assert found["ok"] is True
    told = {s["name"]: (s["value"], s["origin"]) for s in found["settings"]}
    assert told["LLM_API_KEY"] == ("********", "environment")
    assert told["MAX_WORKERS"] == ("3", ".env")
    assert told["WORKER_TIMEOUT"] == ("60", ".longshot.toml")
    assert told["MERGE_STRATEGY"] == ("rebase", "default")
    subjects = {f["subject"]: f["standing"] for f in found["findings"]}
    wanted = [
        "longshot",
        "python",
        "git",
        "dagster",
        "home",
        "disk",
        "sockets",
        "port",
        "sandbox",
        "bubblewrap",
        "agent",
        "endpoint",
        "repository",
    ]
    assert {subjects[name] for name in [*wanted, "dagster home"]} == {"ok"}
    assert sorted(p.name for p in here.iterdir()) == before


def test_what_is_wrong_is_said_with_what_to_do_and_the_rest_is_looked_at(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LONGSHOT_UI_PORT", "x")
    monkeypatch.setenv("MAX_WORKERS", "many")
    monkeypatch.setenv("LLM_ENDPOINTS", f'[{{"name": "a", "key": "{SECRET}"}}]')
    assert main.run(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert SECRET not in shown
    lines = shown.splitlines()
    assert [line.split(None, 3)[:3] for line in lines if line.startswith("  TO DO")] == [["TO", "DO", "setting"]] * 3
    assert any(line.startswith("  ok     git ") for line in lines)
    assert any("not looked at before the settings are right" in line for line in lines)
    assert lines[-1] == "3 things to do"


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("LLM_BASE_URL", SECRET, "********"),
        ("LLM_BASE_URL", f"https://llm.example/v1?api-key={SECRET}", "https://llm.example/v1?********"),
        ("LLM_BASE_URL", f"https://me:a/{SECRET}@llm.example/v1", "https://********@llm.example/v1"),
        ("GIT_REPO_URL", f"https://h.example/r.git?private_token={SECRET}", "https://h.example/r.git?********"),
        ("GIT_REPO_URL", f"https://me:{SECRET}@h.example/r.git", "https://********@h.example/r.git"),
    ],
)
def test_a_key_in_the_wrong_place_is_not_shown(name: str, value: str, shown: str) -> None:
    assert _masked(name, value) == shown


def test_a_dotenv_that_cannot_be_read_is_one_finding(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path(".env").write_bytes(b"\xff")
    assert main.run(["doctor"]) == 1
    assert capsys.readouterr().out.count("TO DO") == 1


def test_wrong_use_of_doctor_itself_is_exit_2(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["doctor", "--nope"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
