"""`longshot status [BUILD]`: how builds and their tasks stand, and what each waits for."""

import json
import os
import time
from collections.abc import Sequence
from typing import Any

import click

from longshot_dagster.adapters import settings, stack
from longshot_dagster.adapters.home import Home
from longshot_dagster.adapters.ledger import BuildLedger, Ledger
from longshot_dagster.adapters.shared_main import waits_for
from longshot_dagster.cli.naming import build_or_task
from longshot_dagster.cli.terminal import say
from longshot_dagster.core.display import one_line
from longshot_dagster.core.errors import LedgerError
from longshot_dagster.core.landing_records import LandingState
from longshot_dagster.core.models import BuildPhase
from longshot_dagster.core.report import duration, headline, waiting_for

_WIDEST, _NARROW, _NARROWEST = 70, 20, 8
_GAP = "  "


def status(name: str | None, as_json: bool) -> int:
    """All builds, a build, or of one the task that was named. Raises WrongUse for what is not here."""
    home = settings.home(os.environ, settings.default_dotenv())
    if name is None:
        _show_builds(home, as_json)
    else:
        builds = Ledger(home.builds)
        build, task = build_or_task(builds, name)
        _show_build(home, builds.existing(build), task, as_json)
    return 0


def _show_builds(home: Home, as_json: bool) -> None:
    ledger = Ledger(home.builds)
    rows = [_build_row(ledger.build(name)) for name in ledger.builds()]
    info = stack.running(home)
    if as_json:
        running = {"url": info.url, "pid": info.pid, "ready": info.ready} if info else None
        click.echo(json.dumps({"home": str(home.root), "stack": running, "builds": rows}, indent=1))
        return
    say(f"Longshot runs; UI {info.url} (`longshot ui` prints a login link)" if info else "Longshot is not running")
    if not rows:
        say('no builds yet; longshot "REQUEST" starts one')
        return
    table(
        ("build", "state", "landed", "age", "request"),
        [
            (
                r["build"],
                r["verdict"] or r["phase"],
                f"{r['landed']}/{r['tasks']}",
                duration(time.time() - r["created_at"]),
                r["error"] or r["reason"] or r["request"],
            )
            for r in rows
        ],
    )


def _build_row(ledger: BuildLedger) -> dict[str, Any]:
    row: dict[str, Any] = {"build": ledger.build, "error": ""}
    try:
        request, state = ledger.request(), ledger.state()
        # Delegated tasks have no branch of their own to land; one that proved atomic has a landing.
        landings = [(ledger.existing_task(t), ledger.landing(t)) for t in ledger.task_ids()]
    except LedgerError as e:
        return (
            row
            | {"error": str(e), "phase": "unreadable", "verdict": None, "reason": "", "request": ""}
            | {
                "landed": 0,
                "tasks": 0,
                "created_at": time.time(),
            }
        )
    return row | {
        "phase": state.phase.value,
        "verdict": state.verdict.value if state.verdict else None,
        "reason": state.reason,
        "request": request.request[:200],
        "repository": request.target.url,
        "branch": request.target.branch,
        "tasks": sum(not task.delegated or landing is not None for task, landing in landings),
        "landed": sum(x is not None and x.state is LandingState.LANDED for _, x in landings),
        "created_at": request.created_at,
        "rehearsal": request.rehearsal,
    }


def _show_build(home: Home, ledger: BuildLedger, task: str | None, as_json: bool) -> None:
    row = _build_row(ledger)
    if row["error"]:
        raise LedgerError(row["error"])
    tasks = [_task_row(ledger, t, BuildPhase(row["phase"])) for t in ledger.task_ids() if task in (None, t)]
    report = ledger.report()
    if as_json:
        shown = report.model_dump(mode="json") if report else None
        click.echo(json.dumps({**row, "task_list": tasks, "report": shown}, indent=1))
        return
    say(f"{row['build']}: {row['verdict'] or row['phase']}" + (f" ({row['reason']})" if row["reason"] else ""))
    if row["rehearsal"]:
        say("rehearsal: a scripted model answers, no real one")
    say(f"{row['branch']} of {row['repository']}")
    if report:
        say(headline(report))
    if tasks:
        columns = {"task": "task", "handoff": "handoff", "landing": "landing", "why": "waits for / why"}
        if not any(t["why"] for t in tasks):
            del columns["why"]
        columns["description"] = "what"
        table(list(columns.values()), [[t[name] for name in columns] for t in tasks])
    if row["phase"] == BuildPhase.RUNNING and (mender := waits_for(home, ledger)):
        say(f"main is red, and build {mender} mends it; this one waits for that")
    if row["phase"] == BuildPhase.PAUSED:
        say(f"to go on: longshot resume {row['build']}")


def _task_row(ledger: BuildLedger, name: str, phase: BuildPhase) -> dict[str, str]:
    task, handoff, landing = ledger.existing_task(name), ledger.handoff(name), ledger.landing(name)
    return {
        "task": name,
        "kind": task.kind.value,
        "handoff": handoff.status.value if handoff else _so_far(ledger, name),
        "landing": landing.state.value if landing else ("delegated" if task.delegated else "-"),
        "why": waiting_for(task, handoff, landing, phase),
        "description": task.description.strip().partition("\n")[0][:200],
    }


def _so_far(ledger: BuildLedger, task: str) -> str:
    """Of a task that was not handed in."""
    if ledger.cancel_requested(task):
        return "(cancelled)"
    done = ledger.interrupted(task)
    return f"{done.status.value} (interrupted)" if done else "-"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need; where the terminal is too narrow, the last gives way, then the widest but the first."""
    import shutil

    shown = [[one_line(cell, _WIDEST) for cell in row] for row in [columns, *rows]]
    widths = [max(len(row[i]) for row in shown) for i in range(len(columns))]
    _shrink(widths, shutil.get_terminal_size((120, 24)).columns - len(_GAP) * (len(columns) - 1))
    for row in shown:
        say(_GAP.join(one_line(cell, width).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _shrink(widths: list[int], room: int) -> None:
    """Never the first: names are there to be copied."""
    last = len(widths) - 1
    widest = max(range(1, last), key=widths.__getitem__)
    for column, least in ((last, _NARROW), (widest, _NARROW), (last, _NARROWEST)):
        over = sum(widths) - room
        if over > 0:
            widths[column] = max(min(widths[column], least), widths[column] - over)
