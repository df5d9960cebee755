"""The way to the model over a command's standard input and output: real sandboxes, and one that breaks every rule."""

import contextlib
import shutil
import socket
import socketserver
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from longshot_dagster.adapters.sandboxes import model_relay
from longshot_dagster.adapters.sandboxes.model_relay import ModelRelay, way_to_model
from longshot_dagster.adapters.sandboxes.sandbox_local import LocalProvider
from longshot_dagster.core import contract
from longshot_dagster.core.errors import Cancelled, SandboxError, SandboxRefused
from longshot_dagster.core.relay_frames import ALIVE, MAX_PAYLOAD, MAX_STREAMS, WINDOW, Frame, Frames, Kind, credit
from longshot_dagster.core.sandbox import Capabilities, ExecResult, Sandbox, SandboxSpec
from longshot_dagster.core.settings import Isolation

ASKING = r"""
import os, socket, sys, threading
path, count, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
stalled = socket.socket(socket.AF_UNIX)
stalled.connect(path)
stalled.sendall(b"pour\n")
right = []
def ask():
    data = os.urandom(size)
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(path)
        sending = threading.Thread(target=one.sendall, args=(b"echo\n" + data,))
        sending.start()
        got = bytearray()
        while len(got) < size and (piece := one.recv(1 << 16)):
            got += piece
        sending.join()
        one.shutdown(socket.SHUT_WR)
        right.append(got == data and one.recv(1) == b"")
threads = [threading.Thread(target=ask) for _ in range(count)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(right.count(True))
"""

ONCE = r"""
import socket, sys
with socket.socket(socket.AF_UNIX) as one:
    one.connect(sys.argv[1])
    one.sendall(b"echo\nhello")
    print(one.recv(5).decode())
"""


