"""The ledger: one directory per build, one small JSON document per fact, each written whole or not at all.

    builds/<build>/request.json state.json report.json phases.jsonl
                   planners/<planner>/<nnn>.json          the conversation after planning round nnn
                   iterations/<key>/{repo_state,plan,metrics,failure}.json
                   tasks/<id>/{task,run,handoff,landing,interrupted,cancel}.json transcript.jsonl live.jsonl
                   sweeps/<n>.json

A document is written to a temporary file, fsynced and renamed over its name. Everything but `state.json`, `landing.json`,
`failure.json` and, until there is a handoff, `run.json` and `interrupted.json`, is written once and never changes; a
build that is reopened keeps its report as `earlier-report-<n>.json`. The root is a UPath: on an object store a write is atomic by itself,
and locks, which only processes of one host need, are not taken.
"""

import contextlib
import fcntl
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from upath import UPath

from longshot_dagster.adapters.exclusive import claim
from longshot_dagster.core.errors import LedgerError, WrongUse
from longshot_dagster.core.ids import FIX, IterationKey, check_build_id, check_task_id, parse_iteration_key
from longshot_dagster.core.ledger_schema import unreadable
from longshot_dagster.core.lifecycle import BuildView, IterationStatus, IterationView, SweepView, TaskView
from longshot_dagster.core.models import (
    SCHEMA,
    BuildPhase,
    BuildReport,
    BuildRequest,
    BuildState,
    CancelRequest,
    CheckStatus,
    Handoff,
    IterationFailure,
    LandingOutcome,
    LandingState,
    MetricsSnapshot,
    Plan,
    RepoState,
    Sweep,
    Task,
    TaskKind,
    WorkerRun,
)
from longshot_dagster.version import __version__

M = TypeVar("M", bound=BaseModel)

REPORT_PAGE = "report.html"

# The last says that there are the others.
_WORK = ("cancel.json", "interrupted.json", "run.json", "transcript.jsonl", "landing.json", "handoff.json")


class Ledger:
    """All builds below one root, usually `$LONGSHOT_HOME/builds`."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = UPath(root)
        self._open: dict[str, BuildLedger] = {}
        self._finished: dict[str, float] = {}  # name -> when its state was written: it may be reopened

    def build(self, build: str) -> "BuildLedger":
        """The build's ledger, which need not exist yet; raises WrongUse for a name that cannot be one."""
        return BuildLedger(self.root / check_build_id(build), build)

    def existing(self, build: str) -> "BuildLedger":
        """Raises WrongUse when no such build is recorded here, LedgerError when a newer version has written it."""
        found = self.build(build)
        if not found.exists():
            known = ", ".join(self.builds()[-5:]) or "none yet"
            raise WrongUse(f"no build {build!r} here (newest: {known}); `longshot status` lists them all")
        found.check_version()
        return found

    def unfinished(self) -> list["BuildLedger"]:
        """Builds that still have something to do, paused ones included; cheap when asked often of the same object."""
        if not self.root.exists():
            return []
        for name in sorted(d.name for d in self.root.iterdir() if not self._still_finished(d)):
            if name not in self._open and (self.root / name / "request.json").exists():
                self._open[name] = BuildLedger(self.root / name, name)
        for name, ledger in list(self._open.items()):
            written = _stamp(ledger.directory / "state.json")
            try:
                if ledger.exists() and ledger.state().phase is not BuildPhase.FINISHED:
                    continue
            except LedgerError:
                continue  # whoever looks at this one is told; the others are well
            self._finished[name] = written
            self._open.pop(name, None)
        return list(self._open.values())

    def _still_finished(self, directory: UPath) -> bool:
        known = self._finished.get(directory.name)
        return bool(known) and known == _stamp(directory / "state.json")

    def builds(self) -> list[str]:
        """Names of all builds, oldest first."""
        if not self.root.exists():
            return []
        found = [BuildLedger(d, d.name) for d in self.root.iterdir() if (d / "request.json").exists()]
        return [b.build for b in sorted(found, key=_age)]


def _stamp(path: UPath) -> float:
    """When the file was written; 0 when there is none."""
    try:
        return float(path.stat().st_mtime)
    except FileNotFoundError:
        return 0.0


