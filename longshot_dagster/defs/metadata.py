"""What the UI shows of a task, a plan, a sweep or a landing, so that a person can read it without opening a file.

Every text of a model, agent or repository goes through `core/display.py`.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

import dagster as dg

from longshot_dagster.adapters.ledger.ledger import BuildLedger
from longshot_dagster.core.display import code_block, display, one_line
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.last_word import LastWord
from longshot_dagster.core.models import (
    BuildRequest,
    CheckResult,
    Handoff,
    MetricsSnapshot,
    Plan,
    RepoState,
    Sweep,
    Task,
    WorkerRun,
)
from longshot_dagster.core.protected import waiting_paths
from longshot_dagster.core.report import cost, duration

Metadata = dict[str, dg.MetadataValue]

REHEARSAL = "a scripted model answered, no real one"
_DIFF_SHOWN = 60_000
_ROWS = 100


def task_metadata(
    request: BuildRequest,
    task: Task,
    handoff: Handoff,
    landing: LandingOutcome | None,
    run: WorkerRun | None,
    transcript: str,
) -> Metadata:
    """The audit view of one task: what was asked, what came back, what landed."""
    metrics = handoff.metrics
    found: Metadata = {
        "status": _text(handoff.status),
        "landing": _text(_landing_line(landing)),
        "summary": _prose(handoff.summary),
        "description": _prose(task.description),
        "acceptance": _prose(task.acceptance),
        "scope": _listed(task.scope),
        "iteration": _text(task.iteration),
        "branch": _text(task.branch),
        "files": _listed(handoff.files_changed),
        "diff": dg.MetadataValue.md(code_block(handoff.diff or "(no change)", "diff", _DIFF_SHOWN)),
        "lines": _text(f"+{metrics.lines_added} -{metrics.lines_removed}"),
        "tokens": dg.MetadataValue.int(metrics.tokens_used),
        "tool calls": dg.MetadataValue.int(metrics.tool_call_count),
        "duration": _text(f"{metrics.duration_ms / 1000:.1f} s"),
        "concerns": _listed([*handoff.concerns, *_concerns(landing)]),
        "suggestions": _listed(handoff.suggestions),
    }
    if landing is not None:
        found |= _landing_metadata(landing)
    if run is not None:
        found |= _run_metadata(run) | {"transcript": dg.MetadataValue.path(transcript)}
    return found | rehearsal(request)


def task_metadata_from(ledger: BuildLedger, task: Task, handoff: Handoff, landing: LandingOutcome | None) -> Metadata:
    """`task_metadata` of what the ledger holds besides."""
    run = ledger.run(task.id)
    return task_metadata(ledger.request(), task, handoff, landing, run, str(ledger.transcript(task.id)))


def repo_state_metadata(state: RepoState) -> Metadata:
    return {
        "head": _text(state.head),
        "branch": _text(state.branch),
        "files": dg.MetadataValue.int(state.files),
        "log": _block("\n".join(state.log)),
        "documents": _listed(sorted(state.documents)),
    }


def plan_metadata(plan: Plan, request: BuildRequest) -> Metadata:
    tasks = [
        {
            "task": t.id,
            "priority": t.priority,
            "to": "subplanner" if t.delegated else "worker",
            "scope": _cell(" ".join(t.scope)),
            "description": _cell(t.description),
        }
        for t in sorted(plan.tasks, key=lambda t: (t.priority, t.id))
    ]
    found: Metadata = {
        "tasks": _table(tasks),
        "base": _text(plan.base),
        "handoffs seen": _listed(plan.handoffs_seen),
        "scratchpad": _block(plan.scratchpad),
        "tokens": dg.MetadataValue.int(plan.tokens),
    }
    if plan.sweep is not None:
        found["answers sweep"] = dg.MetadataValue.int(plan.sweep)
    return found | rehearsal(request)


def handoffs_metadata(handoffs: Sequence[Handoff]) -> Metadata:
    rows = [
        {
            "task": h.task_id,
            "status": h.status.value,
            "files": len(h.files_changed),
            "tokens": h.metrics.tokens_used,
            "summary": _cell(h.summary),
        }
        for h in handoffs
    ]
    return {"handoffs": _table(rows)}


def landings_metadata(landings: Sequence[LandingOutcome]) -> Metadata:
    rows = [
        {
            "task": o.task,
            "state": o.state.value,
            "commits": " ".join(c[:12] for c in o.commits),
            "landed": len(o.landed_paths),
            "withheld": len(o.withheld_paths),
            "reason": _cell(o.reason),
        }
        for o in landings
    ]
    return {"landings": _table(rows)}


def sweep_metadata(sweep: Sweep, build: str) -> Metadata:
    found: Metadata = {
        "build": _text(build),
        "sweep": dg.MetadataValue.int(sweep.number),
        "head": _text(sweep.head),
        "checks": checks_table(sweep.checks),
        "conflict markers": _listed(sweep.conflict_markers),
        "duration": _text(f"{sweep.ended_at - sweep.started_at:.1f} s"),
    }
    if sweep.error:
        found["error"] = _text(sweep.error)
    red = [c for c in sweep.checks if c.red]
    if red:
        found["output"] = dg.MetadataValue.md(
            "\n\n".join(f"{c.name.value}:\n{code_block(c.output[-8_000:])}" for c in red)
        )
    return found


def metrics_metadata(metrics: MetricsSnapshot) -> Metadata:
    numbers: Mapping[str, object] = metrics.model_dump(exclude={"iteration", "health"})
    return {
        "health": _text(metrics.health),
        **{name.replace("_", " "): dg.MetadataValue.int(int(str(n))) for name, n in numbers.items()},
    }


def report_metadata(word: LastWord, text: str) -> Metadata:
    """`text`: the last word as Markdown."""
    report = word.report
    found: Metadata = {
        "report": dg.MetadataValue.md(text),
        "verdict": _text(report.verdict),
        "head": _text(report.head),
        "tasks": dg.MetadataValue.int(report.tasks),
        "landed": dg.MetadataValue.int(report.landed),
        "left over": dg.MetadataValue.int(len(report.leftovers)),
        "tokens": dg.MetadataValue.int(report.tokens),
        "cost": _text(cost(report.cost_usd)),
        "duration": _text(duration(report.wall_s)),
        "page": dg.MetadataValue.path(word.places.page),
    }
    return found | rehearsal(word.request)


def checks_table(checks: Iterable[CheckResult]) -> dg.MetadataValue:
    return _table(
        [
            {
                "check": c.name.value,
                "status": c.status.value,
                "exit": "" if c.exit_code is None else str(c.exit_code),
                "seconds": round(c.duration_ms / 1000, 1),
                "command": _cell(c.command),
            }
            for c in checks
        ]
    )


def rehearsal(request: BuildRequest) -> Metadata:
    return {"rehearsal": _text(REHEARSAL)} if request.rehearsal else {}


def _landing_metadata(landing: LandingOutcome) -> Metadata:
    found: Metadata = {
        "landed commits": _listed(landing.commits),
        "landed paths": _listed(landing.landed_paths),
        "withheld paths": _listed(landing.withheld_paths),
    }
    if landing.conflicts:
        with_tasks = f" (with {', '.join(landing.conflict_with)})" if landing.conflict_with else ""
        found["conflicts"] = _listed([f"{c.path}: {c.kind}{with_tasks}" for c in landing.conflicts])
    if landing.resolutions:
        found["resolved"] = _listed([r.line for r in landing.resolutions])
    if landing.approved:
        given = datetime.fromtimestamp(landing.approved.at, UTC).isoformat(timespec="seconds")
        found["approved"] = _text(f"{given} by {landing.approved.by}: {', '.join(landing.approved.paths[:20])}")
    if waits := waiting_paths(landing):
        found["waits for approval"] = _listed(waits)
    if landing.undone_by:
        found["undone by"] = _text(landing.undone_by)
    if landing.strategy:
        found["strategy"] = _text(landing.strategy)
    if landing.history:
        found["landing history"] = _listed(_transition(state, at) for state, at in landing.history)
    return found


def _transition(state: LandingState, at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC).isoformat(timespec='milliseconds')}: {state.value}"


def _run_metadata(run: WorkerRun) -> Metadata:
    found: Metadata = {
        "base": _text(run.base),
        "head": _text(run.head or "nothing was committed"),
        "checks": checks_table(run.checks),
        "provider": _text(run.provider),
        "sandbox": _text(run.sandbox),
        "harness": _text(f"{run.harness}: {run.harness_status}"),
        "route": _text(run.route or "the only one there is"),
        "attempt": dg.MetadataValue.int(run.attempt),
        "tokens in": dg.MetadataValue.int(run.tokens_in),
        "tokens out": dg.MetadataValue.int(run.tokens_out),
        "cost": _text("unknown price" if run.cost_usd is None else f"{run.cost_usd:.4f} USD"),
        "not enforced": _listed(run.not_enforced),
    }
    if run.tried:
        found["tried before"] = _listed(run.tried)
    if run.error:
        found["error"] = _text(run.error)
    return found


def _landing_line(landing: LandingOutcome | None) -> str:
    if landing is None:
        return "not landed by itself: its parts did"
    return f"{landing.state.value}: {landing.reason}" if landing.reason else landing.state.value


def _concerns(landing: LandingOutcome | None) -> list[str]:
    if landing is None:
        return []
    return [f"{c.kind.value}: {c.path + ': ' if c.path else ''}{c.text}" for c in landing.concerns]


def _text(value: object) -> dg.MetadataValue:
    return dg.MetadataValue.text(display(value, "plain"))


def _prose(value: str) -> dg.MetadataValue:
    return dg.MetadataValue.md(display(value, "markdown", 20_000) or "none")


def _block(value: str) -> dg.MetadataValue:
    return dg.MetadataValue.md(code_block(value or "none"))


def _listed(items: Iterable[str]) -> dg.MetadataValue:
    lines = [f"- {display(item, 'markdown', 1_000)}" for item in items]
    more = [f"- and {len(lines) - _ROWS} more"] if len(lines) > _ROWS else []
    return dg.MetadataValue.md("\n".join(lines[:_ROWS] + more) or "none")


def _cell(value: str) -> str:
    return one_line(value, 300)


def _table(rows: Sequence[Mapping[str, str | int | float | bool | None]]) -> dg.MetadataValue:
    if not rows:
        return dg.MetadataValue.text("none")
    kinds = {str: "string", int: "int", float: "float", bool: "bool"}
    columns = [dg.TableColumn(name, kinds.get(type(value), "string")) for name, value in rows[0].items()]
    records = [dg.TableRecord(dict(row)) for row in rows[:_ROWS]]
    return dg.MetadataValue.table(records, dg.TableSchema(columns=columns))
