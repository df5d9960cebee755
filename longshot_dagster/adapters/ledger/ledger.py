"""The ledger: one directory per build, one small JSON document per fact, each written whole or not at all.

    builds/<build>/request.json state.json report.json phases.jsonl
                   planners/<planner>/<nnn>.json          the conversation after planning round nnn
                   iterations/<key>/{repo_state,plan,metrics,failure}.json
                   tasks/<id>/{task,run,handoff,landing,interrupted,cancel}.json transcript.jsonl live.jsonl
                   sweeps/<n>.json

                   quarantine/                            damaged documents, and what became of them (`mending.py`)

A document is written to a temporary file, fsynced and renamed over its name, and ends with its checksum. Everything but `state.json`, `landing.json`,
`failure.json` and, until there is a handoff, `run.json` and `interrupted.json`, is written once and never changes; a build
that is reopened keeps its report as `earlier-report-<n>.json`. The root is a UPath: on an object store a write is atomic
by itself, and locks, which only processes of one host need, are not taken.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, JsonValue, RootModel

from longshot_dagster.adapters.host.documents import append_line, parsed, written_at
from longshot_dagster.adapters.host.places import place
from longshot_dagster.adapters.ledger.build_view import Folded, fold, iteration_status
from longshot_dagster.adapters.ledger.quarantine import MISSING, Mended, numbers_lost, read_notes
from longshot_dagster.adapters.ledger.task_documents import TaskDocuments
from longshot_dagster.adapters.ledger.task_gists import gist_of, gists_of
from longshot_dagster.core.errors import LedgerError, WrongUse
from longshot_dagster.core.ids import IterationKey, check_build_id, parse_iteration_key
from longshot_dagster.core.ledger_schema import unreadable
from longshot_dagster.core.lifecycle import BuildView, IterationStatus
from longshot_dagster.core.models import (
    SCHEMA,
    BuildPhase,
    BuildReport,
    BuildRequest,
    BuildState,
    Handoff,
    IterationFailure,
    MetricsSnapshot,
    Plan,
    RepoState,
    Sweep,
    Task,
)
from longshot_dagster.core.sealing import opened, sealed
from longshot_dagster.core.task_gist import TaskGist
from longshot_dagster.version import __version__

if TYPE_CHECKING:
    from upath import UPath

REPORT_PAGE = "report.html"
M = TypeVar("M", bound=BaseModel)


class Conversation(RootModel[JsonValue]):
    """`planners/<planner>/<nnn>.json`: what it holds is its agent's business."""


class Ledger:
    """All builds below one root, usually `$LONGSHOT_HOME/builds`."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = place(root)
        self._open: dict[str, BuildLedger] = {}
        self._finished: dict[str, float] = {}  # name -> when its state was written: it may be reopened

    def build(self, build: str) -> "BuildLedger":
        """The build's ledger, which need not exist yet; raises WrongUse for a name that cannot be one."""
        return BuildLedger(self.root / check_build_id(build), build)

    def existing(self, build: str) -> "BuildLedger":
        """Raises WrongUse when no such build is recorded here, LedgerError when a newer version has written it."""
        found = self.build(build)
        if not found.exists() and not found.restore_request():
            demo = self.root.parent / "demo"
            if (demo / "builds" / build).exists():
                raise WrongUse(f"build {build!r} is a demo's; LONGSHOT_HOME={demo} has the command look there")
            known = ", ".join(self.builds()[-5:]) or "none yet"
            raise WrongUse(f"no build {build!r} here (newest: {known}); `longshot status` lists them all")
        found.check_version()
        return found

    def unfinished(self) -> list["BuildLedger"]:
        """Builds that still have something to do, paused ones included; cheap when asked often of the same object."""
        if not self.root.exists():
            return []
        for name in sorted(d.name for d in self.root.iterdir() if not self._still_finished(d)):
            if name not in self._open and self._is_build(self.root / name):
                self._open[name] = BuildLedger(self.root / name, name)
        for name, ledger in list(self._open.items()):
            written = written_at(ledger.directory / "state.json")
            try:
                if ledger.exists() and ledger.state().phase is not BuildPhase.FINISHED:
                    continue
            except LedgerError:
                continue  # whoever looks at this one is told; the others are well
            self._finished[name] = written
            self._open.pop(name, None)
        return list(self._open.values())

    def _still_finished(self, directory: "UPath") -> bool:
        known = self._finished.get(directory.name)
        return bool(known) and known == written_at(directory / "state.json")

    def _is_build(self, directory: "UPath") -> bool:
        return (directory / "request.json").exists() or BuildLedger(directory, directory.name).restore_request()

    def builds(self) -> list[str]:
        """Names of all builds, oldest first."""
        if not self.root.exists():
            return []
        found = [BuildLedger(d, d.name) for d in self.root.iterdir() if self._is_build(d)]
        return [b.build for b in sorted(found, key=_age)]


