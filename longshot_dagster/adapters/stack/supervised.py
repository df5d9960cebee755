"""One process that the supervisor keeps running: how it is started, what is known of its life, and its log.

On Linux it is a fork of the run starter, which has loaded Dagster and the definitions already: no second process imports
them, and most of their memory is shared. Where nobody forks, and elsewhere, an interpreter is started with its command.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

MAX_LOG_BYTES = 8 << 20
KEPT_LOG_BYTES = 1 << 20
STEADY_SECONDS = 30.0  # a process that lived this long starts its back-off anew
MAX_BACKOFF_SECONDS = 30.0
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


class Process(Protocol):
    """What is asked of a child: `subprocess.Popen` has all of it."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self) -> int: ...

    def terminate(self) -> None: ...


class Adopted:
    """A child that somebody else has forked for this process (`adopting` must have been called before)."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._ended: int | None = None

    def poll(self) -> int | None:
        return self._waited(os.WNOHANG)

    def wait(self) -> int:
        ended = self._waited(0)
        return -1 if ended is None else ended

    def terminate(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)

    def _waited(self, options: int) -> int | None:
        if self._ended is None:
            try:
                pid, status = os.waitpid(self.pid, options)
            except ChildProcessError:
                self._ended = -1
            else:
                self._ended = os.waitstatus_to_exitcode(status) if pid else None
        return self._ended


@dataclass
class Service:
    """One supervised process, its command, and what is known of its life."""

    name: str
    argv: list[str]
    log: Path
    process: Process | None = None
    started: float = 0.0
    deaths: int = 0
    not_before: float = 0.0

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def runs_as(self, process: Process) -> None:
        self.process, self.started = process, time.monotonic()

    def died(self, now: float) -> int:
        """Forget the dead process and wait before the next; its exit code."""
        code = self.process.wait() if self.process else 0
        self.deaths = 1 if now - self.started > STEADY_SECONDS else self.deaths + 1
        self.not_before = now + min(MAX_BACKOFF_SECONDS, 0.5 * 2 ** (self.deaths - 1))
        self.process = None
        return code

    def exec(self, cwd: Path, env: Mapping[str, str]) -> None:
        """Start an interpreter with its command."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=cwd,
                env=env,
                start_new_session=True,
                preexec_fn=_dying_with_its_parent(),  # safe: the supervisor has one thread
            )
        self.runs_as(process)

    def end(self) -> None:
        """SIGKILL to it and to all of its session."""
        if self.process:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def bound_log(self) -> None:
        """Keep the end of a log that has grown too long; its writer appends, so it goes on at the new end."""
        with contextlib.suppress(OSError):
            size = self.log.stat().st_size
            if size > MAX_LOG_BYTES:
                with self.log.open("r+b") as file:
                    file.seek(size - KEPT_LOG_BYTES)
                    self.log.with_suffix(".log.1").write_bytes(file.read(KEPT_LOG_BYTES))
                    file.truncate(0)


def adopting(yes: bool) -> bool:
    """Become the parent of whatever is orphaned below this process; False where the kernel has no such thing."""
    if sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0) == 0)


def die_with(parent: int) -> bool:
    """Have this process killed when `parent` dies; False when another one is its parent by now."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent


def bury_orphans(services: list[Service]) -> None:
    """Take the exit codes of adopted processes that nobody asks about: what runs have left behind."""
    ours = {s.process.pid for s in services if s.process}
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid not in ours:
            os.waitpid(ended.si_pid, 0)


def _dying_with_its_parent() -> Callable[[], None]:
    """For the child, between fork and exec: it is killed when the supervisor dies, and SIGINT works again."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a background shell leaves it ignored, and Dagster inherits that
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return prepare
