"""The ledger's documents about single tasks: what was asked, who worked on it, what came back, whether it landed."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from longshot_dagster.adapters.host.documents import Documents, Stamp, stamp_at
from longshot_dagster.adapters.host.exclusive import claim
from longshot_dagster.adapters.ledger.task_gists import settles_ns, touch
from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.ids import check_task_id
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import (
    CancelRequest,
    Handoff,
    Task,
    WorkerRun,
)

if TYPE_CHECKING:
    from upath import UPath

_HEARD_S = 0.25
# The last says that there are the others.
_WORK = ("cancel.json", "interrupted.json", "run.json", "transcript.jsonl", "landing.json", "handoff.json")


class Uncancelled:
    """Tasks that nobody had cancelled when they were last looked at; looked at again after a change of the folder of all."""

    def __init__(self, tasks: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._tasks = tasks
        self._monotonic = monotonic
        self._stamp: Stamp | None = None
        self._look_at = 0.0  # monotonic
        self._change = 0  # how many the folder has had
        self._seen: dict[str, int] = {}  # task -> the change it was looked at after

    def heard(self, task: str, is_cancelled: Callable[[str], bool]) -> bool:
        if (now := self._monotonic()) >= self._look_at:
            self._look_at = now + _HEARD_S
            stamp = stamp_at(self._tasks)
            fresh = stamp is None or time.time_ns() - stamp[0] < settles_ns(stamp[0])
            if fresh or stamp != self._stamp:
                self._stamp, self._change = stamp, self._change + 1
        change = self._change
        if self._seen.get(task) == change:
            return False
        found = is_cancelled(task)
        if not found:
            self._seen[task] = change
        return found


class TaskDocuments(Documents):
    """`tasks/<id>/` of one build's ledger."""

    def __init__(self, directory: "UPath", build: str) -> None:
        super().__init__(directory, build)
        self._uncancelled = Uncancelled(f"{directory}/tasks")

    def task_ids(self) -> list[str]:
        if self._root:
            return _named_tasks(f"{self._root}/tasks")
        directory = self._path("tasks")
        return sorted(d.name for d in directory.iterdir() if (d / "task.json").exists()) if directory.exists() else []

    def task(self, task: str) -> Task | None:
        return self._read(Task, f"tasks/{check_task_id(task)}/task.json", frozen=True)

    def existing_task(self, task: str) -> Task:
        """Raises WrongUse when the build has no such task."""
        found = self.task(task)
        if found is None:
            raise WrongUse(f"build {self.build} has no task {task!r}; `longshot status {self.build}` lists them")
        return found

    def run(self, task: str) -> WorkerRun | None:
        return self._read(WorkerRun, f"tasks/{task}/run.json", frozen=True)

    def save_run(self, run: WorkerRun) -> None:
        self._write(f"tasks/{run.task}/run.json", run)

    def handoff(self, task: str) -> Handoff | None:
        return self._read(Handoff, f"tasks/{task}/handoff.json", frozen=True)

    def newest_handoff(self, task: str) -> Handoff | None:
        """Read and not kept: handoffs carry their diff, and a build has thousands."""
        return self._read(Handoff, f"tasks/{task}/handoff.json")

    def save_handoff(self, handoff: Handoff) -> None:
        """Last of a worker's documents: with it, the task is never worked on again by itself."""
        self._write(f"tasks/{handoff.task_id}/handoff.json", handoff)

    def interrupted(self, task: str) -> Handoff | None:
        """What had been done when the task's worker was last interrupted; until it has a handoff, it goes on from there."""
        return self._read(Handoff, f"tasks/{task}/interrupted.json")

    def save_interrupted(self, handoff: Handoff) -> None:
        self._write(f"tasks/{handoff.task_id}/interrupted.json", handoff)

    def kept_work(self) -> list[str]:
        """Tasks without a handoff of which an interrupted worker has left something."""
        return [t for t in self.task_ids() if self.handoff(t) is None and self.interrupted(t) is not None]

    def cancel_request(self, task: str) -> CancelRequest | None:
        return self._read(CancelRequest, f"tasks/{check_task_id(task)}/cancel.json")

    def cancel_heard(self, task: str) -> bool:
        """As `cancel_requested`, a quarter of a second late at most: asked twice a second for each of two hundred workers."""
        return self._uncancelled.heard(task, self.cancel_requested)

    def cancel_requested(self, task: str) -> bool:
        """Does a person want no more of the task?"""
        name = f"tasks/{task}/cancel.json"
        return os.path.exists(f"{self._root}/{name}") if self._root else self._path(name).exists()  # noqa: PTH110 - often

    def request_cancel(self, task: str, at: float) -> None:
        """A worker at the task hands in what it has; one that has not begun hands in nothing. The first request stays."""
        if self.cancel_request(task) is None:
            self._write(f"tasks/{task}/cancel.json", CancelRequest(at=at))
            if isinstance(self.directory, Path):
                touch(self.directory)

    def forget_work(self, task: str) -> "UPath":
        """Set a task's run, handoff and landing aside, so that it is worked on again; returns where they are now.

        Raises WrongUse once it has landed, or is about to.
        """
        with self.lock("landing"):
            state = landing.state if (landing := self.landing(task)) else None
            if state is LandingState.LANDED:
                raise WrongUse(f"task {task} has landed meanwhile; what has landed is not worked on again")
            if state is LandingState.QUEUED:  # its lander may just have pushed it
                raise WrongUse(f"task {task} is about to land; try again once it has, or has not")
            directory = self._path(f"tasks/{check_task_id(task)}")
            number = 1
            while (directory / f"earlier-{number}").exists():
                number += 1
            aside = directory / f"earlier-{number}"
            with self._taken_up():
                for name in _WORK:
                    if (directory / name).exists():
                        aside.mkdir(exist_ok=True)
                        (directory / name).rename(aside / name)
            return aside

    def recall_work(self, task: str, aside: "UPath") -> None:
        """Undo `forget_work`, unless the task has been handed in again since."""
        with self.lock("landing"):
            if self.handoff(task) is None and aside.exists():
                with self._taken_up():
                    for name in reversed(_WORK):  # a landing never stands without its handoff
                        if (aside / name).exists():
                            (aside / name).rename(self._path(f"tasks/{task}/{name}"))
                    aside.rmdir()

    def earlier_work(self, task: str) -> "list[tuple[UPath, WorkerRun | None, Handoff | None]]":
        """(folder, run, handoff) of whatever `forget_work` has set aside, oldest first."""
        found, number = [], 1
        while (folder := self._path(f"tasks/{task}/earlier-{number}")).exists():
            where = f"tasks/{task}/earlier-{number}"
            run, handoff = self._read(WorkerRun, f"{where}/run.json"), self._read(Handoff, f"{where}/handoff.json")
            found.append((folder, run, handoff))
            number += 1
        return found

    def landing(self, task: str) -> LandingOutcome | None:
        return self._read(LandingOutcome, f"tasks/{task}/landing.json", frozen=True)

    def save_landing(self, landing: LandingOutcome) -> None:
        again = landing.state is LandingState.UNDONE or landing.approved is not None
        with self._taken_up() if again else contextlib.nullcontext():
            self._write(f"tasks/{landing.task}/landing.json", landing)

    @contextlib.contextmanager
    def _taken_up(self) -> Iterator[None]:
        """Around a change of a task that may be over: readers look at such a one only when told (`task_gists.py`)."""
        for done in (False, True):  # before it, too, because we may die in between
            if isinstance(self.directory, Path):
                touch(self.directory)
            if not done:
                yield

    def transcript(self, task: str) -> "UPath":
        return self._path(f"tasks/{check_task_id(task)}/transcript.jsonl")

    def work_lock(self, task: str) -> Path | None:
        """Locked while a worker is at the task; None where nothing can be locked."""
        path = self._path(f"tasks/{check_task_id(task)}/.work.lock")
        return path if isinstance(path, Path) else None

    def at_work(self, task: str) -> bool:
        """Is some process of this host working on the task at this moment?"""
        lock = self.work_lock(task)
        if lock is None or not lock.exists():
            return False
        with claim(lock) as free:
            return not free

    def live_transcript(self, task: str) -> "UPath":
        """Lines of the transcript as they come, while a worker is at the task; it ends where `transcript` begins."""
        return self._path(f"tasks/{check_task_id(task)}/live.jsonl")

    def save_transcript(self, task: str, lines: bytes) -> None:
        self._write_bytes(f"tasks/{task}/transcript.jsonl", lines)


def _named_tasks(directory: str) -> list[str]:
    """Folders that hold a task; thousands of them, each for the price of one look."""
    try:
        names = os.listdir(directory)  # noqa: PTH208
    except FileNotFoundError:
        return []
    return sorted(n for n in names if os.path.exists(f"{directory}/{n}/task.json"))  # noqa: PTH110
