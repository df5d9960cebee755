"""Setting a target's landing branch back to its first commit, with a backup of what was there, in one push."""

from longshot_dagster.adapters.builds.starting import TARGET_SETTINGS
from longshot_dagster.adapters.host.documents import locked
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.ledger import Ledger
from longshot_dagster.adapters.repository.git import Git
from longshot_dagster.adapters.repository.mirror import Mirror, Update
from longshot_dagster.adapters.repository.targets import branch_heads, resolve_target
from longshot_dagster.adapters.settings import Resolved, with_target
from longshot_dagster.core.clock import Clock
from longshot_dagster.core.display import display
from longshot_dagster.core.errors import LedgerError, RepositoryError, WrongUse
from longshot_dagster.core.models import BuildRequest, Target, TargetKind
from longshot_dagster.core.resetting import Loss, backup_branch, backup_ref

_OWN = "longshot/"  # branches that builds make in a checkout without an origin
_NEWEST = 5


def reset_target(home: Home, repository: str, resolved: Resolved, land_on: str | None) -> Target:
    """What a build in `repository` would land on, its own settings included.

    Raises WrongUse; in a checkout without an origin for all but the branches that builds have made there.
    """
    target = _target(repository, resolved, land_on)
    head = branch_heads(target).get(target.branch)
    if head is None or target.kind is TargetKind.CHECKOUT:
        return target
    mirror = Mirror(home, target)
    mirror.obtain(f"refs/heads/{target.branch}", head)
    if TARGET_SETTINGS not in mirror.list_dir(head):
        return target
    return _target(repository, with_target(resolved, mirror.read_file(head, TARGET_SETTINGS, 100_000)), land_on)


def _target(repository: str, resolved: Resolved, land_on: str | None) -> Target:
    build = land_on.removeprefix(_OWN) if land_on and land_on.startswith(_OWN) else ""
    target = resolve_target(repository, resolved.settings, build or "reset", land_on)
    if target.kind is TargetKind.CHECKOUT and not build:
        raise WrongUse(
            f"{target.repository} has no origin, so each build lands on a branch of its own there; "
            "name one with --land-on longshot/BUILD, your own branches are not touched"
        )
    return target


class Resetting:
    """Resets one target. Raises WrongUse for what cannot be reset, and RepositoryError when git cannot; then nothing has changed."""

    def __init__(self, home: Home, target: Target, clock: Clock) -> None:
        self.target = target
        self._builds = Ledger(home.builds)
        self._mirror = Mirror(home, target)
        self._clock = clock

    def loss(self) -> Loss | None:
        """What a reset would take away now; None when there is nothing to reset."""
        paused = self._unfinished()
        target = self.target
        heads = branch_heads(target)
        if not heads:
            return None
        if target.branch not in heads:
            names = ", ".join(sorted(display(name, "plain", 60) for name in heads)[:10])
            raise WrongUse(f"{target.repository} has no branch {target.branch!r} to reset; it has {names}")
        self._check_not_checked_out()
        head, git = heads[target.branch], self._mirror.git
        self._mirror.obtain(f"refs/heads/{target.branch}", head)
        roots = git.run("rev-list", "--max-parents=0", head).text.split()
        if len(roots) > 1:
            named = ", ".join(r[:12] for r in roots[:5])
            raise WrongUse(
                f"{target.branch} has {len(roots)} first commits ({named}), so there is no one to go back to"
            )
        if roots == [head]:
            return None
        span = (head, f"^{roots[0]}")
        return Loss(
            target=target,
            head=head,
            first=roots[0],
            commits=int(git.run("rev-list", "--count", *span).text),
            newest=tuple(git.run("log", f"-{_NEWEST}", "--format=%h %as %an: %s", *span).text.split("\n")),
            authors=tuple(" ".join(a.split()[1:]) for a in git.run("shortlog", "-sn", *span).text.split("\n")),
            paused=paused,
        )

    def carry_out(self, loss: Loss) -> str:
        """Move the branch from what `loss` saw; returns the ref that keeps what was there."""
        branch, at = f"refs/heads/{self.target.branch}", self._clock.now()
        with locked(self._mirror.landing_lock):
            self._unfinished()
            for backup in (backup_ref(self.target.branch, at), backup_branch(self.target.branch, at)):
                updates = [Update(branch, loss.head, loss.first), Update(backup, None, loss.head)]
                refused = self._mirror.push(updates)
                if refused is None:
                    return backup
                if branch_heads(self.target).get(self.target.branch) != loss.head:
                    raise RepositoryError(f"{self.target.branch} has moved meanwhile; nothing was changed, look again")
        raise RepositoryError(f"{self.target.repository} refused the reset, nothing was changed: {refused}")

    def _unfinished(self) -> tuple[str, ...]:
        """Paused builds that land on the branch. Raises WrongUse for one that is under way."""
        found = []
        for ledger in self._builds.unfinished():
            try:
                request, state = ledger.request(), ledger.state()
            except LedgerError:
                continue  # one that cannot be read cannot land either
            if not self._is_ours(request):
                continue
            if state.under_way:
                raise WrongUse(
                    f"build {ledger.build} is under way on {self.target.branch}; `longshot cancel {ledger.build}` first"
                )
            found.append(ledger.build)
        return tuple(found)

    def _is_ours(self, request: BuildRequest) -> bool:
        return (request.target.url, request.target.branch) == (self.target.url, self.target.branch)

    def _check_not_checked_out(self) -> None:
        """A branch that is somebody's work tree would change under their hands."""
        if not self.target.url.startswith("/"):
            return
        listed = Git(network=True).run("-C", self.target.url, "worktree", "list", "--porcelain", "-z").out
        for entry in listed.decode("utf-8", "surrogateescape").split("\0\0"):
            lines = entry.strip("\0").split("\0")
            if f"branch refs/heads/{self.target.branch}" in lines and "bare" not in lines:
                where = display(lines[0].removeprefix("worktree "), "plain", 200)
                raise WrongUse(f"{self.target.branch} is checked out in {where}; switch to another branch there first")
