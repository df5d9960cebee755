"""One sweep: every check of a commit in a clean checkout, inside a sandbox without a model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from longshot_dagster.adapters.ledger.ledger import BuildLedger
from longshot_dagster.adapters.workers.order_run import carry_out, end_sandboxes, retried, sandbox_for
from longshot_dagster.core.clock import Clock
from longshot_dagster.core.models import MAX_LINE, BuildRequest, Sweep
from longshot_dagster.core.sandbox import SandboxProvider
from longshot_dagster.core.working import check_results, sweep_order

_MAX_MARKERS = 1_000


class Mirror(Protocol):
    """What a sweep needs of the repository."""

    def bundle(self, base: str) -> Path: ...
    def files_with_conflict_markers(self, oid: str) -> Sequence[str]: ...


def run_sweep(
    ledger: BuildLedger,
    request: BuildRequest,
    provider: SandboxProvider,
    mirror: Mirror,
    clock: Clock,
    head: str,
    number: int,
    iteration: str,
    cancelled: Callable[[], bool],
) -> Sweep:
    """The sweep, not saved; one that could not run says so in `error` and is not green. Raises Cancelled."""
    started_at = clock.now()
    order = sweep_order(request, head, number)

    def once(attempt: int) -> Sweep:
        markers = tuple(mirror.files_with_conflict_markers(head))[:_MAX_MARKERS]
        # Numbers are given out when a sweep is saved: two iterations may sweep under the same one.
        tags = {"build": ledger.build, "iteration": iteration or "end", "sweep": str(number)}
        end_sandboxes(provider, tags)  # of a process that was killed at this very sweep
        with sandbox_for(provider, request.settings, tags, order.deadline_s) as sandbox:
            delivery = carry_out(sandbox, order, mirror.bundle(head), order.deadline_s + 30, cancelled)
        result = delivery.result
        return Sweep(
            number=number,
            head=head,
            iteration=iteration,
            checks=check_results(result) if result else (),
            conflict_markers=markers,
            error=(result.error if result else delivery.problem)[:MAX_LINE],
            started_at=started_at,
            ended_at=clock.now(),
        )

    def failed(why: str) -> Sweep:
        return Sweep(
            number=number,
            head=head,
            iteration=iteration,
            error=f"the sweep could not run: {why}"[:MAX_LINE],
            started_at=started_at,
            ended_at=clock.now(),
        )

    return retried(once, failed, clock, cancelled)
