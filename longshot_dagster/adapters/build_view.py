"""What the rules of `core/lifecycle.py` see of a build: its whole ledger, folded into one small picture."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from longshot_dagster.core.ids import FIX, IterationKey
from longshot_dagster.core.lifecycle import BuildView, IterationStatus, IterationView, SweepView, TaskView
from longshot_dagster.core.models import CheckStatus, Sweep, Task, TaskKind

if TYPE_CHECKING:
    from longshot_dagster.adapters.ledger import BuildLedger


def build_view(ledger: "BuildLedger") -> BuildView:
    """The fold's input, read from every document."""
    request, state = ledger.request(), ledger.state()
    plans = {key: ledger.plan(key) for key in ledger.iterations()}
    worked = {t.id: t for p in plans.values() if p for t in p.dispatched}
    fixed = {r for p in plans.values() if p for t in p.tasks if t.kind is TaskKind.CONFLICT_FIX for r in t.replaces}
    red_ends = [int(n.removeprefix("red-final.")) for n in state.attempts if n.startswith("red-final.")]
    last_red = max(red_ends, default=0)
    return BuildView(
        build=ledger.build,
        phase=state.phase,
        iterations=tuple(
            IterationView(
                key=key,
                status=iteration_status(ledger, key, state.attempts.get(key.short, 1)),
                attempt=state.attempts.get(key.short, 1),
                planned=plan is not None,
                tasks=tuple(t.id for t in plan.tasks) if plan else (),
                handoffs_seen=plan.handoffs_seen if plan else (),
                sweep=plan.sweep if plan else None,
            )
            for key, plan in plans.items()
        ),
        tasks=tuple(_task_view(ledger, t, worked.get(t), t in fixed) for t in ledger.task_ids()),
        sweep=_sweep_view(ledger.sweeps()),
        finalize_attempt=last_red,
        final_sweep=state.attempts.get(f"red-final.{last_red}"),
        finalization_max_attempts=request.settings.finalization_max_attempts,
        max_iterations=request.settings.max_iterations,
    )


def iteration_status(ledger: "BuildLedger", key: IterationKey, attempt: int) -> IterationStatus:
    """How attempt `attempt` of `key` stands."""
    if ledger.metrics(key):
        return IterationStatus.DONE
    failure = ledger.failure(key)
    return IterationStatus.FAILED if failure and failure.attempt >= attempt else IterationStatus.OPEN


def _task_view(ledger: "BuildLedger", task_id: str, worked: Task | None, fix_planned: bool) -> TaskView:
    task = worked or ledger.existing_task(task_id)
    handoff, landing = ledger.handoff(task_id), ledger.landing(task_id)
    return TaskView(
        id=task_id,
        planner=task.planner,
        delegated=task.delegated,
        is_fix=task.planner == FIX,
        handoff=handoff.status if handoff else None,
        landing=landing.state if landing else None,
        fix_planned=fix_planned,
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
