"""Is what a task's trailers claim really its work? Anybody who can push may write a trailer, or carry one to another commit.

A lander that died between push and ledger has left nothing but commits. Before they count, the branch is merged again onto
what was there before them: only what that gives is its landing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from longshot_dagster.adapters.repository.branch import Branch, changed_paths
from longshot_dagster.adapters.repository.git import Git
from longshot_dagster.adapters.repository.merger import Clean, Merger
from longshot_dagster.adapters.repository.object_store import read
from longshot_dagster.core import scope
from longshot_dagster.core.landing import Split, as_landed

_MOST_LOOKED_AT = 100  # parts of what has such trailers; with nobody's forgery among it, the first is it


@dataclass(frozen=True)
class FoundLanded:
    commits: tuple[str, ...]
    onto: str
    paths: tuple[str, ...]
    parts: Split  # as it was landed then, whoever owns what now


def found_landed(
    merger: Merger, head: str, commits: tuple[str, ...], branch: Branch, parts: Split
) -> FoundLanded | None:
    """The landing among `commits` (oldest first) that holds what `branch` would have given; None when none does.

    `parts`: how the branch would be divided now. Raises RepositoryError when git cannot tell.
    """
    if commits == (branch.tip,):
        return _forwarded(merger.git, head, branch, parts)
    for run in islice(_candidates(merger.git, commits), _MOST_LOOKED_AT):
        onto = _first_parent(merger.git, run[0])
        landed = changed_paths(merger.git, onto, run[-1]) if onto else ()
        then = as_landed(parts, branch.changes, landed)
        if onto and landed and _is_its_work(merger, onto, run[-1], branch, then, landed):
            return FoundLanded(run, onto, landed, then)
    return None


def _forwarded(git: Git, head: str, branch: Branch, parts: Split) -> FoundLanded | None:
    """A ref says that the worker's own commits were put on the branch: are they there?"""
    if git.run("merge-base", "--is-ancestor", branch.tip, head, ok=(0, 1)).code:
        return None
    paths = changed_paths(git, branch.base, branch.tip)
    return FoundLanded((branch.tip,), branch.base, paths, as_landed(parts, branch.changes, paths))


def _candidates(git: Git, commits: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Whatever was pushed at once stands together: first all that do, then parts of it, the long ones first."""
    runs = list(_runs(git, commits))
    yield from runs
    for run in runs:
        for length in range(len(run) - 1, 0, -1):
            yield from (run[start : start + length] for start in range(len(run) - length + 1))


def _runs(git: Git, commits: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    run: list[str] = []
    for oid in commits:
        if run and _first_parent(git, oid) != run[-1]:
            yield tuple(run)
            run = []
        run.append(oid)
    if run:
        yield tuple(run)


def _first_parent(git: Git, oid: str) -> str | None:
    for line in read(git, oid, "commit").partition(b"\n\n")[0].split(b"\n"):
        if line.startswith(b"parent "):
            return line.removeprefix(b"parent ").decode("ascii", "replace")
    return None


def _is_its_work(merger: Merger, onto: str, last: str, branch: Branch, then: Split, landed: tuple[str, ...]) -> bool:
    kept = frozenset((*then.landed, *then.claimed))
    if not kept:
        return False
    tip = branch.tip if len(kept) == len(branch.changes) else branch.filtered(kept, merger.at)
    merged = merger.merge(onto, tip, branch.base)
    if isinstance(merged, Clean):
        # Lock files are made anew by their own tools in the same push.
        return all(scope.is_generated(path) for path in changed_paths(merger.git, merged.tree, last))
    # Somebody has resolved what git would not: then it has to be all of the task's paths, and no others.
    own = {change.path for change in branch.changes}
    return set(then.landed) <= set(landed) and all(path in own or scope.is_generated(path) for path in landed)
