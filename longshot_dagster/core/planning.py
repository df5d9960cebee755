"""From a planner's answer to tasks: what is objected to, what a task is called, who works on it, what a parent hands in."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from longshot_dagster.core import ids, scope
from longshot_dagster.core.apart import kept_apart
from longshot_dagster.core.display import code_block, display, one_line
from longshot_dagster.core.ids import FIX, ROOT, IterationKey
from longshot_dagster.core.landing_records import ConflictFile, LandingOutcome, LandingState
from longshot_dagster.core.lifecycle import should_delegate
from longshot_dagster.core.models import (
    MAX_LIST,
    MAX_TEXT,
    BuildRequest,
    Handoff,
    HandoffMetrics,
    HandoffStatus,
    Plan,
    PlannedTask,
    PlanReply,
    RepoState,
    Task,
    TaskKind,
)
from longshot_dagster.core.needs import beyond
from longshot_dagster.core.settings import Settings

MAX_CONFLICT_FIXES = 90  # of one iteration; the others wait for the next, on a main where these have landed
MAX_EXCLUSIVE = 20  # tasks of one round that may keep others out of their files
_MAX_OBJECTIONS = 10
_MAX_FIX_TEXT = 60_000
_DONE = (LandingState.LANDED, LandingState.NOOP, LandingState.SUPERSEDED)


@dataclass(frozen=True)
class TaskReport:
    """A task as far as it has come."""

    task: Task
    handoff: Handoff | None = None
    landing: LandingOutcome | None = None

    @property
    def landed(self) -> bool:
        """Is its work on main, or in what replaced it?"""
        if self.landing is not None:
            return self.landing.state in _DONE
        return self.task.delegated and self.handoff is not None and self.handoff.status is HandoffStatus.COMPLETE


@dataclass(frozen=True)
class Rules:
    """What a planner's answer is held against."""

    key: IterationKey
    parent: Task | None = None
    active: tuple[Task, ...] = ()
    settings: Settings | None = None

    @property
    def must_plan(self) -> bool:
        """The root planner's first round may not say that there is nothing to do."""
        return self.key.planner == ROOT and self.key.number == 1


@dataclass(frozen=True)
class Objections:
    """`hard` ones are never let through; `soft` ones are said once, and then landing deals with them."""

    hard: tuple[str, ...] = ()
    soft: tuple[str, ...] = ()


def objections(reply: PlanReply, rules: Rules) -> Objections:
    """What to send back to the planner, in words it can act on."""
    hard: list[str] = []
    if rules.must_plan and not reply.tasks:
        hard.append("This is the first round: plan at least one task towards the request.")
    if rules.parent is not None:
        for number, task in enumerate(reply.tasks):
            if outside := outside_of(task, rules.parent):
                hard.append(
                    f"tasks[{number}].scope: {_names(outside)} is outside your own scope ({_names(rules.parent.scope)})"
                )
    soft = [*_too_needy(reply.tasks, rules), *_overlaps(reply.tasks, rules)]
    return Objections(tuple(hard[:_MAX_OBJECTIONS]), tuple(soft[:_MAX_OBJECTIONS]))


def outside_of(task: PlannedTask, parent: Task) -> tuple[str, ...]:
    return tuple(path for path in task.scope if not scope.within([path], parent.scope))


def _too_needy(tasks: Sequence[PlannedTask], rules: Rules) -> list[str]:
    """Needs beyond the settings; a task that keeps them comes back blocked, without a worker."""
    if rules.settings is None:
        return []
    found = [(n, beyond(task.needs, rules.settings)) for n, task in enumerate(tasks) if task.needs]
    return [
        f"tasks[{n}].needs: {', '.join(too_much)} is more than this build allows; plan it without, or leave it out"
        for n, too_much in found
        if too_much
    ]


def _overlaps(tasks: Sequence[PlannedTask], rules: Rules) -> list[str]:
    found = []
    if (alone := sum(bool(task.alone_on) for task in tasks)) > MAX_EXCLUSIVE:
        found.append(
            f"{alone} tasks are exclusive, and only the first {MAX_EXCLUSIVE} of a round are: nobody else may be at work in their files"
        )
    near = scope.Neighbours()
    for n, task in enumerate(tasks):
        for m in near.of(task.scope):
            if kept_apart(task, tasks[m]):
                continue  # the second begins where the first has landed
            shared = scope.overlap(task.scope, tasks[m].scope)
            found.append(f"tasks[{m}] and tasks[{n}] both change {_names(shared)}: they would conflict")
        near.add(n, task.scope)
        for active in rules.active:
            # A subplanner's own task, and those above it, cover its parts by nature.
            above = rules.key.planner == active.id or rules.key.planner.startswith(active.id + "-")
            if not above and active.id not in task.replaces and (shared := scope.overlap(task.scope, active.scope)):
                found.append(f"tasks[{n}] changes {_names(shared)}, which {active.id} is working on")
    return found


