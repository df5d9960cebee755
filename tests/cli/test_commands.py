"""The `longshot` command as a person meets it: one line for every mistake, and an exit code that means something."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from longshot_dagster.adapters.ledger.ledger import Ledger
from longshot_dagster.cli import main
from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import (
    BuildPhase,
    BuildRequest,
    Handoff,
    HandoffStatus,
    Plan,
    RepoState,
    Target,
    TargetKind,
    Task,
)
from longshot_dagster.core.settings import Settings
from longshot_dagster.version import __version__

OID = "a" * 40


def longshot(
    tmp_path: Path, *arguments: str, cwd: Path | None = None, **variables: str
) -> "subprocess.CompletedProcess[str]":
    """`longshot ARGUMENTS` in an empty folder with a home of its own and nobody's settings."""
    here = cwd or tmp_path / "here"
    here.mkdir(exist_ok=True)
    environ = {**os.environ, "LONGSHOT_HOME": str(tmp_path / "home"), **variables}
    argv = [sys.executable, "-m", "longshot_dagster.cli.main", *arguments]
    return subprocess.run(argv, cwd=here, env=environ, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "variables", "line"),
    [
        (["statsu"], {}, "'statsu' is no command; did you mean `longshot status`?"),
        (["stauts", "b-1"], {}, "'stauts' is no command; did you mean `longshot status`?"),
        (["Build", "an", "api"], {}, 'put the request in quotes: longshot "..."'),
        (["  "], {}, "the request is empty; say what to build, like"),
        (["do it", "--max-workers", "fifty"], {}, "MAX_WORKERS=fifty (command line) is not a whole number; give 0 to 1000"),
        (["do it"], {"MAX_WORKERS": "x"}, "MAX_WORKERS=x (environment) is not a whole number; give 0 to 1000"),
        (["do it"], {}, "no repository: give --repo PATH_OR_URL, set GIT_REPO_URL, or start inside a git checkout"),
        (["do it", "--repo", "/no/such"], {}, "/no/such does not exist or cannot be read"),
        (["do it", "--repo", "https://u:pw@git.example/x"], {}, "the URL of the repository on git.example carries a"),
        (["do it", "--nope"], {}, "No such option '--nope'; longshot --help shows how"),
        (["status", "nope"], {}, "no build 'nope' here (newest: none yet); `longshot status` lists them all"),
        (["status", "No/../pe"], {}, "'No/' is not a build name"),
        (["resume", "nope"], {}, "no build 'nope' here"),
        (["resume"], {}, "no build named; `longshot status` lists those of this installation, longshot resume"),
        (["demo", "--look"], {}, "no demo has been built yet; `longshot demo` builds it"),
        (["ui"], {}, "Longshot is not running; `longshot up` starts it"),
        (["up"], {"LONGSHOT_UI_PORT": "x"}, "LONGSHOT_UI_PORT=x is not a port"),
        (["up"], {"FINALIZATION_MAX_ATEMPTS": "1"}, "FINALIZATION_MAX_ATEMPTS (environment) is not a setting; did you"),
        (["status"], {"LONGSHOT_HOME": "/proc/nope"}, "cannot write below LONGSHOT_HOME=/proc/nope"),
    ],
)  # fmt: skip
def test_wrong_use_is_one_line_and_exit_2(
    tmp_path: Path, arguments: list[str], variables: dict[str, str], line: str
) -> None:
    done = longshot(tmp_path, *arguments, **variables)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"longshot: {line}")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_without_endpoints_a_build_is_refused_before_anything_starts(tmp_path: Path) -> None:
    repository = tmp_path / "r.git"
    subprocess.run(["git", "init", "-q", "--bare", str(repository)], check=True)
    done = longshot(tmp_path, "do it", "--repo", str(repository))
    assert done.returncode == 2
    assert "no model endpoint is configured: set LLM_BASE_URL" in done.stderr
    assert not (tmp_path / "home" / "stack.json").exists()


@pytest.mark.parametrize("missing", ["git", "make"])
def test_the_demo_without_its_tools_says_which_one_and_leaves_the_last_demo_alone(tmp_path: Path, missing: str) -> None:
    (tmp_path / "home" / "demo" / "builds" / "demo-last").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    if missing == "make":
        (tmp_path / "bin" / "git").symlink_to(str(shutil.which("git")))
    done = longshot(tmp_path, "demo", PATH=str(tmp_path / "bin"))
    assert done.returncode != 0
    assert done.stderr.startswith(f"longshot: {missing} is not installed, or not on PATH")
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "home" / "demo" / "builds" / "demo-last").is_dir()


def test_down_is_idempotent(tmp_path: Path) -> None:
    done = longshot(tmp_path, "down")
    assert (done.returncode, done.stdout) == (0, "Longshot is not running\n")


