"""What taking back a landing means: which tasks it concerns, what its commit says, who stands in the way, what is left to say."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from longshot_dagster.core.display import one_line
from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.ids import task_partition
from longshot_dagster.core.landing import BUILD_TRAILER
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import (
    BuildReport,
    Handoff,
    Plan,
    Task,
    Verdict,
)
from longshot_dagster.core.report import leftovers

UNDO_TRAILER = "Longshot-Undo"

_NAMED = 5


@dataclass(frozen=True)
class Step:
    """One thing that has happened on a landing branch: a task landed, was undone, or somebody committed.

    `before` and `after` are the branch's commits around it; `paths` is what differs between them.
    """

    before: str
    after: str
    build: str = ""
    task: str = ""
    undo: bool = False
    author: str = ""
    subject: str = ""
    paths: frozenset[str] = frozenset()

    @property
    def key(self) -> tuple[str, str, bool] | None:
        """Commits of the same landing have the same key; one by somebody else has none."""
        return (self.build, self.task, self.undo) if self.task else None

    @property
    def named(self) -> str:
        if not self.task:
            return f"commit {self.after[:12]} of {one_line(self.author, 60)} ({one_line(self.subject, 80)})"
        return f"the undo of {self.build}.{self.task}" if self.undo else f"{self.build}.{self.task}"

    @property
    def way_out(self) -> str:
        if self.task and not self.undo:
            return f"`longshot undo {self.build}.{self.task}`"
        return f"`git revert {self.after[:12]}`"


def wanted(build: str, task: str | None, landings: Mapping[str, LandingOutcome]) -> tuple[str, ...]:
    """The landed tasks that an undo of `task` with its parts (None: of the whole build) takes back.

    Raises WrongUse, saying why, when there is none.
    """
    mine = {t: o for t, o in landings.items() if task is None or t == task or t.startswith(f"{task}-")}
    landed = tuple(t for t, o in mine.items() if o.state is LandingState.LANDED)
    if landed:
        return landed
    raise WrongUse(f"nothing to undo: {_why_nothing(build, task, mine)}")


def _why_nothing(build: str, task: str | None, landings: Mapping[str, LandingOutcome]) -> str:
    if landings and all(o.state is LandingState.UNDONE for o in landings.values()):
        return f"{task or f'all of build {build}'} was undone already"
    if task is None:
        return f"no task of build {build} has landed"
    own = landings.get(task)
    if own is None:
        return f"{task} has not landed"
    if own.state is LandingState.SUPERSEDED and own.superseded_by:
        other = task_partition(build, own.superseded_by)
        return f"{task} did not land, {own.superseded_by} landed in its place (`longshot undo {other}`)"
    return f"{task} has not landed ({own.state.value})"


def undo_message(build: str, task: Task, commits: Sequence[str]) -> str:
    """Of the commit that takes back what `task` landed as `commits` (oldest first). Without the trailer that makes a landing."""
    which = commits[0] if len(commits) == 1 else f"{commits[0]}..{commits[-1]}"
    body = f"This takes back what task {task.id} landed as\n{which}."
    return f"Undo: {task.title}\n\n{body}\n\n{BUILD_TRAILER}: {build}\n{UNDO_TRAILER}: {task.id}\n"


# --- who stands in the way -------------------------------------------------------------------------------------------


def joined(steps: Iterable[Step]) -> tuple[Step, ...]:
    """Commits, oldest first, as steps: those of one landing that follow each other are one."""
    found: list[Step] = []
    for step in steps:
        if found and step.key is not None and found[-1].key == step.key:
            found[-1] = replace(found[-1], after=step.after)
        else:
            found.append(step)
    return tuple(found)


def standing(steps: Iterable[Step]) -> tuple[Step, ...]:
    """`steps` without landings that were undone later, and without these undos: together they are nothing."""
    kept: list[Step] = []
    for step in steps:
        taken = (step.build, step.task, False)
        place = next((i for i in reversed(range(len(kept))) if step.undo and kept[i].key == taken), None)
        if place is None:
            kept.append(step)
        else:
            del kept[place]
    return tuple(kept)


def related(steps: Sequence[Step], paths: Collection[str]) -> tuple[Step, ...]:
    """The steps that touch `paths`, or what such a step touches, and so on."""
    reached = set(paths)
    found: set[int] = set()
    while new := [i for i, s in enumerate(steps) if i not in found and not reached.isdisjoint(s.paths)]:
        found.update(new)
        reached.update(*(steps[i].paths for i in new))
    return tuple(steps[i] for i in sorted(found))


def refusal(task: str, paths: Collection[str], dependants: Sequence[Step]) -> WrongUse:
    """Why `task` cannot be taken back now; `dependants`, oldest first, build on it in `paths`."""
    where = ", ".join(one_line(p, 100) for p in sorted(paths)[:3]) + (", ..." if len(paths) > 3 else "")
    if not dependants:
        return WrongUse(f"{task} cannot be undone by itself: taking it back conflicts in {where}; nothing was changed")
    newest = list(reversed(dependants))
    names = ", ".join(s.named for s in newest[:_NAMED])
    ways = ", then ".join(s.way_out for s in newest[:_NAMED])
    more = f" and {len(newest) - _NAMED} more" if len(newest) > _NAMED else ""
    verb = "builds" if len(newest) == 1 else "build"
    return WrongUse(f"{task} was not undone: {names}{more} {verb} on it ({where}); first {ways}")


# --- afterwards ------------------------------------------------------------------------------------------------------


def retold(
    earlier: BuildReport,
    *,
    tasks: Iterable[Task],
    handoffs: Mapping[str, Handoff],
    landings: Mapping[str, LandingOutcome],
    plans: Iterable[Plan],
    head: str,
) -> BuildReport:
    """The report of a finished build of which something was undone; never green, because nobody has checked what is left."""
    states = [o.state for o in landings.values()]
    left = leftovers(tasks, handoffs, landings, plans)
    unlanded = {x.task for x in left}
    superseded = [t for t, o in landings.items() if o.state is LandingState.SUPERSEDED and t not in unlanded]
    red = earlier.health == "red"
    undone = states.count(LandingState.UNDONE)
    changes = {
        "head": head,
        "landed": states.count(LandingState.LANDED),
        "superseded": len(superseded),
        "leftovers": left,
        "health": "red" if red else "unchecked",
        "reason": earlier.reason if red else f"{undone} task{'s' if undone != 1 else ''} undone since it was checked",
        "verdict": Verdict.RED if red else Verdict.LEFTOVERS,
    }
    return BuildReport.model_validate({**dict(earlier), **changes})
