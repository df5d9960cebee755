"""What of a worker's branch may land, under whose name, and what becomes of the rest: the landing queue's policy."""

import posixpath
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from longshot_dagster.core import scope
from longshot_dagster.core.display import display
from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.ids import FIX, ROOT, task_partition
from longshot_dagster.core.landing_records import Concern, ConcernKind, LandingOutcome, LandingState
from longshot_dagster.core.lifecycle import parent_of
from longshot_dagster.core.models import (
    MAX_LIST,
    Handoff,
    HandoffStatus,
    Task,
    WorkerRun,
)
from longshot_dagster.core.path_lists import PathList
from longshot_dagster.core.protected import PathRules
from longshot_dagster.core.working import BY_A_PERSON

BUILD_TRAILER = "Longshot-Build"
TASK_TRAILER = "Longshot-Task"
SOURCE_TRAILER = "Longshot-Source"

GATHER_S, GATHER_MOST_S = 1.0, 8.0
_AT_WORK_PER_SECOND = 25

SUPERSEDABLE = (LandingState.CONFLICT, LandingState.WITHHELD, LandingState.NOOP, LandingState.UNDONE)

_FORGED = re.compile(r"\W*longshot[-_ ]*(?:build|task|source|undo|lock[-_ ]*file)\s*[:=#]", re.IGNORECASE)
# Who answers for a change is for people to say, and a forge believes these lines.
_IN_SOMEBODYS_NAME = re.compile(
    r"\W*(?:(?:signed-off|co-authored|co-developed|reviewed|acked|approved|tested|reported|suggested)-by|skip-checks)\s*:",
    re.IGNORECASE,
)
# What a forge acts on wherever it stands: no CI for what was pushed, an issue of somebody's closed.
_SKIPS_CI = re.compile(r"\[\s*(?:(?:skip|no)[ _-]?\w+|\w+[ _-]?skip)\s*\]|\*{3}\s*no_ci\s*\*{3}", re.IGNORECASE)
_CLOSES = re.compile(r"\b(?:clos|fix|resolv|implement)\w*\b.{0,300}?(?:#|!|\bGH-|/)\d", re.IGNORECASE)
_REFERENCE = re.compile(r"(?:#|!|\bGH-|(?<=[a-z])/)(?=\d)", re.IGNORECASE)
_WORKER = ("longshot worker", "worker@longshot.invalid")
_NOBODYS = ".invalid"  # reserved: no such address is anybody's
_GONE, _RUNS = "000000", "100755"
_MODES = {_GONE, "100644", _RUNS, "120000"}
EVERYBODYS = PathRules()
_SUBJECT = 100
_BODY = 4_000

# They steer machines outside any sandbox (CI with secrets, git, editors, ourselves), so nobody lands them by straying.
_STEERING = (
    *(".github/", ".gitlab-ci.yml", ".gitlab/", ".circleci/", ".gitmodules", ".gitattributes", ".longshot.toml"),
    *(".husky/", ".vscode/", ".devcontainer/", ".pre-commit-config.yaml", "Jenkinsfile", "azure-pipelines.yml"),
)


def gathering_s(at_work: int) -> float:
    """Seconds from the beginning of one batch to that of the next, while `at_work` tasks may still be handed in.

    A batch costs a merge of the checkpoint, a push and a bundle of the new main, however little is in it: a third of what a
    fleet of two hundred cost in all when they began every second. A few workers have nothing to wait for.
    """
    return min(GATHER_MOST_S, max(GATHER_S, at_work / _AT_WORK_PER_SECOND))


@dataclass(frozen=True)
class Change:
    """One path that a branch changes. `path` is git's bytes, surrogate-escaped; `mode` is 000000 for a deletion."""

    path: str
    mode: str
    oid: str
    status: str
    link: str | None = None  # where a symbolic link points; None for anything else
    mode_before: str = ""  # and content before; 000000 and zeros for a path that was not there
    before: str = ""

    @property
    def executable_flipped(self) -> bool:
        """Does a file become executable, or stop being it, other than by going away?"""
        return bool(self.mode_before) and self.mode != _GONE and (self.mode == _RUNS) != (self.mode_before == _RUNS)

    @property
    def shown(self) -> str:
        return display(self.path.encode("utf-8", "surrogateescape").decode("utf-8", "replace"), "plain", 4_000)


