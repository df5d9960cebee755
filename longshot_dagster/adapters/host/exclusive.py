"""One process per host and name: a file lock that is tried, not waited for without end."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def claim(path: Path, wait_s: float = 0) -> Iterator[bool]:
    """True while this process holds `path`'s lock, False when another does; the kernel frees it when the holder dies."""
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_s
    with path.open("a+b") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    yield False
                    return
                time.sleep(0.05)
        with contextlib.suppress(OSError):
            os.utime(file.fileno())  # since when it is held: `held_since`
        yield True


def held_since(path: Path) -> float:
    """When whoever holds `path`'s lock took it, in seconds since the epoch; 0 when nobody ever has."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
