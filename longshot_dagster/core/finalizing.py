"""How a finalization ends, decided from the ledger after landings are drained and main is swept."""

from dataclasses import dataclass

from longshot_dagster.core.ids import FIX
from longshot_dagster.core.lifecycle import BuildView, Finalize, next_steps
from longshot_dagster.core.models import Sweep


@dataclass(frozen=True)
class WorkLeft:
    """There is something to do (a conflict to fix, a task tried again meanwhile); finalization comes again after it."""


@dataclass(frozen=True)
class AskForFixes:
    """Main is red and nobody has answered this sweep: a fix iteration does, then finalization comes again."""

    sweep: int


@dataclass(frozen=True)
class Report:
    """Nothing more will be tried."""


Outcome = WorkLeft | AskForFixes | Report


def work_left(view: BuildView) -> bool:
    """Is there anything to do but finalize?"""
    return _unsettled(view) or any(not isinstance(step, Finalize) for step in next_steps(view))


def outcome(view: BuildView, number: int, sweep: Sweep | None) -> Outcome:
    """The end of finalization `number` (from 1), whose sweep is saved in `view`; None: sweeping is switched off."""
    if _unsettled(view):
        return WorkLeft()
    if sweep is None or not sweep.red or number > view.finalization_max_attempts:
        return Report()
    answered = any(i.sweep == sweep.number for i in view.iterations if i.key.planner == FIX)
    return Report() if answered else AskForFixes(sweep.number)


def _unsettled(view: BuildView) -> bool:
    """A person may have given a task to a new worker since finalization began."""
    return any(not task.settled for task in view.tasks)
