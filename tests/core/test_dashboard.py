"""What the dashboard says of a build, as a table of states and a tree of planners."""

import pytest

from longshot_dagster.core.dashboard import Stand, planner_rows, stand, sweep_words
from longshot_dagster.core.landing_records import LandingState
from longshot_dagster.core.models import (
    BuildPhase,
    CheckName,
    CheckResult,
    CheckStatus,
    HandoffStatus,
    Sweep,
    Task,
)

OID = "a" * 40
COMPLETE = HandoffStatus.COMPLETE


@pytest.mark.parametrize(
    ("handoff", "landing", "at_work", "interrupted", "expected"),
    [
        (None, None, False, False, Stand.WAITING),
        (None, None, True, False, Stand.AT_WORK),
        (None, None, False, True, Stand.INTERRUPTED),
        (None, None, True, True, Stand.AT_WORK),
        (COMPLETE, None, True, False, Stand.LANDING),
        (COMPLETE, LandingState.QUEUED, False, False, Stand.LANDING),
        (COMPLETE, LandingState.LANDED, False, False, Stand.LANDED),
        (COMPLETE, LandingState.NOOP, False, False, Stand.NOTHING),
        (COMPLETE, LandingState.CONFLICT, False, False, Stand.CONFLICT),
        (COMPLETE, LandingState.WITHHELD, False, False, Stand.WITHHELD),
        (COMPLETE, LandingState.SUPERSEDED, False, False, Stand.SUPERSEDED),
        (COMPLETE, LandingState.UNDONE, False, False, Stand.UNDONE),
    ],
)
def test_where_a_task_stands(
    handoff: HandoffStatus | None, landing: LandingState | None, at_work: bool, interrupted: bool, expected: Stand
) -> None:
    assert stand(handoff=handoff, landing=landing, at_work=at_work, interrupted=interrupted) is expected


def test_every_state_of_a_landing_has_a_word() -> None:
    for state in LandingState:
        assert stand(handoff=COMPLETE, landing=state, at_work=False, interrupted=False)


def task(name: str, planner: str, delegated: bool = False) -> Task:
    return Task(
        id=name,
        build="b",
        iteration=f"{planner}.001",
        planner=planner,
        description=f"What {name} is\nmore",
        scope=("a",),
        branch="w",
        delegated=delegated,
    )


def test_the_tree_has_root_its_subplanners_and_the_fixes() -> None:
    tasks = {
        t.id: t
        for t in (
            task("r001-01", "root"),
            task("r001-02", "root", delegated=True),
            task("r001-02-001-01", "r001-02"),
            task("r001-02-001-02", "r001-02", delegated=True),
            task("r001-03", "root", delegated=True),
            task("f001-01", "fix"),
        )
    }
    # r001-03 proved atomic: a worker has it, so it is a task of root and no planner.
    stands = {
        "r001-01": Stand.LANDED,
        "r001-02-001-01": Stand.AT_WORK,
        "r001-03": Stand.WAITING,
        "f001-01": Stand.CONFLICT,
    }
    rounds = {"root": (2, True), "r001-02": (1, True), "fix": (1, True)}
    rows = planner_rows(tasks, stands, rounds, BuildPhase.RUNNING)
    assert [(r.name, r.depth, r.rounds, r.thinking, dict(r.counts)) for r in rows] == [
        ("root", 0, 2, False, {Stand.LANDED: 1, Stand.WAITING: 1}),
        ("r001-02", 1, 1, False, {Stand.AT_WORK: 1}),
        ("r001-02-001-02", 2, 0, True, {}),
        ("fix", 0, 1, False, {Stand.CONFLICT: 1}),
    ]
    assert rows[1].title == "What r001-02 is"
    assert not any(r.thinking for r in planner_rows(tasks, stands, rounds, BuildPhase.PAUSED))


def test_a_sweep_in_words_never_calls_unchecked_green() -> None:
    def swept(*statuses: CheckStatus, error: str = "", markers: tuple[str, ...] = ()) -> tuple[str, str]:
        checks = tuple(CheckResult(name=CheckName.TEST, command="t", status=s) for s in statuses)
        return sweep_words(
            Sweep(
                number=1, head=OID, checks=checks, error=error, conflict_markers=markers, started_at=1.0, ended_at=2.0
            )
        )

    assert sweep_words(None) == ("unchecked", "main has not been swept yet")
    assert swept(CheckStatus.GREEN) == ("green", "test green")
    assert swept(CheckStatus.RED) == ("red", "test red")
    assert swept(CheckStatus.TIMEOUT, markers=("a", "b")) == ("red", "test timeout, conflict markers in 2 files")
    assert swept(CheckStatus.SKIPPED) == ("unchecked", "nothing to check")
    assert swept(error="no sandbox") == ("red", "the sweep could not run: no sandbox")
    assert swept(CheckStatus.RED_BEFORE) == ("unchecked", "test red-before")
