"""What `longshot doctor` finds out about one thing that a build needs: it is well, or what to do."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Standing(StrEnum):
    OK = "ok"
    TO_DO = "to do"
    LEFT_OUT = "-"  # could not be looked at, or is not needed; never the reason of an exit code


@dataclass(frozen=True)
class Finding:
    """`what` was found in plain words; `remedy` says what a person should do, and is empty unless there is something."""

    subject: str
    standing: Standing
    what: str
    remedy: str = ""


def fine(subject: str, what: str) -> Finding:
    return Finding(subject, Standing.OK, what)


def to_do(subject: str, what: str, remedy: str = "") -> Finding:
    return Finding(subject, Standing.TO_DO, what, remedy)


def left_out(subject: str, why: str) -> Finding:
    return Finding(subject, Standing.LEFT_OUT, why)


def exit_code(findings: Iterable[Finding]) -> int:
    """0 when nothing is to do, 1 otherwise."""
    return int(any(f.standing is Standing.TO_DO for f in findings))
