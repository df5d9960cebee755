"""After the last process of a home has ended: what killed workers had done is kept, and then no sandbox is left."""

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from longshot_dagster.adapters.cleaning import end_sandbox
from longshot_dagster.adapters.confinement import Unconfined
from longshot_dagster.adapters.gateway_client import Gateway
from longshot_dagster.adapters.home import Home
from longshot_dagster.adapters.ledger import BuildLedger, Ledger
from longshot_dagster.adapters.mirror import Mirror
from longshot_dagster.adapters.providers import make_provider
from longshot_dagster.adapters.recovery import end
from longshot_dagster.adapters.sandbox_local import LocalSandbox
from longshot_dagster.adapters.worker import WorkerRunner
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.errors import LongshotError, SandboxGone
from longshot_dagster.core.ids import task_partition

_AT_ONCE = 4  # each commits and bundles a work tree
_BEING_MADE_S = 2.0


def tidy(home: Home) -> list[str]:
    """Names of the tasks of which something was kept. What somebody is still at work on stays as it is."""
    kept = []
    for ledger in Ledger(home.builds).unfinished():
        with contextlib.suppress(LongshotError):  # a build that cannot be read, or whose provider is gone, is no reason
            kept += _recovered(home, ledger)
    for folder in sorted(home.sandboxes.glob("sb-*")):
        if _is_left(home, folder):
            end_sandbox(folder)
    return kept


def _recovered(home: Home, ledger: BuildLedger) -> list[str]:
    request = ledger.request()
    provider, _ = make_provider(request.settings, request.origins, home)
    found = provider.list({"build": ledger.build})
    names = sorted({info.tags["task"] for info in found if "task" in info.tags} & set(ledger.task_ids()))
    before = {name: (ledger.interrupted(name), ledger.handoff(name)) for name in names}
    mirror = Mirror(home, request.target)
    runner = WorkerRunner(ledger, request, provider, mirror, Gateway(home), SystemClock())

    def recover(name: str) -> None:
        with contextlib.suppress(LongshotError):
            # Nobody waits for workers that live on: there is no model any more that they could ask.
            runner.recover(ledger.existing_task(name), lambda: provider.capabilities.survives_client)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(recover, names))
    for info in found:
        if "task" not in info.tags:  # of a sweep: it is done anew
            end(provider, info)
    after = {name: (ledger.interrupted(name), ledger.handoff(name)) for name in names}
    return [task_partition(ledger.build, name) for name in names if after[name] != before[name]]


def _is_left(home: Home, folder: Path) -> bool:
    """Does it belong to a build and to nobody at work, or was its end cut short?"""
    try:
        tags = LocalSandbox(folder, Unconfined()).meta()["tags"]
    except SandboxGone:
        with contextlib.suppress(OSError):
            return time.time() - folder.stat().st_mtime > _BEING_MADE_S
        return False
    if "build" not in tags:
        return False
    ledger = Ledger(home.builds).build(tags["build"])
    with contextlib.suppress(LongshotError):
        return not ("task" in tags and ledger.at_work(tags["task"]))
    return True
