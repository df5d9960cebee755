"""How busy a fleet was: worker-seconds out of those there were, from the first full occupancy to the last dispatch."""

from collections.abc import Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """A worker's time at one task, seconds."""

    began: float
    ended: float


def busy_share(spans: Sequence[Span], workers: int) -> float | None:
    """Between 0 and 1; None when the fleet was never full, or nothing was dispatched after that."""
    full = first_full(spans, workers)
    last = max((s.began for s in spans), default=0.0)
    if full is None or last <= full:
        return None
    worked = sum(max(0.0, min(s.ended, last) - max(s.began, full)) for s in spans)
    return worked / (workers * (last - full))


def first_full(spans: Sequence[Span], workers: int) -> float | None:
    """When `workers` were at work at once for the first time."""
    changes = sorted([(s.began, 1) for s in spans] + [(s.ended, -1) for s in spans])
    at_work = 0
    for moment, change in changes:
        at_work += change
        if at_work >= workers:
            return moment
    return None
