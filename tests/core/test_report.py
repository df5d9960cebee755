"""The last word on a build: nothing unlanded goes unnamed, nothing unchecked is called green."""

import pytest

from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import (
    BuildPhase,
    BuildReport,
    BuildRequest,
    BuildState,
    CheckName,
    CheckResult,
    CheckStatus,
    Handoff,
    HandoffStatus,
    Plan,
    Sweep,
    Target,
    TargetKind,
    Task,
    Verdict,
    WorkerRun,
)
from longshot_dagster.core.report import cost, exit_code, headline, make_report, summary_lines, waiting_for
from longshot_dagster.core.settings import Settings
from longshot_dagster.core.usage import Usage

HEAD, OLD = "a" * 40, "b" * 40
PRICED = Settings(llm_price_in=0.6, llm_price_out=2.0)
REQUEST = BuildRequest(
    build="todo-api-7f3k",
    request="Build it",
    target=Target(repository="r", url="/r.git", kind=TargetKind.REMOTE, base_branch="main", branch="main"),
    base=OLD,
    settings=Settings(),
    created_at=1000.0,
)


def task(name: str, planner: str = "root", *, delegated: bool = False) -> Task:
    return Task(
        id=name,
        build=REQUEST.build,
        iteration="root.001",
        planner=planner,
        description=f"Do {name}\nin detail",
        scope=("a",),
        branch=f"worker/{name}",
        delegated=delegated,
    )


def plan(*tasks: Task, key: str = "root.001", tokens: int = 0) -> Plan:
    return Plan(iteration=key, tasks=tasks, base=OLD, tokens=tokens)


def handoff(name: str, status: HandoffStatus = HandoffStatus.COMPLETE, summary: str = "done") -> Handoff:
    return Handoff(task_id=name, status=status, summary=summary)


def landing(name: str, state: LandingState, reason: str = "") -> LandingOutcome:
    return LandingOutcome(task=name, state=state, reason=reason)


def check(status: CheckStatus) -> CheckResult:
    return CheckResult(name=CheckName.TEST, command="make test", status=status)


def sweep(*statuses: CheckStatus, head: str = HEAD, error: str = "") -> Sweep:
    return Sweep(number=3, head=head, checks=tuple(map(check, statuses)), error=error, started_at=1, ended_at=2)


GREEN = sweep(CheckStatus.GREEN)


def report(
    plans: list[Plan],
    handoffs: list[Handoff],
    landings: list[LandingOutcome],
    swept: Sweep | None = GREEN,
    runs: tuple[WorkerRun, ...] = (),
    spent: Usage | None = None,
) -> BuildReport:
    return make_report(
        REQUEST,
        tasks={t.id: t for p in plans for t in p.tasks}.values(),
        handoffs={h.task_id: h for h in handoffs},
        landings={x.task: x for x in landings},
        runs=runs,
        plans=plans,
        sweep=swept,
        head=HEAD,
        finalization_attempts=0,
        now=1090.5,
        spent=spent,
    )


def one(
    state: LandingState, status: HandoffStatus = HandoffStatus.COMPLETE, swept: Sweep | None = GREEN
) -> BuildReport:
    name = "r001-01"
    return report([plan(task(name))], [handoff(name, status)], [landing(name, state, "because")], swept)


@pytest.mark.parametrize(
    ("state", "status", "left"),
    [
        (LandingState.LANDED, HandoffStatus.COMPLETE, ()),
        (LandingState.SUPERSEDED, HandoffStatus.FAILED, ()),
        (LandingState.NOOP, HandoffStatus.COMPLETE, ()),
        (LandingState.NOOP, HandoffStatus.FAILED, ("failed",)),
        (LandingState.CONFLICT, HandoffStatus.COMPLETE, ("conflict",)),
        (LandingState.WITHHELD, HandoffStatus.PARTIAL, ("withheld",)),
        (LandingState.QUEUED, HandoffStatus.COMPLETE, ("complete",)),
    ],
)
def test_what_neither_landed_nor_was_superseded_is_left_over_by_name(
    state: LandingState, status: HandoffStatus, left: tuple[str, ...]
) -> None:
    names = ("r001-01", "r001-02")
    landings = [landing(names[0], state, "because"), landing(names[1], LandingState.LANDED)]
    found = report([plan(*map(task, names))], [handoff(names[0], status), handoff(names[1])], landings)
    assert tuple(x.state for x in found.leftovers) == left
    assert found.verdict is (Verdict.LEFTOVERS if left else Verdict.GREEN)


