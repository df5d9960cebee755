"""One round of landing: everything that waits is merged onto the target's head, in memory; nothing is published yet."""

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from longshot_dagster.adapters.branch import Branch
from longshot_dagster.adapters.checkpoint import Form
from longshot_dagster.adapters.landed import Landed
from longshot_dagster.adapters.merger import Conflicted, Merged, Merger, Names, Unchanged
from longshot_dagster.adapters.mirror import Mirror, Remote
from longshot_dagster.adapters.neighbours import Neighbours
from longshot_dagster.adapters.standings import Standings
from longshot_dagster.core import landing as policy
from longshot_dagster.core.clock import Clock
from longshot_dagster.core.errors import RepositoryError
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import BuildRequest, Handoff, Task, WorkerRun
from longshot_dagster.core.settings import MergeStrategy

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


class Round:
    """Merges what one build has queued. Used under the mirror's lock."""

    def __init__(self, standings: Standings, request: BuildRequest, mirror: Mirror, clock: Clock) -> None:
        self.standings = standings
        self.ledger = standings.ledger
        self.request = request
        self.mirror = mirror
        self.clock = clock
        self._neighbours = Neighbours(self.ledger, request)

    def merged(self, entries: Sequence[Entry], remote: Remote, form: Form, there: Landed) -> Batch:
        """Merge them in this order onto the target's head. `there`: what of the build is on the branch already."""
        batch = Batch(remote, remote.head)
        known = ChainMap(batch.outcomes, self.standings.outcomes())
        merger = Merger(self.mirror.git, self.clock.now())
        for entry in entries:
            try:
                outcome = self._recovered(entry, there, merger) or self._attempt(entry, batch, merger, known, form)
            except RepositoryError as e:
                batch.errors[entry.task.id] = e  # its own caller is told; the others land
                continue
            batch.outcomes[entry.task.id] = outcome
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
        ours = policy.ownership(task, self.standings.all_tasks(), landings)
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

    def _recovered(self, entry: Entry, there: Landed, merger: Merger) -> LandingOutcome | None:
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
