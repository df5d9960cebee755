"""The fold that decides what happens next: truth tables of single situations, then whole builds played at random."""

from dataclasses import replace
from random import Random
from typing import NamedTuple

import pytest

from longshot_dagster.cli.resuming import woken
from longshot_dagster.core.finalizing import AskForFixes, Report, WorkLeft, outcome, work_left
from longshot_dagster.core.ids import IterationKey, task_id
from longshot_dagster.core.landing_records import LandingState
from longshot_dagster.core.lifecycle import (
    BuildView,
    CloseParent,
    Finalize,
    IterationStatus,
    IterationView,
    RunIteration,
    Step,
    SweepView,
    TaskView,
    fixable_conflicts,
    fixable_sweep,
    next_steps,
    planner_done,
    replans_after,
    unseen_handoffs,
)
from longshot_dagster.core.models import (
    BuildPhase,
    BuildState,
    CheckName,
    CheckResult,
    CheckStatus,
    HandoffStatus,
    Sweep,
)
from longshot_dagster.core.steering import orphans

BUILD = "toy-0001"
DONE, OPEN, FAILED = IterationStatus.DONE, IterationStatus.OPEN, IterationStatus.FAILED
COMPLETE, LANDED = HandoffStatus.COMPLETE, LandingState.LANDED


def key(number: int, planner: str = "root") -> IterationKey:
    return IterationKey(BUILD, planner, number)


def planned(number: int, *tasks: str, planner: str = "root", seen: tuple[str, ...] = (), status=DONE, sweep=None):
    return IterationView(key(number, planner), status, planned=True, tasks=tasks, handoffs_seen=seen, sweep=sweep)


def landed(task: str, planner: str = "root") -> TaskView:
    return TaskView(task, planner, handoff=COMPLETE, landing=LANDED)


def view(*iterations: IterationView, tasks: tuple[TaskView, ...] = (), **more) -> BuildView:
    return BuildView(BUILD, more.pop("phase", BuildPhase.RUNNING), iterations, tasks, **more)


def test_a_new_build_opens_its_first_planning_round():
    assert next_steps(view()) == [RunIteration(key(1), 1)]


@pytest.mark.parametrize("phase", [BuildPhase.PAUSED, BuildPhase.FINISHED])
def test_a_paused_or_finished_build_is_left_alone(phase):
    assert next_steps(view(phase=phase)) == []


def test_an_open_iteration_is_named_again_so_that_a_lost_request_is_repeated():
    open_round = replace(planned(1, "r001-01", status=OPEN), attempt=2)
    assert next_steps(view(open_round, tasks=(TaskView("r001-01", "root"),))) == [RunIteration(key(1), 2)]


def test_replanning_waits_for_three_handoffs_while_others_work():
    ids = [f"r001-0{n}" for n in range(1, 6)]
    two = (landed(ids[0]), landed(ids[1]), *(TaskView(i, "root") for i in ids[2:]))
    three = (*(landed(i) for i in ids[:3]), *(TaskView(i, "root") for i in ids[3:]))
    first = planned(1, *ids, status=OPEN)
    assert RunIteration(key(2), 1) not in next_steps(view(first, tasks=two))
    assert RunIteration(key(2), 1) in next_steps(view(first, tasks=three))


@pytest.mark.parametrize(
    ("planner", "unsettled", "handoffs"),
    [("root", 0, 3), ("root", 39, 3), ("root", 40, 4), ("root", 1000, 100), ("r001-01", 19, 1), ("r001-01", 30, 3)],
)
def test_a_planner_of_many_tasks_hears_of_a_tenth_of_them_at_once(planner, unsettled, handoffs):
    assert replans_after(planner, unsettled) == handoffs


def test_a_plan_of_a_hundred_tasks_is_looked_at_anew_after_a_tenth_of_what_is_left():
    ids = [f"r001-{n:02d}" for n in range(1, 101)]
    first = planned(1, *ids, status=OPEN)

    def opens(done: int) -> bool:
        tasks = (*(landed(i) for i in ids[:done]), *(TaskView(i, "root") for i in ids[done:]))
        return RunIteration(key(2), 1) in next_steps(view(first, tasks=tasks))

    assert next(n for n in range(1, 101) if opens(n)) == 9  # 91 are left, and a tenth of those is 9


