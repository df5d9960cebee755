"""`longshot clean`: says what would go and how large it is, asks, and takes it away."""

import json
import os
from collections.abc import Sequence
from typing import Any

import click

from longshot_dagster.adapters import settings
from longshot_dagster.adapters.builds.cleaning import Cleaning, Outcome, Removal
from longshot_dagster.adapters.builds.leftovers import Leftover, Leftovers
from longshot_dagster.adapters.stack import stack
from longshot_dagster.cli.consent import consent
from longshot_dagster.cli.terminal import say, say_under, waiting
from longshot_dagster.core.cleaning import DAY_S, parse_days
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.report import duration

_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def clean(older_than: str, build: str | None, dry_run: bool, yes: bool, as_json: bool) -> int:
    """0; 1 when a build had to be left because its repository did not answer. Raises WrongUse."""
    days = parse_days(older_than)
    home = settings.home(os.environ, settings.default_dotenv())
    info = stack.running(home)
    api = stack.api(home, info) if info and info.ready else None
    cleaning, leftovers = Cleaning(home, SystemClock(), api), Leftovers(home, api)
    with cleaning.alone():
        with waiting("looking at what there is ..."):
            asked = [cleaning.one(build)] if build else cleaning.due(days)
            # In bulk, a repository out of reach may answer tomorrow; a build called by its name goes all the same.
            left = [r for r in asked if r.there.why and not build]
            removals = [r for r in asked if r not in left]
            strays = [] if build else leftovers.found()
            mirrors = leftovers.idle_mirrors(frozenset(r.leaving.build for r in removals))
        told: dict[str, Any] = {"dry_run": dry_run, "removed": [], "left": [], "leftovers": [], "freed_bytes": 0}
        told |= {"notes": [], "waiting_for_dagster": []}
        _tell(removals, left, [*strays, *mirrors], told, as_json)
        if not removals and not strays and not mirrors:
            return _end(told, as_json, "nothing to remove", left)
        if dry_run:
            return _end(told, as_json, "nothing was removed: this was a dry run", left)
        if not yes:
            consent(f"Remove {_counted(removals, strays, mirrors)}?", "nothing was removed")
        with waiting("removing ..."):
            outcomes = [cleaning.take_away(r) for r in removals]
            for leftover in [*strays, *leftovers.idle_mirrors()]:
                leftovers.take_away(leftover)
            touched = frozenset(home.mirror_of(r.leaving.target.url) for r in removals)
            notes = leftovers.pack_mirrors(touched)
        _tell_end(outcomes, notes, told, as_json)
        return _end(told, as_json, f"removed {_counted(removals, strays, mirrors)}, {_size(told['freed_bytes'])}", left)


def _tell(
    removals: Sequence[Removal],
    left: Sequence[Removal],
    others: Sequence[Leftover],
    told: dict[str, Any],
    as_json: bool,
) -> None:
    for r in removals:
        told["removed"].append(_as_json(r))
        if not as_json:
            say_under(f"{r.leaving.build}: ", _facts(r))
    for r in left:
        told["left"].append({"build": r.leaving.build, "why": r.there.why})
        if not as_json:
            say(
                f"{r.leaving.build} is left: {r.there.why}; longshot clean --build {r.leaving.build} removes the rest of it"
            )
    for o in others:
        told["leftovers"].append({"what": o.what, "path": str(o.path), "bytes": o.bytes})
        if not as_json:
            say(f"{o.what}: {_size(o.bytes)}")
    told["freed_bytes"] = sum(r.bytes for r in removals) + sum(o.bytes for o in others)


def _tell_end(outcomes: Sequence[Outcome], notes: Sequence[str], told: dict[str, Any], as_json: bool) -> None:
    told["notes"] = [f"{o.build}: {note}" for o in outcomes for note in o.notes] + list(notes)
    told["waiting_for_dagster"] = [o.build for o in outcomes if o.waits]
    if as_json:
        return
    for note in told["notes"]:
        say(note)
    if told["waiting_for_dagster"]:
        say(
            "Dagster's runs and partitions of them stay while Longshot is not running; "
            "the next `longshot clean` after `longshot up` removes them"
        )


def _end(told: dict[str, Any], as_json: bool, line: str, left: Sequence[Removal]) -> int:
    if as_json:
        click.echo(json.dumps(told, indent=1))
    else:
        say(line)
    return 1 if left else 0


def _facts(r: Removal) -> str:
    age = f"ended {_ago(SystemClock().now() - r.ended)} ago" if r.ended is not None else "its removal was cut short"
    parts = [age, _size(r.bytes), f"{_many(len(r.there.refs), 'ref')} on {r.leaving.target.repository}"]
    parts.append(f"{r.mirrored} in the mirror")
    if r.sandboxes:
        parts.append(_many(len(r.sandboxes), "sandbox", "sandboxes"))
    if r.there.result:
        branch = r.there.result.removeprefix("refs/heads/")
        parts.append(f"branch {branch} {'is merged and goes' if r.there.merged else 'holds its work and stays'}")
    return ", ".join(parts)


def _ago(seconds: float) -> str:
    return f"{seconds / DAY_S:.0f} days" if seconds >= 2 * DAY_S else duration(seconds)


def _as_json(r: Removal) -> dict[str, Any]:
    return {
        "build": r.leaving.build,
        "ended_at": r.ended,
        "bytes": r.bytes,
        "repository": r.leaving.target.repository,
        "refs": sorted(r.there.refs),
        "mirror_refs": r.mirrored,
        "sandboxes": len(r.sandboxes),
        "result_branch": r.there.result.removeprefix("refs/heads/") or None,
        "result_branch_goes": bool(r.there.result and r.there.merged),
    }


def _counted(removals: Sequence[Removal], strays: Sequence[Leftover], mirrors: Sequence[Leftover]) -> str:
    counts = ((len(removals), "build"), (len(strays), "leftover"), (len(mirrors), "mirror"))
    return ", ".join(_many(n, word) for n, word in counts if n)


def _many(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def _size(count: float) -> str:
    for unit in _UNITS:
        if count < 1_000 or unit == _UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1_000
    raise AssertionError
