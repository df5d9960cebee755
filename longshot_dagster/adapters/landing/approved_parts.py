"""What a person has approved of a task whose other changes have landed already: just that, on top of them."""

import contextlib
from typing import Any

from longshot_dagster.adapters.landing.guarding import objection
from longshot_dagster.adapters.landing.landing_round import Batch
from longshot_dagster.adapters.landing.landing_rules import LandingRules
from longshot_dagster.adapters.ledger.approvals import approval_of
from longshot_dagster.adapters.ledger.ledger import BuildLedger
from longshot_dagster.adapters.repository.branch import Branch
from longshot_dagster.adapters.repository.landed import already_landed
from longshot_dagster.adapters.repository.merger import Conflicted, Merger, Names, Unchanged
from longshot_dagster.adapters.repository.mirror import Mirror, Remote
from longshot_dagster.core import landing as policy
from longshot_dagster.core.clock import Clock
from longshot_dagster.core.errors import LongshotError, WrongUse
from longshot_dagster.core.landing_records import Approval, Concern, ConcernKind, LandingOutcome, LandingState
from longshot_dagster.core.models import BuildRequest, Task, WorkerRun
from longshot_dagster.core.protected import approves, is_waiting, waiting_paths


class ApprovedParts:
    """Of one build's tasks."""

    def __init__(self, ledger: BuildLedger, request: BuildRequest, mirror: Mirror, clock: Clock) -> None:
        self.request = request
        self._ledger = ledger
        self._mirror = mirror
        self._clock = clock
        self._rules = LandingRules(ledger, request, mirror.git)

    def ready(self) -> list[Task]:
        """Tasks that wait for an approval which is there: its push failed, or whoever gave it died before one."""
        found = []
        for name, gist in self._ledger.gists().items():
            if is_waiting(gist.reason) and approval_of(self._ledger, name) is not None:
                with contextlib.suppress(LongshotError):  # its commits are gone: said to whoever approves it again
                    changes = self.protected(self.branch(name))
                    if approves(approval_of(self._ledger, name), name, changes):
                        found.append(self._ledger.existing_task(name))
        return found

    def added(self, task: Task, remote: Remote) -> Batch:
        """What was approved, on top of the branch that has the rest of the task already."""
        outcome = self._ledger.landing(task.id)
        branch = self.branch(task.id)
        changes = self.protected(branch)
        approval = approval_of(self._ledger, task.id)
        if outcome is None or outcome.state is not LandingState.LANDED or not waiting_paths(outcome):
            raise WrongUse(
                f"{task.id} has been taken up by somebody else meanwhile; longshot status {self._ledger.build}"
            )
        if not approves(approval, task.id, changes):
            raise WrongUse(f"what {task.id} wants to change is not what was approved; longshot approve shows it anew")
        batch = Batch(remote, remote.head)
        batch.outcomes[task.id] = self._merged(task, outcome, branch, changes, approval, batch)
        return batch

    def _merged(
        self,
        task: Task,
        outcome: LandingOutcome,
        branch: Branch,
        changes: tuple[policy.Change, ...],
        approval: Approval | None,
        batch: Batch,
    ) -> LandingOutcome:
        kept = frozenset(c.path for c in changes)
        merger = Merger(self._mirror.git, self._clock.now())
        text = f"{task.title}\n\nProtected paths of task {task.id}, approved by a person."
        names = Names(self.request.build, task.id, branch.tip, text)
        merged = merger.squash(batch.head, branch, branch.filtered(kept, merger.at), names)
        if isinstance(merged, Conflicted):
            where = ", ".join(f.path for f in merged.files[:3])
            return self._refused(outcome, f"approved, but it conflicts with the landing branch in {where}")
        facts: dict[str, Any] = {"approved": approval, "concerns": _without(outcome, changes)}
        shown = {c.shown for c in changes}
        facts["withheld_paths"] = tuple(p for p in outcome.withheld_paths if p not in shown)
        facts["landed_paths"] = tuple(dict.fromkeys((*outcome.landed_paths, *sorted(shown))))
        if isinstance(merged, Unchanged):  # also after a push of ours of which nothing was written down
            there = already_landed(merger.git, self.request, batch.remote).get((task.id, branch.tip), ())
            facts["commits"] = there if set(outcome.commits) <= set(there) else outcome.commits
            return outcome.moved(LandingState.LANDED, self._clock.now(), reason="", **facts)
        if wrong := objection(merger, branch, kept, batch.head, merged.commits[-1], kept):
            return self._refused(outcome, wrong.text)
        batch.head = merged.commits[-1]
        facts["commits"] = (*outcome.commits, *merged.commits)
        return outcome.moved(LandingState.LANDED, self._clock.now(), reason="", **facts)

    def _refused(self, outcome: LandingOutcome, why: str) -> LandingOutcome:
        """It stays as it has landed; nobody is asked for the same again."""
        left = tuple(c for c in outcome.concerns if c.kind is not ConcernKind.PROTECTED)
        said = Concern(kind=ConcernKind.CONFLICT, text=why[:1_000])
        return outcome.moved(LandingState.LANDED, self._clock.now(), reason=why[:1_000], concerns=(*left, said))

    def branch(self, task: str) -> Branch:
        run = self._run(task)
        if run.head is None or not self._mirror.has(run.head) or not self._mirror.has(run.base):
            raise WrongUse(
                f"the commits of {task} are not in the mirror any more; longshot retry gives it to a new worker"
            )
        return Branch(self._mirror.git, run.base, run.head)

    def _run(self, task: str) -> WorkerRun:
        run = self._ledger.run(task)
        if run is None:
            raise WrongUse(f"there is no record of a worker's run for {task}")
        return run

    def protected(self, branch: Branch) -> tuple[policy.Change, ...]:
        return policy.to_approve(branch.changes, self._rules.plain(branch))


def _without(outcome: LandingOutcome, changes: tuple[policy.Change, ...]) -> tuple[Concern, ...]:
    shown = {c.shown for c in changes}
    return tuple(c for c in outcome.concerns if c.kind is not ConcernKind.PROTECTED or c.path not in shown)