def test_one_handoff_is_enough_when_nothing_else_is_active():
    assert next_steps(view(planned(1, "r001-01"), tasks=(landed("r001-01"),))) == [RunIteration(key(2), 1)]


def test_a_handoff_already_shown_to_the_planner_does_not_open_another_round():
    rounds = (planned(1, "r001-01", "r001-02"), planned(2, "r002-01", seen=("r001-01",), status=OPEN))
    tasks = (landed("r001-01"), TaskView("r001-02", "root"), TaskView("r002-01", "root"))
    assert next_steps(view(*rounds, tasks=tasks)) == [RunIteration(key(2), 1)]


def test_a_planner_plans_one_round_at_a_time():
    asking = IterationView(key(2), OPEN)
    tasks = tuple(landed(f"r001-0{n}") for n in (1, 2, 3, 4))
    assert next_steps(view(planned(1, *(t.id for t in tasks)), asking, tasks=tasks)) == [RunIteration(key(2), 1)]


def test_a_landing_still_queued_keeps_its_task_active():
    queued = TaskView("r001-01", "root", handoff=COMPLETE, landing=LandingState.QUEUED)
    assert not planner_done(view(planned(1, "r001-01"), planned(2, seen=("r001-01",)), tasks=(queued,)), "root")


def test_an_empty_round_with_nothing_new_ends_planning_and_starts_finalization():
    rounds = (planned(1, "r001-01"), planned(2, seen=("r001-01",)))
    assert next_steps(view(*rounds, tasks=(landed("r001-01"),))) == [Finalize(1)]


def test_a_delegated_task_opens_its_subplanner_and_closes_when_that_is_done():
    parent = TaskView("r001-01", "root", delegated=True)
    opened = next_steps(view(planned(1, "r001-01"), tasks=(parent,)))
    assert opened == [RunIteration(key(1, "r001-01"), 1)]
    child = landed("r001-01-001-01", "r001-01")
    subs = (planned(1, child.id, planner="r001-01"), planned(2, planner="r001-01", seen=(child.id,)))
    assert next_steps(view(planned(1, "r001-01"), *subs, tasks=(parent, child))) == [CloseParent("r001-01")]


def test_a_conflict_opens_one_fix_iteration_and_only_one():
    conflict = TaskView("r001-01", "root", handoff=COMPLETE, landing=LandingState.CONFLICT)
    base = (planned(1, "r001-01"), planned(2, seen=("r001-01",)))
    assert next_steps(view(*base, tasks=(conflict,))) == [RunIteration(key(1, "fix"), 1)]
    busy = planned(1, "f001-01", planner="fix", status=OPEN)
    later = TaskView("r001-02", "root", handoff=COMPLETE, landing=LandingState.CONFLICT)
    fixing = (replace(conflict, fix_planned=True), later, TaskView("f001-01", "fix", is_fix=True))
    seen_both = (base[0], planned(2, seen=("r001-01", "r001-02")))
    assert next_steps(view(*seen_both, busy, tasks=fixing)) == [RunIteration(key(1, "fix"), 1)]


def test_a_fix_that_conflicts_itself_is_never_fixed_again():
    chain = TaskView("f001-01", "fix", is_fix=True, handoff=COMPLETE, landing=LandingState.CONFLICT)
    assert fixable_conflicts(view(tasks=(chain,))) == ()


@pytest.mark.parametrize(
    ("sweep", "more", "expected"),
    [
        (SweepView(1, "h", red=False, regression=False), {}, None),
        (SweepView(2, "h", red=True, regression=True), {}, 2),
        (SweepView(2, "h", red=True, regression=False), {}, None),
        (SweepView(2, "h", red=True, regression=False), {"finalize_attempt": 1, "final_sweep": 2}, 2),
        (SweepView(2, "h", red=True, regression=False), {"finalize_attempt": 4, "final_sweep": 2}, None),
        (SweepView(3, "h", red=True, regression=True), {"finalize_attempt": 1, "final_sweep": 2}, None),
    ],
    ids=["green", "regression", "not-built-yet", "final", "attempts-used-up", "fix-sweep-waits-for-finalization"],
)
def test_which_sweeps_are_answered_with_fixes(sweep, more, expected):
    assert fixable_sweep(view(sweep=sweep, **more)) == expected


