"""Running one command of an agent or a check: bounded output, bounded time, and nothing of it left afterwards."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import time
from dataclasses import dataclass

_adopting = False


@dataclass(frozen=True)
class Ran:
    """`ended` is `exit`, `timeout` or `silence`; `code` is 124 unless it is `exit`. `output` is both streams, clipped."""

    code: int
    output: str
    ended: str
    duration_s: float


def adopt_orphans() -> None:
    """Become the parent of every process whose parent dies, so that a daemonised one can be found and ended (Linux)."""
    global _adopting
    try:
        _adopting = ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER
    except (OSError, AttributeError):
        _adopting = False


def run(
    argv: list[str],
    cwd: str,
    timeout_s: float,
    keep: int = 30_000,
    silence_s: float = 0,
    env: dict[str, str] | None = None,
) -> Ran:
    """Run `argv` to its end, for at most `timeout_s`, or until it has said nothing for `silence_s` (0: any time).

    What it leaves in the background ends with it. Raises OSError when it cannot be started.
    """
    began = time.monotonic()
    process = subprocess.Popen(
        argv,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    clip = Clip(keep)
    try:
        ended = _attend(process, process.stdout.fileno(), clip, began + timeout_s, silence_s)
    finally:
        end_tree(process.pid)
        process.wait()
        process.stdout.close()
        reap()
    code = 124 if ended != "exit" else process.returncode if process.returncode >= 0 else 128 - process.returncode
    return Ran(code, clip.text(), ended, time.monotonic() - began)


def _attend(process: subprocess.Popen, pipe: int, clip: Clip, deadline: float, silence_s: float) -> str:
    heard = time.monotonic()
    while True:
        readable, _, _ = select.select([pipe], [], [], 0.05)
        data = os.read(pipe, 1 << 16) if readable else b""
        now = time.monotonic()
        if data:
            clip.add(data)
            heard = now
        elif process.poll() is not None:
            return "exit"  # a background process may hold the pipe open for ever; it ends with its command
        elif readable:
            time.sleep(0.02)  # it closed its streams and runs on
        if now > deadline:
            return "timeout"
        if silence_s and now - heard > silence_s:
            return "silence"


class Clip:
    """Keeps the first and the last half of `keep` bytes and says how much was between them."""

    def __init__(self, keep: int) -> None:
        self._half = keep // 2
        self._head = bytearray()
        self._tail = bytearray()
        self._total = 0

    def add(self, data: bytes) -> None:
        self._total += len(data)
        room = self._half - len(self._head)
        self._head += data[:room]
        self._tail += data[max(room, 0) :]
        if len(self._tail) > self._half:
            del self._tail[: len(self._tail) - self._half]

    def text(self) -> str:
        cut = self._total - len(self._head) - len(self._tail)
        middle = f"\n[... {cut:,} bytes cut ...]\n" if cut else ""
        if not cut:
            return bytes(self._head + self._tail).decode("utf-8", "replace")
        return self._head.decode("utf-8", "replace") + middle + self._tail.decode("utf-8", "replace")


def clipped(text: str, keep: int = 30_000) -> str:
    """`text` with its middle cut out when it is longer than `keep` characters."""
    if len(text) <= keep:
        return text
    half = keep // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half:,} characters cut ...]\n{text[-half:]}"


def end_tree(pid: int) -> None:
    """Kill the process group of `pid` and everything below it; when orphans are adopted, also what it daemonised."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except OSError:
        pass
    for _ in range(100):
        left = _below(os.getpid() if _adopting else pid)
        if not left:
            return
        for child in left:
            try:
                os.kill(child, signal.SIGKILL)
            except OSError:
                pass
        time.sleep(0.01)


def _below(pid: int) -> set[int]:
    """Living descendants of `pid`."""
    parents, living = {}, set()
    try:
        names = os.listdir("/proc")
    except OSError:
        return set()
    for name in names:
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    rest = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            parents[int(name)] = int(rest[1])
            if rest[0] != b"Z":
                living.add(int(name))
    found, frontier = set(), {pid}
    while frontier:
        frontier = {child for child, parent in parents.items() if parent in frontier} - found
        found |= frontier
    return found & living


def reap() -> None:
    """Take in adopted processes that have ended."""
    try:
        while _adopting and os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
