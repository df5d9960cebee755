"""What may still be cancelled or tried again, and the one line that says why not."""

import pytest

from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import (
    BuildPhase,
    BuildState,
    Handoff,
    HandoffStatus,
    Verdict,
)
from longshot_dagster.core.steering import landed_well, why_not_cancel, why_not_retry

TASK = "r001-01"
COMPLETE = Handoff(task_id=TASK, status=HandoffStatus.COMPLETE, summary="")
FAILED = Handoff(task_id=TASK, status=HandoffStatus.FAILED, summary="")
RUNNING, PAUSED, FINISHED = BuildPhase.RUNNING, BuildPhase.PAUSED, BuildPhase.FINISHED


def landing(state: LandingState | None) -> LandingOutcome | None:
    return LandingOutcome(task=TASK, state=state, superseded_by="f001-01") if state else None


@pytest.mark.parametrize(
    ("phase", "handoff", "state", "said"),
    [
        (RUNNING, None, None, ""),
        (PAUSED, None, None, ""),
        (FINISHED, None, None, "b has finished; there is nothing to cancel"),
        (RUNNING, FAILED, None, "b.r001-01 was handed in already (failed); there is nothing to cancel"),
        (RUNNING, COMPLETE, LandingState.QUEUED, "b.r001-01 was handed in already (complete)"),
        (RUNNING, COMPLETE, LandingState.LANDED, "b.r001-01 has landed; longshot undo b.r001-01 takes it back"),
    ],
)
def test_a_task_is_cancelled_until_it_is_handed_in(
    phase: BuildPhase, handoff: Handoff | None, state: LandingState | None, said: str
) -> None:
    found = why_not_cancel("b", TASK, phase, handoff, landing(state))
    assert found.startswith(said) and bool(found) is bool(said)


@pytest.mark.parametrize(
    ("phase", "handoff", "state", "more", "said"),
    [
        (FINISHED, FAILED, LandingState.WITHHELD, {}, ""),
        (PAUSED, FAILED, LandingState.WITHHELD, {}, ""),
        (RUNNING, FAILED, LandingState.WITHHELD, {}, ""),
        (FINISHED, COMPLETE, LandingState.CONFLICT, {}, ""),
        (FINISHED, COMPLETE, LandingState.UNDONE, {}, ""),
        (FINISHED, FAILED, LandingState.NOOP, {}, ""),
        (RUNNING, None, None, {"expected": False}, ""),
        (RUNNING, FAILED, LandingState.WITHHELD, {"at_work": True}, "b.r001-01 is being worked on; longshot cancel"),
        (RUNNING, None, None, {}, "b.r001-01 was not handed in yet; a worker takes it up by itself"),
        (PAUSED, None, None, {}, "b.r001-01 was not handed in yet; longshot resume b goes on with it"),
        (RUNNING, COMPLETE, None, {}, "b.r001-01 is about to land"),
        (RUNNING, COMPLETE, LandingState.QUEUED, {}, "b.r001-01 is about to land"),
        (FINISHED, COMPLETE, LandingState.QUEUED, {}, ""),
        (FINISHED, COMPLETE, None, {}, ""),
        (FINISHED, COMPLETE, LandingState.LANDED, {}, "b.r001-01 has landed; what has landed is not worked on again"),
        (FINISHED, COMPLETE, LandingState.SUPERSEDED, {}, "b.r001-01 was superseded: f001-01 has landed in its place"),
        (FINISHED, COMPLETE, LandingState.NOOP, {}, "b.r001-01 is done: there was nothing to land"),
        (RUNNING, COMPLETE, LandingState.CONFLICT, {}, "b.r001-01 is in conflict, and a fix task of the build will"),
        (RUNNING, COMPLETE, LandingState.CONFLICT, {"redone_by": "f001-01"}, "b.r001-01 is being redone as task f001"),
        (RUNNING, FAILED, LandingState.WITHHELD, {"redone_by": "r002-01"}, "b.r001-01 is being redone as task r002"),
    ],
)
def test_a_task_is_tried_again_when_nothing_else_will_make_it_land(
    phase: BuildPhase, handoff: Handoff | None, state: LandingState | None, more: dict[str, object], said: str
) -> None:
    facts = {"at_work": False, "expected": handoff is None, **more}
    found = why_not_retry("b", TASK, phase, handoff, landing(state), **facts)  # type: ignore[arg-type]
    assert found.startswith(said) and bool(found) is bool(said)


def test_where_conflicts_become_no_fix_tasks_a_person_may_retry_one_at_once() -> None:
    facts = {"at_work": False, "expected": False, "fixed": False}
    conflict = landing(LandingState.CONFLICT)
    assert why_not_retry("b", TASK, RUNNING, COMPLETE, conflict, **facts) == ""  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("handoff", "state", "well"),
    [
        (COMPLETE, LandingState.LANDED, True),
        (COMPLETE, LandingState.SUPERSEDED, True),
        (COMPLETE, LandingState.NOOP, True),
        (FAILED, LandingState.NOOP, False),
        (COMPLETE, LandingState.CONFLICT, False),
        (FAILED, LandingState.WITHHELD, False),
        (COMPLETE, None, False),
    ],
)
def test_what_counts_as_landed(handoff: Handoff, state: LandingState | None, well: bool) -> None:
    assert landed_well(handoff, landing(state)) is well


def test_only_a_finished_build_is_reopened_and_its_finalization_gets_a_new_attempt() -> None:
    finished = BuildState(phase=FINISHED, verdict=Verdict.LEFTOVERS, attempts={"finalize.002": 3, "root.001": 2})
    again = finished.reopened("finalize.002")
    assert (again.phase, again.verdict, again.attempts) == (RUNNING, None, {"finalize.002": 4, "root.001": 2})
    assert finished.reopened("finalize.001").attempts["finalize.001"] == 2
    for phase in (RUNNING, PAUSED, BuildPhase.FINALIZING):
        with pytest.raises(ValueError, match="cannot be reopened"):
            BuildState(phase=phase).reopened("finalize.001")
    with pytest.raises(ValueError, match="cannot become running"):
        finished.moved(RUNNING)
