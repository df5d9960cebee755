"""What `longshot resume` changes in a paused build: a new attempt for whatever stands still, nothing else."""

from pathlib import Path

import pytest

from longshot_dagster.adapters.ledger.ledger import Ledger
from longshot_dagster.adapters.stack.dagster_api import ActiveRun, DagsterApi
from longshot_dagster.cli.resuming import pause_if_idle, woken
from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.lifecycle import BuildView, IterationStatus, IterationView
from longshot_dagster.core.models import BuildPhase, BuildState

PAUSED = BuildState(phase=BuildPhase.PAUSED, reason="no model", attempts={"root.002": 2})


def view(*statuses: IterationStatus, finalize_attempt: int = 0) -> BuildView:
    found = [IterationView(IterationKey("b", "root", n), s) for n, s in enumerate(statuses, 1)]
    return BuildView("b", BuildPhase.PAUSED, iterations=tuple(found), finalize_attempt=finalize_attempt)


def test_open_and_failed_iterations_without_a_living_run_get_a_new_attempt() -> None:
    state = woken(PAUSED, view(IterationStatus.DONE, IterationStatus.FAILED, IterationStatus.OPEN), set())
    assert state.phase is BuildPhase.RUNNING
    assert state.attempts == {"root.002": 3, "root.003": 2, "finalize.001": 2}
    assert state.reason == ""


def test_an_iteration_whose_run_lives_keeps_its_attempt() -> None:
    state = woken(PAUSED, view(IterationStatus.OPEN, IterationStatus.OPEN), {"b.root.002", "b"})
    assert state.attempts == {"root.001": 2, "root.002": 2}


def test_a_failed_iteration_gets_a_new_attempt_even_while_other_tasks_of_its_run_are_at_work() -> None:
    state = woken(PAUSED, view(IterationStatus.FAILED), {"b.root.001", "b"})
    assert state.attempts["root.001"] == 2


def test_the_finalization_that_was_under_way_is_the_one_that_is_repeated() -> None:
    assert woken(PAUSED, view(finalize_attempt=2), set()).attempts["finalize.003"] == 2


def test_a_build_that_somebody_else_has_woken_is_left_alone() -> None:
    running = BuildState()
    assert woken(running, view(IterationStatus.FAILED), set()) is running


class Runs(DagsterApi):
    def __init__(self, *partitions: str) -> None:
        self.partitions = partitions

    def active(self) -> list[ActiveRun]:
        return [ActiveRun(p, "STARTED", "planning_iteration", {"dagster/partition": p}) for p in self.partitions]


@pytest.mark.parametrize(
    ("runs", "phase", "expected"),
    [
        ((), BuildPhase.RUNNING, BuildPhase.PAUSED),
        ((), BuildPhase.FINALIZING, BuildPhase.PAUSED),
        (("b.root.001",), BuildPhase.RUNNING, BuildPhase.RUNNING),
        (("other.root.001",), BuildPhase.RUNNING, BuildPhase.PAUSED),
    ],
)
def test_a_build_under_way_that_has_no_run_is_begun_anew(
    tmp_path: Path, runs: tuple[str, ...], phase: BuildPhase, expected: BuildPhase
) -> None:
    ledger = Ledger(tmp_path).build("b")
    ledger.update_state(lambda s: s.model_copy(update={"phase": phase}))
    pause_if_idle(ledger, Runs(*runs))
    assert ledger.state().phase is expected
