"""How long runs that were asked to stop may take to keep what their workers have done, and how long others wait for them."""

_GRACE_S = 12.0
_PER_WORKER_S = 0.2  # they are salvaged a few at a time, as many as the machine can do without slowing each other down
_LONGEST_S = 50.0  # after 60 s Dagster's own monitoring calls a run CANCELED whose process still lives
_AFTERWARDS_S = 2.0


def grace_s(living: int) -> float:
    """Seconds from the interrupt until a run leaves `living` steps behind that take no notice."""
    return min(_LONGEST_S, _GRACE_S + _PER_WORKER_S * living)


def runs_end_s(workers: int) -> float:
    """Seconds to wait for the end of runs with up to `workers` workers between them before they are ended by force."""
    return grace_s(workers) + _AFTERWARDS_S