def test_agents_that_all_say_done_and_change_nothing_are_no_success() -> None:
    found = one(LandingState.NOOP)
    assert (found.leftovers, found.health, exit_code(BuildState(phase=BuildPhase.FINISHED), found)) == ((), "green", 3)
    assert headline(found) == "0 of 1 tasks landed, nothing was changed, checks green"


def test_a_task_nobody_handed_in_is_left_over() -> None:
    (left,) = report([plan(task("r001-01"))], [], []).leftovers
    assert (left.task, left.state, left.description) == ("r001-01", "unfinished", "Do r001-01")


@pytest.mark.parametrize(
    ("swept", "verdict", "health", "code"),
    [
        (GREEN, Verdict.GREEN, "green", 0),
        (sweep(CheckStatus.GREEN, CheckStatus.SKIPPED), Verdict.GREEN, "green", 0),
        (sweep(CheckStatus.RED), Verdict.RED, "red", 4),
        (sweep(CheckStatus.TIMEOUT), Verdict.RED, "red", 4),
        (sweep(CheckStatus.RED_BEFORE), Verdict.RED, "red", 4),
        (sweep(error="no sandbox"), Verdict.RED, "red", 4),
        (sweep(), Verdict.LEFTOVERS, "unchecked", 3),
        (sweep(CheckStatus.SKIPPED), Verdict.LEFTOVERS, "unchecked", 3),
        (None, Verdict.LEFTOVERS, "unchecked", 3),
        (sweep(CheckStatus.GREEN, head=OLD), Verdict.LEFTOVERS, "unchecked", 3),
        (sweep(CheckStatus.RED, head=OLD), Verdict.RED, "red", 4),
    ],
)
def test_health_verdict_and_exit_code(swept: Sweep | None, verdict: Verdict, health: str, code: int) -> None:
    found = one(LandingState.LANDED, swept=swept)
    assert (found.verdict, found.health) == (verdict, health)
    assert exit_code(BuildState(phase=BuildPhase.FINISHED), found) == code
    assert ("green" in headline(found)) is (health == "green")


def test_an_unchecked_result_says_so() -> None:
    assert "unchecked (the repository offers no check to run)" in headline(one(LandingState.LANDED, swept=sweep()))


@pytest.mark.parametrize(("phase", "code"), [(BuildPhase.PAUSED, 5), (BuildPhase.RUNNING, 130)])
def test_a_build_that_has_not_finished_is_not_green(phase: BuildPhase, code: int) -> None:
    assert exit_code(BuildState(phase=phase), None) == code


class TestDelegated:
    PARENT = task("r001-01", delegated=True)
    CHILD = task("r001-01-001-01", "r001-01")

    def test_a_parent_counts_through_its_children(self) -> None:
        plans = [plan(self.PARENT), plan(self.CHILD, key="r001-01.001")]
        found = report(
            plans,
            [handoff("r001-01", HandoffStatus.PARTIAL), handoff(self.CHILD.id)],
            [landing(self.CHILD.id, LandingState.LANDED)],
        )
        assert found.leftovers == ()

    def test_a_parent_that_works_itself_counts_by_its_landing(self) -> None:
        itself = task("r001-01", "r001-01").model_copy(update={"delegated": False})
        plans = [plan(self.PARENT), plan(itself, key="r001-01.001")]
        found = make_report(
            REQUEST,
            tasks=[self.PARENT],
            handoffs={"r001-01": handoff("r001-01")},
            landings={"r001-01": landing("r001-01", LandingState.CONFLICT, "both changed a")},
            runs=(),
            plans=plans,
            sweep=GREEN,
            head=HEAD,
            finalization_attempts=0,
            now=1090.0,
        )
        assert [(x.task, x.state, x.reason) for x in found.leftovers] == [("r001-01", "conflict", "both changed a")]

    @pytest.mark.parametrize(("status", "left"), [(HandoffStatus.COMPLETE, 0), (HandoffStatus.FAILED, 1)])
    def test_a_parent_without_children_is_judged_by_its_handoff(self, status: HandoffStatus, left: int) -> None:
        assert len(report([plan(self.PARENT)], [handoff("r001-01", status)], []).leftovers) == left


