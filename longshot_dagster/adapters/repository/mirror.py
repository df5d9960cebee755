"""One bare repository per target, shared by all builds on this host: fetches, bundles, intake, diffs, pushes."""

import contextlib
import os
import re
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from longshot_dagster.adapters.host.documents import locked, write_atomically
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.repository import intake
from longshot_dagster.adapters.repository.git import Git, reason
from longshot_dagster.adapters.repository.intake import work_ref
from longshot_dagster.adapters.repository.object_store import compare_in_full, look_up
from longshot_dagster.adapters.repository.repository_reader import RepositoryReader
from longshot_dagster.adapters.repository.stale_locks import remove_stale_locks
from longshot_dagster.core.contract import BASE_REF
from longshot_dagster.core.display import display
from longshot_dagster.core.errors import RepositoryError
from longshot_dagster.core.models import MAX_DIFF, RepoState, Target

KEEP_BUNDLES = 8
PACK_AT = 256  # loose objects, more or less
_BUNDLE_AGE_S = 3600
_MAX_FILES = 5_000
_NOTHING = "0" * 40
_SAMPLED = ("00", "40", "80", "c0")  # of 256 folders
_SHARE = 256 // len(_SAMPLED)
_NEAR = ("-c", "pack.window=0", "-c", "pack.threads=1")
_NOT_AT_ONCE = "does not support --atomic"
_MAX_TOLD = 8 << 20  # bytes of one diff that are taken through a dialogue


@dataclass(frozen=True)
class FileChange:
    """One path of a diff; `status` is git's letter (A, M, D, T). Binary files count no lines."""

    path: str
    status: str
    added: int
    removed: int


@dataclass(frozen=True)
class Diff:
    """`text` is cut at MAX_DIFF characters and says so; `files` at 5,000 entries."""

    text: str
    files: tuple[FileChange, ...]


@dataclass(frozen=True)
class Remote:
    """The target's refs that concern one build, read in one round trip."""

    refs: dict[str, str]
    head: str  # of the landing branch, or of the base branch while that does not exist


@dataclass(frozen=True)
class Update:
    """Move `ref` from `old` (None: it must not exist) to `new` (None: it is removed)."""

    ref: str
    old: str | None
    new: str | None


