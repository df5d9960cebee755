"""What runs inside remote sandboxes: a command with all it leaves is ended, however it hides; words come apart again."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from longshot_dagster.adapters.sandboxes import inside

BEAT = "while :; do echo >> beat; sleep 0.02; done"
HIDING = f"setsid -f sh -c '{BEAT}'; env -i setsid -f /bin/sh -c '{BEAT.replace('sleep', '/bin/sleep')}'"


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[str]:
    name = f"t{os.getpid()}-{tmp_path.name}"
    yield name
    subprocess.run(_here(inside.end(name)), check=False)


def _here(argv: list[str]) -> list[str]:
    return [sys.executable, *argv[1:]]


def ran(mark: str, folder: Path, *argv: str, stdin: bytes = b"", as_text: bool = False) -> tuple[int, bytes, bytes]:
    told = b"".join(inside.fed(argv, str(folder), {"MORE": "é"}, stdin))
    done = subprocess.run(_here(inside.run(mark, as_text=as_text)), input=told, capture_output=True, timeout=30)
    return done.returncode, done.stdout, done.stderr


def grows(folder: Path) -> bool:
    before = (folder / "beat").stat().st_size
    time.sleep(0.2)
    return (folder / "beat").stat().st_size > before


def test_a_command_has_its_words_its_folder_its_variables_and_its_input(mark: str, tmp_path: Path) -> None:
    code = 'cat; echo "$1 $MORE $(basename "$PWD")"; echo err >&2; exit 7'
    assert ran(mark, tmp_path, "sh", "-c", code, "sh", "$x ;", stdin=b"a\0b" * 50_000) == (
        7,
        b"a\0b" * 50_000 + f"$x ; é {tmp_path.name}\n".encode(),
        b"err\n",
    )


def test_as_text_both_streams_come_whole(mark: str, tmp_path: Path) -> None:
    code, said, err = ran(
        mark, tmp_path, "sh", "-c", r"printf '\000\377'; printf 'e\341' >&2; kill -9 $$", as_text=True
    )
    lines = inside.Lines()
    heard = [piece for at in range(len(said)) for piece in lines.add(said[at : at + 1].decode("ascii"))]
    assert (code, err) == (137, b"")
    assert b"".join(d for s, d in heard if s == "1") == b"\0\xff"
    assert b"".join(d for s, d in heard if s == "2") == b"e\xe1"
    for nonsense in ("1a\n", "x" * (1 << 20) + "x"):
        with pytest.raises(ValueError):
            list(inside.Lines().add(nonsense))


def test_what_a_command_leaves_ends_with_it(mark: str, tmp_path: Path) -> None:
    code = f"{HIDING}; while [ ! -s beat ]; do sleep 0.02; done"
    assert ran(mark, tmp_path, "sh", "-c", code)[0] == 0
    assert not grows(tmp_path)


@pytest.mark.parametrize("stops", [False, True], ids=["awake", "stopped by its command"])
def test_a_command_is_ended_by_its_mark_with_everything_below_it(mark: str, tmp_path: Path, stops: bool) -> None:
    script = f"{HIDING}; {'kill -STOP $PPID;' if stops else ''} {BEAT}"
    with subprocess.Popen(_here(inside.run(mark)), stdin=subprocess.PIPE) as running:
        assert running.stdin is not None
        running.stdin.write(b"".join(inside.fed(["sh", "-c", script], str(tmp_path), {}, None)))
        running.stdin.flush()
        deadline = time.monotonic() + 20
        while not (tmp_path / "beat").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert subprocess.run(_here(inside.end(mark))).returncode == 0
        assert running.wait(20) != 0
    assert not grows(tmp_path)
    assert subprocess.run(_here(inside.end(mark))).returncode == 3


def test_a_command_that_cannot_start_says_why(mark: str, tmp_path: Path) -> None:
    assert ran(mark, tmp_path, "no-such-command")[0] == 127
    assert ran(mark, tmp_path, str(tmp_path))[0] == 126
    assert ran(mark, tmp_path / "nowhere", "true")[0] == 127


def test_a_client_that_dies_before_it_has_said_what_to_run_runs_nothing(mark: str) -> None:
    whole = b"".join(inside.fed(["touch", "x"], "/", {}, None))
    cut = subprocess.run(_here(inside.run(mark)), input=whole[:10], capture_output=True, timeout=30)
    assert (cut.returncode, cut.stdout) == (125, b"")
    assert json.loads(whole[4 : 4 + int.from_bytes(whole[:4], "big")]) == {
        "argv": ["touch", "x"],
        "cwd": "/",
        "env": {},
    }


def test_the_first_process_ends_after_its_lifetime(mark: str) -> None:
    began = time.monotonic()
    assert subprocess.run(_here(inside.entry(0.5, None)), timeout=30).returncode == 0
    assert time.monotonic() - began >= 0.5
