"""The golden hours: the low sun photographers wait for."""

import datetime
import re

from almanac import places, sun

HIGH = 6.0  # degrees; above that the light is ordinary


def where(text):
    """A place by its name or by its coordinates, `LATITUDE,LONGITUDE`."""
    if not re.fullmatch(r"-?\d+(\.\d+)?,-?\d+(\.\d+)?", text):
        return places.find(text)
    latitude, longitude = (float(part) for part in text.split(","))
    if abs(latitude) >= 90 or abs(longitude) > 180:
        raise ValueError("%s is nowhere on earth" % text)
    return places.Place(text, latitude, longitude)


def run(arguments):
    if len(arguments) < 2:
        raise ValueError("golden needs a date and a place, as in: golden 2026-06-21 38.72,-9.14")
    day, place = datetime.date.fromisoformat(arguments[0]), where(" ".join(arguments[1:]))
    try:
        sunrise, sunset = sun.crossing(place, day)
        high, low = sun.crossing(place, day, HIGH)
    except sun.StaysUp:
        return "The sun stays up in %s: golden at its lowest, all night." % place.name
    except sun.StaysDown:
        return "The sun stays low in %s: golden all day, as far as it rises." % place.name
    return "golden from %s to %s\nand from    %s to %s" % tuple(map(sun.clock, (sunrise, high, low, sunset)))
