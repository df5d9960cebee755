"""What a planner is told: everything once, then only what has changed. Every text of others is bounded and made plain."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from longshot_dagster.core.display import code_block, display, one_line
from longshot_dagster.core.ids import ROOT, IterationKey
from longshot_dagster.core.landing_records import LandingState
from longshot_dagster.core.models import (
    CheckResult,
    RepoState,
    Sweep,
    Task,
)
from longshot_dagster.core.planning import TaskReport

MAX_TREE = 300
_MAX_CHANGED = 60
_MAX_REPORTS = 40
_MAX_ACTIVE = 60
_DOCUMENT_LIMITS = {"SPEC.md": 20_000, "FEATURES.json": 20_000}
_OTHER_DOCUMENT = 10_000
_ANSWER = 'Look at the repository as far as you need to, then answer with one JSON object: {"scratchpad": "...", "tasks": [...]}.'


@dataclass(frozen=True)
class RoundFacts:
    """Everything a planning round may tell its planner."""

    key: IterationKey
    request: str
    state: RepoState
    previous: RepoState | None = None
    parent: Task | None = None
    reports: tuple[TaskReport, ...] = ()
    active: tuple[Task, ...] = ()
    unlanded: tuple[TaskReport, ...] = ()
    landings: dict[LandingState, int] = field(default_factory=dict)
    sweep: Sweep | None = None
    scratchpad: str = ""
    notes: tuple[str, ...] = ()  # about the planner's previous answer, for instance that it was cut off


def first_message(facts: RoundFacts) -> str:
    """The conversation's first message: the request or delegated task, the documents, the tree, the commits."""
    parts = [heading(facts.key)]
    if facts.parent is None:
        parts.append(f"## The request\n\n{_plain(facts.request, 60_000)}")
    else:
        parts += [own_task(facts.parent), f"## The request it is part of\n\n{_plain(facts.request, 4_000)}"]
    parts.append(_repository(facts.state))
    parts += [_document(name, text) for name, text in facts.state.documents.items()]
    if facts.reports:
        parts.append(_handoffs(facts.reports))
    parts += _standing(facts)
    parts.append(_ANSWER)
    return "\n\n".join(parts)


def follow_up(facts: RoundFacts) -> str:
    """A later message: what came back, what is under way, what changed on main, and the planner's own scratchpad."""
    parts = [heading(facts.key)]
    parts += [f"Note: {_plain(note, 500)}" for note in facts.notes]
    parts.append(_handoffs(facts.reports) if facts.reports else "## New handoffs\n\nNone.")
    parts += _standing(facts)
    parts.append(_changes(facts.state, facts.previous))
    parts += _changed_documents(facts.state, facts.previous)
    if facts.scratchpad:
        parts.append(f"## Your scratchpad\n\n{_plain(facts.scratchpad, 20_000)}")
    whose = "the request" if facts.key.planner == ROOT else "your task"
    parts.append(
        f"Plan what {whose} still needs and can be specified now. When nothing is missing, answer an empty list of tasks. {_ANSWER}"
    )
    return "\n\n".join(parts)


def heading(key: IterationKey) -> str:
    return f"# Planning round {key.short}"


def own_task(parent: Task) -> str:
    acceptance = f"\n\nAcceptance:\n{_plain(parent.acceptance, 4_000)}" if parent.acceptance else ""
    needs = f"\n\nNeeds, to be repeated for the parts that have them: {parent.needs.line}" if parent.needs else ""
    return f"## Your task {parent.id}\n\n{_plain(parent.description, 20_000)}\n\nScope:\n{_list(parent.scope, 100)}{acceptance}{needs}"


def active_tasks(tasks: Sequence[Task]) -> str:
    lines = [f"- {t.id} ({_paths(t.scope, 8)}): {one_line(t.description, 160)}" for t in tasks[:_MAX_ACTIVE]]
    return "## Tasks under way\n\n" + ("\n".join(lines) + _more(tasks, _MAX_ACTIVE) if lines else "None.")


def red_checks(sweep: Sweep, limit: int = 4_000) -> str:
    """The newest sweep as far as it is red, with the tail of each red check's output."""
    if not sweep.red:
        health = "green" if sweep.green else "nothing to check"
        return f"## Checks on main\n\n{health} at {sweep.head[:12]}."
    parts = [f"## Checks on main: red at {sweep.head[:12]}"]
    if sweep.error:
        parts.append(f"The checks could not run: {one_line(sweep.error, 500)}")
    if sweep.conflict_markers:
        parts.append(f"Conflict markers are in:\n{_list(sweep.conflict_markers, 50)}")
    parts += [_check(c, limit) for c in sweep.checks if c.red]
    return "\n\n".join(parts)


def newest_commits(state: RepoState, count: int) -> str:
    return "## Newest commits\n\n" + ("\n".join(one_line(line, 160) for line in state.log[:count]) or "None.")


def files(tree: Sequence[str], total: int) -> str:
    """Every path, or, when there are too many, directories with the number of files below them."""
    if len(tree) <= MAX_TREE:
        return "\n".join(one_line(p, 300) for p in tree) or "(no files)"
    counts: dict[str, int] = {}
    for path in tree:
        parts = path.split("/")
        place = "/".join(parts[:2]) + "/" if len(parts) > 2 else parts[0] + "/" if len(parts) == 2 else path
        counts[place] = counts.get(place, 0) + 1
    lines = [f"{one_line(p, 300)}  {n} files" if p.endswith("/") else one_line(p, 300) for p, n in counts.items()]
    shown = "\n".join(lines[:MAX_TREE]) + _more(lines, MAX_TREE)
    return f"{shown}\n({total} files; `find` and `ls` list them)"


