"""What the moon looks like on a day (after Meeus, Astronomical Algorithms, chapter 48)."""

import datetime
import math

PRINCIPAL = {0: "New moon", 90: "First quarter", 180: "Full moon", 270: "Last quarter"}
BETWEEN = ["Waxing crescent", "Waxing gibbous", "Waning gibbous", "Waning crescent"]
HALF_A_DAY = 6.1  # degrees the moon gains on the sun in twelve hours


def elongation(day, hours=12.0):
    """How far the moon has gone around since new moon, in degrees, 0 to 360, at `hours` UTC."""
    centuries = (day.toordinal() - datetime.date(2000, 1, 1).toordinal() + (hours - 12) / 24) / 36525
    mean = math.radians(297.8501921 + 445267.1114034 * centuries)
    sun = math.radians(357.5291092 + 35999.0502909 * centuries)
    moon = math.radians(134.9633964 + 477198.8675055 * centuries)
    degrees = (
        math.degrees(mean)
        + 6.289 * math.sin(moon)
        - 2.100 * math.sin(sun)
        + 1.274 * math.sin(2 * mean - moon)
        + 0.658 * math.sin(2 * mean)
        + 0.214 * math.sin(2 * moon)
        + 0.110 * math.sin(mean)
    )
    return degrees % 360


def lit(day):
    """The part of the disc that is lit, 0 to 1."""
    return (1 - math.cos(math.radians(elongation(day)))) / 2


def name(day):
    degrees = elongation(day)
    for exact, phase in PRINCIPAL.items():
        if abs((degrees - exact + 180) % 360 - 180) <= HALF_A_DAY:
            return phase
    return BETWEEN[int(degrees // 90)]


def draw(degrees, rows=11):
    """The disc as lines of text, north up: `@` is lit, `.` is dark."""
    lines = []
    for row in range(rows):
        y = (row + 0.5) / rows * 2 - 1
        edge = math.sqrt(1 - y * y)
        line = ""
        for column in range(rows * 2):
            x = (column + 0.5) / rows - 1
            if abs(x) > edge:
                line += " "
                continue
            shadow = edge * math.cos(math.radians(degrees))
            line += "@" if (x > shadow if degrees <= 180 else x < -shadow) else "."
        lines.append(line.rstrip())
    return lines


def run(arguments):
    day = datetime.date.fromisoformat(arguments[0]) if arguments else datetime.date.today()
    head = "%s: %s, %d %% lit" % (day, name(day), round(lit(day) * 100))
    return "\n".join([head, ""] + draw(elongation(day)))
