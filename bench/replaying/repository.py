"""Commits written straight into a bare repository, as a worker's branch would be after intake."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from longshot_dagster.adapters.repository.branch import commit
from longshot_dagster.adapters.repository.git import Git
from longshot_dagster.adapters.repository.object_store import Entry, graft, tree_of, write


@dataclass(frozen=True)
class Objects:
    git: Git

    @classmethod
    def made(cls, folder: Path) -> Self:
        """A new bare repository."""
        Git().run("init", "-q", "--bare", "-b", "main", str(folder))
        return cls(Git(folder))

    def commit(self, base: str | None, files: Mapping[str, str], text: str) -> str:
        """One commit on `base` with these files changed; returns its id."""
        entries = [Entry(p.encode(), "100644", write(self.git, "blob", t.encode())) for p, t in files.items()]
        tree = graft(self.git, tree_of(self.git, base) if base else write(self.git, "tree", b""), entries)
        return commit(self.git, tree, (base,) if base else (), text, 1.7e9)

    def blob(self, commit_id: str, path: str) -> str | None:
        """Id of a file's content there; None when there is no such file."""
        said = self.git.run("rev-parse", "--verify", "-q", f"{commit_id}:{path}", ok=(0, 1, 128))
        return said.text if said.code == 0 else None
