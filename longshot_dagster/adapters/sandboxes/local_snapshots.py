"""Snapshots of local sandboxes: /workspace as a layer that others are put on, everything else as a copy.

    <base>/sn-<id>/meta.json    when it was made, and `below`: the snapshots that its layer lies on, newest first
                  /root/        the file system without /workspace; all of it where overlays do not work
                  /workspace/   the layer; missing where overlays do not work
                  /users/<id>   one per sandbox or snapshot that is put on it; those that are gone count nothing

Taking one costs no copy of /workspace: its folder becomes the layer, and the sandbox goes on on top of it. That needs a
moment in which nothing runs in it, because a command keeps writing to the folder it began with.
"""

import contextlib
import fcntl
import json
import os
import stat
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longshot_dagster.core.errors import SandboxError, SandboxRefused
from longshot_dagster.core.sandbox import WORKDIR

SCHEME = "local:"
MAX_LAYERS = 24
_WORKSPACE = WORKDIR.lstrip("/")


@dataclass(frozen=True)
class SnapshotInfo:
    """`image` is for `SandboxSpec.image`; `created_at` and `used_at` are seconds since 1970, the last time one was put on it."""

    image: str
    created_at: float
    used_at: float


class LocalSnapshots:
    """The snapshots below `base`."""

    def __init__(self, base: Path) -> None:
        self._base = base

    def begin(self, image: str, root: Path, user: str) -> list[str]:
        """Fill `root` with the snapshot; names of the layers that belong below it, newest first.

        From now on the snapshot stays for as long as the sandbox `user` is there. Raises SandboxRefused, SandboxError.
        """
        name = image.removeprefix(SCHEME)
        folder = self._base / name
        if not image.startswith(SCHEME) or not name.startswith("sn-") or "/" in name:
            raise SandboxRefused(f"{image[:80]!r} is no snapshot of local sandboxes, and they have no other images")
        with held(self._base):
            meta = self._meta(folder)
            if meta is None:
                raise SandboxRefused(f"there is no snapshot {image[:80]} any more")
            (folder / "users" / user).touch()
        copy(folder / "root", root)
        return [name, *meta["below"]] if _is_folder(folder / _WORKSPACE) else []

    def layers(self, names: Sequence[str]) -> tuple[Path, ...]:
        """Their folders. One that is not there yet is just being taken: everything is still in the sandbox itself."""
        found = (self._base / name / _WORKSPACE for name in names)
        return tuple(path for path in found if _is_folder(path))

    def prepare(self, root: Path, below: Sequence[str], user: str, *, layered: bool) -> str:
        """A new snapshot of a sandbox's files; with `layered` all but those of /workspace, which `finish` adds.

        Raises SandboxRefused, SandboxError.
        """
        if not _is_folder(root / _WORKSPACE):
            raise SandboxError(f"in this sandbox {WORKDIR} is no folder any more")
        if len(below) >= MAX_LAYERS:
            raise SandboxRefused(f"a snapshot of a snapshot of a snapshot: at most {MAX_LAYERS} lie on each other")
        name = f"sn-{uuid.uuid4().hex[:12]}"
        folder = self._base / name
        try:
            (folder / "users").mkdir(parents=True, mode=0o700)
            (folder / "users" / user).touch()
            if below:
                (self._base / below[0] / "users" / name).touch()
            copy(root, folder / "root", without=_WORKSPACE if layered else "")
            if layered:
                (folder / "root" / _WORKSPACE).mkdir()
            meta = {"created_at": time.time(), "below": list(below)}
            (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        except OSError as e:
            remove_tree(folder)
            raise SandboxError(f"cannot make a snapshot in {self._base}: {e.strerror or e}") from e
        return name

    def finish(self, name: str, root: Path) -> None:
        """Let the sandbox's own /workspace become the layer of the snapshot. Raises OSError."""
        mode = (root / _WORKSPACE).stat().st_mode & 0o777
        (root / _WORKSPACE).rename(self._base / name / _WORKSPACE)
        (root / _WORKSPACE).mkdir()
        (root / _WORKSPACE).chmod(mode)

    def all(self) -> list[SnapshotInfo]:
        """Oldest first."""
        found = []
        for folder in self._base.glob("sn-*"):
            with contextlib.suppress(OSError):
                if (meta := self._meta(folder)) is not None:
                    used = (folder / "users").stat().st_mtime
                    found.append(SnapshotInfo(SCHEME + folder.name, float(meta["created_at"]), used))
        return sorted(found, key=lambda info: info.created_at)

    def remove(self, image: str) -> bool:
        """False while a sandbox, or another snapshot, is put on it."""
        name = image.removeprefix(SCHEME)
        folder, trash = self._base / name, self._base / f".gone-{name.removeprefix('.gone-')}"
        if not name.removeprefix(".gone-").startswith("sn-") or "/" in name:
            return False
        with held(self._base):
            users = (path.name for path in (folder / "users").glob("*"))
            if any((self._base / user).exists() for user in users):
                return False
            if folder != trash:
                with contextlib.suppress(FileNotFoundError):
                    folder.rename(trash)
        remove_tree(trash)
        return True

    def unused(self, seconds: float) -> list[Path]:
        """Folders of those on which nothing has been put for so long, and of what a crash has left; the uppermost first."""
        now, found = time.time(), list[Path]()
        for info in reversed(self.all()):
            if now - info.used_at > seconds:
                found.append(self._base / info.image.removeprefix(SCHEME))
        for folder in sorted((*self._base.glob(".gone-sn-*"), *self._base.glob("sn-*"))):
            with contextlib.suppress(OSError):
                if self._meta(folder) is None and now - folder.stat().st_mtime > seconds:
                    found.append(folder)
        return found

    def _meta(self, folder: Path) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads((folder / "meta.json").read_bytes())
        except (OSError, ValueError):
            return None
        return found


def _is_folder(path: Path) -> bool:
    """Itself, and not by a link, which an agent could have made to a folder of this host."""
    with contextlib.suppress(OSError):
        return stat.S_ISDIR(path.lstat().st_mode)
    return False


@contextlib.contextmanager
def held(folder: Path, *, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """The lock on a folder itself, which leaves nothing in it; False when another has it and nobody is to `wait`."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(number, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(number)


def copy(source: Path, target: Path, without: str = "") -> None:
    """Copy a tree that nobody changes meanwhile: links as links, owners, modes and times kept. Raises OSError."""
    target.mkdir(parents=True, exist_ok=True)
    names = [f"./{name}" for name in sorted(os.listdir(source)) if name != without]  # noqa: PTH208
    if not names:
        return
    options = ["-a"] if os.uname().sysname != "Linux" else ["-a", "--reflink=auto"]
    command = ["cp", *options, "--", *names, str(target)]
    ran = subprocess.run(command, cwd=source, capture_output=True, check=False)
    if ran.returncode:
        lines = ran.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit {ran.returncode}"]
        raise OSError(None, f"cp: {lines[-1][:300]}")


def remove_tree(directory: Path) -> None:
    """Delete what an agent left, however deep or locked. `rm`, because Python's rmtree ends at its recursion limit."""
    if not directory.exists():
        return
    subprocess.run(["rm", "-rf", "--", directory], stderr=subprocess.DEVNULL, check=False)
    if directory.exists():
        subprocess.run(["chmod", "-R", "u+rwX", "--", directory], stderr=subprocess.DEVNULL, check=False)
        subprocess.run(["rm", "-rf", "--", directory], stderr=subprocess.DEVNULL, check=False)
