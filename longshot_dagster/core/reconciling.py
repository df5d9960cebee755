"""A red main becomes a few fix tasks: which build answers it, what the reconciler is told, which of its tasks are taken."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from longshot_dagster.core.display import display
from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.lifecycle import IterationStatus
from longshot_dagster.core.models import BuildPhase, BuildRequest, PlanReply, RepoState, Sweep, Task, TaskKind
from longshot_dagster.core.planner_messages import active_tasks, files, newest_commits, red_checks
from longshot_dagster.core.planning import plan_tasks
from longshot_dagster.core.settings import Settings

MAX_CHECK_FIXES = 5  # per sweep: one broken import reddens a hundred tests, and their fix is one


@dataclass(frozen=True)
class Mender:
    """The build that last took up a red main, as its ledger stands now."""

    build: str
    phase: BuildPhase | None  # None: it is gone, or cannot be read
    iteration: IterationStatus | None  # of its fix iteration; None: that was never opened

    @property
    def at_it(self) -> bool:
        """Only what the sensors carry on counts: a paused, ended or failed mender would keep the others waiting for ever."""
        under_way = self.phase in (BuildPhase.RUNNING, BuildPhase.FINALIZING)
        return under_way and self.iteration is IterationStatus.OPEN


def may_mend(build: str, mender: Mender | None) -> bool:
    """May `build` open a fix iteration for the red main that it shares with the mender?"""
    return mender is None or mender.build == build or not mender.at_it


def checks_of(settings: Settings) -> str:
    """A name for everything that a sweep's outcome depends on beside the commit; builds with the same one share sweeps."""
    facts = settings.model_dump_json(include={n for n in Settings.model_fields if n.startswith(("check_", "sandbox_"))})
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def reconciler_message(
    key: IterationKey, request: str, state: RepoState, sweep: Sweep, active: Sequence[Task], commits: int = 20
) -> str:
    """The reconciler's only message: it remembers nothing between fix rounds."""
    return "\n\n".join(
        [
            f"# Fix round {key.short}",
            red_checks(sweep, 12_000),
            newest_commits(state, commits),
            active_tasks(active),
            f"## Files\n\n{files(state.tree, state.files)}",
            f"## The request the build works on\n\n{display(request, 'plain', 2_000)}",
            f'Answer with one JSON object: {{"tasks": [...]}}, at most {MAX_CHECK_FIXES} tasks, an empty list when the tasks under way already mend this.',
        ]
    )


def check_fix_tasks(
    reply: PlanReply, key: IterationKey, request: BuildRequest, first_position: int, unlanded: Collection[str] = ()
) -> tuple[Task, ...]:
    """The most urgent five of the answer's tasks, in the order of their priority."""
    urgent = sorted(reply.tasks, key=lambda t: t.priority)[:MAX_CHECK_FIXES]
    return plan_tasks(
        reply.model_copy(update={"tasks": urgent}),
        key,
        request,
        None,
        unlanded,
        kind=TaskKind.CHECK_FIX,
        first_position=first_position,
    )
