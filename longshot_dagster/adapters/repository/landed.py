"""Did it land? A question to git, never to memory: trailers on the landing branch, and the refs of fast-forwards."""

from collections.abc import Iterable

from longshot_dagster.adapters.repository.git import Git
from longshot_dagster.adapters.repository.mirror import Remote
from longshot_dagster.core.landing import BUILD_TRAILER, SOURCE_TRAILER, TASK_TRAILER
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import BuildRequest
from longshot_dagster.core.settings import MergeStrategy

Landed = dict[tuple[str, str], tuple[str, ...]]  # (task, source) -> its commits, oldest first

TRAILERS = "%x00".join(
    f"%(trailers:key={key},valueonly,separator=%x2C)" for key in (BUILD_TRAILER, TASK_TRAILER, SOURCE_TRAILER)
)


def landed_ref(build: str, task: str) -> str:
    """The record of a fast-forward, whose commits are the worker's own and carry no trailers; `*` for all of a build."""
    return f"refs/longshot/landed/{build}/{task}"


def already_landed(git: Git, request: BuildRequest, remote: Remote) -> Landed:
    """What of the build is on the landing branch since it began; of a fast-forward only its newest commit, the source."""
    return LandedHistory(git, request).at(remote)


class LandedHistory:
    """`already_landed` for one who asks again and again: only what has come onto the branch since is read."""

    def __init__(self, git: Git, request: BuildRequest) -> None:
        self.git = git
        self.request = request
        self._head: str | None = None
        self._found: Landed = {}

    def at(self, remote: Remote) -> Landed:
        if remote.head != self._head:
            self._read_on(remote.head)
        prefix = landed_ref(self.request.build, "")
        forwarded = {
            (ref.removeprefix(prefix), oid): (oid,) for ref, oid in remote.refs.items() if ref.startswith(prefix)
        }
        return self._found | forwarded

    def pushed(self, before: str, after: str, outcomes: Iterable[LandingOutcome]) -> None:
        """The branch went from `before` to `after` with these outcomes, by a push of our own: there is nothing to read."""
        if self._head != before:
            return
        for outcome in outcomes:
            forwarded = outcome.strategy == MergeStrategy.FAST_FORWARD  # told by its ref
            if outcome.state is LandingState.LANDED and outcome.onto and outcome.source and not forwarded:
                self._found[outcome.task, outcome.source] = outcome.commits
        self._head = after

    def _read_on(self, head: str) -> None:
        known = self._head
        newer = self._read(head, known) if known else None
        if newer is None:  # the first time, or the branch does not go on from where it was
            self._found, newer = {}, self._read(head, None) or {}
        for key, commits in newer.items():
            self._found[key] = (*self._found.get(key, ()), *commits)
        self._head = head

    def _read(self, head: str, known: str | None) -> Landed | None:
        """What the first parents of `head` say that are not in the history of `known`; None when it is not one of them."""
        span = [head, f"^{self.request.base}", *([f"^{known}"] if known else [])]
        options = ("-z", "--first-parent", "--reverse", "--boundary", f"--format=%m%H%x01{TRAILERS}")
        listed = self.git.run("log", *options, *span, ok=(0, 128) if known else (0,))
        found: Landed = {}
        continues = known is None
        fields = listed.out.decode("utf-8", "replace").split("\0")
        for start, task, source in zip(fields[::3], fields[1::3], fields[2::3], strict=False):
            oid, _, build = start[1:].partition("\x01")
            if start[:1] == "-":
                continues |= oid == known
            elif build == self.request.build and task and source:
                found[task, source] = (*found.get((task, source), ()), oid)
        return found if continues else None
