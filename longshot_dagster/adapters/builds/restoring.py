"""A build's ledger, made again from its checkpoint: on a machine that has nothing but the repository and a person's settings.

In the order things happen: the checkpoint is read and judged as hostile input; what was handed in and has not landed is
fetched; the ledger is written beside the others; a checkpoint of our own takes the build, from exactly what was read; and
only then the ledger becomes one of this home's. A crash anywhere leaves something that restoring again mends.
"""

import contextlib
import itertools
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from longshot_dagster.adapters.builds.starting import prepared
from longshot_dagster.adapters.host.documents import parsed
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.host.places import place
from longshot_dagster.adapters.landing.queue import LandingQueue
from longshot_dagster.adapters.ledger.checkpoint import Checkpoint, Form, checkpoint_ref, document_at, local_ref
from longshot_dagster.adapters.ledger.ledger import BuildLedger, Ledger
from longshot_dagster.adapters.ledger.orchestrator import Seat
from longshot_dagster.adapters.repository.build_refs import listed_on
from longshot_dagster.adapters.repository.git import Git, read_blobs
from longshot_dagster.adapters.repository.intake import work_ref
from longshot_dagster.adapters.repository.mirror import Mirror, Remote
from longshot_dagster.adapters.repository.targets import RESERVED, resolve_target
from longshot_dagster.adapters.sandboxes.providers import decided
from longshot_dagster.adapters.settings import Resolved
from longshot_dagster.adapters.workers.planner import Turn
from longshot_dagster.core import restoring as rules
from longshot_dagster.core.clock import Clock
from longshot_dagster.core.display import one_line
from longshot_dagster.core.errors import RepositoryError, WrongUse
from longshot_dagster.core.ids import check_build_id
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.ledger_schema import unreadable
from longshot_dagster.core.models import BuildPhase, BuildRequest, BuildState, Target, WorkerRun
from longshot_dagster.core.orchestrating import Hold, Orchestrator
from longshot_dagster.version import __version__

_PUBLISHED = re.compile(r"refs/(?:longshot/(?:checkpoint/)?|heads/longshot/checkpoint-)(?P<build>[a-z0-9-]{1,48})")
_WAITING = (LandingState.QUEUED, LandingState.CONFLICT, LandingState.WITHHELD)
_AT_ONCE = 32 << 20  # bytes of documents read by one process
_MOST_LISTED = 50
_DOCUMENTS_OF_WORK = ("run.json", "handoff.json", "interrupted.json", "landing.json")
_STRICT = ("-c", "fetch.fsckObjects=true", "-c", "transfer.fsckObjects=true")
M = TypeVar("M", bound=BaseModel)

_FETCH = ("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules", "--no-auto-gc")


@dataclass(frozen=True)
class Kept:
    """What a checkpoint says of a build, for a list; all of it is hostile."""

    build: str
    phase: BuildPhase
    request: str
    created_at: float
    tasks: int
    handed_in: int
    driven_by: Orchestrator | None


@dataclass(frozen=True)
class Restorable:
    """A checkpoint that was read and judged, and the build it becomes. `pushed`: it is on the target, not only here."""

    request: BuildRequest
    state: BuildState | None
    resolved: Resolved
    commit: str
    pushed: bool
    hold: Hold
    driven_by: Orchestrator | None
    documents: Mapping[str, bytes]
    notes: tuple[str, ...]

    def count(self, document: str) -> int:
        """How many tasks have a document of that name."""
        return sum(re.fullmatch(rf"tasks/[^/]+/{re.escape(document)}", name) is not None for name in self.documents)

    @property
    def landed(self) -> int:
        """Tasks that have landed, as the checkpoint has it."""
        return sum(o.state is LandingState.LANDED for o in _landings(self.documents).values())


