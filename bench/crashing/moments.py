"""Catching a build at a moment: a planner is being asked, workers start, a document is half written, a push is under way,
main is swept. What is caught is frozen (SIGSTOP) until it is let go, so that the kill finds it as it was seen."""

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from crashing.endpoint import Endpoint
from crashing.installation import Installation, Repository, Runs
from crashing.watching import Watch
from longshot_dagster.adapters.ledger.ledger import BuildLedger

REPLANS_AFTER = 3  # handoffs, and the root planner is asked again
PHASES = ("plan", "dispatch", "ledger write", "push", "sweep")
_TEMPORARY = re.compile(r"\.(?P<name>[a-z_]+\.json)\.[\w-]+")
_NUDGE_S = 10.0  # without the moment: let more work finish
_PLANS_S = 40.0  # from handoffs to the planner's next round on a machine that is busy
_STOCK = 5  # workers more than have to be at work, so that some can finish


@dataclass
class Caught:
    """A moment. `iteration` is whose it is, `run` the run in whose process; `frozen` are stopped pids."""

    what: str
    iteration: str = ""
    run: str = ""
    pid: int = 0
    frozen: list[int] = field(default_factory=list)
    push: list[int] = field(default_factory=list)  # git's processes

    def thaw(self) -> None:
        for pid in self.frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.frozen = []


