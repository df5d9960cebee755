"""Equinoxes and solstices (Meeus' mean instants, good to about a quarter of an hour)."""

import datetime

INSTANTS = [
    ("March equinox", 2451623.80984, 365242.37404, 0.05169),
    ("June solstice", 2451716.56767, 365241.62603, 0.00325),
    ("September equinox", 2451810.21715, 365242.01767, -0.11575),
    ("December solstice", 2451900.05952, 365242.74049, -0.06223),
]
EPOCH = datetime.datetime(2000, 1, 1, 12)  # Julian day 2451545


def of(year):
    """[(name, date and time in UTC)] of the four turning points."""
    y = (year - 2000) / 1000
    return [(n, EPOCH + datetime.timedelta(days=a + b * y + c * y * y - 2451545)) for n, a, b, c in INSTANTS]


def run(arguments):
    year = arguments[0] if arguments else str(datetime.date.today().year)
    if not (year.isdigit() and 1000 <= int(year) <= 3000):
        raise ValueError("%r is not a year from 1000 to 3000" % year)
    return "\n".join("%-18s %s" % (name, instant.date()) for name, instant in of(int(year)))
