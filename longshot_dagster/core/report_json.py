"""The last word as one JSON document, for programs: the same facts as the page, with nothing cut but long texts."""

from typing import Any

from longshot_dagster.core.last_word import LastWord, Round, TaskFacts
from longshot_dagster.core.models import CheckResult, Sweep, WorkerRun
from longshot_dagster.core.reviewing import Step, next_steps, review_steps, undo_steps

_OUTPUT_KEPT = 4_000


def report_document(word: LastWord) -> dict[str, Any]:
    """`verdict` is null until the build has ended. Times are seconds since the epoch; unknown costs are null."""
    report, request = word.report, word.request
    return {
        "build": word.build,
        "finished": word.final,
        "phase": word.state.phase.value,
        "reason": word.state.reason,
        "verdict": report.verdict.value if word.final else None,
        "says": word.sentence,
        "rehearsal": request.rehearsal,
        "request": request.request,
        "repository": request.target.url,
        "branch": report.branch,
        "base": request.base,
        "head": report.head,
        "created_at": request.created_at,
        "told_at": word.told_at,
        "wall_s": report.wall_s,
        "tokens": report.tokens,
        "cost_usd": report.cost_usd,
        "iterations": report.iterations,
        "conflicts": report.conflicts,
        "finalization_attempts": report.finalization_attempts,
        "health": report.health,
        "health_reason": report.reason,
        "counts": {
            "tasks": report.tasks,
            "landed": report.landed,
            "superseded": report.superseded,
            "undone": len(word.undone),
            "left_over": len(report.leftovers),
        },
        "leftovers": [left.model_dump(mode="json") for left in report.leftovers],
        "tasks": [_task(t) for t in word.tasks],
        "rounds": [_round(r) for r in word.rounds],
        "sweeps": [_sweep(s) for s in word.sweeps],
        "pauses": [{"start": p.start, "end": p.end, "reason": p.reason} for p in word.pauses],
        "places": vars(word.places),
        "review": _steps(review_steps(request, report.head, word.landed_files)),
        "undo": _steps(undo_steps(word.build, [t.task.id for t in word.landed])),
        "next": _steps(next_steps(word.state, word.build, (x.task for x in report.leftovers))),
    }


def _task(facts: TaskFacts) -> dict[str, Any]:
    task, handoff, landing = facts.task, facts.handoff, facts.landing
    return {
        "task": task.id,
        "title": task.title,
        "kind": task.kind.value,
        "planned_by": task.iteration,
        "scope": task.scope,
        "delegated": task.delegated,
        "outcome": facts.outcome,
        "why": facts.why,
        "handoff": handoff.status.value if handoff else None,
        "summary": handoff.summary if handoff else "",
        "landing": landing.state.value if landing else None,
        "commits": landing.commits if landing else (),
        "source": landing.source if landing else None,
        "landed_paths": landing.landed_paths if landing else (),
        "withheld_paths": landing.withheld_paths if landing else (),
        "worker": _run(facts.run) if facts.run else None,
        "earlier_workers": [_run(r) for r in facts.earlier],
    }


def _run(run: WorkerRun) -> dict[str, Any]:
    kept = {"attempt", "provider", "harness", "harness_status", "error", "base", "head", "tokens_in", "tokens_out"}
    kept |= {"cost_usd", "started_at", "ended_at", "not_enforced", "route", "tried"}
    return {**run.model_dump(mode="json", include=kept), "checks": [_check(c) for c in run.checks]}


def _check(check: CheckResult) -> dict[str, Any]:
    return {**check.model_dump(mode="json"), "output": check.output[-_OUTPUT_KEPT:]}


def _round(r: Round) -> dict[str, Any]:
    plan = r.plan
    return {
        "round": r.key.short,
        "started_at": r.started_at,
        "planned_at": r.ended_at,
        "base": plan.base if plan else None,
        "tasks": [t.id for t in plan.tasks] if plan else [],
        "tokens": plan.tokens if plan else 0,
        "failure": r.failure.reason if r.failure else None,
    }


def _sweep(sweep: Sweep) -> dict[str, Any]:
    document = sweep.model_dump(mode="json", exclude={"checks"})
    return {**document, "green": sweep.green, "red": sweep.red, "checks": [_check(c) for c in sweep.checks]}


def _steps(steps: tuple[Step, ...]) -> list[dict[str, str]]:
    return [{"says": s.says, "command": s.command} for s in steps]
