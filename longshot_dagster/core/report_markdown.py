"""The last word as Markdown, for the Dagster UI and for reading in a file."""

from collections.abc import Iterable, Iterator, Sequence

from longshot_dagster.core.display import code_block, display
from longshot_dagster.core.last_word import Figures, LastWord, TaskFacts
from longshot_dagster.core.models import CheckResult
from longshot_dagster.core.report import cost, duration
from longshot_dagster.core.reviewing import Step, next_steps, review_steps, undo_steps

_TASKS_SHOWN = 1_000
_COMMITS_SHOWN = 5


def report_markdown(word: LastWord, figures: Figures | None = None, *, picture: str = "") -> str:
    """The whole report. `picture`: the timeline as a `data:` URL, for a reader that shows one."""
    blocks = [
        f"# {_shown(word.build)}: {_shown(word.standing)}",
        _shown(word.sentence, 700) + ".",
        *_notes(word),
        *([f"![timeline]({picture})"] if picture else []),
        _facts(word),
        *_left_over(word),
        *_checks(word),
        *_tasks(word.tasks),
        *_took(figures),
        *_steps(word),
        _places(word),
    ]
    return "\n\n".join(blocks) + "\n"


def _notes(word: LastWord) -> Iterator[str]:
    if word.request.rehearsal:
        yield "**Rehearsal**: a scripted model answered, no real one."
    if since := word.undone_since:
        names = ", ".join(t.task.id for t in since[:20])
        yield f"**Undone since this was written**: {_shown(names)}."


def _facts(word: LastWord) -> str:
    report, target = word.report, word.request.target
    rows = [
        ("request", _shown(word.request.request)),
        ("repository", _shown(target.url)),
        ("branch", f"{_shown(report.branch)} at {_shown(report.head[:12])}"),
        ("iterations", str(report.iterations)),
        ("tasks", f"{report.tasks} planned, {report.landed} landed, {report.superseded} superseded"),
        ("conflicts", str(report.conflicts)),
        ("finalization attempts", str(report.finalization_attempts)),
        ("tokens", f"{report.tokens:,}"),
        ("cost", _shown(cost(report.cost_usd))),
        ("time", duration(report.wall_s)),
    ]
    return _table(("fact", "value"), rows)


def _left_over(word: LastWord) -> Iterator[str]:
    if word.report.leftovers:
        yield "## Left over" if word.final else "## Not landed yet"
        yield _table(
            ("task", "state", "why", "what"),
            [
                (_shown(x.task), _shown(x.state), _shown(x.reason), _shown(x.description, 200))
                for x in word.report.leftovers
            ],
        )


def _checks(word: LastWord) -> Iterator[str]:
    yield "## Checks"
    sweep = word.final_sweep
    if sweep is None:
        yield _shown(word.report.reason or "nothing has been checked yet") + "."
        return
    yield f"Sweep {sweep.number} of {_shown(sweep.head[:12])}."
    if sweep.error:
        yield f"It could not run: {_shown(sweep.error)}"
    if sweep.conflict_markers:
        yield f"Conflict markers in {_shown(', '.join(sweep.conflict_markers[:20]))}."
    if sweep.checks:
        rows = [
            (c.name.value, c.status.value, _shown(c.command, 200), f"{c.duration_ms / 1000:.1f} s")
            for c in sweep.checks
        ]
        yield _table(("check", "status", "command", "time"), rows)


def _tasks(tasks: Sequence[TaskFacts]) -> Iterator[str]:
    if not tasks:
        return
    yield "## Tasks"
    rows = [
        (
            facts.task.id,
            facts.task.iteration,
            _shown(facts.task.title, 100),
            _worker(facts),
            _check_words(facts.run.checks if facts.run else ()),
            _shown(facts.outcome + (f": {facts.why}" if facts.why else ""), 200),
            " ".join(short_commits(facts)),
        )
        for facts in tasks[:_TASKS_SHOWN]
    ]
    yield _table(("task", "planned by", "what", "worker", "checks", "outcome", "commits"), rows)
    if len(tasks) > _TASKS_SHOWN:
        yield f"And {len(tasks) - _TASKS_SHOWN} more, in the ledger."


def short_commits(facts: TaskFacts) -> list[str]:
    """The task's commits on the landing branch, oldest first."""
    commits = facts.landing.commits if facts.landing else ()
    more = [f"and {len(commits) - _COMMITS_SHOWN} more"] if len(commits) > _COMMITS_SHOWN else []
    return [c[:12] for c in commits[:_COMMITS_SHOWN]] + more


def _worker(facts: TaskFacts) -> str:
    run = facts.run
    if run is None:
        return "subplanner" if facts.task.delegated else ""
    took = duration(run.ended_at - run.started_at)
    return _shown(
        f"{run.provider}/{run.harness} {run.harness_status}, {took}, {run.tokens_in + run.tokens_out:,} tokens"
    )


def _check_words(checks: Iterable[CheckResult]) -> str:
    return _shown(", ".join(f"{c.name.value} {c.status.value}" for c in checks))


def _took(figures: Figures | None) -> Iterator[str]:
    if figures is None or not figures.outcomes:
        return
    yield "## Where the work went"
    rows = [tuple(_shown(cell) for cell in f.row) for f in figures.outcomes]
    yield _table(("outcome", "tasks", "workers' time", "share", "workers' tokens", "share"), rows)
    yield f"At most {figures.most_at_once} workers at once, {figures.mean_at_once:.1f} on average."


def _steps(word: LastWord) -> Iterator[str]:
    landed = [t.task.id for t in word.landed]
    groups = {
        "How to review it": review_steps(word.request, word.report.head, word.landed_files),
        "How to undo it": undo_steps(word.build, landed),
        "How to go on": next_steps(word.state, word.build, (x.task for x in word.report.leftovers)),
    }
    for heading, steps in groups.items():
        if steps:
            yield f"## {heading}"
            yield code_block("\n".join(_commented(s) for s in steps), "sh")


def _commented(step: Step) -> str:
    return f"# {step.says}\n{step.command}"


def _places(word: LastWord) -> str:
    places = word.places
    rows = [
        ("ledger, one document per fact", places.ledger),
        ("this report as a page", places.page),
        ("transcripts", f"{places.ledger}/tasks/TASK/transcript.jsonl"),
        ("what workers handed in, landed or not", f"{places.work_refs}TASK in {places.mirror}"),
        ("the ledger's facts, beside the branch", places.checkpoint),
    ]
    return "## Where everything is\n\n" + _table(("what", "where"), [(_shown(a), _shown(b)) for a, b in rows])


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _shown(text: object, limit: int = 500) -> str:
    return display(text, "markdown", limit)
