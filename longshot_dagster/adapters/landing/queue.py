"""The landing queue: finished branches become commits on the landing branch, each exactly once, many with one push.

In the order things happen: `land` notes the task as queued in the ledger; whoever gets the flock of the mirror is the
lander and takes everything that is queued in its build; it reads the target's refs, merges in memory, commits the
checkpoint, pushes both as one, and then writes what became of each task. A waiter finds its own task settled. If the
lander dies between push and ledger, the trailers on the landing branch tell the next one.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from longshot_dagster.adapters.host.documents import locked, rendered
from longshot_dagster.adapters.landing.approved_parts import ApprovedParts
from longshot_dagster.adapters.landing.batch import Entry
from longshot_dagster.adapters.landing.landing_round import Batch, Round
from longshot_dagster.adapters.landing.lock_files import LockFiles
from longshot_dagster.adapters.landing.second_look import worth_another_look
from longshot_dagster.adapters.landing.standings import Standings
from longshot_dagster.adapters.landing.unlanded import unlanded, work_updates
from longshot_dagster.adapters.ledger.checkpoint import Checkpoint, Form, checkpoint_ref
from longshot_dagster.adapters.ledger.ledger import BuildLedger
from longshot_dagster.adapters.ledger.orchestrator import DOCUMENT, Seat
from longshot_dagster.adapters.repository.intake import work_ref
from longshot_dagster.adapters.repository.landed import LandedHistory, landed_ref
from longshot_dagster.adapters.repository.mirror import Mirror, Remote, Update
from longshot_dagster.core.clock import Clock
from longshot_dagster.core.errors import LedgerError, LostRace, PushRefused, RepositoryError, WrongUse
from longshot_dagster.core.landing_records import Concern, ConcernKind, LandingOutcome, LandingState
from longshot_dagster.core.models import MAX_LINE, BuildRequest, Task
from longshot_dagster.core.protected import waiting_paths
from longshot_dagster.core.settings import Checkpoint as CheckpointSetting

MAX_ROUNDS = 10
_REFUSED_ALONE = 3  # pushes of one task each, none taken: the target takes nothing at all


class LandingQueue:
    """Lands one build's tasks. Any number of threads and processes may hold one; they meet in the ledger and the mirror.

    `gathering_s`: batches of this queue begin at least so many seconds apart, given how many tasks are at work; the
    first of a quiet time never waits.
    `locks` makes lock files anew; without it they stay as they are.
    """

    def __init__(
        self,
        ledger: BuildLedger,
        request: BuildRequest,
        mirror: Mirror,
        clock: Clock,
        gathering_s: Callable[[int], float] = lambda at_work: 0.0,
        locks: LockFiles | None = None,
    ) -> None:
        self._gathering_s = gathering_s
        self._began: float | None = None  # the last batch of this queue, monotonic
        self.ledger = ledger
        self.request = request
        self.mirror = mirror
        self.clock = clock
        self._seat = Seat(mirror, request.build)
        self._history = LandedHistory(mirror.git, request)
        self._standings = Standings(ledger)
        self._approved = ApprovedParts(ledger, request, mirror, clock)
        self._round = Round(self._standings, request, mirror, clock, locks)

    def land(self, task: Task) -> LandingOutcome:
        """Land `task`'s branch, or say why not; a task that is settled already is returned as it is.

        Raises LedgerError when it has no handoff, RepositoryError when the target refuses or cannot be reached:
        then it stays queued and the next `land` or `drain` of the build takes it up.
        """
        if task.delegated:
            raise WrongUse(f"task {task.id} belongs to a subplanner: what lands are its children")
        self._standings.given(task)
        queued = self._enqueue(task)
        if queued.settled:
            return queued
        self._gather()
        with locked(self.mirror.landing_lock):
            return self._settle(task.id)

    def drain(self) -> list[LandingOutcome]:
        """Land everything that has a handoff and is not settled, and what a person has approved of what is.

        Returns the outcomes of all worked tasks with one.
        """
        worked = self._standings.handed_in()
        approved = self._approved.ready()
        self._take_up(approved)
        waiting = [t for t in worked if not self._enqueue(t).settled]
        if waiting:
            with locked(self.mirror.landing_lock):
                for task in waiting:
                    self._settle(task.id)
        self._land_beside(approved)
        found = (self.ledger.landing(t.id) for t in worked)
        return [outcome for outcome in found if outcome is not None]

    def look_again(self, *tasks: str) -> list[LandingOutcome | None]:
        """Merge tasks in conflict once more where that may help (`worth_another_look`); their outcomes now.

        Raises RepositoryError and LostRace as `land` does; then they are in conflict as before.
        """
        keeper, git = self._keeper(), self.mirror.git

        def merged(remote: Remote) -> Batch:
            self._standings.to_land()  # what the others have become is known from here on
            known, entries = self._standings.tasks(), []
            for task in tasks:
                handoff, outcome = self.ledger.handoff(task), self.ledger.landing(task)
                if task in known and handoff and worth_another_look(git, self.request, outcome, remote.head):
                    entries.append(Entry(known[task], handoff, self.ledger.run(task)))
            if not entries:
                return Batch(remote, remote.head)
            return self._round.merged(entries, remote, keeper.form(), self._history.at(remote))

        outcomes = [self.ledger.landing(task) for task in tasks]
        if not any(o is not None and o.state is LandingState.CONFLICT for o in outcomes):
            return outcomes
        self.publish(merged)
        return [self.ledger.landing(task) for task in tasks]

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
                left_out = self.mirror.left_out
                return f"what has not landed is only here: {left_out}" if left_out else None
            weaker = keeper.form().weaker
            if weaker is not None and self._read_remote() == remote:
                keeper.remember(weaker)
        return refused

    # --- what was approved, and could not be pushed then ---------------------------------------------------------------

    def _take_up(self, tasks: Sequence[Task]) -> None:
        """Those that were withheld whole are queued like any other."""
        with self.ledger.lock("landing"):
            for task in tasks:
                outcome = self.ledger.landing(task.id)
                if outcome is not None and outcome.state is LandingState.WITHHELD:
                    self.ledger.save_landing(outcome.moved(LandingState.QUEUED, self.clock.now()))
                    self._standings.queued(task.id)

    def _land_beside(self, tasks: Sequence[Task]) -> None:
        """Of those that have landed, what was approved since. A target that refuses it takes the rest all the same."""
        for task in tasks:
            outcome = self.ledger.landing(task.id)
            if outcome is not None and outcome.state is LandingState.LANDED and waiting_paths(outcome):
                with contextlib.suppress(RepositoryError, WrongUse):
                    self.publish(partial(self._approved.added, task))

    # --- the queue ---------------------------------------------------------------------------------------------------

    def _enqueue(self, task: Task) -> LandingOutcome:
        if (known := self.ledger.landing(task.id)) is not None and known.settled:
            return known
        with self.ledger.lock("landing"):
            existing = self.ledger.landing(task.id)
            if existing is not None:
                self._standings.queued(task.id)
                return existing
            if self.ledger.handoff(task.id) is None:
                raise LedgerError(f"task {task.id} has no handoff yet, so there is nothing to land")
            queued = LandingOutcome(
                task=task.id, state=LandingState.QUEUED, history=((LandingState.QUEUED, self.clock.now()),)
            )
            self.ledger.save_landing(queued)
            self._standings.queued(task.id)
            return queued

    def _gather(self) -> None:
        """Wait until `gathering_s` after the last batch began: one push then lands what many workers hand in meanwhile."""
        if self._began is not None:
            at_work = min(self._standings.unfinished, self.request.settings.max_workers)
            since, apart = self.clock.monotonic() - self._began, self._gathering_s(at_work)
            if 0 <= since < apart:
                self.clock.sleep(apart - since)

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
        """Rounds of read, merge, push until what is queued now has landed; returns what kept single tasks queued.

        What is queued meanwhile is for the next batch, which gathers.
        Each race that is lost halves the next batch: it is merged in half the time, and even where somebody pushes
        without pause the queue gets on. So does each batch that the target refuses, until it is known what it refuses.
        """
        keeper = self._keeper()
        errors: dict[str, RepositoryError] = {}
        refused: dict[str, PushRefused] = {}
        lost, halved, taken = 0, 0, False
        entries = self._queued()
        while entries:
            if lost == MAX_ROUNDS:
                raise LostRace(
                    f"{self.mirror.target.branch} of {self.mirror.target.repository} moved {MAX_ROUNDS} times while "
                    "landing; the tasks stay queued"
                )
            share = entries[: max(1, len(entries) >> (lost + halved))]
            self._began = self.clock.monotonic()
            remote = self._read_remote()
            self._expect_branch(remote)
            batch = self._round.merged(share, remote, keeper.form(), self._history.at(remote))
            try:
                published = self._published(batch, keeper)
            except PushRefused as e:
                if len(share) > 1:
                    halved += 1
                    continue
                refused[share[0].task.id] = e
                if not taken and len(refused) >= _REFUSED_ALONE:
                    raise  # it is not about what they hold
                entries = entries[1:]
                continue
            if not published:
                lost += 1
                continue
            self._write(batch)
            entries = [e for e in entries if e.task.id not in batch.outcomes and e.task.id not in batch.errors]
            self._history.pushed(batch.remote.head, batch.head, batch.outcomes.values())
            errors |= batch.errors
            taken = taken or batch.head != batch.remote.head
            lost, halved = max(0, lost - 1), max(0, halved - 1)
        return errors | (self._withhold(refused) if taken else refused)

    def _withhold(self, refused: Mapping[str, PushRefused]) -> dict[str, RepositoryError]:
        """The target took others at the same time: it is about what these hold. Their work is kept, and the planner told."""
        with self.ledger.lock("landing"):
            for task, e in refused.items():
                queued = self.ledger.landing(task)
                assert queued is not None
                concern = Concern(kind=ConcernKind.REFUSED, text=str(e)[:MAX_LINE])
                reason = f"{self.mirror.target.repository} does not take it"
                withheld = queued.moved(
                    LandingState.WITHHELD, self.clock.now(), reason=reason, concerns=(*queued.concerns, concern)
                )
                self.ledger.save_landing(withheld)
                self._standings.wrote([withheld])
        return {}

    def _expect_branch(self, remote: Remote) -> None:
        """Raises RepositoryError when the landing branch is gone and had held what landed: begun anew, it would lack that."""
        target = self.mirror.target
        if f"refs/heads/{target.branch}" in remote.refs:
            return
        landed = [o for o in self._standings.outcomes().values() if o.state is LandingState.LANDED and o.commits]
        if landed:
            newest = max(landed, key=lambda o: o.history[-1][1] if o.history else 0.0).commits[-1]
            raise RepositoryError(
                f"{target.branch} is gone from {target.repository}, and with it what {len(landed)} tasks had landed: "
                f"push commit {newest} there again as {target.branch}, then longshot resume {self.request.build}"
            )

    def _queued(self) -> list[Entry]:
        """Everything of the build that waits to land, by priority and then id."""
        entries = []
        for task in self._standings.to_land():
            handoff = self.ledger.handoff(task.id)
            if handoff is not None:
                entries.append(Entry(task, handoff, self.ledger.run(task.id)))
        return sorted(entries, key=lambda e: (e.task.priority, e.task.id))

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
            if not self.mirror.left_out:  # else the next checkpoint, which is due at once, says why
                self._note_beat(beside)
            return True
        if self._read_remote() != batch.remote:
            return False
        weaker = keeper.form().weaker
        if len(updates) == 1 or weaker is None:
            keeper.remember(Form.REFS)  # the landing branch itself is refused, which says nothing about the checkpoint
            raise PushRefused(f"{target.repository} refused the push to {target.branch}: {refused}")
        keeper.remember(weaker)
        return False

    def _read_remote(self) -> Remote:
        build = self.request.build
        branch = self.mirror.target.branch
        refs = [checkpoint_ref(build, form, branch) for form in (Form.REFS, Form.BRANCH)]
        return self.mirror.read_remote(*refs, landed_ref(build, "*"), work_ref(build, "*"))

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
        waiting = unlanded(self.ledger, outcomes)
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
        self._standings.wrote(batch.outcomes.values())
