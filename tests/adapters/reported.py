"""Builds as a ledger holds them after an eventful day, for tests of what is said about them."""

import hashlib
from pathlib import Path
from random import Random

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.ledger import BuildLedger, Ledger
from longshot_dagster.core.ids import IterationKey, task_id
from longshot_dagster.core.landing_records import Concern, ConcernKind, LandingOutcome, LandingState
from longshot_dagster.core.models import (
    BuildPhase,
    BuildReport,
    BuildRequest,
    CheckName,
    CheckResult,
    CheckStatus,
    Handoff,
    HandoffMetrics,
    HandoffStatus,
    Plan,
    Sweep,
    Target,
    TargetKind,
    Task,
    WorkerRun,
)
from longshot_dagster.core.report import make_report
from longshot_dagster.core.settings import Origin, Settings

BUILD = "todo-api-7f3k"
BEGAN = 1_790_000_000.0
HOSTILE = '[/bold] \x1b[31m\u202e</title></svg><script>alert(1)</script><img src="http://x.example/graphql"> | `a` "\'&'


def oid(text: object) -> str:
    return hashlib.sha1(str(text).encode()).hexdigest()


def request(url: str = "/srv/git/todo.git", base: str = oid("base")) -> BuildRequest:
    return BuildRequest(
        build=BUILD,
        request="Build a REST API according to SPEC.md",
        target=Target(repository=url, url=url, kind=TargetKind.REMOTE, base_branch="main", branch="main"),
        base=base,
        settings=Settings(max_workers=12),
        origins={"max_workers": Origin.FLAG},
        created_at=BEGAN,
    )


def check(name: CheckName, status: CheckStatus, output: str = "") -> CheckResult:
    return CheckResult(name=name, command=f"make {name.value}", status=status, output=output, duration_ms=2_300)


class Reported:
    """A ledger, written fact by fact; every fact moves the clock on."""

    def __init__(self, home: Path, asked: BuildRequest | None = None) -> None:
        self.home = Home(home)
        self.request = asked or request()
        self.ledger: BuildLedger = Ledger(self.home.builds).build(self.request.build)
        self.ledger.save_request(self.request)
        self.at = self.request.created_at

    def plan(self, key: str, *titles: str, took_s: float = 30, **more: object) -> list[Task]:
        planner, number = key.rsplit(".", 1)
        iteration = IterationKey(self.request.build, planner, int(number))
        tasks = [
            Task(
                id=task_id(iteration, n),
                build=self.request.build,
                iteration=iteration.short,
                planner=planner,
                description=title,
                acceptance="make test",
                scope=(f"src/{iteration.short}/{n}.py",),
                branch=f"worker/{self.request.build}/{task_id(iteration, n)}",
                **{k: v for k, v in more.items() if k == "delegated"},
            )
            for n, title in enumerate(titles, 1)
        ]
        self.at += took_s
        plan = Plan(
            iteration=iteration.short,
            tasks=tuple(tasks),
            base=self.request.base,
            tokens=12_000,
            duration_ms=int(took_s * 1000),
            planned_at=self.at,
        )
        self.ledger.open_iteration(iteration)
        self.ledger.freeze_plan(iteration, plan)
        return tasks

    def worked(
        self,
        task: Task,
        start: float,
        seconds: float,
        status: HandoffStatus = HandoffStatus.COMPLETE,
        summary: str = "",
    ) -> None:
        """`start` is after the build's beginning."""
        began = self.request.created_at + start
        red = CheckStatus.GREEN if status is HandoffStatus.COMPLETE else CheckStatus.RED
        run = WorkerRun(
            task=task.id,
            provider="local",
            harness="builtin",
            harness_status="completed",
            base=self.request.base,
            head=oid(task.id),
            checks=(check(CheckName.COMPILE, CheckStatus.GREEN), check(CheckName.TEST, red)),
            tokens_in=9_000,
            tokens_out=1_000,
            started_at=began,
            ended_at=began + seconds,
        )
        self.ledger.save_run(run)
        metrics = HandoffMetrics(lines_added=40, duration_ms=int(seconds * 1000), tokens_used=10_000)
        self.ledger.save_handoff(
            Handoff(task_id=task.id, status=status, summary=summary or "Done as asked.", metrics=metrics)
        )
        self.at = max(self.at, began + seconds)

    def landed(self, task: Task, after: float, state: LandingState = LandingState.LANDED, **more: object) -> None:
        """`after` its worker ended."""
        run = self.ledger.run(task.id)
        assert run is not None
        queued = LandingOutcome(task=task.id, state=LandingState.QUEUED, history=((LandingState.QUEUED, run.ended_at),))
        commits = (oid(f"landed {task.id}"),) if state is LandingState.LANDED else ()
        facts = {"commits": commits, "landed_paths": task.scope if commits else (), "source": run.head, **more}
        self.ledger.save_landing(queued.moved(state, run.ended_at + after, **facts))
        self.at = max(self.at, run.ended_at + after)

    def swept(self, *statuses: CheckStatus, output: str = "", head: str = "") -> Sweep:
        names = (CheckName.COMPILE, CheckName.TEST, CheckName.LINT)
        sweep = Sweep(
            number=len(self.ledger.sweeps()) + 1,
            head=head or oid("head"),
            checks=tuple(check(n, s, output) for n, s in zip(names, statuses, strict=False)),
            started_at=self.at + 2,
            ended_at=self.at + 22,
        )
        self.ledger.save_sweep(sweep)
        self.at = sweep.ended_at
        return sweep

    def finished(self) -> BuildReport:
        ledger = self.ledger
        names = ledger.task_ids()
        sweeps = ledger.sweeps()
        report = make_report(
            self.request,
            tasks=[ledger.existing_task(t) for t in names],
            handoffs={t: h for t in names if (h := ledger.handoff(t))},
            landings={t: o for t in names if (o := ledger.landing(t))},
            runs=[r for r in map(ledger.run, names) if r],
            plans=[p for p in map(ledger.plan, ledger.iterations()) if p],
            sweep=sweeps[-1] if sweeps else None,
            head=oid("head"),
            finalization_attempts=0,
            now=self.at,
        )
        ledger.save_report(report)
        ledger.update_state(lambda s: s.moved(BuildPhase.FINALIZING))
        ledger.update_state(lambda s: s.moved(BuildPhase.FINISHED, verdict=report.verdict))
        return report


