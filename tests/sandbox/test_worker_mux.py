"""The relay's end inside a sandbox, spoken to over pipes as by its command's standard input and output."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from longshot_worker import mux

from longshot_dagster.core import relay_frames
from longshot_dagster.core.relay_frames import ALIVE, Frame, Frames, Kind, credit

WAIT_S = 10


class Served:
    """One of them in a thread; `take` gives its next frame."""

    def __init__(self, path: Path) -> None:
        self._stdin, self._feed = os.pipe()
        self._listen, self._stdout = os.pipe()
        self.code: int | None = None
        self._reader, self._frames = Frames(), iter(())
        self._thread = threading.Thread(target=self._run, args=(str(path),))
        self._thread.start()

    def _run(self, path: str) -> None:
        self.code = mux.serve(path, self._stdin, self._stdout)
        os.close(self._stdin)
        os.close(self._stdout)

    def take(self, kind: Kind | None = None) -> Frame:
        """The next frame, or the next of `kind`."""
        while True:
            for frame in self._frames:
                if kind in (None, frame.kind):
                    return frame
            data = os.read(self._listen, 1 << 16)
            assert data, "it has ended"
            self._frames = iter(list(self._reader.of(data)))

    def say(self, *frames: Frame) -> None:
        os.write(self._feed, b"".join(frame.encoded for frame in frames))

    def end(self) -> int | None:
        if self._feed >= 0:
            os.close(self._feed)
            self._feed = -1
        self._thread.join(WAIT_S)
        os.close(self._listen)
        return self.code

    def ended(self) -> int | None:
        self._thread.join(WAIT_S)
        return self.code


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Longer than a socket's address may be."""
    return tmp_path / ("d" * 100) / "model.sock"


@pytest.fixture
def served(path: Path) -> Iterator[Served]:
    one = Served(path)
    assert one.take() == ALIVE
    yield one
    assert one.end() == 0
    assert not path.exists()


def connected(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(WAIT_S)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        made.connect(f"/proc/self/fd/{folder}/{path.name}")
    except OSError:
        made.close()
        raise
    finally:
        os.close(folder)
    return made


def test_both_ends_mean_the_same_frames() -> None:
    ours = {name: getattr(relay_frames, name) for name in ("MAX_PAYLOAD", "WINDOW", "MAX_STREAMS")}
    assert {name: getattr(mux, name) for name in ours} == ours
    assert {kind.name: getattr(mux, kind.name) for kind in Kind} == {kind.name: kind.value for kind in Kind}


def test_a_connection_is_a_stream_until_both_sides_have_ended(path: Path, served: Served) -> None:
    with connected(path) as one:
        assert served.take() == Frame(1, Kind.OPEN)
        one.sendall(b"question")
        assert served.take() == Frame(1, Kind.DATA, b"question")
        served.say(Frame(1, Kind.DATA, b"answer"), Frame(1, Kind.EOF))
        assert one.recv(100) == b"answer"
        assert served.take() == credit(1, 6)
        assert one.recv(100) == b""
        one.shutdown(socket.SHUT_WR)
        assert served.take() == Frame(1, Kind.EOF)


def test_it_sends_no_more_than_was_granted(path: Path, served: Served) -> None:
    with connected(path) as one:
        one.setblocking(False)
        served.take(Kind.OPEN)
        total, until = 0, time.monotonic() + WAIT_S
        sent = 0
        while total < mux.WINDOW:
            with contextlib.suppress(BlockingIOError):
                sent += one.send(b"x" * 65_536)
            total += len(served.take(Kind.DATA).payload)
            assert time.monotonic() < until
        assert total == mux.WINDOW and sent > total, "more is waiting behind the window"
        served.say(credit(1, 1_000))
        assert len(served.take(Kind.DATA).payload) == 1_000


def test_a_stream_that_is_reset_is_closed_and_no_other(path: Path, served: Served) -> None:
    with connected(path) as one, connected(path) as other:
        assert {served.take(Kind.OPEN).stream, served.take(Kind.OPEN).stream} == {1, 2}
        served.say(Frame(1, Kind.RESET), Frame(1, Kind.DATA, b"late"), Frame(9, Kind.EOF))
        assert one.recv(10) == b""
        other.sendall(b"still here")
        assert served.take(Kind.DATA) == Frame(2, Kind.DATA, b"still here")


def test_a_client_that_hangs_up_is_told_of_while_it_is_answered(path: Path, served: Served) -> None:
    one = connected(path)
    served.take(Kind.OPEN)
    one.close()
    assert served.take(Kind.EOF).stream == 1
    served.say(Frame(1, Kind.DATA, b"x" * 1_000), Frame(1, Kind.DATA, b"y"))
    assert served.take(Kind.RESET).stream == 1


def test_a_later_one_takes_the_path_over(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mux, "_LOOK_S", 0.05)
    first = Served(path)
    first.take(Kind.ALIVE)
    second = Served(path)
    second.take(Kind.ALIVE)
    assert first.ended() == 4
    with connected(path):
        assert second.take(Kind.OPEN).stream == 1
    assert (first.end(), second.end()) == (4, 0)


def test_it_ends_when_nobody_is_heard_any_more(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mux, "_SILENCE_S", 2.5)
    one = Served(path)
    one.take(Kind.ALIVE)
    with connected(path) as client:
        assert one.ended() == 3
        assert client.recv(10) == b"" and not path.exists()
    one.end()
