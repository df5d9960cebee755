"""What a build's settings and a person's approvals say about one branch's paths, with what the repository has to be asked for it."""

from dataclasses import replace

from longshot_dagster.adapters.ledger.approvals import approval_of
from longshot_dagster.adapters.ledger.ledger import BuildLedger
from longshot_dagster.adapters.repository.branch import Branch
from longshot_dagster.adapters.repository.git import Git
from longshot_dagster.adapters.repository.object_store import GONE, sizes
from longshot_dagster.core.landing import to_approve
from longshot_dagster.core.landing_records import Approval
from longshot_dagster.core.models import BuildRequest
from longshot_dagster.core.protected import CHECKS, PathRules, approves, path_rules

_NO_BLOB = (GONE, "160000")  # a deletion, a submodule


class LandingRules:
    """Of one build; what never changes is read once."""

    def __init__(self, ledger: BuildLedger, request: BuildRequest, git: Git) -> None:
        self._ledger = ledger
        self._git = git
        self._base = request.base
        self._plain = path_rules(request.settings, self._established)
        self._found: frozenset[str] | None = None

    def of(self, task: str, branch: Branch) -> PathRules:
        """`rules` for `split`, with `approved` for exactly this branch."""
        rules = self.plain(branch)
        asked = to_approve(branch.changes, rules)
        if asked and approves(self.approval(task), task, asked):
            return replace(rules, approved=frozenset(c.path for c in asked))
        return rules

    def plain(self, branch: Branch) -> PathRules:
        """The same without anybody's approval."""
        return replace(self._plain, sizes=sizes(self._git, [c.oid for c in branch.changes if c.mode not in _NO_BLOB]))

    def approval(self, task: str) -> Approval | None:
        return approval_of(self._ledger, task)

    def _established(self) -> frozenset[str]:
        """The checks' configuration as the build found it. The build's base counts, not the worker's: that one we moved."""
        if self._found is None:
            listed = self._git.run("ls-tree", "-r", "-z", "--name-only", self._base).out
            names = listed.decode("utf-8", "surrogateescape").split("\0")
            self._found = frozenset(name for name in names if CHECKS.covers(name))
        return self._found
