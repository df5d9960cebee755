"""What of a checkpoint may become a ledger again: anybody who can push to the repository may have written it.

Names are taken of the known layout only, and every document must say the same as its place. Where a build works, with
what, and what it may spend is never taken from there: `restored_request` keeps the person's own settings, and of the
checkpoint's only what a repository may decide.
"""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from longshot_dagster.core import ids
from longshot_dagster.core.display import one_line
from longshot_dagster.core.errors import RepositoryError, WrongUse
from longshot_dagster.core.landing_records import LandingOutcome
from longshot_dagster.core.models import (
    MAX_REQUEST,
    BuildPhase,
    BuildReport,
    BuildRequest,
    BuildState,
    CancelRequest,
    Handoff,
    IterationFailure,
    MetricsSnapshot,
    Oid,
    Plan,
    RepoState,
    Sweep,
    Target,
    Task,
    WorkerRun,
)
from longshot_dagster.core.settings import Origin, Settings

MAX_DOCUMENTS = 200_000
MAX_BYTES = 1 << 30  # of all documents together
MAX_DOCUMENT = 16 << 20
MAX_TURN = 64 << 20  # a planner's conversation is never compacted
MAX_ATTEMPT = 100_000

# What the target's own .longshot.toml could say as well, and what changes nothing about costs or confinement.
THE_BUILDS_OWN = (
    *("merge_strategy", "git_branch_prefix", "finalization_enabled", "generated_paths", "max_file_mb"),
    *("check_install", "check_compile", "check_types", "check_lint", "check_test"),
)

_PLANNER = r"(?P<planner>root|fix|[rf][\d-]{6,40})"
_TASK = r"tasks/(?P<task>[rf][\d-]{6,40})"
_LAYOUT: tuple[tuple[re.Pattern[str], type[BaseModel]], ...] = tuple(
    (re.compile(pattern), model)
    for pattern, model in (
        (r"state\.json", BuildState),
        (r"(?:earlier-)?report(?:-\d{1,3})?\.json", BuildReport),
        (rf"iterations/(?P<key>{_PLANNER}\.\d{{3}})/repo_state\.json", RepoState),
        (rf"iterations/(?P<key>{_PLANNER}\.\d{{3}})/plan\.json", Plan),
        (rf"iterations/(?P<key>{_PLANNER}\.\d{{3}})/metrics\.json", MetricsSnapshot),
        (rf"iterations/(?P<key>{_PLANNER}\.\d{{3}})/failure\.json", IterationFailure),
        (rf"{_TASK}/task\.json", Task),
        (rf"{_TASK}/(?:earlier-\d{{1,2}}/)?run\.json", WorkerRun),
        (rf"{_TASK}/(?:earlier-\d{{1,2}}/)?(?:handoff|interrupted)\.json", Handoff),
        (rf"{_TASK}/(?:earlier-\d{{1,2}}/)?landing\.json", LandingOutcome),
        (rf"{_TASK}/(?:earlier-\d{{1,2}}/)?cancel\.json", CancelRequest),
        (r"sweeps/(?P<sweep>[1-9]\d{0,4})\.json", Sweep),
    )
)
TURN = re.compile(rf"planners/{_PLANNER}/\d{{3}}\.json")
_MAY_BE_LOST = re.compile(r"tasks/[^/]+/(?!task\.json)|sweeps/|(?:earlier-)?report|iterations/[^/]+/(?!plan\.json)")
_BRANCH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
_ATTEMPT = re.compile(r"(?:(?:root|fix|[rf][\d-]{6,40})\.\d{3}|finalize\.\d{3}|red-final\.\d{1,4})")


class Asked(BaseModel):
    """What is taken of a checkpoint's `request.json`; the rest of it is nobody's word."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    class Where(BaseModel):
        model_config = ConfigDict(frozen=True, extra="ignore")

        base_branch: str = Field(max_length=250)
        branch: str = Field(max_length=250)

    build: str
    request: str = Field(min_length=1, max_length=MAX_REQUEST)
    target: Where
    base: Oid
    created_at: float = Field(ge=0, le=1e11)
    settings: dict[str, Any] = Field(default_factory=dict, max_length=200)


def model_of(name: str, turn: type[BaseModel]) -> type[BaseModel] | None:
    """What the document of that name is; None for a name that no ledger has. `turn`: of a planner's conversation."""
    if TURN.fullmatch(name):
        return turn
    if name == "request.json":
        return Asked
    return next((model for pattern, model in _LAYOUT if pattern.fullmatch(name)), None)


