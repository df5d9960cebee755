"""A worker's branch as git tells it: its commits, what it changes, and a copy without what may not land."""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from longshot_dagster.adapters.git import Git, read_blobs
from longshot_dagster.adapters.targets import queue_identity
from longshot_dagster.core.landing import Change, is_fit, person

_LINK = "120000"
_MAX_LINK = 4_096


@dataclass(frozen=True)
class BranchCommit:
    oid: str
    parents: tuple[str, ...]
    author: tuple[str, str]  # name and e-mail, cleaned
    message: str  # as the worker wrote it: hostile
    fit: bool  # is it, author included, harmless as it is?


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
        listed = self.git.run("rev-list", "--topo-order", "--reverse", "--header", self.tip, f"^{self.base}").out
        return tuple(_parse_commit(c) for c in listed.decode("utf-8", "replace").split("\0") if c.strip())

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
        oids = "".join(f"{c.oid}\n" for c in self.commits).encode()
        options = ("--stdin", "-r", "-z", "-m", "--root", "--no-renames", "--name-only", "--no-commit-id")
        listed = self.git.run("diff-tree", *options, stdin=oids).out
        return frozenset(p for p in listed.decode("utf-8", "surrogateescape").split("\0") if p)

    def filtered(self, kept: frozenset[str], at: float) -> str:
        """A commit on base that holds only the changes to `kept`: what is withheld never reaches the landing branch."""
        with tempfile.TemporaryDirectory() as folder:
            env = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
            self.git.run("read-tree", self.base, env=env)
            entries = "".join(
                f"{c.mode} {c.oid if c.mode != '000000' else '0' * 40}\t{c.path}\0"
                for c in self.changes
                if c.path in kept
            )
            given = entries.encode("utf-8", "surrogateescape")
            self.git.run("update-index", "-z", "--index-info", stdin=given, env=env)
            tree = self.git.run("write-tree", env=env).text
        return commit(self.git, tree, (self.base,), "in scope only", at, self.author)


def read_changes(git: Git, old: str, new: str) -> tuple[Change, ...]:
    """Raises RepositoryError when git cannot compare them."""
    listed = git.run("diff-tree", "-r", "-z", "--raw", "--no-renames", "--abbrev=40", old, new).out
    fields = iter(listed.decode("utf-8", "surrogateescape").split("\0"))
    found = []
    for meta in fields:
        if meta:
            _, mode, _, oid, status = meta.split(" ")
            found.append(Change(next(fields), mode, oid, status[:1]))
    links = read_blobs(git, [c.oid for c in found if c.mode == _LINK])
    return tuple(replace(c, link=_target(links.get(c.oid, b""))) if c.mode == _LINK else c for c in found)


def _target(content: bytes) -> str:
    """Where a link points; "" (nowhere safe) for one that is missing or too long to be a link."""
    return content.decode("utf-8", "surrogateescape") if len(content) <= _MAX_LINK else ""


def commit(
    git: Git, tree: str, parents: Iterable[str], message: str, at: float, author: tuple[str, str] | None = None
) -> str:
    """Write a commit whose committer is the queue."""
    words = [word for parent in parents for word in ("-p", parent)]
    return git.run("commit-tree", tree, *words, stdin=message.encode(), env=queue_identity(at, author)).text


def _parse_commit(record: str) -> BranchCommit:
    """One record of `git rev-list --header`: the id, then the raw commit."""
    head, _, body = record.strip("\n").partition("\n\n")
    oid, *lines = head.split("\n")
    parents = tuple(line.removeprefix("parent ") for line in lines if line.startswith("parent "))
    author = next((line.removeprefix("author ") for line in lines if line.startswith("author ")), "")
    name, _, rest = author.partition("<")
    message = "\n".join(line.removeprefix("    ") for line in body.split("\n"))
    written = (name.strip(), rest.partition(">")[0])
    cleaned = person(*written)
    return BranchCommit(oid.strip(), parents, cleaned, message, is_fit(message) and written == cleaned)