def _age(ledger: "BuildLedger") -> tuple[float, str]:
    try:
        return ledger.request().created_at, ledger.build
    except LedgerError:
        return 0.0, ledger.build


class BuildLedger:
    """One build's documents. Readers return None for what is not written yet and raise LedgerError for what is broken."""

    def __init__(self, directory: UPath, build: str) -> None:
        self.directory = directory
        self.build = build
        self._frozen: dict[str, BaseModel] = {}
        self._stamps: dict[str, float] = {}
        self._readable = False

    def exists(self) -> bool:
        return (self.directory / "request.json").exists()

    # --- the build ---------------------------------------------------------------------------------------------------

    def request(self) -> BuildRequest:
        self.check_version()
        return self._must(BuildRequest, "request.json")

    def save_request(self, request: BuildRequest) -> None:
        self._write("request.json", request.model_copy(update={"schema_version": SCHEMA, "written_by": __version__}))

    def check_version(self) -> None:
        """Raises LedgerError unless this version can read the ledger; asked of the file once."""
        if self._readable or not self.exists():
            return
        if why := unreadable(self.build, self._path("request.json").read_bytes(), __version__):
            raise LedgerError(why)
        self._readable = True

    def _adopt(self) -> None:
        """Note that this version writes here now: an older one would stumble over what it writes."""
        with contextlib.suppress(
            OSError, LedgerError
        ):  # neither a full disk nor a broken request keeps it from pausing
            request = self._must(BuildRequest, "request.json")
            if (request.schema_version, request.written_by) != (SCHEMA, __version__):
                self.save_request(request)

    def state(self) -> BuildState:
        return self._read(BuildState, "state.json") or BuildState()

    def update_state(self, change: Callable[[BuildState], BuildState]) -> BuildState:
        """Apply `change` to the newest state under the build's lock."""
        self.check_version()
        with self.lock("state"):
            before = self.state()
            state = change(before)
            if state != before:  # a sensor notes the newest failed run at every tick
                self._write("state.json", state)
                self._adopt()
                if state.phase is not before.phase:
                    self._note_phase(state)
            return state

    def _note_phase(self, state: BuildState) -> None:
        """`state.json` tells only how the build stands now; this is its past, for people."""
        path = self._path("phases.jsonl")
        if isinstance(path, Path):  # an object store does not append
            noted = state.model_dump(mode="json", include={"phase", "reason", "verdict"})
            # A full disk must not keep a build from being paused for it.
            with contextlib.suppress(OSError), path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"at": self._path("state.json").stat().st_mtime, **noted}) + "\n")

    def phases(self) -> list[tuple[float, BuildState]]:
        """(seconds since the epoch, phase with reason and verdict), oldest first; builds of older versions noted none."""
        path = self._path("phases.jsonl")
        found = []
        for line in path.read_bytes().splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):  # a line that a crash cut short
                noted = json.loads(line)
                found.append((float(noted.pop("at")), BuildState.model_validate(noted)))
        return found

    def report(self) -> BuildReport | None:
        return self._read(BuildReport, "report.json")

    def save_report(self, report: BuildReport) -> None:
        self._write("report.json", report)

    def report_path(self) -> UPath:
        """What to open to read the report: its page, or the document itself where no page could be written."""
        page = self._path(REPORT_PAGE)
        return page if page.exists() else self._path("report.json")

    def reopen(self) -> None:
        """Set a finished build running, its report put aside, so that it is finalized anew; nothing when it is not finished."""
        with self.lock("reopen"):
            if self.state().phase is not BuildPhase.FINISHED:
                return
            # First the report: a build that runs and still has one would be finished again as it was.
            report = self._path("report.json")
            if report.exists():
                number = 1
                while (aside := self._path(f"earlier-report-{number}.json")).exists():
                    number += 1
                report.rename(aside)
            finalization = f"finalize.{self.view().finalize_attempt + 1:03d}"
            self.update_state(lambda s: s.reopened(finalization) if s.phase is BuildPhase.FINISHED else s)

    # --- iterations --------------------------------------------------------------------------------------------------

    def open_iteration(self, key: IterationKey) -> None:
        """Note that `key` exists, before its run is asked for; idempotent."""
        self._path(f"iterations/{key.short}").mkdir(parents=True, exist_ok=True)

    def iterations(self) -> list[IterationKey]:
        directory = self._path("iterations")
        if not directory.exists():
            return []
        return sorted(parse_iteration_key(f"{self.build}.{d.name}") for d in directory.iterdir())

    def plan(self, key: IterationKey) -> Plan | None:
        return self._read(Plan, f"iterations/{key.short}/plan.json", frozen=True)

    def freeze_plan(self, key: IterationKey, plan: Plan) -> Plan:
        """Write every task and then the manifest; an existing manifest wins and is returned."""
        with self.lock("plan"):
            if existing := self.plan(key):
                return existing
            self._drop_unfinished(plan)
            for task in plan.tasks:
                if self.task(task.id) is None:
                    self._write(f"tasks/{task.id}/task.json", task)
            self._write(f"iterations/{key.short}/plan.json", plan)
            return plan

    def _drop_unfinished(self, plan: Plan) -> None:
        """Tasks of an earlier attempt that died before its manifest: nobody would ever work on them."""
        for name in self.task_ids():
            if (task := self.task(name)) and task.iteration == plan.iteration:
                (self._path(f"tasks/{name}") / "task.json").unlink()
                self._frozen.pop(f"tasks/{name}/task.json")

    def repo_state(self, key: IterationKey) -> RepoState | None:
        return self._read(RepoState, f"iterations/{key.short}/repo_state.json", frozen=True)

    def save_repo_state(self, key: IterationKey, state: RepoState) -> None:
        self._write(f"iterations/{key.short}/repo_state.json", state)

    def metrics(self, key: IterationKey) -> MetricsSnapshot | None:
        return self._read(MetricsSnapshot, f"iterations/{key.short}/metrics.json", frozen=True)

    def save_metrics(self, key: IterationKey, metrics: MetricsSnapshot) -> None:
        """The last document of an iteration: with it, the iteration is done."""
        self._write(f"iterations/{key.short}/metrics.json", metrics)

    def failure(self, key: IterationKey) -> IterationFailure | None:
        return self._read(IterationFailure, f"iterations/{key.short}/failure.json")

    def save_failure(self, key: IterationKey, failure: IterationFailure) -> None:
        self._write(f"iterations/{key.short}/failure.json", failure)

    # --- planners ----------------------------------------------------------------------------------------------------

    def planner_turn(self, planner: str, number: int) -> bytes | None:
        """The conversation of `planner` after round `number`, as its agent serialised it."""
        path = self._path(f"planners/{planner}/{number:03d}.json")
        return path.read_bytes() if path.exists() else None

    def save_planner_turn(self, planner: str, number: int, conversation: bytes) -> None:
        self._write_bytes(f"planners/{planner}/{number:03d}.json", conversation)

    # --- tasks -------------------------------------------------------------------------------------------------------

    def task_ids(self) -> list[str]:
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
        return self._read(WorkerRun, f"tasks/{task}/run.json")

    def save_run(self, run: WorkerRun) -> None:
        self._write(f"tasks/{run.task}/run.json", run)

    def handoff(self, task: str) -> Handoff | None:
        name = f"tasks/{task}/handoff.json"
        written = _stamp(self._path(name))
        if self._stamps.get(name) != written:  # another process may have set it aside
            self._stamps[name] = written
            self._frozen.pop(name, None)
        return self._read(Handoff, name, frozen=True)

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

    def cancel_requested(self, task: str) -> bool:
        """Does a person want no more of the task? Asked several times a second of each task at work."""
        return self._path(f"tasks/{task}/cancel.json").exists()

    def request_cancel(self, task: str, at: float) -> None:
        """A worker at the task hands in what it has; one that has not begun hands in nothing. The first request stays."""
        if self.cancel_request(task) is None:
            self._write(f"tasks/{task}/cancel.json", CancelRequest(at=at))

    def forget_work(self, task: str) -> UPath:
        """Set a task's run, handoff and landing aside, so that it is worked on again; returns where they are now.

        Raises WrongUse once it has landed.
        """
        with self.lock("landing"):
            if (landing := self.landing(task)) and landing.state is LandingState.LANDED:
                raise WrongUse(f"task {task} has landed meanwhile; what has landed is not worked on again")
            directory = self._path(f"tasks/{check_task_id(task)}")
            number = 1
            while (directory / f"earlier-{number}").exists():
                number += 1
            aside = directory / f"earlier-{number}"
            for name in _WORK:
                if (directory / name).exists():
                    aside.mkdir(exist_ok=True)
                    (directory / name).rename(aside / name)
            self._frozen.pop(f"tasks/{task}/handoff.json", None)
            return aside

    def recall_work(self, task: str, aside: UPath) -> None:
        """Undo `forget_work`, unless the task has been handed in again since."""
        with self.lock("landing"):
            if self.handoff(task) is None and aside.exists():
                for name in _WORK:
                    if (aside / name).exists():
                        (aside / name).rename(self._path(f"tasks/{task}/{name}"))
                aside.rmdir()

    def earlier_work(self, task: str) -> list[tuple[UPath, WorkerRun | None, Handoff | None]]:
        """(folder, run, handoff) of whatever `forget_work` has set aside, oldest first."""
        found, number = [], 1
        while (folder := self._path(f"tasks/{task}/earlier-{number}")).exists():
            where = f"tasks/{task}/earlier-{number}"
            run, handoff = self._read(WorkerRun, f"{where}/run.json"), self._read(Handoff, f"{where}/handoff.json")
            found.append((folder, run, handoff))
            number += 1
        return found

    def landing(self, task: str) -> LandingOutcome | None:
        return self._read(LandingOutcome, f"tasks/{task}/landing.json")

    def save_landing(self, landing: LandingOutcome) -> None:
        self._write(f"tasks/{landing.task}/landing.json", landing)

    def transcript(self, task: str) -> UPath:
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

    def live_transcript(self, task: str) -> UPath:
        """Lines of the transcript as they come, while a worker is at the task; it ends where `transcript` begins."""
        return self._path(f"tasks/{check_task_id(task)}/live.jsonl")

    def save_transcript(self, task: str, lines: bytes) -> None:
        self._write_bytes(f"tasks/{task}/transcript.jsonl", lines)

    # --- sweeps ------------------------------------------------------------------------------------------------------

    def sweeps(self) -> list[Sweep]:
        directory = self._path("sweeps")
        if not directory.exists():
            return []
        numbers = sorted(int(f.stem) for f in directory.iterdir() if f.suffix == ".json" and f.stem.isdigit())
        return [self._must(Sweep, f"sweeps/{n}.json", frozen=True) for n in numbers]

    def save_sweep(self, sweep: Sweep) -> None:
        self._write(f"sweeps/{sweep.number}.json", sweep)

    def add_sweep(self, sweep: Sweep) -> Sweep:
        """Save it under the next free number."""
        with self.lock("sweep"):
            numbered = sweep.model_copy(update={"number": max((s.number for s in self.sweeps()), default=0) + 1})
            self.save_sweep(numbered)
            return numbered

    # --- the whole ---------------------------------------------------------------------------------------------------

    def view(self) -> BuildView:
        """The fold's input, read from every document."""
        request, state = self.request(), self.state()
        plans = {key: self.plan(key) for key in self.iterations()}
        worked = {t.id: t for p in plans.values() if p for t in p.dispatched}
        fixed = {r for p in plans.values() if p for t in p.tasks if t.kind is TaskKind.CONFLICT_FIX for r in t.replaces}
        red_ends = [int(n.removeprefix("red-final.")) for n in state.attempts if n.startswith("red-final.")]
        last_red = max(red_ends, default=0)
        return BuildView(
            build=self.build,
            phase=state.phase,
            iterations=tuple(
                IterationView(
                    key=key,
                    status=self._iteration_status(key, state.attempts.get(key.short, 1)),
                    attempt=state.attempts.get(key.short, 1),
                    planned=plan is not None,
                    tasks=tuple(t.id for t in plan.tasks) if plan else (),
                    handoffs_seen=plan.handoffs_seen if plan else (),
                    sweep=plan.sweep if plan else None,
                )
                for key, plan in plans.items()
            ),
            tasks=tuple(self._task_view(worked.get(t), t, t in fixed) for t in self.task_ids()),
            sweep=self._sweep_view(),
            finalize_attempt=last_red,
            final_sweep=state.attempts.get(f"red-final.{last_red}"),
            finalization_max_attempts=request.settings.finalization_max_attempts,
            max_iterations=request.settings.max_iterations,
        )

    def iteration_status(self, key: IterationKey) -> IterationStatus | None:
        """How the current attempt of `key` stands; None when it was never opened."""
        if not self._path(f"iterations/{key.short}").exists():
            return None
        return self._iteration_status(key, self.state().attempts.get(key.short, 1))

    def _iteration_status(self, key: IterationKey, attempt: int) -> IterationStatus:
        if self.metrics(key):
            return IterationStatus.DONE
        failure = self.failure(key)
        return IterationStatus.FAILED if failure and failure.attempt >= attempt else IterationStatus.OPEN

    def _task_view(self, worked: Task | None, task_id: str, fix_planned: bool) -> TaskView:
        task = worked or self._must(Task, f"tasks/{task_id}/task.json", frozen=True)
        handoff, landing = self.handoff(task_id), self.landing(task_id)
        return TaskView(
            id=task_id,
            planner=task.planner,
            delegated=task.delegated,
            is_fix=task.planner == FIX,
            handoff=handoff.status if handoff else None,
            landing=landing.state if landing else None,
            fix_planned=fix_planned,
        )

    def _sweep_view(self) -> SweepView | None:
        sweeps = self.sweeps()
        if not sweeps:
            return None
        last = sweeps[-1]
        was_green = {c.name for s in sweeps[:-1] for c in s.checks if c.status is CheckStatus.GREEN}
        return SweepView(
            number=last.number,
            head=last.head,
            red=last.red,
            regression=bool(last.conflict_markers) or any(c.red and c.name in was_green for c in last.checks),
            last_well=max((s.number for s in sweeps if not s.red), default=0),
        )

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Held by one thread of one process of this host at a time. Not re-entrant."""
        with locked(self._path(f".{name}.lock")):
            yield

    # --- documents ---------------------------------------------------------------------------------------------------

    def _path(self, name: str) -> UPath:
        return self.directory / name

    def _read(self, model: type[M], name: str, frozen: bool = False) -> M | None:
        if frozen and isinstance(cached := self._frozen.get(name), model):
            return cached
        path = self._path(name)
        try:
            found = model.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as e:
            first = e.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(p) for p in first["loc"]) or "the document"
            raise LedgerError(f"{path} is not readable as {model.__name__}: {where}: {first['msg']}") from e
        if frozen:
            self._frozen[name] = found
        return found

    def _must(self, model: type[M], name: str, frozen: bool = False) -> M:
        found = self._read(model, name, frozen)
        if found is None:
            raise LedgerError(f"{self._path(name)} is missing; the ledger of build {self.build} is not whole")
        return found

    def _write(self, name: str, document: BaseModel) -> None:
        text = json.dumps(document.model_dump(mode="json"), ensure_ascii=False, indent=1)
        self._write_bytes(name, text.encode("utf-8", "replace"))

    def _write_bytes(self, name: str, data: bytes) -> None:
        """Raises LedgerError when the disk is full or read-only; what was there before stays whole."""
        try:
            write_atomically(self._path(name), data)
        except OSError as e:
            raise LedgerError(f"{self._path(name)} cannot be written: {e.strerror or e}") from e


def write_atomically(path: UPath | Path, data: bytes) -> None:
    """Write to a temporary neighbour, fsync, rename over `path`, fsync the directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(path, Path):
        path.write_bytes(data)
        return
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


_threads: dict[str, threading.Lock] = {}
_threads_guard = threading.Lock()


@contextlib.contextmanager
def locked(path: UPath | Path) -> Iterator[None]:
    """Exclusive lock on `path` among threads and processes of this host; the kernel frees it when the holder dies."""
    with _threads_guard:
        mine = _threads.setdefault(str(path), threading.Lock())
    with mine:
        if not isinstance(path, Path):
            yield
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)
