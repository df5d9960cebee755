"""`longshot clean`: finished builds leave their ledger, their refs, Dagster's records of them, and what crashes left.

In the order things happen: a note in `leaving/` says what is about to go; then the refs on the target, those in the mirror,
sandboxes, token counts, the ledger itself, and last, when a stack runs, Dagster's runs and partitions. The note goes when
all of it is done; a clean that died in between is finished by the next one.
"""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from longshot_dagster.adapters.builds.restoring import aside_of
from longshot_dagster.adapters.gateway.token_counts import accounts_file
from longshot_dagster.adapters.host import leases
from longshot_dagster.adapters.host.documents import write_atomically
from longshot_dagster.adapters.host.exclusive import claim
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.ledger import BuildLedger, Ledger
from longshot_dagster.adapters.repository.build_refs import (
    OnTarget,
    in_mirror,
    listed_on,
    on_target,
    take_from_mirror,
    take_from_target,
)
from longshot_dagster.adapters.sandboxes.confinement import Unconfined
from longshot_dagster.adapters.sandboxes.sandbox_local import LocalSandbox
from longshot_dagster.adapters.stack.dagster_api import ENDED, DagsterApi
from longshot_dagster.core.cleaning import Leaving, ended_at, is_due
from longshot_dagster.core.clock import Clock
from longshot_dagster.core.errors import LedgerError, LongshotError, SandboxGone, WrongUse
from longshot_dagster.core.ids import task_partition
from longshot_dagster.core.models import BuildPhase, Target


@dataclass(frozen=True)
class Removal:
    """One build that goes, and how much of it there is. `ended` is None for one whose removal was cut short."""

    leaving: Leaving
    ended: float | None
    bytes: int
    there: OnTarget
    mirrored: int
    sandboxes: tuple[Path, ...]


@dataclass
class Outcome:
    """What became of one removal. `waits`: Dagster's records of it are still there, because no stack runs."""

    build: str
    waits: bool = False
    notes: list[str] = field(default_factory=list)


