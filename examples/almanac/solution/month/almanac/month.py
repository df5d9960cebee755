"""A month as a calendar, with the moon's principal phases."""

import calendar
import datetime
import re

from almanac import moon

MARKS = "●◐○◑"  # new, first quarter, full, last quarter


def mark(day):
    """The phase that falls on `day` (UTC), or a blank."""
    start, end = moon.elongation(day, 0), moon.elongation(day, 24)
    if start // 90 == end // 90:
        return " "
    return MARKS[int(end // 90)]


def run(arguments):
    if len(arguments) != 1 or not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", arguments[0]):
        raise ValueError("month needs a month, as in: month 2026-12")
    year, month = (int(part) for part in arguments[0].split("-"))
    lines = ["%s %d" % (calendar.month_name[month], year), "Mo  Tu  We  Th  Fr  Sa  Su"]
    for week in calendar.Calendar().monthdayscalendar(year, month):
        days = ["%2d%s" % (day, mark(datetime.date(year, month, day))) if day else "   " for day in week]
        lines.append(" ".join(days).rstrip())
    return "\n".join(lines)
