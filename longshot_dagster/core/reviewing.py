"""How a person looks at what a build landed, takes it over, takes it back or goes on: commands that work as they stand."""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath

from longshot_dagster.core.display import one_line
from longshot_dagster.core.ids import task_partition
from longshot_dagster.core.models import BuildPhase, BuildRequest, BuildState, TargetKind

_CLONE = "review"  # the folder that the first command makes
_NAMED = 5


@dataclass(frozen=True)
class Step:
    """One command and what it is for."""

    says: str
    command: str


def review_steps(request: BuildRequest, head: str, files: Iterable[str] = ()) -> tuple[Step, ...]:
    """How to read what is on the landing branch at `head`; empty when nothing was added to it.

    `files`: paths that landed, one of which is the example of how to trace a line.
    """
    if head == request.base:
        return ()
    span = f"{request.base[:12]}..{head[:12]}"
    clone, git = _reading(request)
    example = next((f for f in files if one_line(f, 300) == f), None)
    steps = [
        *clone,
        Step("commit by commit, oldest first", f"{git} log --reverse --stat {span}"),
        Step("everything at once (commits of other people meanwhile included)", f"{git} diff {span}"),
    ]
    if example:
        blame = f"{git} blame {head[:12]} -- {shlex.quote(example)}"
        steps.append(Step("which commit wrote a line (for example of this file)", blame))
        trace = f"{git} log -1 --format=%B {head[:12]} -- {shlex.quote(example)}"
        steps.append(Step("and which task: its Longshot-Task line, to be found in the table of tasks", trace))
    if request.target.kind is TargetKind.CHECKOUT:
        branch = shlex.quote(request.target.branch)
        steps.append(Step("take it over into the branch you have checked out", f"{git} merge {branch}"))
    return tuple(steps)


def undo_steps(build: str, landed: Iterable[str]) -> tuple[Step, ...]:
    """How to take back what landed; empty when nothing did. `landed`: task ids, the newest last."""
    tasks = list(landed)
    if not tasks:
        return ()
    return (
        Step("one task", f"longshot undo {task_partition(build, tasks[-1])}"),
        Step("everything this build landed", f"longshot undo {build}"),
    )


def next_steps(state: BuildState, build: str, left: Iterable[str]) -> tuple[Step, ...]:
    """How to go on with what is not done. `left`: ids of tasks that did not land."""
    if state.phase is BuildPhase.PAUSED:
        return (Step("go on; nothing that is finished is asked for again", f"longshot resume {build}"),)
    if state.under_way:
        return (
            Step("watch it", f"longshot watch {build}"),
            Step("stop it; what was done is kept", f"longshot cancel {build}"),
        )
    names = list(left)[:_NAMED]
    return tuple(Step("give it to a new worker", f"longshot retry {task_partition(build, t)}") for t in names)


def _reading(request: BuildRequest) -> tuple[tuple[Step, ...], str]:
    """(what comes first, the beginning of every git command after it)."""
    target = request.target
    if target.kind is TargetKind.CHECKOUT:
        path = PurePath(target.url)
        work_tree = path.parent if path.name == ".git" else path
        return (), f"git -C {shlex.quote(str(work_tree))}"
    command = f"git clone --branch {shlex.quote(target.branch)} -- {shlex.quote(target.url)} {_CLONE}"
    return (Step("a clone to look at", command),), f"git -C {_CLONE}"