class Restoring:
    """Builds that a repository holds checkpoints of, for a person with these settings."""

    def __init__(self, home: Home, repository: str, resolved: Resolved, land_on: str | None, clock: Clock) -> None:
        self._home = home
        self._repository = repository
        self._resolved = resolved
        self._land_on = land_on
        self._clock = clock
        self._prepared: dict[str, tuple[Target, str, Resolved]] = {}

    def builds(self) -> list[Kept]:
        """Newest first. Raises WrongUse when the repository cannot be read."""
        target = resolve_target(self._repository, self._resolved.settings, "listed", self._land_on)
        listed = listed_on(target)
        if isinstance(listed, str):
            raise WrongUse(f"{target.repository} cannot be read: {listed}")
        mirror, found = Mirror(self._home, target), []
        refs = [(build, ref, oid) for build, ref, oid in _published(listed)][:_MOST_LISTED]
        for build, ref, oid in refs:
            with contextlib.suppress(RepositoryError):
                mirror.obtain(ref, oid)
                if (kept := self._kept(mirror, build, oid)) is not None:
                    found.append(kept)
        return sorted(found, key=lambda k: -k.created_at)

    def read(self, build: str) -> Restorable:
        """Raises WrongUse when there is no such checkpoint, RepositoryError when it cannot be used."""
        if build not in self._prepared:
            target = resolve_target(self._repository, self._resolved.settings, check_build_id(build), self._land_on)
            self._prepared[build] = prepared(
                self._home, target, self._repository, self._resolved, build, self._land_on, self._clock
            )
        target, _, resolved = self._prepared[build]
        mirror = Mirror(self._home, target)
        remote = mirror.read_remote(*_names(build), work_ref(build, "*"))
        commit, pushed = self._newest(mirror, remote, build)
        documents, notes = _read(mirror.git, commit, build)
        asked = _document(rules.Asked, documents["request.json"], build)
        if why := rules.elsewhere(asked, target):
            raise WrongUse(why)
        if not mirror.has(asked.base) or not mirror.is_ancestor(asked.base, remote.head):
            raise RepositoryError(
                f"the checkpoint of build {build} begins at {asked.base[:12]}, which is not on {target.branch} of "
                f"{target.repository}: is it another repository, or was the branch forced back?"
            )
        seat = Seat(mirror, build)
        hold, driven_by = seat.hold(commit, self._clock.now()) if pushed else (Hold.FREE, None)
        state = _document(BuildState, documents["state.json"], build) if "state.json" in documents else None
        request = rules.restored_request(asked, target, decided(resolved.settings), resolved.origins)
        return Restorable(request, state, resolved, commit, pushed, hold, driven_by, documents, notes)

    def carry_out(
        self, found: Restorable, launched: Mapping[str, int], *, rehearsal: bool, keep_request: bool = False
    ) -> tuple[BuildLedger, list[str]]:
        """The build's ledger, in this home, and what could not be brought back, one line each.

        `launched`: the newest attempt of each iteration that this home's Dagster has ever launched. `keep_request`: the
        build was this home's before, and goes on by the settings it had here. Raises TakenOver when somebody else has
        driven the build on since it was read: read it again. Raises RepositoryError when it cannot be taken.
        """
        build = found.request.build
        room = self._home.restoring / f"{build}-{secrets.token_hex(4)}"
        there = self._home.builds / build
        try:
            ledger = BuildLedger(place(room / build), build)
            mirror = Mirror(self._home, found.request.target)
            request = found.request.model_copy(update={"rehearsal": rehearsal})
            if keep_request and there.exists():
                request = Ledger(self._home.builds).build(build).request()
            documents = dict(found.documents)
            notes = [*found.notes, *_fetch_work(mirror, build, documents)]
            if not found.pushed:
                notes += _disbelieve(mirror, request, documents)
            self._write(ledger, request, found, documents, launched)
            if (refused := self._take(ledger, request, mirror, found)) is not None:
                raise RepositoryError(f"the checkpoint of build {build} cannot be taken over: {refused}")
            if there.exists():
                there.rename(_free(self._home.restoring / f"{build}-before"))
            (room / build).rename(there)
        finally:
            shutil.rmtree(room, ignore_errors=True)
        return Ledger(self._home.builds).build(build), notes

    # --- reading -----------------------------------------------------------------------------------------------------

    def _kept(self, mirror: Mirror, build: str, commit: str) -> Kept | None:
        """None for what is no checkpoint that this version can read."""
        data = document_at(mirror.git, commit, "request.json", rules.MAX_DOCUMENT)
        asked, _ = parsed(rules.Asked, data) if data else (None, "")
        if asked is None or asked.build != build or not data:
            return None
        kept = document_at(mirror.git, commit, "state.json", rules.MAX_DOCUMENT)
        state = (parsed(BuildState, kept)[0] if kept else None) or BuildState()
        names = [name for name, *_ in _entries(mirror.git, commit)]
        of_tasks = [name.rpartition("/")[2] for name in names if re.fullmatch(r"tasks/[^/]+/[a-z]+\.json", name)]
        newer = unreadable(build, data, __version__)
        return Kept(
            build=build,
            phase=state.phase,
            request=one_line(newer or asked.request, 200),
            created_at=asked.created_at,
            tasks=of_tasks.count("task.json"),
            handed_in=of_tasks.count("handoff.json"),
            driven_by=Seat(mirror, build).found(commit),
        )

    def _newest(self, mirror: Mirror, remote: Remote, build: str) -> tuple[str, bool]:
        """(commit, is it on the target?); one that is only in the mirror counts where nothing was ever pushed."""
        for name in _names(build):
            if name in remote.refs:
                mirror.obtain(name, remote.refs[name])
                return remote.refs[name], True
        here = mirror.git.run("rev-parse", "-q", "--verify", f"{local_ref(build)}^{{commit}}", ok=(0, 1, 128)).text
        if here:
            return here, False
        known = sorted({k.build for k in self.builds()})
        others = f"; it has those of {', '.join(known[-5:])}" if known else ""
        raise WrongUse(f"{mirror.target.repository} holds no checkpoint of build {build!r}{others}")

    # --- writing -----------------------------------------------------------------------------------------------------

    def _write(
        self,
        ledger: BuildLedger,
        request: BuildRequest,
        found: Restorable,
        documents: Mapping[str, bytes],
        launched: Mapping[str, int],
    ) -> None:
        ended = "report.json" in documents
        reason = "restored from its checkpoint"
        for name, data in documents.items():
            if name not in ("request.json", "state.json"):
                path = Path(str(ledger.directory / name))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        os.sync()  # once: the thousands of fsyncs of one by one would take minutes
        ledger.save_request(request)
        state = rules.restored_state(found.state, ended, launched, reason)
        ledger.update_state(lambda _: state)

    def _take(self, ledger: BuildLedger, request: BuildRequest, mirror: Mirror, found: Restorable) -> str | None:
        """Push a checkpoint of our own on top of the one that was read, if that is still the newest; why not."""
        seat = Seat(mirror, request.build)
        before = seat.last()
        if found.pushed:
            seat.noted(found.commit, self._clock.now(), released=True)
        taken = False
        try:
            refused = LandingQueue(ledger, request, mirror, self._clock).checkpoint(held=True)
            taken = refused is None
        finally:
            if not taken and before is None:
                seat.forget()
        return refused


