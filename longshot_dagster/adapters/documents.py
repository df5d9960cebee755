"""JSON documents in a folder, each written whole or not at all, and locks that their holder's death frees."""

import contextlib
import fcntl
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from upath import UPath

from longshot_dagster.core.errors import LedgerError

M = TypeVar("M", bound=BaseModel)


class Documents:
    """The documents of one build. Readers return None for what is not written yet and raise LedgerError for what is broken."""

    def __init__(self, directory: UPath, build: str) -> None:
        self.directory = directory
        self.build = build
        self._frozen: dict[str, BaseModel] = {}

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Held by one thread of one process of this host at a time. Not re-entrant."""
        with locked(self._path(f".{name}.lock")):
            yield

    def _path(self, name: str) -> UPath:
        return self.directory / name

    def _read(self, model: type[M], name: str, frozen: bool = False) -> M | None:
        if frozen and isinstance(cached := self._frozen.get(name), model):
            return cached
        path = self._path(name)
        try:
            found = model.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as e:
            first = e.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(p) for p in first["loc"]) or "the document"
            raise LedgerError(f"{path} is not readable as {model.__name__}: {where}: {first['msg']}") from e
        if frozen:
            self._frozen[name] = found
        return found

    def _must(self, model: type[M], name: str, frozen: bool = False) -> M:
        found = self._read(model, name, frozen)
        if found is None:
            raise LedgerError(f"{self._path(name)} is missing; the ledger of build {self.build} is not whole")
        return found

    def _write(self, name: str, document: BaseModel) -> None:
        text = json.dumps(document.model_dump(mode="json"), ensure_ascii=False, indent=1)
        self._write_bytes(name, text.encode("utf-8", "replace"))

    def _write_bytes(self, name: str, data: bytes) -> None:
        """Raises LedgerError when the disk is full or read-only; what was there before stays whole."""
        try:
            write_atomically(self._path(name), data)
        except OSError as e:
            raise LedgerError(f"{self._path(name)} cannot be written: {e.strerror or e}") from e


def write_atomically(path: UPath | Path, data: bytes) -> None:
    """Write to a temporary neighbour, fsync, rename over `path`, fsync the directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(path, Path):
        path.write_bytes(data)
        return
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


_threads: dict[str, threading.Lock] = {}
_threads_guard = threading.Lock()


@contextlib.contextmanager
def locked(path: UPath | Path) -> Iterator[None]:
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


def written_at(path: UPath) -> float:
    """When the file was written; 0 when there is none."""
    try:
        return float(path.stat().st_mtime)
    except FileNotFoundError:
        return 0.0