@dataclass(frozen=True)
class Ownership:
    """Which task of the build a path belongs to, beside the task that is landing."""

    scopes: Mapping[str, tuple[str, ...]]
    claims: Mapping[str, str]

    def owner(self, path: str) -> str | None:
        if path in self.claims:
            return self.claims[path]
        return next((task for task, entries in self.scopes.items() if scope.covers(entries, path)), None)

    def beside(self, *others: "Ownership") -> "Ownership":
        """This one, and what others own besides; where both claim a path, it is this one's."""
        scopes, claims = dict(self.scopes), dict(self.claims)
        for other in others:
            scopes = {**other.scopes, **scopes}
            claims = {**other.claims, **claims}
        return Ownership(scopes, claims)


@dataclass(frozen=True)
class Split:
    """The paths of one branch, divided. What is claimed lands too."""

    landed: tuple[str, ...]
    claimed: tuple[str, ...]
    withheld: tuple[str, ...]
    concerns: tuple[Concern, ...]

    @property
    def kept(self) -> frozenset[str]:
        return frozenset((*self.landed, *self.claimed))


def split(changes: Iterable[Change], task: Task, owners: Ownership, rules: PathRules = EVERYBODYS) -> Split:
    """Divide a branch's changes: in scope, claimed by straying where nobody owns, and withheld with a reason each.

    `rules`: what of it never lands, or not without approval, whatever the scope says.
    """
    landed: list[str] = []
    claimed: list[str] = []
    withheld: list[str] = []
    concerns: list[Concern] = []
    for change in changes:
        refusal = _refusal(change, task, owners, len(claimed), rules)
        if refusal is not None:
            withheld.append(change.path)
            concerns.append(refusal)
        elif scope.covers(task.scope, change.path):
            landed.append(change.path)
        else:
            claimed.append(change.path)
            concerns.append(_concern(ConcernKind.CLAIMED, change, "outside the scope, owned by no task: landed"))
    return Split(tuple(landed), tuple(claimed), tuple(withheld), _bounded(concerns))


def to_approve(changes: Iterable[Change], rules: PathRules) -> tuple[Change, ...]:
    """What of a branch lands once a person has approved it, sorted by path; what may not land at all is not among it."""
    asked = (c for c in changes if rules.protects(c.path) and unsafe_reason(c) is None and not rules.too_large(c.oid))
    return tuple(sorted(asked, key=lambda c: c.path))


def as_landed(parts: Split, changes: Iterable[Change], paths: Collection[str]) -> Split:
    """`parts` of a branch that landed earlier with these `paths`: what landed then is its task's, whoever owns it now."""
    there, changes = frozenset(paths), tuple(changes)
    withheld, claimed = frozenset(parts.withheld), frozenset(parts.claimed)
    late = [c for c in changes if c.path in withheld & there and not scope.is_generated(c.path)]
    kept_back = [c for c in changes if c.path in claimed - there]
    told_anew = {c.shown for c in (*late, *kept_back)}
    return Split(
        parts.landed,
        (*(p for p in parts.claimed if p in there), *(c.path for c in late)),
        (*(p for p in parts.withheld if p not in {c.path for c in late}), *(c.path for c in kept_back)),
        (
            *(c for c in parts.concerns if c.path not in told_anew),
            *(_concern(ConcernKind.CLAIMED, c, "outside the scope, owned by no task: landed") for c in late),
            *(_concern(ConcernKind.OUT_OF_SCOPE, c, "outside the scope, and not among what landed") for c in kept_back),
        ),
    )


def _refusal(change: Change, task: Task, owners: Ownership, claims: int, rules: PathRules) -> Concern | None:
    if unsafe := unsafe_reason(change):
        return _concern(ConcernKind.UNSAFE_PATH, change, unsafe)
    if rules.too_large(change.oid):
        return _concern(ConcernKind.TOO_LARGE, change, f"larger than {rules.max_bytes >> 20} MB (MAX_FILE_MB)")
    if rules.protects(change.path):
        if change.path in rules.approved:
            return None
        why = f"protected; lands once a person says `longshot approve {task_partition(task.build, task.id)}`"
        return _concern(ConcernKind.PROTECTED, change, why)
    if is_withheld_as_generated(change.path, task.scope, rules.generated):
        return _concern(ConcernKind.GENERATED, change, "generated; lock files and build output never land from a task")
    if scope.covers(task.scope, change.path):
        return None
    if change.executable_flipped:
        return _concern(ConcernKind.UNSAFE_PATH, change, "outside the scope, and what may be executed changes with it")
    if scope.covers(_STEERING, change.path):
        return _concern(
            ConcernKind.OUT_OF_SCOPE, change, "steers tools outside the sandbox; lands only when a scope names it"
        )
    if owner := owners.owner(change.path):
        return _concern(ConcernKind.OUT_OF_SCOPE, change, f"belongs to task {owner}; not landed")
    if claims >= MAX_LIST:
        return _concern(ConcernKind.OUT_OF_SCOPE, change, f"more than {MAX_LIST} paths outside the scope; not landed")
    return None


