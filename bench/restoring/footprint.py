"""What everything below this process uses: CPU seconds by kind of process, and the peak of their resident memory.

Linux only. A sampler reads /proc ten times a second. What is too short to be seen, a git command of a few milliseconds,
is found in what its parent waited for: a parent's account grows by all that its children ever used.
"""

import contextlib
import ctypes
import os
import resource
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from longshot_dagster.adapters.sandboxes.confinement import ROOT_VARIABLE

Kind = Literal["orchestrator", "agents", "git"]
EVERY_S = 0.1
_PATIENCE_S = 10.0
_PR_SET_CHILD_SUBREAPER = 36
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_MB = os.sysconf("SC_PAGE_SIZE") / (1 << 20)


@dataclass(frozen=True)
class Process:
    """One process at one moment. `own` and `waited` are CPU seconds, of itself and of the children it waited for."""

    parent: int
    started: str
    name: str
    own: float
    waited: float
    rss_mb: float


class Footprint:
    """`with Footprint() as used:`; while it is open, whatever is orphaned below this process becomes its child."""

    def __init__(self) -> None:
        self.cpu_s: dict[Kind, float] = {"orchestrator": 0.0, "agents": 0.0, "git": 0.0}
        self.peak_rss_mb = 0.0
        self.total_s = 0.0  # the kernel's own account of everything that ended; the kinds add up to about this
        self._me = os.getpid()
        self._last: dict[int, Process] = {}
        self._kinds: dict[tuple[int, str], Kind] = {}
        self._seen_first: dict[tuple[int, str], float] = {}  # seen of children that their parent has yet to wait for
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="footprint", daemon=True)

    def __enter__(self) -> Self:
        _adopt_orphans(True)
        self._before = _ended_s()
        self._last = {self._me: _all()[self._me]}
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Waits for what is still ending; call it when everything was told to stop."""
        self._over.set()
        self._thread.join()
        self.count(_below(self._me))
        _reap(time.monotonic() + _PATIENCE_S)
        self.count(_below(self._me))
        self.total_s = _ended_s() - self._before
        _adopt_orphans(False)

    def _watch(self) -> None:
        while not self._over.wait(EVERY_S):
            self.count(_below(self._me))

    def count(self, now: dict[int, Process]) -> None:
        """One look: this process and those below it, by pid. Nothing stands still while it is taken."""
        gone = {pid: p for pid, p in self._last.items() if pid not in now or now[pid].started != p.started}
        for pid, process in now.items():
            before = self._last.get(pid)
            if before is None or before.started != process.started:
                before = None
            kind = self._kind(pid, now)
            if pid != self._me:
                self.cpu_s[kind] += process.own - (before.own if before else 0.0)
            lost = {p: found for p, found in gone.items() if found.parent == pid}
            known = self._seen_first.pop((pid, process.started), 0.0) + sum(_tree(p, gone) for p in lost)
            unseen = process.waited - (before.waited if before else 0.0) - known
            if unseen > 0:
                self.cpu_s[self._unseen(kind, lost)] += unseen
            elif unseen < 0:  # a child ended after its parent was read in this look: its time is still to come
                self._seen_first[(pid, process.started)] = -unseen
        self.peak_rss_mb = max(self.peak_rss_mb, sum(p.rss_mb for pid, p in now.items() if pid != self._me))
        self._last = now

    def _unseen(self, parent: Kind, lost: dict[int, Process]) -> Kind:
        """Whose the CPU time was that a parent learned of only by waiting."""
        kinds = {self._kinds.get((pid, p.started), "orchestrator") for pid, p in lost.items()}
        if parent != "orchestrator":
            return parent
        return "agents" if "agents" in kinds else "orchestrator" if "orchestrator" in kinds else "git"

    def _kind(self, pid: int, now: dict[int, Process]) -> Kind:
        process = now[pid]
        known = self._kinds.get((pid, process.started))
        if known in ("agents", "git"):
            return known
        above = self._kind(process.parent, now) if pid != self._me and process.parent in now else "orchestrator"
        kind: Kind = "orchestrator"
        if above == "agents" or process.name == "bwrap" or (known is None and _unconfined(pid)):
            kind = "agents"
        elif above == "git" or process.name.startswith("git"):
            kind = "git"
        self._kinds[(pid, process.started)] = kind
        return kind


def _tree(pid: int, gone: dict[int, Process]) -> float:
    """What was seen of a process that is gone, with those of its children that are gone too."""
    process = gone[pid]
    return process.own + process.waited + sum(_tree(p, gone) for p, found in gone.items() if found.parent == pid)


def _below(root: int) -> dict[int, Process]:
    """`root` and every process below it."""
    found = _all()
    children: dict[int, list[int]] = {}
    for pid, process in found.items():
        children.setdefault(process.parent, []).append(pid)
    mine, waiting = {}, [root]
    while waiting:
        pid = waiting.pop()
        mine[pid] = found[pid]
        waiting += children.get(pid, ())
    return mine


def _all() -> dict[int, Process]:
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            found[int(folder.name)] = _read((folder / "stat").read_bytes())
    return found


def _read(stat: bytes) -> Process:
    """One line of /proc/PID/stat; proc(5) counts its fields from 1."""
    name, rest = stat[stat.index(b"(") + 1 : stat.rindex(b")")], stat[stat.rindex(b")") + 2 :].split()
    times = [int(ticks) * _TICK_S for ticks in rest[11:15]]
    return Process(
        parent=int(rest[1]),
        started=rest[19].decode(),
        name=name.decode("utf-8", "replace"),
        own=times[0] + times[1],
        waited=times[2] + times[3],
        rss_mb=int(rest[21]) * _PAGE_MB,
    )


def _unconfined(pid: int) -> bool:
    """Was it started for a sandbox without isolation?"""
    with contextlib.suppress(OSError):
        return f"{ROOT_VARIABLE}=".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    return False


def _adopt_orphans(adopt: bool) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0)


def _ended_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _reap(deadline: float) -> None:
    """Wait for every child that has ended or is about to, until none is left."""
    while time.monotonic() < deadline:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            time.sleep(0.02)
