"""The lock file workload: twelve tasks that each add a dependency to package.json and bring a package-lock.json of their own.

Everything is offline: the dependencies are folders of the repository (`file:`). A worker's lock file is npm's own, made in
its own clone, so any two of them exclude each other. The last line is one JSON object; exit code 0 when all have landed and
`npm ci --offline` installs what main holds.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.landing.lock_files import LockFiles
from longshot_dagster.adapters.landing.queue import LandingQueue
from longshot_dagster.adapters.ledger.ledger import Ledger
from longshot_dagster.adapters.repository.mirror import Mirror
from longshot_dagster.adapters.repository.targets import prepare_target, resolve_target
from longshot_dagster.adapters.sandboxes.providers import make_provider
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import BuildRequest, Handoff, HandoffStatus, Plan, Task, TaskKind, WorkerRun
from longshot_dagster.core.settings import Settings

TASKS = 12
BATCH = 4  # handed in at once, so that lock files are made anew three times
LOCK_ONLY = ("npm", "install", "--package-lock-only", "--ignore-scripts", "--offline", "--no-audit", "--no-fund")

_BUILD = "lock-files-0001"
_WHO = ("-c", "user.name=A Worker", "-c", "user.email=worker@example.invalid")


def main(folder: Path) -> int:
    """The whole workload in `folder`, an empty one."""
    if shutil.which("npm") is None:
        print("npm is not installed", file=sys.stderr)
        return 1
    began = time.monotonic()
    place = _Place(folder)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        bundles = list(threads.map(place.worked, range(TASKS)))
    locks = {lock for _, lock in bundles}
    outcomes: dict[str, LandingOutcome] = {}
    batches, landing_s = 0, 0.0
    for begin in range(0, TASKS, BATCH):
        place.handed_in({n: bundles[n][0] for n in range(begin, begin + BATCH)})
        started = time.monotonic()
        outcomes |= {o.task: o for o in place.queue.drain()}
        batches, landing_s = batches + 1, landing_s + time.monotonic() - started
        print(f"  {begin + BATCH} handed in, {len(outcomes)} settled", file=sys.stderr)
    figures = place.judged() | {
        "workload": "lockfiles",
        "tasks": TASKS,
        "landed": sum(o.state is LandingState.LANDED for o in outcomes.values()),
        "workers_lock_files": len(locks),
        "conflicts_resolved": sum(r.rung == "json" for o in outcomes.values() for r in o.resolutions),
        "batches": batches,
        "landing_s": round(landing_s, 2),
        "wall_s": round(time.monotonic() - began, 1),
    }
    well = figures["landed"] == TASKS and all(figures[k] for k in ("npm_ci", "lock_file_consistent", "all_installed"))
    print(json.dumps({**figures, "well": well}))
    return 0 if well else 1


class _Place:
    """A repository with twelve packages that nothing depends on yet, and one build on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._origin = folder / "origin.git"
        first = folder / "first"
        _git(folder, "init", "-q", "-b", "main", str(first))
        _write(first / "package.json", {"name": "bench", "version": "1.0.0", "private": True, "dependencies": {}})
        for number in range(TASKS):
            lib = first / "libs" / _name(number)
            _write(lib / "package.json", {"name": _name(number), "version": "1.0.0", "main": "index.js"})
            (lib / "index.js").write_text(f"module.exports = {number};\n", encoding="utf-8")
        _run(first, *LOCK_ONLY)
        _git(first, "add", "-A")
        _git(first, "commit", "-q", "-m", "Twelve packages")
        _git(folder, "clone", "-q", "--bare", str(first), str(self._origin))
        settings, clock = Settings(), SystemClock()
        target = resolve_target(str(self._origin), settings, _BUILD, "main")
        self._base = prepare_target(target, clock)
        home = Home(folder / "home")
        request = BuildRequest(
            build=_BUILD,
            request="Use them all",
            target=target,
            base=self._base,
            settings=settings,
            created_at=clock.now(),
        )
        self._ledger = Ledger(home.builds).build(_BUILD)
        self._ledger.save_request(request)
        self._mirror = Mirror(home, target)
        self._mirror.fetch()
        locks = LockFiles(lambda: make_provider(settings, {}, home)[0], request)
        self.queue = LandingQueue(self._ledger, request, self._mirror, clock, locks=locks)
        self._iterations = 0

    def worked(self, number: int) -> tuple[bytes, str]:
        """What task `number`'s sandbox would hand out: a bundle; and the lock file in it."""
        work, name = self.folder / f"worker-{number}", _name(number)
        _git(self.folder, "clone", "-q", str(self._origin), str(work))
        package = json.loads((work / "package.json").read_text(encoding="utf-8"))
        package["dependencies"][name] = f"file:libs/{name}"
        _write(work / "package.json", package)
        _run(work, *LOCK_ONLY)
        (work / "src").mkdir()
        (work / "src" / f"{name}.js").write_text(f'console.log(require("{name}"));\n', encoding="utf-8")
        _git(work, "add", "-A")
        _git(work, "commit", "-q", "-m", f"Use {name}")
        _git(work, "branch", "-m", "work")
        _git(work, "bundle", "create", "-q", "out.bundle", f"{self._base}..work")
        return (work / "out.bundle").read_bytes(), (work / "package-lock.json").read_text(encoding="utf-8")

    def handed_in(self, bundles: dict[int, bytes]) -> None:
        self._iterations += 1
        key = IterationKey(_BUILD, "root", self._iterations)
        tasks = {number: _task(key, number, place) for place, number in enumerate(bundles, 1)}
        self._ledger.open_iteration(key)
        self._ledger.freeze_plan(key, Plan(iteration=key.short, tasks=tuple(tasks.values()), base=self._base))
        for number, bundle in bundles.items():
            task = tasks[number].id
            head = self._mirror.intake(_BUILD, task, self._base, bundle)
            self._ledger.save_run(
                WorkerRun(
                    task=task,
                    provider="local",
                    harness="builtin",
                    harness_status="completed",
                    base=self._base,
                    head=head,
                    started_at=1,
                    ended_at=2,
                )
            )
            self._ledger.save_handoff(Handoff(task_id=task, status=HandoffStatus.COMPLETE, summary="done"))

    def judged(self) -> dict[str, object]:
        """Whether main, as a person would clone it, installs; and whether npm finds nothing to change in its lock file."""
        clone = self.folder / "clone"
        _git(self.folder, "clone", "-q", str(self._origin), str(clone))
        locks = [p for p in _git(clone, "ls-files").splitlines() if p.endswith("package-lock.json")]
        installed = _ran(clone, "npm", "ci", "--offline", "--ignore-scripts", "--no-audit", "--no-fund") == 0
        used = all(_ran(clone, "node", f"src/{_name(n)}.js") == 0 for n in range(TASKS))
        _ran(clone, *LOCK_ONLY)
        consistent = len(locks) == 1 and not _git(clone, "status", "--porcelain", "--", "package-lock.json")
        return {"npm_ci": installed, "all_installed": used, "lock_file_consistent": consistent}


def _task(key: IterationKey, number: int, place: int) -> Task:
    name = f"r{key.number:03d}-{place:02d}"
    return Task(
        id=name,
        build=_BUILD,
        scope=("package.json", f"src/{_name(number)}.js"),
        branch=f"worker/{name}",
        description=f"Use {_name(number)}",
        iteration=key.short,
        planner="root",
        kind=TaskKind.PLAN,
    )


def _name(number: int) -> str:
    return f"dep-{number:02d}"


def _write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _git(where: Path, *args: str) -> str:
    return _run(where, "git", *_WHO, *args)


def _run(where: Path, *argv: str) -> str:
    return subprocess.run(argv, cwd=where, check=True, capture_output=True, text=True).stdout


def _ran(where: Path, *argv: str) -> int:
    return subprocess.run(argv, cwd=where, check=False, capture_output=True).returncode
