"""The last word on a build: what landed, what did not and why, and the exit code that says so."""

from collections.abc import Collection, Iterable, Mapping
from typing import Literal

from longshot_dagster.core import scope
from longshot_dagster.core.display import display
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import (
    BuildPhase,
    BuildReport,
    BuildRequest,
    BuildState,
    CheckResult,
    Handoff,
    HandoffStatus,
    Leftover,
    Plan,
    Sweep,
    Task,
    Verdict,
    WorkerRun,
)
from longshot_dagster.core.protected import is_waiting, waiting_paths
from longshot_dagster.core.reviewing import review_steps
from longshot_dagster.core.task_gist import TaskGist
from longshot_dagster.core.usage import Usage

Health = Literal["green", "red", "unchecked"]

EXIT_BY_VERDICT = {Verdict.GREEN: 0, Verdict.LEFTOVERS: 3, Verdict.RED: 4}
EXIT_PAUSED = 5
EXIT_INTERRUPTED = 130

_LEFTOVERS_SHOWN = 20


def make_report(
    request: BuildRequest,
    *,
    tasks: Iterable[Task],
    handoffs: Mapping[str, Handoff],
    landings: Mapping[str, LandingOutcome],
    runs: Iterable[WorkerRun],
    plans: Collection[Plan],
    sweep: Sweep | None,
    head: str,
    finalization_attempts: int,
    now: float,
    spent: Usage | None = None,
) -> BuildReport:
    """What is to be said about a drained build.

    `head` is the landing branch now, `sweep` the newest sweep (None: nothing was checked), `now` in seconds since the
    epoch, `spent` what the gateway has counted for the whole build, priced (None: tokens are summed from plans and runs,
    and what the planners' cost is unknown).
    """
    tasks, runs = list(tasks), list(runs)
    split = {t.planner for p in plans for t in p.tasks if t.id != t.planner}  # delegated, and counted by their parts
    states = [landings[t.id].state for t in tasks if t.id in landings]
    left = leftovers(tasks, handoffs, landings, plans)
    health, reason = _health(sweep, head)
    if health == "red":
        verdict = Verdict.RED
    elif left or health == "unchecked" or LandingState.LANDED not in states:
        verdict = Verdict.LEFTOVERS  # also when all agents said "done" and none did anything
    else:
        verdict = Verdict.GREEN
    counted = sum(r.tokens_in + r.tokens_out for r in runs) + sum(p.tokens for p in plans)
    return BuildReport(
        build=request.build,
        verdict=verdict,
        reason=reason,
        head=head,
        branch=request.target.branch,
        tasks=sum(t.id not in split for t in tasks),
        landed=states.count(LandingState.LANDED),
        superseded=states.count(LandingState.SUPERSEDED),
        leftovers=left,
        sweep=sweep.number if sweep else None,
        health=health,
        iterations=len(plans),
        conflicts=sum(_was_in_conflict(landing) for landing in landings.values()),
        tokens=spent.total if spent else counted,
        cost_usd=spent.cost_usd if spent else None,
        wall_s=max(0.0, now - request.created_at),
        finalization_attempts=finalization_attempts,
        rehearsal=request.rehearsal,
    )


def leftovers(
    tasks: Iterable[Task],
    handoffs: Mapping[str, Handoff],
    landings: Mapping[str, LandingOutcome],
    plans: Iterable[Plan],
) -> tuple[Leftover, ...]:
    """Every task that neither landed, nor had nothing to land, nor was superseded; with the reason.

    A delegated task counts through its children; one whose subplanner left it no children is judged by its handoff.
    """
    plans = list(plans)
    worked = {t.id for p in plans for t in p.dispatched}
    parents = {t.planner for p in plans for t in p.tasks if t.id != t.planner}
    found = []
    for task in tasks:
        by_children = task.delegated and task.id not in worked
        if by_children and task.id in parents:
            continue
        handoff, landing = handoffs.get(task.id), landings.get(task.id)
        if by_children and handoff and handoff.status is HandoffStatus.COMPLETE:
            continue
        fine = _fine(handoff, landing) and not _lost_its_successor(landing, landings)
        if not by_children and fine and not _unapproved(task, landing):
            continue
        found.append(_leftover(task, handoff, landing))
    return tuple(found)


def _fine(handoff: Handoff | None, landing: LandingOutcome | None) -> bool:
    if landing is None:
        return False
    if landing.state is LandingState.NOOP:  # an empty diff is no answer from a worker that says it failed
        return handoff is not None and handoff.status is HandoffStatus.COMPLETE
    return landing.state in (LandingState.LANDED, LandingState.SUPERSEDED)


def _unapproved(task: Task, landing: LandingOutcome | None) -> bool:
    """Does something that it was to change wait for a person? What it strayed into is not left over, only withheld."""
    return any(scope.covers(task.scope, path) for path in waiting_paths(landing))


def _lost_its_successor(landing: LandingOutcome | None, landings: Mapping[str, LandingOutcome]) -> bool:
    """Was what landed in its place undone?"""
    by = landings.get(landing.superseded_by or "") if landing else None
    return by is not None and by.state is LandingState.UNDONE


def _leftover(task: Task, handoff: Handoff | None, landing: LandingOutcome | None) -> Leftover:
    if handoff is None:
        state, reason = "unfinished", "no worker handed it in"
    elif landing is None or landing.state in (LandingState.QUEUED, LandingState.NOOP):
        state, reason = handoff.status.value, _first_line(handoff.summary) or "no summary"
    elif landing.state is LandingState.SUPERSEDED:
        state, reason = landing.state.value, f"{landing.superseded_by}, which landed in its place, was undone"
    else:
        state, reason = landing.state.value, landing.reason or _first_line(handoff.summary)
    return Leftover(task=task.id, state=state, reason=reason[:500], description=_first_line(task.description)[:200])


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _was_in_conflict(landing: LandingOutcome) -> bool:
    return landing.state is LandingState.CONFLICT or any(s is LandingState.CONFLICT for s, _ in landing.history)