def _names(paths: Collection[str]) -> str:
    shown = ", ".join(display(p, "plain", 120) for p in list(paths)[:5])
    return shown + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")


# --- tasks -----------------------------------------------------------------------------------------------------------


def plan_tasks(
    reply: PlanReply,
    key: IterationKey,
    request: BuildRequest,
    parent: Task | None = None,
    unlanded: Collection[str] = (),
    *,
    kind: TaskKind = TaskKind.PLAN,
    first_position: int = 1,
) -> tuple[Task, ...]:
    """The answer's tasks under our names. Those outside `parent`'s scope are left out; `replaces` may name only `unlanded`."""
    kept = [t for t in reply.tasks if parent is None or not outside_of(t, parent)]
    alone = [n for n, planned in enumerate(kept) if planned.alone_on][:MAX_EXCLUSIVE]
    return tuple(
        _task(
            planned, key, request, kind, first_position + n, unlanded, _exclusive(planned, parent) if n in alone else ()
        )
        for n, planned in enumerate(kept[: ids.MAX_POSITION + 1 - first_position])
    )


def _exclusive(planned: PlannedTask, parent: Task | None) -> tuple[str, ...]:
    """A subplanner keeps others out of its own scope only."""
    return tuple(path for path in planned.alone_on if parent is None or scope.within([path], parent.scope))


def _task(
    planned: PlannedTask,
    key: IterationKey,
    request: BuildRequest,
    kind: TaskKind,
    position: int,
    unlanded: Collection[str],
    exclusive: tuple[str, ...],
) -> Task:
    name = ids.task_id(key, position)
    paths = tuple(planned.scope)
    replaces = tuple(dict.fromkeys(r for r in planned.replaces if r in unlanded))
    return Task(
        id=name,
        build=request.build,
        iteration=key.short,
        planner=key.planner,
        kind=kind,
        description=planned.description,
        scope=paths,
        acceptance=planned.acceptance,
        priority=planned.priority,
        branch=branch_of(request, name),
        # A task's own depth is that of its planner plus one, and names leave room for two subplanners above a worker.
        # What redoes other tasks is one worker's: they are superseded when its branch lands, and a parent has none.
        # Exclusive work is one worker's, too: its parts could not be at work beside it.
        delegated=kind is TaskKind.PLAN
        and not replaces
        and not exclusive
        and should_delegate(paths, ids.depth(name) + 1),
        replaces=replaces,
        exclusive=exclusive,
        needs=planned.needs,
    )


def branch_of(request: BuildRequest, task: str) -> str:
    return f"{request.settings.git_branch_prefix}{request.build}/{task}"


def atomic_plan(parent: Task, key: IterationKey, state: RepoState) -> Plan:
    """A subplanner that sees nothing to split gives the whole task to one worker, under its own name."""
    return Plan(
        iteration=key.short,
        tasks=(parent.model_copy(update={"delegated": False, "iteration": key.short}),),
        base=state.head,
    )


# --- conflict fixes --------------------------------------------------------------------------------------------------


def conflict_fix(
    report: TaskReport, others: Mapping[str, Task], key: IterationKey, request: BuildRequest, position: int
) -> Task:
    """One task that redoes a branch that did not merge, on fresh main. No model is asked.

    `others`: the landed tasks it collided with. Its scope is the whole of the original task's, because nothing of the
    original branch has landed, and the conflicted paths.
    """
    task, landing = report.task, report.landing
    conflicts = landing.conflicts if landing else ()
    name = ids.task_id(key, position)
    return Task(
        id=name,
        build=request.build,
        iteration=key.short,
        planner=FIX,
        kind=TaskKind.CONFLICT_FIX,
        description=_conflict_description(report, conflicts, others)[: MAX_TEXT * 4],
        scope=tuple(dict.fromkeys([*(c.path for c in conflicts), *task.scope])),
        acceptance=(f"{task.acceptance}\n" if task.acceptance else "")
        + "No conflict markers are left, and what both tasks wanted works.",
        priority=1,
        branch=branch_of(request, name),
        replaces=(task.id,),
        needs=task.needs,
    )


