"""Who supervises a home: the lock that its supervisor holds as long as it lives."""

import fcntl
import os
from pathlib import Path

from longshot_dagster.adapters.host.home import Home


def lock_path(home: Home) -> Path:
    return home.root / "stack.lock"


def supervisor_pid(home: Home) -> int | None:
    """The pid that holds the stack's lock; None when nobody does. 0: somebody is just starting."""
    try:
        file = os.open(lock_path(home), os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return int(os.read(file, 20).strip() or b"0")
    finally:
        os.close(file)
