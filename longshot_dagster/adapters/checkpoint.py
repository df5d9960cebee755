"""The ledger's facts as a commit beside main, so that a build can be resumed from the repository alone.

Facts are the JSON documents; transcripts, locks and temporary files stay at home. The commit lives at
refs/longshot/<build> (refs/longshot/checkpoint/<build> in a checkout), or, where a forge accepts branches only, on
branch longshot/checkpoint-<build>.
"""

import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

from upath import UPath

from longshot_dagster.adapters.documents import write_atomically
from longshot_dagster.adapters.git import Git
from longshot_dagster.adapters.targets import QUEUE_EMAIL, QUEUE_NAME


class Form(StrEnum):
    """What the target accepts beside the landing branch; remembered in the mirror."""

    REFS = "refs"
    BRANCH = "branch"
    NONE = "none"

    @property
    def weaker(self) -> "Form | None":
        forms = list(Form)
        return forms[forms.index(self) + 1] if self is not Form.NONE else None


def checkpoint_ref(build: str, form: Form, landing_branch: str) -> str:
    """Where the checkpoint is published. Beside branch longshot/<build>, whose short name git would read as
    refs/longshot/<build>, it steps aside.
    """
    if form is Form.BRANCH:
        return f"refs/heads/longshot/checkpoint-{build}"
    if landing_branch == f"longshot/{build}":
        return f"refs/longshot/checkpoint/{build}"
    return f"refs/longshot/{build}"


class Checkpoint:
    """Writes checkpoints of one build into the mirror; pushing them is the landing queue's business."""

    def __init__(self, git: Git, mirror: Path, ledger: UPath, build: str) -> None:
        self.git = git
        self.mirror = mirror
        self.ledger = ledger
        self.build = build

    def commit(self, parent: str | None, changed: Mapping[str, bytes], at: float) -> str:
        """A commit on `parent` with every document as it is now, those in `changed` as they are about to be."""
        cache, seen = self._unchanged_since(parent), dict[str, list[int]]()
        stream = [_header(self._local_ref, at, parent), b"" if cache else b"deleteall\n"]
        for path in sorted(self.ledger.rglob("*.json")):
            name = path.relative_to(self.ledger).as_posix()
            if name in changed or any(part.startswith(".") for part in name.split("/")):
                continue
            try:
                stat = path.stat()
                stamp = [int(stat.st_mtime * 1_000_000), int(stat.st_size)]
                if cache.pop(name, None) != stamp:
                    stream.append(_file(name, path.read_bytes()))
            except FileNotFoundError:
                continue  # set aside at this moment; the next checkpoint has it where it went
            seen[name] = stamp
        for name, data in changed.items():
            stream.append(_file(name, data))
            seen[name] = [0, 0]  # not on disk yet: read again, or deleted, next time
        stream += [f"D {name}\n".encode() for name in cache if name not in changed]
        stream.append(b"get-mark :1\n")
        out = self.git.run("fast-import", "--quiet", "--force", "--date-format=raw", stdin=b"".join(stream))
        made = out.text
        write_atomically(self._cache, json.dumps({"commit": made, "files": seen}).encode())
        return made

    def local_head(self) -> str | None:
        """The newest checkpoint in the mirror, pushed or not."""
        return self.git.run("rev-parse", "-q", "--verify", self._local_ref, ok=(0, 1)).text or None

    def form(self) -> Form:
        try:
            return Form((self.mirror / "longshot-forge").read_text(encoding="utf-8").strip())
        except (OSError, ValueError):
            return Form.REFS

    def remember(self, form: Form) -> None:
        write_atomically(self.mirror / "longshot-forge", form.value.encode())

    @property
    def _local_ref(self) -> str:
        return f"refs/longshot/checkpoint/{self.build}"

    @property
    def _cache(self) -> Path:
        return self.mirror / f"longshot-checkpoint-{self.build}.json"

    def _unchanged_since(self, parent: str | None) -> dict[str, list[int]]:
        """name -> stamp of what `parent` already holds; empty when that is not known."""
        try:
            cached = json.loads(self._cache.read_bytes())
        except (OSError, ValueError):
            return {}
        return dict(cached["files"]) if parent and cached.get("commit") == parent else {}


def _header(ref: str, at: float, parent: str | None) -> bytes:
    message = b"Checkpoint\n"
    lines = [
        f"commit {ref}",
        "mark :1",
        f"committer {QUEUE_NAME} <{QUEUE_EMAIL}> {int(at)} +0000",
        f"data {len(message)}",
    ]
    start = "\n".join(lines).encode() + b"\n" + message
    return start + (f"from {parent}\n".encode() if parent else b"")


def _file(name: str, data: bytes) -> bytes:
    return f"M 100644 inline {name}\ndata {len(data)}\n".encode() + data + b"\n"