def behind(home: Home, ledger: BuildLedger, clock: Clock) -> tuple[Hold, Orchestrator | None]:
    """How a build of this home stands: OURS when its newest checkpoint is this home's, or cannot be asked for.

    Anything else: another installation has driven it on, and the ledger here does not know what that one has done.
    """
    request = ledger.request()
    mirror, build = Mirror(home, request.target), request.build
    keeper = Checkpoint(mirror.git, mirror.path, ledger.directory, build)
    seat = Seat(mirror, build)
    try:
        remote = mirror.read_remote(*_names(build))
        name = next((n for n in _names(build) if n in remote.refs), None)
        if name is None or seat.is_ours(keeper, remote.refs[name]):
            return Hold.OURS, None
        mirror.obtain(name, remote.refs[name])
        hold, found = seat.hold(remote.refs[name], clock.now())
    except RepositoryError:
        return Hold.OURS, None  # what lands next asks again, and says why it cannot
    return (Hold.OURS, None) if found is None else (hold, found)


def aside_of(home: Home, build: str) -> list[Path]:
    """Ledgers of the build that were put aside for one that had been driven on elsewhere."""
    return sorted(p for p in home.restoring.iterdir() if re.fullmatch(rf"{re.escape(build)}-before-\d+", p.name))


def _names(build: str) -> tuple[str, ...]:
    """Every ref that a checkpoint may be under, the likelier first."""
    branches = ("", f"longshot/{build}")
    return (*(checkpoint_ref(build, Form.REFS, b) for b in branches), checkpoint_ref(build, Form.BRANCH, ""))


