"""Did it land? A question to git, never to memory: trailers on the landing branch, and the refs of fast-forwards."""

from longshot_dagster.adapters.git import Git
from longshot_dagster.adapters.mirror import Remote
from longshot_dagster.core.landing import BUILD_TRAILER, SOURCE_TRAILER, TASK_TRAILER
from longshot_dagster.core.models import BuildRequest

_TRAILERS = "%x00".join(
    f"%(trailers:key={key},valueonly,separator=%x2C)" for key in (BUILD_TRAILER, TASK_TRAILER, SOURCE_TRAILER)
)


def landed_ref(build: str, task: str) -> str:
    """The record of a fast-forward, whose commits are the worker's own and carry no trailers; `*` for all of a build."""
    return f"refs/longshot/landed/{build}/{task}"


def already_landed(git: Git, request: BuildRequest, remote: Remote) -> dict[tuple[str, str], tuple[str, ...]]:
    """(task, source) -> its commits on the landing branch since the build began, oldest first.

    Of a fast-forward only the newest commit, which is the source itself.
    """
    span = (remote.head, f"^{request.base}")
    listed = git.run("log", "-z", "--first-parent", "--reverse", f"--format=%H%x01{_TRAILERS}", *span)
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    fields = listed.out.decode("utf-8", "replace").split("\0")
    for start, task, source in zip(fields[::3], fields[1::3], fields[2::3], strict=False):
        oid, _, build = start.partition("\x01")
        if build == request.build and task and source:
            found[task, source] = (*found.get((task, source), ()), oid)
    prefix = landed_ref(request.build, "")
    for ref, oid in remote.refs.items():
        if ref.startswith(prefix):
            found[ref.removeprefix(prefix), oid] = (oid,)
    return found
