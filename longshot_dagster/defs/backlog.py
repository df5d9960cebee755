"""The backlog in Dagster: a sensor that starts what may start, and a schedule whose minutes are the ticks of recurring items."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable

import dagster as dg

from longshot_dagster.adapters import settings
from longshot_dagster.adapters.builds.backlog import Ask, Backlog, Fate, Turn
from longshot_dagster.core.backlog import Standing, Start, State
from longshot_dagster.core.clock import Clock, SystemClock
from longshot_dagster.core.display import one_line
from longshot_dagster.core.errors import LongshotError
from longshot_dagster.defs import partitions
from longshot_dagster.defs.building import start_build
from longshot_dagster.defs.ended_runs import failure_line, undecided
from longshot_dagster.defs.pausing import reason_of
from longshot_dagster.defs.resources import LongshotResource
from longshot_dagster.defs.ticks import instance_of, longshot_of

CLOCK: Clock = SystemClock()

_SENSOR = (
    "Starts a build for every item of the backlog folder, each exactly once, the most urgent first, and only so many at "
    "a time. `longshot backlog` lists the items and what each waits for."
)
_SCHEDULE = (
    "Every minute: notes which recurring items of the backlog (those with `cron`, in UTC) have come due, and starts "
    "them. However many ticks were missed, an item is started once."
)
_PREFIX = re.compile(r"^start_build failed: (?:longshot_dagster[\w.]+: )?")
_SHOWN = 5


@dg.sensor(
    name="backlog",
    job_name=start_build.name,  # the job itself would be bound again, which Dagster warns about
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=_SENSOR,
)
def backlog_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    try:
        turn = backlog_of(longshot_of(context)).turn(fate_in(instance_of(context)))
    except LongshotError as e:
        return dg.SensorResult(skip_reason=reason_of(e), cursor=_logged(context, [reason_of(e)]))
    cursor = _logged(context, troubles(turn.standings))
    if turn.asks:
        return dg.SensorResult(run_requests=[request(ask) for ask in turn.asks], cursor=cursor)
    return dg.SensorResult(skip_reason=summary(turn), cursor=cursor)


@dg.schedule(
    name="recurring_backlog",
    job_name=start_build.name,  # the job itself would be bound again, which Dagster warns about
    cron_schedule="* * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description=_SCHEDULE,
)
def recurring_backlog(
    context: dg.ScheduleEvaluationContext, longshot: LongshotResource
) -> list[dg.RunRequest] | dg.SkipReason:
    try:
        # Not the minute alone: after a pause Dagster asks about some that are past, and their ticks count as one.
        now = max(context.scheduled_execution_time.timestamp(), CLOCK.now())
        turn = backlog_of(longshot).turn(fate_in(context.instance), ticking=now, recurring_only=True)
    except LongshotError as e:
        return dg.SkipReason(reason_of(e))
    return [request(ask) for ask in turn.asks] or dg.SkipReason(summary(turn))


def backlog_of(longshot: LongshotResource) -> Backlog:
    """The backlog that this stack was started with. Raises WrongUse."""
    home = longshot.installation()
    place = settings.backlog(os.environ, None, home)
    budget = settings.launched({}, {}).settings.max_tokens_per_build
    return Backlog(home, place.folder, place.builds, budget, CLOCK)


def request(ask: Ask) -> dg.RunRequest:
    """The launch of `start_build` under the start's own name and key."""
    start = ask.start
    assert start.order is not None
    order = start.order
    config = {
        "request": order.request,
        "repository": order.repository,
        "land_on": order.land_on,
        "build": start.build,
        "settings": dict(order.settings),
    }
    return dg.RunRequest(
        run_key=start.key,
        run_config={"ops": {"start_build": {"config": config}}},
        tags={
            partitions.BUILD_TAG: start.build,
            partitions.BACKLOG_TAG: ask.item,
            partitions.START_TAG: start.key,
            **partitions.RETRY_TAGS,
        },
    )


def fate_in(instance: dg.DagsterInstance) -> Callable[[Start], Fate]:
    """What became of the launch of a start, as far as `instance` knows: its newest run, Dagster's retries included."""

    def fate(start: Start) -> Fate:
        launched = dg.RunsFilter(job_name="start_build", tags={partitions.START_TAG: start.key})
        for record in instance.get_run_records(launched, limit=1):
            run = record.dagster_run
            if not run.is_finished or undecided(record, CLOCK.now()) or run.tags.get("dagster/will_retry") == "true":
                return Fate("under way")
            if run.status is dg.DagsterRunStatus.CANCELED:
                return Fate("cancelled", "its start was cancelled")
            if run.is_success:
                return Fate("succeeded")
            return Fate("failed", _PREFIX.sub("", failure_line(instance, run)))
        return Fate("unseen")

    return fate


def summary(turn: Turn) -> str:
    """Why nothing starts now, in one line."""
    if turn.found.missing:
        return one_line(f"no backlog: {turn.found.missing}", 500)
    counted = Counter(s.state for s in turn.standings)
    states = ", ".join(f"{counted[state]} {state.value}" for state in State if counted[state])
    return one_line("; ".join([states or "the backlog is empty", *troubles(turn.standings)]), 1_000)


def troubles(standings: Iterable[Standing]) -> list[str]:
    """One line for each item that somebody must mend, the first few of them."""
    lines = [f"{s.name}: {s.why}" for s in standings if s.state in (State.MALFORMED, State.REFUSED)]
    more = [f"{len(lines) - _SHOWN} more; `longshot backlog` lists them"] if len(lines) > _SHOWN else []
    return [one_line(line, 300) for line in lines[:_SHOWN]] + more


def _logged(context: dg.SensorEvaluationContext, lines: list[str]) -> str:
    """Log what was not logged at the tick before; the cursor that remembers it."""
    before = (context.cursor or "").split("\n")
    for line in lines:
        if line not in before:
            context.log.warning(line)
    return "\n".join(lines)
