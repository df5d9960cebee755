"""The ways out of a sandbox that are open on purpose, allowed hosts and the model's relay, and what it may use of the host."""

import contextlib
import functools
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attacks import attack

from longshot_dagster.adapters.sandboxes import egress, limit_watch, model_relay, sandbox_local
from longshot_dagster.adapters.sandboxes.egress import EgressProxy, NotAllowed, reach
from longshot_dagster.adapters.sandboxes.limit_watch import Watched
from longshot_dagster.adapters.sandboxes.sandbox_local import LocalProvider
from longshot_dagster.core import relay_frames
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.relay_frames import MAX_PAYLOAD, WINDOW, Frame, Frames, Kind
from longshot_dagster.core.sandbox import ExecResult, SandboxSpec
from longshot_dagster.core.settings import Isolation

# --- what a sandbox may use ------------------------------------------------------------------------------------------


def ran(folder: Path, code: str, **spec: Any) -> ExecResult:
    made = LocalProvider(folder / "sandboxes", Isolation.AUTO).create(SandboxSpec(name="greedy", **spec))
    try:
        return made.exec(["python3", "-I", "-c", code], timeout_s=30)
    finally:
        made.terminate()


@attack(
    "ASI08",
    "a fork bomb",
    defence="a sandbox has so many processes and no more",
    off="the bound is far away",
)
def test_a_fork_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os, time\nfor n in range(60):\n    if os.fork() == 0:\n        time.sleep(30)\ntime.sleep(WAIT)\nprint('60 more')"

    def explodes(processes: int, wait_s: float) -> bool:
        monkeypatch.setattr(sandbox_local, "MAX_PROCESSES", processes)
        return b"60 more" in ran(tmp_path, code.replace("WAIT", str(wait_s))).stdout

    assert not explodes(20, 20)
    assert explodes(1_000, 0)


@attack(
    "ASI08",
    "take all memory",
    defence="SANDBOX_MEMORY_MB, held by the kernel or by looking often",
    off="no limit is set",
)
def test_all_memory(tmp_path: Path) -> None:
    code = "import time\nx = bytearray(200 << 20)\nfor n in range(0, len(x), 4096): x[n] = 1\ntime.sleep(WAIT)\nprint('mine')"
    assert b"mine" not in ran(tmp_path, code.replace("WAIT", "20"), memory_mb=64).stdout
    assert b"mine" in ran(tmp_path, code.replace("WAIT", "0")).stdout


@attack(
    "ASI08",
    "fill the disk with many files, of which none is too large",
    defence="used space is watched, and the command ended",
    off="the bound is far away",
)
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import time\nfor n in range(6): open(str(n), 'wb').write(b'x' * (4 << 20))\ntime.sleep(WAIT)\nprint('full')"
    monkeypatch.setattr(limit_watch, "_GRAIN_BYTES", 1 << 20)

    def fills(most: int, wait_s: float) -> bool:
        monkeypatch.setattr(sandbox_local, "Watched", functools.partial(Watched, disk_bytes=most))
        return b"full" in ran(tmp_path, code.replace("WAIT", str(wait_s))).stdout

    assert not fills(8 << 20, 20)
    assert fills(1 << 40, 0)


# --- allowed hosts ---------------------------------------------------------------------------------------------------


@pytest.fixture
def service() -> Iterator[int]:
    """Something on this host that no sandbox is to reach; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@attack(
    "ASI02",
    "reach this host, its network or a cloud's metadata by a name that leads there",
    defence="what an allowed name leads to is checked, and just that address is connected to",
    off="every address counts as public",
)
@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "::ffff:127.0.0.1", "10.0.0.1", "169.254.169.254", "100.64.0.1", "64:ff9b::7f00:1", "fd00::1"],
)
def test_a_name_that_leads_home(address: str, service: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[str, int]] = []
    connect = socket.create_connection

    def noted(to: tuple[str, int], timeout_s: float) -> socket.socket:
        tried.append(to)
        return connect(("127.0.0.1", service), timeout_s)

    monkeypatch.setattr(egress.socket, "create_connection", noted)
    with pytest.raises(NotAllowed):
        reach("evil.example", lambda name: [address])
    assert tried == []
    monkeypatch.setattr(egress, "is_public", lambda found: True)
    reach("evil.example", lambda name: [address]).close()
    assert tried == [(address, 443)]


@attack(
    "ASI02",
    "reach other hosts, other ports or plain HTTP through the allowlist's proxy",
    defence="only CONNECT to port 443 of a listed name",
    off="every name is on the list",
)
def test_a_host_that_is_not_listed(tmp_path: Path, service: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(host: str) -> socket.socket:
        return socket.create_connection(("127.0.0.1", service), 5)

    def answer(words: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.settimeout(10)
            line.connect(str(proxy.socket))
            line.sendall(words + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            return line.recv(100).split(b"\r\n")[0]

    with EgressProxy(tmp_path, ("pypi.example",), reached, tmp_path / "egress.jsonl") as proxy:
        for words in (b"CONNECT evil.example:443", b"CONNECT pypi.example:22", b"GET http://pypi.example/"):
            assert b"403" in answer(words)
        assert b"403" in answer(b"CONNECT pypi.example.evil.example:443")
        monkeypatch.setattr(egress, "allowed", lambda host, hosts: True)
        assert b"200" in answer(b"CONNECT evil.example:443")


# --- the relay to the model ------------------------------------------------------------------------------------------


def link() -> model_relay._Link:
    return model_relay._Link("/nowhere/model.sock", lambda: None, SystemClock())


@attack(
    "ASI07",
    "fill our memory through the relay, by a frame without end",
    defence="a frame's length is looked at before its content is kept",
    off="lengths are not looked at",
)
def test_a_frame_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = Frame(1, Kind.DATA, b"").encoded[:-4] + b"\xff\xff\xff\xff" + b"x" * MAX_PAYLOAD * 4

    def keeps() -> int:
        frames = Frames()
        with contextlib.suppress(ValueError):
            list(frames.of(endless))
        kept = len(frames._rest)
        with contextlib.suppress(ValueError):
            list(frames.of(endless))
        return len(frames._rest) - kept

    with pytest.raises(ValueError, match="kind 2 with"):
        list(Frames().of(endless))
    monkeypatch.setattr(relay_frames, "_check", lambda *given: None)
    assert keeps() == len(endless)


@attack(
    "ASI07",
    "fill our memory through the relay, by sending more than was granted",
    defence="whoever sends more than it was granted has no way to the model any more",
    off="a grant without end",
)
def test_more_than_was_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    flood = Frame(1, Kind.OPEN).encoded + Frame(1, Kind.DATA, b"x" * MAX_PAYLOAD).encoded * (WINDOW // MAX_PAYLOAD + 1)

    def broken() -> bool:
        found = link()
        found.hear("stdout", flood)
        found.close()
        return bool(found.broken)

    assert broken()
    monkeypatch.setattr(model_relay, "WINDOW", 1 << 40)
    assert not broken()


@attack(
    "ASI07",
    "speak on a connection of the relay that it never opened",
    defence="streams are opened once, by growing numbers",
    off="any number is taken for one that is over",
)
def test_a_stream_that_was_never_opened() -> None:
    def broken(last: int) -> bool:
        found = link()
        found._last = last
        found.hear("stdout", Frame(7, Kind.DATA, b"x").encoded)
        found.close()
        return bool(found.broken)

    assert broken(0)
    assert not broken(1 << 31)
