"""A damaged document is set aside and made anew: from what the ledger still holds, from its checkpoint in git, from main.

Where nothing holds it, it counts as not written when that is safe: its task or its iteration runs again and finds
everything else done. A request or a plan that nothing holds stays where it is, the build pauses, and a person is told.

| document | made anew from | else |
|---|---|---|
| state.json | the last line of phases.jsonl; the checkpoint, paused | paused |
| tasks/*/task.json | the plan that names it; the checkpoint | the build pauses |
| tasks/*/landing.json | the checkpoint, where main bears it out | queued: the landing queue asks main |
| tasks/*/handoff.json, run.json | the checkpoint, unless it was set aside since; what landed | the task runs again |
| iterations/*/metrics.json | the checkpoint | the iteration runs again |
| request.json, iterations/*/plan.json | the checkpoint | the build pauses |
| everything else | the checkpoint | not written |
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel

from longshot_dagster.adapters.host.documents import parsed, rendered
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.checkpoint import Form, checkpoint_ref, document_at, local_ref
from longshot_dagster.adapters.ledger.quarantine import BEYOND, MISSING, Mended, note, set_aside
from longshot_dagster.adapters.ledger.task_gists import touch
from longshot_dagster.adapters.repository.git import Git
from longshot_dagster.adapters.repository.mirror import Mirror
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.display import one_line
from longshot_dagster.core.errors import LedgerError, LongshotError
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import (
    BuildPhase,
    BuildReport,
    BuildRequest,
    BuildState,
    Handoff,
    HandoffStatus,
    IterationFailure,
    Plan,
    Task,
    WorkerRun,
)

if TYPE_CHECKING:
    from longshot_dagster.adapters.ledger.ledger import BuildLedger

M = TypeVar("M", bound=BaseModel)
Change = Callable[[BuildState], BuildState]
Instead = Callable[[LandingOutcome | None], BaseModel | None]
_VERSIONS = 20  # of one document, in the checkpoints before the newest


def mend(ledger: "BuildLedger", model: type[M], name: str, wrong: str) -> M | None:
    """What `name` holds once it is mended; None when it counts as not written. Once, whoever meets it first.

    Raises LedgerError when it cannot be done without, or cannot be mended now; the build is paused then.
    """
    directory = ledger.directory
    if not isinstance(directory, Path):
        raise LedgerError(f"{directory / name} is not readable as {model.__name__}: {wrong}")
    try:
        with ledger.lock("mending"):
            found, wrong = _again(directory / name, model, wrong)
            if found is not None:
                return found
            mending = _Mending(ledger, directory)
            found = mending.mend(model, name, wrong)
    except OSError as e:
        raise LedgerError(f"{directory / name} is damaged ({wrong}) and cannot be mended: {e.strerror or e}") from e
    for change in mending.afterwards:
        ledger.update_state(change)
    if mending.beyond:
        raise LedgerError(mending.beyond)
    return found


def _again(path: Path, model: type[M], wrong: str) -> tuple[M | None, str]:
    """Another process may have mended it, or written it for the first time, meanwhile."""
    try:
        return parsed(model, path.read_bytes())
    except FileNotFoundError:
        return None, wrong


class _Mending:
    """One document's repair, under the ledger's lock; `afterwards` is for the build's state, whose lock is another."""

    def __init__(self, ledger: "BuildLedger", directory: Path) -> None:
        self._ledger = ledger
        self._directory = directory
        self.afterwards: list[Change] = []
        self.beyond = ""
        self._missing = False

    def mend(self, model: type[M], name: str, wrong: str) -> M | None:
        self._missing = wrong == MISSING
        found, became = self._anew(model, name)
        if found is not None:
            kept = set_aside(self._directory, name, stays=True)
            self._ledger._write_bytes(name, rendered(found))
        elif self.beyond:
            became, kept = BEYOND, ""
            self.beyond = f"{self._ledger.build}: {name} is damaged ({wrong}) and no checkpoint holds it; {self.beyond}"
            self.afterwards.append(lambda s: s.paused(self.beyond))
        elif self._missing:  # and nothing holds it: as if it had never been
            return None
        else:
            kept = set_aside(self._directory, name)
        if name.startswith("tasks/"):
            touch(self._directory)
        if not self.beyond or not any(m.document == name and m.wrong == wrong for m in self._ledger.mended()):
            at = SystemClock().now()
            note(self._directory, Mended(at=at, document=name, wrong=one_line(wrong, 300), became=became, kept=kept))
        return found

    def _anew(self, model: type[M], name: str) -> tuple[M | None, str]:
        """(the document, what was done); None when it counts as not written or, with `beyond`, cannot be done without."""
        folder, _, document = name.rpartition("/")
        key = folder.rpartition("/")[2]
        made: BaseModel | None = None
        match document:
            case "state.json":
                made, became = self._state()
            case "task.json":
                made, became = self._task(key), "made anew from the plan"
            case "landing.json" if folder.count("/") == 1:
                made, became = self._landing(key)
            case "handoff.json" if folder.count("/") == 1:
                return self._worked(model, name, key, self._landed_handoff)
            case "run.json" if folder.count("/") == 1:
                return self._worked(model, name, key, lambda _: None)
            case _:
                made, became = None, ""
        if isinstance(made, model):
            return made, became
        kept = self._checkpointed(model, name)
        if kept is not None and not (isinstance(kept, BuildReport) and kept.landed != self._landed()):
            return kept, "restored from the checkpoint"
        match document:
            case "request.json":
                self.beyond = "restore the file from a copy"
            case "plan.json":
                self.beyond = "restore the file from a copy, or remove it to have this round planned again"
            case "task.json":
                self.beyond = "restore the file from a copy"
            case "metrics.json" if self._runs_again(key):
                return None, "its iteration runs again, which does nothing twice"
        return None, "counts as not written"

    # --- the build ---------------------------------------------------------------------------------------------------

    def _state(self) -> tuple[BuildState | None, str]:
        if noted := self._ledger.phases():
            return noted[-1][1], "made anew from phases.jsonl"
        kept = self._checkpointed(BuildState, "state.json") or BuildState()
        attempts = dict(kept.attempts)
        for path in (self._directory / "iterations").glob("*/failure.json"):
            failure, _ = parsed(IterationFailure, path.read_bytes())
            short = path.parent.name
            attempts[short] = max(attempts.get(short, 1), failure.attempt if failure else 1)
        reason = f"its state was damaged and is known in part only; longshot resume {self._ledger.build}"
        if kept.phase is BuildPhase.FINISHED:
            return kept, "restored from the checkpoint"
        state = kept.model_copy(update={"phase": BuildPhase.PAUSED, "reason": reason, "attempts": attempts})
        return state, "paused, as far as the checkpoint knows it"

    def _landed(self) -> int:
        found = (self._raw(LandingOutcome, f"tasks/{t}/landing.json") for t in self._ledger.task_ids())
        return sum(o is not None and o.state is LandingState.LANDED for o in found)

    # --- tasks -------------------------------------------------------------------------------------------------------

    def _task(self, task: str) -> Task | None:
        plans = [p for p in self._plans() if any(t.id == task for t in p.tasks)]
        found = [t for p in plans for t in p.tasks if t.id == task and t.iteration == p.iteration]
        return found[0] if found else None

    def _landing(self, task: str) -> tuple[LandingOutcome | None, str]:
        """As the checkpoint has it, where that is certain; queued otherwise: the trailers on main tell the queue."""
        if self._raw(Handoff, f"tasks/{task}/handoff.json") is None:
            return None, ""
        kept = self._checkpointed(LandingOutcome, f"tasks/{task}/landing.json")
        run = self._raw(WorkerRun, f"tasks/{task}/run.json")
        if kept is not None and (run is None or kept.source in (None, run.head)) and self._borne_out(kept):
            return kept, "restored from the checkpoint"
        self._run_again(task)
        return LandingOutcome(task=task, state=LandingState.QUEUED), "queued again; what has landed is found on main"

    def _borne_out(self, kept: LandingOutcome) -> bool:
        """Does main say so, too? A checkpoint may have been made for a push that was refused."""
        match kept.state:
            case LandingState.LANDED:
                return bool(kept.commits) and self._on_main(kept.commits[-1])
            case LandingState.UNDONE:
                return bool(kept.undone_by) and self._on_main(kept.undone_by or "")
            case LandingState.SUPERSEDED:
                other = self._raw(LandingOutcome, f"tasks/{kept.superseded_by}/landing.json")
                return other is not None and other.state is LandingState.LANDED
        return False

    def _on_main(self, commit: str) -> bool:
        """Raises LedgerError while the target cannot be asked."""
        mirror = self._mirror()
        if mirror is None:
            return False
        try:
            return mirror.has(commit) and mirror.is_ancestor(commit, mirror.fetch())
        except LongshotError as e:
            raise LedgerError(f"a landing is damaged, and {mirror.target.repository} cannot be asked: {e}") from e

    def _worked(self, model: type[M], name: str, task: str, instead: Instead) -> tuple[M | None, str]:
        """A worker's handoff or run: one that was set aside since the checkpoint is of another worker."""
        kept = self._checkpointed(model, name)
        if kept is not None and kept not in self._earlier(model, task, name.rpartition("/")[2]):
            return kept, "restored from the checkpoint"
        landing = self._raw(LandingOutcome, f"tasks/{task}/landing.json")
        made = instead(landing)
        if isinstance(made, model):
            return made, "made anew from what landed"
        if landing is not None and landing.state in (LandingState.LANDED, LandingState.UNDONE, LandingState.SUPERSEDED):
            return None, "counts as not written; what became of the work stands"
        if model is WorkerRun and self._raw(Handoff, f"tasks/{task}/handoff.json") is None:
            return None, "counts as not written"
        if self._missing:
            return None, ""
        for other in ("landing.json", "handoff.json", "run.json"):  # of a worker whose result is lost
            if not name.endswith(other):
                set_aside(self._directory, f"tasks/{task}/{other}")
        self._run_again(task)
        return None, "its task runs again"

    def _landed_handoff(self, landing: LandingOutcome | None) -> Handoff | None:
        if landing is None or landing.state not in (LandingState.LANDED, LandingState.UNDONE):
            return None
        summary = "Its own words are lost: the document was damaged. What landed is on the branch."
        paths = list(landing.landed_paths[:5_000])
        return Handoff(task_id=landing.task, status=HandoffStatus.COMPLETE, summary=summary, files_changed=paths)

    def _earlier(self, model: type[M], task: str, document: str) -> list[M]:
        found = (self._directory / f"tasks/{task}").glob(f"earlier-*/{document}")
        read = (parsed(model, path.read_bytes())[0] for path in found)
        return [d for d in read if d is not None]

    # --- running again -----------------------------------------------------------------------------------------------

    def _run_again(self, task: str) -> None:
        """Have the iteration that dispatches it run once more, if it is over; a run of it meets the loss by itself."""
        for plan in self._plans():
            done = self._directory / f"iterations/{plan.iteration}/metrics.json"
            if any(t.id == task for t in plan.dispatched) and done.exists() and self._runs_again(plan.iteration):
                set_aside(self._directory, f"iterations/{plan.iteration}/metrics.json")

    def _runs_again(self, key: str) -> bool:
        """Count its attempt, because a run key is launched once. A finished build stays as it is."""
        state = self._raw(BuildState, "state.json")
        if state is not None and state.phase is BuildPhase.FINISHED:
            return False
        self.afterwards.append(
            lambda s: s.model_copy(update={"attempts": {**s.attempts, key: s.attempts.get(key, 1) + 1}})
        )
        return True

    # --- sources -----------------------------------------------------------------------------------------------------

    def _raw(self, model: type[M], name: str) -> M | None:
        """Read without mending: one document at a time."""
        try:
            return parsed(model, (self._directory / name).read_bytes())[0]
        except FileNotFoundError:
            return None

    def _plans(self) -> Iterator[Plan]:
        for path in sorted((self._directory / "iterations").glob("*/plan.json")):
            plan, _ = parsed(Plan, path.read_bytes())
            if plan is not None:
                yield plan

    def _checkpointed(self, model: type[M], name: str) -> M | None:
        """The newest whole version of it in the build's checkpoints."""
        for git, ref in self._checkpoints():
            versions = git.run("rev-list", f"--max-count={_VERSIONS}", ref, "--", name, ok=(0, 128)).text.split()
            if model is BuildRequest:  # whose settings and target are this person's, and nobody's who can push
                versions = []
            for commit in (ref, *versions):
                data = document_at(git, commit, name)
                found = parsed(model, data)[0] if data is not None else None
                if found is not None:
                    return found
        return None

    def _checkpoints(self) -> Iterator[tuple[Git, str]]:
        """The newest checkpoint in whichever mirror has one; else the one that the target has."""
        build = self._ledger.build
        mirrors = sorted((self._home.root / "mirrors").glob("*.git")) if (self._home.root / "mirrors").exists() else []
        found = False
        for path in mirrors:
            git = Git(path)
            oid = git.run("rev-parse", "-q", "--verify", local_ref(build), ok=(0, 1, 128)).text
            if oid:
                found = True
                yield git, oid
        mirror = None if found else self._mirror()
        if mirror is None:
            return
        with contextlib.suppress(LongshotError):  # out of reach: as good as none
            refs = [checkpoint_ref(build, form, mirror.target.branch) for form in (Form.REFS, Form.BRANCH)]
            there = mirror.read_remote(*refs).refs
            for ref in refs:
                if published := there.get(ref):
                    mirror.obtain(ref, published)
                    yield mirror.git, published

    def _mirror(self) -> Mirror | None:
        if self._directory.parent.name != "builds":  # a ledger somewhere else has no home, hence no mirrors
            return None
        request = self._raw(BuildRequest, "request.json")
        return Mirror(self._home, request.target) if request is not None else None

    @property
    def _home(self) -> Home:
        return Home(self._directory.parent.parent)
