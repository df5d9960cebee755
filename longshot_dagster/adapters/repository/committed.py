"""Did a file come with a repository? Then whoever can push there may have written it."""

import contextlib
import functools
from pathlib import Path

from longshot_dagster.adapters.repository.git import Git
from longshot_dagster.core.errors import RepositoryError


def is_committed(file: Path) -> bool:
    """Does git track it? Without git, or outside a repository, nothing is tracked."""
    return _tracked(file.absolute(), file.stat().st_mtime_ns)


@functools.lru_cache(16)  # one command asks several times
def _tracked(file: Path, written: int) -> bool:
    with contextlib.suppress(RepositoryError):
        return bool(Git().run("-C", str(file.parent), "ls-files", "--", file.name, timeout_s=10).out)
    return False
