"""Landing what a person has approved: the change as it is shown to them, and then just that on the landing branch."""

import os
import platform
import pwd
import shlex
from dataclasses import dataclass

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.landing.approved_parts import ApprovedParts
from longshot_dagster.adapters.landing.queue import LandingQueue
from longshot_dagster.adapters.ledger.approvals import approval_of, save_approval
from longshot_dagster.adapters.ledger.ledger import BuildLedger
from longshot_dagster.adapters.repository.mirror import Mirror
from longshot_dagster.core import landing as policy
from longshot_dagster.core.clock import Clock
from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.landing_records import Approval, LandingOutcome, LandingState
from longshot_dagster.core.models import BuildPhase, Task
from longshot_dagster.core.protected import (
    approves,
    digest,
    why_nothing_to_approve,
)

_DIFF_BYTES = 2 << 20
_SHOWN = 500  # paths


@dataclass(frozen=True)
class Proposal:
    """What a task wants to change in protected paths. `diff` is hostile text; `cut`: it is longer than that."""

    task: Task
    changes: tuple[policy.Change, ...]
    diff: str
    cut: bool

    @property
    def digest(self) -> str:
        return digest(self.changes)


class Approving:
    """Of one task's protected changes. Raises WrongUse when nothing of it waits for anybody."""

    def __init__(self, home: Home, ledger: BuildLedger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self.request = ledger.request()
        self._mirror = Mirror(home, self.request.target)
        self._parts = ApprovedParts(ledger, self.request, self._mirror, clock)
        self._queue = LandingQueue(ledger, self.request, self._mirror, clock)

    def proposal(self, name: str) -> Proposal:
        """The exact change, of which `approve` takes the digest."""
        task = self._ledger.existing_task(name)
        outcome = self._ledger.landing(name)
        going_on = outcome is not None and outcome.state is LandingState.QUEUED and approval_of(self._ledger, name)
        if not going_on and (why := why_nothing_to_approve(self._ledger.build, name, outcome)):
            raise WrongUse(why)
        branch = self._parts.branch(name)
        changes = self._parts.protected(branch)
        if not changes:
            raise WrongUse(f"nothing of {name} is protected any more; longshot status {self._ledger.build}")
        options = ("-r", "-p", "--no-renames", "--no-ext-diff", "--no-textconv", "--no-color")
        paths = [f":(literal){c.path}" for c in changes[:_SHOWN]]
        ran = self._mirror.git.run("diff-tree", *options, branch.base, branch.tip, "--", *paths, keep=_DIFF_BYTES)
        return Proposal(task, changes, ran.out.decode("utf-8", "replace"), ran.truncated or len(changes) > len(paths))

    def whole(self, proposal: Proposal) -> str:
        """The git command that shows all of it."""
        branch = self._parts.branch(proposal.task.id)
        return f"git -C {shlex.quote(str(self._mirror.path))} diff {branch.base} {branch.tip}"

    def is_approved(self, proposal: Proposal) -> bool:
        """Was just this approved already, and has not landed because something came between?"""
        return approves(approval_of(self._ledger, proposal.task.id), proposal.task.id, proposal.changes)

    def approve(self, proposal: Proposal) -> Approval:
        """Note it: who, when and what exactly."""
        paths = tuple(c.shown for c in proposal.changes)
        approval = Approval(task=proposal.task.id, digest=proposal.digest, paths=paths, by=_who(), at=self._clock.now())
        save_approval(self._ledger, approval)
        return approval

    def land(self, proposal: Proposal) -> LandingOutcome:
        """Land what was approved, now. A build that has finished is open again then, to be checked and reported anew.

        Raises RepositoryError when the target refuses or cannot be reached; the approval stays, to be carried out
        when the build comes to its end, or by another `longshot approve`.
        """
        task = proposal.task
        self._reopen()
        with self._ledger.lock("landing"):
            outcome = self._ledger.landing(task.id)
            if outcome is not None and outcome.state is LandingState.WITHHELD:
                self._ledger.save_landing(outcome.moved(LandingState.QUEUED, self._clock.now()))
        if outcome is not None and outcome.state is LandingState.LANDED:
            batch = self._queue.publish(lambda remote: self._parts.added(task, remote))
            return batch.outcomes[task.id]
        return self._queue.land(task)

    def _reopen(self) -> None:
        if self._ledger.state().phase is BuildPhase.FINISHED:
            self._ledger.reopen()


def _who() -> str:
    try:
        account = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container may run as somebody whom nothing names
        account = f"user {os.getuid()}"
    return f"{account}@{platform.node()}"[:200]
