"""Several builds on one branch: which of them mends it when it is red, and that nobody waits for ever."""

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_lifecycle import BUILD, COMPLETE, DONE, FAILED, LANDED, OPEN, landed, planned, view

from longshot_dagster.core.ids import IterationKey, task_id
from longshot_dagster.core.landing_records import LandingState
from longshot_dagster.core.lifecycle import (
    BuildView,
    CloseParent,
    Finalize,
    IterationView,
    RunIteration,
    SweepView,
    TaskView,
    fixable_conflicts,
    fixable_sweep,
    next_steps,
)
from longshot_dagster.core.models import BuildPhase, HandoffStatus
from longshot_dagster.core.reconciling import Mender, checks_of, may_mend
from longshot_dagster.core.settings import Settings

RUNNING, PAUSED, FINALIZING, FINISHED = (
    BuildPhase.RUNNING,
    BuildPhase.PAUSED,
    BuildPhase.FINALIZING,
    BuildPhase.FINISHED,
)


@pytest.mark.parametrize("phase", [*BuildPhase, None])
@pytest.mark.parametrize("iteration", [OPEN, FAILED, DONE, None])
def test_only_a_mender_that_is_still_at_it_keeps_others_waiting(phase, iteration):
    mender = Mender("other-0001", phase, iteration)
    at_it = phase in (RUNNING, FINALIZING) and iteration is OPEN
    assert may_mend("mine-0001", mender) is not at_it
    assert may_mend("other-0001", mender)


def test_the_first_one_may_mend():
    assert may_mend("mine-0001", None)


def test_a_drained_build_waits_for_the_mender_instead_of_finalizing_again_and_again():
    red = SweepView(3, "h", red=True, regression=False)
    rounds = (planned(1, "r001-01"), planned(2, seen=("r001-01",)))
    mine = view(*rounds, tasks=(landed("r001-01"),), sweep=red, finalize_attempt=1, final_sweep=3)
    fix = IterationKey(mine.build, "fix", 1)
    assert next_steps(mine) == [RunIteration(fix, 1)]
    assert next_steps(replace(mine, mended_by="other-0001")) == []
    green = SweepView(4, "i", red=False, regression=False, last_well=4)
    assert next_steps(replace(mine, sweep=green)) == [Finalize(2)]


def test_waiting_for_a_mender_keeps_neither_planning_nor_a_conflicts_fix_from_starting():
    red = SweepView(3, "h", red=True, regression=True)
    conflict = replace(landed("r001-02"), landing=LandingState.CONFLICT)
    mine = view(planned(1, "r001-01", "r001-02"), tasks=(landed("r001-01"), conflict), sweep=red, mended_by="o-1")
    assert fixable_sweep(mine) is None
    assert {s.key.short for s in next_steps(mine)} == {"root.002", "fix.001"}


def test_a_red_sweep_that_nobody_would_answer_is_not_waited_for():
    red = SweepView(3, "h", red=True, regression=False)
    rounds = (planned(1, "r001-01"), planned(2, seen=("r001-01",)))
    assert next_steps(view(*rounds, tasks=(landed("r001-01"),), sweep=red, mended_by="o-1")) == [Finalize(1)]


@pytest.mark.parametrize(
    ("change", "shared"),
    [
        ({"llm_model": "other", "max_workers": 3, "checkpoint": "local"}, True),
        ({"check_test": "make test"}, False),
        ({"check_timeout": 5}, False),
        ({"sandbox_network": "open"}, False),
        ({"sandbox_isolation": "none"}, False),
    ],
)
def test_builds_share_sweeps_when_their_checks_and_sandboxes_are_the_same(change, shared):
    assert (checks_of(Settings(**change)) == checks_of(Settings())) is shared


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


