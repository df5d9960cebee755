"""What every process of a stack has used, by its role: CPU seconds and resident memory. Linux only.

The total is the kernel's own: this process adopts whatever is orphaned below it and waits for all of it, and what it has
waited for is in its account, with everything those had waited for. A sampler reads /proc five times a second to say whose
it was; what was too short to be seen, git above all, is the difference.
"""

import contextlib
import ctypes
import os
import resource
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

EVERY_S = 0.2
_UNSURE = 5  # looks: between fork and exec, or until it says what it is, a process is called what its parent is
_PATIENCE_S = 20.0
_PR_SET_CHILD_SUBREAPER = 36
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_ROLES = {
    "longshot_dagster.adapters.stack.supervisor": "supervisor",
    "longshot_dagster.defs.webserver": "webserver",
    "longshot_dagster.defs.daemon": "daemon",
    "dagster._daemon": "daemon",
    "longshot_dagster.adapters.gateway.gateway": "gateway",
    "longshot_dagster.adapters.stack.run_starter": "run starter",
    "longshot_dagster.cli.main": "command",
    "grpc": "code server",
}
_PARENTS_OF_RUNS = ("code server", "run starter", "run")
SHORT = "git and what else is short"


@dataclass
class Seen:
    """One process as last seen; memory in MB, `peak` the kernel's own mark."""

    role: str
    parent: int
    cpu_s: float = 0.0
    rss: float = 0.0
    peak: float = 0.0
    looks: int = 0


@dataclass
class Account:
    """`with Account() as used:`; `leave_out` are processes, such as the fleet's host, that are no part of the stack."""

    cpu_s: dict[str, float] = field(default_factory=dict)
    total_s: float = 0.0
    run_peak_mb: float = 0.0
    stack_peak_mb: float = 0.0
    runs: int = 0
    leave_out: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._me = os.getpid()
        self._spared = 0.0
        self._seen: dict[tuple[int, str], Seen] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="account", daemon=True)

    def __enter__(self) -> Self:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._before = _ended_s()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Waits for what is still ending; by then everything has been told to stop."""
        self._look()
        _reap(time.monotonic() + _PATIENCE_S, self.leave_out)
        self._over.set()
        self._thread.join()
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        self.total_s = _ended_s() - self._before - self._spared
        for seen in self._seen.values():
            if seen.role != SHORT:
                self.cpu_s[seen.role] = self.cpu_s.get(seen.role, 0.0) + seen.cpu_s
        self.cpu_s[SHORT] = max(0.0, self.total_s - sum(self.cpu_s.values()))
        runs = [seen for seen in self._seen.values() if seen.role == "run"]
        self.runs, self.run_peak_mb = len(runs), max((run.peak for run in runs), default=0.0)

    def so_far_s(self) -> float:
        """CPU seconds until now, of what lives with all that it has waited for, and of what has ended."""
        stats = _below(self._me, self.leave_out).values()
        living = sum(int(stat[at]) for stat in stats for at in (11, 12, 13, 14)) * _TICK_S
        return living + _ended_s() - self._before - self._spared

    def spare(self, seconds: float) -> None:
        """CPU of a child that was left out and has been waited for: it is in the kernel's account."""
        self._spared += seconds

    def _watch(self) -> None:
        while not self._over.wait(EVERY_S):
            self._look()

    def _look(self) -> None:
        found = _below(self._me, self.leave_out)
        whose = {pid: (pid, stat[19].decode()) for pid, stat in found.items()}
        for pid, stat in found.items():
            seen = self._seen.get(whose[pid])
            if seen is None or (seen.looks < _UNSURE and stat[0] != b"Z"):
                above = self._seen.get(whose.get(int(stat[1]), (0, "")))
                looks = seen.looks + 1 if seen else 1
                seen = self._seen[whose[pid]] = Seen(_role(pid, above), int(stat[1]), looks=looks)
            seen.cpu_s = (int(stat[11]) + int(stat[12])) * _TICK_S
            seen.rss, seen.peak = _memory(pid, seen)
        now = sum(self._seen[key].rss for key in whose.values())
        self.stack_peak_mb = max(self.stack_peak_mb, now)


def _role(pid: int, above: Seen | None) -> str:
    with contextlib.suppress(OSError):
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if not Path(argv[0].decode()).name.startswith("python"):
            return SHORT
        role = next((_ROLES[word] for word in (w.decode("utf-8", "replace") for w in argv) if word in _ROLES), "")
        # A run is started by the code server, or is a fork of the run starter and called as that is.
        if above is not None and above.role in _PARENTS_OF_RUNS:
            return "run"
        return role or "other"
    return SHORT


def _memory(pid: int, before: Seen) -> tuple[float, float]:
    with contextlib.suppress(OSError, ValueError, KeyError):  # gone, or a zombie
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines())
        return (int(lines["VmRSS"].split()[0]) / 1024, int(lines["VmHWM"].split()[0]) / 1024)
    return 0.0, before.peak


def _below(root: int, leave_out: set[int]) -> dict[int, list[bytes]]:
    """Every process below `root` with the fields of its /proc/PID/stat that follow its name."""
    stats: dict[int, list[bytes]] = {}
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - five times a second, and paths are costly
        if name.isdigit() and int(name) not in leave_out:
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{name}/stat").read_bytes()
                stats[int(name)] = fields = stat[stat.rindex(b")") + 2 :].split()
                children.setdefault(int(fields[1]), []).append(int(name))
    found: dict[int, list[bytes]] = {}
    waiting = children.get(root, [])
    while waiting:
        pid = waiting.pop()
        found[pid] = stats[pid]
        waiting += children.get(pid, ())
    return found


def _ended_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _reap(deadline: float, leave_out: set[int]) -> None:
    """Wait for every child that has ended or is about to, until only those that are left out remain."""
    while time.monotonic() < deadline:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None:
            if set(_below(os.getpid(), set())) <= leave_out:
                return
            time.sleep(0.05)
        elif found.si_pid not in leave_out:
            os.waitpid(found.si_pid, 0)
