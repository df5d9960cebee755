"""The figures of one iteration, counted from its documents."""

from collections.abc import Iterable, Sequence
from typing import Literal

from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import (
    Handoff,
    MetricsSnapshot,
    Plan,
    Sweep,
    WorkerRun,
)


def snapshot(
    plan: Plan,
    handoffs: Sequence[Handoff],
    landings: Sequence[LandingOutcome],
    sweep: Sweep,
    runs: Sequence[WorkerRun],
    plans: Iterable[Plan],
    iteration_ms: int,
) -> MetricsSnapshot:
    """`runs` and `plans` are those of the whole build so far; what concerns only this iteration is picked from them."""
    states = [o.state for o in landings]
    mine = {t.id for t in plan.dispatched}
    return MetricsSnapshot(
        iteration=plan.iteration,
        tasks=len(handoffs),
        landed=states.count(LandingState.LANDED),
        conflicts=states.count(LandingState.CONFLICT),
        withheld=states.count(LandingState.WITHHELD),
        tokens=plan.tokens + _tokens(r for r in runs if r.task in mine),
        tokens_build=sum(p.tokens for p in plans) + _tokens(runs),
        lines_added=sum(h.metrics.lines_added for h in handoffs),
        lines_removed=sum(h.metrics.lines_removed for h in handoffs),
        worker_ms=sum(h.metrics.duration_ms for h in handoffs),
        iteration_ms=iteration_ms,
        health=health(sweep),
    )


def health(sweep: Sweep) -> Literal["green", "red", "unchecked"]:
    if sweep.red:
        return "red"
    return "green" if sweep.green else "unchecked"


def _tokens(runs: Iterable[WorkerRun]) -> int:
    return sum(r.tokens_in + r.tokens_out for r in runs)
