"""The recorded run through the product's own landing queue: fresh bases, scopes held to, one fix for each conflict."""

import heapq
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.landing.queue import LandingQueue
from longshot_dagster.adapters.ledger.ledger import Ledger
from longshot_dagster.adapters.repository.mirror import Mirror
from longshot_dagster.adapters.repository.targets import prepare_target, resolve_target
from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.ids import FIX, IterationKey, task_id
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import BuildRequest, Handoff, HandoffStatus, Plan, Task, WorkerRun
from longshot_dagster.core.planning import TaskReport, conflict_fix
from longshot_dagster.core.settings import Settings
from replaying.contents import edits
from replaying.record import Job, Record
from replaying.repository import Objects

BUILD = "a-replay-7f3k"
REPLAN_S = 5.0  # from a conflict to its fix task's start, at least


class SimulatedClock:
    """Time is where the record is; nobody waits."""

    def __init__(self) -> None:
        self.at = 0.0

    def now(self) -> float:
        return 1.7e9 + self.at

    def monotonic(self) -> float:
        return self.at

    def sleep(self, seconds: float) -> None:
        self.at += max(0.0, seconds)


@dataclass
class Figures:
    landed: set[str] = field(default_factory=set)  # jobs whose in-scope paths are all on main
    fix_worker_s: float = 0.0
    worker_s: float = 0.0
    land_s: list[float] = field(default_factory=list)  # measured, from handoff to landing
    dropped: list[str] = field(default_factory=list)  # `<task>: <path>` of what nobody accounts for
    conflicts: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Working:
    """A worker who is about to begin, or, once it has a base, who is under way."""

    job: Job
    task: Task
    worker_s: float
    attempt: int = 0  # 1: redoes what did not merge
    base: str = ""


