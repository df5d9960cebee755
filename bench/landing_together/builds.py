"""Several builds, each in a home of its own as if on a machine of its own, with work that waits to land on one origin."""

from pathlib import Path

from replaying.repository import Objects

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.landing.queue import LandingQueue
from longshot_dagster.adapters.ledger.ledger import Ledger
from longshot_dagster.adapters.repository.mirror import Mirror
from longshot_dagster.adapters.repository.targets import resolve_target
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.ids import IterationKey, task_id
from longshot_dagster.core.models import BuildRequest, Handoff, HandoffStatus, Plan, Task, WorkerRun
from longshot_dagster.core.settings import Settings

PAGE = "page.txt"
_APART = 4  # lines between two branches' own lines of the shared page
_A_PLAN = 90


def page(edits: dict[int, str], branches: int) -> str:
    return "".join(f"{edits.get(n, f'line {n}')}\n" for n in range(branches * _APART))


def first_commit(origin: Path, branches: int) -> str:
    objects = Objects.made(origin)
    base = objects.commit(None, {PAGE: page({}, branches), "README.md": "hello\n"}, "The beginning")
    objects.git.run("update-ref", "refs/heads/main", base)
    return base


def planned(home: Path, origin: Path, build: str, base: str, numbers: range, branches: int) -> None:
    """A build whose tasks have all been handed in; each has changed one line of the shared page and made a file."""
    settings = Settings(merge_strategy="squash")
    target = resolve_target(str(origin), settings, build, None)
    request = BuildRequest(
        build=build, request="land", target=target, base=base, settings=settings, created_at=SystemClock().now()
    )
    ledger = Ledger(Home(home).builds).build(build)
    ledger.save_request(request)
    mirror = Mirror(Home(home), target)
    mirror.fetch()
    objects = Objects(mirror.git)
    tasks = []
    for n in numbers:
        number, position = divmod(n - numbers.start, _A_PLAN)
        name = task_id(IterationKey(build, "root", number + 1), position + 1)
        scope = (PAGE, f"new/{n:04d}.txt")
        task = Task(
            id=name,
            build=build,
            iteration=f"root.{number + 1:03d}",
            planner="root",
            description=f"Write number {n}",
            scope=scope,
            branch=f"worker/{build}/{name}",
        )
        tasks.append(task)
        files = {PAGE: page({n * _APART: f"{build} {name}"}, branches), scope[1]: f"{n}\n"}
        head = objects.commit(base, files, f"Number {n}")
        mirror.git.run("update-ref", f"refs/longshot/work/{build}/{name}", head)
        ledger.save_run(
            WorkerRun(
                task=name,
                provider="local",
                harness="builtin",
                harness_status="completed",
                base=base,
                head=head,
                started_at=1,
                ended_at=2,
            )
        )
        ledger.save_handoff(Handoff(task_id=name, status=HandoffStatus.COMPLETE, summary=f"{n} is written"))
    for number in range(0, len(tasks), _A_PLAN):
        key = IterationKey(build, "root", number // _A_PLAN + 1)
        ledger.open_iteration(key)
        ledger.freeze_plan(key, Plan(iteration=key.short, tasks=tuple(tasks[number : number + _A_PLAN]), base=base))


def queue_of(home: Path, build: str) -> LandingQueue:
    ledger = Ledger(Home(home).builds).build(build)
    request = ledger.request()
    return LandingQueue(ledger, request, Mirror(Home(home), request.target), SystemClock())
