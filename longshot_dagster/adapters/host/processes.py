"""Process trees of this host: who descends from whom, and how to end all of them.

A pid is only ever signalled together with its start time, so that a recycled pid of somebody else is never hit.
"""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

_PROC = Path("/proc")


def start_time(pid: int) -> str | None:
    """When `pid` started, in the kernel's own unit; None when it is gone (a zombie counts as gone)."""
    if not _PROC.joinpath("self").exists():
        return _ps_start_time(pid)
    try:
        fields = (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else fields[19].decode()


def descendants(pid: int) -> list[int]:
    """Every process below `pid`, in no order."""
    parents = _parents()
    found: list[int] = []
    frontier = {pid}
    while frontier:
        frontier = {child for child, parent in parents.items() if parent in frontier} - set(found)
        found += sorted(frontier)
    return found


def carrying(variable: str, value: str) -> list[int]:
    """Processes that were started with `variable=value` in their environment (Linux only; elsewhere none are found)."""
    mark, found = f"{variable}={value}".encode(), []
    for directory in _PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (directory / "environ").read_bytes().split(b"\0"):
                found.append(int(directory.name))
    return found


def environment(pid: int) -> dict[str, str]:
    """What `pid` was started with (Linux only; elsewhere, and of a stranger's process, nothing)."""
    try:
        words = (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    return {name: value for name, found, value in (os.fsdecode(w).partition("=") for w in words) if found}


def end_tree(pid: int, started: str | None, *, patience_s: float = 5.0) -> None:
    """Kill `pid` and everything below it, and wait until all are gone; nothing happens when `started` does not match."""
    if started is None or start_time(pid) != started:
        return
    deadline = time.monotonic() + patience_s
    while True:
        alive = [p for p in (pid, *descendants(pid)) if start_time(p) is not None]
        if not alive or time.monotonic() > deadline:
            return
        # Children first seen now may be adopted by somebody else once their parent is dead: remember and kill them here.
        kill(alive)
        _wait_gone(alive, deadline)


def kill(pids: list[int]) -> None:
    """SIGKILL each of `pids` that still exists."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _wait_gone(pids: list[int], deadline: float) -> None:
    while any(start_time(p) is not None for p in pids) and time.monotonic() < deadline:
        time.sleep(0.005)


def _parents() -> dict[int, int]:
    if not _PROC.joinpath("self").exists():
        listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=False).stdout
        return {int(p): int(pp) for p, pp in (line.split() for line in listing.splitlines() if line.strip())}
    parents = {}
    for directory in _PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            parents[int(directory.name)] = int((directory / "stat").read_bytes().rpartition(b")")[2].split()[1])
    return parents


def _ps_start_time(pid: int) -> str | None:
    argv = ["ps", "-o", "state=,lstart=", "-p", str(pid)]
    answer = subprocess.run(argv, capture_output=True, text=True, check=False).stdout.split()
    return None if not answer or answer[0].startswith("Z") else " ".join(answer[1:])
