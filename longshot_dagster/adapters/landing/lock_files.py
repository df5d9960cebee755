"""Lock files made anew by their own tools once per batch, in a sandbox, and put on the landing branch in the same push.

No task's lock file lands: twelve tasks that each add a dependency would bring twelve that exclude each other. What goes in
is a bundle without history of the files that the tool reads; what comes out is as hostile as any worker's result.
"""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from longshot_dagster.adapters.repository.branch import commit
from longshot_dagster.adapters.repository.git import Git
from longshot_dagster.adapters.repository.object_store import Entry, graft, tree_of, write
from longshot_dagster.adapters.workers.order_run import end_sandboxes, sandbox_for
from longshot_dagster.core import contract
from longshot_dagster.core.errors import LongshotError, RepositoryError, SandboxError
from longshot_dagster.core.landing_records import Concern, ConcernKind, LandingOutcome, LandingState, Resolution
from longshot_dagster.core.lock_tools import LockJob, asked_about, concerns_of, due, message, needed, problem
from longshot_dagster.core.models import BuildRequest
from longshot_dagster.core.rungs import has_markers
from longshot_dagster.core.sandbox import Sandbox, SandboxProvider
from longshot_dagster.core.settings import Network, RungName

TOOL_S = 120.0
MAX_LOCK_BYTES = 32 << 20
_CHANGES = (LandingState.LANDED, LandingState.UNDONE)
MAX_JOBS = 20  # lock files of one batch

_UNPACK_S = 60.0
_MAX_FILES = 50_000
_KEPT = 50
_UNPACK = (
    'root="${LONGSHOT_SANDBOX_ROOT:-}"; rm -rf "$root/workspace/repo"; '
    f'exec git clone -q -b base "$root{contract.BUNDLE_IN}" "$root{contract.REPO}"'
)


@dataclass(frozen=True)
class MadeAnew:
    """The head with the lock files on top, and what each task's outcome is to say of it."""

    head: str
    outcomes: Mapping[str, LandingOutcome]


class LockFiles:
    """One build's. `provider` is asked for only when a lock file is due. Used under the mirror's lock."""

    def __init__(self, provider: Callable[[], SandboxProvider], request: BuildRequest) -> None:
        self._provider = provider
        self._request = request
        self._made: dict[tuple[str, str], bytes | str] = {}  # a round that lost its race asks again

    def made_anew(self, git: Git, head: str, outcomes: Mapping[str, LandingOutcome], at: float) -> MadeAnew | None:
        """For tasks that landed or were undone on the way to `head`; None when none is due. One that cannot be made is a concern of the tasks that needed it, and holds nothing up.

        Raises RepositoryError where git cannot read or write.
        """
        if RungName.LOCK_FILES not in self._request.settings.rungs:
            return None
        landed = {task: o for task, o in outcomes.items() if o.state in _CHANGES}
        changed = [path for o in landed.values() for path in o.landed_paths]
        withheld = [c.path for o in landed.values() for c in o.concerns if c.kind is ConcernKind.GENERATED]
        asked = asked_about(changed, withheld)
        jobs = due(changed, withheld, _there(git, head, asked))[:MAX_JOBS] if asked else ()
        if not jobs:
            return None
        contents = self._contents(git, head, jobs)
        made, entries = {}, []
        for path, content in contents.items():
            if isinstance(content, bytes):
                made[path] = write(git, "blob", content)
                entries.append(Entry(path.encode(), "100644", made[path]))
        before = _there(git, head, list(contents))
        made = {path: oid for path, oid in made.items() if before.get(path) != oid}
        if made:
            tree = graft(git, tree_of(git, head), [e for e in entries if e.path.decode() in made])
            head = commit(git, tree, (head,), message(self._request.build, made), at)
        told = {task: _told(o, jobs, contents, before, made) for task, o in landed.items()}
        return MadeAnew(head, told)

    def _contents(self, git: Git, head: str, jobs: Sequence[LockJob]) -> dict[str, bytes | str]:
        """path -> what is to be in it, or why that is not known."""
        found: dict[str, bytes | str] = {}
        for reads in dict.fromkeys(job.tool.reads for job in jobs):
            group = [job for job in jobs if job.tool.reads == reads]
            try:
                base = commit(git, _input(git, head, group[0]), (), "what the tools read", 0)
            except RepositoryError as e:
                found |= {job.path: str(e) for job in group}
                continue
            missing = [job for job in group if (base, job.path) not in self._made]
            if missing:
                if len(self._made) > _KEPT:
                    self._made.clear()
                self._made |= {(base, path): made for path, made in self._run(git, base, missing).items()}
            found |= {job.path: self._made[base, job.path] for job in group}
        return found

    def _run(self, git: Git, base: str, jobs: Sequence[LockJob]) -> dict[str, bytes | str]:
        found: dict[str, bytes | str] = {}
        try:
            provider = self._provider()
            tags = {"build": self._request.build, "lock-files": "anew"}
            end_sandboxes(provider, tags)  # of a lander that was killed
            with sandbox_for(provider, self._request.settings, tags, _UNPACK_S + TOOL_S * len(jobs)) as sandbox:
                sandbox.write(contract.BUNDLE_IN, _bundle(git, base))
                ran = sandbox.exec(["/bin/sh", "-c", _UNPACK], cwd="/workspace", timeout_s=_UNPACK_S)
                if ran.exit_code:
                    raise SandboxError(f"it could not be unpacked: exit code {ran.exit_code}")
                has_network = self._request.settings.sandbox_network is Network.OPEN
                for job in jobs:
                    found[job.path] = _made_in(sandbox, job, has_network)
        except (LongshotError, OSError) as e:
            return found | {job.path: f"{e}"[:500] for job in jobs if job.path not in found}
        return found


