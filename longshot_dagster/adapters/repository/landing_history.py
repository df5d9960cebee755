"""What has happened on a landing branch, as its commits tell: landings, undos, and what people have committed."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from longshot_dagster.adapters.repository.git import Git
from longshot_dagster.adapters.repository.mirror import Mirror
from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.ids import task_partition
from longshot_dagster.core.landing import BUILD_TRAILER, TASK_TRAILER
from longshot_dagster.core.undoing import UNDO_TRAILER, Step, joined, standing

MAX_STEPS = 1_000  # looked at one by one

_TRAILERS = [f"%(trailers:key={k},valueonly,separator=%x2C)" for k in (BUILD_TRAILER, TASK_TRAILER, UNDO_TRAILER)]


@dataclass(frozen=True)
class Past:
    """Where a build's commits stand in the branch's history, and which of its tasks a commit there says to take back."""

    places: Mapping[str, int]  # commit -> place; 0 is the newest
    undos: Mapping[str, tuple[str, ...]]  # task -> commits whose trailer says that they undo it

    @classmethod
    def read(cls, mirror: Mirror, head: str, build: str, base: str) -> Self:
        span = [head, *([f"^{base}"] if mirror.has(base) else [])]
        places: dict[str, int] = {}
        undos: dict[str, tuple[str, ...]] = {}
        for oid, found, _, undone in _records(mirror.git, ["%H", *_TRAILERS], "--topo-order", *span):
            places[oid] = len(places)
            if found == build and undone:
                undos[undone] = (*undos.get(undone, ()), oid)
        return cls(places, undos)

    def undone_by(self, task: str, landed: str) -> tuple[str, ...]:
        """Commits that say to have taken back what `task` landed as `landed`; an undo of an earlier landing is older."""
        place = self.places.get(landed, -1)
        return tuple(oid for oid in self.undos.get(task, ()) if self.places[oid] < place)


def steps_since(git: Git, oid: str, head: str, landed: Mapping[str, tuple[str, str]]) -> tuple[Step, ...]:
    """What has happened between two commits and still stands, oldest first; the newest MAX_STEPS commits of it.

    `landed` maps commits to their (build, task): those of a fast-forward carry no trailers.
    """
    wanted = ["%H", "%P", "%an", "%s", *_TRAILERS]
    records = _records(git, wanted, "--first-parent", "--reverse", f"--max-count={MAX_STEPS}", head, f"^{oid}")
    steps = standing(joined(_step(record, landed) for record in records if record[1]))
    paths = _changed(git, steps)
    return tuple(replace(s, paths=frozenset(paths[s.after])) for s in steps)


def _step(record: tuple[str, ...], landed: Mapping[str, tuple[str, str]]) -> Step:
    oid, parents, author, subject, build, task, undone = record
    before = parents.partition(" ")[0]
    if _names_a_task(build, undone or task):
        return Step(before, oid, build, undone or task, bool(undone), author, subject)
    build, task = landed.get(oid, ("", ""))
    return Step(before, oid, build, task, False, author, subject)


def _names_a_task(build: str, task: str) -> bool:
    """Anybody can write a trailer, and what it names ends up in a command that a person is told to run."""
    try:
        return bool(task_partition(build, task))
    except WrongUse:
        return False


def _changed(git: Git, steps: Sequence[Step]) -> dict[str, list[str]]:
    """Commit after a step -> paths that differ from the commit before it."""
    paths: dict[str, list[str]] = {s.after: [] for s in steps}
    given = "".join(f"{s.after} {s.before}\n" for s in steps).encode()
    listed = git.run("diff-tree", "--stdin", "-r", "-z", "--name-only", "--no-renames", stdin=given).out
    found: list[str] = []
    for field in listed.decode("utf-8", "surrogateescape").split("\0"):
        if field in paths:  # no file is named like a commit that holds it
            found = paths[field]
        elif field:
            found.append(field)
    return paths


def _records(git: Git, wanted: Iterable[str], *options: str) -> Iterator[tuple[str, ...]]:
    """One tuple of fields per commit; no field can hold the NUL between them."""
    fields = list(wanted)
    listed = git.run("log", "-z", f"--format={'%x00'.join(fields)}", *options).out.decode("utf-8", "replace")
    found = listed.split("\0")
    return zip(*(found[i :: len(fields)] for i in range(len(fields))), strict=False)