def _conflict_description(report: TaskReport, conflicts: Sequence[ConflictFile], others: Mapping[str, Task]) -> str:
    task = report.task
    parts = [
        f"{task.title}, redone after a conflict",
        f"Task {task.id} was done, but its branch no longer merges: main has moved in the same places. None of its work "
        "is on main. Do the task again on the main you find, so that what it wanted and what landed meanwhile both work.",
        f"## What task {task.id} wanted\n\n{_plain(task.description, 8_000)}",
    ]
    if report.handoff and report.handoff.summary:
        parts.append(f"Its worker's summary: {one_line(report.handoff.summary, 2_000)}")
    for name, other in list(others.items())[:5]:
        parts.append(f"## What landed meanwhile: task {name}\n\n{_plain(other.description, 3_000)}")
    parts.append(
        "## Conflicted files\n\n"
        + "\n".join(f"- {one_line(c.path, 500)} ({one_line(c.kind, 100)})" for c in conflicts[:100])
    )
    room = _MAX_FIX_TEXT - sum(map(len, parts))
    for conflict in conflicts:
        text = _contents(conflict, min(room, 20_000))
        if len(text) > room:
            parts.append("(The other files' contents are too long to show; `git log -p` on main shows what landed.)")
            break
        parts.append(text)
        room -= len(text)
    if report.handoff and report.handoff.diff and room > 2_000:
        shown = code_block(report.handoff.diff, "diff", min(room - 500, 20_000))
        parts.append(f"## The diff of task {task.id}, made on an older main\n\n{shown}")
    return "\n\n".join(parts)


def _contents(conflict: ConflictFile, limit: int) -> str:
    path = one_line(conflict.path, 500)
    if conflict.merged is not None:
        return f"### {path}, merged, with conflict markers\n\n{code_block(conflict.merged, '', max(200, limit))}"
    sides = [
        ("as it was before both", conflict.base),
        ("as it is on main", conflict.ours),
        ("as the task left it", conflict.theirs),
    ]
    shown = [f"### {path}, {side}\n\n{code_block(text, '', max(200, limit // 3))}" for side, text in sides if text]
    return "\n\n".join(shown) or f"### {path}\n\n(binary, deleted or too large to show)"


def _plain(text: str, limit: int) -> str:
    return display(text, "plain", limit)


# --- a parent's handoff ----------------------------------------------------------------------------------------------


def aggregate(parent: Task, children: Sequence[Handoff], landings: Iterable[LandingOutcome] = ()) -> Handoff:
    """What a subplanner's task hands in, from its parts' handoffs and landings.

    Complete only when every part is complete and, as far as `landings` tell, landed or superseded by what landed.
    """
    landed = {outcome.task: outcome for outcome in landings}

    def done(child: Handoff) -> bool:
        outcome = landed.get(child.task_id)
        superseded = outcome is not None and outcome.state is LandingState.SUPERSEDED
        complete = child.status is HandoffStatus.COMPLETE and (outcome is None or outcome.state in _DONE)
        return superseded or complete

    finished = [c for c in children if done(c)]
    if children and len(finished) == len(children):
        status = HandoffStatus.COMPLETE
    else:
        some = finished or any(c.status is HandoffStatus.PARTIAL for c in children)
        status = HandoffStatus.PARTIAL if some else HandoffStatus.FAILED
    lines = [f"{len(finished)} of {len(children)} parts are done."]
    lines += [f"- {c.task_id} ({_fate(c, landed)}): {one_line(c.summary, 300)}" for c in children]
    return Handoff(
        task_id=parent.id,
        status=status,
        summary="\n".join(lines)[:MAX_TEXT],
        files_changed=list(dict.fromkeys(p for c in children for p in c.files_changed))[:5_000],
        concerns=[f"{c.task_id}: {one_line(x, 500)}" for c in children for x in c.concerns][:MAX_LIST],
        suggestions=[f"{c.task_id}: {one_line(x, 500)}" for c in children for x in c.suggestions][:MAX_LIST],
        metrics=HandoffMetrics(
            **{name: sum(getattr(c.metrics, name) for c in children) for name in HandoffMetrics.model_fields}
        ),
    )


def _fate(child: Handoff, landed: Mapping[str, LandingOutcome]) -> str:
    outcome = landed.get(child.task_id)
    return f"{child.status.value}, {outcome.state.value}" if outcome else child.status.value
