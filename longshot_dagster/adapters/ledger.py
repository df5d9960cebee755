"""The ledger: one directory per build, one small JSON document per fact, each written whole or not at all.

    builds/<build>/request.json state.json report.json phases.jsonl
                   planners/<planner>/<nnn>.json          the conversation after planning round nnn
                   iterations/<key>/{repo_state,plan,metrics,failure}.json
                   tasks/<id>/{task,run,handoff,landing,interrupted,cancel}.json transcript.jsonl live.jsonl
                   sweeps/<n>.json

A document is written to a temporary file, fsynced and renamed over its name. Everything but `state.json`, `landing.json`,
`failure.json` and, until there is a handoff, `run.json` and `interrupted.json`, is written once and never changes; a build
that is reopened keeps its report as `earlier-report-<n>.json`. The root is a UPath: on an object store a write is atomic
by itself, and locks, which only processes of one host need, are not taken.
"""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from upath import UPath

from longshot_dagster.adapters.build_view import build_view, iteration_status
from longshot_dagster.adapters.documents import written_at
from longshot_dagster.adapters.task_documents import TaskDocuments
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
    IterationFailure,
    MetricsSnapshot,
    Plan,
    RepoState,
    Sweep,
)
from longshot_dagster.version import __version__

REPORT_PAGE = "report.html"


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
            if name not in self._open and (self.root / name / "request.json").exists():
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

    def _still_finished(self, directory: UPath) -> bool:
        known = self._finished.get(directory.name)
        return bool(known) and known == written_at(directory / "state.json")

    def builds(self) -> list[str]:
        """Names of all builds, oldest first."""
        if not self.root.exists():
            return []
        found = [BuildLedger(d, d.name) for d in self.root.iterdir() if (d / "request.json").exists()]
        return [b.build for b in sorted(found, key=_age)]


def _age(ledger: "BuildLedger") -> tuple[float, str]:
    try:
        return ledger.request().created_at, ledger.build
    except LedgerError:
        return 0.0, ledger.build


class BuildLedger(TaskDocuments):
    """One build's documents. Readers return None for what is not written yet and raise LedgerError for what is broken."""

    def __init__(self, directory: UPath, build: str) -> None:
        super().__init__(directory, build)
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
        return build_view(self)

    def iteration_status(self, key: IterationKey) -> IterationStatus | None:
        """How the current attempt of `key` stands; None when it was never opened."""
        if not self._path(f"iterations/{key.short}").exists():
            return None
        return iteration_status(self, key, self.state().attempts.get(key.short, 1))
