"""Names of builds, iterations and tasks: ours, never a model's, and valid in Dagster, git refs and file names at once.

    build       todo-api-7f3k           slug of the request and four random characters
    task        r002-03                 planner letter(s), iteration, position; a subplanner's child appends `-001-02`
    iteration   <build>.root.002        build, planner, number; planner is `root`, `fix` or the delegated task's id

Task ids derive from their iteration, so that a crashed and repeated plan names its tasks the same.
"""

import re
from typing import NamedTuple

from longshot_dagster.core.errors import WrongUse

ROOT = "root"
FIX = "fix"

_BUILD = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,46}[a-z0-9])?")
MAX_POSITION = 1_000  # tasks that one iteration may name

_TASK = re.compile(r"[rf]\d{3}-\d{2,4}(?:-\d{3}-\d{2,4}){0,2}")
_SLUG_LIMIT = 32  # keeps `<prefix><build>/<task>` far below git's and file systems' limits


class IterationKey(NamedTuple):
    """One planning round: partition key of the `iterations` set."""

    build: str
    planner: str
    number: int

    def __str__(self) -> str:
        return f"{self.build}.{self.planner}.{self.number:03d}"

    @property
    def short(self) -> str:
        """`root.002`: unique inside its build; names the ledger directory."""
        return f"{self.planner}.{self.number:03d}"


def new_build_id(request: str, suffix: str) -> str:
    """`request`'s first words as a slug, then `suffix` (random, from the caller: core has no chance of its own)."""
    words = re.sub(r"[^a-z0-9]+", "-", request.lower()).strip("-")[:_SLUG_LIMIT].strip("-")
    return check_build_id(f"{words or 'build'}-{suffix}")


def check_build_id(build: str) -> str:
    """Raises WrongUse unless `build` can name a build."""
    if not _BUILD.fullmatch(build):
        raise WrongUse(f"{build[:80]!r} is not a build name: 1-48 of a-z, 0-9 and '-', as `longshot status` lists them")
    return build


def check_task_id(task: str) -> str:
    """Raises WrongUse unless `task` can name a task."""
    if not _TASK.fullmatch(task):
        raise WrongUse(
            f"{task[:80]!r} is not a task name; they look like r002-03, as `longshot status BUILD` lists them"
        )
    return task


def task_id(key: IterationKey, position: int) -> str:
    """Id of the `position`-th task (from 1) that iteration `key` plans."""
    if not 1 <= position <= MAX_POSITION:
        raise ValueError(f"an iteration plans 1 to {MAX_POSITION} tasks, not number {position}")
    prefix = {ROOT: "r", FIX: "f"}.get(key.planner, f"{key.planner}-")
    return check_task_id(f"{prefix}{key.number:03d}-{position:02d}")


def parse_iteration_key(text: str) -> IterationKey:
    """Inverse of `str(IterationKey)`; raises WrongUse."""
    match text.split("."):
        case [build, planner, number] if number.isdigit() and len(number) == 3:
            check_build_id(build)
            if planner not in (ROOT, FIX):
                check_task_id(planner)
            return IterationKey(build, planner, int(number))
    raise WrongUse(f"{text[:120]!r} is not an iteration; they look like my-build-7f3k.root.001")


def task_partition(build: str, task: str) -> str:
    """Partition key of the `tasks` set."""
    return f"{check_build_id(build)}.{check_task_id(task)}"


def parse_task_partition(text: str) -> tuple[str, str]:
    """(build, task) of a `tasks` partition key; raises WrongUse."""
    build, dot, task = text.partition(".")
    if not dot:
        raise WrongUse(f"{text[:120]!r} is not a task partition; they look like my-build-7f3k.r001-02")
    return check_build_id(build), check_task_id(task)


def mapping_key(task: str) -> str:
    """`task` in the alphabet that Dagster allows for dynamic outputs."""
    return check_task_id(task).replace("-", "_")


def mapped_task(key: str) -> str:
    """Inverse of `mapping_key`; raises WrongUse."""
    return check_task_id(key.replace("_", "-"))


def depth(task: str) -> int:
    """How many subplanners stand above `task`: 0 for a root or fix task."""
    return (check_task_id(task).count("-") - 1) // 2
