"""What the rules of `core/lifecycle.py` see of a build: its whole ledger, folded into one small picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from longshot_dagster.core.ids import FIX, IterationKey
from longshot_dagster.core.lifecycle import BuildView, IterationStatus, IterationView, SweepView, TaskView
from longshot_dagster.core.models import BuildRequest, BuildState, CheckStatus, Plan, Sweep, TaskKind
from longshot_dagster.core.settings import RungName
from longshot_dagster.core.task_gist import TaskGist

if TYPE_CHECKING:
    from longshot_dagster.adapters.ledger.ledger import BuildLedger


@dataclass(frozen=True)
class Folded:
    """A view and what it was folded from: documents that have not changed are the same objects at the next look."""

    request: BuildRequest
    state: BuildState
    plans: Mapping[IterationKey, Plan | None]
    statuses: Mapping[IterationKey, IterationStatus]
    gists: Mapping[str, TaskGist]
    sweeps: Sequence[Sweep]
    view: BuildView

    def is_of(self, other: "Folded") -> bool:
        """Would the other fold to the same view?"""
        return (
            self.gists is other.gists
            and self.request is other.request
            and self.state == other.state
            and self.statuses == other.statuses
            and all(self.plans[k] is p for k, p in other.plans.items())
            and len(self.sweeps) == len(other.sweeps)
            and all(a is b for a, b in zip(self.sweeps, other.sweeps, strict=True))
        )


def fold(ledger: "BuildLedger", before: Folded | None) -> Folded:
    """The fold's input from every document, `before` itself when nothing has changed since; what is missing is restored.

    Raises LedgerError for what is damaged beyond repair.
    """
    request, state, gists = ledger.request(), ledger.state(), ledger.gists()
    plans = {key: ledger.plan(key) for key in ledger.iterations()}
    same = before is not None and before.gists is gists and before.plans.keys() == plans.keys()
    if not same and _restored(ledger, plans, gists):
        gists = ledger.gists()
    statuses = {key: iteration_status(ledger, key, state.attempts.get(key.short, 1)) for key in plans}
    found = Folded(request, state, plans, statuses, gists, ledger.sweeps(), _NOTHING)
    if before is not None and before.plans.keys() == plans.keys() and before.is_of(found):
        return before
    return Folded(request, state, plans, statuses, gists, found.sweeps, _view(ledger.build, found))


_NOTHING = BuildView("", BuildState().phase)


def _restored(ledger: "BuildLedger", plans: dict[IterationKey, Plan | None], gists: Mapping[str, TaskGist]) -> bool:
    """Put back what vanished though other documents speak of it; was there anything?"""
    found = False
    worked = {g.iteration for g in gists.values() if g.handoff is not None}
    for key in [k for k, plan in plans.items() if plan is None and k.short in worked]:
        plans[key] = ledger.restore_plan(key)
        found = True
    for task in [t.id for plan in plans.values() if plan for t in plan.tasks if t.id not in gists]:
        ledger.restore_task(task)
        found = True
    return found


def _view(build: str, of: Folded) -> BuildView:
    attempts = of.state.attempts
    plans = [p for p in of.plans.values() if p]
    worked = {t.id: t for p in plans for t in p.dispatched}
    fixed = {r for p in plans for t in p.tasks if t.kind is TaskKind.CONFLICT_FIX for r in t.replaces}
    last_red = max((int(n.removeprefix("red-final.")) for n in attempts if n.startswith("red-final.")), default=0)
    return BuildView(
        build=build,
        phase=of.state.phase,
        iterations=tuple(
            IterationView(
                key=key,
                status=of.statuses[key],
                attempt=attempts.get(key.short, 1),
                planned=plan is not None,
                tasks=tuple(t.id for t in plan.tasks) if plan else (),
                handoffs_seen=plan.handoffs_seen if plan else (),
                sweep=plan.sweep if plan else None,
            )
            for key, plan in of.plans.items()
        ),
        tasks=tuple(
            _task_view(g, t.delegated if (t := worked.get(g.id)) else g.delegated, fixed) for g in of.gists.values()
        ),
        sweep=_sweep_view(of.sweeps),
        finalize_attempt=last_red,
        final_sweep=attempts.get(f"red-final.{last_red}"),
        finalization_max_attempts=of.request.settings.finalization_max_attempts,
        max_iterations=of.request.settings.max_iterations,
        fixes_conflicts=RungName.FIX in of.request.settings.rungs,
    )


def iteration_status(ledger: "BuildLedger", key: IterationKey, attempt: int) -> IterationStatus:
    """How attempt `attempt` of `key` stands."""
    if ledger.metrics(key):
        return IterationStatus.DONE
    failure = ledger.failure(key)
    return IterationStatus.FAILED if failure and failure.attempt >= attempt else IterationStatus.OPEN


def _task_view(gist: TaskGist, delegated: bool, fixed: set[str]) -> TaskView:
    return TaskView(
        id=gist.id,
        planner=gist.planner,
        delegated=delegated,
        is_fix=gist.planner == FIX,
        handoff=gist.handoff,
        landing=gist.landing,
        fix_planned=gist.id in fixed,
    )


def _sweep_view(sweeps: Sequence[Sweep]) -> SweepView | None:
    if not sweeps:
        return None
    last = sweeps[-1]
    was_green = {c.name for s in sweeps[:-1] for c in s.checks if c.status is CheckStatus.GREEN}
    return SweepView(
        number=last.number,
        head=last.head,
        red=last.red,
        regression=bool(last.conflict_markers) or any(c.red and c.name in was_green for c in last.checks),
        last_well=max((s.number for s in sweeps if not s.red), default=0),
    )
