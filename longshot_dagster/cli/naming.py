"""What a person calls a build or a task on the command line."""

import re

from longshot_dagster.adapters.ledger.ledger import Ledger
from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.ids import parse_task_partition, task_partition

_LIKE_A_TASK = re.compile(r"[rf]\d{3}-\d{2,4}(-\d{3}-\d{2,4})*")
_NAMED = 5


def build_or_task(builds: Ledger, name: str) -> tuple[str, str | None]:
    """(build, task or None) of `BUILD`, `BUILD.TASK`, or of a bare task that one build alone has. Raises WrongUse."""
    if "." in name:
        build, task = parse_task_partition(name)
        builds.existing(build).existing_task(task)
        return build, task
    if not _LIKE_A_TASK.fullmatch(name):
        return builds.existing(name).build, None
    having = [b for b in builds.builds() if builds.build(b).task(name) is not None]
    if not having:
        raise WrongUse(f"no build here has a task {name!r}; `longshot status BUILD` lists a build's tasks")
    if len(having) > 1:
        known = ", ".join(task_partition(b, name) for b in reversed(having[-_NAMED:]))
        raise WrongUse(f"{len(having)} builds have a task {name!r}; say which one you mean: {known}")
    return having[0], name


def newest(builds: Ledger) -> str:
    """The build that began last. Raises WrongUse."""
    known = builds.builds()
    if not known:
        raise WrongUse('no builds yet; longshot "REQUEST" starts one')
    return known[-1]


def named_task(builds: Ledger, name: str) -> tuple[str, str]:
    """(build, task) where only a task will do. Raises WrongUse."""
    build, task = build_or_task(builds, name)
    if task is None:
        raise WrongUse(f"{name!r} is a build; name one of its tasks, like {build}.r001-02")
    return build, task
