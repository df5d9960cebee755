"""Two builds on one bare repository at once: real git, real ledgers, real sensors; scripted planners, agents and checks."""

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import dagster as dg
import pytest
from test_sensors import keys, tick

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.landing.queue import LandingQueue
from longshot_dagster.adapters.ledger.ledger import Ledger
from longshot_dagster.adapters.repository.targets import prepare_target, resolve_target
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.ids import IterationKey, parse_iteration_key, task_id
from longshot_dagster.core.landing_records import ConcernKind, LandingOutcome
from longshot_dagster.core.lifecycle import BuildView, fixable_sweep, unseen_handoffs
from longshot_dagster.core.models import (
    BuildPhase,
    BuildRequest,
    CheckName,
    CheckResult,
    CheckStatus,
    Handoff,
    HandoffStatus,
    MetricsSnapshot,
    Plan,
    Sweep,
    Task,
    TaskKind,
    Verdict,
    WorkerRun,
)
from longshot_dagster.core.settings import Settings
from longshot_dagster.defs import sensors
from longshot_dagster.defs.finalize import finalize
from longshot_dagster.defs.iteration import sweep_main, view_to_plan_from
from longshot_dagster.defs.resources import BuildTools

A, B = "left-aaaa", "right-bbbb"
Edits = Mapping[str, str | None]