def unsafe_reason(change: Change) -> str | None:
    """Why a change may never land, whatever the scope says; None when it may."""
    try:
        change.path.encode("utf-8")
        if scope.normalise(change.path) != change.path:
            return "this path means something else on another file system"
    except (WrongUse, UnicodeEncodeError):
        return "not a path that may be in a repository"
    if change.mode not in _MODES:
        return "a submodule; landing moves files only" if change.mode == "160000" else f"file mode {change.mode}"
    if change.link is not None and link_leaves(change.path, change.link):
        return "a symbolic link that leaves the repository"
    return None


def link_leaves(path: str, target: str) -> bool:
    """Could the link at `path` point outside the repository, also through other links?

    `..` counts only at the front: behind a name that is itself a link, it would go up from somewhere else.
    """
    if not target or target.startswith(("/", "~", "\\")) or "\0" in target or ":" in target.split("/")[0]:
        return True
    parts = [p for p in target.replace("\\", "/").split("/") if p not in ("", ".")]
    ups = next((i for i, p in enumerate(parts) if p != ".."), len(parts))
    if ".." in parts[ups:] or ups > path.count("/"):
        return True
    rest = posixpath.join(*path.split("/")[: path.count("/") - ups], *parts[ups:], "x")
    try:
        scope.normalise(rest)
    except WrongUse:
        return True
    return False


def is_withheld_as_generated(path: str, task_scope: Iterable[str], listed: PathList = EVERYBODYS.generated) -> bool:
    """Generated, unless it lies in a directory like `build/` that the scope names itself; lock files always.

    `listed`: GENERATED_PATHS. What it names besides lands where a scope names the very path.
    """
    if listed.covers(path) and path not in task_scope:
        return True
    if not listed.built_in or not scope.is_generated(path):
        return False
    name = posixpath.basename(path)
    if name in scope.LOCK_FILES or name.endswith((".pyc", ".pyo")):
        return True
    named = (e for e in task_scope if scope.covers((e,), path))
    return not any(part in scope.BUILD_OUTPUT for e in named for part in e.rstrip("/").split("/"))


def ownership(task: Task, tasks: Iterable[Task], landings: Mapping[str, LandingOutcome]) -> Ownership:
    """Who owns what while `task` lands: every other task's scope, then what others claimed by landing it first.

    Its own ancestors do not count (a parent's scope is what its children share out), nor what it replaces, nor what
    another task has superseded.
    """
    return _owned(tasks, landings, {task.id, *task.replaces, *_ancestors(task.id)}, lambda name: name)


def holdings(build: str, tasks: Iterable[Task], landings: Mapping[str, LandingOutcome]) -> Ownership:
    """What another build owns on the branch: its tasks' scopes and claims, by their full names."""
    return _owned(tasks, landings, frozenset(), lambda name: task_partition(build, name))


def strays(changes: Iterable[Change], task: Task) -> bool:
    """Does a branch touch anything outside its task's scope?"""
    return any(not scope.covers(task.scope, change.path) for change in changes)


def _owned(
    tasks: Iterable[Task],
    landings: Mapping[str, LandingOutcome],
    but: Collection[str],
    named: Callable[[str], str],
) -> Ownership:
    given_up = (LandingState.SUPERSEDED, LandingState.UNDONE)
    scopes = {
        named(t.id): t.scope
        for t in tasks
        if t.id not in but and (t.id not in landings or landings[t.id].state not in given_up)
    }
    claims = {
        concern.path: named(outcome.task)
        for outcome in landings.values()
        if outcome.state is LandingState.LANDED and outcome.task not in but
        for concern in outcome.concerns
        if concern.kind is ConcernKind.CLAIMED
    }
    return Ownership(scopes, claims)


def _ancestors(task: str) -> Iterator[str]:
    while (task := parent_of(task)) not in (ROOT, FIX):
        yield task


