"""A conflict looked at again: main may have moved since, so that the branch merges now and no model need redo its work."""

import contextlib
from collections.abc import Callable

from longshot_dagster.adapters.host.exclusive import claim
from longshot_dagster.adapters.ledger.ledger import BuildLedger
from longshot_dagster.adapters.repository.branch import changed_paths
from longshot_dagster.adapters.repository.git import Git
from longshot_dagster.core.clock import Clock
from longshot_dagster.core.errors import RepositoryError
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import BuildRequest, Handoff, HandoffStatus, Task, TaskKind, WorkerRun
from longshot_dagster.core.settings import RungName

SPARED = "spared"  # the harness status of a fix that no worker was asked for

_SETTLED_WELL = (LandingState.LANDED, LandingState.NOOP, LandingState.SUPERSEDED)


def worth_another_look(git: Git, request: BuildRequest, outcome: LandingOutcome | None, head: str) -> bool:
    """Has the landing branch moved, in the files of a conflict, since it was found? Merging is no dice: nothing else helps."""
    if outcome is None or outcome.state is not LandingState.CONFLICT or RungName.RE_MERGE not in request.settings.rungs:
        return False
    if outcome.onto is None:
        return True
    try:
        moved = changed_paths(git, outcome.onto, head)
    except RepositoryError:  # what it was merged onto is not here: made on another machine
        return True
    shown = {path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")[:4_096] for path in moved}
    return any(conflict.path in shown for conflict in outcome.conflicts)


def spared(
    ledger: BuildLedger,
    look_again: Callable[..., list[LandingOutcome | None]],
    head: Callable[[], str],
    clock: Clock,
    task: Task,
) -> Handoff | None:
    """The handoff of a conflict's fix task, once everything it was to redo has landed after all; None: it has to be done.

    `look_again` and `head` are the landing queue's and the mirror's. Raises RepositoryError when it could not be noted.
    """
    if task.kind is not TaskKind.CONFLICT_FIX or not task.replaces or ledger.handoff(task.id) is not None:
        return None
    lock = ledger.work_lock(task.id)
    with claim(lock) if lock else contextlib.nullcontext(True) as mine:
        if not mine or ledger.handoff(task.id) is not None or ledger.interrupted(task.id) is not None:
            return None
        outcomes: list[LandingOutcome | None] = [None]
        with contextlib.suppress(RepositoryError):  # whoever works on the fix meets it, too, and says so
            outcomes = look_again(*task.replaces)
        if not all(o is not None and o.state in _SETTLED_WELL for o in outcomes):
            return None
        now = clock.now()
        ledger.save_run(
            WorkerRun(
                task=task.id,
                provider="none",
                harness="none",
                harness_status=SPARED,
                base=head(),
                started_at=now,
                ended_at=now,
            )
        )
        names = ", ".join(task.replaces)
        handoff = Handoff(
            task_id=task.id,
            status=HandoffStatus.COMPLETE,
            summary=f"No worker was needed: main has moved, and {names} merges as it is now.",
        )
        ledger.save_handoff(handoff)
        return handoff
