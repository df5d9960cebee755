"""`longshot reset` and `--reset`: shows what a branch would lose, asks, and sets it back to its first commit."""

import os

from longshot_dagster.adapters import settings
from longshot_dagster.adapters.builds.resetting import Resetting, reset_target
from longshot_dagster.cli.building import given_repository
from longshot_dagster.cli.consent import consent
from longshot_dagster.cli.terminal import say, waiting
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.resetting import loss_lines, restoring


def reset(repo: str | None, land_on: str | None, yes: bool) -> int:
    """0 once the branch is at its first commit, also when it was there already. Raises WrongUse and RepositoryError."""
    dotenv = settings.default_dotenv()
    home = settings.home(os.environ, dotenv)
    resolved = settings.resolve({}, {}, os.environ, dotenv, None)
    repository, _ = given_repository(repo or resolved.settings.git_repo_url)
    with waiting("looking at the repository ..."):
        target = reset_target(home, repository, resolved, land_on)
        resetting = Resetting(home, target, SystemClock())
        loss = resetting.loss()
    if loss is None:
        say(f"nothing to reset: {target.branch} of {target.repository} holds nothing after its first commit")
        return 0
    for line in loss_lines(loss):
        say(line)
    if not yes:
        consent(f"Set {target.branch} back?", "nothing was reset")
    with waiting("resetting ..."):
        backup = resetting.carry_out(loss)
    say(f"{target.branch} is at its first commit; what was there is kept as {backup}")
    say(f"to restore it: {restoring(target, loss.first, backup)}")
    return 0
