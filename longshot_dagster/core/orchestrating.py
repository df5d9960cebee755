"""Which installation drives a build: one at a time, across homes and machines, and what another one is told.

The orchestrator's name travels with the checkpoint (`orchestrator.json` in its commit). What keeps two from landing is never
a clock: every push moves the checkpoint and the landing branch together, from what the pusher itself had last put there
or from what it has explicitly taken over. The clock only decides whether a person has to say `--take-over`.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from longshot_dagster.core.display import one_line
from longshot_dagster.core.report import duration

BEAT_S = 60.0  # a build under way is heard of at least this often ...
SILENT_S = 300.0  # ... and is taken for abandoned after five beats that did not come

Mark = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{0,64}$")]


class Orchestrator(BaseModel):
    """`orchestrator.json` of a checkpoint; anybody who may push may have written it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")] = Field(description="random, one per home")
    host: Annotated[str, StringConstraints(max_length=200)] = ""
    seen_at: float = Field(ge=0, le=1e11, description="seconds since the epoch, by its own clock")
    released: bool = Field(default=False, description="True: it has stopped driving the build")
    machine: Mark = Field(
        default="", description="which start of which machine; a digest, so that it tells nobody more"
    )
    pid: int = Field(default=0, ge=0, description="of its stack's supervisor, on that machine; 0: no stack ran")
    started: Annotated[str, StringConstraints(max_length=40)] = Field(default="", description="of that process")


class Hold(StrEnum):
    """How a build stands to an installation that wants to drive it."""

    OURS = "ours"
    FREE = "free"  # nobody drives it, or who did has let go of it
    DEAD = "dead"  # who drove it did so on this machine, and its process is gone
    SILENT = "silent"  # nothing was heard of it for SILENT_S
    HELD = "held"


def hold(found: Orchestrator | None, mine: str, now: float, *, ended_here: bool = False) -> Hold:
    """`mine` is this home's id, `now` this host's clock, `ended_here`: its process is known to be gone.

    A clock that is behind ours makes an orchestrator look silent too early: then it loses the build at its next push,
    and nothing else. One that is ahead of ours keeps it for so much longer; `--take-over` is there for that.
    """
    if found is None or found.released:
        return Hold.FREE
    if found.id == mine:
        return Hold.OURS
    if ended_here:
        return Hold.DEAD
    return Hold.SILENT if now - found.seen_at > SILENT_S else Hold.HELD


def refusal(build: str, found: Orchestrator, now: float) -> str:
    """For whoever asks to drive a build that is held."""
    return (
        f"build {build} is driven by {named(found)}, last seen {seen(found, now)}; `longshot down` there lets go of it, "
        f"or take it over: longshot resume {build} --take-over"
    )


def lost(build: str, found: Orchestrator) -> str:
    """For whoever has driven a build until now and finds it in other hands."""
    return (
        f"build {build} was taken over by {named(found)}, and nothing more is landed from here; "
        f"`longshot resume {build} --take-over` takes it back"
    )


def named(found: Orchestrator) -> str:
    return f"the longshot on {one_line(found.host, 60) or 'a host without a name'} ({found.id[:6]})"


def seen(found: Orchestrator, now: float) -> str:
    """`34 s ago`; a clock that is ahead is said, not believed."""
    ago = now - found.seen_at
    return f"{duration(ago)} ago" if ago >= 0 else f"{duration(-ago)} ahead of the clock here"
