"""What a running command of a local sandbox may use and no kernel limit holds: looked at four times a second, and ended when
it is too much. One thread looks for all commands of this process, and is there only while there are any.

Memory and processes are looked at where control groups cannot be had, used space always. What is looked at can be exceeded
for as long as one look takes: a command that takes memory as fast as it can has about a gigabyte more by then.
"""

import os
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from longshot_dagster.adapters.host.processes import end_tree, start_time

MAX_DISK_BYTES = 10 << 30  # of one sandbox, beside what it shares with others
MAX_FILES = 1_000_000
_LOOK_S = 0.25
_SHARE = 0.1  # of the time that may be spent on measuring
_GRAIN_BYTES, _GRAIN_FILES = 128 << 20, 20_000
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Watched:
    """One running command; `over` says in one line what it had too much of, once it was ended for that."""

    pid: int
    root: Path
    memory_bytes: int | None = None
    processes: int | None = None
    disk_bytes: int = MAX_DISK_BYTES
    files: int = MAX_FILES
    over: str = ""
    started: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.started = start_time(self.pid)

    def end(self, why: str) -> None:
        self.over = why
        end_tree(self.pid, self.started or "")


class LimitWatch:
    """All watched commands of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: list[Watched] = []
        self._thread: threading.Thread | None = None
        self._free: dict[int, tuple[int, int]] = {}  # by device: bytes and files that were free when it was measured
        self._measure_at = 0.0

    def add(self, watched: Watched) -> None:
        with self._lock:
            self._watched.append(watched)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._look, name="limit-watch", daemon=True)
                self._thread.start()

    def remove(self, watched: Watched) -> None:
        with self._lock:
            self._watched.remove(watched)

    def _look(self) -> None:
        while True:
            with self._lock:
                living = [w for w in self._watched if not w.over]
                if not self._watched:
                    self._thread = None
                    return
            began = time.monotonic()
            if any(w.memory_bytes or w.processes for w in living):
                _end_what_is_over(living)
            self._look_at_disks(living)
            time.sleep(max(_LOOK_S, (time.monotonic() - began) / _SHARE))

    def _look_at_disks(self, living: list[Watched]) -> None:
        """Sandboxes are measured only when the disk has become fuller, which costs nothing to see."""
        now = time.monotonic()
        if now < self._measure_at:
            return
        for device, watched in _by_device(living).items():
            free = _free(watched[0].root)
            before = self._free.setdefault(device, free)
            if before[0] - free[0] < _GRAIN_BYTES and before[1] - free[1] < _GRAIN_FILES:
                self._free[device] = (max(before[0], free[0]), max(before[1], free[1]))
                continue
            self._free[device] = free
            for one in watched:
                if _measured(one.root) > one.disk_bytes:
                    one.end(f"more than {one.disk_bytes >> 20:,} MB written")
                elif before[1] - free[1] >= _GRAIN_FILES and _measured(one.root, "--inodes") > one.files:
                    one.end(f"more than {one.files:,} files made")
        self._measure_at = time.monotonic() + (time.monotonic() - now) / _SHARE


WATCH = LimitWatch()


def _by_device(living: list[Watched]) -> dict[int, list[Watched]]:
    found: dict[int, list[Watched]] = {}
    for one in living:
        try:
            found.setdefault(one.root.stat().st_dev, []).append(one)
        except OSError:
            continue
    return found


def _free(path: Path) -> tuple[int, int]:
    try:
        there = os.statvfs(path)
    except OSError:
        return (0, 0)
    return there.f_bavail * there.f_frsize, there.f_ffree


def _measured(root: Path, *what: str) -> int:
    """Bytes below `root`, or the number of files; 0 when that cannot be said."""
    command = ["du", "-sx", *(what or ("--block-size=1",)), "--", str(root)]
    try:
        ran = subprocess.run(command, capture_output=True, timeout=60, check=False)
        return int(ran.stdout.split(b"\t", 1)[0])
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return 0


def _end_what_is_over(living: list[Watched]) -> None:
    """One look at all processes, whoever's they are."""
    below, resident = _processes()
    for one in living:
        tree, waiting = set(), [one.pid]
        while waiting:
            tree.add(pid := waiting.pop())
            waiting += [child for child in below.get(pid, ()) if child not in tree]
        if one.processes and len(tree) > one.processes:
            one.end(f"more than {one.processes:,} processes")
        elif one.memory_bytes and _memory(tree, resident, one.memory_bytes) > one.memory_bytes:
            one.end(f"more than {one.memory_bytes >> 20:,} MB of memory used")


def _memory(tree: set[int], resident: dict[int, int], limit: int) -> int:
    """Bytes that the processes use together. Pages that they share are first counted for each, and only once if need be."""
    used = sum(resident.get(pid, 0) for pid in tree)
    return used if used <= limit else sum(_own_share(pid, resident.get(pid, 0)) for pid in tree)


def _processes() -> tuple[dict[int, list[int]], dict[int, int]]:
    """(children by parent, resident bytes by process)."""
    below: dict[int, list[int]] = {}
    resident: dict[int, int] = {}
    try:
        names = [name for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208
    except OSError:
        return below, resident
    for name in names:
        try:
            with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123 - hundreds of them, four times a second
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        below.setdefault(int(fields[1]), []).append(int(name))
        resident[int(name)] = int(fields[21]) * _PAGE
    return below, resident


def _own_share(pid: int, otherwise: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:  # noqa: PTH123
            lines = file.read().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(b"Pss:"))
    except (OSError, StopIteration, ValueError):
        return otherwise
