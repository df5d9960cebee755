"""The ledger's facts as a commit beside main, so that a build can be resumed from the repository alone.

Facts are the JSON documents; transcripts, locks and temporary files stay at home. The commit lives at
refs/longshot/<build> (refs/longshot/checkpoint/<build> in a checkout), or, where a forge accepts branches only, on
branch longshot/checkpoint-<build>. In the mirror it is always refs/longshot/checkpoint/<build>.

A checkpoint costs what has changed: documents are renamed into their folder, which gives it a new time, so a folder
whose time is the same holds what the last checkpoint took.
"""

import json
import os
from collections.abc import Container, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from longshot_dagster.adapters.host.documents import write_atomically
from longshot_dagster.adapters.repository.git import Git
from longshot_dagster.adapters.repository.targets import QUEUE_EMAIL, QUEUE_NAME
from longshot_dagster.core.errors import RepositoryError

if TYPE_CHECKING:
    from upath import UPath

MAX_DOCUMENT_BYTES = 64 << 20
_SETTLED_NS = 2_000_000_000  # a folder written to later than this before it was read may change without a new time
# Broken documents; values between the steps of one run; what a person has approved on this very machine.
_NOT_FACTS = frozenset({"quarantine", "io", "approvals"})

Folders = dict[str, tuple[int, list[str]]]  # folder -> (its time in ns, or 0: not to be relied on; its documents)


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
        return local_ref(build)
    return f"refs/longshot/{build}"


def local_ref(build: str) -> str:
    """Of the newest checkpoint in the mirror, pushed or not."""
    return f"refs/longshot/checkpoint/{build}"


def document_at(git: Git, commit: str, name: str, limit: int = MAX_DOCUMENT_BYTES) -> bytes | None:
    """A document of a checkpoint; None when it has none of that name, or one larger than `limit`, or is not there itself."""
    try:
        ran = git.run("cat-file", "blob", f"{commit}:{name}", ok=(0, 128), keep=limit)
    except RepositoryError:
        return None
    return ran.out if ran.code == 0 and not ran.truncated else None


class Checkpoint:
    """Writes checkpoints of one build into the mirror; pushing them is the landing queue's business."""

    def __init__(self, git: Git, mirror: Path, ledger: "UPath", build: str) -> None:
        self.git = git
        self.mirror = mirror
        self.ledger = ledger
        self.build = build

    def commit(self, parent: str | None, changed: Mapping[str, bytes], at: float) -> str:
        """A commit on `parent` with every document as it is now, those in `changed` as they are about to be."""
        known = self._taken_by(parent)
        stream = [_header(local_ref(self.build), at, parent), b"" if known else b"deleteall\n"]
        taken: Folders = {}
        for folder, time_ns, names in _folders(self.ledger, self._now_ns()):
            if time_ns and folder in known and time_ns == known[folder][0]:
                taken[folder] = known[folder]
                continue
            names = _documents(f"{self.ledger}/{folder}") if names is None else names
            for name in _gone(folder, known, names):
                stream.append(f"D {name}\n".encode() if name not in changed else b"")
            there = []
            for name in names:
                try:
                    if _joined(folder, name) not in changed:
                        stream.append(_file(_joined(folder, name), self._bytes(_joined(folder, name))))
                    there.append(name)
                except FileNotFoundError:
                    time_ns = 0  # set aside at this moment; the next checkpoint has it where it went
            taken[folder] = (time_ns, there)
        for folder in known.keys() - taken.keys():
            stream += [f"D {name}\n".encode() for name in _gone(folder, known, ()) if name not in changed]
        for name, data in changed.items():
            stream.append(_file(name, data))
            folder, _, document = name.rpartition("/")
            there = taken.get(folder, (0, []))[1]
            # Not on disk yet, perhaps: read again, or deleted, next time.
            taken[folder] = (0, [*there, document] if document not in there else there)
        stream.append(b"get-mark :1\n")
        out = self.git.run("fast-import", "--quiet", "--force", "--date-format=raw", stdin=b"".join(stream))
        made = out.text
        # Not fsynced: one that a crash has torn is not read, and the next checkpoint takes everything anew.
        self._cache.write_bytes(json.dumps({"commit": made, "folders": taken}).encode())
        return made

    def _bytes(self, name: str) -> bytes:
        if not isinstance(self.ledger, Path):
            return (self.ledger / name).read_bytes()
        with open(f"{self.ledger}/{name}", "rb", buffering=0) as file:  # noqa: PTH123 - a UPath costs more than reading
            return file.readall()

    def local_head(self) -> str | None:
        """The newest checkpoint in the mirror, pushed or not."""
        return self.git.run("rev-parse", "-q", "--verify", local_ref(self.build), ok=(0, 1)).text or None

    def checkpoint_document(self, name: str) -> bytes | None:
        """A document's bytes as the newest checkpoint in the mirror has them; None when it has none.

        That checkpoint may never have been pushed, so what a `landing.json` of it says about main is to be asked of main.
        """
        return document_at(self.git, local_ref(self.build), name)

    def made(self) -> str:
        """The commit this home has made last; empty when that is not known."""
        return str(self._cached().get("commit", ""))

    def form(self) -> Form:
        try:
            return Form((self.mirror / "longshot-forge").read_text(encoding="utf-8").strip())
        except (OSError, ValueError):
            return Form.REFS

    def remember(self, form: Form) -> None:
        write_atomically(self.mirror / "longshot-forge", form.value.encode())

    def _now_ns(self) -> int:
        """The file system's own clock, which may not be ours."""
        probe = self.mirror / "longshot-now"
        probe.touch()
        return probe.stat().st_mtime_ns

    @property
    def _cache(self) -> Path:
        return self.mirror / f"longshot-checkpoint-{self.build}.json"

    def _cached(self) -> dict[str, object]:
        try:
            cached = json.loads(self._cache.read_bytes())
        except (OSError, ValueError):
            return {}
        return cached if isinstance(cached, dict) else {}

    def _taken_by(self, parent: str | None) -> Folders:
        """What `parent` holds; empty when that is not known."""
        cached = self._cached()
        folders = cached.get("folders")
        if not parent or cached.get("commit") != parent or not isinstance(folders, dict):
            return {}
        return {folder: (found[0], found[1]) for folder, found in folders.items()}


