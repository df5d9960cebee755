"""`longshot sandboxes`: every living sandbox of this home and who answers for it; `--reap` ends those that nobody does."""

import json
import os
from collections.abc import Sequence

import click

from longshot_dagster.adapters import settings
from longshot_dagster.adapters.workers.orphans import Found, Orphanage, Reaped
from longshot_dagster.cli.terminal import complain, say, waiting
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.display import one_line
from longshot_dagster.core.ids import task_partition
from longshot_dagster.core.orphans import Fate
from longshot_dagster.core.report import duration

_SHOWN = 200


def sandboxes(reap: bool, as_json: bool) -> int:
    """0; 1 when a provider could not be asked, or a sandbox not be ended."""
    home = settings.home(os.environ, settings.default_dotenv())
    orphanage, reaped = Orphanage(home, SystemClock()), Reaped()
    with waiting("looking at what there is ..."):
        found = orphanage.found()
    if reap:
        with waiting("keeping what killed workers had done, and ending what is left ..."):
            reaped = orphanage.reap(found)
    if as_json:
        _echo_json(found, reaped, orphanage.unreachable)
    else:
        _show(found, whole=not orphanage.unreachable)
        if reap:
            _show_reaped(reaped)
        elif any(f.fate in (Fate.ORPHAN, Fate.HOLDS_WORK) for f in found):
            say("nobody answers for some of them: longshot sandboxes --reap keeps what they hold and ends them")
    for line in [] if as_json else [*orphanage.unreachable, *reaped.left]:
        complain(line)
    return 1 if orphanage.unreachable or reaped.left else 0


def _show(found: Sequence[Found], *, whole: bool) -> None:
    if not found:
        say("no sandbox is alive" if whole else "none was found where it was possible to look")
    now = SystemClock().now()
    for one in found[:_SHOWN]:
        whose = one_line(task_partition(one.build, one.task) if one.task else one.build or "-", 120)
        age = duration(max(0.0, now - one.info.created_at))
        say(f"{one_line(one.info.id, 80)}  {one.provider.name}  {whose}  {age}  {one.fate}: {one.why}")
    if len(found) > _SHOWN:
        say(f"and {len(found) - _SHOWN} more (--json has all)")


def _show_reaped(reaped: Reaped) -> None:
    if reaped.kept:
        names = ", ".join(reaped.kept[:5])
        say(f"kept what killed workers had done of {names}{' and others' if len(reaped.kept) > 5 else ''}")
    say(f"{reaped.ended} ended" if reaped.ended else "nothing to end")


def _echo_json(found: Sequence[Found], reaped: Reaped, unreachable: Sequence[str]) -> None:
    rows = [
        {
            "id": f.info.id,
            "provider": f.provider.name,
            "build": f.build,
            "task": f.task,
            "created_at": f.info.created_at,
            "fate": f.fate.value,
            "why": f.why,
        }
        for f in found
    ]
    document = {"sandboxes": rows, "ended": reaped.ended, "kept": reaped.kept}
    click.echo(json.dumps({**document, "left": reaped.left, "unreachable": list(unreachable)}, indent=1))
