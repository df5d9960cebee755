"""One round of landing: everything that waits is merged onto the target's head, in memory; nothing is published yet."""

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from longshot_dagster.adapters.landing.batch import Entry, in_order
from longshot_dagster.adapters.landing.guarding import objection
from longshot_dagster.adapters.landing.ladder import Ladder, resolved, rungs_of
from longshot_dagster.adapters.landing.landing_rules import LandingRules
from longshot_dagster.adapters.landing.lock_files import LockFiles
from longshot_dagster.adapters.landing.neighbours import Neighbours
from longshot_dagster.adapters.landing.standings import Standings
from longshot_dagster.adapters.ledger.checkpoint import Form
from longshot_dagster.adapters.repository.branch import Branch
from longshot_dagster.adapters.repository.found_landed import found_landed
from longshot_dagster.adapters.repository.intake import work_ref
from longshot_dagster.adapters.repository.landed import Landed
from longshot_dagster.adapters.repository.merger import Conflicted, Merger, Names, Unchanged
from longshot_dagster.adapters.repository.mirror import Mirror, Remote
from longshot_dagster.core import landing as policy
from longshot_dagster.core.clock import Clock
from longshot_dagster.core.errors import RepositoryError
from longshot_dagster.core.ids import task_partition
from longshot_dagster.core.landing_records import LANDING_TRANSITIONS, LandingOutcome, LandingState
from longshot_dagster.core.models import BuildRequest, Handoff, Task, WorkerRun
from longshot_dagster.core.protected import waiting
from longshot_dagster.core.scope import covers
from longshot_dagster.core.settings import MergeStrategy

MAX_PATHS = 5_000  # withheld paths named in an outcome


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
    branches: dict[str, Branch] = field(default_factory=dict)  # by task, as far as they have been read