def _made_in(sandbox: Sandbox, job: LockJob, has_network: bool) -> bytes | str:
    where = f"{contract.REPO}/{job.folder}".rstrip("/")
    try:
        ran = sandbox.exec(["/bin/sh", "-c", job.tool.line(has_network)], cwd=where, timeout_s=TOOL_S)
        if ran.exit_code:
            return problem(job, ran.exit_code, (ran.stderr + b"\n" + ran.stdout)[-8_000:].decode("utf-8", "replace"))
        content = sandbox.read(f"{contract.REPO}/{job.path}", max_bytes=MAX_LOCK_BYTES)
    except SandboxError as e:
        return f"{job.tool.program}: {e}"[:500]
    return _wrong(job, content) or content


def _wrong(job: LockJob, content: bytes) -> str:
    if not content or has_markers(content):
        return f"{job.tool.program} left nothing usable"
    if job.path.endswith(".json"):
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(json.loads(content), dict):
                return ""
        return f"{job.tool.program} wrote no JSON"
    return ""


def _there(git: Git, tree: str, paths: Sequence[str]) -> dict[str, str]:
    """Of `paths` those that are files there, with their blob ids."""
    if not paths:
        return {}
    listed = git.run("ls-tree", "-z", "--full-tree", tree, "--", *paths).out
    return {path: oid for _, oid, path in _files(listed)}


def _input(git: Git, head: str, job: LockJob) -> str:
    """The tree of what `job`'s tool reads."""
    if not job.tool.reads:
        return tree_of(git, head)
    ran = git.run("ls-tree", "-r", "-z", "--full-tree", head)
    chosen = [Entry(path.encode(), mode, oid) for mode, oid, path in _files(ran.out) if needed(job, path)]
    if ran.truncated or len(chosen) > _MAX_FILES:
        raise RepositoryError("the repository has too many files to make its lock files anew")
    return graft(git, write(git, "tree", b""), chosen)


def _files(listed: bytes) -> list[tuple[str, str, str]]:
    """(mode, id, path) of every plain file whose path is UTF-8."""
    found = []
    for record in listed.split(b"\0"):
        meta, _, path = record.partition(b"\t")
        mode, _, rest = meta.decode("ascii", "replace").partition(" ")
        with contextlib.suppress(UnicodeDecodeError):
            if rest.startswith("blob ") and mode in ("100644", "100755"):
                found.append((mode, rest.removeprefix("blob "), path.decode()))
    return found


def _bundle(git: Git, base: str) -> bytes:
    """Raises RepositoryError when it is too large."""
    packed = git.run(
        "pack-objects", "--stdout", "--revs", "-q", stdin=f"{base}\n".encode(), keep=contract.MAX_BUNDLE_BYTES
    )
    if packed.truncated:
        raise RepositoryError("the repository is too large to make its lock files anew")
    return f"# v2 git bundle\n{base} {contract.BASE_REF}\n\n".encode() + packed.out


def _told(
    outcome: LandingOutcome,
    jobs: Sequence[LockJob],
    contents: Mapping[str, bytes | str],
    before: Mapping[str, str],
    made: Mapping[str, str],
) -> LandingOutcome:
    """The outcome with what became of the lock files that it had a part in."""
    mine = [job.path for job in jobs if concerns_of(outcome, job)]
    anew = tuple(
        Resolution(rung=RungName.LOCK_FILES.value, path=path, ours=before.get(path), result=made[path])
        for path in mine
        if path in made
    )
    failed = tuple(
        Concern(kind=ConcernKind.LOCK_FILE, text=f"{path} could not be made anew: {why}"[:2_000], path=path)
        for path in mine
        if isinstance(why := contents[path], str)
    )
    if not anew and not failed:
        return outcome
    update = {"resolutions": (*outcome.resolutions, *anew), "concerns": (*outcome.concerns, *failed)}
    return outcome.model_copy(update=update)
