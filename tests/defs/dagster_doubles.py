"""A build whose model, sandboxes and git are scripted: doubles that write the same ledger as the real ones."""

import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.ledger import BuildLedger, Ledger
from longshot_dagster.core.errors import Cancelled
from longshot_dagster.core.ids import IterationKey, task_id
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import (
    BuildRequest,
    CheckName,
    CheckResult,
    CheckStatus,
    Handoff,
    HandoffMetrics,
    HandoffStatus,
    Plan,
    RepoState,
    Sweep,
    Target,
    TargetKind,
    Task,
    TaskKind,
    WorkerRun,
)
from longshot_dagster.core.settings import Settings
from longshot_dagster.defs import sensors
from longshot_dagster.defs.building import start_build
from longshot_dagster.defs.executor import threaded_executor
from longshot_dagster.defs.finalize import build_report, finalize_build
from longshot_dagster.defs.io_manager import JsonIOManager, LedgerIOManager
from longshot_dagster.defs.iteration import iteration, planning_iteration
from longshot_dagster.defs.resources import BuildTools, LongshotResource
from longshot_dagster.defs.task_result import task_result

BUILD = "toy-0001"
Planned = Sequence[str] | Exception  # one scope per task, or what the planner raises


def instance_config(directory: Path) -> dict[str, object]:
    """Overrides of an instance whose databases lie below `directory`, configured as ours is."""
    stores = {
        "event_log_storage": ("longshot_dagster.defs.event_storage", "KeptSqliteEventLogStorage"),
        "run_storage": ("longshot_dagster.defs.kept_storages", "KeptSqliteRunStorage"),
        "schedule_storage": ("longshot_dagster.defs.kept_storages", "KeptSqliteScheduleStorage"),
    }
    return {
        **{
            kind: {"module": module, "class": name, "config": {"base_dir": str(directory / kind)}}
            for kind, (module, name) in stores.items()
        },
        "compute_logs": {
            "module": "dagster._core.storage.noop_compute_log_manager",
            "class": "NoOpComputeLogManager",
        },
        "concurrency": {"pools": {"granularity": "op"}},
        "run_retries": {"enabled": True, "max_retries": 3, "retry_on_asset_or_op_failure": False},
        "telemetry": {"enabled": False},
        "python_logs": {"python_log_level": "INFO"},
    }


@dataclass
class Script:
    """What the doubles do, and what they were asked."""

    plans: Mapping[str, Planned] = field(default_factory=dict)  # by short iteration key; absent: nothing more to do
    statuses: Mapping[str, HandoffStatus] = field(default_factory=dict)
    worker_raises: Mapping[str, Exception] = field(default_factory=dict)
    conflicts: frozenset[str] = frozenset()
    merges_by_now: frozenset[str] = frozenset()  # of those in conflict
    kind: TaskKind = TaskKind.PLAN
    waits_for_cancel: bool = False
    check: CheckStatus = CheckStatus.GREEN
    replaces: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # task -> tasks it supersedes by landing
    exclusive: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    works_until: Mapping[str, Callable[["Script"], bool]] = field(default_factory=dict)  # by task, looked at for 30 s
    working: threading.Event = field(default_factory=threading.Event)
    planned: list[str] = field(default_factory=list)
    worked: list[str] = field(default_factory=list)
    landed: list[str] = field(default_factory=list)
    in_order: list[str] = field(default_factory=list)  # `begins TASK` and `lands TASK`
    swept: list[str] = field(default_factory=list)


SCRIPTS: dict[str, Script] = {}