class Replay:
    """One run of the record through the queue, in simulated time."""

    def __init__(self, record: Record, seed: int, folder: Path, files: dict[str, str]) -> None:
        self.record, self.seed = record, seed
        self.clock, self.figures = SimulatedClock(), Figures()
        self.chance = Random(f"{seed}/fixes")
        origin = Objects.made(folder / "origin.git")
        origin.git.run("update-ref", "refs/heads/main", origin.commit(None, files, "scaffold"))
        settings, home = Settings(merge_strategy="squash"), Home(folder / "home")
        target = resolve_target(str(folder / "origin.git"), settings, BUILD, None)
        base = prepare_target(target, self.clock)
        self.request = BuildRequest(
            build=BUILD, request="replay", target=target, base=base, settings=settings, created_at=1.7e9
        )
        self.ledger = Ledger(home.builds).build(BUILD)
        self.ledger.save_request(self.request)
        self.mirror = Mirror(home, target)
        self.objects = Objects(self.mirror.git)
        self.queue = LandingQueue(self.ledger, self.request, self.mirror, self.clock)
        self._fixes = 0
        self._waiting: list[tuple[float, int, Working]] = []
        self._came = 0

    def run(self) -> Figures:
        """Everything begins and ends when the record says; conflicts bring fixes of their own."""
        self._plan("root", 1, tuple(self._task(n, job) for n, job in enumerate(self.record.jobs, 1)))
        while self._waiting:
            at, _, what = heapq.heappop(self._waiting)
            self.clock.at = max(self.clock.at, at)
            if what.base:
                self._hand_in(what)
            else:
                took_s = what.worker_s if what.attempt else what.job.ended_s - what.job.began_s
                self._later(took_s, replace(what, base=self.mirror.fetch()))
        return self.figures

    def _later(self, seconds: float, what: Working) -> None:
        self._came += 1
        heapq.heappush(self._waiting, (self.clock.at + seconds, self._came, what))

    def _plan(self, planner: str, number: int, tasks: tuple[Task, ...]) -> None:
        key = IterationKey(BUILD, planner, number)
        self.ledger.open_iteration(key)
        self.ledger.freeze_plan(key, Plan(iteration=key.short, tasks=tasks, base=self.request.base))

    def _task(self, number: int, job: Job) -> Task:
        name = task_id(IterationKey(BUILD, "root", 1), number)
        task = Task(
            id=name,
            build=BUILD,
            iteration="root.001",
            planner="root",
            description=f"Do {job.id}",
            scope=job.scope,
            priority=job.priority,
            branch=f"worker/{name}",
        )
        self._later(job.began_s, Working(job, task, job.worker_s))
        return task

    def _hand_in(self, done: Working) -> None:
        job, task = done.job, done.task
        changed = edits(job, self.record.jobs, self.seed, lambda path: self._text(done.base, path), done.attempt)
        if done.attempt:  # told to redo the task, and nothing else, with everything at hand
            changed = {path: text for path, text in changed.items() if path in task.scope}
        head = self.objects.commit(done.base, changed, job.id)
        self.figures.worker_s += done.worker_s
        self.figures.fix_worker_s += done.worker_s if done.attempt else 0.0
        began, ended = self.clock.now() - done.worker_s, self.clock.now()
        self.ledger.save_run(
            WorkerRun(
                task=task.id,
                provider="local",
                harness="builtin",
                harness_status="completed",
                base=done.base,
                head=head,
                started_at=began,
                ended_at=ended,
            )
        )
        files = sorted(changed)
        self.ledger.save_handoff(
            Handoff(task_id=task.id, status=HandoffStatus.COMPLETE, summary=job.id, files_changed=files)
        )
        since = time.perf_counter()
        outcome = self.queue.land(task)
        self.figures.land_s.append(time.perf_counter() - since)
        self._judge(done, outcome, changed, head)

    def _judge(self, done: Working, outcome: LandingOutcome, changed: dict[str, str], head: str) -> None:
        job, task = done.job, done.task
        main = self.mirror.fetch()
        self.figures.dropped += [f"{job.id}: {p}" for p in unaccounted(outcome, changed, head, main, self.objects)]
        if outcome.state is LandingState.CONFLICT:
            self.figures.conflicts.append(job.id)
            if not done.attempt:  # a fix is never fixed again
                self._fix(job, task, outcome)
        elif set(job.scope) & changed.keys() <= {p for p in changed if _there(p, outcome, head, main, self.objects)}:
            self.figures.landed.add(job.id)

    def _fix(self, job: Job, task: Task, outcome: LandingOutcome) -> None:
        self._fixes += 1
        key = IterationKey(BUILD, FIX, self._fixes)
        report = TaskReport(task, self.ledger.handoff(task.id), outcome)
        fix = conflict_fix(report, {}, key, self.request, 1)
        self._plan(FIX, self._fixes, (fix,))
        self._later(REPLAN_S, Working(job, fix, self.chance.choice(self.record.fix_s), 1))

    def _text(self, base: str, path: str) -> str | None:
        try:
            return self.mirror.read_file(base, path)
        except WrongUse:
            return None


def unaccounted(
    outcome: LandingOutcome, changed: Sequence[str] | dict[str, str], head: str, main: str, objects: Objects
) -> list[str]:
    """Changed paths that are neither on main, nor withheld with a concern, nor part of a branch that is named as a whole."""
    if outcome.state in (LandingState.CONFLICT, LandingState.WITHHELD) and outcome.reason:
        return []
    named = {concern.path for concern in outcome.concerns}
    withheld = set(outcome.withheld_paths) & named
    return [p for p in changed if p not in withheld and not _there(p, outcome, head, main, objects)]


def _there(path: str, outcome: LandingOutcome, head: str, main: str, objects: Objects) -> bool:
    """Has it landed, or did main hold just that already?"""
    landed = outcome.state in (LandingState.LANDED, LandingState.SUPERSEDED) and path in outcome.landed_paths
    return landed or objects.blob(main, path) == objects.blob(head, path)