def test_version_and_help_need_no_home(tmp_path: Path) -> None:
    assert longshot(tmp_path, "--version", LONGSHOT_HOME="/proc/nope").stdout == f"longshot, version {__version__}\n"
    help_ = longshot(tmp_path, "--help", LONGSHOT_HOME="/proc/nope")
    assert help_.returncode == 0
    assert "Examples:" in help_.stdout
    assert "Exit codes:" in help_.stdout
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("name", ["", "request", *sorted(set(main.cli.commands) - {"build"})])
def test_help_fits_80_columns_and_every_command_that_takes_something_has_examples(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main.run([*([name] if name else []), "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert any(line.strip() == "Examples:" for line in lines) or name in ("down", "backlog")
    assert ("Options of a build:" in lines) == (not name)


def test_an_unexpected_error_is_one_line_and_a_file(tmp_path: Path) -> None:
    code = (
        "import sys; from longshot_dagster.cli import main, status\n"
        "def broken(*_): raise RuntimeError('no [/bold] luck\\x1b[31m')\n"
        "status.status = broken\nsys.exit(main.run(sys.argv[1:]))"
    )

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env={**os.environ, "TMPDIR": str(tmp_path)},
            capture_output=True,
            text=True,
        )

    done = run("status")
    assert done.returncode == 1
    assert done.stderr.startswith("longshot: unexpected RuntimeError: no [/bold] luck")
    assert done.stderr.count("\n") == 1
    assert "\x1b" not in done.stderr
    (log,) = tmp_path.glob("longshot-*.log")
    assert "Traceback" in log.read_text()
    assert "Traceback" in run("status", "--debug").stderr


def test_the_command_line_never_loads_what_is_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom longshot_dagster.cli import attaching, building, completing, demo, logs, main, reporting, resuming, serving, status\n"
        "heavy = 'dagster modal pydantic_ai pandas openai aiohttp git rich pydantic_settings uvicorn starlette'\n"
        "print([m for m in heavy.split() if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def a_build(tmp_path: Path) -> str:
    """A paused build with one landed and one withheld task, whose texts are hostile."""
    name = "todo-1"
    ledger = Ledger(tmp_path / "home" / "builds").build(name)
    ledger.save_request(
        BuildRequest(
            build=name,
            request="Build it [/bold]",
            target=Target(repository="r", url="/r.git", kind=TargetKind.REMOTE, base_branch="main", branch="main"),
            base=OID,
            settings=Settings(),
            created_at=1000.0,
        )
    )
    tasks = tuple(
        Task(
            id=f"r001-0{n}",
            build=name,
            iteration="root.001",
            planner="root",
            description="Do \x1b[31mit [/bold]",
            scope=("a",),
            branch=f"worker/{name}/r001-0{n}",
        )
        for n in (1, 2)
    )
    key = IterationKey(name, "root", 1)
    ledger.save_repo_state(key, RepoState(head=OID, branch="main", files=0, tree=(), log=()))
    ledger.freeze_plan(key, Plan(iteration=key.short, tasks=tasks, base=OID))
    for t, state in zip(tasks, (LandingState.LANDED, LandingState.WITHHELD), strict=True):
        ledger.save_handoff(Handoff(task_id=t.id, status=HandoffStatus.COMPLETE, summary="done"))
        ledger.save_landing(LandingOutcome(task=t.id, state=state, reason="its tests are red"))
    ledger.update_state(lambda s: s.moved(BuildPhase.PAUSED, "no endpoint answers"))
    return name


def test_status_lists_builds_and_why_tasks_wait(tmp_path: Path) -> None:
    name = a_build(tmp_path)
    every = longshot(tmp_path, "status").stdout
    assert "todo-1" in every
    assert "1/2" in every
    assert "no endpoint answers" in every
    one = longshot(tmp_path, "status", name)
    assert one.returncode == 0
    assert "r001-02" in one.stdout
    assert "its tests are red" in one.stdout
    assert "to go on: longshot resume todo-1" in one.stdout
    assert "\x1b" not in one.stdout
    found = json.loads(longshot(tmp_path, "status", name, "--json").stdout)
    assert [t["landing"] for t in found["task_list"]] == ["landed", "withheld"]
    assert json.loads(longshot(tmp_path, "status", "--json").stdout)["builds"][0]["phase"] == "paused"


def test_resuming_without_endpoints_says_so_and_changes_nothing(tmp_path: Path) -> None:
    name = a_build(tmp_path)
    done = longshot(tmp_path, "resume", name)
    assert done.returncode == 2
    assert "no model endpoint is configured" in done.stderr
    assert Ledger(tmp_path / "home" / "builds").build(name).state().phase is BuildPhase.PAUSED


def test_another_system_is_told_where_longshot_runs_before_anything_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert main.run(["status"]) == 2
    assert "WSL2" in capsys.readouterr().err