# --- parts -----------------------------------------------------------------------------------------------------------


def _repository(state: RepoState) -> str:
    return (
        f"## The repository\n\nBranch {_plain(state.branch, 200)} at {state.head[:12]}, {state.files} files.\n\n"
        f"{files(state.tree, state.files)}\n\n{newest_commits(state, 40)}"
    )


def _document(name: str, text: str, changed: str = "") -> str:
    limit = _DOCUMENT_LIMITS.get(name, _OTHER_DOCUMENT)
    cut = "\n(It is longer; `read` shows the rest.)" if len(text) > limit else ""
    return f"## {_plain(name, 100)}{changed}\n\n{code_block(text, '', limit)}{cut}"


def _handoffs(reports: Sequence[TaskReport]) -> str:
    shown = [_report(r) for r in reports[:_MAX_REPORTS]]
    rest = [f"- {r.task.id}: {_fate(r)}" for r in reports[_MAX_REPORTS:]]
    return "\n\n".join(["## New handoffs", *shown, *(["More, in short:\n" + "\n".join(rest)] if rest else [])])


def _report(report: TaskReport) -> str:
    handoff, landing = report.handoff, report.landing
    lines = [f"### {report.task.id}: {_fate(report)}", f"Task: {one_line(report.task.description, 200)}"]
    if handoff:
        lines.append(f"Summary: {one_line(handoff.summary, 800)}")
        if handoff.files_changed:
            lines.append(f"Files: {_paths(handoff.files_changed, 30)}")
        lines += [f"Concern: {one_line(c, 300)}" for c in handoff.concerns[:10]]
        lines += [f"Suggestion: {one_line(s, 300)}" for s in handoff.suggestions[:5]]
    if landing:
        if landing.withheld_paths:
            lines.append(f"Not landed of it: {_paths(landing.withheld_paths, 20)}")
        if landing.conflicts:
            lines.append(f"Conflicts in: {_paths([c.path for c in landing.conflicts], 20)}")
        if landing.resolutions:
            lines.append(f"Merged by rule: {_paths([f'{r.path} ({r.rung})' for r in landing.resolutions], 10)}")
        if landing.conflict_with:
            lines.append(f"Collided with: {', '.join(landing.conflict_with[:10])}")
        lines += [f"Landing: {one_line(c.text, 300)}" for c in landing.concerns[:10]]
    return "\n".join(lines)


def _fate(report: TaskReport) -> str:
    status = report.handoff.status.value if report.handoff else "no handoff yet"
    if report.landing is None:
        return status
    reason = f" ({one_line(report.landing.reason, 200)})" if report.landing.reason else ""
    return f"{status}, {report.landing.state.value}{reason}"


def _standing(facts: RoundFacts) -> list[str]:
    """What is true now, whatever the planner remembers."""
    parts = []
    if facts.landings:
        counts = ", ".join(f"{n} {state.value}" for state, n in sorted(facts.landings.items()))
        parts.append(f"## Landing so far\n\n{counts}.")
    if facts.unlanded:
        lines = [f"- {r.task.id}: {_fate(r)}: {one_line(r.task.description, 120)}" for r in facts.unlanded[:30]]
        parts.append(
            "## Work that did not land\n\nA conflict is already being fixed. What waits for approval is a person's to "
            "decide: do not plan it again. What is undone was taken back by a person: not as it was again. Redo what is still wanted, with `replaces`.\n"
            + "\n".join(lines)
            + _more(facts.unlanded, 30)
        )
    if facts.active or facts.key.number > 1:
        parts.append(active_tasks(facts.active))
    if facts.sweep:
        parts.append(red_checks(facts.sweep, 2_000))
    return parts


def _changes(state: RepoState, previous: RepoState | None) -> str:
    if previous is None:
        return _repository(state)
    if previous.head == state.head:
        return f"## The repository\n\nUnchanged at {state.head[:12]}."
    before, now = set(previous.tree), set(state.tree)
    lines = [f"## The repository\n\nNow at {state.head[:12]}, {state.files} files."]
    for word, paths in (("New", sorted(now - before)), ("Removed", sorted(before - now))):
        if paths:
            lines.append(f"{word} files:\n{_list(paths, _MAX_CHANGED)}")
    known = set(previous.log)
    fresh = [line for line in state.log if line not in known]
    lines.append("New commits:\n" + "\n".join(one_line(line, 160) for line in fresh))
    return "\n\n".join(lines)


def _changed_documents(state: RepoState, previous: RepoState | None) -> list[str]:
    before = previous.documents if previous else {}
    parts = [
        _document(n, t, " (changed)" if previous else "") for n, t in state.documents.items() if before.get(n) != t
    ]
    return parts + [f"{_plain(n, 100)} has been removed." for n in before if n not in state.documents]


def _check(check: CheckResult, limit: int) -> str:
    ended = "ran out of time" if check.exit_code is None else f"exit code {check.exit_code}"
    tail = check.output[-limit:]
    return f"### {check.name.value}: `{one_line(check.command, 200)}`, {ended}\n\n{code_block(tail, '', limit)}"


def _paths(paths: Sequence[str], limit: int) -> str:
    rest = f" and {len(paths) - limit} more" if len(paths) > limit else ""
    return ", ".join(one_line(p, 200) for p in paths[:limit]) + rest


def _list(paths: Sequence[str], limit: int) -> str:
    return "\n".join(f"- {one_line(p, 300)}" for p in paths[:limit]) + _more(paths, limit)


def _more(items: Sequence[object], limit: int) -> str:
    return f"\n(and {len(items) - limit} more)" if len(items) > limit else ""


def _plain(text: str, limit: int) -> str:
    return display(text, "plain", limit)