class _Branch:
    """One branch: its head, its newest sweep, and who has taken it up when it was red."""

    def __init__(self) -> None:
        self.head = 0
        self.sweep: tuple[int, SweepView] | None = None  # when, what
        self.now = 0
        self.claim: tuple[_Beside, IterationKey] | None = None
        self.builds: list[_Beside] = []

    def mender(self) -> Mender | None:
        if self.claim is None:
            return None
        play, key = self.claim
        status = play.rounds[key].status if key in play.rounds else None
        return Mender(play.name, play.phase, status)

    def take_up(self, play: "_Beside", key: IterationKey) -> bool:
        if not may_mend(play.name, self.mender()):
            return False
        for other in self.builds:
            mends = any(k in other.uninterrupted and r.status is OPEN for k, r in other.rounds.items())
            assert other is play or not mends, "two builds mend at once"
        self.claim = (play, key)
        play.uninterrupted.add(key)
        return True


class _Beside(_Play):
    """One of several builds on a branch; pauses and is resumed at random."""

    def __init__(self, seed: int, name: str, branch: _Branch) -> None:
        super().__init__(seed)
        self.name = name
        self.branch = branch
        self.paused = False
        self.swept_at = 0
        self.uninterrupted: set[IterationKey] = set()  # fix rounds for a red main, without a pause since they opened
        branch.builds.append(self)

    @property
    def phase(self) -> BuildPhase:
        return FINISHED if self.finished else PAUSED if self.paused else RUNNING

    def view(self):
        found = replace(super().view(), phase=self.phase)
        if found.sweep is None or not found.sweep.red:
            return found
        if self.branch.sweep is not None and self.branch.sweep[0] > self.swept_at:
            self.take(*self.branch.sweep)
        mender = self.branch.mender()
        mended_by = mender.build if mender and not may_mend(self.name, mender) else ""
        return replace(super().view(), phase=self.phase, mended_by=mended_by)

    def take(self, at: int, sweep: SweepView) -> None:
        number = self.sweep.number + 1 if self.sweep else 1
        well = self.sweep.last_well if self.sweep and sweep.red else 0 if sweep.red else number
        self.sweep, self.swept_at = replace(sweep, number=number, last_well=well), at

    def look(self) -> None:
        branch, head = self.branch, str(self.branch.head)
        if self.sweep is not None and self.sweep.head == head:
            return
        if branch.sweep is None or branch.sweep[1].head != head:
            branch.now += 1
            red = self.chance.random() < 0.5
            branch.sweep = (branch.now, SweepView(1, head, red, red and self.chance.random() < 0.5))
        self.take(*branch.sweep)

    def start(self, step) -> None:
        opens = isinstance(step, RunIteration) and step.key.planner == "fix" and step.key not in self.rounds
        if opens and fixable_sweep(self.view()) is not None and not self.branch.take_up(self, step.key):
            return
        super().start(step)

    def plan(self, it) -> None:
        if it.key.planner == "fix" and fixable_sweep(_Play.view(self)) is not None:
            self.branch.take_up(self, it.key)
        super().plan(it)

    def land(self, task) -> None:
        before = self.head
        super().land(task)
        self.branch.head += self.head - before

    def pause(self) -> None:
        self.paused = True
        self.uninterrupted.clear()


def turn(play: _Beside) -> None:
    for step in next_steps(play.view()):
        play.start(step)
        if play.finished:
            return
    for _ in range(play.chance.randint(1, 4)):
        play.work()


@settings(max_examples=20, deadline=None)
@given(st.integers(min_value=0, max_value=2**32), st.sampled_from([2, 3]), st.booleans())
def test_any_builds_on_one_branch_all_end_and_one_mends_at_a_time(seed, count, one_stays_paused):
    branch = _Branch()
    builds = [_Beside(seed + n, f"b-{n}", branch) for n in range(count)]
    chance = builds[0].chance
    stuck = builds[-1] if one_stays_paused else None
    for number in range(6000):
        play = chance.choice(builds)
        if play.finished:
            continue
        if play is not stuck and number < 3000:
            if play.paused:
                play.paused = chance.random() > 0.2
            elif chance.random() < 0.03:
                play.pause()
        if play is stuck and number > 20:
            play.pause()
        if number >= 3000 and play is not stuck:
            play.paused = False
        if not play.paused:
            turn(play)
        if all(b.finished or b is stuck for b in builds):
            break
    for play in builds:
        assert play.finished or play is stuck, "a build waits for ever"
        assert all(n == 1 for n in play.worked.values())
