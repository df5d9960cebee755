"""How a build comes to stand still: the failed attempt and one line of reason in the ledger, for `longshot resume`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import dagster as dg

from longshot_dagster.adapters.ledger.ledger import BuildLedger
from longshot_dagster.core.display import one_line
from longshot_dagster.core.errors import (
    BudgetExhausted,
    Cancelled,
    LongshotError,
    ModelUnavailable,
    PlanUnreadable,
    RepositoryError,
    TakenOver,
)
from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.models import IterationFailure

Kind = Literal["model", "plan", "budget", "repository", "cancelled", "crash"]

_KINDS: dict[type[LongshotError], Kind] = {
    ModelUnavailable: "model",
    PlanUnreadable: "plan",
    BudgetExhausted: "budget",
    RepositoryError: "repository",
    TakenOver: "repository",
    Cancelled: "cancelled",
}


def pause(ledger: BuildLedger, reason: str) -> None:
    """Pause a build that is under way; the first reason stays, and a finished build stays finished."""
    ledger.update_state(lambda state: state.paused(reason))


def fail_iteration(ledger: BuildLedger, key: IterationKey, attempt: int, kind: Kind, reason: str) -> None:
    """Record that this attempt of `key` ended without its metrics, and pause; nothing to do once a newer one is due."""
    current = ledger.state().attempts.get(key.short, 1)
    if ledger.metrics(key) is not None or attempt < current:
        return
    earlier = ledger.failure(key)
    if earlier is None or earlier.attempt < attempt:
        ledger.save_failure(key, IterationFailure(attempt=attempt, kind=kind, reason=reason))
    pause(ledger, reason)


def fail_finalization(ledger: BuildLedger, number: int, attempt: int, reason: str) -> None:
    """Pause, and count the attempt, so that the finalization runs anew once somebody resumes the build."""
    name = finalization_name(number)
    if ledger.state().attempts.get(name, 1) != attempt:
        return
    count_finalization(ledger, number)
    pause(ledger, reason)


def count_finalization(ledger: BuildLedger, number: int) -> None:
    """The next run of finalization `number` gets a run key of its own: Dagster never launches one twice."""
    name = finalization_name(number)
    ledger.update_state(lambda s: s.model_copy(update={"attempts": {**s.attempts, name: s.attempts.get(name, 1) + 1}}))


def finalization_name(number: int) -> str:
    return f"finalize.{number:03d}"


@contextmanager
def pausing(ledger: BuildLedger, key: IterationKey, attempt: int) -> Iterator[None]:
    """What stops an iteration becomes one line for a person: in the ledger, in the run and in `longshot status`.

    `attempt` is the run's own: one that a resumed build has left behind pauses nothing.
    """
    try:
        yield
    except LongshotError as e:
        kind: Kind = next((k for error, k in _KINDS.items() if isinstance(e, error)), "crash")
        reason = reason_of(e)
        if kind == "cancelled":
            reason = cancelled_reason(ledger.build)
        fail_iteration(ledger, key, attempt, kind, reason)
        raise dg.Failure(description=reason, allow_retries=False) from e


@contextmanager
def plainly() -> Iterator[None]:
    """A person's mistake or a refusal is shown as its one line, not as a stack of Dagster's frames."""
    try:
        yield
    except LongshotError as e:
        raise dg.Failure(description=reason_of(e), allow_retries=False) from e


def reason_of(error: BaseException) -> str:
    return one_line(error, 1_000) or type(error).__name__


def cancelled_reason(build: str) -> str:
    return f"cancelled; longshot resume {build}"