def test_an_answered_sweep_is_not_answered_twice():
    answered = planned(1, planner="fix", sweep=2)
    assert fixable_sweep(view(answered, sweep=SweepView(2, "h", red=True, regression=True))) is None


def test_a_regression_that_fixes_do_not_mend_is_left_to_finalization_after_three_rounds():
    rounds = [planned(1, "r001-01"), planned(2, seen=("r001-01",))]
    for number in range(1, 5):
        newest = SweepView(number + 1, str(number), red=True, regression=True, last_well=1)
        played = view(*rounds, tasks=(landed("r001-01"),), sweep=newest)
        if number < 4:
            assert next_steps(played) == [RunIteration(key(number, "fix"), 1)]
            rounds.append(planned(number, planner="fix", sweep=number + 1))
    assert next_steps(played) == [Finalize(1)]
    assert fixable_sweep(replace(played, sweep=replace(newest, number=9, last_well=8))) == 9  # well in between: anew


def test_the_planner_stops_at_its_last_allowed_iteration():
    rounds = (planned(1, "r001-01"), planned(2, "r002-01", seen=("r001-01",)))
    tasks = (landed("r001-01"), landed("r002-01"))
    assert next_steps(view(*rounds, tasks=tasks, max_iterations=2)) == [Finalize(1)]


class _Run:
    """A process that Dagster started; it dies of a crash, of a cancel, or of having come to its end."""

    def __init__(self, key: IterationKey | None, number: int, attempt: int, task: str = "") -> None:
        self.key, self.number, self.attempt, self.task = key, number, attempt, task
        self.alive, self.retries = True, 3

    @property
    def partition(self) -> str:
        return self.task or (str(self.key) if self.key else BUILD)