def _folders(root: "UPath", now_ns: int) -> Iterator[tuple[str, int, list[str] | None]]:
    """(folder relative to `root`, its time in ns or 0, its documents); the last is None where they need not be listed."""
    if not isinstance(root, Path):  # an object store has no folders, and their time says nothing
        found: dict[str, list[str]] = {}
        for path in sorted(root.rglob("*.json")):
            folder, _, name = path.relative_to(root).as_posix().rpartition("/")
            if not any(part.startswith(".") for part in (*folder.split("/"), name)):
                found.setdefault(folder, []).append(name)
        yield from ((folder, 0, names) for folder, names in found.items())
        return
    yield from _folders_below(str(root), "", now_ns)


def _folders_below(root: str, folder: str, now_ns: int) -> Iterator[tuple[str, int, list[str] | None]]:
    path = f"{root}/{folder}"
    try:
        found = os.stat(path)  # noqa: PTH116 - a Path costs more than the call, a thousand times
        settled = found.st_mtime_ns if now_ns - found.st_mtime_ns > _SETTLED_NS else 0
        if found.st_nlink == 2 and folder:  # nothing below it: its time says all, where folders count their folders
            yield folder, settled, None
            return
        with os.scandir(path) as entries:
            listed = sorted((e.name, e.is_dir(follow_symlinks=False)) for e in entries if not e.name.startswith("."))
    except FileNotFoundError:
        return
    below = [_joined(folder, name) for name, is_folder in listed if is_folder]
    yield folder, settled, [name for name, is_folder in listed if not is_folder and name.endswith(".json")]
    for name in below:
        if name not in _NOT_FACTS:
            yield from _folders_below(root, name, now_ns)


def _documents(folder: str) -> list[str]:
    try:
        return sorted(n for n in os.listdir(folder) if n.endswith(".json") and not n.startswith("."))  # noqa: PTH208
    except FileNotFoundError:
        return []


def _gone(folder: str, known: Folders, names: Container[str]) -> list[str]:
    before = known.get(folder, (0, []))[1]
    return [_joined(folder, name) for name in before if name not in names]


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


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
