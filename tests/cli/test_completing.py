"""Shell completion: in a real bash, and what the other shells are told."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import BashComplete, FishComplete, ZshComplete
from told import a_build, own_home, plan

from longshot_dagster.cli import completing
from longshot_dagster.cli.completing import completion

_TRY = """
eval "$(longshot completion bash)"
complete -p longshot
try() {
  COMP_WORDS=("$@"); COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 )); COMPREPLY=()
  _longshot_completion longshot; echo "${COMPREPLY[*]}"
}
try longshot '"do it"' --max
try longshot logs todo-0001 --task r001-0
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = own_home(tmp_path, monkeypatch)
    plan(a_build(home), "root", 1, 3)
    plan(a_build(home, "todo-0002"), "root", 1, 1)
    os.utime(home / "builds" / "todo-0001", (1, 1))
    return home


@pytest.fixture
def words(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """What bash is offered after a line that ends with the word being typed."""

    def offered(*line: str) -> list[str]:
        monkeypatch.setenv("COMP_WORDS", " ".join(("longshot", *line)))
        monkeypatch.setenv("COMP_CWORD", str(len(line)))
        assert completion("bash") == 0
        return [found.removeprefix("plain,") for found in capsys.readouterr().out.split()]

    before = _types()
    yield offered
    for parameter, kind in before:
        parameter.type = kind


def _types() -> list[tuple]:
    from longshot_dagster.cli.main import cli

    return [(p, p.type) for command in cli.commands.values() for p in command.params]


def test_a_real_bash_completes_commands_options_and_names(home: Path, tmp_path: Path) -> None:
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "longshot").write_text(f'#!/bin/sh\nexec {sys.executable} -m longshot_dagster.cli.main "$@"\n')
    (bin_ / "longshot").chmod(0o755)
    environ = {**os.environ, "PATH": f"{bin_}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "--norc", "-c", _TRY], capture_output=True, text=True, timeout=60, env=environ, check=True
    )
    assert done.stdout.splitlines() == [
        "complete -o nosort -F _longshot_completion longshot",
        "--max-workers",
        "r001-01 r001-02 r001-03",
    ]
    assert done.stderr == ""


def test_the_first_word_is_a_command_or_an_option_of_a_request(words) -> None:
    assert words("re") == ["report", "resume", "retry", "reset"]
    assert "build" not in words("")
    assert words("--d") == ["--dashboard", "--debug"]
    assert {"--repo", "--land-on", "--help", "--version"} <= set(words("--"))
    assert words("--repo", "") == ["file,"]


def test_builds_are_offered_newest_first_wherever_one_is_meant(words) -> None:
    for command in ("status", "watch", "logs", "report", "resume", "continue", "cancel", "undo"):
        assert words(command, "") == ["todo-0002", "todo-0001"], command
    assert words("clean", "--build", "") == ["todo-0002", "todo-0001"]
    assert words("status", "x") == []
    assert words("watch", "--") == ["--dashboard", "--json", "--help", "--debug"]


def test_tasks_are_offered_with_their_build_or_bare_below_it(words) -> None:
    assert words("undo", "todo-0001.") == [f"todo-0001.r001-0{n}" for n in (1, 2, 3)]
    assert words("retry", "todo-0001.r001-03") == ["todo-0001.r001-03"]
    assert words("retry", "") == ["todo-0002.r001-01", *(f"todo-0001.r001-0{n}" for n in (1, 2, 3))]
    assert words("logs", "todo-0002", "--task", "") == ["r001-01"]
    assert words("completion", "") == ["bash", "zsh", "fish"]


def test_a_hostile_folder_name_never_reaches_the_shell(home: Path, words) -> None:
    for name in ("$(touch pwned)", "todo;x", "..", "TODO"):
        folder = home / "builds" / name
        folder.mkdir(exist_ok=True)
        (folder / "request.json").write_text("{}")
    (home / "builds" / "todo-0002" / "tasks" / "$(id)").mkdir()
    (home / "builds" / "todo-0002" / "tasks" / "$(id)" / "task.json").write_text("{}")
    assert words("status", "") == ["todo-0002", "todo-0001"]
    assert words("logs", "todo-0002", "--task", "") == ["r001-01"]


def test_a_home_that_is_not_there_is_not_made(words, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LONGSHOT_HOME", str(tmp_path / "other"))
    assert words("status", "") == []
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("shell", "clicks"), [("bash", BashComplete), ("zsh", ZshComplete), ("fish", FishComplete)])
def test_each_shells_script_asks_longshot_back(
    shell: str, clicks: type, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COMP_WORDS", raising=False)
    assert completion(shell) == 0
    script = capsys.readouterr().out
    assert f"completion {shell}" in script
    assert "_LONGSHOT_COMPLETE" not in script
    assert completing._SHELLS[shell].source_template != clicks.source_template
