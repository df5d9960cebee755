"""`longshot undo TASK|BUILD`: shows what would be taken back, asks, and takes it back."""

import json
import os
from typing import Any

import click

from longshot_dagster.adapters import settings
from longshot_dagster.adapters.builds.undoing import Undoing, Undone
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.landing.lock_files import LockFiles
from longshot_dagster.adapters.ledger.ledger import BuildLedger, Ledger
from longshot_dagster.adapters.stack import stack
from longshot_dagster.cli.consent import consent
from longshot_dagster.cli.naming import build_or_task
from longshot_dagster.cli.terminal import say, waiting
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.display import one_line
from longshot_dagster.core.errors import LongshotError
from longshot_dagster.core.ids import task_partition
from longshot_dagster.core.landing_records import ConcernKind, LandingOutcome
from longshot_dagster.core.sandbox import SandboxProvider

RECORD_JOB = "record_undo"
_SHOWN = 20


def undo(name: str, yes: bool, as_json: bool) -> int:
    """0 once it is undone. Raises WrongUse, with nothing changed, for what did not land or what others build on."""
    home = settings.home(os.environ, settings.default_dotenv())
    builds = Ledger(home.builds)
    build, task = build_or_task(builds, name)
    ledger = builds.existing(build)
    undoing = Undoing(home, ledger, SystemClock(), _locks(home, ledger))
    undoing.retell()
    tasks = undoing.concerned(task)
    with waiting("looking at the branch ..."):
        preview = undoing.preview(tasks)
    target = undoing.request.target
    if not as_json:
        _show_preview(ledger, preview, target.branch, target.repository)
    if not yes:
        consent(f"Undo {_counted(len(preview.outcomes))}?", "nothing was undone")
    with waiting("undoing ..."):
        done = undoing.carry_out(tasks)
    refresh_ui(home, build, [o.task for o in done.outcomes])
    if as_json:
        click.echo(json.dumps(_as_json(ledger, done, target.branch), indent=1))
    else:
        _show_done(ledger, done, target.branch)
    return 0


def _locks(home: Home, ledger: BuildLedger) -> LockFiles:
    """What a task added to a manifest goes; its lock file follows, made in a sandbox of the build's own provider."""
    request = ledger.request()

    def provider() -> SandboxProvider:
        from longshot_dagster.adapters.sandboxes.providers import make_provider

        return make_provider(request.settings, request.origins, home)[0]

    return LockFiles(provider, request)


def _show_preview(ledger: BuildLedger, preview: Undone, branch: str, repository: str) -> None:
    say(f"to be undone on {branch} of {repository},")
    say("each by a commit that reverts it, the newest landing first:")
    for outcome in preview.outcomes[:_SHOWN]:
        title = ledger.existing_task(outcome.task).title
        how = _counted(len(outcome.landed_paths), "file") if outcome.undone_by else outcome.reason
        say(f"  {outcome.task}  {title} ({how})")
    _say_rest(preview)


def _show_done(ledger: BuildLedger, done: Undone, branch: str) -> None:
    for outcome in done.outcomes[:_SHOWN]:
        say(f"  {outcome.task} undone: {outcome.reason}")
    _say_rest(done)
    for text in dict.fromkeys(c.text for o in done.outcomes for c in o.concerns if c.kind is ConcernKind.LOCK_FILE):
        say(one_line(text, 500))
    say(f"{branch} is at {done.head[:12]}, which nobody has checked yet")
    made = [o for o in done.outcomes if o.undone_by]
    if made:
        say(f"to have it back: {_way_back(made)}")
    if len(made) == 1:
        say(f"made anew: longshot retry {task_partition(ledger.build, made[0].task)}")


def _say_rest(undone: Undone) -> None:
    if len(undone.outcomes) > _SHOWN:
        say(f"  and {len(undone.outcomes) - _SHOWN} more")


def _way_back(made: list[LandingOutcome]) -> str:
    """Of commits in order on the branch, the newest last."""
    first, last = made[0].undone_by or "", made[-1].undone_by or ""
    return f"git revert {first[:12]}" if len(made) == 1 else f"git revert {first[:12]}^..{last[:12]}"


def _counted(number: int, what: str = "task") -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def _as_json(ledger: BuildLedger, done: Undone, branch: str) -> dict[str, Any]:
    verdict = ledger.state().verdict
    return {
        "build": ledger.build,
        "branch": branch,
        "before": done.before,
        "head": done.head,
        "undone": [{"task": o.task, "commit": o.undone_by, "reason": o.reason} for o in done.outcomes],
        "verdict": verdict.value if verdict else None,
    }


def refresh_ui(home: Home, build: str, tasks: list[str]) -> None:
    """Have a running stack record anew what it shows of these tasks; what is true is in ledger and repository already."""
    info = stack.running(home)
    if info is None:
        return
    try:
        config = {"ops": {RECORD_JOB: {"config": {"build": build, "tasks": tasks}}}}
        stack.api(home, info).launch(RECORD_JOB, config, {"longshot/undo": build})
    except LongshotError as e:
        say(f"the Dagster UI still shows the tasks as they were: {e}")