class _World:
    """One build, its sensors, its runs and the people around it, played at random; all that it does comes of next_steps.

    It keeps what a ledger keeps, and loses what a crash loses: a sensor may die between any two of its steps and sees the
    ledger as it was a moment ago, a run key starts one run, a run that has died is started again three times.
    """

    def __init__(self, seed: int) -> None:
        self.chance = Random(seed)
        self.rounds: dict[IterationKey, IterationView] = {}
        self.failures: dict[IterationKey, int] = {}
        self.tasks: dict[str, TaskView] = {}
        self.fixed: set[str] = set()
        self.sweeps: list[SweepView] = []
        self.state, self.reported, self.head = BuildState(phase=BuildPhase.RUNNING), False, 0
        self.runs: list[_Run] = []
        self.launched: set[str] = set()
        self.at_work: dict[str, _Run] = {}
        self.wanted_no_more: set[str] = set()
        self.worked: dict[str, int] = {}
        self.set_aside: dict[str, int] = {}
        self.earlier = self.view()

    # --- the ledger ---

    def view(self) -> BuildView:
        attempts = self.state.attempts
        number = max((int(n[10:]) for n in attempts if n.startswith("red-final.")), default=0)
        return BuildView(
            BUILD,
            self.state.phase,
            tuple(self.standing(i) for i in self.rounds.values()),
            tuple(self.tasks.values()),
            self.sweeps[-1] if self.sweeps else None,
            number,
            attempts.get(f"red-final.{number}"),
            max_iterations=4,
        )

    def standing(self, it: IterationView) -> IterationView:
        attempt = self.state.attempts.get(it.key.short, 1)
        if it.status is DONE or (attempt == 1 and it.key not in self.failures):
            return it
        return replace(it, attempt=attempt, status=FAILED if self.failures.get(it.key, 0) >= attempt else OPEN)

    def pause(self) -> None:
        self.state = self.state.paused("a reason")

    def count(self, finalization: int) -> None:
        name = f"finalize.{finalization:03d}"
        more = {**self.state.attempts, name: self.state.attempts.get(name, 1) + 1}
        self.state = self.state.model_copy(update={"attempts": more})

    # --- sensors ---

    def tick(self) -> None:
        """A sensor looks, at a ledger that may have changed since it read it, does some of what it finds, and may die."""
        now = self.view()
        seen = self.chance.choice([now, now, now, self.earlier])
        self.earlier = now
        for step in next_steps(seen):
            if self.chance.random() < 0.1:
                return
            if seen.phase is not BuildPhase.FINALIZING or isinstance(step, Finalize):
                self.carry_out(step, all(t.settled for t in seen.tasks))

    def carry_out(self, step: Step, seen_settled: bool) -> None:
        if isinstance(step, RunIteration):
            self.rounds.setdefault(step.key, IterationView(step.key, OPEN))
            if self.chance.random() > 0.1:  # it may die between its note in the ledger and the launch
                self.launch(step.run_key, _Run(step.key, 0, step.attempt))
        elif isinstance(step, CloseParent):
            if self.tasks[step.task].handoff is None:
                self.tasks[step.task] = replace(self.tasks[step.task], handoff=COMPLETE)
        else:
            assert seen_settled, "a build with open tasks was to be finalized"
            attempt = self.state.attempts.get(f"finalize.{step.number:03d}", 1)
            self.launch(f"{step.number}.{attempt}", _Run(None, step.number, attempt))

    def launch(self, run_key: str, run: _Run) -> None:
        if run_key not in self.launched:
            self.launched.add(run_key)
            self.runs.append(run)

    # --- runs ---

    def go_on(self, run: _Run) -> None:
        """One thing that the run does next."""
        if run.task:
            self.work_at(run, run.task)
            run.alive = not self.tasks[run.task].settled
        elif run.key is None:
            self.finalize(run)
        elif (it := self.rounds[run.key]).status is DONE:
            run.alive = False
        elif not it.planned:
            self.plan(it)
        else:
            open_tasks = [t for t in it.tasks if not self.tasks[t].delegated and not self.tasks[t].settled]
            if open_tasks:
                self.work_at(run, self.chance.choice(open_tasks))
            else:
                self.look()
                self.rounds[it.key], run.alive = replace(it, status=DONE), False

    def plan(self, it: IterationView) -> None:
        planner, view, sweep = it.key.planner, self.view(), None
        seen = unseen_handoffs(view, planner)
        if planner == "fix":
            conflicts, sweep = fixable_conflicts(view), fixable_sweep(view)
            assert not self.fixed & set(conflicts), "a conflict was taken up twice"
            assert sweep is None or sweep not in {i.sweep for i in self.rounds.values()}, "a sweep was answered twice"
            self.fixed |= set(conflicts)
            self.tasks |= {t: replace(self.tasks[t], fix_planned=True) for t in conflicts}
            count = len(conflicts) + (self.chance.randint(0, 2) if sweep is not None else 0)
        else:
            assert seen or it.key.number == 1 or self.set_aside, "a planner was asked again without anything new"
            count = self.chance.choice([0, 0, 0, 1, 2]) if it.key.number > 1 else self.chance.randint(1, 3)
        names = [task_id(it.key, n + 1) for n in range(count)]
        for name in names:
            assert name not in self.tasks, "a task was planned twice"
            delegated = planner != "fix" and len(name) < 12 and self.chance.random() < 0.12
            self.tasks[name] = TaskView(name, planner, delegated, is_fix=planner == "fix")
        self.rounds[it.key] = replace(it, planned=True, tasks=tuple(names), handoffs_seen=seen, sweep=sweep)

    def work_at(self, run: _Run, name: str) -> None:
        task = self.tasks[name]
        if task.handoff is None:
            holder = self.at_work.setdefault(name, run)
            if holder is not run:  # whoever comes second waits
                return
            if self.chance.random() < 0.5 or name in self.wanted_no_more:
                del self.at_work[name]
                self.worked[name] = self.worked.get(name, 0) + 1
                given_up = name in self.wanted_no_more
                status = HandoffStatus.BLOCKED if given_up else self.chance.choice(list(HandoffStatus))
                self.tasks[name] = replace(task, handoff=status)
        elif task.landing is None:
            self.tasks[name] = replace(task, landing=LandingState.QUEUED)
        elif task.landing is LandingState.QUEUED:
            self.land(task)

    def land(self, task: TaskView) -> None:
        chances = [LANDED, LANDED, LandingState.CONFLICT, LandingState.WITHHELD, LandingState.NOOP]
        state = LandingState.WITHHELD if task.id in self.wanted_no_more else self.chance.choice(chances)
        self.head += state is LANDED
        self.tasks[task.id] = replace(task, landing=state)

    def look(self) -> None:
        if not self.sweeps or self.sweeps[-1].head != str(self.head):
            red, regression = self.chance.random() < 0.4, self.chance.random() < 0.5
            well = max((s.number for s in self.sweeps if not s.red), default=0)
            self.sweeps.append(SweepView(len(self.sweeps) + 1, str(self.head), red, regression, well))

    def finalize(self, run: _Run) -> None:
        if self.reported:
            self.finish()
            run.alive = False
        elif self.state.phase is BuildPhase.RUNNING:
            self.state = self.state.moved(BuildPhase.FINALIZING)
        elif self.state.phase is BuildPhase.FINALIZING:
            run.alive = False
            for task in [t for t in self.tasks.values() if t.landing is LandingState.QUEUED]:
                self.land(task)
            if work_left(self.view()):
                self.count(run.number)
                self.state = self.state.moved(BuildPhase.RUNNING)
                return
            self.look()
            newest = self.sweeps[-1]
            ended = outcome(
                self.view(), run.number, Sweep.model_construct(number=newest.number, checks=_RED[newest.red])
            )
            if isinstance(ended, Report):
                self.reported = True
                self.finish()
                return
            self.count(run.number) if isinstance(ended, WorkLeft) else None
            noted = {f"red-final.{run.number}": ended.sweep} if isinstance(ended, AskForFixes) else {}
            attempts = {**self.state.attempts, **noted}
            self.state = self.state.moved(BuildPhase.RUNNING).model_copy(update={"attempts": attempts})

    def finish(self) -> None:
        if self.state.phase is BuildPhase.RUNNING:
            self.state = self.state.moved(BuildPhase.FINALIZING)
        if self.state.phase is BuildPhase.FINALIZING:
            self.state = self.state.moved(BuildPhase.FINISHED)

    # --- what befalls them ---

    def crash(self, run: _Run) -> None:
        """What it was working at is lost. Dagster starts it again, until it has done so three times."""
        self.stop_work_of(run)
        run.retries -= 1
        if run.retries < 0:
            run.alive = False
            self.note_end(run)

    def cancel(self, run: _Run) -> None:
        self.stop_work_of(run)
        run.alive = False
        self.note_end(run)

    def stop_work_of(self, run: _Run) -> None:
        for name in [n for n, r in self.at_work.items() if r is run]:
            del self.at_work[name]

    def note_end(self, run: _Run) -> None:
        if self.state.phase is BuildPhase.FINISHED:
            return
        if run.task:
            self.pause()
        elif run.key is None:
            if self.state.attempts.get(f"finalize.{run.number:03d}", 1) == run.attempt:
                self.count(run.number)
                self.pause()
        elif self.rounds[run.key].status is not DONE and run.attempt >= self.state.attempts.get(run.key.short, 1):
            self.failures[run.key] = run.attempt
            self.pause()

    def power_cut(self) -> None:
        """Every process dies at once, and nobody notes it."""
        for run in self.runs:
            self.stop_work_of(run)
            run.alive = False
        self.pause()

    def taken_over(self) -> None:
        """Another machine goes on from the checkpoint; its Dagster knows of no run that there ever was."""
        self.power_cut()
        self.launched.clear()

    def resume(self) -> None:
        alive = [r for r in self.runs if r.alive]
        busy = {r.partition for r in alive}
        view = self.view()
        if self.state.phase is BuildPhase.PAUSED:
            plans = [
                _Plan(i.key.short, [self.tasks[t] for t in i.tasks if not self.tasks[t].delegated])
                for i in view.iterations
            ]
            for name in orphans(view, plans):  # type: ignore[arg-type]
                if name not in busy:
                    self.runs.append(_Run(None, 0, 1, task=name))
            self.state = woken(self.state, view, busy)

    def give_up_a_task(self) -> None:
        """A person cancels one that was not handed in."""
        if open_tasks := [t.id for t in self.tasks.values() if t.handoff is None and not t.delegated]:
            self.wanted_no_more.add(self.chance.choice(open_tasks))

    def undo(self) -> None:
        if there := [t for t in self.tasks.values() if t.landing is LANDED]:
            task = self.chance.choice(there)
            self.tasks[task.id], self.head = replace(task, landing=LandingState.UNDONE), self.head + 1

    def retry(self) -> None:
        """A person gives a task whose iteration is over to a new worker; a finished build goes on."""
        over = {t for i in self.rounds.values() if i.status is DONE for t in i.tasks}
        again = (LandingState.WITHHELD, LandingState.UNDONE)
        could = [t for t in self.tasks.values() if t.id in over and t.landing in again and t.id not in self.at_work]
        if not could or self.state.phase is BuildPhase.PAUSED or any(r.alive and r.task for r in self.runs):
            return
        task = self.chance.choice(could)
        self.tasks[task.id] = replace(task, handoff=None, landing=None)
        self.wanted_no_more.discard(task.id)
        self.set_aside[task.id] = self.set_aside.get(task.id, 0) + 1
        self.runs.append(_Run(None, 0, 1, task=task.id))
        if self.state.phase is not BuildPhase.FINALIZING:
            self.reported = False
        if self.state.phase is BuildPhase.FINISHED:
            self.state = self.state.reopened(f"finalize.{self.view().finalize_attempt + 1:03d}")

    def befall(self) -> None:
        """One random misfortune, or one of a person's wishes."""
        alive = [r for r in self.runs if r.alive]
        single = [self.crash, self.crash, self.crash, self.cancel]
        can = [self.pause, self.power_cut, self.taken_over, self.give_up_a_task, self.undo, self.retry]
        if alive and self.chance.random() < 0.6:
            self.chance.choice(single)(self.chance.choice(alive))
        else:
            self.chance.choice(can)()

    def step(self) -> None:
        """One look of a sensor, or one thing that one of the runs does."""
        alive = [r for r in self.runs if r.alive]
        if not alive or self.chance.random() < 0.3:
            self.tick()
        else:
            self.go_on(self.chance.choice(alive))


