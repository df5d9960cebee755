"""After the last process of a home has ended: what killed workers had done is kept, and then no sandbox is left."""

import contextlib
import time
from pathlib import Path

from longshot_dagster.adapters.builds.cleaning import end_sandbox
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.sandboxes.confinement import Unconfined
from longshot_dagster.adapters.sandboxes.sandbox_local import LocalSandbox
from longshot_dagster.adapters.workers.orphans import Orphanage
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.errors import SandboxGone

_BEING_MADE_S = 2.0


def tidy(home: Home) -> list[str]:
    """Names of the tasks of which something was kept. What somebody is still at work on stays as it is."""
    orphanage = Orphanage(home, SystemClock())
    kept = orphanage.reap(orphanage.found()).kept
    for folder in sorted(home.sandboxes.glob("sb-*")):
        if _was_cut_short(folder):
            end_sandbox(folder)
    return kept


def _was_cut_short(folder: Path) -> bool:
    """Did its end, or its making, come to no end?"""
    try:
        LocalSandbox(folder, Unconfined()).meta()
    except SandboxGone:
        with contextlib.suppress(OSError):
            return time.time() - folder.stat().st_mtime > _BEING_MADE_S
    return False
