"""A worker's branch as git tells it: its commits, what it changes, and a copy without what may not land."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from longshot_dagster.adapters.repository.git import Git
from longshot_dagster.adapters.repository.object_store import (
    Entry,
    compare,
    graft,
    look_up,
    note_tree,
    read,
    tree_of,
    write,
)
from longshot_dagster.adapters.repository.targets import QUEUE_EMAIL, QUEUE_NAME
from longshot_dagster.core.errors import RepositoryError
from longshot_dagster.core.landing import Change, is_fit, person

_LINK = "120000"
_MAX_LINK = 4_096
_MORE = re.compile(r"(?!(?:tree|parent|author|committer) )")  # a signature, say, or what some other tool believes
_STRAIGHT = 100  # commits that are read one by one; of a longer line git tells at once


@dataclass(frozen=True)
class BranchCommit:
    oid: str
    parents: tuple[str, ...]
    author: tuple[str, str]  # name and e-mail, cleaned
    message: str  # as the worker wrote it: hostile
    fit: bool  # is it, with all of its header, harmless as it is?
    newest: int = 0  # seconds since 1970, of its two dates


class Branch:
    """The commits of `tip` that `base` does not have; read once, when first asked."""

    def __init__(self, git: Git, base: str, tip: str) -> None:
        self.git = git
        self.base = base
        self.tip = tip

    @cached_property
    def changes(self) -> tuple[Change, ...]:
        """Everything that differs between base and tip, without guessing at renames."""
        return read_changes(self.git, self.base, self.tip)

    @cached_property
    def commits(self) -> tuple[BranchCommit, ...]:
        """Oldest first."""
        if (straight := self._straight()) is not None:
            return straight
        listed = self.git.run("rev-list", "--topo-order", "--reverse", "--header", self.tip, f"^{self.base}").out
        return tuple(_parse_commit(c) for c in listed.decode("utf-8", "replace").split("\0") if c.strip())

    def _straight(self) -> tuple[BranchCommit, ...] | None:
        """The commits of a short straight line whose texts need no conversion; None for anything else."""
        found: list[BranchCommit] = []
        oid = self.tip
        while oid != self.base:
            if len(found) == _STRAIGHT:
                return None
            head, _, body = read(self.git, oid, "commit").partition(b"\n\n")
            if b"\0" in body or b"\nencoding " in head:
                return None
            message = _as_git_prints(body.decode("utf-8", "replace"))
            made = _commit_of(oid, head.decode("utf-8", "replace").split("\n"), message)
            if len(made.parents) != 1:
                return None
            found.append(made)
            if head.startswith(b"tree "):
                note_tree(self.git, oid, head[5:45].decode("ascii", "replace"))
            oid = made.parents[0]
        return tuple(reversed(found))

    @property
    def author(self) -> tuple[str, str]:
        return self.commits[-1].author if self.commits else person("", "")

    @property
    def linear(self) -> bool:
        """Is it one straight line of commits on top of base?"""
        parents = (self.base, *(c.oid for c in self.commits[:-1]))
        return all(c.parents == (parent,) for c, parent in zip(self.commits, parents, strict=True))

    @property
    def fit(self) -> bool:
        """May the worker's own commits reach the landing branch, as far as their messages and authors go?"""
        return all(c.fit for c in self.commits)

    def touched(self) -> frozenset[str]:
        """Paths that any single commit touches, also where a later one takes it back."""
        if len(self.commits) == 1:
            return frozenset(c.path for c in self.changes)
        if self.linear:
            return frozenset(p for c in self.commits for p in changed_paths(self.git, c.parents[0], c.oid))
        oids = "".join(f"{c.oid}\n" for c in self.commits).encode()
        options = ("--stdin", "-r", "-z", "-m", "--root", "--no-renames", "--name-only", "--no-commit-id")
        listed = self.git.run("diff-tree", *options, stdin=oids).out
        return frozenset(p for p in listed.decode("utf-8", "surrogateescape").split("\0") if p)

    def filtered(self, kept: frozenset[str], at: float) -> str:
        """A commit on base that holds only the changes to `kept`: what is withheld never reaches the landing branch."""
        entries = (c for c in self.changes if c.path in kept)
        tree = graft(self.git, tree_of(self.git, self.base), (entry_of(c) for c in entries))
        return commit(self.git, tree, (self.base,), "in scope only", at, self.author)