class Cleaning:
    """One clean of a home; `api` is its running stack's, if there is one."""

    def __init__(self, home: Home, clock: Clock, api: DagsterApi | None) -> None:
        self._home = home
        self._clock = clock
        self._api = api
        self._builds = Ledger(home.builds)
        self._refs: dict[str, dict[str, str] | str] = {}  # by target: one round trip for all its builds

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Raises WrongUse while another clean is at work."""
        with claim(self._home.root / "clean.lock") as mine:
            if not mine:
                raise WrongUse("another `longshot clean` is at work here")
            yield

    def due(self, older_than_days: float) -> list[Removal]:
        """Finished builds of that age and removals that were cut short, oldest first."""
        found = [self._again(note) for note in self._notes()]
        names = {r.leaving.build for r in found}
        for name in self._builds.builds():
            ledger = self._builds.build(name)
            try:
                request, phase, ended = ledger.request(), ledger.state().phase, _ended(ledger)
            except LedgerError:
                continue  # a broken one, or a newer version's: not ours to judge
            if request.build not in names and is_due(phase, ended, self._clock.now(), older_than_days):
                found.append(self._removal(ledger, ended))
        return found

    def one(self, build: str) -> Removal:
        """The finished build of that name. Raises WrongUse for any other."""
        if note := next((n for n in self._notes() if n.build == build), None):
            return self._again(note)
        ledger = self._builds.existing(build)
        state = ledger.state()
        if state.phase is not BuildPhase.FINISHED:
            raise WrongUse(
                f"{build} is {state.phase}; only what has finished is removed (longshot resume {build} goes on)"
            )
        return self._removal(ledger, _ended(ledger))

    def take_away(self, removal: Removal) -> Outcome:
        """All of one build, as far as it can be done now; done again, the rest."""
        leaving, outcome = removal.leaving, Outcome(removal.leaving.build)
        ledger = self._builds.build(leaving.build)
        if ledger.exists() and ledger.state().phase is not BuildPhase.FINISHED:
            outcome.notes.append("kept: it is under way again")
            return outcome
        if ledger.exists() and self._has_a_run(leaving.build):
            outcome.notes.append("kept: a run of it has not ended")
            return outcome
        write_atomically(self._note_of(leaving.build), leaving.model_dump_json(indent=1).encode())
        outcome.notes += take_from_target(self._home, leaving.target, removal.there)
        if removal.there.why:
            outcome.notes.append(f"its refs on {leaving.target.repository} stay: {removal.there.why}")
        elif removal.there.result and not removal.there.merged:
            branch = removal.there.result.removeprefix("refs/heads/")
            outcome.notes.append(f"branch {branch} of {leaving.target.repository} holds its work and stays")
        take_from_mirror(self._home.mirror_of(leaving.target.url), leaving.build)
        for folder in removal.sandboxes:
            end_sandbox(folder)
        accounts_file(self._home.gateway, leaving.build).unlink(missing_ok=True)
        self._take_ledger(leaving)
        if self._forgotten_by_dagster(leaving):
            self._note_of(leaving.build).unlink(missing_ok=True)
        else:
            outcome.waits = True
        return outcome

    def _has_a_run(self, build: str) -> bool:
        """One that is to reopen it may still wait for a slot."""
        try:
            return self._api is not None and any(run.belongs_to(build) for run in self._api.active())
        except LongshotError:
            return False

    # --- what there is -----------------------------------------------------------------------------------------------

    def _removal(self, ledger: BuildLedger, ended: float) -> Removal:
        request = ledger.request()
        leaving = Leaving(
            build=ledger.build,
            created_at=request.created_at,
            target=request.target,
            iterations=tuple(str(k) for k in ledger.iterations()),
            tasks=tuple(task_partition(ledger.build, t) for t in ledger.task_ids()),
        )
        return self._sized(leaving, ended, Path(str(ledger.directory)))

    def _again(self, note: Leaving) -> Removal:
        ledger = self._builds.build(note.build)
        where = Path(str(ledger.directory)) if ledger.exists() else self._trash_of(note.build)
        return self._sized(note, None, where)

    def _sized(self, leaving: Leaving, ended: float | None, folder: Path) -> Removal:
        return Removal(
            leaving,
            ended,
            size_of(folder),
            on_target(leaving.target, leaving.build, self._listed(leaving.target)),
            len(in_mirror(self._home.mirror_of(leaving.target.url), leaving.build)),
            tuple(sandboxes_of(self._home, leaving.build)),
        )

    def _listed(self, target: Target) -> dict[str, str] | str:
        if target.url not in self._refs:
            self._refs[target.url] = listed_on(target)
        return self._refs[target.url]

    def _notes(self) -> list[Leaving]:
        """Removals that were begun; one whose name a new build has taken since is over."""
        found = []
        for path in sorted(self._home.leaving.glob("*.json")):
            try:
                note = Leaving.model_validate_json(path.read_bytes())
            except (ValidationError, FileNotFoundError):
                continue
            ledger = self._builds.build(note.build)
            with contextlib.suppress(LedgerError):
                if ledger.exists() and ledger.request().created_at != note.created_at:
                    shutil.rmtree(self._trash_of(note.build), ignore_errors=True)
                    path.unlink()
                    continue
            found.append(note)
        return found

    def _note_of(self, build: str) -> Path:
        return self._home.leaving / f"{build}.json"

    def _trash_of(self, build: str) -> Path:
        return self._home.leaving / build

    # --- taking it away ----------------------------------------------------------------------------------------------

    def _take_ledger(self, leaving: Leaving) -> None:
        """Gone for every reader at once, then deleted."""
        there, trash = self._home.builds / leaving.build, self._trash_of(leaving.build)
        if there.exists():
            shutil.rmtree(trash, ignore_errors=True)
            there.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)
        for aside in aside_of(self._home, leaving.build):
            shutil.rmtree(aside, ignore_errors=True)

    def _forgotten_by_dagster(self, leaving: Leaving) -> bool:
        """Have its runs, their logs and its partitions removed; False when Dagster is not there to be asked."""
        if self._api is None:
            return not (self._home.root / "dagster" / "runs.db").exists()
        try:
            for run in [r for r in self._api.every_run() if r.belongs_to(leaving.build)]:
                if run.status in ENDED:
                    self._api.delete_run(run.id)
                    self._forget_run(run.id)
            self._api.delete_partitions("tasks", leaving.tasks)
            self._api.delete_partitions("iterations", leaving.iterations)
            self._api.delete_partitions("builds", (leaving.build,))
        except LongshotError:
            return False
        return True

    def _forget_run(self, run: str) -> None:
        """What Dagster leaves of a deleted run: its log, its empty event database, the values between its steps."""
        dagster = self._home.dagster
        shutil.rmtree(dagster / run, ignore_errors=True)
        shutil.rmtree(dagster / "io" / run, ignore_errors=True)
        for suffix in (".db", ".db-shm", ".db-wal"):
            (dagster / f"{run}{suffix}").unlink(missing_ok=True)
        leases.forget(self._home, run)


def _ended(ledger: BuildLedger) -> float:
    return ended_at(ledger.request(), ledger.report())


# --- sandboxes -------------------------------------------------------------------------------------------------------


def sandboxes_of(home: Home, build: str) -> Iterator[Path]:
    """Folders of sandboxes that the build has left."""
    for folder in sorted(home.sandboxes.glob("sb-*")):
        with contextlib.suppress(SandboxGone):
            if LocalSandbox(folder, Unconfined()).meta()["tags"].get("build") == build:
                yield folder


def end_sandbox(folder: Path) -> None:
    """Its processes, confined or not, and its files."""
    LocalSandbox(folder, Unconfined()).terminate()


def size_of(folder: Path) -> int:
    """Bytes below `folder`; links are not followed, and what vanishes meanwhile counts nothing."""
    total, waiting = 0, [folder]
    while waiting:
        with contextlib.suppress(OSError):
            for entry in waiting.pop().iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    waiting.append(entry)
                else:
                    total += entry.lstat().st_size
    return total
