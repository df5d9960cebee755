"""What is to become of a sandbox that somebody finds: whether anybody answers for it, and whether it holds work to keep.

What a sandbox says of itself are its tags; what is known beside them comes from this home's ledger and processes.
"""

from dataclasses import dataclass
from enum import StrEnum

from longshot_dagster.core.models import BuildPhase


class Fate(StrEnum):
    """`at work`: somebody answers for it. `holds work`: of a killed worker, kept before it ends. `orphan`: it ends.
    `another's`: made by another installation, and none of ours to end.
    """

    AT_WORK = "at work"
    HOLDS_WORK = "holds work"
    ORPHAN = "orphan"
    ANOTHERS = "another's"


@dataclass(frozen=True)
class Facts:
    """`ours`: this home made it. `held`: a living process answers for it, asked just now. `phase` is None for a build that
    this home does not know, `task` empty for a sandbox that is no worker's (a sweep, lock files).
    """

    ours: bool
    held: bool
    build: str
    task: str
    phase: BuildPhase | None
    handed_in: bool


def fate(facts: Facts) -> tuple[Fate, str]:
    """What becomes of it, and why, in a few words."""
    if not facts.ours:
        return Fate.ANOTHERS, "made by another installation"
    if facts.held:
        return Fate.AT_WORK, "somebody is at work in it"
    if not facts.build:
        return Fate.ORPHAN, "of no build, and who made it is gone"
    if facts.phase is None:
        return Fate.ORPHAN, "its build is not here any more"
    if facts.phase is BuildPhase.FINISHED:
        return Fate.ORPHAN, "its build is finished"
    if not facts.task:
        return Fate.ORPHAN, "who made it is gone; that is done anew"
    if facts.handed_in:
        return Fate.ORPHAN, "its task is handed in"
    return Fate.HOLDS_WORK, "its worker's process is gone; what it did is kept first"
