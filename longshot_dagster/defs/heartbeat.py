"""The sensor that keeps checkpoints of quiet builds fresh; a landing brings its own."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.defs.ticks import longshot_of

if TYPE_CHECKING:
    from longshot_dagster.adapters.landing.heartbeat import Heartbeat

_CHECKPOINTS = (
    "Pushes a checkpoint of every build under way at least once a minute, so that others see who drives it, and a last one "
    "when it stands still. Pauses a build that another installation has taken over."
)


@cache
def _heart(root: str) -> "Heartbeat":
    from longshot_dagster.adapters.landing.heartbeat import Heartbeat
    from longshot_dagster.core.clock import SystemClock

    return Heartbeat(Home(Path(root)), SystemClock())


@dg.sensor(minimum_interval_seconds=10, default_status=dg.DefaultSensorStatus.RUNNING, description=_CHECKPOINTS)
def checkpoints(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    longshot = longshot_of(context)
    lines = _heart(str(longshot.installation().root)).beat(longshot.ledger().unfinished())
    for line in lines:
        context.log.warning(line)
    return dg.SkipReason("; ".join(lines) or "whoever drives a build is known")
