"""The gist of every task of a build, kept up at a price in proportion to what has changed since the last look.

A folder `tasks/<id>` changes its time when a document is renamed into it or away: only folders that have changed are read
again. Of tasks that are over (landed or superseded) not even the folder is looked at, because whoever takes such a one up
again touches `tasks/` itself (`touch`), after which every folder is looked at; and so it is once in a while anyway. What was
found is kept in `.gists.json`, for the next process: nothing but a saving of time, and not trusted when torn.
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from longshot_dagster.adapters.host.documents import Stamp, stamp_at
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import Handoff, HandoffStatus, Task
from longshot_dagster.core.sealing import opened, sealed
from longshot_dagster.core.task_gist import TaskGist

if TYPE_CHECKING:
    from longshot_dagster.adapters.ledger.ledger import BuildLedger

T = TypeVar("T")
Folder = tuple[int, int]  # modified (ns), inode

_SETTLES_NS = 2_000_000_000  # a folder's time may stay the same for changes that follow each other this fast
_FINE_SETTLES_NS = (
    200_000_000  # where it is no whole number of milliseconds: such a clock ticks a hundred times a second
)
_LOOK_AT_ALL_S = 30.0
_SAVED_AFTER = 256  # tasks that have changed
_LAYOUT = 2
_BUILDS = 64  # known to one process at a time


class TaskGists:
    """Those of one build; one object per process and build, shared by threads."""

    def __init__(self, directory: Path) -> None:
        self._tasks = f"{directory}/tasks"
        self._file = directory / ".gists.json"
        self._lock = threading.Lock()
        self._gists: dict[str, TaskGist] = {}
        self._settled: dict[str, Folder] = {}
        self._since: dict[str, tuple[Folder, float]] = {}
        self._open: set[str] = set()
        self._parts: dict[str, dict[str, tuple[Stamp, object]]] = {}
        self._all: Folder | None = None
        self._all_at = 0.0
        self._unsaved = 0
        self._asked: set[str] = set()
        self._loaded = False
        self.version = 0

    def look(self, ledger: "BuildLedger") -> dict[str, TaskGist]:
        """Task -> gist, sorted by task; not to be changed, and another object once anything has."""
        with self._lock:
            self._load()
            folder = _folder(self._tasks)
            if folder is None:
                self._forget()
                return self._gists
            whole = self._all != folder or time.monotonic() - self._all_at > _LOOK_AT_ALL_S
            names = self._names() if whole else sorted(self._open)
            found = dict(self._gists)
            for name in names:
                self._look_at(ledger, name, found)
            if whole:
                for gone in found.keys() - set(names):
                    self._drop(gone, found)
                self._all = folder if self._is_settled("", folder) else None
                self._all_at = time.monotonic()
            if found != self._gists:
                self._gists = dict(sorted(found.items()))
                self.version += 1
            self._save(folder)
            return self._gists

    def _look_at(self, ledger: "BuildLedger", name: str, found: dict[str, TaskGist]) -> None:
        folder = _folder(f"{self._tasks}/{name}")
        if folder is not None and self._settled.get(name) == folder:
            return
        gist = self._read(ledger, name) if folder is not None else None
        if folder is None or gist is None:
            self._drop(name, found)
            if folder is not None:  # a plan may just be being written
                self._open.add(name)
            return
        if found.get(name) != gist:
            self._unsaved += 1
        found[name] = gist
        if self._is_settled(name, folder):
            self._settled[name] = folder
            self._parts.pop(name, None)
        else:
            self._settled.pop(name, None)
        (self._open.discard if gist.over and name in self._settled else self._open.add)(name)

    def _is_settled(self, name: str, folder: Folder) -> bool:
        """Can no change of it hide behind the time it has? By its age or, whatever a clock says, by how long we know it."""
        now = time.monotonic()
        known, since = self._since.get(name, (None, now))
        settles = settles_ns(folder[0])
        if time.time_ns() - folder[0] > settles or (known == folder and now - since > settles / 1e9):
            self._since.pop(name, None)
            return True
        self._since[name] = folder, since if known == folder else now
        return False

    def _drop(self, name: str, found: dict[str, TaskGist]) -> None:
        found.pop(name, None)
        self._open.discard(name)
        self._settled.pop(name, None)
        self._parts.pop(name, None)

    def _forget(self) -> None:
        if self._gists:
            self._gists, self.version = {}, self.version + 1
        self._settled, self._since, self._open, self._parts, self._all = {}, {}, set(), {}, None

    # --- one task ----------------------------------------------------------------------------------------------------

    def _read(self, ledger: "BuildLedger", name: str) -> TaskGist | None:
        """None when it is no task (yet). Raises LedgerError for what is damaged beyond repair."""
        if not os.path.exists(f"{self._tasks}/{name}/task.json"):  # noqa: PTH110 - asked of every task
            return None
        task = ledger.task(name)
        if task is None:
            return None
        landing = self._part(name, "landing.json", lambda: _gist_of_landing(ledger.landing(name)))
        status = self._part(name, "handoff.json", lambda: _status(ledger.newest_handoff(name)))
        if status is None and landing is not None and name not in self._asked:
            self._asked.add(name)
            status = _status(ledger.restore_handoff(name))
        done = None
        if status is None:
            done = self._part(name, "interrupted.json", lambda: _status(ledger.interrupted(name)))
        return _gist(ledger, task, status, landing, done)

    def _part(self, task: str, document: str, read: Callable[[], T | None]) -> T | None:
        stamp = stamp_at(f"{self._tasks}/{task}/{document}")
        parts = self._parts.setdefault(task, {})
        if stamp is None:
            parts.pop(document, None)
            return None
        kept = parts.get(document)
        if kept is None or kept[0] != stamp:
            kept = parts[document] = stamp, read()
        return kept[1]  # type: ignore[return-value]

    # --- all of them -------------------------------------------------------------------------------------------------

    def _names(self) -> list[str]:
        return sorted(e for e in os.listdir(self._tasks) if not e.startswith("."))  # noqa: PTH208 - thousands of them

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, IndexError):
            text, wrong = opened(self._file.read_bytes())
            kept = json.loads(text)
            if wrong or kept["layout"] != _LAYOUT or kept["inode"] != os.stat(self._tasks).st_ino:  # noqa: PTH116
                return
            for modified, inode, *fields in kept["tasks"]:
                gist = TaskGist.restored(fields)
                self._gists[gist.id] = gist
                self._settled[gist.id] = modified, inode
                if not gist.over:
                    self._open.add(gist.id)
            self.version += 1

    def _save(self, folder: Folder) -> None:
        """Not fsynced: a torn one is not taken."""
        if self._unsaved < _SAVED_AFTER:
            return
        self._unsaved = 0
        rows = [[*self._settled[n], *g] for n, g in self._gists.items() if n in self._settled]
        text = json.dumps({"layout": _LAYOUT, "inode": folder[1], "tasks": rows}, separators=(",", ":"))
        with contextlib.suppress(OSError):
            unfinished = self._file.with_suffix(f".{os.getpid()}")
            unfinished.write_bytes(sealed(text.encode()))
            unfinished.replace(self._file)


def settles_ns(modified: int) -> int:
    """How long a folder's time may stay the same for changes that follow one at `modified` (ns)."""
    return _FINE_SETTLES_NS if modified % 1_000_000 else _SETTLES_NS


