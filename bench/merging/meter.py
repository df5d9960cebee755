"""Wall and CPU seconds of a stretch of work, with the git processes that go on living after it. Linux only."""

import contextlib
import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self


@dataclass
class Used:
    wall_s: float = 0.0
    cpu_s: float = 0.0

    def __add__(self, other: "Used") -> "Used":
        return Used(self.wall_s + other.wall_s, self.cpu_s + other.cpu_s)


class Meter:
    """`with Meter() as used:`; this process, what it waited for, and its children that are still alive."""

    def __init__(self) -> None:
        self.used = Used()

    def __enter__(self) -> Self:
        self._before = time.monotonic(), _cpu_s()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        wall, cpu = self._before
        self.used = Used(time.monotonic() - wall, _cpu_s() - cpu)


def _cpu_s() -> float:
    ended = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in ended) + sum(map(_living_s, _children()))


def _children() -> list[str]:
    found: list[str] = []
    for file in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
            found += file.read_text(encoding="ascii").split()
    return found


def _living_s(pid: str) -> float:
    """To the nanosecond, where /proc/PID/stat counts ticks of ten milliseconds; these have one thread."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0]) / 1e9
    except OSError:
        return 0.0
