"""A red main becomes a few fix tasks: what the reconciler is told, and which of its answers' tasks are taken."""

from collections.abc import Collection, Sequence

from longshot_dagster.core.display import display
from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.models import BuildRequest, PlanReply, RepoState, Sweep, Task, TaskKind
from longshot_dagster.core.planner_messages import active_tasks, files, newest_commits, red_checks
from longshot_dagster.core.planning import plan_tasks

MAX_CHECK_FIXES = 5  # per sweep: one broken import reddens a hundred tests, and their fix is one


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