def test_what_the_gateway_counted_is_the_cost_and_without_it_the_cost_is_unknown() -> None:
    run = WorkerRun(
        task="r001-01", provider="local", harness="builtin", harness_status="completed", base=OLD,
        tokens_in=10, tokens_out=5, cost_usd=0.5, started_at=1, ended_at=2,
    )  # fmt: skip
    plans = [plan(task("r001-01"), tokens=100)]
    counted = report(plans, [], [], runs=(run, run), spent=Usage(1_000_000, 500_000, 7).priced(PRICED))
    assert (counted.tokens, counted.cost_usd, counted.wall_s) == (1_500_000, 1.6, 90.5)
    unpriced = report(plans, [], [], runs=(run, run), spent=Usage(1_000_000, 500_000, 7).priced(Settings()))
    assert (unpriced.tokens, unpriced.cost_usd) == (1_500_000, None)
    # What its workers cost is known, what its planners cost is not: a part is not told as the whole.
    uncounted = report(plans, [], [], runs=(run, run))
    assert (uncounted.tokens, uncounted.cost_usd) == (130, None)


EVIL = '[/bold] \x1b[31m <img src="http://x/graphql"> | `a`'


def test_hostile_text_stays_text_in_the_summary() -> None:
    bad = task("r001-01").model_copy(update={"description": EVIL})
    found = report([plan(bad)], [handoff("r001-01", HandoffStatus.FAILED, EVIL)], [])
    assert "\x1b" not in "\n".join(summary_lines(found, REQUEST))


@pytest.mark.parametrize(
    ("usd", "said"), [(None, "unknown"), (0.0, "0.00 USD"), (0.0042, "0.0042 USD"), (12.345, "12.35 USD")]
)
def test_an_unknown_cost_is_called_unknown_and_never_nothing(usd: float | None, said: str) -> None:
    assert cost(usd) == said


def test_the_summary_names_what_was_left_the_branch_and_the_report() -> None:
    name = "r001-01"
    found = report([plan(task(name))], [handoff(name)], [landing(name, LandingState.WITHHELD, "its tests are red")])
    checks = [check(CheckStatus.GREEN)]
    assert summary_lines(found, REQUEST, checks=checks, report_path="/r.html", link="http://127.0.0.1:1/") == [
        "todo-api-7f3k: 0 of 1 tasks landed, nothing was changed, 1 left over, checks green",
        "  r001-01 withheld: its tests are red | Do r001-01",
        "checks test green",
        "iterations 1, conflicts 0, tokens 0, cost unknown, 1 min 30 s",
        "branch main at aaaaaaaaaaaa of /r.git",
        "review git clone --branch main -- /r.git review",
        "review git -C review log --reverse --stat bbbbbbbbbbbb..aaaaaaaaaaaa",
        "report /r.html",
        "look   http://127.0.0.1:1/",
    ]


def test_a_rehearsal_calls_itself_one() -> None:
    found = one(LandingState.LANDED).model_copy(update={"rehearsal": True})
    assert "rehearsal: a scripted model answered, no real one" in summary_lines(found, REQUEST)


def test_what_landed_can_be_taken_back_and_the_summary_says_how() -> None:
    assert "undo   longshot undo todo-api-7f3k" in summary_lines(one(LandingState.LANDED), REQUEST)


@pytest.mark.parametrize(
    ("handed", "state", "phase", "says"),
    [
        (False, None, BuildPhase.RUNNING, "a worker's slot, or its worker is at it"),
        (False, None, BuildPhase.PAUSED, "not handed in; paused"),
        (True, None, BuildPhase.RUNNING, "its turn to land"),
        (True, LandingState.CONFLICT, BuildPhase.RUNNING, "a fix task for its conflict"),
        (True, LandingState.WITHHELD, BuildPhase.RUNNING, "because"),
        (True, LandingState.LANDED, BuildPhase.RUNNING, ""),
    ],
)
def test_status_says_what_a_task_waits_for(
    handed: bool, state: LandingState | None, phase: BuildPhase, says: str
) -> None:
    name = "r001-01"
    outcome = landing(name, state, "because") if state else None
    assert waiting_for(task(name), handoff(name) if handed else None, outcome, phase) == says
