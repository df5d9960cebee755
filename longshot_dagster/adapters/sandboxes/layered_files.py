"""Files of a sandbox from outside: read and written through its layers, and never through a link an agent has made.

A sandbox made from a snapshot has its own part of /workspace and what lies below it, newest first. A character device 0/0 in
one hides whatever lies further below, and so does a folder that is marked as opaque: the kernel writes both.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from longshot_dagster.core.errors import SandboxError
from longshot_dagster.core.sandbox import WORKDIR

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OPAQUE = ("user.overlay.opaque", "trusted.overlay.opaque")


@dataclass(frozen=True)
class LayeredFiles:
    """The files below `root`; of /workspace also those in `below`, newest first, where `root` does not hide them."""

    root: Path
    below: Sequence[Path] = ()

    def read(self, path: str, max_bytes: int) -> bytes:
        """At most `max_bytes + 1`. Raises OSError."""
        *folders, name = _parts(path)
        with contextlib.ExitStack() as closing:
            for folder in self._seen(folders, closing):
                found = _stat(name, folder)
                if found is None:
                    continue
                if _is_whiteout(found):
                    break
                file = closing.enter_context(os.fdopen(os.open(name, os.O_RDONLY | _FILE, dir_fd=folder), "rb"))
                _must_be_file(file, path)
                return file.read(max_bytes + 1)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    def write(self, path: str, data: bytes) -> None:
        """Makes the folders on the way. Raises OSError."""
        *folders, name = _parts(path)
        with contextlib.ExitStack() as closing:
            stack = self._made(folders, closing)
            mode = 0o644
            for depth, folder in enumerate(stack):
                found = _stat(name, folder)
                if found is None:
                    continue
                if not _is_whiteout(found):
                    if not stat.S_ISREG(found.st_mode):
                        raise OSError(errno.EINVAL, "it is not a regular file", path)
                    mode = stat.S_IMODE(found.st_mode)
                elif depth == 0:
                    os.unlink(name, dir_fd=folder)
                break
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _FILE
            file = closing.enter_context(os.fdopen(os.open(name, flags, mode, dir_fd=stack[0]), "wb"))
            _must_be_file(file, path)
            file.write(data)

    def _seen(self, folders: Sequence[str], closing: contextlib.ExitStack) -> list[int]:
        """Open folders that together are the folder of that path, newest first; none when it is hidden or missing."""
        here = [_opened(self.root, closing)]
        for depth, part in enumerate(folders):
            here = _entered(here, part, closing)
            if depth == 0 and f"/{part}" == WORKDIR and here:
                here += [_opened(path, closing) for path in self.below]
        return here

    def _made(self, folders: Sequence[str], closing: contextlib.ExitStack) -> list[int]:
        """As `_seen`; the first is the sandbox's own, and is made where it is missing."""
        here = [_opened(self.root, closing)]
        for depth, part in enumerate(folders):
            own, found = here[0], _stat(part, here[0])
            hides = found is not None and _is_whiteout(found)
            if hides:
                os.unlink(part, dir_fd=own)
            if hides or found is None:
                beneath = [] if hides else _entered(here[1:], part, closing, optional=True)
                os.mkdir(part, 0o755, dir_fd=own)
                made = _kept(os.open(part, _FOLDER, dir_fd=own), closing)
                if hides and len(here) > 1:
                    os.setxattr(made, _OPAQUE[0], b"y")
                here = [made, *beneath]
            else:
                here = _entered(here, part, closing)
            if depth == 0 and f"/{part}" == WORKDIR:
                here += [_opened(path, closing) for path in self.below]
        return here


def _parts(path: str) -> list[str]:
    """Raises SandboxError for what is not an absolute path of a file."""
    parts = [p for p in path.split("/") if p not in ("", ".")]
    if not path.startswith("/") or not parts or ".." in parts or "\0" in path:
        raise SandboxError(f"{path[:200]!r} is not an absolute path of a sandbox")
    return parts


def _kept(descriptor: int, closing: contextlib.ExitStack) -> int:
    closing.callback(os.close, descriptor)
    return descriptor


def _opened(path: Path, closing: contextlib.ExitStack) -> int:
    return _kept(os.open(path, _FOLDER), closing)


def _entered(stack: Sequence[int], part: str, closing: contextlib.ExitStack, *, optional: bool = False) -> list[int]:
    """The folder `part` of all layers, down to the first that hides what lies below. Raises OSError for a file or a link,
    and where there is none, unless it is `optional`.
    """
    found: list[int] = []
    for folder in stack:
        at = _stat(part, folder)
        if at is None:
            continue
        if _is_whiteout(at):
            break
        if not stat.S_ISDIR(at.st_mode) and found:
            break  # below a folder: hidden by it
        found.append(_kept(os.open(part, _FOLDER, dir_fd=folder), closing))
        if len(stack) > 1 and _is_opaque(found[-1]):
            break
    if not found and not optional:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), part)
    return found


def _stat(name: str, folder: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _is_whiteout(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def _is_opaque(folder: int) -> bool:
    for name in _OPAQUE:
        with contextlib.suppress(OSError):
            if os.getxattr(folder, name) == b"y":
                return True
    return False


def _must_be_file(file: IO[bytes], path: str) -> None:
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", path)
