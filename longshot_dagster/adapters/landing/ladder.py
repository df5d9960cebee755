"""The conflict ladder below the fix task: every conflicted file of a merge is offered to each rung until one resolves it."""

from collections.abc import Sequence
from dataclasses import dataclass

from longshot_dagster.adapters.repository.branch import Branch, commit
from longshot_dagster.adapters.repository.git import Git
from longshot_dagster.adapters.repository.merger import Conflicted, Merged, Merger, Names, Stages, Unchanged
from longshot_dagster.adapters.repository.object_store import Entry, graft, look_up, read, write
from longshot_dagster.adapters.repository.syntax_driver import syntax_rung
from longshot_dagster.core.landing_records import Concern, ConcernKind, Resolution
from longshot_dagster.core.rungs import MAX_BYTES, Rung, Sides, has_markers, pure_rungs
from longshot_dagster.core.settings import MergeStrategy, RungName, Settings

MAX_FILES = 50  # of one merge; what conflicts in more places is no accident of neighbouring lines

_FILES = ("100644", "100755")
_OF_CONTENTS = frozenset({"contents", "content", "add/add"})


@dataclass(frozen=True)
class Resolved:
    """A merge without conflicts, and which rung resolved which file."""

    tree: str
    resolutions: tuple[Resolution, ...]


def rungs_of(settings: Settings) -> tuple[Rung, ...]:
    """What the build wants to be tried; the syntax-aware driver only where it is installed."""
    driver = syntax_rung() if RungName.SYNTAX in settings.rungs else None
    return (*pure_rungs(settings.rungs, settings.union_patterns), *([driver] if driver else []))


class Ladder:
    """Over one mirror. Raises RepositoryError where git does."""

    def __init__(self, git: Git, rungs: Sequence[Rung]) -> None:
        self.git = git
        self.rungs = rungs

    def climbed(self, conflicted: Conflicted) -> Resolved | None:
        """None unless every file is resolved: half a resolution is a conflict. No rung decides about renames and deletions."""
        if not self.rungs or not conflicted.stages or not conflicted.kinds <= _OF_CONTENTS:
            return None
        if len(conflicted.stages) > MAX_FILES:
            return None
        resolutions: list[Resolution] = []
        entries: list[Entry] = []
        for path, stages in conflicted.stages.items():
            found = self._resolution(path, stages)
            if found is None:
                return None
            resolution, mode = found
            resolutions.append(resolution)
            entries.append(Entry(path.encode("utf-8", "surrogateescape"), mode, resolution.result))
        return Resolved(graft(self.git, conflicted.tree, entries), tuple(resolutions))

    def _resolution(self, path: str, stages: Stages) -> tuple[Resolution, str] | None:
        mode, sides = _mode(stages), self._sides(path, stages)
        if mode is None or sides is None:
            return None
        for rung in self.rungs:
            content = rung.resolve(sides)
            if content is None:
                continue
            if has_markers(content) and not has_markers(sides.ours):
                return None
            oids = {name: side[1] for name in ("base", "ours", "theirs") if (side := getattr(stages, name))}
            shown = path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            made = write(self.git, "blob", content)
            return Resolution(rung=rung.name.value, path=shown[:4_096], result=made, **oids), mode
        return None

    def _sides(self, path: str, stages: Stages) -> Sides | None:
        """The three contents; None where a side is no file, or too large to be judged by a rule."""
        contents: list[bytes | None] = []
        for side in (stages.base, stages.ours, stages.theirs):
            if side is None:
                contents.append(None)
                continue
            mode, oid = side
            found = look_up(self.git, oid)
            if mode not in _FILES or found is None or found.kind != "blob" or found.size > MAX_BYTES:
                return None
            contents.append(read(self.git, oid, "blob"))
        base, ours, theirs = contents
        return None if ours is None or theirs is None else Sides(path, base, ours, theirs)


def resolved(
    ladder: Ladder,
    merger: Merger,
    conflicted: Conflicted,
    onto: str,
    branch: Branch,
    names: Names,
    wanted: MergeStrategy,
) -> tuple[Merged | Unchanged, tuple[Resolution, ...], tuple[Concern, ...]] | None:
    """The branch as one commit on `onto`, its conflicts resolved by rule; None when it needs more than that."""
    found = ladder.climbed(conflicted)
    if found is None:
        return None
    paths = merger.changed(onto, found.tree)
    if not paths:
        return Unchanged(), found.resolutions, ()
    made = commit(ladder.git, found.tree, (onto,), names.message(), merger.at, branch.author)
    said: tuple[Concern, ...] = ()
    if wanted is not MergeStrategy.SQUASH and (len(branch.commits) > 1 or wanted is not MergeStrategy.REBASE):
        text = f"landed as one commit instead of {wanted}: its conflicts were resolved"
        said = (Concern(kind=ConcernKind.SQUASHED, text=text),)
    return Merged((made,), paths, MergeStrategy.SQUASH), found.resolutions, said


def _mode(stages: Stages) -> str | None:
    """The file's mode, where the two sides agree or one has changed it."""
    modes = [side[0] if side else None for side in (stages.base, stages.ours, stages.theirs)]
    base, ours, theirs = modes
    if ours == theirs or theirs == base:
        return ours
    return theirs if ours == base else None
