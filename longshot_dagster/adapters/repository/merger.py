"""Merges in memory: from a landing branch and a worker's branch to new commits or a described conflict, no work tree."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from longshot_dagster.adapters.repository.branch import Branch, changed_paths, commit
from longshot_dagster.adapters.repository.git import Git
from longshot_dagster.adapters.repository.object_store import blob_at, look_up, note_tree, read
from longshot_dagster.adapters.repository.three_way import merge_report
from longshot_dagster.core.errors import RepositoryError
from longshot_dagster.core.landing import Split, commit_message
from longshot_dagster.core.landing_records import Concern, ConcernKind, ConflictFile
from longshot_dagster.core.models import MAX_LIST, MAX_TEXT
from longshot_dagster.core.settings import MergeStrategy

MAX_REBASED = 30  # commits; a longer branch is squashed

_AHEAD_S = 86_400  # clocks differ
_BLOB_CAP = 1 << 20
_CONTEXT = 15  # lines around a conflict, where the whole file is too long


@dataclass(frozen=True)
class Names:
    """What the queue writes into commits: trailers, and the subject of a commit of its own."""

    build: str
    task: str
    source: str
    text: str

    def message(self, text: str | None = None) -> str:
        return commit_message(text or self.text, self.build, self.task, self.source)


@dataclass(frozen=True)
class Merged:
    """New commits on the landing branch, oldest first, and the paths they change there together."""

    commits: tuple[str, ...]
    paths: tuple[str, ...]
    strategy: MergeStrategy


@dataclass(frozen=True)
class Unchanged:
    """The landing branch already holds all of it."""


@dataclass(frozen=True)
class Stages:
    """One conflicted path as (mode, blob id): before both, on the landing branch, in the worker's branch."""

    base: tuple[str, str] | None
    ours: tuple[str, str] | None
    theirs: tuple[str, str] | None


@dataclass(frozen=True)
class Conflicted:
    """`tree` is merged but for the paths in `stages`; `kinds` are git's words for all that it complains of."""

    files: tuple[ConflictFile, ...]
    tree: str = ""
    stages: Mapping[str, Stages] = field(default_factory=dict)
    kinds: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Clean:
    tree: str