@dataclass
class Moments:
    """Waits for one phase after the other in one build; lets work finish as far as that takes."""

    installation: Installation
    repository: Repository
    endpoint: Endpoint
    ledger: BuildLedger
    runs: Runs
    flight: int  # tasks that have to be at work
    _brought: tuple[int, float] = (0, 0.0)  # planning rounds so far, and when, as work was last let finish for one

    def catch(self, phase: str, patience_s: float, stage: str = "before") -> Caught | None:
        """None when it did not come within `patience_s`."""
        until = time.monotonic() + patience_s
        match phase:
            case "plan":
                return self._plan(until)
            case "dispatch":
                return self._dispatch(until)
            case "ledger write":
                return self._write(until)
            case "push":
                return self._push(until, stage)
        return self._sweep(until)

    def nudge(self, few: int) -> None:
        """Let the oldest workers finish, as many as leave enough at work."""
        at_work = self.endpoint.in_flight()
        self.endpoint.let_go(at_work[: max(0, min(few, len(at_work) - self.flight))])

    def bring_plans(self) -> None:
        """Let so much of the root planner's own work finish that it is asked again; not anew while that is still to come."""
        now, rounds = time.monotonic(), self.endpoint.rounds
        if rounds == self._brought[0] and now - self._brought[1] < _PLANS_S:
            return
        self._brought = (rounds, now)
        self.endpoint.let_go([t for t in self.endpoint.in_flight() if t.startswith("r")][:REPLANS_AFTER])

    def stocked(self, until: float) -> bool:
        """Wait until workers enough are at work; while items are left, a planner that gets handoffs brings more of them."""
        due = 0.0
        while (now := time.monotonic()) < until and self.installation.exit_code is None:
            at_work = self.endpoint.in_flight()
            if len(at_work) >= self.flight + (_STOCK if self.endpoint.left else 1):
                return True
            if self.endpoint.left and len(at_work) > REPLANS_AFTER and now >= due:
                self.bring_plans()
                due = now + 3 * _NUDGE_S
            time.sleep(0.2)
        return self._busy()

    # --- phases ------------------------------------------------------------------------------------------------------

    def _plan(self, until: float) -> Caught | None:
        self.endpoint.plans_held = True
        for _ in self._nudging(until, self.bring_plans):
            if not (asked := [r for r in self.endpoint.planning() if self.runs.of(r)]):
                time.sleep(0.05)
                continue
            if caught := self._of(f"the planner of {asked[-1]} is being asked", asked[-1]):
                return caught
        return None

    def _dispatch(self, until: float) -> Caught | None:
        with Watch() as watch:
            self._watch_tasks(watch)
            for _ in self._nudging(until, self.bring_plans):
                for path in watch.made(0.05):
                    if path.parent.name == "tasks":
                        watch.add(path)
                    elif path.name == "live.jsonl" and (
                        caught := self._of(f"{path.parent.name} starts", self.iteration_of(path.parent.name))
                    ):
                        return caught
        return None

    def _write(self, until: float) -> Caught | None:
        with Watch() as watch:
            self._watch_tasks(watch)
            for name in ("iterations", "sweeps"):
                watch.add(self.folder / name)
            for iteration in (self.folder / "iterations").iterdir():
                watch.add(iteration)
            for _ in self._nudging(until, partial(self.nudge, 1)):
                for path in watch.made(0.05):
                    if path.is_dir():
                        watch.add(path)
                    elif (written := _TEMPORARY.fullmatch(path.name)) and (caught := self._half_written(path)):
                        caught.what = f"{path.parent.name}/{written['name']} is half written"
                        return caught
        return None

    def _half_written(self, path: Path) -> Caught | None:
        """Freeze every run; the one that has `path` open, or whose task or iteration it is about, if it is still there."""
        stopped = self._freeze()
        if path.exists():
            about = path.parent.name if path.parent.parent.name == "iterations" else self.iteration_of(path.parent.name)
            opener = next((pid for pid in stopped if _has_open(pid, path)), 0)
            run, pid = (self.runs.by_pid(opener), opener) if opener else self.runs.of(about) or ("", 0)
            if pid and self._busy():
                return Caught("", self.runs.iteration(run) or about, run, pid, stopped)
        Caught("", frozen=stopped).thaw()
        return None

    def _push(self, until: float, stage: str) -> Caught | None:
        self.repository.stall(stage)
        try:
            with Watch() as watch:
                watch.add(self.repository.opened)
                for _ in self._nudging(until, partial(self.nudge, 1)):
                    if watch.made(0.05) and (caught := self._pushing(stage)):
                        return caught
        finally:
            self.repository.stall("")
        return None

    def _pushing(self, stage: str) -> Caught | None:
        parents = _parents()
        pushing = [pid for pid in parents if _is_push(pid)]
        for run, pid in self.runs.living.items():
            mine = [p for p in pushing if pid in _above(p, parents)]
            if mine and self._busy():
                os.kill(pid, signal.SIGSTOP)
                what = f"a push of {self.runs.iteration(run)}, {stage} main has moved"
                return Caught(what, self.runs.iteration(run), run, pid, [pid], mine)
        return None

    def _sweep(self, until: float) -> Caught | None:
        with Watch() as watch:
            sandboxes = self.installation.home.sandboxes
            watch.add(sandboxes)
            for _ in self._nudging(until, self._finish_an_iteration):
                for folder in {p for p in watch.made(0.05) if p.name.startswith("sb-")}:
                    watch.add(folder)
                for meta in sandboxes.glob("sb-*/meta.json"):
                    iteration = _swept_for(meta)
                    if iteration and (caught := self._of(f"main is swept for {iteration}", iteration)):
                        if meta.exists():
                            return caught
                        caught.thaw()
        return None

    def _finish_an_iteration(self) -> None:
        """Let all workers of the smallest living iteration finish, if enough others are at work."""
        at_work = self.endpoint.in_flight()
        by_iteration: dict[str, list[str]] = {}
        for task in at_work:
            by_iteration.setdefault(self.iteration_of(task), []).append(task)
        smallest = min(by_iteration.values(), key=len, default=[])
        if len(at_work) - len(smallest) >= self.flight:
            self.endpoint.let_go(smallest)
        else:
            self.nudge(REPLANS_AFTER)

    # --- plumbing ----------------------------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        return self.installation.home.builds / self.ledger.build

    def _nudging(self, until: float, nudge: Callable[[], None]) -> Iterator[None]:
        """Looks until `until`; now and then more work is let finish."""
        due = time.monotonic()
        while (now := time.monotonic()) < until:
            if now >= due:
                nudge()
                due = now + _NUDGE_S
            yield

    def _busy(self) -> bool:
        return len(self.endpoint.in_flight()) >= self.flight

    def _watch_tasks(self, watch: Watch) -> None:
        watch.add(self.folder / "tasks")
        for folder in (self.folder / "tasks").iterdir():
            watch.add(folder)

    def _of(self, what: str, iteration: str) -> Caught | None:
        """The moment of `iteration`, its run frozen; None when no run of it lives, or too few workers are at work."""
        found = self.runs.of(iteration)
        if found is None or not self._busy():
            return None
        run, pid = found
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            return Caught(what, iteration, run, pid, [pid])
        return None

    def iteration_of(self, task: str) -> str:
        found = self.ledger.task(task) if re.fullmatch(r"[rf][\d-]+", task) else None
        return found.iteration if found else ""

    def _freeze(self) -> list[int]:
        stopped = []
        for pid in self.runs.living.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                stopped.append(pid)
        return stopped


def _has_open(pid: int, path: Path) -> bool:
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if entry.readlink() == path:
                    return True
    return False


def _swept_for(meta: Path) -> str:
    """The iteration whose sweep runs in a sandbox; empty when none does."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        tags = json.loads(meta.read_bytes())["tags"]
        return str(tags["iteration"]) if "sweep" in tags else ""
    return ""


def _parents() -> dict[int, int]:
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            found[int(folder.name)] = int((folder / "stat").read_bytes().rpartition(b")")[2].split()[1])
    return found


def _above(pid: int, parents: dict[int, int]) -> list[int]:
    found = []
    while pid := parents.get(pid, 0):
        found.append(pid)
    return found


def _is_push(pid: int) -> bool:
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return words[0].rpartition(b"/")[2] == b"git" and b"push" in words
    return False
