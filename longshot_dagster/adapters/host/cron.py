"""When a cron expression ticks: five fields, always in UTC, so that no day has a tick twice or not at all."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from longshot_dagster.core.display import one_line
from longshot_dagster.core.errors import WrongUse

_NAMED = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
}
_MAX = 100  # characters


def check(cron: str) -> None:
    """Raises WrongUse for what is no cron expression, or for one that never ticks."""
    following(cron, 0.0)


def latest(cron: str, now: float) -> float:
    """The newest tick at or before `now`, in seconds since the epoch. Raises WrongUse."""
    minute = datetime.fromtimestamp(now, UTC).replace(second=0, microsecond=0)
    return _first(cron, minute + timedelta(minutes=1), reverse=True)


def following(cron: str, now: float) -> float:
    """The first tick after `now`, in seconds since the epoch. Raises WrongUse."""
    return _first(cron, datetime.fromtimestamp(now, UTC), reverse=False)


def _first(cron: str, start: datetime, *, reverse: bool) -> float:
    from cronsim import CronSim, CronSimError

    expression = _NAMED.get(cron.strip().lower(), cron)
    try:
        if len(cron) > _MAX or len(expression.split()) != 5:
            raise CronSimError("it has five fields: minute, hour, day of the month, month, day of the week")
        ticks: Iterator[datetime] = CronSim(expression, start, reverse=reverse)
        return next(ticks).timestamp()
    except CronSimError as e:
        said = str(e)[:1].lower() + str(e)[1:]
        raise WrongUse(f"cron: {one_line(cron, 60)} is not a schedule: {said}") from e
    except StopIteration:
        raise WrongUse(f"cron: {one_line(cron, 60)} never comes about") from None
