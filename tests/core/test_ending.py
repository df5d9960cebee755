"""How long a stopped run may take: longer with many workers, never so long that Dagster gives it up, and others wait longer."""

import pytest

from longshot_dagster.core.ending import grace_s, runs_end_s

DAGSTERS_PATIENCE_S = 60  # dagster.yaml: run_monitoring.cancel_timeout_seconds


@pytest.mark.parametrize(("living", "seconds"), [(0, 12.0), (20, 16.0), (100, 32.0), (1_000, 50.0)])
def test_every_worker_adds_to_the_time_up_to_a_bound(living: int, seconds: float) -> None:
    assert grace_s(living) == seconds
    assert grace_s(living) < runs_end_s(living) < DAGSTERS_PATIENCE_S
