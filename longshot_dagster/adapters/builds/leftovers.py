"""What belongs to no build any more: sandboxes, leases and half-made builds of crashes, and mirrors that nobody uses."""

import contextlib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from longshot_dagster.adapters.builds.cleaning import end_sandbox, size_of
from longshot_dagster.adapters.host import leases
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.ledger import Ledger
from longshot_dagster.adapters.repository.build_refs import is_worn, pack
from longshot_dagster.adapters.sandboxes.confinement import Unconfined
from longshot_dagster.adapters.sandboxes.local_snapshots import SCHEME, LocalSnapshots
from longshot_dagster.adapters.sandboxes.sandbox_local import LocalSandbox
from longshot_dagster.adapters.stack.dagster_api import DagsterApi
from longshot_dagster.core.errors import LedgerError, LongshotError, SandboxGone
from longshot_dagster.core.models import BuildPhase, Target

_BEING_MADE_S = 3_600  # younger things may be somebody's work of this moment
_BEING_STARTED_S = 86_400
_UNUSED_S = 86_400


@dataclass(frozen=True)
class Leftover:
    """One thing that goes; `what` names it for a person."""

    what: str
    path: Path
    bytes: int


class Leftovers:
    """Everything of a home that no build answers for; `api` is its running stack's, if there is one."""

    def __init__(self, home: Home, api: DagsterApi | None) -> None:
        self._home = home
        self._api = api

    def found(self) -> list[Leftover]:
        """What crashes left. Mirrors are looked at by `tidy_mirrors`, after builds have gone."""
        return [*self._sandboxes(), *self._snapshots(), *self._unstarted(), *self._leases()]

    def take_away(self, leftover: Leftover) -> None:
        if leftover.path.parent == self._home.sandboxes:
            snapshots = LocalSnapshots(self._home.sandboxes)
            if leftover.path.name.removeprefix(".gone-").startswith("sn-"):
                snapshots.remove(SCHEME + leftover.path.name)
            else:
                end_sandbox(leftover.path)
        elif leftover.path.is_dir():
            shutil.rmtree(leftover.path, ignore_errors=True)
        else:
            leftover.path.unlink(missing_ok=True)

    def _sandboxes(self) -> list[Leftover]:
        """Those that are over, of a time when nobody can be making or ending them any more, and of which nothing is to be
        kept: what a killed worker of an unfinished build has done is for whoever goes on with that build.
        """
        return [
            Leftover(f"sandbox {folder.name}", folder, size_of(folder))
            for folder in sorted(self._home.sandboxes.glob("sb-*"))
            if _is_over(folder) and not self._may_hold_work(folder)
        ]

    def _snapshots(self) -> list[Leftover]:
        """Those that no sandbox has begun with for a day; what lies on another one comes before it."""
        unused = LocalSnapshots(self._home.sandboxes).unused(_UNUSED_S)
        return [Leftover(f"snapshot {folder.name}", folder, size_of(folder)) for folder in unused]

    def _may_hold_work(self, folder: Path) -> bool:
        with contextlib.suppress(SandboxGone, LongshotError):
            tags = LocalSandbox(folder, Unconfined()).meta()["tags"]
            if "build" in tags and "task" in tags:
                ledger = Ledger(self._home.builds).build(tags["build"])
                unfinished = ledger.exists() and ledger.state().phase is not BuildPhase.FINISHED
                return unfinished and ledger.handoff(tags["task"]) is None
        return False

    def _unstarted(self) -> list[Leftover]:
        """Builds that began to start and have no request."""
        return [
            Leftover(f"half-started build {folder.name}", folder, size_of(folder))
            for folder in sorted(self._home.builds.iterdir())
            if folder.is_dir() and not _has_begun(folder) and _age(folder) > _BEING_STARTED_S
        ]

    def _leases(self) -> list[Leftover]:
        """Of runs that Dagster knows to have ended; without it, nothing is known."""
        if self._api is None:
            return []
        try:
            active = {run.id for run in self._api.active()}
        except LongshotError:
            return []
        found = []
        for path in sorted(self._home.leases.glob("run-*")):
            run = path.name.removeprefix("run-")
            if run not in active and leases.holder(self._home, run) is None and _age(path) > _BEING_MADE_S:
                found.append(Leftover(f"lease of run {run}", path, 0))
        return found

    # --- mirrors -----------------------------------------------------------------------------------------------------

    def idle_mirrors(self, without: frozenset[str] = frozenset()) -> list[Leftover]:
        """Mirrors on which no build is left, those named in `without` not counted; none while a build is being started."""
        if self._starting():
            return []
        used = {self._home.mirror_of(t.url) for name, t, _ in self._targets() if name not in without}
        return [
            Leftover(f"mirror of {_target_of(folder)}", folder, size_of(folder))
            for folder in sorted(self._home.mirrors.glob("*.git"))
            if folder not in used and not self._unreadable()
        ]

    def pack_mirrors(self, touched: frozenset[Path]) -> list[str]:
        """Pack what has lost refs or is worn; why one could not be, one line each."""
        by_mirror: dict[Path, list[tuple[Target, BuildPhase]]] = {}
        for _, target, phase in self._targets():
            by_mirror.setdefault(self._home.mirror_of(target.url), []).append((target, phase))
        said = []
        for mirror, users in sorted(by_mirror.items()):
            if not (mirror / "longshot-target").exists() or not (mirror in touched or is_worn(mirror)):
                continue
            idle = all(phase in (BuildPhase.PAUSED, BuildPhase.FINISHED) for _, phase in users)
            try:
                pack(self._home, [target for target, _ in users], prune=idle)
            except LongshotError as e:
                said.append(f"the mirror of {users[0][0].repository} was not packed: {e}")
        return said

    def _targets(self) -> list[tuple[str, Target, BuildPhase]]:
        found = []
        builds = Ledger(self._home.builds)
        for name in builds.builds():
            with contextlib.suppress(LedgerError):
                ledger = builds.build(name)
                found.append((name, ledger.request().target, ledger.state().phase))
        return found

    def _unreadable(self) -> bool:
        """Is there a build whose mirror we cannot tell?"""
        return len(self._targets()) < len(Ledger(self._home.builds).builds())

    def _starting(self) -> bool:
        try:
            return self._api is not None and any(run.job == "start_build" for run in self._api.active())
        except LongshotError:
            return True


def _is_over(folder: Path) -> bool:
    try:
        ends_at = float(LocalSandbox(folder, Unconfined()).meta()["ends_at"])
    except SandboxGone:
        return _age(folder) > _BEING_MADE_S
    return time.time() - ends_at > _BEING_MADE_S


def _has_begun(folder: Path) -> bool:
    """Also one whose request was lost: what is left of it is a person's to judge."""
    return any((folder / name).exists() for name in ("request.json", "state.json", "quarantine", "tasks", "iterations"))


def _age(path: Path) -> float:
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime
    return 0.0


def _target_of(mirror: Path) -> str:
    with contextlib.suppress(OSError):
        return (mirror / "longshot-target").read_text(encoding="utf-8", errors="replace")[:300]
    return "a repository of which nothing was fetched"