def _health(sweep: Sweep | None, head: str) -> tuple[Health, str]:
    """How main stands, and a line that says why when it is not green."""
    if sweep is None:
        return "unchecked", "nothing has checked the result"
    if sweep.error:
        return "red", f"the sweep could not run: {sweep.error}"[:500]
    if sweep.conflict_markers:
        return "red", f"conflict markers in {', '.join(sweep.conflict_markers[:3])}"[:500]
    red = [c for c in sweep.checks if c.red]
    if red:
        return "red", "; ".join(f"{c.name} is {c.status}: {c.command}" for c in red)[:500]
    if sweep.head != head:
        return "unchecked", f"the branch moved after sweep {sweep.number}"
    if not sweep.checked:
        return "unchecked", "the repository offers no check to run"
    if not sweep.green:
        return "red", f"sweep {sweep.number} was red before this build began, and is no better"
    return "green", ""


def exit_code(state: BuildState, report: BuildReport | None) -> int:
    """0 green, 3 leftovers or nothing to check, 4 red, 5 paused, 130 for a build that has not ended."""
    if state.phase is BuildPhase.PAUSED:
        return EXIT_PAUSED
    if state.phase is BuildPhase.FINISHED and report is not None:
        return EXIT_BY_VERDICT[report.verdict]
    return EXIT_INTERRUPTED


def headline(report: BuildReport) -> str:
    """The verdict in one plain sentence; never the word green for what was not checked."""
    parts = [f"{report.landed} of {report.tasks} tasks landed"]
    if not report.landed:
        parts.append("nothing was changed")
    if report.superseded:
        parts.append(f"{report.superseded} superseded")
    if report.leftovers:
        parts.append(f"{len(report.leftovers)} left over")
    checks = {
        "green": "checks green",
        "red": f"checks RED ({report.reason})",
        "unchecked": f"result unchecked ({report.reason})",
    }[report.health]
    return display(", ".join([*parts, checks]), "plain", 700)


def summary_lines(
    report: BuildReport,
    request: BuildRequest,
    *,
    checks: Iterable[CheckResult] = (),
    report_path: str = "",
    link: str = "",
) -> list[str]:
    """The end of a build for a terminal: plain text, one fact a line, safe to print as it is. `checks`: of its sweep."""
    lines = [f"{request.build}: {headline(report)}"]
    if report.rehearsal:
        lines.append("rehearsal: a scripted model answered, no real one")
    for left in report.leftovers[:_LEFTOVERS_SHOWN]:
        lines.append(display(f"  {left.task} {left.state}: {left.reason} | {left.description}", "plain", 400))
    if len(report.leftovers) > _LEFTOVERS_SHOWN:
        lines.append(f"  and {len(report.leftovers) - _LEFTOVERS_SHOWN} more, in the report")
    if ran := [f"{c.name.value} {c.status.value}" for c in checks]:
        lines.append(f"checks {', '.join(ran)}")
    lines.append(
        f"iterations {report.iterations}, conflicts {report.conflicts}, tokens {report.tokens:,}"
        f", cost {cost(report.cost_usd)}, {duration(report.wall_s)}"
    )
    lines.append(display(f"branch {report.branch} at {report.head[:12]} of {request.target.url}", "plain", 500))
    review = review_steps(request, report.head)
    lines += [display(f"review {step.command}", "plain", 700) for step in review[:2]]
    if report.landed:
        lines.append(f"undo   longshot undo {request.build}")
    if report_path:
        lines.append(f"report {display(report_path, 'plain', 500)}")
    if link:
        lines.append(f"look   {link}")
    return lines


def cost(usd: float | None) -> str:
    """What it cost, in words; None is unknown and never nothing."""
    if usd is None:
        return "unknown"
    return f"{usd:.2f} USD" if usd >= 0.1 or usd == 0 else f"{usd:.4f} USD"


def duration(seconds: float) -> str:
    """`1 h 02 min`, `3 min 04 s`, `12 s`."""
    whole = max(0, int(seconds))  # a clock that was set back in between
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    if whole >= 60:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole} s"


def waiting_for(task: Task, handoff: Handoff | None, landing: LandingOutcome | None, phase: BuildPhase) -> str:
    """Why a task is where it is, for `longshot status`; empty once nothing more happens to it."""
    state, reason = (landing.state, landing.reason) if landing else (None, "")
    return _waiting_for(task.delegated, handoff is not None, state, reason, phase)


def gist_waits_for(gist: TaskGist, phase: BuildPhase) -> str:
    """The same of a task of which only the gist was read."""
    return _waiting_for(gist.delegated, gist.handoff is not None, gist.landing, gist.reason, phase)


def _waiting_for(delegated: bool, handed_in: bool, state: LandingState | None, reason: str, phase: BuildPhase) -> str:
    if not handed_in:
        stopped = phase in (BuildPhase.PAUSED, BuildPhase.FINISHED)
        if delegated:
            return f"its subplanner {'has stopped' if stopped else 'plans its parts'}"
        return f"not handed in; {phase.value}" if stopped else "a worker's slot, or its worker is at it"
    if delegated and state is None:
        return ""
    if state is None or state is LandingState.QUEUED:
        return "its turn to land"
    if state is LandingState.CONFLICT:
        return "a fix task for its conflict" if phase is not BuildPhase.FINISHED else reason
    if state is LandingState.LANDED and is_waiting(reason):
        return reason
    return reason if state in (LandingState.WITHHELD, LandingState.UNDONE) else ""
