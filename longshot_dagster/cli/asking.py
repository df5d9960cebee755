"""Before the first build on a repository that holds something: what will happen, what it may cost, and a question."""

import sys
from collections.abc import Sequence

import click

from longshot_dagster.adapters.builds.examining_repository import repository_notes
from longshot_dagster.adapters.builds.starting import prepared
from longshot_dagster.adapters.gateway.gateway_client import Gateway
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.host.shipped import prompt
from longshot_dagster.adapters.ledger.ledger import Ledger
from longshot_dagster.adapters.repository.mirror import Mirror
from longshot_dagster.adapters.repository.targets import look_at
from longshot_dagster.adapters.settings import Resolved
from longshot_dagster.cli.terminal import say, say_under, waiting
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.endpoints import Endpoint
from longshot_dagster.core.errors import LedgerError, LongshotError, RepositoryError, WrongUse
from longshot_dagster.core.ids import ROOT, IterationKey
from longshot_dagster.core.models import Target, TargetKind
from longshot_dagster.core.outlook import Outlook, outlook_facts
from longshot_dagster.core.planner_messages import RoundFacts, first_message


def before_spending(
    home: Home,
    target: Target,
    resolved: Resolved,
    *,
    build: str,
    request: str,
    repository: str,
    land_on: str | None,
    endpoints: Sequence[Endpoint],
    sandboxes: str,
    assumed: bool,
    yes: bool,
) -> None:
    """Returns once the build may start. `assumed`: nobody has named the repository, it is the one of this folder.

    Asks only on a terminal; elsewhere what will happen is printed and the build starts. Raises WrongUse for a
    repository that cannot be read or pushed to, and for a no.
    """
    with waiting("looking at the repository ..."):
        head = look_at(target)
    if yes or head is None:
        return
    if not _is_first(home, target):
        if assumed and target.kind is TargetKind.REMOTE:
            say(f"this checkout's origin is {target.url}; finished work lands on its branch {target.branch}")
            ask("Build there?")
        return
    with waiting("reading the repository ..."):
        target, base, resolved = prepared(home, target, repository, resolved, build, land_on, SystemClock())
        mirror = Mirror(home, target)
        mirror.fetch()
        state = mirror.repo_state(base)
        told = first_message(RoundFacts(IterationKey(build, ROOT, 1), request, state))
        notes = repository_notes(mirror, base)
    outlook = Outlook(
        target,
        resolved.settings,
        sandboxes,
        tuple(e.label for e in endpoints) or served(home),
        state.files,
        prompt("root-planner") + told,
        notes,
    )
    say("the first build on this repository:")
    for name, text in outlook_facts(outlook):
        say_under(f"  {name:<12}", text)
    ask("Start it?")


def ask(question: str, otherwise: str = "nothing was started") -> None:
    """On stderr, as stdout may be a pipe. Raises WrongUse for a no."""
    if sys.stdin.isatty() and not click.confirm(question, default=True, err=True):
        raise WrongUse(f"{otherwise}; name another repository with --repo, or a branch with --land-on")


def _is_first(home: Home, target: Target) -> bool:
    """Has no build of this home been on `target` yet?"""
    ledger = Ledger(home.builds)
    for name in reversed(ledger.builds()):
        try:
            if ledger.build(name).request().target.url == target.url:
                return False
        except LedgerError:
            continue  # it is shown as unreadable by `longshot status`
    return True


def served(home: Home) -> tuple[str, ...]:
    """The hosts that a running gateway serves."""
    try:
        return tuple(str(e["host"]) for e in Gateway(home).status()["endpoints"])
    except (LongshotError, RepositoryError):
        return ()
