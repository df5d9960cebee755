"""What happens in a build, one event per fact of its ledger: a line for a person, the same as fields for a program."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from longshot_dagster.core.display import one_line
from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import (
    BuildPhase,
    BuildRequest,
    BuildState,
    Handoff,
    IterationFailure,
    Plan,
    Sweep,
    WorkerRun,
)

_LINE = 200


@dataclass(frozen=True)
class Event:
    """`at` in seconds since the epoch; `detail` is for `longshot logs` and left out where a build is only followed."""

    at: float
    kind: str
    line: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    detail: bool = False

    def document(self) -> dict[str, Any]:
        """The event as one JSON object."""
        return {"at": round(self.at, 3), "kind": self.kind, **self.facts, "line": self.line}


def started(request: BuildRequest) -> Event:
    where = f"{request.target.branch} of {request.target.url}"
    facts = {
        "build": request.build,
        "request": request.request,
        "repository": request.target.url,
        "branch": request.target.branch,
        "base": request.base,
        "rehearsal": request.rehearsal,
    }
    line = _shown(f"{request.build} started on {where}: {request.request}")
    return Event(request.created_at, "started", line, facts, detail=True)


def mended(document: str, line: str, at: float) -> Event:
    """A damaged document of the ledger was found, and something was done about it."""
    return Event(at, "mended", _shown(line), {"document": document})


def planned(key: IterationKey, plan: Plan, at: float) -> Event:
    delegated = [t.id for t in plan.tasks if t.delegated]
    facts = {
        "iteration": key.short,
        "tasks": [t.id for t in plan.tasks],
        "delegated": delegated,
        "sweep": plan.sweep,
        "tokens": plan.tokens,
    }
    if not plan.tasks:
        return Event(at, "planned", f"{key.short} planned nothing more", facts)
    more = f", {len(delegated)} of them for subplanners" if delegated else ""
    line = f"{key.short} planned {len(plan.tasks)} task{'s' if len(plan.tasks) > 1 else ''}{more}"
    return Event(at, "planned", line, facts)


def iteration_failed(key: IterationKey, failure: IterationFailure, at: float) -> Event:
    facts = {"iteration": key.short, "attempt": failure.attempt, "cause": failure.kind, "reason": failure.reason}
    return Event(at, "failed", _shown(f"{key.short} failed: {failure.reason}"), facts)


def begun(run: WorkerRun) -> Event:
    """A worker began; the ledger knows only once it has ended."""
    facts = {"task": run.task, "attempt": run.attempt, "provider": run.provider, "harness": run.harness}
    facts |= {"sandbox": run.sandbox, "base": run.base, "route": run.route}
    attempt = f", attempt {run.attempt}" if run.attempt > 1 else ""
    why = f": {run.route}" if run.route else ""
    line = _shown(f"{run.task} began from {run.base[:12]} ({run.harness}, {run.provider}{attempt}{why})")
    return Event(run.started_at, "begun", line, facts, detail=True)


def moved(run: WorkerRun) -> list[Event]:
    """What came to nothing before, at which provider and with which harness, and where the task went then."""
    to = f"{run.provider} with {run.harness}" if run.sandbox else "nowhere else"
    facts = {"task": run.task, "provider": run.provider, "harness": run.harness}
    return [
        Event(run.started_at, "moved", _shown(f"{run.task} moved to {to}; {why}"), {**facts, "why": why})
        for why in run.tried
    ]


def handed_off(handoff: Handoff, at: float) -> Event:
    facts = {"task": handoff.task_id, "status": handoff.status.value, "files": len(handoff.files_changed)}
    facts |= {"lines_added": handoff.metrics.lines_added, "lines_removed": handoff.metrics.lines_removed}
    facts |= {"tokens": handoff.metrics.tokens_used, "summary": one_line(handoff.summary, 500)}
    line = f"{handoff.task_id} handed off {handoff.status.value}, {_size(handoff)}: {_first(handoff.summary)}"
    return Event(at, "handed_off", _shown(line), facts)


def interrupted(handoff: Handoff, at: float) -> Event:
    """A worker was ended before its task was done; what it did is kept, and the task is worked on again."""
    facts = {"task": handoff.task_id, "files": len(handoff.files_changed)}
    line = f"{handoff.task_id} interrupted; its work so far is kept: {_size(handoff)}"
    return Event(at, "interrupted", _shown(line), facts)


def cancel_asked(task: str, at: float) -> Event:
    return Event(at, "cancel_asked", f"{task}: a person asked to cancel it", {"task": task})


def set_aside(task: str, at: float) -> Event:
    """Its work was set aside (`longshot retry`, `again: true`), so it is worked on again."""
    return Event(at, "again", f"{task} is worked on again", {"task": task})


def landing(outcome: LandingOutcome, at: float) -> Event:
    """How a branch stands now."""
    facts: dict[str, Any] = {"task": outcome.task, "state": outcome.state.value, "reason": outcome.reason}
    facts |= {"commits": list(outcome.commits), "landed": len(outcome.landed_paths)}
    facts |= {"withheld": len(outcome.withheld_paths), "superseded_by": outcome.superseded_by}
    return Event(at, "landing", _landing_line(outcome), facts, detail=outcome.state is LandingState.QUEUED)


def earlier_landings(outcome: LandingOutcome) -> list[Event]:
    """What its history tells of the states before the present one; their reasons are not kept."""
    found, before = [], None
    for state, at in outcome.history[:-1]:
        if state is not before:
            facts = {"task": outcome.task, "state": state.value}
            word = "queued to land" if state is LandingState.QUEUED else state.value
            found.append(Event(at, "landing", f"{outcome.task} {word}", facts, detail=True))
        before = state
    return found


def swept(sweep: Sweep) -> Event:
    facts = {"sweep": sweep.number, "head": sweep.head, "red": sweep.red, "green": sweep.green, "error": sweep.error}
    facts |= {"checks": {c.name.value: c.status.value for c in sweep.checks}}
    facts |= {"conflict_markers": list(sweep.conflict_markers)}
    return Event(sweep.ended_at, "swept", sweep_line(sweep), facts)


def phase_changed(state: BuildState, at: float) -> Event:
    verdict = state.verdict.value if state.verdict and state.phase is BuildPhase.FINISHED else None
    facts = {"phase": state.phase.value, "reason": state.reason, "verdict": verdict}
    if state.phase is BuildPhase.PAUSED:
        line = _shown(f"paused: {state.reason or 'no reason given'}")
    else:
        line = state.phase.value + (f": {verdict}" if verdict else "")
    return Event(at, "phase", line, facts)


def sweep_line(sweep: Sweep) -> str:
    if sweep.error:
        return _shown(f"sweep {sweep.number} could not run: {sweep.error}")
    if not sweep.checked and not sweep.red:
        return f"sweep {sweep.number}: nothing to check"
    red = [c.name.value for c in sweep.checks if c.red] + (["conflict markers"] if sweep.conflict_markers else [])
    return f"sweep {sweep.number} {'RED: ' + ', '.join(red) if red else 'green'}"


def _landing_line(outcome: LandingOutcome) -> str:
    match outcome.state:
        case LandingState.QUEUED:
            return f"{outcome.task} queued to land"
        case LandingState.LANDED:
            withheld = f", {len(outcome.withheld_paths)} withheld" if outcome.withheld_paths else ""
            return f"{outcome.task} landed {_files(len(outcome.landed_paths))}{withheld}"
        case LandingState.SUPERSEDED:
            return f"{outcome.task} superseded by {outcome.superseded_by}"
        case LandingState.NOOP:
            return f"{outcome.task} had nothing to land"
        case _:
            return _shown(f"{outcome.task} {outcome.state.value}: {outcome.reason}")


def _size(handoff: Handoff) -> str:
    m = handoff.metrics
    return f"+{m.lines_added} -{m.lines_removed} in {_files(len(handoff.files_changed))}"


def _files(number: int) -> str:
    return f"{number:,} file{'s' if number != 1 else ''}"


def _first(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), "")


def _shown(text: str) -> str:
    return one_line(text, _LINE)