def eventful(home: Path, *, finish: bool = True) -> Reported:
    """Eight tasks in three rounds: landed, in conflict and fixed, withheld with its tests red, nothing to land, unfinished."""
    build = Reported(home)
    one, two, three, four = build.plan("root.001", "Users", "Sessions\n\nWith a token.", "Orders", "Schema")
    build.worked(one, 32, 240)
    build.landed(one, 4)
    build.worked(two, 33, 300)
    concern = Concern(kind=ConcernKind.OUT_OF_SCOPE, text="belongs to task r001-01", path="src/users.py")
    build.landed(two, 6, withheld_paths=("src/users.py",), concerns=(concern,))
    build.worked(three, 33, 200)
    build.landed(three, 9, LandingState.CONFLICT, reason="conflicts in src/app.py with r001-01")
    build.worked(four, 34, 90, summary=HOSTILE)
    build.landed(four, 2, LandingState.NOOP, reason="nothing was committed")
    build.swept(CheckStatus.GREEN, CheckStatus.RED, output="FAILED test_orders - 3 != 1")
    [fix] = build.plan("fix.001", "Orders again, on what is there now", took_s=0)
    build.worked(fix, 380, 120)
    build.landed(fix, 3)
    found = build.ledger.landing(three.id)
    assert found is not None
    build.ledger.save_landing(found.moved(LandingState.SUPERSEDED, build.at, superseded_by=fix.id))
    five, six = build.plan("root.002", HOSTILE, "Rate limits", took_s=20)
    build.worked(five, 560, 400, HandoffStatus.PARTIAL, "The tests are red.")
    build.landed(five, 2, LandingState.WITHHELD, reason="the handoff is partial")
    if finish:
        build.worked(six, 560, 250)
        build.landed(six, 5)
    build.swept(CheckStatus.GREEN, CheckStatus.GREEN, CheckStatus.SKIPPED)
    if finish:
        build.finished()
    return build


def large(home: Path, tasks: int, workers: int) -> Reported:
    """As many tasks, on so many workers at once, in rounds of 50."""
    chance, build = Random(1), Reported(home)
    free = [30.0] * workers
    for number in range(-(-tasks // 50)):
        for task in build.plan(f"root.{number + 1:03d}", *[f"Module {number}-{n}" for n in range(50)], took_s=5):
            slot = free.index(min(free))
            seconds = chance.uniform(60, 600)
            complete = chance.random() > 0.1
            build.worked(task, free[slot], seconds, HandoffStatus.COMPLETE if complete else HandoffStatus.FAILED)
            build.landed(
                task, 3, LandingState.LANDED if complete else LandingState.WITHHELD, reason="" if complete else "failed"
            )
            free[slot] += seconds + 2
    build.swept(CheckStatus.GREEN, CheckStatus.GREEN)
    build.finished()
    return build
