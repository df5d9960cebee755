"""The places the almanac knows."""

import difflib
from typing import NamedTuple


class Place(NamedTuple):
    name: str
    latitude: float  # degrees, north is positive
    longitude: float  # degrees, east is positive
    utc_offset: float  # hours ahead of UTC, standard time


PLACES = [
    Place("Kyoto", 35.01, 135.77, 9),
    Place("Lisbon", 38.72, -9.14, 0),
    Place("Nairobi", -1.29, 36.82, 3),
    Place("Quito", -0.18, -78.47, -5),
    Place("Reykjavik", 64.15, -21.94, 0),
    Place("Tromso", 69.65, 18.96, 1),
    Place("Ushuaia", -54.80, -68.30, -3),
    Place("Wellington", -41.29, 174.78, 12),
]


def find(name):
    """The place of that name, in any case; raises ValueError with a suggestion."""
    known = {place.name.lower(): place for place in PLACES}
    if name.lower() in known:
        return known[name.lower()]
    near = difflib.get_close_matches(name.lower(), known, 1)
    hint = "did you mean %s?" % known[near[0]].name if near else "I know " + ", ".join(p.name for p in PLACES)
    raise ValueError("I do not know the place %r; %s" % (name, hint))