def _age(ledger: "BuildLedger") -> tuple[float, str]:
    try:
        return ledger.request().created_at, ledger.build
    except LedgerError:
        return 0.0, ledger.build


def _sum_of(noted: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(noted, sort_keys=True).encode()).hexdigest()


class BuildLedger(TaskDocuments):
    """One build's documents. Readers return None for what is not written yet and raise LedgerError for what is broken."""

    def __init__(self, directory: "UPath", build: str) -> None:
        super().__init__(directory, build)
        self._readable = False
        self._folded: Folded | None = None

    def exists(self) -> bool:
        return (self.directory / "request.json").exists()

    # --- the build ---------------------------------------------------------------------------------------------------

    def request(self) -> BuildRequest:
        self.check_version()
        return self._must(BuildRequest, "request.json", frozen=True)

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
            request, _ = parsed(BuildRequest, self._path("request.json").read_bytes())
            if request and (request.schema_version, request.written_by) != (SCHEMA, __version__):
                self.save_request(request)

    def state(self) -> BuildState:
        found = self._read(BuildState, "state.json")
        if found is None and self._path("phases.jsonl").exists():
            found = self.mend_missing(BuildState, "state.json")
        return found or BuildState()

    def update_state(self, change: Callable[[BuildState], BuildState]) -> BuildState:
        """Apply `change` to the newest state under the build's lock."""
        self.check_version()
        with self.lock("state"):
            before = self.state()
            state = change(before)
            if state != before:  # a sensor notes the newest failed run at every tick
                self._write("state.json", state)
                self._adopt()
                self._note_state(state)
            return state

    def _note_state(self, state: BuildState) -> None:
        """`state.json` tells only how the build stands now; this is its past: for people, and to write it anew from."""
        path = self._path("phases.jsonl")
        if isinstance(path, Path):  # an object store does not append
            noted = {"at": self._path("state.json").stat().st_mtime, **state.model_dump(mode="json")}
            # A full disk must not keep a build from being paused for it.
            with contextlib.suppress(OSError):
                append_line(path, {**noted, "sha256": _sum_of(noted)})

    def phases(self) -> list[tuple[float, BuildState]]:
        """(seconds since the epoch, phase with reason and verdict), oldest first; builds of older versions noted none."""
        path = self._path("phases.jsonl")
        found = []
        for line in path.read_bytes().splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):  # a line that a crash cut short
                noted = json.loads(line)
                if noted.pop("sha256", None) in (None, _sum_of(noted)):  # versions before wrote none
                    found.append((float(noted.pop("at")), BuildState.model_validate(noted)))
        return found

    def report(self) -> BuildReport | None:
        return self._read(BuildReport, "report.json")

    def save_report(self, report: BuildReport) -> None:
        self._write("report.json", report)

    def report_path(self) -> "UPath":
        """What to open to read the report: its page, or the document itself where no page could be written."""
        page = self._path(REPORT_PAGE)
        return page if page.exists() else self._path("report.json")

    def reopen(self) -> None:
        """Put the report of a build that has one aside, so that it is finalized anew, and set a finished build running.

        Nothing happens while it is being finalized: that ends with a report of everything. Raises WrongUse when it is gone.
        """
        with self.lock("reopen"):
            if not self.exists():
                raise WrongUse(f"build {self.build} is not here any more; somebody has cleaned it away")
            phase = self.state().phase
            if phase is BuildPhase.FINALIZING:
                return
            # First the report: a build that runs and still has one would be finished again as it was.
            report = self._path("report.json")
            if report.exists():
                number = 1
                while (aside := self._path(f"earlier-report-{number}.json")).exists():
                    number += 1
                report.rename(aside)
            if phase is BuildPhase.FINISHED:
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
        names = os.listdir(str(directory)) if self._root else [d.name for d in directory.iterdir()]  # noqa: PTH208
        return sorted(parse_iteration_key(f"{self.build}.{name}") for name in names)

    def plan(self, key: IterationKey) -> Plan | None:
        return self._read(Plan, f"iterations/{key.short}/plan.json", frozen=True)

    def freeze_plan(self, key: IterationKey, plan: Plan) -> Plan:
        """Write every task and then the manifest; an existing manifest wins and is returned."""
        with self.lock("plan"):
            if existing := self.plan(key):
                return existing
            if any(self._path(f"tasks/{t}/handoff.json").exists() for t in self._tasks_of(plan)):
                lost = self.mend_missing(Plan, f"iterations/{key.short}/plan.json")
                assert lost is not None  # it was restored, or LedgerError was raised
                return lost
            self._drop_unfinished(plan)
            for task in plan.tasks:
                if self.task(task.id) is None:
                    self._write(f"tasks/{task.id}/task.json", task)
            self._write(f"iterations/{key.short}/plan.json", plan)
            return plan

    def _drop_unfinished(self, plan: Plan) -> None:
        """Tasks of an earlier attempt that died before its manifest: nobody would ever work on them."""
        for name in self._tasks_of(plan):
            (self._path(f"tasks/{name}") / "task.json").unlink()

    def _tasks_of(self, plan: Plan) -> list[str]:
        return [g.id for g in self.gists().values() if g.iteration == plan.iteration]

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
        name = f"planners/{planner}/{number:03d}.json"
        path = self._path(name)
        if not path.exists():
            return None
        data = path.read_bytes()
        found, wrong = parsed(Conversation, data)
        if found is not None:
            return opened(data)[0]
        mended = self._mended(Conversation, name, wrong)
        return mended.model_dump_json().encode() if mended else None

    def save_planner_turn(self, planner: str, number: int, conversation: bytes) -> None:
        self._write_bytes(f"planners/{planner}/{number:03d}.json", sealed(conversation))

    # --- sweeps ------------------------------------------------------------------------------------------------------

    def sweeps(self) -> list[Sweep]:
        directory = self._path("sweeps")
        if not directory.exists():
            return []
        names = os.listdir(str(directory)) if self._root else [f.name for f in directory.iterdir()]  # noqa: PTH208
        stems = (n.removesuffix(".json") for n in names if n.endswith(".json"))
        found = (
            self._read(Sweep, f"sweeps/{n}.json", frozen=True) for n in sorted(int(s) for s in stems if s.isdigit())
        )
        return [sweep for sweep in found if sweep is not None]

    def save_sweep(self, sweep: Sweep) -> None:
        self._write(f"sweeps/{sweep.number}.json", sweep)

    def add_sweep(self, sweep: Sweep) -> Sweep:
        """Save it under the next free number."""
        with self.lock("sweep"):
            numbered = sweep.model_copy(
                update={"number": max({0, *(s.number for s in self.sweeps()), *numbers_lost(self.directory)}) + 1}
            )
            self.save_sweep(numbered)
            return numbered

    # --- what was damaged --------------------------------------------------------------------------------------------

    def _mended(self, model: type[M], name: str, wrong: str) -> M | None:
        from longshot_dagster.adapters.ledger.mending import mend  # git, which a ledger that is whole need not know

        return mend(self, model, name, wrong)

    def mend_missing(self, model: type[M], name: str) -> M | None:
        """Of a document that must have been written: as it was, or None when it counts as not written after all."""
        return self._mended(model, name, MISSING)

    def restore_request(self) -> bool:
        """Is there a build whose request was lost, and is here again? One that has a state has had a request."""
        if not self._root or not self._path("state.json").exists():
            return False
        with contextlib.suppress(LedgerError):
            return self.mend_missing(BuildRequest, "request.json") is not None
        return False

    def restore_handoff(self, task: str) -> Handoff | None:
        """The handoff that must have been there, because there is a landing; None when nothing holds it any more."""
        with self.lock("landing"):  # whoever sets both aside holds it
            if self.landing(task) is None:
                return None
            return self.newest_handoff(task) or self.mend_missing(Handoff, f"tasks/{task}/handoff.json")

    def restore_task(self, task: str) -> None:
        """The document of a task that a plan names."""
        if self.task(task) is None:
            self.mend_missing(Task, f"tasks/{task}/task.json")

    def restore_plan(self, key: IterationKey) -> Plan | None:
        """The plan that must have been there, because its tasks were worked on. Raises LedgerError when it is lost."""
        with self.lock("plan"):
            return self.plan(key) or self.mend_missing(Plan, f"iterations/{key.short}/plan.json")

    def mended(self) -> list[Mended]:
        """Every document that was found damaged, and what became of it, oldest first."""
        return read_notes(self.directory)

    # --- the whole ---------------------------------------------------------------------------------------------------

    def gists(self) -> Mapping[str, TaskGist]:
        """How every task stands, sorted by task; costs what has changed since the last look of this process."""
        if isinstance(self.directory, Path):
            return gists_of(self.directory).look(self)
        return {t: gist_of(self, t) for t in self.task_ids()}

    def view(self) -> BuildView:
        """The fold's input; the same object while nothing has changed."""
        self._folded = fold(self, self._folded)
        return self._folded.view

    def iteration_status(self, key: IterationKey) -> IterationStatus | None:
        """How the current attempt of `key` stands; None when it was never opened."""
        if not self._path(f"iterations/{key.short}").exists():
            return None
        return iteration_status(self, key, self.state().attempts.get(key.short, 1))
