"""The landing queue: finished branches become commits on the landing branch, each exactly once, many with one push.

In the order things happen: `land` notes the task as queued in the ledger; whoever gets the flock of the mirror is the
lander and takes everything that is queued in its build; it reads the target's refs, merges in memory, commits the
checkpoint, pushes both as one, and then writes what became of each task. A waiter finds its own task settled. If the
lander dies between push and ledger, the trailers on the landing branch tell the next one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from longshot_dagster.adapters.branch import Branch
from longshot_dagster.adapters.checkpoint import Checkpoint, Form, checkpoint_ref
from longshot_dagster.adapters.documents import locked, rendered
from longshot_dagster.adapters.intake import work_ref
from longshot_dagster.adapters.landed import LandedHistory, landed_ref
from longshot_dagster.adapters.ledger import BuildLedger
from longshot_dagster.adapters.merger import Conflicted, Merged, Merger, Names, Unchanged
from longshot_dagster.adapters.mirror import Mirror, Remote, Update
from longshot_dagster.adapters.neighbours import Neighbours
from longshot_dagster.adapters.orchestrator import DOCUMENT, Seat
from longshot_dagster.adapters.unlanded import unlanded, work_updates
from longshot_dagster.core import landing as policy
from longshot_dagster.core.clock import Clock
from longshot_dagster.core.errors import LedgerError, LostRace, RepositoryError, WrongUse
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import (
    BuildRequest,
    Handoff,
    Task,
    WorkerRun,
)
from longshot_dagster.core.settings import Checkpoint as CheckpointSetting
from longshot_dagster.core.settings import MergeStrategy

MAX_ROUNDS = 10
MAX_PATHS = 5_000  # withheld paths named in an outcome


@dataclass(frozen=True)
class Entry:
    """One queued task with everything its landing depends on."""

    task: Task
    handoff: Handoff
    run: WorkerRun | None


@dataclass
class Batch:
    """What one round has made so far; nothing of it counts before it is pushed and written."""

    remote: Remote
    head: str
    outcomes: dict[str, LandingOutcome] = field(default_factory=dict)
    forwarded: dict[str, str] = field(default_factory=dict)  # task -> tip, of fast-forwards
    errors: dict[str, RepositoryError] = field(default_factory=dict)
    beyond: policy.Ownership | None = None  # what other builds own; read when a branch strays
    documents: dict[str, BaseModel] = field(default_factory=dict)  # further ones that the checkpoint is to hold


class LandingQueue:
    """Lands one build's tasks. Any number of threads and processes may hold one; they meet in the ledger and the mirror.

    `gather_s`: batches of this queue begin at least so many seconds apart; the first of a quiet time never waits.
    """

    def __init__(
        self, ledger: BuildLedger, request: BuildRequest, mirror: Mirror, clock: Clock, gather_s: float = 0.0
    ) -> None:
        self.gather_s = gather_s
        self._began: float | None = None  # the last batch of this queue, monotonic
        self.ledger = ledger
        self.request = request
        self.mirror = mirror
        self.clock = clock
        self._neighbours = Neighbours(ledger, request)
        self._seat = Seat(mirror, request.build)
        self._history: LandedHistory | None = None
        self._given: dict[str, Task] = {}
        self._landed: dict[str, LandingOutcome] = {}

    def land(self, task: Task) -> LandingOutcome:
        """Land `task`'s branch, or say why not; a task that is settled already is returned as it is.

        Raises LedgerError when it has no handoff, RepositoryError when the target refuses or cannot be reached:
        then it stays queued and the next `land` or `drain` of the build takes it up.
        """
        if task.delegated:
            raise WrongUse(f"task {task.id} belongs to a subplanner: what lands are its children")
        self._given[task.id] = task
        queued = self._enqueue(task)
        if queued.settled:
            return queued
        self._gather()
        with locked(self.mirror.landing_lock):
            return self._settle(task.id)

    def drain(self) -> list[LandingOutcome]:
        """Land everything that has a handoff and is not settled; returns the outcomes of all worked tasks with one."""
        worked = [t for t in self._tasks().values() if self.ledger.handoff(t.id) is not None]
        waiting = [t for t in worked if not self._enqueue(t).settled]
        if waiting:
            with locked(self.mirror.landing_lock):
                for task in waiting:
                    self._settle(task.id)
        found = (self.ledger.landing(t.id) for t in worked)
        return [outcome for outcome in found if outcome is not None]

    def publish(self, made: Callable[[Remote], Batch]) -> Batch:
        """Push what `made` puts on the landing branch as it is now, and write its outcomes; made anew after a lost race.

        Raises what `made` raises, LostRace, and RepositoryError when the target refuses.
        """
        keeper = self._keeper()
        with locked(self.mirror.landing_lock):
            for _ in range(MAX_ROUNDS):
                batch = made(self._read_remote())
                if self._published(batch, keeper):
                    self._write(batch)
                    return batch
        raise LostRace(
            f"{self.mirror.target.branch} of {self.mirror.target.repository} moved {MAX_ROUNDS} times meanwhile"
        )

    def checkpoint(self, held: bool | None = None) -> str | None:
        """Commit the ledger's facts and, when CHECKPOINT is remote, push them; called after every plan.

        `held`: this home drives the build; None: it does while the build is under way. Returns why they could not be
        pushed, in one line: a checkpoint is never worth stopping a build for. Raises TakenOver.
        """
        with locked(self.mirror.landing_lock):
            try:
                return self._push_checkpoint(self._keeper(), held)
            except RepositoryError as e:
                return str(e)

    def _push_checkpoint(self, keeper: Checkpoint, held: bool | None) -> str | None:
        refused = None
        for _ in range(MAX_ROUNDS):
            remote = self._read_remote()
            updates = self._checkpoint_updates(keeper, remote, {}, {}, held)
            refused = self.mirror.push(updates) if updates else None
            if refused is None:
                self._note_beat(updates, held)
                return None
            weaker = keeper.form().weaker
            if weaker is not None and self._read_remote() == remote:
                keeper.remember(weaker)
        return refused

    # --- the queue ---------------------------------------------------------------------------------------------------

    def _enqueue(self, task: Task) -> LandingOutcome:
        with self.ledger.lock("landing"):
            existing = self.ledger.landing(task.id)
            if existing is not None:
                return existing
            if self.ledger.handoff(task.id) is None:
                raise LedgerError(f"task {task.id} has no handoff yet, so there is nothing to land")
            queued = LandingOutcome(
                task=task.id, state=LandingState.QUEUED, history=((LandingState.QUEUED, self.clock.now()),)
            )
            self.ledger.save_landing(queued)
            return queued

    def _gather(self) -> None:
        """Wait until `gather_s` after the last batch began: one push then lands what many workers hand in meanwhile."""
        if self._began is not None:
            since = self.clock.monotonic() - self._began
            if 0 <= since < self.gather_s:
                self.clock.sleep(self.gather_s - since)

    def _settle(self, task: str) -> LandingOutcome:
        """Under the mirror's lock: whoever came before may have landed it."""
        for _ in range(2):
            outcome = self.ledger.landing(task)
            if outcome is not None and outcome.settled:
                return outcome
            errors = self._land_queued()
            if task in errors:
                raise errors[task]
        raise LedgerError(f"task {task} was queued to land, but its documents are not in the ledger")

    def _land_queued(self) -> dict[str, RepositoryError]:
        """Rounds of read, merge, push until the target has taken a batch; returns what kept single tasks queued."""
        keeper = self._keeper()
        for _ in range(MAX_ROUNDS):
            entries = self._queued()
            if not entries:
                return {}
            self._began = self.clock.monotonic()
            batch = self._merge_all(entries, self._read_remote(), keeper.form())
            if self._published(batch, keeper):
                self._write(batch)
                if self._history is not None:
                    self._history.pushed(batch.remote.head, batch.head, batch.outcomes.values())
                return batch.errors
        raise LostRace(
            f"{self.mirror.target.branch} of {self.mirror.target.repository} moved {MAX_ROUNDS} times while landing; "
            "the tasks stay queued"
        )

    def _queued(self) -> list[Entry]:
        """Everything of the build that waits to land, by priority and then id."""
        entries = []
        for task in self._tasks().values():
            landing = self._landing(task.id)
            handoff = self.ledger.handoff(task.id) if landing and not landing.settled else None
            if handoff is not None:
                entries.append(Entry(task, handoff, self.ledger.run(task.id)))
        return sorted(entries, key=lambda e: (e.task.priority, e.task.id))

    def _tasks(self) -> dict[str, Task]:
        """Tasks that workers work on; an atomic delegated task appears as its subplanner's plan has it."""
        plans = (self.ledger.plan(key) for key in self.ledger.iterations())
        return self._given | {t.id: t for plan in plans if plan for t in plan.dispatched}

    def _landing(self, task: str) -> LandingOutcome | None:
        if task not in self._landed:
            found = self.ledger.landing(task)
            if found is None or found.state is not LandingState.LANDED:
                return found
            self._landed[task] = found  # while a build works nothing is undone, and it has a thousand of them
        return self._landed[task]

    # --- one round ---------------------------------------------------------------------------------------------------

    def _read_remote(self) -> Remote:
        build = self.request.build
        branch = self.mirror.target.branch
        refs = [checkpoint_ref(build, form, branch) for form in (Form.REFS, Form.BRANCH)]
        return self.mirror.read_remote(*refs, landed_ref(build, "*"), work_ref(build, "*"))

    def _merge_all(self, entries: list[Entry], remote: Remote, form: Form) -> Batch:
        batch = Batch(remote, remote.head)
        landings = {t: found for t in self.ledger.task_ids() if (found := self._landing(t)) is not None}
        self._history = self._history or LandedHistory(self.mirror.git, self.request)
        there = self._history.at(remote)
        merger = Merger(self.mirror.git, self.clock.now())
        for entry in entries:
            known = landings | batch.outcomes
            try:
                outcome = self._recovered(entry, there, merger) or self._attempt(entry, batch, merger, known, form)
            except RepositoryError as e:
                batch.errors[entry.task.id] = e  # its own caller is told; the others land
                continue
            batch.outcomes[entry.task.id] = outcome
        self._supersede(batch, landings | batch.outcomes)
        return batch

    def _attempt(
        self, entry: Entry, batch: Batch, merger: Merger, landings: Mapping[str, LandingOutcome], form: Form
    ) -> LandingOutcome:
        """Merge one branch onto the batch's head, which moves when that succeeds."""
        task, run = entry.task, entry.run
        if refusal := policy.landable(entry.handoff, run):
            return self._ended(task, LandingState.WITHHELD, refusal.text, concerns=(refusal,))
        if run is None or run.head is None or run.head == run.base:
            return self._ended(task, LandingState.NOOP, "nothing was committed")
        if not self.mirror.has(run.head) or not self.mirror.has(run.base):
            return self._ended(task, LandingState.WITHHELD, "its commits are not in the mirror; run the task again")
        branch = Branch(merger.git, run.base, run.head)
        if not branch.changes:
            return self._ended(task, LandingState.NOOP, "its commits change nothing", source=run.head)
        parts = policy.split(branch.changes, task, self._owners(entry.task, branch, batch, landings))
        facts: dict[str, Any] = {"source": run.head, "onto": batch.head, "concerns": parts.concerns}
        facts["withheld_paths"] = _shown(parts.withheld)[:MAX_PATHS]
        if not parts.kept:
            return self._ended(task, LandingState.WITHHELD, "nothing of it is in scope", **facts)
        wanted = self.request.settings.merge_strategy
        names = Names(self.request.build, task.id, branch.tip, _text(task, entry.handoff))
        merged, squashed = merger.by_strategy(wanted, batch.head, branch, parts, names, form is Form.REFS)
        facts["concerns"] = (*parts.concerns, *squashed)
        if isinstance(merged, Unchanged):
            return self._ended(task, LandingState.NOOP, f"{self.mirror.target.branch} already holds it", **facts)
        if isinstance(merged, Conflicted):
            return self._conflict(task, merged, landings, facts)
        if strayed := self._guarded(merged, batch.head, branch, parts, merger):
            text = f"landing it would also change {', '.join(_shown(strayed)[:5])}, which its branch never touched"
            return self._ended(task, LandingState.WITHHELD, text, **facts)
        batch.head = merged.commits[-1]
        if merged.strategy is MergeStrategy.FAST_FORWARD:
            batch.forwarded[task.id] = branch.tip
        return self._ended(
            task,
            LandingState.LANDED,
            strategy=merged.strategy.value,
            commits=merged.commits,
            landed_paths=_shown(merged.paths),
            **facts,
        )

    def _owners(
        self, task: Task, branch: Branch, batch: Batch, landings: Mapping[str, LandingOutcome]
    ) -> policy.Ownership:
        """Who owns what beside `task`; of other builds on the branch only what a path outside its scope makes matter."""
        if not policy.strays(branch.changes, task):
            return policy.Ownership({}, {})  # nobody else is asked about
        ours = policy.ownership(task, self._all_tasks(), landings)
        batch.beyond = batch.beyond or self._neighbours.holdings()
        return ours.beside(batch.beyond)

    def _guarded(
        self, merged: Merged, onto: str, branch: Branch, parts: policy.Split, merger: Merger
    ) -> tuple[str, ...]:
        strayed = policy.guard(merged.paths, parts.kept, {})
        return policy.guard(strayed, parts.kept, merger.renamed(branch.base, onto)) if strayed else ()

    def _conflict(
        self, task: Task, merged: Conflicted, landings: Mapping[str, LandingOutcome], facts: Mapping[str, Any]
    ) -> LandingOutcome:
        paths = {f.path for f in merged.files}
        others = tuple(
            o.task for o in landings.values() if o.state is LandingState.LANDED and paths & set(o.landed_paths)
        )
        named = (*others, *self._neighbours.touching(paths))
        text = f"conflicts in {', '.join(sorted(paths)[:5])}" + (f" with {', '.join(named[:5])}" if named else "")
        return self._ended(
            task, LandingState.CONFLICT, text[:2_000], conflicts=merged.files, conflict_with=others, **facts
        )

    def _ended(self, task: Task, state: LandingState, reason: str = "", **facts: Any) -> LandingOutcome:
        queued = self.ledger.landing(task.id) or LandingOutcome(task=task.id, state=LandingState.QUEUED)
        return queued.moved(state, self.clock.now(), reason=reason, **facts)

    def _all_tasks(self) -> list[Task]:
        worked = self._tasks()
        others = (self.ledger.existing_task(t) for t in self.ledger.task_ids() if t not in worked)
        return [*worked.values(), *others]

    def _supersede(self, batch: Batch, landings: Mapping[str, LandingOutcome]) -> None:
        """Whatever a landed task replaces needs no landing of its own any more, whichever of the two ended first."""
        tasks, at = self._tasks(), self.clock.now()
        for task in tasks.values():
            if task.id not in landings or landings[task.id].state is not LandingState.LANDED:
                continue
            for name in policy.replaced_by(task, tasks):
                outcome = batch.outcomes.get(name) or landings.get(name)
                if name not in tasks or (outcome is None and self.ledger.handoff(name) is None):
                    continue
                if outcome is None:
                    done = ((LandingState.SUPERSEDED, at),)
                    batch.outcomes[name] = LandingOutcome(
                        task=name, state=LandingState.SUPERSEDED, superseded_by=task.id, history=done
                    )
                elif outcome.state in policy.SUPERSEDABLE:
                    batch.outcomes[name] = outcome.moved(LandingState.SUPERSEDED, at, superseded_by=task.id)

    # --- publication -------------------------------------------------------------------------------------------------

    def _published(self, batch: Batch, keeper: Checkpoint) -> bool:
        """Push what the batch made. False: look at the target again; it moved, or wants the checkpoint elsewhere."""
        if batch.head == batch.remote.head:
            return True
        target, build = self.mirror.target, self.request.build
        branch = f"refs/heads/{target.branch}"
        updates = [Update(branch, batch.remote.refs.get(branch), batch.head)]
        for task, tip in batch.forwarded.items():
            ref = landed_ref(build, task)
            updates.append(Update(ref, batch.remote.refs.get(ref), tip))
        settled = {f"tasks/{o.task}/landing.json": o for o in batch.outcomes.values()}
        documents = {name: rendered(found) for name, found in (batch.documents | settled).items()}
        beside = self._checkpoint_updates(keeper, batch.remote, documents, batch.outcomes)
        updates += beside
        refused = self.mirror.push(updates)
        if refused is None:
            self._note_beat(beside)
            return True
        if self._read_remote() != batch.remote:
            return False
        weaker = keeper.form().weaker
        if len(updates) == 1 or weaker is None:
            keeper.remember(Form.REFS)  # the landing branch itself is refused, which says nothing about the checkpoint
            raise RepositoryError(f"{target.repository} refused the push to {target.branch}: {refused}")
        keeper.remember(weaker)
        return False

    def _checkpoint_updates(
        self,
        keeper: Checkpoint,
        remote: Remote,
        documents: Mapping[str, bytes],
        outcomes: Mapping[str, LandingOutcome],
        held: bool | None = None,
    ) -> list[Update]:
        """Commit a checkpoint; what publishes it, first, with the work that has not landed. Raises TakenOver."""
        form, now = keeper.form(), self.clock.now()
        if self.request.settings.checkpoint is CheckpointSetting.LOCAL or form is Form.NONE:
            keeper.commit(keeper.local_head(), documents, now)
            return []
        ref = checkpoint_ref(self.request.build, form, self.mirror.target.branch)
        parent = remote.refs.get(ref)
        if parent is not None:
            self.mirror.obtain(ref, parent)
            self._seat.check(keeper, parent)
        mine = {DOCUMENT: self._seat.document(now, not self._drives(held))}
        update = Update(ref, parent, keeper.commit(parent, {**documents, **mine}, now))
        if form is not Form.REFS:  # work is no branch of anybody's: it stays in the mirror
            return [update]
        waiting = unlanded(self.ledger, lambda t: outcomes.get(t) or self._landing(t))
        here = {task: tip for task, tip in waiting.items() if self.mirror.has(tip)}
        return [update, *work_updates(self.request.build, here, remote.refs)]

    def _drives(self, held: bool | None) -> bool:
        return self.ledger.state().under_way if held is None else held

    def _note_beat(self, published: Sequence[Update], held: bool | None = None) -> None:
        """Another process of this home need not look whose checkpoint this is."""
        if published and published[0].new:
            self._seat.noted(published[0].new, self.clock.now(), not self._drives(held))

    def _keeper(self) -> Checkpoint:
        return Checkpoint(self.mirror.git, self.mirror.path, self.ledger.directory, self.request.build)

    def _write(self, batch: Batch) -> None:
        with self.ledger.lock("landing"):
            for outcome in batch.outcomes.values():
                self.ledger.save_landing(outcome)

    # --- did it land? ------------------------------------------------------------------------------------------------

    def _recovered(
        self, entry: Entry, there: Mapping[tuple[str, str], tuple[str, ...]], merger: Merger
    ) -> LandingOutcome | None:
        """The outcome of a task that was pushed by a lander who died before writing it down."""
        source = entry.run.head if entry.run else None
        commits = there.get((entry.task.id, source or ""))
        if commits is None or entry.run is None:
            return None
        before = entry.run.base if commits == (source,) else f"{commits[0]}^"
        return self._ended(
            entry.task,
            LandingState.LANDED,
            "found on the landing branch",
            source=source,
            commits=commits,
            strategy=self.request.settings.merge_strategy.value,
            landed_paths=_shown(merger.changed(before, commits[-1])),
        )


def _text(task: Task, handoff: Handoff) -> str:
    """Subject and body of a commit of the queue's own."""
    return f"{task.description.strip().splitlines()[0]}\n\n{handoff.summary}"


def _shown(paths: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(p.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for p in paths)