class Mirror:
    """The bare mirror of `target`; made when first used. One instance may be shared by threads."""

    def __init__(self, home: Home, target: Target) -> None:
        self._looking = threading.Lock()
        self._looked: tuple[float, str] | None = None  # when it began (monotonic), the head it found
        self.target = target
        self.path = home.mirror_of(target.url)
        self._git = Git(self.path)
        self._network = Git(self.path, network=True)
        self._reader = RepositoryReader(self.path)
        self._present: set[str] = set()
        self._made = False
        self._at_once = True  # does the target move several refs at once?
        self.left_out = ""  # of the newest push: why something beside its first ref is not on the target

    @property
    def git(self) -> Git:
        """Local plumbing on the mirror."""
        self._make()
        return self._git

    @property
    def landing_lock(self) -> Path:
        """Whoever holds the lock on this path is this host's lander for the target."""
        return self.path / "longshot-landing.lock"

    # --- the target --------------------------------------------------------------------------------------------------

    def fetch(self, within_s: float = 0.0) -> str:
        """Head of the landing branch, or of the base branch while that does not exist; its objects are here then.

        A look at the target that began less than `within_s` seconds ago answers too, unless this instance has pushed
        since: workers that start together ask the target once. Whoever judges main asks anew.

        Raises RepositoryError when the target cannot be read or lacks both branches.
        """
        asked = time.monotonic()
        with self._looking:
            looked = self._looked
            if looked is not None and looked[0] > asked - within_s:
                return looked[1]
            began = time.monotonic()
            head = self.read_remote().head
            self._looked = (began, head)
            return head

    def read_remote(self, *refs: str) -> Remote:
        """The landing branch's head (fetched) and whichever of `refs` (a trailing `*` matches the rest) exist."""
        self._make()
        branch, base = f"refs/heads/{self.target.branch}", f"refs/heads/{self.target.base_branch}"
        listed = self._network.run("ls-remote", "--refs", "--", self.target.url, branch, base, *refs, timeout_s=120)
        found: dict[str, str] = {}
        for line in listed.out.decode("utf-8", "surrogateescape").splitlines():
            oid, _, ref = line.partition("\t")
            if ref in (branch, base) or any(_names(pattern, ref) for pattern in refs):
                found[ref] = oid
        source = branch if branch in found else base
        if source not in found:
            raise RepositoryError(f"{self.target.repository} has neither {self.target.branch} nor its base branch")
        self.obtain(source, found[source])
        return Remote(found, found[source])

    def obtain(self, ref: str, oid: str) -> None:
        """Have the object that the target's `ref` pointed to a moment ago."""
        self._make()
        if self.has(oid):
            return
        with locked(self.path / "longshot-fetch.lock"):
            if self.has(oid):
                return
            options = ("--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules", "--no-auto-gc")
            kept = "refs/longshot/fetched/" + ref.removeprefix("refs/")
            command = ("fetch", *options, "--", self.target.url, f"+{ref}:{kept}")
            try:
                self._network.run(*command)
            except RepositoryError:
                if not remove_stale_locks(self.path, time.time()):
                    raise
                self._network.run(*command)
            if not self.has(oid):
                raise RepositoryError(f"{self.target.repository}: {ref} moved while it was fetched; try again")

    def has(self, oid: str) -> bool:
        """Is the commit here? A yes is remembered: nothing is ever removed from a mirror."""
        if oid not in self._present:
            if look_up(self.git, f"{oid}^{{commit}}") is None:
                return False
            self._present.add(oid)
        return True

    def push(self, updates: list[Update]) -> str | None:
        """All of `updates` or none, each only from its expected old value. None when done, else why it was refused.

        A target that cannot move several refs at once is given the first alone, which is what lands, and then the others:
        `left_out` says why not all of those are there. Raises RepositoryError when the target could not be asked.
        """
        self.left_out = ""
        if self._at_once:
            try:
                return self._pushed(updates, "--atomic")
            except RepositoryError as e:
                if _NOT_AT_ONCE not in str(e):
                    raise
                self._at_once = False
        refused = self._pushed(updates[:1])
        if refused is None and updates[1:]:
            try:
                self.left_out = self._pushed(updates[1:]) or ""
            except RepositoryError as e:  # what lands has landed
                self.left_out = str(e)
        return refused

    def _pushed(self, updates: list[Update], *more: str) -> str | None:
        leases = [f"--force-with-lease={u.ref}:{u.old or ''}" for u in updates]
        specs = [f"{u.new or ''}:{u.ref}" for u in updates]
        options = ("--porcelain", "--no-verify", "--no-recurse-submodules", "--no-signed")
        # To a place on this machine no byte is worth a search for what is alike: the repository's own gc does it at leisure.
        near = _NEAR if self.target.url.startswith(("/", "file://")) else ()
        ran = self._network.run(*near, "push", *options, *more, *leases, "--", self.target.url, *specs, ok=range(256))
        self._looked = None
        if ran.code == 0:
            self._present.update(u.new for u in updates if u.new)
            return None
        refused = [line.split("\t") for line in ran.text.splitlines() if line.startswith("!\t")]
        if not refused:
            raise RepositoryError(f"git push to {self.target.repository}: {reason(ran.err) or f'exit {ran.code}'}")
        said = "; ".join(dict.fromkeys(parts[-1] for parts in refused))
        return display(f"{reason(ran.err)} {said}".strip(), "plain", 500).replace("\n", " ")

    # --- code in and out ---------------------------------------------------------------------------------------------

    def bundle(self, base: str, since: str = "") -> Path:
        """A cached file with `base` and its whole history under the one ref refs/heads/base.

        With `since`, an ancestor of `base`, only what is not in its history: for whoever has that already.
        """
        self._make()
        folder = self.path / "longshot-bundles"
        path = folder / (f"{base}-{since}.bundle" if since else f"{base}.bundle")
        if path.exists():
            return path
        with locked(folder / ".lock"):
            if not path.exists():
                self._pack_when_many(base)
                # Written by ourselves: `git bundle create` would need the ref refs/heads/base to exist in the mirror.
                unfinished = folder / ".unfinished"
                with unfinished.open("wb") as file:
                    needs, without = (f"-{since} \n", f"^{since}\n") if since else ("", "")
                    file.write(f"# v2 git bundle\n{needs}{base} {BASE_REF}\n\n".encode())
                    file.flush()
                    options = ("--stdout", "--revs", "--delta-base-offset", "-q", *(("--thin",) if since else ()))
                    self._git.run("pack-objects", *options, stdin=f"{base}\n{without}".encode(), into=file)
                unfinished.rename(path)
        _forget_old_bundles(folder, path)
        return path

    def _pack_when_many(self, head: str) -> None:
        """Once many objects are loose, put what has landed since the last time into one pack.

        A bundle searches and compresses every loose object again: 600 landings cost it 500 ms of CPU, and packed 6.
        """
        note = self.path / "longshot-packed"
        last, left = _packed(note)
        loose = self._loose()
        if left <= loose < left + PACK_AT / _SHARE:
            return
        if loose > left:
            since = f"^{last}\n" if last != _NOTHING and self.has(last) else ""
            options = ("--revs", "--incremental", "--non-empty", "--delta-base-offset", "-q")
            with contextlib.suppress(RepositoryError):  # only a saving
                given = f"{head}\n{since}".encode()
                self._git.run("pack-objects", *options, str(self.path / "objects/pack/pack"), stdin=given)
                self._git.run("prune-packed", "-q")
            last = head
        note.write_text(f"{last} {self._loose()}", encoding="ascii")

    def _loose(self) -> int:
        """How many objects have a file to themselves, in some of the folders that they are spread over."""
        return sum(len(os.listdir(f)) for n in _SAMPLED if (f := self.path / "objects" / n).is_dir())  # noqa: PTH208

    def intake(self, build: str, task: str, base: str, bundle: bytes) -> str:
        """Import a worker's bundle; see `adapters/repository/intake.py`. Returns its head; raises HostileBundle."""
        self._make()
        head = intake.take_in(self._git, self.path, build, task, base, bundle)
        self._present.add(head)
        return head

    def forget_work(self, build: str, tasks: Iterable[str]) -> None:
        """Let go of workers' branches that nothing needs any more; their objects go when the mirror is cleaned."""
        self._git.run("update-ref", "--stdin", stdin="".join(f"delete {work_ref(build, t)}\n" for t in tasks).encode())

    # --- reading -----------------------------------------------------------------------------------------------------

    def diff(self, base: str, head: str) -> Diff:
        """git's own account of what lies between two commits."""
        told = compare_in_full(self.git, base, head, _MAX_TOLD)
        if told is not None:
            stat, _, patch = told.partition(b"\0\0")  # between fields, and no field is empty
            return Diff(_bounded(patch.decode("utf-8", "replace")), _file_changes(stat.decode("utf-8", "replace")))
        options = ("--no-renames", "--no-ext-diff", "--no-textconv", "--no-color")
        stat = self.git.run("diff", "--raw", "--numstat", "-z", "--abbrev=40", *options, base, head).out
        text = self.git.run("diff", "-p", *options, base, head, keep=MAX_DIFF * 4).out.decode("utf-8", "replace")
        return Diff(_bounded(text), _file_changes(stat.decode("utf-8", "replace")))

    def is_ancestor(self, a: str, b: str) -> bool:
        """Is `a` the same as `b` or part of its history?"""
        return self.git.run("merge-base", "--is-ancestor", a, b, ok=(0, 1)).code == 0

    def commits_since(self, base: str, head: str) -> frozenset[str]:
        """Everything in the history of `head` that is not in that of `base`."""
        return frozenset(self.git.run("rev-list", head, f"^{base}").text.split())

    def repo_state(self, head: str) -> RepoState:
        self._make()
        return self._reader.repo_state(head, self.target.branch)

    def files_with_conflict_markers(self, oid: str) -> tuple[str, ...]:
        return self._reader.files_with_conflict_markers(oid)

    def read_file(self, oid: str, path: str, max_bytes: int = 100_000) -> str:
        """Text of one file at `oid`, its first `max_bytes`; WrongUse when there is none or it is binary."""
        return self._reader.read_file(oid, path, max_bytes)

    def list_dir(self, oid: str, path: str = "") -> list[str]:
        """Names in one directory at `oid`, directories with a trailing slash."""
        return self._reader.list_dir(oid, path)

    def grep(self, oid: str, pattern: str, path: str = "", limit: int = 100) -> list[str]:
        """`path:number:line` for every match of an extended regular expression."""
        return self._reader.grep(oid, pattern, path, limit)

    def find(self, oid: str, glob: str, limit: int = 200) -> list[str]:
        """Paths that match a glob."""
        return self._reader.find(oid, glob, limit)

    def git_read(self, oid: str, args: list[str]) -> str:
        """Allow-listed `git log|show|diff|blame|shortlog` on `oid` and its history."""
        return self._reader.git_read(oid, args)

    def _make(self) -> None:
        if self._made:
            return
        if (self.path / "longshot-target").exists():
            remove_stale_locks(self.path, time.time())
            self._made = True
            return
        with locked(self.path.parent / f".{self.path.stem}.lock"):
            if not (self.path / "longshot-target").exists():
                Git().run("init", "-q", "--bare", str(self.path))
                # Last, so that a half-made mirror is made again.
                write_atomically(self.path / "longshot-target", self.target.repository.encode("utf-8", "replace"))
        self._made = True


