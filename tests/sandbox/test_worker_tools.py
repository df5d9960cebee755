"""The agent's tools and the command runner below them: bounded, confined, and nothing left running."""

import subprocess
import time
from pathlib import Path

import pytest
from longshot_worker import commands
from longshot_worker.commands import Clip, clipped
from longshot_worker.harness.builtin.tools import MAX_OUTPUT, Tools


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    folder = tmp_path / "repo"
    (folder / "src").mkdir(parents=True)
    subprocess.run(["git", "init", "-q", folder], check=True)
    (folder / "src/app.py").write_text("def f():\n    return 1\n\ndef g():\n    return 1\n")
    (folder / ".gitignore").write_text("secret.txt\n")
    (folder / "secret.txt").write_text("return 1\n")
    return folder


@pytest.fixture
def tools(repo: Path) -> Tools:
    return Tools(str(repo), time.monotonic() + 60, silence_s=60)


def test_read_numbers_lines_and_says_what_is_left(tools: Tools, repo: Path) -> None:
    assert tools.run("read", {"path": "src/app.py", "offset": 2, "limit": 1}) == (
        "2\t    return 1\n[3 more lines: read again with offset=3]",
        True,
    )
    (repo / "b.bin").write_bytes(b"\0\1")
    assert tools.run("read", {"path": "b.bin"}) == ("b.bin is binary, 2 bytes", True)
    assert tools.run("read", {"path": "src"})[0] == "src is a directory: use ls"
    assert tools.run("read", {"path": "src/app.py", "offset": "x"}) == ("offset must be a whole number, not 'x'", False)


def test_edit_wants_its_text_exactly_once(tools: Tools, repo: Path) -> None:
    twice = {"path": "src/app.py", "old_text": "return 1", "new_text": "return 2"}
    assert "2 times" in tools.run("edit", twice)[0]
    assert tools.run("edit", {**twice, "old_text": "def f():\n    return 1"})[1]
    assert tools.run("edit", {**twice, "old_text": "nowhere"}) == (
        "old_text is not in src/app.py; read the file and copy the text exactly, with its indentation",
        False,
    )
    assert tools.run("edit", {**twice, "replace_all": True})[0] == "replaced 1 occurrence in src/app.py"


def test_edit_keeps_line_endings_and_bytes_it_does_not_understand(tools: Tools, repo: Path) -> None:
    (repo / "w.txt").write_bytes(b"a\r\nb\r\n\xff\r\n")
    assert tools.run("edit", {"path": "w.txt", "old_text": "a\nb", "new_text": "c\nd"})[1]
    assert (repo / "w.txt").read_bytes() == b"c\r\nd\r\n\xff\r\n"


@pytest.mark.parametrize("path", ["../out.txt", "/etc/passwd", "link/passwd", ".git/hooks/pre-commit", "a/../../x"])
def test_no_file_outside_the_repository_is_written(tools: Tools, repo: Path, path: str) -> None:
    (repo / "link").symlink_to("/etc")
    text, worked = tools.run("write", {"path": path, "content": "x"})
    assert not worked, text


def test_search_leaves_out_what_git_ignores(tools: Tools) -> None:
    assert tools.run("grep", {"pattern": "return [0-9]"})[0] == "src/app.py:2:    return 1\nsrc/app.py:5:    return 1"
    assert tools.run("grep", {"pattern": "return", "file_glob": "*.js"})[0] == "no match"
    assert tools.run("find", {"glob_pattern": "*.py"})[0] == "src/app.py"
    assert tools.run("find", {"glob_pattern": "secret*"})[0] == "no file matches"
    assert tools.run("ls", {})[0] == ".git/\n.gitignore\nsecret.txt\nsrc/"
    assert not tools.run("grep", {"pattern": "("})[1]


def test_search_works_without_a_repository(tools: Tools, repo: Path) -> None:
    subprocess.run(["rm", "-rf", repo / ".git"], check=True)
    assert "src/app.py:2:" in tools.run("grep", {"pattern": "return 1"})[0]
    assert tools.run("find", {"glob_pattern": "*.py"})[0] == "src/app.py"


def test_long_output_loses_its_middle_and_says_how_much(tools: Tools) -> None:
    text, _ = tools.run("bash", {"command": "seq 1 200000"})
    assert len(text) <= MAX_OUTPUT
    assert text.startswith("1\n2\n") and "bytes cut ...]" in text and text.endswith("200000\n\n[exit 0]")
    assert clipped("x" * 100, 10) == "xxxxx\n[... 90 characters cut ...]\nxxxxx"


def test_clip_counts_what_it_drops() -> None:
    clip = Clip(4)
    for part in (b"abc", b"defg", b"hij"):
        clip.add(part)
    assert clip.text() == "ab\n[... 6 bytes cut ...]\nij"


def test_bash_reports_exit_codes_timeouts_and_silence(repo: Path) -> None:
    tools = Tools(str(repo), time.monotonic() + 60, silence_s=0.3)
    assert tools.run("bash", {"command": "echo out; echo err >&2; exit 3"})[0] == "out\nerr\n\n[exit 3]"
    assert tools.run("bash", {"command": "sleep 30"})[0] == "[ended: no output for 0 s]"
    chatty = "while :; do echo x; sleep 0.1; done"
    assert tools.run("bash", {"command": chatty, "timeout": 1})[0].endswith("[ended after 1 s]")


def test_a_background_process_ends_with_its_command(repo: Path) -> None:
    began = time.monotonic()
    ran = commands.run(["bash", "-c", "sleep 51.37 & echo started"], str(repo), 20)
    assert (ran.output, ran.ended) == ("started\n", "exit")
    assert time.monotonic() - began < 10
    assert subprocess.run(["pgrep", "-f", "^sleep 51.37"], capture_output=True).stdout == b""
