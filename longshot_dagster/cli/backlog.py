"""`longshot backlog`: the backlog's items, how each stands, and the builds they became."""

import json
import os
from pathlib import Path
from typing import Any

import click

from longshot_dagster.adapters import settings
from longshot_dagster.adapters.builds.backlog import Backlog, Turn, book_of
from longshot_dagster.adapters.host import cron
from longshot_dagster.adapters.stack import stack
from longshot_dagster.cli import serving
from longshot_dagster.cli.status import table
from longshot_dagster.cli.terminal import say
from longshot_dagster.core.backlog import BEGAN, State, at, taken
from longshot_dagster.core.backlog_item import Item
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.display import one_line

_NAME = 28  # characters of a file name in the table, so that 80 columns hold the reason too
_TROUBLE = (State.MALFORMED, State.REFUSED)


def backlog(as_json: bool) -> int:
    """Always 0: a malformed item is one line, and keeps no other from being built. Raises LongshotError."""
    dotenv = settings.default_dotenv()
    home = settings.home(os.environ, dotenv)
    place = serving.backlog_place(home, dotenv, beside=Path.cwd())
    book, running = book_of(home), stack.running(home) is not None
    folder, limit = place.folder, place.builds
    if running and book.folder:  # what the stack was started with counts, wherever this command is given
        folder, limit = Path(book.folder), book.limit
    budget = settings.resolve({}, {}, os.environ, dotenv, None).settings.max_tokens_per_build
    turn = Backlog(home, folder, limit, budget, SystemClock()).look()
    shown = {
        "folder": str(folder),
        "limit": limit,
        "under_way": taken(turn.book, turn.found.wanted),
        "running": running,
    }
    if as_json:
        click.echo(json.dumps({**shown, "items": _rows(turn)}, indent=1))
        return 0
    say(f"backlog {folder}: {shown['under_way']} of {limit} builds under way")
    if not running:
        say("Longshot is not running; `longshot up` starts what is waiting")
    _show(turn)
    return 0


def _rows(turn: Turn) -> list[dict[str, Any]]:
    rows, items, entries = [], {item.name: item for item in turn.found.items}, turn.book.by_place
    for stands in turn.standings:
        item = items.get(stands.name)
        entry = entries.get(item.place) if item else None
        rows.append(
            {
                "item": stands.name,
                "state": stands.state.value,
                "why": stands.why,
                "build": stands.build or None,
                "builds": [s.build for s in entry.starts if s.stage in BEGAN] if entry else [],
                "priority": item.priority if item else None,
                "repository": item.repository if item else None,
                "cron": item.cron or None if item else None,
                "next": _next(item) if item else None,
            }
        )
    return rows


def _next(item: Item) -> float | None:
    """Seconds since the epoch of its next tick."""
    return cron.following(item.cron, SystemClock().now()) if item.cron and item.enabled else None


def _show(turn: Turn) -> None:
    rows = _rows(turn)
    if turn.found.missing:
        say(f"{turn.found.missing}; docs/backlog.md says what an item looks like")
    elif not rows:
        say("no items in it; docs/backlog.md says what one looks like")
    else:
        cells = [
            (one_line(r["item"], _NAME), str(r["priority"] or ""), r["state"], r["build"] or "", _short(r))
            for r in rows
        ]
        table(("item", "priority", "state", "build", "why"), cells)
    for row in rows:
        if row["state"] in _TROUBLE:
            say(f"{row['item']}: {row['why']}")


def _short(row: dict[str, Any]) -> str:
    if row["state"] in _TROUBLE:
        return "see below"
    return f"next {at(row['next'])}" if row["state"] == State.SCHEDULED else str(row["why"])