def gist_of(ledger: "BuildLedger", task: str) -> TaskGist:
    """Of one task, read from its documents."""
    landing = _gist_of_landing(ledger.landing(task))
    status, done = _status(ledger.handoff(task)), _status(ledger.interrupted(task))
    return _gist(ledger, ledger.existing_task(task), status, landing, done)


def _gist(
    ledger: "BuildLedger",
    task: Task,
    handoff: HandoffStatus | None,
    landing: tuple[LandingState, str, bool] | None,
    interrupted: HandoffStatus | None,
) -> TaskGist:
    return TaskGist(
        id=task.id,
        iteration=task.iteration,
        planner=task.planner,
        kind=task.kind,
        delegated=task.delegated,
        title=task.description.strip().partition("\n")[0][:200],
        handoff=handoff,
        landing=landing[0] if landing else None,
        reason=landing[1] if landing else "",
        interrupted=interrupted if handoff is None else None,
        cancelled=handoff is None and ledger.cancel_requested(task.id),
        kept_back=landing is not None and landing[2],
    )


def _gist_of_landing(outcome: LandingOutcome | None) -> tuple[LandingState, str, bool] | None:
    return (outcome.state, outcome.reason, outcome.keeps_back) if outcome else None


def _status(handoff: Handoff | None) -> HandoffStatus | None:
    return handoff.status if handoff else None


def _folder(path: str) -> Folder | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - asked of every task
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


_known: dict[str, TaskGists] = {}
_known_guard = threading.Lock()


def gists_of(directory: Path) -> TaskGists:
    """The one object of this process for the build in `directory`."""
    with _known_guard:
        found = _known.pop(str(directory), None) or TaskGists(directory)
        _known[str(directory)] = found  # the most recently used is last
        while len(_known) > _BUILDS:
            _known.pop(next(iter(_known)))
        return found


def touch(directory: Path) -> None:
    """Have every reader look at every task again: one that was over is taken up anew, or was taken back."""
    with contextlib.suppress(OSError):
        os.utime(directory / "tasks")
