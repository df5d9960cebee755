"""The fold that decides what happens next: truth tables of single situations, then whole builds played at random."""

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longshot_dagster.core.ids import IterationKey, task_id
from longshot_dagster.core.landing_records import LandingState
from longshot_dagster.core.lifecycle import (
    BuildView,
    CloseParent,
    Finalize,
    IterationStatus,
    IterationView,
    RunIteration,
    SweepView,
    TaskView,
    fixable_conflicts,
    fixable_sweep,
    next_steps,
    planner_done,
)
from longshot_dagster.core.models import BuildPhase, HandoffStatus

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


class _Play:
    """A whole build with a random planner, random failures, conflicts and crashes, driven only by next_steps."""

    def __init__(self, seed: int) -> None:
        self.chance = Random(seed)
        self.rounds: dict[IterationKey, IterationView] = {}
        self.tasks: dict[str, TaskView] = {}
        self.fixed: set[str] = set()
        self.sweep: SweepView | None = None
        self.red_finals = 0
        self.final_sweep: int | None = None
        self.head = 0
        self.finished = False
        self.worked: dict[str, int] = {}
        self.runs: set[str] = set()

    def view(self) -> BuildView:
        tasks = tuple(replace(t, fix_planned=t.id in self.fixed) for t in self.tasks.values())
        return BuildView(
            BUILD,
            BuildPhase.FINISHED if self.finished else BuildPhase.RUNNING,
            tuple(self.rounds.values()),
            tasks,
            self.sweep,
            self.red_finals,
            self.final_sweep,
            max_iterations=6,
        )

    def start(self, step) -> None:
        if isinstance(step, RunIteration):
            self.runs.add(step.run_key)
            self.rounds.setdefault(step.key, IterationView(step.key, OPEN, step.attempt))
        elif isinstance(step, CloseParent):
            assert self.tasks[step.task].handoff is None, "a parent was closed twice"
            self.tasks[step.task] = replace(self.tasks[step.task], handoff=COMPLETE)
        else:
            self.finalize(step)

    def finalize(self, step: Finalize) -> None:
        assert step.number == self.red_finals + 1
        self.look()
        answered = {r.sweep for r in self.rounds.values()}
        if self.sweep.red and step.number <= 3 and self.sweep.number not in answered:
            self.red_finals, self.final_sweep = step.number, self.sweep.number
        else:
            self.finished = True

    def look(self) -> None:
        if self.sweep is None or self.sweep.head != str(self.head):
            number = self.sweep.number + 1 if self.sweep else 1
            self.sweep = SweepView(number, str(self.head), self.chance.random() < 0.4, self.chance.random() < 0.5)

    def plan(self, it: IterationView) -> None:
        planner, view = it.key.planner, self.view()
        seen = tuple(t.id for t in view.tasks if t.planner == planner and t.handoff)
        sweep = None
        if planner == "fix":
            conflicts, sweep = fixable_conflicts(view), fixable_sweep(view)
            self.fixed |= set(conflicts)
            count = len(conflicts) + (self.chance.randint(0, 5) if sweep is not None else 0)
        else:
            count = self.chance.choice([0, 1, 2, 4]) if it.key.number > 1 else self.chance.randint(1, 4)
        names = [task_id(it.key, n + 1) for n in range(min(count, 99))]
        for name in names:
            assert name not in self.tasks, "a task was planned twice"
            delegated = planner != "fix" and len(name) < 12 and self.chance.random() < 0.2
            self.tasks[name] = TaskView(name, planner, delegated, is_fix=planner == "fix")
        self.rounds[it.key] = replace(it, planned=True, tasks=tuple(names), handoffs_seen=seen, sweep=sweep)

    def work(self) -> bool:
        """One random thing that can happen happens; False when nothing can."""
        can = []
        for it in self.rounds.values():
            if it.status is OPEN and not it.planned:
                can.append(lambda it=it: self.plan(it))
            elif it.status is OPEN and all(self.tasks[t].settled or self.tasks[t].delegated for t in it.tasks):
                can.append(lambda it=it: self.close(it))
        for t in self.tasks.values():
            if not t.delegated and t.handoff is None:
                can.append(lambda t=t: self.hand_off(t))
            elif not t.delegated and t.landing is None:
                can.append(lambda t=t: self.land(t))
        if can:
            self.chance.choice(can)()
        return bool(can)

    def close(self, it: IterationView) -> None:
        self.look()
        self.rounds[it.key] = replace(self.rounds[it.key], status=DONE)

    def hand_off(self, task: TaskView) -> None:
        self.worked[task.id] = self.worked.get(task.id, 0) + 1
        self.tasks[task.id] = replace(task, handoff=self.chance.choice(list(HandoffStatus)))

    def land(self, task: TaskView) -> None:
        state = self.chance.choice([LANDED, LANDED, LandingState.CONFLICT, LandingState.WITHHELD, LandingState.NOOP])
        self.head += state is LANDED
        self.tasks[task.id] = replace(task, landing=state)


@settings(max_examples=150, deadline=None)
@given(st.integers(min_value=0, max_value=2**32))
def test_any_build_ends_with_every_task_worked_on_exactly_once(seed):
    play = _Play(seed)
    for _ in range(4000):
        if play.finished:
            break
        for step in next_steps(play.view()):
            play.start(step)
            if play.finished:
                break
        for _ in range(play.chance.randint(1, 4)):
            play.work()
    assert play.finished, "the build never ended"
    assert next_steps(play.view()) == []
    assert all(t.settled for t in play.tasks.values())
    assert all(play.worked[t.id] == 1 for t in play.tasks.values() if not t.delegated)
    assert sum(1 for i in play.rounds.values() if i.status is not DONE) == 0
