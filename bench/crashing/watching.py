"""Names that appear in folders, told by the kernel within a moment of their making (Linux's inotify)."""

import ctypes
import os
import select
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

_IN_CREATE, _IN_MOVED_TO, _IN_ISDIR = 0x100, 0x80, 0x40000000
_HEAD = struct.Struct("iIII")


class Watch:
    """`with Watch() as watch:`; folders can be added at any time, and one is only ever watched once."""

    def __enter__(self) -> Self:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._file = self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._file < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._folders: dict[int, Path] = {}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._file)

    def add(self, folder: Path) -> None:
        """Nothing happens when there is no such folder (any more)."""
        number = self._libc.inotify_add_watch(self._file, os.fsencode(folder), _IN_CREATE | _IN_MOVED_TO)
        if number >= 0:
            self._folders[number] = folder

    def made(self, timeout_s: float) -> list[Path]:
        """What has appeared since the last call; waits for the first until `timeout_s` are over."""
        if not select.select([self._file], [], [], timeout_s)[0]:
            return []
        data, found, at = os.read(self._file, 1 << 16), [], 0
        while at < len(data):
            number, _, _, size = _HEAD.unpack_from(data, at)
            name = data[at + _HEAD.size : at + _HEAD.size + size].rstrip(b"\0")
            if number in self._folders:
                found.append(self._folders[number] / os.fsdecode(name))
            at += _HEAD.size + size
        return found
