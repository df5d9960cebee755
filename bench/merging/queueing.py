"""The product's landing queue on a workload of its own: branches handed in as bundles, a ledger, a mirror, real pushes."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from restoring.loop import git

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.landing.queue import LandingQueue
from longshot_dagster.adapters.ledger.ledger import Ledger
from longshot_dagster.adapters.repository.mirror import Mirror
from longshot_dagster.adapters.repository.targets import prepare_target, resolve_target
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.landing_records import LandingOutcome
from longshot_dagster.core.models import BuildRequest, Handoff, HandoffStatus, Plan, Task, TaskKind, WorkerRun
from longshot_dagster.core.settings import Settings
from merging.workload import Workload

BUILD = "landing-bench-0001"


class Ours:
    """One build whose tasks are the workload's branches."""

    def __init__(self, folder: Path, workload: Workload, strategy: str) -> None:
        self.origin = folder / "origin.git"
        git(folder, "init", "-q", "--bare", "-b", "main", str(self.origin))
        git(self.origin, "fetch", "-q", str(workload.repository), "main:main")
        settings = Settings(merge_strategy=strategy)
        target = resolve_target(str(self.origin), settings, BUILD, "main")
        clock, home = SystemClock(), Home(folder / "home")
        self._request = BuildRequest(
            build=BUILD,
            request="Land them",
            target=target,
            base=prepare_target(target, clock),
            settings=settings,
            created_at=clock.now(),
        )
        self.ledger = Ledger(home.builds).build(BUILD)
        self.ledger.save_request(self._request)
        self.mirror = Mirror(home, target)
        self.mirror.fetch()
        self._queue = LandingQueue(self.ledger, self._request, self.mirror, clock)
        self._source = workload
        self._iterations = 0
        self.tasks: dict[str, str] = {}  # branch -> task

    def bundles(self, branches: Sequence[str]) -> dict[str, bytes]:
        """What each worker's sandbox would hand out. Not ours to account for: it happens in there."""
        return {name: _bundle(self._source, self._source.branches[name]) for name in branches}

    def planned(self, branches: Sequence[str]) -> None:
        """One iteration with a task for each of `branches`; nothing of it is landing."""
        self._iterations += 1
        key = IterationKey(BUILD, "root", self._iterations)
        tasks = []
        for number, name in enumerate(branches, 1):
            task = self.tasks[name] = f"r{self._iterations:03d}-{number:02d}"
            tasks.append(
                Task(
                    id=task,
                    build=BUILD,
                    scope=("src/",),
                    branch=f"worker/{task}",
                    description=f"Do {name}",
                    iteration=key.short,
                    planner="root",
                    kind=TaskKind.PLAN,
                )
            )
        self.ledger.open_iteration(key)
        self.ledger.freeze_plan(key, Plan(iteration=key.short, tasks=tuple(tasks), base=self._request.base))
        self._queue.checkpoint()  # as after every plan

    def handed_in(self, bundles: Mapping[str, bytes]) -> None:
        """Every guard an incoming bundle meets, and the worker's documents."""
        for name, bundle in bundles.items():
            task, base = self.tasks[name], self._source.base
            head = self.mirror.intake(BUILD, task, base, bundle)
            run = WorkerRun(
                task=task,
                provider="local",
                harness="builtin",
                harness_status="completed",
                base=base,
                head=head,
                started_at=1,
                ended_at=2,
            )
            self.ledger.save_run(run)
            self.ledger.save_handoff(Handoff(task_id=task, status=HandoffStatus.COMPLETE, summary=f"{name} is done"))

    def land(self, branches: Sequence[str]) -> dict[str, LandingOutcome]:
        """Everything that is handed in, with one push; the outcomes of `branches`."""
        outcomes = {o.task: o for o in self._queue.drain()}
        return {name: outcomes[self.tasks[name]] for name in branches}

    def order(self, branches: Sequence[str]) -> list[str]:
        """`branches` as they have landed, then those that have not: the queue chooses whom it takes first."""
        listed = git(
            self.origin,
            "log",
            "--first-parent",
            "--reverse",
            "--format=%(trailers:key=Longshot-Task,valueonly)",
            "main",
        )
        places = {task: place for place, task in enumerate(listed.split())}  # its last commit's, of several
        return sorted(branches, key=lambda name: places.get(self.tasks[name], len(listed)))

    def tree(self) -> str:
        return git(self.origin, "rev-parse", "main^{tree}")


def _bundle(workload: Workload, tip: str) -> bytes:
    revisions = f"{tip}\n^{workload.base}\n".encode()
    options = ("--revs", "--thin", "--stdout", "--delta-base-offset", "-q")
    argv = ["git", "-C", str(workload.repository), "pack-objects", *options]
    packed = subprocess.run(argv, input=revisions, capture_output=True, check=True)
    return f"# v2 git bundle\n-{workload.base}\n{tip} refs/heads/work\n\n".encode() + packed.stdout
