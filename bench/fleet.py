"""The fleet bench: what the control plane costs when a thousand workers do next to nothing.

    python bench/fleet.py [--tasks 1000] [--workers 200] [--task-seconds 30] [--compare] [--keep]

bench/README.md says what happens and what the last line, one JSON object, means. Exit code 1: not every task has landed.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fleeting import wire
from fleeting.account import Account
from fleeting.endpoint import FleetModel, path_of
from fleeting.occupancy import Span, busy_share
from fleeting.sandboxes import installed_as_a_package
from fleeting.yardstick import Yardstick
from restoring.loop import Installation, Result, git, make_repository

from longshot_dagster.adapters.ledger.ledger import Ledger
from longshot_dagster.core.errors import LedgerError
from longshot_dagster.core.usage import REHEARSAL_MODEL

THREADED, MULTIPROCESS = "threaded", "multiprocess"
_COMPARED = (20, 20, 1.0)  # tasks, workers, seconds of a task
_LOOK_S = 0.2
_NAMED = ("run", "daemon", "code server", "git and what else is short", "gateway")  # what the target speaks of


@dataclass
class Fleet:
    """The host of the sandboxes while it runs, and what it had seen once it has ended."""

    process: "subprocess.Popen[bytes]"
    spans: list[Span] = field(default_factory=list)
    cpu_s: float = 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="longshot-fleet-"))
    try:
        if given.compare:
            return _compare(given, folder)
        figures = bench(given.executor, given.tasks, given.workers, given.task_seconds, given.requests, folder)
    finally:
        if given.keep:
            print(f"everything is kept in {folder}", flush=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(figures))
    return 0 if figures["done"] == given.tasks else 1


def bench(executor: str, tasks: int, workers: int, task_seconds: float, requests: int, folder: Path) -> dict[str, Any]:
    """The figures of one build in `folder`, an empty one."""
    tree, bare = folder / "first", folder / "repository.git"
    tree.mkdir(parents=True)
    (tree / "README.md").write_text("The beginning.\n", "utf-8")
    make_repository(bare, tree, "The beginning")
    began = time.monotonic()
    with (
        Yardstick() as yardstick,
        FleetModel(tasks) as model,
        Account() as used,
        _host(folder, bare, task_seconds, requests, used) as fleet,
    ):
        installation = Installation(folder, _settings(folder, executor, model.base_url, workers))
        tasks_only = _Tasks(installation, tasks, used)
        try:
            with tasks_only:
                result = installation.build("Add every part", bare)
        finally:
            installation.down()
    figures = _figures(executor, tasks, workers, time.monotonic() - began, result, used, fleet, bare)
    machine = {"yardstick_ms": yardstick.ms, "yardstick_least_ms": yardstick.least_ms}
    return {**figures, "cpu_ms_from_plan_to_landing": tasks_only.cpu_ms, **machine}


class _Tasks:
    """What the tasks alone cost: from the moment the plan is frozen until all of them have landed, or the build is over.

    The start of a stack costs the same with any executor, and twenty tasks are few.
    """

    def __init__(self, installation: Installation, tasks: int, used: Account) -> None:
        self._builds = installation.home.builds
        self._count = tasks
        self._used = used
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="tasks", daemon=True)
        self._marks: list[float] = []  # CPU seconds used at the plan, and at the last landing

    def __enter__(self) -> "_Tasks":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def cpu_ms(self) -> float | None:
        """Of one task; None when the build did not come so far."""
        return round((self._marks[1] - self._marks[0]) * 1000 / self._count, 1) if len(self._marks) == 2 else None

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_S) and len(self._marks) < 2:
            with contextlib.suppress(LedgerError):
                if self._has_come():
                    self._marks.append(self._used.so_far_s())

    def _has_come(self) -> bool:
        found = Ledger(self._builds).builds()
        if not found:
            return False
        ledger = Ledger(self._builds).build(found[-1])
        names = ledger.task_ids()
        if not self._marks:
            return len(names) >= self._count
        landings = [ledger.landing(name) for name in names]
        return all(landing is not None and landing.settled for landing in landings)


def _figures(
    executor: str, tasks: int, workers: int, wall_s: float, result: Result, used: Account, fleet: Fleet, bare: Path
) -> dict[str, Any]:
    there = set(git(bare, "ls-tree", "-r", "--name-only", "main").splitlines())
    done = sum(path_of(n) in there for n in range(1, tasks + 1))
    for left in result.leftovers[:20]:
        print(f"left over: {left}", flush=True)
    share = busy_share(fleet.spans, workers)
    return {
        "tasks": tasks,
        "done": done,
        "executor": executor,
        "wall_s": round(wall_s, 1),
        "cpu_ms_per_task": round(used.total_s * 1000 / tasks, 1),
        "cpu_ms_per_task_named": round(sum(used.cpu_s.get(role, 0.0) for role in _NAMED) * 1000 / tasks, 1),
        "cpu_ms": {role: round(s * 1000 / tasks, 1) for role, s in sorted(used.cpu_s.items(), key=lambda e: -e[1])},
        "workers_cpu_ms": round(fleet.cpu_s * 1000 / tasks, 1),
        "run_peak_rss_mb": round(used.run_peak_mb),
        "stack_peak_rss_mb": round(used.stack_peak_mb),
        "busy_share": None if share is None else round(share, 3),
        "landed": result.landed,
        "iterations": result.iterations,
        "run_processes": used.runs,
        "exit_code": result.exit_code,
    }


def _compare(given: argparse.Namespace, folder: Path) -> int:
    """Both executors in turn, twice: what a task costs with one and with the other."""
    tasks, workers, seconds = _COMPARED
    costs: dict[str, list[float]] = {THREADED: [], MULTIPROCESS: []}
    whole: dict[str, list[float]] = {THREADED: [], MULTIPROCESS: []}
    done = []
    for number in range(2):
        for executor in costs:
            found = bench(executor, tasks, workers, seconds, given.requests, folder / f"{executor}-{number}")
            print(json.dumps(found), flush=True)
            if found["cpu_ms_from_plan_to_landing"] is None:
                print(f"{executor}: not every task has landed, so there is nothing to compare", file=sys.stderr)
                return 1
            costs[executor].append(found["cpu_ms_from_plan_to_landing"])
            whole[executor].append(found["cpu_ms_per_task"])
            done.append(found["done"])
    figures = {"cpu_ms_from_plan_to_landing": costs, "cpu_ms_per_task": whole}
    print(
        json.dumps({"tasks": tasks, "done": min(done), **figures, "ratio": _ratio(costs), "ratio_whole": _ratio(whole)})
    )
    return 0 if min(done) == tasks else 1


def _ratio(costs: dict[str, list[float]]) -> float:
    return round(sum(costs[MULTIPROCESS]) / sum(costs[THREADED]), 1)


@contextlib.contextmanager
def _host(folder: Path, bare: Path, task_seconds: float, requests: int, used: Account) -> Iterator[Fleet]:
    log = folder / "worked.json"
    argv = [sys.executable, "-m", "fleeting.host", "--socket", str(_socket(folder)), "--repository", str(bare)]
    argv += ["--task-seconds", str(task_seconds), "--requests", str(requests), "--log", str(log)]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent)}
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, env=environ)
    used.leave_out.add(process.pid)
    fleet = Fleet(process)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise RuntimeError("the host of the sandboxes does not start")
        yield fleet
    finally:
        process.send_signal(signal.SIGTERM)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.stdout is not None:
            process.stdout.close()
        fleet.cpu_s = usage.ru_utime + usage.ru_stime
        used.spare(fleet.cpu_s)
    fleet.spans = [Span(w["began"], w["ended"]) for w in json.loads(log.read_text("utf-8")) if w["ended"] is not None]


def _settings(folder: Path, executor: str, base_url: str, workers: int) -> dict[str, str]:
    return {
        "LLM_BASE_URL": base_url,
        "LLM_API_KEY": "fleet",
        "LLM_MODEL": REHEARSAL_MODEL,
        "MAX_WORKERS": str(workers),
        "MAX_TOKENS_PER_BUILD": "0",
        "SANDBOX_PROVIDER": "fleet",
        "LONGSHOT_EXECUTOR": executor,
        "PYTHONPATH": installed_as_a_package(folder / "site"),
        wire.VARIABLE: str(_socket(folder)),
        **dict.fromkeys(("CHECK_INSTALL", "CHECK_COMPILE", "CHECK_TYPES", "CHECK_LINT", "CHECK_TEST"), "none"),
    }


def _socket(folder: Path) -> Path:
    return folder / "fleet.sock"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", type=int, default=1000, metavar="N", help="of one plan (default 1000)")
    parser.add_argument("--workers", type=int, default=200, metavar="N", help="MAX_WORKERS (default 200)")
    parser.add_argument("--task-seconds", type=float, default=30.0, metavar="S", help="a worker takes (default 30)")
    parser.add_argument("--requests", type=int, default=1, metavar="N", help="of a worker to the model (default 1)")
    parser.add_argument("--executor", choices=(THREADED, MULTIPROCESS), default=THREADED)
    parser.add_argument("--compare", action="store_true", help="20 tasks with either executor, twice in turn, instead")
    parser.add_argument("--keep", action="store_true", help="keep the folder with everything in it")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