def oid(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


class ScriptedTools(BuildTools):
    def __init__(self, home: Home, build: str) -> None:
        super().__init__(home, build)
        self.script = SCRIPTS[str(home.root)]

    @property
    def mirror(self) -> Any:
        return self

    @property
    def planner(self) -> Any:
        return self

    @property
    def worker(self) -> Any:
        return self

    @property
    def landing(self) -> Any:
        return self

    def fetch(self, within_s: float = 0.0) -> str:
        return oid(f"main after {len(self.script.landed)}")

    def repo_state(self, head: str) -> RepoState:
        return RepoState(head=head, branch="main", files=1, tree=("SPEC.md",), log=())

    def plan(self, key: IterationKey, state: RepoState, view: Any) -> Plan:
        self.script.planned.append(key.short)
        wanted = self.script.plans.get(key.short, ())
        if isinstance(wanted, Exception):
            raise wanted
        tasks = tuple(
            Task(
                id=task_id(key, n),
                build=key.build,
                iteration=key.short,
                planner=key.planner,
                description=f"write {scope}",
                scope=(scope,),
                branch=f"worker/{key.build}/{task_id(key, n)}",
                replaces=self.script.replaces.get(task_id(key, n), ()),
                kind=self.script.kind,
                exclusive=self.script.exclusive.get(task_id(key, n), ()),
            )
            for n, scope in enumerate(wanted, 1)
        )
        seen = tuple(t.id for t in view.tasks if t.handoff is not None)
        return Plan(iteration=key.short, tasks=tasks, base=state.head, handoffs_seen=seen)

    def run(self, task: Task, cancelled: Callable[[], bool]) -> Handoff:
        if earlier := self.ledger.handoff(task.id):
            return earlier
        self.script.worked.append(task.id)
        self.script.in_order.append(f"begins {task.id}")
        self.script.working.set()
        done, give_up_at = self.script.works_until.get(task.id, lambda _: True), time.monotonic() + 30
        while not done(self.script) and time.monotonic() < give_up_at:
            threading.Event().wait(0.01)
        while self.script.waits_for_cancel:
            if cancelled():
                raise Cancelled("asked to stop")
            threading.Event().wait(0.01)
        if error := self.script.worker_raises.get(task.id):
            raise error
        run = WorkerRun(
            task=task.id,
            provider="scripted",
            harness="scripted",
            harness_status="completed",
            base=self.fetch(),
            started_at=1,
            ended_at=2,
        )
        handoff = Handoff(
            task_id=task.id,
            status=self.script.statuses.get(task.id, HandoffStatus.COMPLETE),
            summary=f"wrote {task.scope[0]} <img src=x> [/bold]",
            diff="+hello\n```\n![x](http://x)",
            files_changed=list(task.scope),
            metrics=HandoffMetrics(tokens_used=10),
        )
        self.ledger.save_run(run)
        self.ledger.save_handoff(handoff)
        return handoff

    def land(self, task: Task) -> LandingOutcome:
        handoff = self.ledger.handoff(task.id)
        assert handoff is not None
        earlier = self.ledger.landing(task.id)
        if earlier and earlier.settled:
            return earlier
        self.script.in_order.append(f"lands {task.id}")
        state = LandingState.LANDED
        if handoff.status is not HandoffStatus.COMPLETE:
            state = LandingState.WITHHELD
        elif task.id in self.script.conflicts:
            state = LandingState.CONFLICT
        elif (run := self.ledger.run(task.id)) and run.harness == "none":
            state = LandingState.NOOP
        else:
            self.script.landed.append(task.id)
        queued = LandingOutcome(task=task.id, state=LandingState.QUEUED)
        outcome = queued.moved(state, self.clock.now(), landed_paths=tuple(task.scope))
        self.ledger.save_landing(outcome)
        for name in task.replaces if state is LandingState.LANDED else ():
            replaced = self.ledger.landing(name)
            assert replaced is not None
            changes = {"superseded_by": task.id}
            self.ledger.save_landing(replaced.moved(LandingState.SUPERSEDED, self.clock.now(), **changes))
        return outcome

    def look_again(self, *tasks: str) -> list[LandingOutcome | None]:
        for name in self.script.merges_by_now.intersection(tasks):
            outcome = self.ledger.landing(name)
            if outcome is not None and outcome.state is LandingState.CONFLICT:
                now = self.clock.now()
                self.ledger.save_landing(outcome.moved(LandingState.QUEUED, now).moved(LandingState.LANDED, now))
        return [self.ledger.landing(name) for name in tasks]

    def forget_work(self, build: str, tasks: Sequence[str]) -> None:
        pass

    def checkpoint(self) -> str | None:
        return None

    def drain(self) -> list[LandingOutcome]:
        waiting = [t for t in self.ledger.task_ids() if self.ledger.handoff(t) and not self.ledger.landing(t)]
        return [self.land(self.ledger.existing_task(t)) for t in waiting]

    def sweep(self, head: str, number: int, iteration: str, cancelled: Callable[[], bool]) -> Sweep:
        self.script.swept.append(head)
        check = CheckResult(name=CheckName.TEST, command="make test", status=self.script.check)
        now = self.clock.now()
        return Sweep(number=number, head=head, iteration=iteration, checks=(check,), started_at=now, ended_at=now)


class ScriptedLongshot(LongshotResource):
    def make_tools(self, build: str) -> BuildTools:
        return ScriptedTools(self.installation(), build)


def definitions(home: str) -> dg.Definitions:
    """Ours, with the doubles in their one seam."""
    return dg.Definitions(
        assets=[iteration, task_result, build_report],
        jobs=[start_build, planning_iteration, finalize_build],
        sensors=sensors.ALL,
        resources={
            "longshot": ScriptedLongshot(home=home),
            "ledger": LedgerIOManager(home=home),
            "io_manager": JsonIOManager(home=home),
        },
        executor=threaded_executor,
    )


def job(home: str, name: str) -> dg.JobDefinition:
    return definitions(home).resolve_job_def(name)


def begin(home: Home, script: Script, **settings: Any) -> BuildLedger:
    """A build that has just been started, with root.001 open."""
    SCRIPTS[str(home.root)] = script
    ledger = Ledger(home.builds).build(BUILD)
    ledger.save_request(
        BuildRequest(
            build=BUILD,
            request="Build a toy",
            target=Target(
                repository="toy.git", url="toy.git", kind=TargetKind.REMOTE, base_branch="main", branch="main"
            ),
            base=oid("main after 0"),
            settings=Settings(**settings),
            created_at=1.0,
            rehearsal=True,
        )
    )
    ledger.open_iteration(IterationKey(BUILD, "root", 1))
    return ledger


def fresh(home: Home) -> BuildLedger:
    """The build's ledger as another process would read it."""
    return Ledger(home.builds).existing(BUILD)