class _Answers(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        try:
            word = self.request.recv(5)
            while word == b"echo\n" and (data := self.request.recv(1 << 16)):
                self.request.sendall(data)
            while word == b"pour\n":
                self.request.sendall(b"z" * 65_536)
        except OSError:
            pass


class Gateway(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 128


@pytest.fixture
def gateway() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="ls-")
    path = f"{folder}/model.sock"
    with Gateway(path, _Answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield path
        server.shutdown()
        thread.join()
    shutil.rmtree(folder)


class Far(LocalProvider):
    """Sandboxes of this host that none of its sockets reaches."""

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, sockets=False)


@pytest.fixture
def far(tmp_path: Path) -> Far:
    return Far(tmp_path / "far", Isolation.AUTO)


@pytest.fixture
def sandbox(far: Far) -> Iterator[Sandbox]:
    made = far.create(SandboxSpec(name="one"))
    yield made
    made.terminate()


def python(sandbox: Sandbox, program: str, *arguments: str) -> str:
    ran = sandbox.exec(["python3", "-I", "-c", program, contract.SOCKET, *arguments], timeout_s=60)
    return ran.stdout.decode().strip() or ran.stderr.decode()[-500:]


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def until(true: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)


# --- honest sandboxes ------------------------------------------------------------------------------------------------


def test_connections_go_both_ways_at_once_and_one_that_is_not_read_holds_up_none(
    far: Far, sandbox: Sandbox, gateway: str
) -> None:
    before = descriptors()
    with way_to_model(far, sandbox, {contract.SOCKET: gateway}, 60):
        assert python(sandbox, ASKING, "12", "700000") == "12"
    until(lambda: descriptors() <= before)
    assert "FileNotFoundError" in python(sandbox, ONCE) or "ConnectionRefused" in python(sandbox, ONCE)


def test_a_relay_that_is_killed_is_started_again(far: Far, sandbox: Sandbox, gateway: str) -> None:
    with way_to_model(far, sandbox, {contract.SOCKET: gateway}, 60):
        assert python(sandbox, ONCE) == "hello"
        sandbox.end_commands()
        until(lambda: python(sandbox, ONCE) == "hello")


def test_without_a_gateway_a_connection_is_closed_and_the_next_one_finds_it_again(
    far: Far, sandbox: Sandbox, gateway: str
) -> None:
    with way_to_model(far, sandbox, {contract.SOCKET: gateway}, 60):
        away = Path(gateway).rename(gateway + ".away")
        assert "hello" not in python(sandbox, ONCE)
        away.rename(gateway)
        assert python(sandbox, ONCE) == "hello"


def test_what_shows_sockets_itself_gets_no_relay(tmp_path: Path, gateway: str) -> None:
    provider = LocalProvider(tmp_path, Isolation.AUTO)
    made = provider.create(SandboxSpec(name="one", sockets={contract.SOCKET: gateway}))
    with way_to_model(provider, made, {contract.SOCKET: gateway}, 60):
        assert python(made, ONCE) == "hello"
        assert not (made.root / contract.RELAY.lstrip("/")).exists()
    made.terminate()


def test_a_sandbox_that_cannot_be_reached_is_told_of_before_anything_is_asked(far: Far, sandbox: Sandbox) -> None:
    sandbox.terminate()
    with pytest.raises(SandboxError), way_to_model(far, sandbox, {contract.SOCKET: "/nowhere"}, 60):
        raise AssertionError("not reached")
    with way_to_model(far, sandbox, {contract.SOCKET: "/nowhere"}, 60, needed=False):
        pass


def test_a_provider_that_can_neither_is_refused_in_one_line() -> None:
    able = Capabilities("vm", frozenset({"none"}), True, True, survives_client=False, live_stdin=False)
    with pytest.raises(SandboxRefused) as refused:
        model_relay.check_reachable("theirs", able)
    assert str(refused.value).startswith("workers in theirs sandboxes would have no way to their model")
    assert "\n" not in str(refused.value)


# --- hostile sandboxes -----------------------------------------------------------------------------------------------


class Hostile:
    """A sandbox whose relay is whatever `speaks(say, hear)` makes of it; every command of it speaks anew."""

    id = "hostile"

    def __init__(self, speaks: Callable[[Callable[[bytes], None], Iterator[bytes]], None]) -> None:
        self._speaks = speaks
        self.started = 0

    def exec(self, argv: Any, *, stdin: Any, on_output: Any, cancelled: Any, **_: Any) -> ExecResult:
        self.started += 1
        over: list[bool] = []

        def run() -> None:
            self._speaks(lambda data: on_output("stdout", data), iter(stdin))
            over.append(True)

        thread = threading.Thread(target=run)
        thread.start()
        while not over:
            if cancelled():
                thread.join()
                raise Cancelled("cancelled")
            time.sleep(0.005)
        thread.join()
        return ExecResult(1, b"", b"it \x1b[31mfailed", False, False, 0.1)


def spoken(hostile: Hostile, gateway: str) -> str:
    """The problem that ends the relay to it."""
    before = descriptors()
    relay = ModelRelay(hostile, contract.SOCKET, gateway, 60)  # type: ignore[arg-type]
    with contextlib.suppress(SandboxError), relay:  # it may be found out before anybody asks for the way
        until(lambda: relay.problem)
    until(lambda: descriptors() <= before)
    return relay.problem


BROKEN = {
    "garbage": b"HTTP/1.1 200 OK\r\n\r\n",
    "a stream twice": Frame(1, Kind.OPEN).encoded * 2,
    "a stream that was never opened": Frame(7, Kind.DATA, b"x").encoded,
    "more than its window": Frame(1, Kind.OPEN).encoded
    + Frame(1, Kind.DATA, b"x" * MAX_PAYLOAD).encoded * (WINDOW // MAX_PAYLOAD + 1),
    "data after its end": b"".join(f.encoded for f in (Frame(1, Kind.OPEN), Frame(1, Kind.EOF)))
    + Frame(1, Kind.DATA, b"x").encoded,
    "more credit than there is": Frame(1, Kind.OPEN).encoded + credit(1, 2**32 - 1).encoded,
    "a flood of streams": b"".join(Frame(n, Kind.OPEN).encoded for n in range(1, 5_000)),
}


@pytest.mark.parametrize("words", BROKEN.values(), ids=BROKEN.keys())
def test_a_sandbox_that_breaks_the_rules_has_no_way_to_the_model_any_more(gateway: str, words: bytes) -> None:
    def speaks(say: Callable[[bytes], None], hear: Iterator[bytes]) -> None:
        say(ALIVE.encoded)
        say(words)
        for _ in hear:
            pass

    hostile = Hostile(speaks)
    assert spoken(hostile, gateway).startswith("the sandbox broke the relay's rules: ")
    assert hostile.started == 1


def test_streams_beyond_the_limit_are_reset_and_the_others_go_on(gateway: str) -> None:
    answers: list[Frame] = []

    def speaks(say: Callable[[bytes], None], hear: Iterator[bytes]) -> None:
        say(ALIVE.encoded + b"".join(Frame(n, Kind.OPEN).encoded for n in range(1, MAX_STREAMS + 4)))
        say(Frame(1, Kind.DATA, b"echo\nhello").encoded)
        reader = Frames()
        for data in hear:
            answers.extend(reader.of(data))
            if any(f.kind is Kind.DATA for f in answers):
                say(b"\xff" * 9)

    spoken(Hostile(speaks), gateway)
    assert {f.stream for f in answers if f.kind is Kind.RESET} == {MAX_STREAMS + n for n in (1, 2, 3)}
    assert [f.payload for f in answers if f.kind is Kind.DATA] == [b"hello"]


def test_one_that_never_listens_is_given_up_in_one_clean_line(gateway: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_relay, "_WAITS_S", (0.0, 0.01, 0.01))
    hostile = Hostile(lambda say, hear: None)
    with pytest.raises(SandboxError) as raised, ModelRelay(hostile, contract.SOCKET, gateway, 60):  # type: ignore[arg-type]
        raise AssertionError("not reached")
    assert hostile.started == 3
    assert "it ended with exit code 1: it " in str(raised.value) and "\x1b" not in str(raised.value)


def test_one_that_is_not_heard_any_more_is_started_again(gateway: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_relay, "_SILENCE_S", 0.1)
    monkeypatch.setattr(model_relay, "_WAITS_S", (0.0,))

    def speaks(say: Callable[[bytes], None], hear: Iterator[bytes]) -> None:
        say(ALIVE.encoded)
        for _ in hear:
            pass

    hostile = Hostile(speaks)
    with ModelRelay(hostile, contract.SOCKET, gateway, 60):  # type: ignore[arg-type]
        until(lambda: hostile.started >= 3)


def test_a_gateway_that_does_not_read_holds_no_more_than_a_window(tmp_path: Path) -> None:
    """And what is said after that much breaks the rules."""
    path = tempfile.mkdtemp(prefix="ls-") + "/model.sock"
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(path)
        deaf.listen()
        granted: list[int] = []

        def speaks(say: Callable[[bytes], None], hear: Iterator[bytes]) -> None:
            say(ALIVE.encoded + Frame(1, Kind.OPEN).encoded)
            sent, reader = 0, Frames()
            while sent < 64 << 20:
                if sent - sum(granted) + MAX_PAYLOAD <= WINDOW:
                    say(Frame(1, Kind.DATA, b"x" * MAX_PAYLOAD).encoded)
                    sent += MAX_PAYLOAD
                    continue
                granted.extend(f.credit for f in reader.of(next(hear, b"")) if f.kind is Kind.CREDIT)
                if sent - sum(granted) + MAX_PAYLOAD > WINDOW:  # nothing is granted any more
                    break
            say(Frame(1, Kind.DATA, b"x" * MAX_PAYLOAD).encoded * 20)
            for _ in hear:
                pass

        problem = spoken(Hostile(speaks), path)
    assert "more bytes than were granted" in problem and sum(granted) < 8 << 20
    shutil.rmtree(Path(path).parent)
