"""Meteor showers, and whether the moon will let you see them."""

import datetime

from almanac import moon

SHOWERS = [  # name, month and day of the peak, meteors an hour under a perfect sky
    ("Quadrantids", 1, 3, 110),
    ("Lyrids", 4, 22, 18),
    ("Eta Aquariids", 5, 6, 50),
    ("Delta Aquariids", 7, 30, 25),
    ("Perseids", 8, 12, 100),
    ("Orionids", 10, 21, 20),
    ("Leonids", 11, 17, 15),
    ("Geminids", 12, 14, 150),
    ("Ursids", 12, 22, 10),
]
DARK = 0.35  # of the moon's disc; above it only bright meteors show


def coming(day, count=3):
    """The next `count` showers from `day` on: [(peak, name, meteors an hour)]."""
    peaks = [
        (datetime.date(year, month, of_month), name, rate)
        for year in (day.year, day.year + 1)
        for name, month, of_month, rate in SHOWERS
    ]
    return [shower for shower in sorted(peaks) if shower[0] >= day][:count]


def run(arguments):
    day = datetime.date.fromisoformat(arguments[0]) if arguments else datetime.date.today()
    lines = []
    for peak, name, rate in coming(day):
        light = moon.lit(peak)
        sky = "dark sky" if light < DARK else "moonlight"
        lines.append("%-16s %s  up to %3d an hour, %s (moon %d %%)" % (name, peak, rate, sky, round(light * 100)))
    return "\n".join(lines)