ENV = {
    "PATH": os.environ["PATH"],
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    **{f"GIT_{who}_NAME": "A Worker" for who in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{who}_EMAIL": "worker@example.invalid" for who in ("AUTHOR", "COMMITTER")},
}


def git(where: Path, *arguments: str, stdin: str = "", **environ: str) -> str:
    argv = ["git", "-C", str(where), *arguments]
    return subprocess.run(
        argv, input=stdin, capture_output=True, text=True, check=True, env=ENV | environ
    ).stdout.strip()


@dataclass
class Part:
    """One task as a scripted planner gives it: its scope, and what its agent writes."""

    scope: tuple[str, ...]
    edits: Edits


@dataclass
class Played(BuildTools):
    """One build whose planner, agents and checks are scripted. Main is red while it holds `bad.py`."""

    home: Home
    build: str
    rounds: Mapping[int, tuple[Part, ...]]
    swept: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(self.home, self.build)

    def sweep(self, head: str, number: int, iteration: str, cancelled: Callable[[], bool]) -> Sweep:
        self.swept.append(head)
        red = "bad.py" in git(self.mirror.path, "ls-tree", "-r", "--name-only", head).split()
        status = CheckStatus.RED if red else CheckStatus.GREEN
        check = CheckResult(name=CheckName.TEST, command="make test", status=status)
        now = self.clock.now()
        return Sweep(number=number, head=head, iteration=iteration, checks=(check,), started_at=now, ended_at=now)

    def plan(self, key: IterationKey) -> Plan:
        view: BuildView = view_to_plan_from(self, key)
        fixes = fixable_sweep(view) if key.planner == "fix" else None
        parts = self.rounds.get(key.number, ()) if key.planner == "root" else ()
        if fixes is not None:
            parts = (Part(("bad.py",), {"bad.py": None}),)
        tasks = tuple(
            Task(
                id=task_id(key, n),
                build=self.build,
                iteration=key.short,
                planner=key.planner,
                kind=TaskKind.PLAN if key.planner == "root" else TaskKind.CHECK_FIX,
                description=f"write {part.scope[0]}",
                scope=part.scope,
                branch=f"worker/{self.build}/{task_id(key, n)}",
            )
            for n, part in enumerate(parts, 1)
        )
        self.edits = getattr(self, "edits", {}) | {t.id: p.edits for t, p in zip(tasks, parts, strict=True)}
        seen = unseen_handoffs(view, key.planner)
        plan = Plan(iteration=key.short, tasks=tasks, base=self.mirror.fetch(), handoffs_seen=seen, sweep=fixes)
        return self.ledger.freeze_plan(key, plan)

    def work(self, task: Task, base: str) -> None:
        head = self._committed(base, self.edits[task.id], task.id)
        run = {"provider": "scripted", "harness": "scripted", "harness_status": "completed", "started_at": 1}
        self.ledger.save_run(WorkerRun(task=task.id, base=base, head=head, ended_at=2, **run))
        self.ledger.save_handoff(Handoff(task_id=task.id, status=HandoffStatus.COMPLETE, summary="done"))

    def _committed(self, base: str, edits: Edits, task: str) -> str:
        """A commit on `base` in the mirror, as the intake of a worker's bundle leaves it."""
        mirror, index = self.mirror.path, str(self.mirror.path / f"index-{self.build}")
        Path(index).unlink(missing_ok=True)
        kept = [e for e in git(mirror, "ls-tree", "-r", base).splitlines() if e.partition("\t")[2] not in edits]
        blobs = {p: git(mirror, "hash-object", "-w", "--stdin", stdin=text) for p, text in edits.items() if text}
        entries = [*kept, *(f"100644 blob {oid}\t{path}" for path, oid in blobs.items())]
        git(mirror, "update-index", "--index-info", stdin="\n".join(entries) + "\n", GIT_INDEX_FILE=index)
        tree = git(mirror, "write-tree", GIT_INDEX_FILE=index)
        return git(mirror, "commit-tree", tree, "-p", base, "-m", f"work of {task}")

    def run(self, key: IterationKey) -> Iterator[None]:
        """The iteration's run; between any two steps of it the other build may do anything."""
        if self.ledger.state().phase is BuildPhase.PAUSED:
            return
        plan = self.ledger.plan(key) or self.plan(key)
        yield
        for task in plan.dispatched:
            if self.ledger.handoff(task.id) is None:
                base = self.mirror.fetch()
                yield
                self.work(task, base)
            yield
            self.landing.land(task)
        yield
        sweep_main(self, key.short, lambda: False)
        yield
        self.ledger.save_metrics(key, MetricsSnapshot(iteration=key.short))


class TwoBuilds:
    """Two builds on one bare repository, advanced step by step by the real sensors."""

    def __init__(self, tmp_path: Path, instance: dg.DagsterInstance, rounds: Mapping[str, Any], seed: int) -> None:
        self.origin = tmp_path / "origin.git"
        git(tmp_path, "init", "-q", "--bare", "-b", "main", str(self.origin))
        self.home, self.instance, self.chance = Home(tmp_path / "home"), instance, Random(seed)
        self.builds = {name: self._begin(name, plan) for name, plan in rounds.items()}
        self.running: dict[str, Iterator[None]] = {}
        self.mending: list[tuple[str, ...]] = []

    def _begin(self, build: str, rounds: Mapping[int, tuple[Part, ...]]) -> Played:
        target, settings = resolve_target(str(self.origin), Settings(), build), Settings(checkpoint="local")
        base = prepare_target(target, SystemClock())
        Ledger(self.home.builds).build(build).save_request(
            BuildRequest(build=build, request="x", target=target, base=base, settings=settings, created_at=1.0)
        )
        return Played(self.home, build, rounds)

    def look(self) -> None:
        """One tick of every sensor, and a run for everything it asks for."""
        for sensor in (sensors.replan, sensors.reconcile):
            for run_key in keys(tick(sensor, self.home, self.instance)):
                key = parse_iteration_key(str(run_key).partition("#")[0])
                if run_key not in self.running and self.builds[key.build].ledger.metrics(key) is None:
                    self.running[str(run_key)] = self.builds[key.build].run(key)
        for request in tick(sensors.finalize, self.home, self.instance).run_requests or []:
            tools = self.builds[str(request.partition_key)]
            finalize(tools, int(request.tags["longshot/finalization"]), lambda: False)

    def step(self) -> None:
        """One random run does one step."""
        name = self.chance.choice(sorted(self.running))
        if next(self.running[name], self) is self:
            del self.running[name]

    def play(self, until: Callable[[], bool], steps: int = 300) -> None:
        for _ in range(steps):
            if until():
                return
            self.look()
            at_it = tuple(sorted(b for b, tools in self.builds.items() if _mending(tools)))
            self.mending.append(at_it)
            for _ in range(self.chance.randint(2, 5)):
                if self.running:
                    self.step()
        pytest.fail("the builds did not end")

    def finished(self) -> bool:
        return all(t.ledger.state().phase is BuildPhase.FINISHED for t in self.builds.values())

    def landing(self, build: str, task: str) -> LandingOutcome:
        found = self.builds[build].ledger.landing(task)
        assert found is not None
        return found

    def files(self) -> set[str]:
        return set(git(self.origin, "ls-tree", "-r", "--name-only", "main").split())


def _mending(tools: Played) -> bool:
    """Has the build an open fix iteration that answers a red main?"""
    ledger = tools.ledger
    open_ones = [k for k in ledger.iterations() if k.planner == "fix" and ledger.metrics(k) is None]
    return any((plan := ledger.plan(k)) is not None and plan.sweep is not None for k in open_ones)


def test_the_queue_of_each_build_is_the_real_one(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    two = TwoBuilds(tmp_path, instance, {A: {}, B: {}}, 0)
    assert isinstance(two.builds[A].landing, LandingQueue)
    assert two.builds[A].mirror.path == two.builds[B].mirror.path


def test_a_path_that_the_other_build_owns_or_has_claimed_is_withheld_by_name(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    left = Part(("left.py",), {"left.py": "1\n", "right.py": "stray\n", "tool.py": "left\n"})
    right = Part(("right.py",), {"right.py": "1\n", "tool.py": "right\n"})
    two = TwoBuilds(tmp_path, instance, {A: {1: (left,)}, B: {1: (right,)}}, 0)
    two.look()
    first, second = (IterationKey(b, "root", 1) for b in (A, B))
    plans = [two.builds[k.build].plan(k) for k in (first, second)]
    for tools, plan in zip(two.builds.values(), plans, strict=True):
        tools.work(plan.tasks[0], tools.mirror.fetch())
    landed = [tools.landing.land(p.tasks[0]) for tools, p in zip(two.builds.values(), plans, strict=True)]
    assert landed[0].landed_paths == ("left.py", "tool.py") and landed[0].withheld_paths == ("right.py",)
    assert landed[1].landed_paths == ("right.py",) and landed[1].withheld_paths == ("tool.py",)
    said = [c.text for o in landed for c in o.concerns if c.kind is ConcernKind.OUT_OF_SCOPE]
    assert said == [
        f"right.py: belongs to task {B}.r001-01; not landed",
        f"tool.py: belongs to task {A}.r001-01; not landed",
    ]
    assert git(two.origin, "show", "main:tool.py") == "left"


@pytest.mark.parametrize("broken", ["landing.json", "task.json"])
def test_a_neighbour_that_cannot_be_read_keeps_nobody_from_landing(
    tmp_path: Path, instance: dg.DagsterInstance, broken: str
) -> None:
    parts = {b: {1: (Part(("a.py",), {f"{b}.py": "stray\n"}),)} for b in (A, B)}
    two = TwoBuilds(tmp_path, instance, parts, 0)
    for build, tools in two.builds.items():
        plan = tools.plan(IterationKey(build, "root", 1))
        tools.work(plan.tasks[0], tools.mirror.fetch())
        outcome = tools.landing.land(plan.tasks[0])
        assert outcome.landed_paths == (f"{build}.py",)
        (Path(str(tools.ledger.directory)) / "tasks" / "r001-01" / broken).write_text("{", encoding="utf-8")


def test_a_conflict_with_the_other_build_names_its_task(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    two = TwoBuilds(tmp_path, instance, {b: {1: (Part(("same.py",), {"same.py": f"{b}\n"}),)} for b in (A, B)}, 0)
    base = two.builds[A].mirror.fetch()
    outcomes = []
    for build, tools in two.builds.items():
        plan = tools.plan(IterationKey(build, "root", 1))
        tools.work(plan.tasks[0], base)
        outcomes.append(tools.landing.land(plan.tasks[0]))
    assert outcomes[1].reason == f"conflicts in same.py with {A}.r001-01"
    assert outcomes[1].conflict_with == ()  # those are tasks of its own build


REDDENS = {
    A: {1: (Part(("left.py",), {"left.py": "1\n"}),), 2: (Part(("bad.py",), {"bad.py": "!\n"}),)},
    B: {1: (Part(("right.py",), {"right.py": "1\n"}),), 2: (Part(("more.py",), {"more.py": "1\n"}),)},
}


def test_one_build_mends_a_red_main_for_both_and_each_commit_is_swept_once(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    two = TwoBuilds(tmp_path, instance, REDDENS, 0)
    two.play(two.finished)
    verdicts = {b: t.ledger.state().verdict for b, t in two.builds.items()}
    assert verdicts == {A: Verdict.GREEN, B: Verdict.GREEN}
    assert two.files() == {"left.py", "right.py", "more.py"}
    assert (A, B) not in two.mending
    swept = [head for tools in two.builds.values() for head in tools.swept]
    assert len(swept) == len(set(swept))
    fixes = [t for tools in two.builds.values() for t in tools.ledger.task_ids() if t.startswith("f")]
    assert len(fixes) == 1


def test_when_the_mender_pauses_the_other_takes_over_and_both_end(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    two = TwoBuilds(tmp_path, instance, REDDENS, 1)
    two.play(lambda: any(_mending(t) for t in two.builds.values()))
    mender, other = (A, B) if _mending(two.builds[A]) else (B, A)
    two.builds[mender].ledger.update_state(lambda s: s.paused("by hand"))
    two.running = {k: r for k, r in two.running.items() if not k.startswith(mender)}
    two.play(lambda: two.builds[other].ledger.state().phase is BuildPhase.FINISHED)
    assert two.builds[other].ledger.state().verdict is Verdict.GREEN
    assert "bad.py" not in two.files()
    two.builds[mender].ledger.update_state(lambda s: s.moved(BuildPhase.RUNNING))
    two.play(two.finished)
    assert two.builds[mender].ledger.state().phase is BuildPhase.FINISHED
