"""The table of tasks on the report's page: what was asked, who did it, how its checks went and what of it landed."""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from longshot_dagster.core.last_word import LastWord, TaskFacts
from longshot_dagster.core.page_pieces import (
    MANY,
    PATHS_SHOWN,
    badge,
    cells,
    check_badges,
    codes,
    oid,
    section,
    shown,
    table_of,
)
from longshot_dagster.core.report import cost, duration

_TEXT_SHOWN = 4_000
_TEXT_SHOWN_OF_MANY = 600  # a thousand tasks with all they were told would be a page that no phone opens
_COMMITS_SHOWN = 5


def tasks_section(word: LastWord) -> str:
    if not word.tasks:
        return ""
    limit = _TEXT_SHOWN if len(word.tasks) <= MANY else _TEXT_SHOWN_OF_MANY
    columns = ("task", "what", "worker", "checks", "outcome", "commits")
    order = {r.key.short: n for n, r in enumerate(sorted(word.rounds, key=lambda r: r.ended_at or 0))}
    tasks = sorted(word.tasks, key=lambda t: (order.get(t.task.iteration, len(order)), t.task.iteration, t.task.id))
    rounds = [(key, list(found)) for key, found in groupby(tasks, key=lambda t: t.task.iteration)]
    note = (
        "<p>Request, task, worker, checks, commits: from here every line on the branch is traced. A landed commit carries "
        "its task in a <code>Longshot-Task</code> line; one that was fast-forwarded is the worker's own.</p>"
    )
    if len(tasks) > MANY:  # folded: a table of a thousand rows is read by nobody
        folded = (_folded(key, columns, found, limit) for key, found in rounds)
        return section("Tasks", note + "".join(folded))
    groups = "".join(
        f'<tbody><tr class="group"><th colspan="{len(columns)}" scope="rowgroup">planned by {shown(key)}</th></tr>'
        f"{''.join(_task_row(t, columns, limit) for t in found)}</tbody>"
        for key, found in rounds
    )
    return section("Tasks", note + table_of(columns, groups))


def _folded(key: str, columns: Sequence[str], tasks: Sequence[TaskFacts], limit: int) -> str:
    counts = Counter(t.outcome for t in tasks).most_common()
    said = ", ".join(f"{count} {outcome}" for outcome, count in counts)
    rows = "".join(_task_row(t, columns, limit) for t in tasks)
    return (
        f"<details><summary>planned by {shown(key)}: {shown(said)}</summary>"
        f"{table_of(columns, f'<tbody>{rows}</tbody>')}</details>"
    )


def _task_row(facts: TaskFacts, columns: Sequence[str], limit: int) -> str:
    why = f'<span class="small">{shown(facts.why, 300)}</span>' if facts.why else ""
    contents = (
        shown(facts.task.id),
        f"<details><summary>{shown(facts.task.title)}</summary>{_told(facts, limit)}</details>",
        _worker(facts),
        check_badges(facts.run.checks if facts.run else ()),
        f"{badge(facts.outcome, facts.tone)} {why}",
        _commits(facts),
    )
    return f'<tr id="{shown(facts.task.id)}">{cells(columns, contents)}</tr>'


def _told(facts: TaskFacts, limit: int) -> str:
    """What the task was told, and what came back."""
    task, handoff, landing = facts.task, facts.handoff, facts.landing
    rows = [("asked", f"<pre>{shown(task.description, limit)}</pre>"), ("scope", codes(task.scope))]
    if task.needs:
        rows.append(("needs", shown(task.needs.line, 300)))
    if facts.run and (facts.run.route or facts.run.tried):
        rows.append(("worked where, and why", "<br>".join(shown(n, 400) for n in [*facts.run.tried, facts.run.route])))
    if task.acceptance:
        rows.append(("accepted when", f"<pre>{shown(task.acceptance, limit)}</pre>"))
    if task.replaces:
        rows.append(("instead of", shown(", ".join(task.replaces))))
    if handoff:
        rows.append(("handed in", f"{shown(handoff.status.value)}<pre>{shown(handoff.summary, limit)}</pre>"))
        notes = [*handoff.concerns, *_landing_concerns(facts)]
        if notes:
            rows.append(("concerns", "<br>".join(shown(n, 300) for n in notes[:PATHS_SHOWN])))
    if landing and landing.landed_paths:
        rows.append(("landed files", codes(landing.landed_paths)))
    if landing and landing.withheld_paths:
        rows.append(("withheld files", codes(landing.withheld_paths)))
    if landing and landing.resolutions:
        rows.append(("resolved", "<br>".join(shown(r.line, 300) for r in landing.resolutions[:PATHS_SHOWN])))
    if landing and landing.source:
        rows.append(("worker's branch", f"<code>{shown(landing.source)}</code> {shown(task.branch, 200)}"))
    return f'<dl class="facts">{"".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows)}</dl>'


def _landing_concerns(facts: TaskFacts) -> list[str]:
    concerns = facts.landing.concerns if facts.landing else ()
    return [f"{c.path}: {c.text}" if c.path else c.text for c in concerns]


def _worker(facts: TaskFacts) -> str:
    run = facts.run
    if run is None:
        return "subplanner" if facts.task.delegated else "-"
    attempt = len(facts.earlier) + 1
    again = f", {attempt} times worked on" if attempt > 1 else ""
    price = f", {shown(cost(run.cost_usd))}" if run.cost_usd is not None else ""
    return (
        f"{duration(run.ended_at - run.started_at)}{again}<span class='small'>{shown(run.harness)} in "
        f"{shown(run.provider)}: {shown(run.harness_status)}; {run.tokens_in + run.tokens_out:,} tokens{price}</span>"
    )


def _commits(facts: TaskFacts) -> str:
    commits = facts.landing.commits if facts.landing else ()
    listed = " ".join(oid(c) for c in commits[:_COMMITS_SHOWN])
    return listed + (f" and {len(commits) - _COMMITS_SHOWN} more" if len(commits) > _COMMITS_SHOWN else "")
