"""What a person may ask of a task or a build that is there already, and why not, in one line."""

from collections.abc import Iterable

from longshot_dagster.core.ids import task_partition
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.lifecycle import BuildView, IterationStatus
from longshot_dagster.core.models import BuildPhase, Handoff, HandoffStatus, Plan


def why_not_cancel(
    build: str, task: str, phase: BuildPhase, handoff: Handoff | None, landing: LandingOutcome | None
) -> str:
    """Empty when the task can still be cancelled."""
    name = task_partition(build, task)
    if landing is not None and landing.state is LandingState.LANDED:
        return f"{name} has landed; longshot undo {name} takes it back"
    if handoff is not None:
        return f"{name} was handed in already ({handoff.status}); there is nothing to cancel"
    if phase is BuildPhase.FINISHED:
        return f"{build} has finished; there is nothing to cancel"
    return ""


def why_not_retry(
    build: str,
    task: str,
    phase: BuildPhase,
    handoff: Handoff | None,
    landing: LandingOutcome | None,
    *,
    at_work: bool,
    expected: bool,
    redone_by: str = "",
    fixed: bool = True,
) -> str:
    """Empty when the task may be given to a new worker. `expected`: its iteration will still hand it in by itself.

    `redone_by`: a planned task that will take its place. `fixed`: conflicts of this build become fix tasks.
    """
    name = task_partition(build, task)
    if at_work:
        return f"{name} is being worked on; longshot cancel {name} stops it"
    if handoff is None:
        if not expected:
            return ""
        if phase is BuildPhase.PAUSED:
            return f"{name} was not handed in yet; longshot resume {build} goes on with it"
        return f"{name} was not handed in yet; a worker takes it up by itself"
    if landing is None or landing.state is LandingState.QUEUED:
        if phase is BuildPhase.FINISHED:  # what was about to land it, or to set it aside, has died
            return ""
        return f"{name} is about to land; longshot status {build} shows what became of it"
    match landing.state:
        case LandingState.LANDED:
            return f"{name} has landed; what has landed is not worked on again (longshot undo {name} takes it back)"
        case LandingState.SUPERSEDED:
            return f"{name} was superseded: {landing.superseded_by} has landed in its place"
        case LandingState.NOOP if handoff.status is HandoffStatus.COMPLETE:
            return f"{name} is done: there was nothing to land, main held it already"
        case LandingState.CONFLICT if fixed and phase is not BuildPhase.FINISHED and not redone_by:
            return f"{name} is in conflict, and a fix task of the build will take that up; longshot status {build}"
    return f"{name} is being redone as task {redone_by}; longshot status {build} shows it" if redone_by else ""


def landed_well(handoff: Handoff | None, landing: LandingOutcome | None) -> bool:
    """Has it landed, or did a worker that is done with it have nothing to land?"""
    if landing is None or handoff is None:
        return False
    if landing.state is LandingState.NOOP:
        return handoff.status is HandoffStatus.COMPLETE
    return landing.state in (LandingState.LANDED, LandingState.SUPERSEDED)


def orphans(view: BuildView, plans: Iterable[Plan]) -> tuple[str, ...]:
    """Tasks that are not settled though their iteration is done: unless a retry of them runs, nothing ever settles them."""
    unsettled = {t.id for t in view.tasks if not t.settled}
    done = {i.key.short for i in view.iterations if i.status is IterationStatus.DONE}
    return tuple(t.id for plan in plans if plan.iteration in done for t in plan.dispatched if t.id in unsettled)
