"""What one batch of landings begins with: each task's branch, and in which order the branches are merged."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from longshot_dagster.adapters.repository.branch import Branch
from longshot_dagster.adapters.repository.git import Git
from longshot_dagster.adapters.repository.mirror import Mirror
from longshot_dagster.core.errors import RepositoryError
from longshot_dagster.core.models import Handoff, Task, WorkerRun
from longshot_dagster.core.ordering import Footprint, footprint, landing_order


@dataclass(frozen=True)
class Entry:
    """One queued task with everything its landing depends on."""

    task: Task
    handoff: Handoff
    run: WorkerRun | None

    def branch(self, git: Git) -> Branch | None:
        """None where the worker has committed nothing."""
        if self.run is None or self.run.head is None:
            return None
        return Branch(git, self.run.base, self.run.head)


@dataclass(frozen=True)
class Ordered:
    entries: tuple[Entry, ...]
    branches: dict[str, Branch]  # by task; what has been read of them for the order is not read again


def in_order(entries: Sequence[Entry], mirror: Mirror) -> Ordered:
    """As `core/ordering.py` has it. A branch that cannot be read has no footprint: whoever merges it says why."""
    branches = {e.task.id: b for e in entries if (b := e.branch(mirror.git)) is not None}
    if len(entries) < 2:
        return Ordered(tuple(entries), branches)
    by_name = {e.task.id: e for e in entries}
    names = landing_order(_footprint(e, branches.get(e.task.id), mirror) for e in entries)
    return Ordered(tuple(by_name[name] for name in names), branches)


def _footprint(entry: Entry, branch: Branch | None, mirror: Mirror) -> Footprint:
    with contextlib.suppress(RepositoryError):
        if branch is not None and mirror.has(branch.base) and mirror.has(branch.tip):
            return footprint(entry.task, branch.changes)
    return Footprint(entry.task.id, entry.task.priority, frozenset())