class Round:
    """Merges what one build has queued. Used under the mirror's lock."""

    def __init__(
        self,
        standings: Standings,
        request: BuildRequest,
        mirror: Mirror,
        clock: Clock,
        locks: LockFiles | None = None,
    ) -> None:
        self.locks = locks
        self.standings = standings
        self.ledger = standings.ledger
        self.request = request
        self.mirror = mirror
        self.clock = clock
        self._neighbours = Neighbours(self.ledger, request)
        self.rules = LandingRules(self.ledger, request, mirror.git)

    def merged(self, entries: Sequence[Entry], remote: Remote, form: Form, there: Landed) -> Batch:
        """Merge them onto the target's head, the order is ours. `there`: what of the build is said to be there already."""
        ordered = in_order(entries, self.mirror)
        batch = Batch(remote, remote.head, branches=ordered.branches)
        known = ChainMap(batch.outcomes, self.standings.outcomes())
        merger = Merger(self.mirror.git, self.clock.now())
        for entry in ordered.entries:
            try:
                found = self._recovered(entry, there, batch, merger, known)
                outcome = found or self._attempt(entry, batch, merger, known, form)
            except RepositoryError as e:
                batch.errors[entry.task.id] = e  # its own caller is told; the others land
                continue
            batch.outcomes[entry.task.id] = outcome
        self._make_lock_files(batch)
        self._supersede(batch, known)
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
        if not self._is_here(task, run, batch.remote):
            return self._ended(task, LandingState.WITHHELD, "its commits are not in the mirror; run the task again")
        branch = batch.branches.get(task.id) or Branch(merger.git, run.base, run.head)
        if not branch.changes:
            return self._ended(task, LandingState.NOOP, "its commits change nothing", source=run.head)
        rules = self.rules.of(task.id, branch)
        parts = policy.split(branch.changes, task, self._owners(entry.task, branch, batch, landings), rules)
        facts: dict[str, Any] = {"source": run.head, "onto": batch.head, "concerns": parts.concerns}
        facts["withheld_paths"] = _shown(parts.withheld)[:MAX_PATHS]
        facts["approved"] = self.rules.approval(task.id) if rules.approved else None
        waits = waiting(self.request.build, task.id, parts.concerns)
        if not parts.kept:
            return self._ended(task, LandingState.WITHHELD, waits or "nothing of it is in scope", **facts)
        wanted = self.request.settings.merge_strategy
        names = Names(self.request.build, task.id, branch.tip, _text(task, entry.handoff))
        merged, squashed = merger.by_strategy(wanted, batch.head, branch, parts, names, form is Form.REFS)
        facts["concerns"] = (*parts.concerns, *squashed)
        if isinstance(merged, Conflicted):
            ladder = Ladder(merger.git, rungs_of(self.request.settings))
            found = resolved(ladder, merger, merged, batch.head, branch, names, wanted)
            if found is None:
                return self._conflict(task, merged, landings, facts)
            merged, facts["resolutions"], said = found
            facts["concerns"] = (*parts.concerns, *said)
        if isinstance(merged, Unchanged):
            return self._ended(task, LandingState.NOOP, f"{self.mirror.target.branch} already holds it", **facts)
        if wrong := objection(merger, branch, parts.kept, batch.head, merged.commits[-1], rules.approved):
            facts["concerns"] = (*facts["concerns"], wrong)
            return self._ended(task, LandingState.WITHHELD, wrong.text, **facts | {"approved": None, "resolutions": ()})
        batch.head = merged.commits[-1]
        if merged.strategy is MergeStrategy.FAST_FORWARD:
            batch.forwarded[task.id] = branch.tip
        return self._ended(
            task,
            LandingState.LANDED,
            waits,
            strategy=merged.strategy.value,
            commits=merged.commits,
            landed_paths=_shown(merged.paths),
            conflicts=(),  # of an earlier attempt
            conflict_with=(),
            **facts,
        )

    def _make_lock_files(self, batch: Batch) -> None:
        """Put them on top of what has landed in this batch: main and its lock files change in one push."""
        if self.locks is None or batch.head == batch.remote.head:
            return
        made = self.locks.made_anew(self.mirror.git, batch.head, batch.outcomes, self.clock.now())
        if made is not None:
            batch.head = made.head
            batch.outcomes.update(made.outcomes)

    def _owners(
        self, task: Task, branch: Branch, batch: Batch, landings: Mapping[str, LandingOutcome]
    ) -> policy.Ownership:
        """Who owns what beside `task`; of other builds on the branch only what a path outside its scope makes matter."""
        if not policy.strays(branch.changes, task):
            return policy.Ownership({}, {})  # nobody else is asked about
        ours = policy.ownership(task, self.standings.all_tasks(), landings)
        batch.beyond = batch.beyond or self._neighbours.holdings()
        owners = ours.beside(batch.beyond)
        free = [c.path for c in branch.changes if not covers(task.scope, c.path) and owners.owner(c.path) is None]
        taken = self._neighbours.taken_since(self.mirror.git, branch.base, batch.head, free, landings)
        mine = {task_partition(self.request.build, name) for name in (task.id, *task.replaces)}
        return owners.beside(policy.Ownership({}, {p: by for p, by in taken.items() if by not in mine}))

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
        if LandingState.QUEUED in LANDING_TRANSITIONS[queued.state]:  # a conflict that is looked at again
            queued = queued.moved(LandingState.QUEUED, self.clock.now())
        return queued.moved(state, self.clock.now(), reason=reason, **facts)

    def _supersede(self, batch: Batch, landings: Mapping[str, LandingOutcome]) -> None:
        """Whatever a landed task replaces needs no landing of its own any more, whichever of the two ended first."""
        tasks, at = self.standings.tasks(), self.clock.now()
        for task in tasks.values():
            if not task.replaces or task.id not in landings or landings[task.id].state is not LandingState.LANDED:
                continue
            for name in policy.replaced_by(task, tasks):
                outcome = batch.outcomes.get(name) or self.ledger.landing(name)
                if name not in tasks or (outcome is None and self.ledger.handoff(name) is None):
                    continue
                if outcome is None:
                    done = ((LandingState.SUPERSEDED, at),)
                    batch.outcomes[name] = LandingOutcome(
                        task=name, state=LandingState.SUPERSEDED, superseded_by=task.id, history=done
                    )
                elif outcome.state in policy.SUPERSEDABLE:
                    batch.outcomes[name] = outcome.moved(LandingState.SUPERSEDED, at, superseded_by=task.id)

    def _is_here(self, task: Task, run: WorkerRun, remote: Remote) -> bool:
        """Are a branch's commits in the mirror? What only the target still keeps of unlanded work is fetched back."""
        ref = work_ref(self.request.build, task.id)
        if run.head and not self.mirror.has(run.head) and remote.refs.get(ref) == run.head:
            self.mirror.obtain(ref, run.head)
        return bool(run.head) and self.mirror.has(str(run.head)) and self.mirror.has(run.base)

    def _recovered(
        self, entry: Entry, there: Landed, batch: Batch, merger: Merger, landings: Mapping[str, LandingOutcome]
    ) -> LandingOutcome | None:
        """The outcome of a task that was pushed by a lander who died before writing it down.

        Trailers only say where to look. Where the branch itself is gone there is nothing to hold them against, and they
        count: the task would land twice otherwise.
        """
        task, run = entry.task, entry.run
        source = run.head if run else None
        commits = there.get((task.id, source or ""))
        if commits is None or run is None or source is None:
            return None
        facts: dict[str, Any] = {"source": source}
        if self._is_here(task, run, batch.remote):
            branch = batch.branches.get(task.id) or Branch(merger.git, run.base, source)
            rules = self.rules.of(task.id, branch)
            parts = policy.split(branch.changes, task, self._owners(task, branch, batch, landings), rules)
            found = found_landed(merger, batch.remote.head, commits, branch, parts)
            if found is None:
                return None
            commits, paths = found.commits, found.paths
            facts |= {"onto": found.onto, "concerns": found.parts.concerns}
            facts["withheld_paths"] = _shown(found.parts.withheld)[:MAX_PATHS]
        else:
            paths = merger.changed(f"{commits[0]}^", commits[-1])
        wanted = self.request.settings.merge_strategy
        if commits != (source,) and wanted is MergeStrategy.FAST_FORWARD:
            wanted = MergeStrategy.SQUASH
        facts |= {"commits": commits, "strategy": wanted.value, "landed_paths": _shown(paths)}
        return self._ended(task, LandingState.LANDED, "found on the landing branch", **facts)


def _text(task: Task, handoff: Handoff) -> str:
    """Subject and body of a commit of the queue's own."""
    return f"{task.description.strip().splitlines()[0]}\n\n{handoff.summary}"


def _shown(paths: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(p.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for p in paths)