def read_changes(git: Git, old: str, new: str) -> tuple[Change, ...]:
    """Raises RepositoryError when git cannot compare them."""
    return tuple(replace(c, link=_target(git, c.oid)) if c.mode == _LINK else c for c in raw_changes(git, old, new))


def changed_paths(git: Git, old: str, new: str) -> tuple[str, ...]:
    """Paths that differ between two commits or trees."""
    return tuple(c.path for c in raw_changes(git, old, new))


def raw_changes(git: Git, old: str, new: str) -> list[Change]:
    """As `read_changes`, and of a link not where it points."""
    fields = iter(compare(git, old, new).decode("utf-8", "surrogateescape").split("\0"))
    found = []
    for meta in fields:
        if meta:
            mode_before, mode, before, oid, status = meta.split(" ")
            found.append(Change(next(fields), mode, oid, status[:1], None, mode_before.removeprefix(":"), before))
    return found


def entry_of(change: Change) -> Entry:
    return Entry(change.path.encode("utf-8", "surrogateescape"), change.mode, change.oid)


def _target(git: Git, oid: str) -> str:
    """Where a link points; "" (nowhere safe) for one that is missing or too long to be a link."""
    found = look_up(git, oid)
    if found is None or found.kind != "blob" or found.size > _MAX_LINK:
        return ""
    return read(git, oid, "blob").decode("utf-8", "surrogateescape")


def commit(
    git: Git, tree: str, parents: Iterable[str], message: str, at: float, author: tuple[str, str] | None = None
) -> str:
    """Write a commit whose committer is the queue; the bytes are those of `git commit-tree`, which is not started for it.

    `author` is clean, as `person` makes it. Raises RepositoryError for a tree or parent that is not here.
    """
    if "\0" in message:
        raise RepositoryError("a commit message holds a NUL")
    parents = tuple(dict.fromkeys(parents))
    for parent in parents:
        tree_of(git, parent)
    when = f"{int(at)} +0000"
    name, email = author or (QUEUE_NAME, QUEUE_EMAIL)
    lines = [f"tree {tree_of(git, tree)}", *(f"parent {p}" for p in parents), f"author {name} <{email}> {when}"]
    text = "\n".join((*lines, f"committer {QUEUE_NAME} <{QUEUE_EMAIL}> {when}", "", message))
    made = write(git, "commit", text.encode())
    note_tree(git, made, tree_of(git, tree))
    return made


def _as_git_prints(message: str) -> str:
    """Without spaces at the ends of lines and without empty lines at both ends, as `rev-list --header` has it."""
    lines = [line.rstrip(" \t\r\n") for line in message.split("\n")]
    first = next((n for n, line in enumerate(lines) if line), len(lines))
    return "\n".join(lines[first:]).rstrip(" \t\r\n")


def _parse_commit(record: str) -> BranchCommit:
    """One record of `git rev-list --header`: the id, then the raw commit."""
    head, _, body = record.strip("\n").partition("\n\n")
    oid, *lines = head.split("\n")
    return _commit_of(oid.strip(), lines, "\n".join(line.removeprefix("    ") for line in body.split("\n")))


def _commit_of(oid: str, lines: list[str], message: str) -> BranchCommit:
    """`lines` are the header's."""
    parents = tuple(line.removeprefix("parent ") for line in lines if line.startswith("parent "))
    author = next((line.removeprefix("author ") for line in lines if line.startswith("author ")), "")
    committer = next((line.removeprefix("committer ") for line in lines if line.startswith("committer ")), "")
    people = [_written(author), _written(committer)]
    fit = is_fit(message) and all(person(*who) == who for who, _ in people) and not any(map(_MORE.match, lines))
    return BranchCommit(oid, parents, person(*people[0][0]), message, fit, max(at for _, at in people))


def _written(who: str) -> tuple[tuple[str, str], int]:
    """((name, e-mail), seconds since 1970) of a header's line."""
    name, _, rest = who.partition("<")
    email, _, date = rest.partition(">")
    seconds = date.split()[0] if date.split() else ""
    return (name.strip(), email), int(seconds) if seconds.isdecimal() and len(seconds) < 20 else 1 << 62
