"""`longshot status BUILD` in four facts, whatever stands in the ledger."""

import pytest

from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.landing_records import LandingState
from longshot_dagster.core.lifecycle import BuildView, IterationStatus, IterationView, TaskView
from longshot_dagster.core.models import BuildPhase, HandoffStatus
from longshot_dagster.core.standing import AtWork, Standing, explained

COMPLETE = HandoffStatus.COMPLETE
ROUND = IterationView(IterationKey("b", "root", 1), IterationStatus.OPEN, planned=True)


def task(number: int, landing: LandingState | None = None, handoff: HandoffStatus | None = None) -> TaskView:
    return TaskView(f"r001-{number:02d}", "root", handoff=handoff or (COMPLETE if landing else None), landing=landing)


def view(
    *tasks: TaskView, phase: BuildPhase = BuildPhase.RUNNING, rounds: tuple[IterationView, ...] = (ROUND,)
) -> BuildView:
    return BuildView("b", phase, iterations=rounds, tasks=tasks)


SCENE = view(
    task(1, LandingState.LANDED),
    task(2, LandingState.NOOP),
    task(3, LandingState.WITHHELD),
    task(4, LandingState.CONFLICT),
    task(5),
    task(6),
    task(7),
    task(8),
)
WHY = {
    "r001-03": "its checks are red\x1b[2J",
    "r001-04": "a fix task for its conflict",
    **{f"r001-0{n}": "a worker's slot, or its worker is at it" for n in (5, 6, 7, 8)},
}


def test_what_is_done_running_missing_and_next() -> None:
    facts = dict(explained(Standing(SCENE, why=WHY, at_work=(AtWork("r001-05", "local", 184.0),))))
    assert facts == {
        "done": "1 landed, 1 had nothing to land of 8 tasks in 1 planning rounds",
        "running": "1 tasks: r001-05 for 3 min 04 s (local)",
        "missing": "r001-06 r001-07 r001-08 (a worker's slot, or its worker is at it); "
        "r001-04 (conflict: a fix task for its conflict); r001-03 (withheld: its checks are red\ufffd[2J)",
        "next": "planner root is asked again (root.002); a round of fixes begins (fix.001); 4 tasks are worked on or land as "
        "slots come free",
    }


@pytest.mark.parametrize(
    ("standing", "said"),
    [
        (Standing(view(phase=BuildPhase.PAUSED), reason="no model"), "longshot resume b (paused: no model)"),
        (Standing(view(), driven=False), "nothing, as Longshot is not running: longshot resume b"),
        (Standing(view(), mender="other"), "build other mends it"),
        (Standing(view(task(1, LandingState.LANDED), phase=BuildPhase.FINISHED)), "it has ended: longshot report b"),
        (Standing(view(task(1, LandingState.CONFLICT), phase=BuildPhase.FINISHED)), "longshot retry b.TASK"),
        (Standing(view(task(1), task(2))), "asked again after 3 more handoffs, or the last"),
        (
            Standing(
                view(
                    task(1, LandingState.LANDED),
                    rounds=(
                        IterationView(
                            ROUND.key,
                            IterationStatus.DONE,
                            planned=True,
                            tasks=("r001-01",),
                            handoffs_seen=("r001-01",),
                        ),
                        IterationView(IterationKey("b", "root", 2), IterationStatus.DONE, planned=True),
                    ),
                )
            ),
            "the last sweep of main, then the report",
        ),
    ],
)
def test_what_comes_next(standing: Standing, said: str) -> None:
    assert said in dict(explained(standing))["next"]


def test_a_thousand_tasks_are_still_a_screen() -> None:
    tasks = [task(n, LandingState.LANDED) for n in range(1, 50)] + [task(n) for n in range(50, 100)]
    why = {t.id: "its turn" for t in tasks if t.landing is None}
    work = tuple(AtWork(t.id, "local", 1.0) for t in tasks[60:90])
    facts = explained(Standing(view(*tasks), why=why, at_work=work))
    assert all(len(text) < 400 for _, text in facts)
    assert dict(facts)["running"].endswith("and 26 more")


def test_work_that_only_this_home_has_is_said() -> None:
    assert "takes branches only" in dict(explained(Standing(view(), only_here=2)))["only here"]
    assert dict(explained(Standing(view())))["done"] == "nothing is planned yet"
