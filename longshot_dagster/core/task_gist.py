"""What the rules and `longshot status` want to know of a task: a small part of its documents."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

from longshot_dagster.core.landing_records import LandingState
from longshot_dagster.core.models import HandoffStatus, TaskKind


class TaskGist(NamedTuple):
    """How one task stands."""

    id: str
    iteration: str
    planner: str
    kind: TaskKind
    delegated: bool
    title: str  # first line of the description, at most 200 characters
    handoff: HandoffStatus | None
    landing: LandingState | None
    reason: str  # of the landing
    interrupted: HandoffStatus | None  # what an interrupted worker left; None once there is a handoff
    cancelled: bool  # a person wants no more of it, and it was not handed in
    kept_back: bool = False  # some of what it changed has not landed with the rest of it

    @property
    def over(self) -> bool:
        """Nothing more happens to it unless a person asks for it."""
        return self.handoff is not None and self.landing in (LandingState.LANDED, LandingState.SUPERSEDED)

    @classmethod
    def restored(cls, fields: Sequence[Any]) -> Self:
        """From what JSON made of it. Raises ValueError or KeyError for anything else."""
        task, iteration, planner, kind, delegated, title, handoff, landing, reason, interrupted, cancelled, kept = (
            fields
        )
        return cls(
            task,
            iteration,
            planner,
            _KINDS[kind],
            delegated,
            title,
            _STATUSES[handoff],
            _LANDINGS[landing],
            reason,
            _STATUSES[interrupted],
            cancelled,
            kept,
        )


# Thousands are restored at once, and a look-up costs a tenth of the enumeration's own.
_KINDS: dict[str, TaskKind] = {k.value: k for k in TaskKind}
_STATUSES: dict[str | None, HandoffStatus | None] = {None: None, **{s.value: s for s in HandoffStatus}}
_LANDINGS: dict[str | None, LandingState | None] = {None: None, **{s.value: s for s in LandingState}}