def size_limit(name: str) -> int:
    """Bytes that the document may have."""
    return MAX_TURN if TURN.fullmatch(name) else MAX_DOCUMENT


def may_be_lost(name: str) -> bool:
    """May a document that cannot be used count as not written? Then what it stood for is done again."""
    return _MAY_BE_LOST.match(name) is not None


def contradiction(build: str, name: str, document: BaseModel) -> str:
    """What a document says that its place denies; empty for an honest one."""
    parts = name.split("/")
    place = parts[1] if len(parts) > 1 else ""
    match document:
        case Asked() | BuildReport():
            said, expected = document.build, build
        case Task():
            return _wrong_task(build, place, document)
        case Plan():
            wrong = (_wrong_task(build, t.id, t) for t in document.tasks)
            if why := next((w for w in wrong if w), ""):
                return why
            said, expected = document.iteration, place
        case MetricsSnapshot():
            said, expected = document.iteration, place
        case Handoff():
            said, expected = document.task_id, place
        case WorkerRun() | LandingOutcome():
            said, expected = document.task, place
        case Sweep():
            said, expected = str(document.number), parts[1].removesuffix(".json")
        case _:
            if TURN.fullmatch(name):
                said, expected = str(getattr(document, "iteration", "")), f"{place}.{parts[2].removesuffix('.json')}"
            else:
                return ""
    return "" if said == expected else f"it is about {one_line(said, 60)}"


def _wrong_task(build: str, name: str, task: Task) -> str:
    try:
        ids.check_task_id(name)
        planned_in = ids.parse_iteration_key(f"{build}.{task.iteration}")
    except WrongUse as e:
        return str(e)
    if (task.id, task.build) != (name, build):
        return f"it is about {one_line(task.build, 60)}.{one_line(task.id, 60)}"
    if planned_in.planner != task.planner and task.id != planned_in.planner:
        return "its iteration is another planner's"
    if not _BRANCH.fullmatch(task.branch) or ".." in task.branch:
        return "its branch has no name of a branch"
    return ""


def restored_request(asked: Asked, target: Target, settings: Settings, origins: Mapping[str, Origin]) -> BuildRequest:
    """The build as it goes on here: asked for there, by this person's settings on this person's target.

    Raises RepositoryError when a setting that is the build's own cannot be used.
    """
    own = {name: asked.settings[name] for name in THE_BUILDS_OWN if name in asked.settings and name not in origins}
    try:
        kept = Settings.model_validate({**dict(settings), **own})
        return BuildRequest(
            build=asked.build,
            request=asked.request,
            target=target,
            base=asked.base,
            settings=kept,
            origins={**origins, **{n: Origin.TARGET for n in own if getattr(kept, n) != getattr(Settings(), n)}},
            created_at=asked.created_at,
        )
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(p) for p in first["loc"])
        raise RepositoryError(f"the checkpoint of build {asked.build} cannot be used: {where}: {first['msg']}") from e


def elsewhere(asked: Asked, target: Target) -> str:
    """Why the checkpoint's build is not one that lands on `target`; empty when it is."""
    if asked.target.branch == target.branch:
        return ""
    branch = one_line(asked.target.branch, 100)
    if asked.target.branch == f"longshot/{asked.build}":
        return f"build {asked.build} landed in a checkout, on branch {branch}; resume it from inside one, or --land-on {branch}"
    return f"build {asked.build} lands on branch {branch}, not on {target.branch}; --land-on {branch} says so"


def restored_state(state: BuildState | None, ended: bool, launched: Mapping[str, int], reason: str) -> BuildState:
    """Paused, with an attempt that was never launched for whatever has been; a build that has `ended` stays finished."""
    found = state or BuildState()
    attempts = (
        {name: n for name, n in found.attempts.items() if _ATTEMPT.fullmatch(name) and 0 < n <= MAX_ATTEMPT}
        if len(found.attempts) <= MAX_DOCUMENTS
        else {}
    )
    for name, attempt in launched.items():
        attempts[name] = max(attempts.get(name, 1), attempt + 1)
    if found.phase is BuildPhase.FINISHED and ended:
        return BuildState(phase=BuildPhase.FINISHED, attempts=attempts, verdict=found.verdict)
    return BuildState(phase=BuildPhase.PAUSED, reason=reason, attempts=attempts)
