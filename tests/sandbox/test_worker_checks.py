"""Which checks a project has, and how each of them ends."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from longshot_worker import checks, commands
from longshot_worker.checks import against_base, detect, run_all
from longshot_worker.handoff import HarnessResult, Said, judge, read_final


def project(folder: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return str(folder)


@pytest.fixture
def every_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(checks, "_has", lambda module: module == "pytest")


PACKAGE = {"scripts": {"build": "tsc", "typecheck": "tsc --noEmit", "lint": "eslint", "test": "jest"}}
COMPILE_PYTHON = "python3 -m compileall -q -x '/(\\.git|\\.venv|venv|node_modules)/' ."


@pytest.mark.usefixtures("every_tool")
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"README.md": "x"}, {}),
        (
            {"package.json": json.dumps(PACKAGE)},
            {
                "compile": "npm run --silent build",
                "types": "npm run --silent typecheck",
                "lint": "npm run --silent lint",
                "test": "npm test --silent",
            },
        ),
        (
            {"package.json": json.dumps({"devDependencies": {"a": "1"}}), "package-lock.json": "{}"},
            {"install": "npm ci"},
        ),
        ({"package.json": json.dumps({"scripts": {"test": 'echo "Error: no test specified" && exit 1'}})}, {}),
        ({"package.json": "not json"}, {}),
        (
            {"app.py": "", "tests/test_app.py": ""},
            {"compile": COMPILE_PYTHON, "test": "python3 -m pytest -q"},
        ),
        (
            {"go.mod": "module x"},
            {"compile": "go build ./...", "lint": "go vet ./...", "test": "go test ./..."},
        ),
        (
            {"Cargo.toml": "[package]"},
            {
                "compile": "cargo build --all-targets",
                "test": "cargo test",
                "lint": "cargo clippy --all-targets -- -D warnings",
            },
        ),
        (
            {"Makefile": "X := 1\nbuild: a\n\techo\ntest:\n\techo\n", "package.json": json.dumps(PACKAGE)},
            {
                "compile": "make build",
                "types": "npm run --silent typecheck",
                "lint": "npm run --silent lint",
                "test": "make test",
            },
        ),
    ],
    ids=["nothing", "npm", "npm-install", "npm-placeholder", "npm-broken", "pytest", "go", "cargo", "make-wins"],
)
def test_commands_are_detected(tmp_path: Path, files: dict[str, str], expected: dict[str, str]) -> None:
    assert detect(project(tmp_path, files)) == expected


def test_without_pytest_the_standard_library_runs_the_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_has", lambda module: False)
    path = project(tmp_path, {"test_app.py": ""})
    assert detect(path)["test"] == "python3 -m unittest discover"
    path = project(tmp_path, {"tests/test_app.py": ""})
    assert detect(path)["test"] == "python3 -m unittest discover -s tests"
    path = project(tmp_path, {"tests/__init__.py": ""})
    assert detect(path)["test"] == "python3 -m unittest discover -s tests -t ."


def test_an_order_wins_and_none_skips(tmp_path: Path) -> None:
    ordered = {"compile": "echo compiled", "lint": "none", "test": "echo bad; exit 4"}
    found = run_all(project(tmp_path, {"a": ""}), ordered, 20, time.monotonic() + 20)
    assert [(c.name, c.status, c.exit_code, c.output) for c in found] == [
        ("install", "skipped", None, "nothing to run was found"),
        ("compile", "green", 0, "compiled"),
        ("types", "skipped", None, "nothing to run was found"),
        ("lint", "skipped", None, "switched off"),
        ("test", "red", 4, "bad"),
    ]


def test_a_check_that_hangs_is_ended_as_a_tree(tmp_path: Path) -> None:
    command = "sleep 47.11 & sleep 47.11"
    (found,) = run_all(str(tmp_path), {"test": command}, 0.3, time.monotonic() + 20, only={"test"})
    assert (found.status, found.exit_code) == ("timeout", 124)
    assert subprocess.run(["pgrep", "-f", "^sleep 47.11"], capture_output=True).stdout == b""


def test_output_is_cut_in_the_middle(tmp_path: Path) -> None:
    (found,) = run_all(str(tmp_path), {"test": "seq 1 100000; exit 1"}, 20, time.monotonic() + 20, only={"test"})
    assert len(found.output) <= checks.KEEP
    assert found.output.endswith("100000")


def test_no_tests_collected_is_skipped_not_red(tmp_path: Path) -> None:
    order = {"test": "echo no tests ran in 0.01s; exit 5"}
    (found,) = run_all(str(tmp_path), order, 20, time.monotonic() + 20, only={"test"})
    assert found.status == "skipped"


def test_a_project_whose_tool_is_not_in_the_sandbox_is_red_and_says_so(tmp_path: Path) -> None:
    path = project(tmp_path, {"Makefile": "test:\n\ttrue\n"})
    assert detect(path) == {"test": "make test"}
    (found,) = run_all(path, {"test": "no-such-tool test"}, 20, time.monotonic() + 20, only={"test"})
    assert found.status == "red"
    assert "CHECK_TEST=none" in found.output


def test_an_install_without_network_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSHOT_NETWORK", "none")
    order = {"install": "echo offline=$npm_config_offline; exit 1"}
    (found,) = run_all(str(tmp_path), order, 20, time.monotonic() + 20, only={"install"})
    assert found.output.splitlines()[0] == "offline=true"
    assert "SANDBOX_NETWORK=none" in found.output


@pytest.mark.parametrize(
    ("branch", "base", "expected"),
    [("exit 1", "exit 1", "red-before"), ("exit 1", "exit 0", "red"), ("exit 0", "exit 1", "green")],
)
def test_red_on_the_base_as_well_does_not_count_against_the_branch(
    tmp_path: Path, branch: str, base: str, expected: str
) -> None:
    project(tmp_path, {"branch/t.sh": branch, "base/t.sh": base})
    order, until = {"test": "sh t.sh"}, time.monotonic() + 30
    found = run_all(str(tmp_path / "branch"), order, 10, until)
    found = against_base(found, lambda: str(tmp_path / "base"), order, 10, until)
    assert {c.name: c.status for c in found}["test"] == expected


def test_time_that_is_up_is_a_timeout_not_a_pass(tmp_path: Path) -> None:
    (found,) = run_all(str(tmp_path), {"test": "true"}, 20, time.monotonic() - 1, only={"test"})
    assert found.red


HANDOFF = '{"status": "blocked", "summary": "s", "concerns": ["c", 3, ""], "suggestions": "one"}'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HANDOFF, Said("blocked", "s", ["c", "3"], ["one"])),
        (f"Here:\n```json\n{HANDOFF}\n```\nBye {{}}", Said("blocked", "s", ["c", "3"], ["one"])),
        ('{"status": "great"}', Said(summary='{"status": "great"}')),
        ('{"status": " Completed ", "summary": "s"}', Said("complete", "s")),
        ('{"status": ["complete"]}', Said(summary='{"status": ["complete"]}')),
        ("just prose {", Said(summary="just prose {")),
        ("{" * 5_000, Said(summary="{" * 5_000)),
        ('{"status": "complete", "summary": "\\ud800"}', Said("complete", "?")),
    ],
    ids=["bare", "fenced", "unknown-status", "other-word", "no-word", "prose", "braces", "surrogate"],
)
def test_a_final_message_is_read(text: str, expected: Said) -> None:
    assert read_final(text) == expected


@pytest.mark.parametrize(
    ("harness", "said", "changed", "expected"),
    [
        ("completed", "complete", True, "complete"),
        ("completed", "complete", False, "complete"),
        ("completed", "blocked", True, "blocked"),
        ("completed", "", True, "complete"),
        ("completed", "", False, "partial"),
        ("limit", "complete", True, "partial"),
        ("timeout", "", True, "partial"),
        ("timeout", "", False, "failed"),
        ("llm_error", "complete", False, "failed"),
        ("empty", "", False, "failed"),
        ("stalled", "", True, "partial"),
    ],
)
def test_a_run_is_judged_by_what_happened(harness: str, said: str, changed: bool, expected: str) -> None:
    assert judge(HarnessResult(harness), Said(said), changed) == expected


def test_a_command_that_cannot_be_started_raises(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nope"):
        commands.run(["nope"], str(tmp_path), 5)