class Merger:
    """Strategies over `git merge-tree`. Raises RepositoryError for what is neither a merge nor a conflict."""

    def __init__(self, git: Git, at: float) -> None:
        self.git = git
        self.at = at

    def by_strategy(
        self,
        wanted: MergeStrategy,
        onto: str,
        branch: Branch,
        parts: Split,
        names: Names,
        forwardable: bool,
    ) -> tuple[Merged | Unchanged | Conflicted, tuple[Concern, ...]]:
        """Merge as the build wants it, or squash where that would land more than it may; and say which.

        `forwardable`: the target takes the refs that record a fast-forward.
        """
        if wanted is MergeStrategy.SQUASH:
            return self.squash(onto, branch, self._source(branch, parts), names), ()
        why = self._why_squash(wanted, onto, branch, parts, forwardable)
        if why is None:
            merged = self._own_commits(wanted, onto, branch, names)
            if not isinstance(merged, Conflicted) or len(branch.commits) == 1:
                return merged, ()
            why = "one of its commits conflicts alone"
        merged = self.squash(onto, branch, self._source(branch, parts), names)
        text = f"landed as one commit instead of {wanted}: {why}"
        said = (Concern(kind=ConcernKind.SQUASHED, text=text),) if isinstance(merged, Merged) else ()
        return merged, said

    def _source(self, branch: Branch, parts: Split) -> str:
        return branch.filtered(parts.kept, self.at) if parts.withheld else branch.tip

    def _own_commits(
        self, wanted: MergeStrategy, onto: str, branch: Branch, names: Names
    ) -> Merged | Unchanged | Conflicted:
        match wanted:
            case MergeStrategy.FAST_FORWARD:
                return self.fast_forward(branch)
            case MergeStrategy.MERGE_COMMIT:
                return self.merge_commit(onto, branch, names)
            case _:
                return self.rebase(onto, branch, names)

    def _why_squash(
        self, wanted: MergeStrategy, onto: str, branch: Branch, parts: Split, forwardable: bool
    ) -> str | None:
        """Why the worker's own commits cannot be put on the landing branch; None when they can."""
        if parts.withheld:
            return "some of its paths were withheld"
        if not branch.linear:
            return "its history is not one line on top of its base"
        if len(branch.commits) > MAX_REBASED:
            return f"it has more than {MAX_REBASED} commits"
        if not branch.touched() <= parts.kept:
            return "its history touches paths that may not land"
        if wanted is not MergeStrategy.REBASE and not branch.fit:
            return "its messages or authors are not fit for the landing branch"
        if wanted is not MergeStrategy.REBASE and any(c.newest > self.at + _AHEAD_S for c in branch.commits):
            return "its commits are dated in the future"
        if wanted is MergeStrategy.FAST_FORWARD and branch.base != onto:
            return "the landing branch has moved since its base"
        if wanted is MergeStrategy.FAST_FORWARD and not forwardable:
            return "the target does not accept the refs that record a fast-forward"
        return None

    def squash(self, onto: str, branch: Branch, source: str, names: Names) -> Merged | Unchanged | Conflicted:
        """One commit with everything that `source` (the tip, or its filtered copy) changes."""
        merged = self.merge(onto, source, branch.base)
        if isinstance(merged, Conflicted):
            return merged
        if not (paths := self.changed(onto, merged.tree)):
            return Unchanged()
        made = commit(self.git, merged.tree, (onto,), names.message(), self.at, branch.author)
        return Merged((made,), paths, MergeStrategy.SQUASH)

    def merge_commit(self, onto: str, branch: Branch, names: Names) -> Merged | Unchanged | Conflicted:
        """The worker's commits as they are, and a merge commit that carries the trailers."""
        merged = self.merge(onto, branch.tip, branch.base)
        if isinstance(merged, Conflicted):
            return merged
        if not (paths := self.changed(onto, merged.tree)):
            return Unchanged()
        made = commit(self.git, merged.tree, (onto, branch.tip), names.message(), self.at)
        return Merged((made,), paths, MergeStrategy.MERGE_COMMIT)

    def rebase(self, onto: str, branch: Branch, names: Names) -> Merged | Unchanged | Conflicted:
        """The worker's commits one by one on top of `onto`, each with the trailers; a linear branch is assumed."""
        made: list[str] = []
        tip, paths = onto, tuple[str, ...]()
        for picked in branch.commits:
            merged = self.merge(tip, picked.oid, picked.parents[0])
            if isinstance(merged, Conflicted):
                return merged
            if paths := self.changed(tip, merged.tree):
                message = names.message(picked.message or None)
                tip = commit(self.git, merged.tree, (tip,), message, self.at, picked.author)
                made.append(tip)
        if len(made) > 1:
            paths = self.changed(onto, tip)
        return Merged(tuple(made), paths, MergeStrategy.REBASE) if made and paths else Unchanged()

    def fast_forward(self, branch: Branch) -> Merged:
        """The worker's commits as they are, where the landing branch is still at their base."""
        paths = tuple(change.path for change in branch.changes)
        return Merged(tuple(c.oid for c in branch.commits), paths, MergeStrategy.FAST_FORWARD)

    def merge(self, onto: str, tip: str, base: str) -> Clean | Conflicted:
        """Three-way merge of what `tip` did since `base` into `onto`."""
        if onto == base:
            return Clean(f"{tip}^{{tree}}")
        clean, report = merge_report(self.git, onto, tip, base, self.at)
        if clean:
            tree = report.split(b"\0", 1)[0].decode().strip()
            note_tree(self.git, tree, tree)
            return Clean(tree)
        return self._describe(report.decode("utf-8", "surrogateescape"))

    def taken_back(self, onto: str, before: str, after: str) -> Clean | Conflicted:
        """Three-way merge of the way from `after` back to `before` into `onto`."""
        back = commit(
            self.git, f"{before}^{{tree}}", (after,), "stand-in", self.at
        )  # older gits merge descendants only
        return self.merge(onto, back, after)

    def changed(self, old: str, new: str) -> tuple[str, ...]:
        """Paths that differ between two commits or trees."""
        return changed_paths(self.git, old, new)

    def renamed(self, old: str, new: str) -> dict[str, str]:
        """new name -> old name, as the landing branch renamed files between two commits."""
        options = ("-r", "-z", "-M", "--diff-filter=R", "--name-status")
        fields = self.git.run("diff-tree", *options, old, new).out.decode("utf-8", "surrogateescape").split("\0")
        return {fields[i + 2]: fields[i + 1] for i in range(0, len(fields) - 2, 3)}

    def _describe(self, report: str) -> Conflicted:
        """Parse `merge-tree -z`: tree, `mode oid stage<TAB>path` records, an empty field, then messages with paths."""
        fields = iter(report.split("\0"))
        tree = next(fields)
        stages: dict[str, dict[int, tuple[str, str]]] = {}
        for record in fields:
            if not record:
                break
            meta, _, path = record.partition("\t")
            mode, oid, stage = meta.split(" ")
            stages.setdefault(path, {})[int(stage)] = (mode, oid)
        said = _kinds(list(fields))
        kinds = dict(reversed(said))  # the first of each path
        if not stages and not kinds:
            raise RepositoryError("git merge-tree reported a conflict without naming a file")
        paths = list(stages or dict.fromkeys(kinds))[:MAX_LIST]
        files = []
        for path in paths:
            base, ours, theirs = (stages.get(path, {}).get(n, ("", ""))[1] for n in (1, 2, 3))
            merged = blob_at(self.git, tree, path.encode("utf-8", "surrogateescape"))
            files.append(
                ConflictFile(
                    path=_shown(path),
                    kind=kinds.get(path, "contents"),
                    base=_whole(self._text(base)),
                    ours=_whole(self._text(ours)),
                    theirs=_whole(self._text(theirs)),
                    merged=_conflicts_only(self._text(merged)),
                )
            )
        by_path = {path: Stages(*(found.get(n) for n in (1, 2, 3))) for path, found in stages.items()}
        return Conflicted(tuple(files), tree, by_path, frozenset(word for _, word in said))

    def _text(self, oid: str | None) -> str | None:
        """A blob as text; None for what is absent, large or binary."""
        found = look_up(self.git, oid) if oid else None
        if oid is None or found is None or found.kind != "blob" or found.size > _BLOB_CAP:
            return None
        data = read(self.git, oid, "blob")
        return None if b"\0" in data else data.decode("utf-8", "replace")


