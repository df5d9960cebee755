"""What the latency bench measures, computed from time stamps."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from longshot_dagster.adapters.ledger.ledger import BuildLedger
from longshot_dagster.core.ids import ROOT
from longshot_dagster.core.lifecycle import ROOT_REPLANS_AFTER
from waiting.steps import WorkerStep


def replan_waits(ledger: BuildLedger, asked: Sequence[Mapping[str, Any]]) -> list[float]:
    """Seconds from the third handoff that a plan had not seen to the root planner's next request, one per such round.

    A round whose predecessor was still planning at that moment counts from the end of that planning.
    """
    written = {task: handoff_time(ledger, task) for task in ledger.task_ids() if ledger.handoff(task)}
    requested = {}
    for entry in asked:
        requested.setdefault(str(entry["task"]), float(entry["time"]))
    keys = sorted((key for key in ledger.iterations() if key.planner == ROOT), key=lambda key: key.number)
    plans = {key: ledger.plan(key) for key in keys}
    waits = []
    seen: set[str] = set()
    for before, key in pairwise(keys):
        earlier, plan = plans[before], plans[key]
        if earlier is None or plan is None or key.short not in requested:
            continue
        seen |= set(earlier.handoffs_seen)
        new = sorted(written[task] for task in plan.handoffs_seen if task not in seen and task in written)
        if len(new) >= ROOT_REPLANS_AFTER:
            waits.append(requested[key.short] - max(new[ROOT_REPLANS_AFTER - 1], earlier.planned_at or 0.0))
    return waits


def handoff_time(ledger: BuildLedger, task: str) -> float:
    """When the handoff of `task` was written: seconds since the epoch."""
    return float((ledger.directory / "tasks" / task / "handoff.json").stat().st_mtime)


def slot_waits(steps: Sequence[WorkerStep], slots: int) -> list[float]:
    """Seconds from the end of a step to the beginning of the one of another run that took its slot.

    Only where all slots were taken and that step was waiting already.
    """
    moments = sorted([(s.ended, 0, s) for s in steps] + [(s.began, 1, s) for s in steps], key=lambda m: m[:2])
    waits: list[float] = []
    taken = 0
    free: list[WorkerStep] = []  # ended while all slots were taken, oldest first
    for at, begins, step in moments:
        if not begins:
            if taken >= slots or free:
                free.append(step)
            taken -= 1
            continue
        taken += 1
        if not free:
            continue
        left = free.pop(0)
        if step.ready < left.ended and step.run != left.run:
            waits.append(at - left.ended)
    return waits


def decile(values: Sequence[float], tenths: int) -> float | None:
    """The value that `tenths` tenths of `values` do not exceed; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, len(ordered) * tenths // 10)], 2)
