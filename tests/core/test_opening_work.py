"""When a change in the ledger is worth waking the sensors for."""

from dataclasses import replace

import pytest

from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.landing_records import LandingState
from longshot_dagster.core.lifecycle import (
    BuildView,
    IterationStatus,
    IterationView,
    SweepView,
    TaskView,
    opens_work,
)
from longshot_dagster.core.models import BuildPhase, HandoffStatus

BUILD = "toy-0001"
TASKS = ("r001-01", "r001-02", "r001-03", "r001-04")
AT_WORK = IterationView(IterationKey(BUILD, "root", 1), IterationStatus.OPEN, planned=True, tasks=TASKS)
NEXT = IterationView(IterationKey(BUILD, "root", 2), IterationStatus.OPEN)
RED = SweepView(1, "head", red=True, regression=True)


def tasks(handed_in: int) -> tuple[TaskView, ...]:
    done = TaskView("", "root", handoff=HandoffStatus.COMPLETE, landing=LandingState.LANDED)
    return tuple(replace(done, id=t) if n < handed_in else TaskView(t, "root") for n, t in enumerate(TASKS))


@pytest.mark.parametrize(
    ("situation", "view", "due"),
    [
        ("a new build", BuildView(BUILD, BuildPhase.RUNNING), True),
        ("too few handoffs", BuildView(BUILD, BuildPhase.RUNNING, (AT_WORK,), tasks(2)), False),
        ("enough handoffs", BuildView(BUILD, BuildPhase.RUNNING, (AT_WORK,), tasks(3)), True),
        ("they are being planned from", BuildView(BUILD, BuildPhase.RUNNING, (AT_WORK, NEXT), tasks(3)), False),
        ("a paused build", BuildView(BUILD, BuildPhase.PAUSED, (AT_WORK,), tasks(3)), False),
        ("a red main", BuildView(BUILD, BuildPhase.RUNNING, (AT_WORK,), tasks(0), RED), False),
        (
            "nothing left",
            BuildView(BUILD, BuildPhase.RUNNING, (replace(AT_WORK, status=IterationStatus.DONE, tasks=()),)),
            True,
        ),
    ],
)
def test_whether_something_new_is_due_with(situation: str, view: BuildView, due: bool) -> None:
    assert opens_work(view) is due
