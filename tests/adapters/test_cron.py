"""When recurring items tick: UTC, five fields, and one line for what is no schedule."""

from datetime import UTC, datetime

import pytest

from longshot_dagster.adapters.host import cron
from longshot_dagster.core.errors import WrongUse


def utc(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


NOW = utc("2026-03-29 01:30:20")  # Europe loses the hour after 01:00 UTC on this day; UTC does not


@pytest.mark.parametrize(
    ("expression", "before", "after"),
    [
        ("* * * * *", "2026-03-29 01:30", "2026-03-29 01:31"),
        ("30 1 * * *", "2026-03-29 01:30", "2026-03-30 01:30"),
        ("0 2 * * *", "2026-03-28 02:00", "2026-03-29 02:00"),
        ("0 3 * * 1-5", "2026-03-27 03:00", "2026-03-30 03:00"),
        ("0 0 29 2 *", "2024-02-29 00:00", "2028-02-29 00:00"),
        ("@Weekly", "2026-03-29 00:00", "2026-04-05 00:00"),
        ("0 0 1,15 * MON", "2026-03-23 00:00", "2026-03-30 00:00"),
    ],
)
def test_the_tick_before_and_the_tick_after(expression: str, before: str, after: str) -> None:
    assert (cron.latest(expression, NOW), cron.following(expression, NOW)) == (utc(before), utc(after))


def test_a_tick_counts_from_its_first_second() -> None:
    assert cron.latest("0 2 * * *", utc("2026-03-29 02:00:00")) == utc("2026-03-29 02:00")
    assert cron.latest("0 2 * * *", utc("2026-03-29 01:59:59")) == utc("2026-03-28 02:00")


@pytest.mark.parametrize(
    "expression",
    [
        "every day",
        "* * * * * *",
        "60 * * * *",
        "0 0 30 2 *",
        "*/0 * * * *",
        "@reboot",
        "5-1 * * * *",
        "* " * 200,
        "\x1b[31m * * * *",
    ],
)
def test_what_is_no_schedule_is_one_line(expression: str) -> None:
    with pytest.raises(WrongUse, match=r"^cron: .* is not a schedule") as raised:
        cron.check(expression)
    assert "\x1b" not in str(raised.value)
