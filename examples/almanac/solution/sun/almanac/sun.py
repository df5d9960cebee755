"""When the sun rises and sets (the sunrise equation, good to a few minutes)."""

import datetime
import math

from almanac import places

HORIZON = -0.833  # degrees: refraction, and half the sun's disc


class StaysUp(ValueError):
    """The sun does not come down to that height on that day."""


class StaysDown(ValueError):
    """The sun does not climb to that height on that day."""


def crossing(place, day, height=HORIZON):
    """(morning, evening): hours after midnight UTC at which the sun crosses `height` degrees."""
    noon = day.toordinal() - datetime.date(2000, 1, 1).toordinal() - place.longitude / 360
    anomaly = math.radians(357.5291 + 0.98560028 * noon)
    center = 1.9148 * math.sin(anomaly) + 0.02 * math.sin(2 * anomaly) + 0.0003 * math.sin(3 * anomaly)
    ecliptic = anomaly + math.radians(center + 180 + 102.9372)
    transit = noon + 0.0053 * math.sin(anomaly) - 0.0069 * math.sin(2 * ecliptic)
    declination = math.asin(math.sin(ecliptic) * math.sin(math.radians(23.44)))
    latitude = math.radians(place.latitude)
    angle = (math.sin(math.radians(height)) - math.sin(latitude) * math.sin(declination)) / (
        math.cos(latitude) * math.cos(declination)
    )
    if angle < -1:
        raise StaysUp("the sun does not set in %s on %s" % (place.name, day))
    if angle > 1:
        raise StaysDown("the sun does not rise in %s on %s" % (place.name, day))
    half = math.degrees(math.acos(angle)) / 360
    return ((transit - half) * 24 + 12) % 24, ((transit + half) * 24 + 12) % 24


def clock(hours):
    minutes = round(hours * 60) % (24 * 60)
    return "%02d:%02d" % (minutes // 60, minutes % 60)


def run(arguments):
    if len(arguments) < 2:
        raise ValueError("sun needs a date and a place, as in: sun 2026-06-21 Lisbon")
    day, place = datetime.date.fromisoformat(arguments[0]), places.find(" ".join(arguments[1:]))
    try:
        rises, sets = crossing(place, day)
    except (StaysUp, StaysDown) as all_day:
        return "T" + str(all_day)[1:]
    length = (sets - rises) % 24
    return "%s, %s\n\nsunrise %s\nsunset  %s\nthe day is %d h %02d min long" % (
        place.name, day, clock(rises), clock(sets), int(length), int(length * 60) % 60,
    )  # fmt: skip
