"""JSON documents in a folder, each written whole or not at all, and locks that their holder's death frees."""

import contextlib
import fcntl
import itertools
import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ValidationError

from longshot_dagster.core.errors import LedgerError
from longshot_dagster.core.sealing import opened, sealed

if TYPE_CHECKING:
    from upath import UPath

M = TypeVar("M", bound=BaseModel)
Stamp = tuple[int, int, int]  # modified (ns), size, inode
_KEPT_BYTES = 64 << 20  # of documents as files, by one ledger; handoffs carry their diffs


class Documents:
    """The documents of one build. Readers return None for what is not written yet and raise LedgerError for what is broken
    and cannot be mended.
    """

    def __init__(self, directory: "UPath", build: str) -> None:
        self.directory = directory
        self.build = build
        self._frozen: dict[str, tuple[Stamp, BaseModel]] = {}
        self._kept_bytes = 0
        self._root = str(directory) if isinstance(directory, Path) else ""

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Held by one thread of one process of this host at a time. Not re-entrant."""
        with locked(self._path(f".{name}.lock")):
            yield

    def _path(self, name: str) -> "UPath":
        return self.directory / name

    def _read(self, model: type[M], name: str, frozen: bool = False) -> M | None:
        stamp = stamp_at(f"{self._root}/{name}") if frozen and self._root else None
        if stamp and (kept := self._frozen.get(name)) and kept[0] == stamp and isinstance(kept[1], model):
            return kept[1]
        try:
            data = self._bytes(name)
        except FileNotFoundError:
            return None
        except OSError as e:  # a disk that gives no answer says nothing about what is on it
            raise LedgerError(f"{self._path(name)} cannot be read: {e.strerror or e}") from e
        found, wrong = parsed(model, data)
        if found is None:
            return self._mended(model, name, wrong)
        if stamp:
            self._keep(name, stamp, found)
        return found

    def _bytes(self, name: str) -> bytes:
        """As `_path(name).read_bytes()`, which costs five times as much: a build's documents are read all the time."""
        if not self._root:
            return self._path(name).read_bytes()
        with open(f"{self._root}/{name}", "rb", buffering=0) as file:  # noqa: PTH123
            return file.readall()

    def _keep(self, name: str, stamp: Stamp, found: BaseModel) -> None:
        self._kept_bytes += stamp[1]
        if self._kept_bytes > _KEPT_BYTES:
            self._frozen, self._kept_bytes = {}, stamp[1]
        self._frozen[name] = stamp, found

    def _mended(self, model: type[M], name: str, wrong: str) -> M | None:
        """Raises LedgerError: who knows where else the document is kept mends it instead."""
        raise LedgerError(f"{self._path(name)} is not readable as {model.__name__}: {wrong}")

    def _must(self, model: type[M], name: str, frozen: bool = False) -> M:
        found = self._read(model, name, frozen)
        if found is None:
            raise LedgerError(f"{self._path(name)} is missing; the ledger of build {self.build} is not whole")
        return found

    def _write(self, name: str, document: BaseModel) -> None:
        self._write_bytes(name, rendered(document))

    def _write_bytes(self, name: str, data: bytes) -> None:
        """Raises LedgerError when the disk is full or read-only; what was there before stays whole."""
        try:
            if self._root:
                _write_file(f"{self._root}/{name}", data)
            else:
                write_atomically(self._path(name), data)
        except OSError as e:
            raise LedgerError(f"{self._path(name)} cannot be written: {e.strerror or e}") from e


def rendered(document: BaseModel) -> bytes:
    """The document as it is kept, with its checksum."""
    try:
        text = document.model_dump_json(indent=1)
    except ValueError:  # a reason that quotes a file name which is no UTF-8
        text = json.dumps(document.model_dump(mode="json"), ensure_ascii=False, indent=1)
    return sealed(text.encode("utf-8", "replace"))


def parsed(model: type[M], data: bytes) -> tuple[M | None, str]:
    """(the document, what is wrong with it): one of the two."""
    text, wrong = opened(data)
    if wrong:
        return None, wrong
    try:
        return model.model_validate_json(text), ""
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(p) for p in first["loc"]) or "the document"
        return None, f"{where}: {first['msg']}"


def write_atomically(path: "UPath | Path", data: bytes) -> None:
    """Write to a temporary neighbour, fsync, rename over `path`, fsync the directory."""
    if isinstance(path, Path):
        _write_file(str(path), data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _write_file(path: str, data: bytes) -> None:
    """`write_atomically` by name: a task has half a dozen documents, and paths as objects cost more than the files."""
    folder, _, name = path.rpartition("/")
    folder = folder or ("/" if path.startswith("/") else ".")
    handle, temporary = _temporary(folder, f".{name}.")
    try:
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(handle, rest) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _temporary(folder: str, prefix: str) -> tuple[int, str]:
    """(descriptor, path) of a new file in `folder`, which is made when it is not there."""
    try:
        return new_file(f"{folder}/{prefix}")
    except FileNotFoundError:
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103
        return new_file(f"{folder}/{prefix}")


_numbers = itertools.count()


def new_file(prefix: str, mode: int = 0o600) -> tuple[int, str]:
    """(descriptor, path) of a file that nobody else has, to be written to; for a fraction of what `mkstemp` costs."""
    while True:
        path = f"{prefix}{os.getpid()}-{next(_numbers)}"
        with contextlib.suppress(FileExistsError):  # of another container, or left by an earlier process of this number
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode), path


_threads: dict[str, threading.Lock] = {}
_threads_guard = threading.Lock()


@contextlib.contextmanager
def locked(path: "UPath | Path") -> Iterator[None]:
    """Exclusive lock on `path` among threads and processes of this host; the kernel frees it when the holder dies."""
    with _threads_guard:
        mine = _threads.setdefault(str(path), threading.Lock())
    with mine:
        if not isinstance(path, Path):
            yield
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)


def append_line(path: Path, fields: Mapping[str, object]) -> None:
    """One more line of JSON; a line that a crash cut short does not spoil the next."""
    with path.open("ab+") as file:
        size = file.seek(0, os.SEEK_END)
        torn = size and os.pread(file.fileno(), 1, size - 1) != b"\n"
        file.write((b"\n" if torn else b"") + json.dumps(fields).encode() + b"\n")


def stamp_at(path: str) -> Stamp | None:
    """What changes whenever a document does, also by another process; None when there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116 - asked of every document at every look
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def written_at(path: "UPath") -> float:
    """When the file was written; 0 when there is none."""
    try:
        return float(path.stat().st_mtime)
    except FileNotFoundError:
        return 0.0