class _Plan(NamedTuple):
    iteration: str
    dispatched: list[TaskView]


_RED = {
    red: (CheckResult(name=CheckName.TEST, command="make test", status=CheckStatus.RED if red else CheckStatus.GREEN),)
    for red in (True, False)
}


def played(seed: int, misfortunes: float) -> _World:
    """A build that was disturbed for a while and then left in peace."""
    world = _World(seed)
    for _ in range(world.chance.randint(20, 70)):
        world.befall() if world.chance.random() < misfortunes else world.step()
        if world.state.phase is BuildPhase.PAUSED and world.chance.random() < 0.5:
            world.resume()
    for _ in range(3_000):
        if world.state.phase is BuildPhase.FINISHED and not any(r.alive for r in world.runs):
            break
        world.resume()
        world.step()
    return world


@pytest.mark.parametrize("misfortunes", [0.0, 0.1, 0.25, 0.5])
def test_any_build_ends_with_every_task_worked_on_exactly_once(misfortunes: float) -> None:
    """510 builds of each kind; a seed that fails is named."""
    for seed in range(510):
        world = played(seed, misfortunes)
        view = world.view()
        assert view.phase is BuildPhase.FINISHED and next_steps(view) == [], f"seed {seed}: the build never ended"
        assert all(t.settled for t in view.tasks), f"seed {seed}: a task was forgotten"
        assert all(i.status is DONE for i in view.iterations), f"seed {seed}: an iteration was forgotten"
        done = {t.id: 1 + world.set_aside.get(t.id, 0) for t in view.tasks if not t.delegated}
        assert world.worked == done, f"seed {seed}: a task was worked on more often than it was asked for"
        for planner in {i.key.planner for i in view.iterations} - {"fix"}:
            assert planner_done(view, planner), f"seed {seed}: {planner} was not asked to the end"
            last = max(i.key.number for i in view.iterations if i.key.planner == planner)
            told = world.set_aside or not unseen_handoffs(view, planner) or last == view.max_iterations
            assert told, f"seed {seed}: {planner} was not told of a handoff"
