"""The almanac's command line: which commands there are, and one line for whatever a person mistypes."""

import datetime
import difflib
import importlib
import re
import sys

COMMANDS = {
    # In the sky
    "moon": ("almanac.moon", "the moon's phase, and a drawing of it"),
    "sun": ("almanac.sun", "sunrise and sunset of a place"),
    # Through the year
    # On paper
}


def main(arguments):
    """Run one command; returns the exit code (0 done, 2 mistyped)."""
    if not arguments:
        print(listing())
        return 0
    name, rest = arguments[0], arguments[1:]
    try:
        if name not in COMMANDS:
            raise ValueError(unknown(name))
        check_dates(rest)
        print(importlib.import_module(COMMANDS[name][0]).run(rest))
    except ValueError as mistake:
        print("almanac: %s" % mistake, file=sys.stderr)
        return 2
    return 0


def listing():
    lines = ["A pocket almanac. python3 -m almanac COMMAND ...", ""]
    return "\n".join(lines + ["  %-8s %s" % (name, about) for name, (_, about) in COMMANDS.items()])


def unknown(name):
    near = difflib.get_close_matches(name, COMMANDS, 1)
    return "there is no command %r; %s" % (name, "did you mean %s?" % near[0] if near else "without one I list them all")


def check_dates(arguments):
    """Raises ValueError for what is written like a date and is none."""
    for text in arguments:
        if re.fullmatch(r"\d{4}-\d\d-\d\d", text):
            try:
                datetime.date.fromisoformat(text)
            except ValueError:
                raise ValueError("%s is not a date of the calendar" % text) from None