def landable(handoff: Handoff, run: WorkerRun | None) -> Concern | None:
    """Why a branch may not land at all; None when it may. Red on its base too does not count against it."""
    if handoff.status is not HandoffStatus.COMPLETE:
        if BY_A_PERSON in handoff.concerns:
            return Concern(kind=ConcernKind.NOT_COMPLETE, text="a person cancelled the task")
        return Concern(kind=ConcernKind.NOT_COMPLETE, text=f"the handoff is {handoff.status}, not complete")
    if run is None:
        return Concern(kind=ConcernKind.NOT_COMPLETE, text="there is no record of the worker's run")
    red = [f"{c.name} ({c.status})" for c in run.checks if c.red]
    if red:
        return Concern(kind=ConcernKind.CHECK_RED, text=f"red in its own sandbox: {', '.join(red)}")
    return None


def guard(landed: Iterable[str], own: frozenset[str], renamed: Mapping[str, str]) -> tuple[str, ...]:
    """Paths a landing would change though its branch never did: anything here means a wrong merge base.

    `renamed` maps a new name on the landing branch to the old one: edits that follow a rename are the branch's own.
    """
    return tuple(sorted(p for p in landed if p not in own and renamed.get(p) not in own))


def replaced_by(task: Task, tasks: Mapping[str, Task]) -> tuple[str, ...]:
    """Everything that landing `task` makes unnecessary: what it replaces, and what that was to replace."""
    found: dict[str, None] = {}
    waiting = list(task.replaces)
    while waiting:
        name = waiting.pop(0)
        if name != task.id and name not in found:
            found[name] = None
            waiting += tasks[name].replaces if name in tasks else ()
    return tuple(found)


# --- messages --------------------------------------------------------------------------------------------------------


def is_fit(message: str) -> bool:
    """May a worker's message reach the landing branch as it is: plain, not endless, and nothing in it that is believed?"""
    plain = display(message, "plain", len(message) + 1)
    if plain != message or len(message) > _BODY:
        return False
    return not any(_is_believed(line) or _unheard(line) != line for line in plain.splitlines())


def commit_message(text: str, build: str, task: str, source: str) -> str:
    """`text` (first line: the subject) without control characters, forged trailers and orders to a forge, bounded; then our
    three."""
    # Cleaned before it is searched: an invisible character could otherwise hide a trailer until it is removed.
    written = (line.rstrip() for line in display(text, "plain", _BODY).strip().splitlines())
    lines = [_unheard(line) for line in written if not _is_believed(line)]
    while lines and not lines[0].strip():
        lines.pop(0)
    subject = display(lines[0].strip() if lines else f"Task {task}", "plain", _SUBJECT)
    body = "\n".join(lines[1:]).strip()
    trailers = f"{BUILD_TRAILER}: {build}\n{TASK_TRAILER}: {task}\n{SOURCE_TRAILER}: {source}"
    return "\n\n".join(part for part in (subject, body, trailers) if part) + "\n"


def _is_believed(line: str) -> bool:
    """Would we, a forge or people take this line of a message for a trailer of their own?"""
    return bool(_FORGED.match(line) or _IN_SOMEBODYS_NAME.match(line))


def _unheard(line: str) -> str:
    """The line with nothing in it that a forge acts on."""
    line = _SKIPS_CI.sub("(ci)", line)
    return _REFERENCE.sub(" no. ", line) if _CLOSES.search(line) else line


def person(name: str, email: str) -> tuple[str, str]:
    """An author as a worker wrote it, made safe for a commit header; never a person, whom a forge knows by the address."""
    plain_name = re.sub(r"[<>\n\t]", "", display(name, "plain", 100)).strip(" .,:;\"'\\")
    plain_email = re.sub(r"[<>\s]", "", display(email, "plain", 200)).strip(" .,:;\"'\\")
    if not plain_email.lower().endswith(_NOBODYS):
        return _WORKER
    return plain_name or _WORKER[0], plain_email


def _concern(kind: ConcernKind, change: Change, text: str) -> Concern:
    return Concern(kind=kind, text=f"{change.shown[:1_000]}: {text}", path=change.shown)


def _bounded(concerns: list[Concern]) -> tuple[Concern, ...]:
    """All claims (they are owners' records), all that a person is to approve, and the first 200 of the rest."""
    whole = (ConcernKind.CLAIMED, ConcernKind.PROTECTED)
    claims = [c for c in concerns if c.kind in whole]
    rest = [c for c in concerns if c.kind not in whole]
    more = len(rest) - MAX_LIST
    if more > 0:
        rest = [*rest[:MAX_LIST], Concern(kind=rest[-1].kind, text=f"and {more} more paths withheld")]
    return (*claims, *rest)
