"""Attending a worker that has outlived its orchestrator: saying what it says, until it has ended.

The worker holds a lock on a file while it works, which the kernel releases whatever kills it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from typing import BinaryIO

from longshot_worker.order import Places

_LOOK_S = 0.1
_CHUNK = 1 << 16
# An agent may have put anything there: a link is not followed, and a pipe is not waited for.
_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@contextlib.contextmanager
def at_work(path: str) -> Iterator[None]:
    """Hold the lock on `path`; when that cannot be had, the work matters more than who may notice it."""
    file = -1
    with contextlib.suppress(OSError):
        file = os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o644)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        yield
    finally:
        if file >= 0:
            os.close(file)


def attend(places: Places, out: BinaryIO) -> int:
    """Copy the transcript to `out` as it grows; 0 once there is a result, 3 when the worker has died without one."""
    told = 0
    while True:
        over = not _is_at_work(places.at_work)
        finished = os.path.isfile(places.result)
        told = _tell(places.transcript, told, out)
        if finished or over:
            return 0 if finished or os.path.isfile(places.result) else 3
        time.sleep(_LOOK_S)


def _is_at_work(path: str) -> bool:
    try:
        file = os.open(path, os.O_RDWR | _FLAGS)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(file)
    return False


def _tell(path: str, told: int, out: BinaryIO) -> int:
    """How much has been told after this."""
    try:
        file = os.open(path, os.O_RDONLY | _FLAGS)
    except OSError:
        return told
    try:
        while data := os.pread(file, _CHUNK, told):
            out.write(data)
            told += len(data)
        out.flush()
    except OSError:
        pass
    finally:
        os.close(file)
    return told