def _kinds(fields: list[str]) -> list[tuple[str, str]]:
    """(path, git's word for its conflict), of messages `<count> paths... type text`; a path may have several."""
    kinds: list[tuple[str, str]] = []
    position = 0
    while position < len(fields) and fields[position].strip().isdigit():
        count = int(fields[position])
        paths, kind = fields[position + 1 : position + 1 + count], fields[position + 1 + count : position + 2 + count]
        if kind and kind[0].startswith("CONFLICT"):
            word = kind[0].removeprefix("CONFLICT").strip(" ()")
            kinds += [(path, word) for path in paths]
        position += count + 3
    return kinds


def _whole(text: str | None) -> str | None:
    return text if text is not None and len(text) <= MAX_TEXT else None


def _conflicts_only(text: str | None) -> str | None:
    """A merged file with markers; of a long one, its conflicts with the lines around them."""
    if text is None or "<<<<<<<" not in text:
        return None
    if len(text) <= MAX_TEXT * 2:
        return text
    lines = text.split("\n")
    keep: set[int] = set()
    start = None
    for number, line in enumerate(lines):
        if line.startswith("<<<<<<< "):
            start = number
        elif line.startswith(">>>>>>> ") and start is not None:
            keep |= set(range(max(0, start - _CONTEXT), min(len(lines), number + _CONTEXT + 1)))
            start = None
    parts, last = [], -1
    for number in sorted(keep):
        if number != last + 1:
            parts.append(f"… line {number + 1}:")
        parts.append(lines[number])
        last = number
    return "\n".join(parts)[: MAX_TEXT * 2]


def _shown(path: str) -> str:
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")[:4_096]
