"""`longshot watch`: any build from any terminal, without touching it."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from told import a_build, finish, hand_off, land, own_home, plan

from longshot_dagster.adapters.host.exclusive import claim
from longshot_dagster.cli import main
from longshot_dagster.core.models import Verdict

_PATIENCE = 30.0


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return own_home(tmp_path, monkeypatch)


@pytest.mark.parametrize(("verdict", "code"), [(Verdict.GREEN, 0), (Verdict.LEFTOVERS, 3), (Verdict.RED, 4)])
def test_a_build_that_has_ended_gives_its_summary_and_exit_code(
    home: Path, capsys: pytest.CaptureFixture[str], verdict: Verdict, code: int
) -> None:
    ledger = a_build(home)
    [task] = plan(ledger, "root", 1, 1)
    hand_off(ledger, task.id)
    land(ledger, task.id)
    finish(ledger, verdict)
    assert main.run(["watch", "todo-0001"]) == code
    out = capsys.readouterr().out
    assert "r001-01 landed 1 file" in out
    assert f"finished: {verdict.value}" in out
    assert "todo-0001: 1 of 1 tasks landed" in out
    assert main.run(["watch", "--json"]) == code
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [o["kind"] for o in objects[:3]] == ["started", "planned", "begun"]
    assert objects[-1].items() >= {"kind": "end", "verdict": verdict.value, "exit_code": code}.items()


def test_without_a_name_it_is_the_newest_build(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_build(home, "older-0001", created_at=1.0).update_state(lambda s: s.paused("old"))
    a_build(home, "newer-0001", created_at=2.0).update_state(lambda s: s.paused("no model"))
    assert main.run(["watch"]) == 5
    assert capsys.readouterr().out.splitlines()[0].startswith("watching newer-0001 (a rehearsal")


def test_no_build_at_all_and_two_ways_to_show_one_are_wrong_use(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["watch"]) == 2
    assert "no builds yet" in capsys.readouterr().err
    a_build(home)
    assert main.run(["watch", "--dashboard", "--json"]) == 2
    assert "give one of them" in capsys.readouterr().err


def test_a_build_that_nothing_drives_is_said_to_stand_still(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = a_build(home)
    assert main.run(["watch"]) == 5
    assert "todo-0001 stands still: Longshot is not running; to go on: longshot resume" in capsys.readouterr().out
    assert ledger.state().under_way, "watching changes nothing"
    assert main.run(["watch", "--json"]) == 5
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["why"] == "deserted"


def test_of_a_long_past_only_the_newest_lines_are_told(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = a_build(home)
    for number in range(1, 40):
        plan(ledger, "root", number, 1)
    assert main.run(["watch"]) == 5
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "(19 earlier lines: `longshot logs todo-0001` shows them all)"
    assert lines[2] == "root.020 planned 1 task"


def test_ctrl_c_ends_the_watching_and_not_the_build(home: Path) -> None:
    ledger = a_build(home)
    with claim(home / "stack.lock"):  # as a stack that runs does
        argv = [sys.executable, "-m", "longshot_dagster.cli.main", "watch", "--json"]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stderr is not None
            assert json.loads(process.stdout.readline())["kind"] == "started"
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=_PATIENCE)
    assert (process.returncode, err) == (0, "")
    assert json.loads(out)["why"] == "left"
    assert ledger.state().under_way


class Terminal:
    """A real one, 80 by 24, with `longshot watch --dashboard` in it."""

    def __init__(self, process: "subprocess.Popen[bytes]", master: int, slave: int) -> None:
        self.process = process
        self.master = master
        self.slave = slave
        self.seen = b""

    def until(self, pattern: str) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not re.search(pattern, self.text):
            assert time.monotonic() < deadline, self.text
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 65536)

    @property
    def text(self) -> str:
        return self.seen.decode("utf-8", "replace")


@contextmanager
def terminal(rows: int = 24, columns: int = 80) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (rows, columns))
    argv = [sys.executable, "-m", "longshot_dagster.cli.main", "watch", "--dashboard"]
    # What the tests themselves run in may fix the size of the screen, and then nothing is resized.
    environ = {n: v for n, v in os.environ.items() if n not in ("LINES", "COLUMNS")} | {"TERM": "xterm-256color"}
    process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, env=environ, start_new_session=True)
    try:
        yield Terminal(process, master, slave)
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(slave)


@pytest.mark.parametrize("leave", ["q", "signal"])
def test_the_screen_is_left_with_q_or_ctrl_c_and_the_terminal_is_as_before(home: Path, leave: str) -> None:
    ledger = a_build(home)
    plan(ledger, "root", 1, 2)
    with claim(home / "stack.lock"), terminal() as seen:
        before = termios.tcgetattr(seen.slave)
        seen.until(r"\x1b\[\?1049h[\s\S]*root.*round 1")
        assert termios.tcgetattr(seen.slave)[3] & (termios.ECHO | termios.ICANON) == 0
        seen.seen = b""
        termios.tcsetwinsize(seen.slave, (50, 160))
        seen.until("REHEARSAL: a scripted model answers")  # only a wide screen says all of that
        hand_off(ledger, "r001-01", time.time())
        seen.until("r001-01 handed off complete")
        if leave == "q":
            os.write(seen.master, b"xq")
        else:
            seen.process.send_signal(signal.SIGINT)
        seen.until(r"\x1b\[\?1049l[\s\S]*todo-0001 goes on; `longshot watch todo-0001` shows it again")
        assert seen.process.wait(_PATIENCE) == 0
        assert termios.tcgetattr(seen.slave) == before
    assert ledger.state().under_way


def test_the_screen_ends_with_the_build(home: Path) -> None:
    ledger = a_build(home)
    with claim(home / "stack.lock"), terminal() as seen:
        seen.until("none planned yet")
        finish(ledger, Verdict.LEFTOVERS)
        seen.until(r"\x1b\[\?1049l[\s\S]*todo-0001: 1 of 1 tasks landed")
        assert seen.process.wait(_PATIENCE) == 3
