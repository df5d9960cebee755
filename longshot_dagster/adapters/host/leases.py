"""Leases of runs: a locked file that says which process a run lives in, and that frees itself when the process dies.

$LONGSHOT_HOME/leases/run-<run_id>      the holder's pid; flocked while the holder lives
"""

import fcntl
import os
import threading
from pathlib import Path

from longshot_dagster.adapters.host.home import Home

_guard = threading.Lock()
_held: dict[Path, int] = {}


def hold(home: Home, run_id: str) -> None:
    """Take the lease of `run_id` for the rest of this process's life; idempotent.

    The descriptor is kept open on purpose and closed by the kernel: nothing else may end a lease. Children do not
    inherit it (PEP 446), so a worker that outlives the run does not keep it alive.
    """
    path = _path(home, run_id)
    with _guard:
        if path in _held:
            return
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
        os.ftruncate(file, 0)
        os.write(file, str(os.getpid()).encode())
        _held[path] = file


def known(home: Home, run_id: str) -> bool:
    """Has a process ever held the lease of `run_id` here?"""
    return _path(home, run_id).exists()


def holder(home: Home, run_id: str) -> int | None:
    """The pid of the living process that holds the lease; None when there is none."""
    try:
        file = os.open(_path(home, run_id), os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return int(os.read(file, 20) or b"0")
    finally:
        os.close(file)


def forget(home: Home, run_id: str) -> None:
    """Remove the file of an ended run."""
    _path(home, run_id).unlink(missing_ok=True)


def _path(home: Home, run_id: str) -> Path:
    return home.leases / f"run-{run_id}"
