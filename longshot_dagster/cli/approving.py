"""`longshot approve TASK`: shows what a task wants to change in protected paths, asks, and lands just that."""

import json
import os
from typing import Any

import click

from longshot_dagster.adapters import settings
from longshot_dagster.adapters.landing.approving import Approving, Proposal
from longshot_dagster.adapters.ledger.ledger import BuildLedger, Ledger
from longshot_dagster.adapters.stack import stack
from longshot_dagster.cli.consent import consent
from longshot_dagster.cli.naming import named_task
from longshot_dagster.cli.terminal import say, waiting
from longshot_dagster.cli.undoing import refresh_ui
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.display import display, one_line
from longshot_dagster.core.ids import task_partition
from longshot_dagster.core.landing_records import LandingOutcome
from longshot_dagster.core.models import BuildPhase, Verdict
from longshot_dagster.core.report import EXIT_BY_VERDICT

_DIFF_SHOWN = 200_000
_LINE_SHOWN = 1_990  # `say` cuts what is longer
_NOT_LANDED = EXIT_BY_VERDICT[Verdict.LEFTOVERS]


def approve(name: str, build: str | None, yes: bool, as_json: bool) -> int:
    """0 once it has landed, 3 when it could not. Raises WrongUse, with nothing changed, for a no and for nothing to approve."""
    home = settings.home(os.environ, settings.default_dotenv())
    builds = Ledger(home.builds)
    build, task = named_task(builds, name if build is None or "." in name else task_partition(build, name))
    ledger = builds.existing(build)
    approving = Approving(home, ledger, SystemClock())
    proposal = approving.proposal(task)
    if not as_json:
        _show(approving, proposal)
    if not approving.is_approved(proposal):
        if not yes:
            consent(f"Land exactly this on {approving.request.target.branch}?", "nothing was approved")
        approving.approve(proposal)
    finished = ledger.state().phase is BuildPhase.FINISHED
    with waiting("landing ..."):
        outcome = approving.land(proposal)
    refresh_ui(home, build, [task])
    if as_json:
        click.echo(json.dumps(_as_json(ledger, proposal, outcome), indent=1))
    else:
        _show_outcome(ledger, outcome, approving.request.target.branch)
        if finished:
            running = stack.running(home) is not None
            how = f"longshot {'watch' if running else 'resume'} {build}"
            say(f"{build} is open again for this, to be checked and reported anew: {how}")
    return 0 if _has_landed(outcome) else _NOT_LANDED


def _show(approving: Approving, proposal: Proposal) -> None:
    task, target = proposal.task, approving.request.target
    say(
        one_line(
            f"{task.id} ({task.title}) wants to change protected paths on {target.branch} of {target.repository}:", 400
        )
    )
    lines = display(proposal.diff, "plain", _DIFF_SHOWN).rstrip("\n").split("\n")
    for line in lines:
        say(line)
    if proposal.cut or len(proposal.diff) > _DIFF_SHOWN or any(len(line) > _LINE_SHOWN for line in lines):
        say(
            f"That is not all of it, {len(proposal.changes)} files in all. To see the rest: {approving.whole(proposal)}"
        )


def _show_outcome(ledger: BuildLedger, outcome: LandingOutcome, branch: str) -> None:
    if _has_landed(outcome):
        at = f" at {outcome.commits[-1][:12]}" if outcome.commits else ""
        say(f"{outcome.task} has landed what you approved on {branch}{at}, which nobody has checked yet")
        say(f"to take it back, with all of the task: longshot undo {task_partition(ledger.build, outcome.task)}")
    else:
        say(one_line(f"{outcome.task} {outcome.state.value}: {outcome.reason}", 500))


def _has_landed(outcome: LandingOutcome) -> bool:
    return outcome.approved is not None


def _as_json(ledger: BuildLedger, proposal: Proposal, outcome: LandingOutcome) -> dict[str, Any]:
    return {
        "build": ledger.build,
        "task": proposal.task.id,
        "paths": [c.shown for c in proposal.changes],
        "digest": proposal.digest,
        "landing": outcome.state.value,
        "reason": outcome.reason,
        "commits": list(outcome.commits),
        "approved": outcome.approved.model_dump(mode="json") if outcome.approved else None,
    }