def _names(pattern: str, ref: str) -> bool:
    return ref.startswith(pattern[:-1]) if pattern.endswith("*") else ref == pattern


def _bounded(patch: str) -> str:
    return patch if len(patch) <= MAX_DIFF else patch[:MAX_DIFF] + "\n… the diff goes on; git has all of it"


def _file_changes(stat: str) -> tuple[FileChange, ...]:
    """Parse `git diff --raw --numstat -z`: all raw records (two fields each), then all counts (one field each)."""
    status: dict[str, str] = {}
    lines: dict[str, tuple[int, int]] = {}
    fields = iter(stat.split("\0"))
    for record in fields:
        if record.startswith(":"):
            status[next(fields)] = record.rsplit(" ", 1)[1][:1]
        elif found := re.match(r"(\d+|-)\t(\d+|-)\t(.*)", record, re.DOTALL):
            lines[found[3]] = tuple(int(n) if n != "-" else 0 for n in found.group(1, 2))  # type: ignore[assignment]
    return tuple(FileChange(p, s, *lines.get(p, (0, 0))) for p, s in list(status.items())[:_MAX_FILES])


def _packed(note: Path) -> tuple[str, int]:
    """The head when landings were last packed, and how many loose objects were left where some are counted."""
    try:
        head, left = note.read_text(encoding="ascii").split(" ")
        return head, int(left)
    except (OSError, ValueError):
        return _NOTHING, 0


def _forget_old_bundles(folder: Path, made: Path) -> None:
    """Keep the newest few and the one just `made`, whatever a clock that was set back says of its age; a worker that started
    within the hour may still be reading an older one.
    """
    found = sorted(folder.glob("*.bundle"), key=lambda f: f.stat().st_mtime, reverse=True)
    for old in found[KEEP_BUNDLES:]:
        if old != made and found[0].stat().st_mtime - old.stat().st_mtime > _BUNDLE_AGE_S:
            old.unlink(missing_ok=True)
