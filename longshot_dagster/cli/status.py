"""`longshot status [BUILD]`: how builds and their tasks stand, and what each waits for."""

import json
import os
import time
from collections.abc import Sequence
from typing import Any

import click

from longshot_dagster.adapters import settings
from longshot_dagster.adapters.host.exclusive import held_since
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.landing.shared_main import waits_for
from longshot_dagster.adapters.landing.unlanded import unlanded
from longshot_dagster.adapters.ledger.apart import Apart
from longshot_dagster.adapters.ledger.checkpoint import Checkpoint, Form
from longshot_dagster.adapters.ledger.ledger import BuildLedger, Ledger
from longshot_dagster.adapters.repository.git import Git
from longshot_dagster.adapters.stack import stack
from longshot_dagster.cli.naming import build_or_task
from longshot_dagster.cli.terminal import say, say_under
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.display import one_line
from longshot_dagster.core.errors import LedgerError
from longshot_dagster.core.landing_records import LandingState
from longshot_dagster.core.models import BuildPhase
from longshot_dagster.core.report import duration, gist_waits_for, headline
from longshot_dagster.core.settings import Checkpoint as CheckpointSetting
from longshot_dagster.core.standing import AtWork, Standing, explained
from longshot_dagster.core.task_gist import TaskGist

_WIDEST, _NARROW, _NARROWEST = 70, 20, 8
_MOST_TASKS = 12  # a terminal of 24 lines shows what is said about the build, too
_DONE = tuple(s.value for s in (LandingState.LANDED, LandingState.NOOP, LandingState.SUPERSEDED))
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
        gists = ledger.gists().values()
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
        # Delegated tasks have no branch of their own to land; one that proved atomic has a landing.
        "tasks": sum(not g.delegated or g.landing is not None for g in gists),
        "landed": sum(g.landing is LandingState.LANDED for g in gists),
        "created_at": request.created_at,
        "rehearsal": request.rehearsal,
    }


def _show_build(home: Home, ledger: BuildLedger, task: str | None, as_json: bool) -> None:
    row = _build_row(ledger)
    if row["error"]:
        raise LedgerError(row["error"])
    tasks = [_task_row(g, BuildPhase(row["phase"])) for g in ledger.gists().values() if task in (None, g.id)]
    if row["phase"] == BuildPhase.RUNNING:
        held_back = Apart(ledger, ledger.request().settings.worker_timeout, SystemClock()).held_back()
        tasks = [t | {"why": held_back[t["task"]].why} if t["task"] in held_back else t for t in tasks]
    report = ledger.report()
    facts = (
        explained(_standing(home, ledger, {t["task"]: t["why"] for t in tasks}))
        if task is None
        else _worked(ledger, task)
    )
    if as_json:
        shown = report.model_dump(mode="json") if report else None
        click.echo(json.dumps({**row, "explained": dict(facts), "task_list": tasks, "report": shown}, indent=1))
        return
    say(f"{row['build']}: {row['verdict'] or row['phase']}" + (f" ({row['reason']})" if row["reason"] else ""))
    if row["rehearsal"]:
        say("rehearsal: a scripted model answers, no real one")
    say(f"{row['branch']} of {row['repository']}")
    if report:
        say(headline(report))
    for name, text in facts:
        say_under(f"  {name:<10}", text)
    shown_tasks = _worth_a_line(tasks)
    if shown_tasks:
        columns = {"task": "task", "handoff": "handoff", "landing": "landing", "why": "waits for / why"}
        if not any(t["why"] for t in shown_tasks):
            del columns["why"]
        columns["description"] = "what"
        table(list(columns.values()), [[t[name] for name in columns] for t in shown_tasks])
    if mended := ledger.mended():
        more = f" (and {len(mended) - 1} more: longshot logs {row['build']})" if len(mended) > 1 else ""
        say(f"{mended[-1].line}{more}")
    if len(shown_tasks) < len(tasks):
        say(f"and {len(tasks) - len(shown_tasks)} more tasks; --json has them all")
    if row["phase"] == BuildPhase.PAUSED:
        say(f"to go on: longshot resume {row['build']}")


def _worked(ledger: BuildLedger, task: str) -> list[tuple[str, str]]:
    """Of one task: what it needs, where it was worked on by which agent, why there, and what came to nothing before."""
    found, needs, run = [], ledger.existing_task(task).needs, ledger.run(task)
    if needs:
        found.append(("needs", needs.line))
    if run is not None:
        found += [("before", line) for line in run.tried]
        where = f"{run.harness} at {run.provider}: {run.harness_status}" if run.sandbox else run.harness_status
        found.append(("worker", where + (f" ({run.route})" if run.route else "")))
    return [(name, one_line(text, 900)) for name, text in found]


def _worth_a_line(tasks: list[dict[str, str]]) -> list[dict[str, str]]:
    """All, if they fit a screen; else the first of those that are not done."""
    if len(tasks) <= _MOST_TASKS:
        return tasks
    return [t for t in tasks if t["landing"] not in _DONE or t["why"]][:_MOST_TASKS]


def _standing(home: Home, ledger: BuildLedger, why: dict[str, str]) -> Standing:
    view, state, now = ledger.view(), ledger.state(), time.time()
    working = []
    for task in view.tasks:
        if task.handoff is None and ledger.at_work(task.id) and (lock := ledger.work_lock(task.id)) is not None:
            working.append(AtWork(task.id, ledger.request().settings.sandbox_provider, now - held_since(lock)))
    return Standing(
        view,
        reason=state.reason,
        why=why,
        at_work=tuple(working),
        driven=stack.running(home) is not None,
        mender=waits_for(home, ledger) if state.phase is BuildPhase.RUNNING else "",
        only_here=_only_here(home, ledger),
    )


def _only_here(home: Home, ledger: BuildLedger) -> int:
    """Finished work that no push has taken along, because the target accepts branches only."""
    request = ledger.request()
    mirror = home.mirror_of(request.target.url)
    form = Checkpoint(Git(mirror), mirror, ledger.directory, ledger.build).form()
    if form is Form.REFS or request.settings.checkpoint is CheckpointSetting.LOCAL:
        return 0
    return len(unlanded(ledger))


def _task_row(gist: TaskGist, phase: BuildPhase) -> dict[str, str]:
    return {
        "task": gist.id,
        "kind": gist.kind.value,
        "handoff": gist.handoff.value if gist.handoff else _so_far(gist),
        "landing": gist.landing.value if gist.landing else ("delegated" if gist.delegated else "-"),
        "why": gist_waits_for(gist, phase),
        "description": gist.title,
    }


def _so_far(gist: TaskGist) -> str:
    """Of a task that was not handed in."""
    if gist.cancelled:
        return "(cancelled)"
    return f"{gist.interrupted.value} (interrupted)" if gist.interrupted else "-"


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
