"""One page of the almanac as HTML, with everything in it."""

import datetime
import html

from almanac import drawing, moon, places, sun

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ background: #0d1326; color: #f4edd8; font-family: Georgia, serif; text-align: center; padding: 3em }}
h1 {{ font-weight: normal }} p {{ font-size: 1.2em }}
</style></head>
<body><h1>{title}</h1>{figure}<p>{moon}</p><p>{sun}</p></body></html>"""


def render(day, place):
    try:
        light = "The sun rises at %s and sets at %s." % tuple(sun.clock(hours) for hours in sun.crossing(place, day))
    except (sun.StaysUp, sun.StaysDown) as all_day:
        light = "Today %s." % all_day
    return PAGE.format(
        title=html.escape("%s, %d %s" % (place.name, day.day, day.strftime("%B %Y"))),
        figure=drawing.moon(moon.elongation(day)),
        moon=html.escape("%s, %d %% lit" % (moon.name(day), round(moon.lit(day) * 100))),
        sun=html.escape(light),
    )


def run(arguments):
    if len(arguments) < 2:
        raise ValueError("page needs a date and a place, as in: page 2026-12-24 Reykjavik")
    return render(datetime.date.fromisoformat(arguments[0]), places.find(" ".join(arguments[1:])))