def _published(listed: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """(build, ref, commit), one a build."""
    seen = set()
    for ref, oid in sorted(listed.items(), reverse=True):
        match = _PUBLISHED.fullmatch(ref)
        if match and match["build"] not in RESERVED and match["build"] not in seen:
            with contextlib.suppress(WrongUse):
                seen.add(check_build_id(match["build"]))
                yield match["build"], ref, oid


def _entries(git: Git, commit: str) -> Iterator[tuple[str, str, int]]:
    """(name, id, bytes) of every plain file of a tree that could be a ledger's. Raises RepositoryError for too many."""
    listed = git.run("ls-tree", "-r", "-z", "-l", "--full-tree", commit)
    lines = listed.out.split(b"\0")
    if listed.truncated or len(lines) > rules.MAX_DOCUMENTS:
        raise RepositoryError(f"a checkpoint holds more than {rules.MAX_DOCUMENTS:,} documents")
    for line in lines:
        meta, _, name = line.partition(b"\t")
        mode, kind, oid, size = (*meta.decode("ascii", "replace").split(), "", "", "", "")[:4]
        if mode == "100644" and kind == "blob" and name.isascii() and size.isdigit():
            yield name.decode("ascii"), oid, int(size)


def _read(git: Git, commit: str, build: str) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """(name -> bytes, what was left out) of a checkpoint, every document judged. Raises WrongUse and RepositoryError."""
    entries = [e for e in _entries(git, commit) if rules.model_of(e[0], Turn) is not None]
    total = sum(size for *_, size in entries)
    large = next((name for name, _, size in entries if size > rules.size_limit(name)), "")
    if total > rules.MAX_BYTES or large:
        raise RepositoryError(
            f"the checkpoint of build {build} is larger than any ledger is: {large or f'{total:,} bytes'}"
        )
    documents: dict[str, bytes] = {}
    for names in _batches(entries):
        blobs = read_blobs(git, [oid for _, oid, _ in names])
        documents |= {name: blobs[oid] for name, oid, _ in names if oid in blobs}
    if "request.json" not in documents:
        raise RepositoryError(f"the checkpoint of build {build} has no request.json")
    if why := unreadable(build, documents["request.json"], __version__):
        raise WrongUse(why)
    return _judged(build, documents)


def _batches(entries: Iterable[tuple[str, str, int]]) -> Iterator[list[tuple[str, str, int]]]:
    batch, size = list[tuple[str, str, int]](), 0
    for entry in entries:
        if batch and size + entry[2] > _AT_ONCE:
            yield batch
            batch, size = [], 0
        batch.append(entry)
        size += entry[2]
    if batch:
        yield batch


def _judged(build: str, documents: dict[str, bytes]) -> tuple[dict[str, bytes], tuple[str, ...]]:
    notes, bad = [], []
    for name, data in documents.items():
        model = rules.model_of(name, Turn)
        found, wrong = _parsed(model, data) if model else (None, "no such document")
        wrong = wrong or (rules.contradiction(build, name, found) if found else "")
        if wrong and not rules.may_be_lost(name):
            raise RepositoryError(f"the checkpoint of build {build} cannot be used: {name}: {one_line(wrong, 200)}")
        if wrong:
            bad.append(name)
            notes.append(f"{name} is left out: {one_line(wrong, 200)}")
    for name in bad:
        documents.pop(name)
        task, _, document = name.rpartition("/")
        if document in ("run.json", "handoff.json"):
            _forget(documents, task)
    known = {name.rpartition("/")[0] for name in documents if name.endswith("/task.json")}
    for name in [n for n in documents if n.startswith("tasks/") and "/".join(n.split("/")[:2]) not in known]:
        documents.pop(name)
    return documents, tuple(notes)


def _parsed(model: type[BaseModel], data: bytes) -> tuple[BaseModel | None, str]:
    try:
        return parsed(model, data)
    except WrongUse as e:  # a name that is none; in the home's own documents that would be our mistake
        return None, str(e)


def _forget(documents: dict[str, bytes], task_folder: str) -> None:
    """The task counts as never worked on."""
    for document in _DOCUMENTS_OF_WORK:
        documents.pop(f"{task_folder}/{document}", None)


def _document(model: type[M], data: bytes, build: str) -> M:
    found, wrong = parsed(model, data)
    if found is None:
        raise RepositoryError(f"the checkpoint of build {build} cannot be used: {one_line(wrong, 200)}")
    return found


# --- work that has not landed ----------------------------------------------------------------------------------------


def _landings(documents: Mapping[str, bytes]) -> dict[str, LandingOutcome]:
    """Task -> outcome."""
    found = {}
    for name, data in documents.items():
        if (
            re.fullmatch(r"tasks/[^/]+/landing\.json", name)
            and (outcome := parsed(LandingOutcome, data)[0]) is not None
        ):
            found[outcome.task] = outcome
    return found


def _fetch_work(mirror: Mirror, build: str, documents: dict[str, bytes]) -> list[str]:
    """Have the branches of work that has not all landed in the mirror; a task whose branch is nowhere is done again.

    They come from where anybody who can push may write: git checks every object, and only what the run recorded is taken.
    """
    landings = _landings(documents)
    waiting: dict[str, WorkerRun] = {}
    for name in documents:
        if not re.fullmatch(r"tasks/[^/]+/run\.json", name):
            continue
        run = parsed(WorkerRun, documents[name])[0]
        outcome = landings.get(run.task) if run else None
        if run and run.head and run.head != run.base and _is_wanted(outcome):
            waiting[run.task] = run
    _fetch(mirror, build, [run for run in waiting.values() if run.head and not mirror.has(run.head)])
    notes = []
    for task, run in sorted(waiting.items()):
        outcome = landings.get(task)
        if _is_here(mirror, build, run):
            continue
        mirror.forget_work(build, [task])
        if outcome is None or outcome.state is LandingState.QUEUED:
            _forget(documents, f"tasks/{task}")
            notes.append(f"{task} is worked on again: its branch is not in the repository")
        else:  # its conflict or its refusal is known, and a fix task or a person does it again
            notes.append(f"{task}: its branch is not in the repository, only what became of it")
    return notes


def _is_wanted(outcome: LandingOutcome | None) -> bool:
    return outcome is None or outcome.state in _WAITING or outcome.keeps_back


def _fetch(mirror: Mirror, build: str, runs: list[WorkerRun]) -> None:
    network = Git(mirror.path, network=True)
    refs = [work_ref(build, run.task) for run in runs]

    def fetch(*names: str) -> None:
        network.run(*_STRICT, *_FETCH, "--", mirror.target.url, *(f"+{name}:{name}" for name in names))

    if not refs:
        return
    try:
        fetch(*refs)
    except RepositoryError:  # one that is missing or broken must not cost the others
        for ref in refs:
            with contextlib.suppress(RepositoryError):
                fetch(ref)


def _is_here(mirror: Mirror, build: str, run: WorkerRun) -> bool:
    """Is the branch in the mirror, on its base, and under its name?"""
    if run.head is None or not mirror.has(run.head) or not mirror.has(run.base):
        return False
    if not mirror.is_ancestor(run.base, run.head):
        return False
    mirror.git.run("update-ref", work_ref(build, run.task), run.head)
    return True


def _disbelieve(mirror: Mirror, request: BuildRequest, documents: dict[str, bytes]) -> list[str]:
    """A checkpoint that was never pushed says what was about to land, too; main says what has."""
    head = mirror.fetch()
    there = mirror.commits_since(request.base, head)
    doubted = [
        task
        for task, outcome in _landings(documents).items()
        if outcome.state is LandingState.LANDED and (not outcome.commits or outcome.commits[-1] not in there)
    ]
    for task in doubted:
        documents.pop(f"tasks/{task}/landing.json", None)
    return [f"{task} is about to land again: it is not on {request.target.branch}" for task in sorted(doubted)]


def _free(path: Path) -> Path:
    """`path` with the first number that nothing has."""
    return next(p for n in itertools.count(1) if not (p := path.with_name(f"{path.name}-{n}")).exists())
