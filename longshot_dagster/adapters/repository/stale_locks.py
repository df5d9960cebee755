"""Locks that a killed git has left in one of our own mirrors: nobody else would ever take them away.

Never used on a repository that is not ours: whose git may be at work there, we cannot know.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_ALONE = ("HEAD.lock", "config.lock", "packed-refs.lock", "shallow.lock")
_AGE_S = 30.0  # where a git is at work that may hold locks: it holds one for milliseconds


def remove_stale_locks(mirror: Path, now: float) -> list[Path]:
    """Take away locks of git's in `mirror` that belong to no living git; returns those. `now`: seconds since the epoch."""
    found = list(_locks(mirror))
    least = _AGE_S if found and _git_may_write(mirror) else 0.0
    removed = []
    for path, seen in found:
        with contextlib.suppress(OSError):
            still = path.stat()
            same = (still.st_ino, still.st_mtime_ns) == (seen.st_ino, seen.st_mtime_ns)
            if same and abs(now - still.st_mtime) >= least:  # the clock may have been set back since
                path.unlink()
                removed.append(path)
    return removed


def _locks(mirror: Path) -> Iterator[tuple[Path, os.stat_result]]:
    # A build has a ref per task: only what is a lock becomes a path.
    walked = os.walk(mirror / "refs")
    in_refs = (Path(folder, name) for folder, _, names in walked for name in names if name.endswith(".lock"))
    for path in (*(mirror / name for name in _ALONE), *in_refs):
        with contextlib.suppress(OSError):
            yield path, path.stat()


def _git_may_write(mirror: Path) -> bool:
    """Is there a git on `mirror` that may hold a lock, or can nobody tell? Those that only read for us hold none."""
    try:
        processes = [folder for folder in Path("/proc").iterdir() if folder.name.isdigit()]
    except OSError:
        return True
    return any(_writes(folder / "cmdline", str(mirror)) for folder in processes)


def _writes(command: Path, mirror: str) -> bool:
    try:
        words = command.read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return False
    return f"--git-dir={mirror}" in words and not any(w in ("cat-file", "diff-tree", "merge-tree") for w in words)
