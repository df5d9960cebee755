"""A wait is seen in a terminal and nowhere else."""

import os
import pty
import re
import subprocess
import sys

import pytest

from longshot_dagster.cli.terminal import say, waiting

_WAIT = """
import threading
from longshot_dagster.cli import terminal
from longshot_dagster.cli.terminal import say, waiting
terminal._SINCE_S = 0
pause = threading.Event().wait
with waiting("starting [/bold]\\x1b[2J ...") as tell:
    pause(0.2)
    say("a line of its own [/bold] " + "x" * 100)
    with waiting("inside"):
        pause(0.2)
    tell("nearly there")
    pause(0.2)
say("done")
"""


def test_in_a_pipe_only_lines_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with waiting("starting") as tell:
        say("a line")
        tell("nearly there")
    assert capsys.readouterr() == ("a line\n", "")


def test_in_a_terminal_a_spinner_turns_below_the_lines_and_is_gone_afterwards() -> None:
    master, slave = pty.openpty()
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    with subprocess.Popen(
        [sys.executable, "-c", _WAIT], stdout=slave, stderr=slave, stdin=slave, env=environ
    ) as process:
        os.close(slave)
        seen = b""
        while chunk := _read(master):
            seen += chunk
    os.close(master)
    text = seen.decode()
    assert process.returncode == 0, text
    assert re.search("starting \\[/bold\\]\ufffd\\[2J ... 0 s", text)
    assert "a line of its own [/bold] " + "x" * 100 + "\r\n" in text, "a long line is not broken"
    assert text.index("inside 0 s") < text.index("nearly there 0 s") < text.index("done")
    assert "\x1b[?25h" in text, "the cursor is there again"
    assert text.endswith("\x1b[2Kdone\r\n")


def _read(master: int) -> bytes:
    try:
        return os.read(master, 65536)
    except OSError:  # the other end is closed
        return b""
