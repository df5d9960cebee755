"""The last word as one HTML file that needs nothing else: no script, no font, no picture from anywhere."""

import base64
import hashlib
from collections.abc import Sequence

from longshot_dagster.core.last_word import Figures, LastWord, Tone
from longshot_dagster.core.models import CheckResult, Sweep
from longshot_dagster.core.page_pieces import (
    CHECK_TONES,
    MANY,
    PATHS_SHOWN,
    badge,
    check_badges,
    moment,
    oid,
    section,
    shown,
    table,
    task_link,
)
from longshot_dagster.core.page_style import STYLE
from longshot_dagster.core.page_tasks import tasks_section
from longshot_dagster.core.report import cost, duration
from longshot_dagster.core.reviewing import Step, next_steps, review_steps, undo_steps
from longshot_dagster.core.timeline import Timeline
from longshot_dagster.core.timeline_svg import timeline_svg

_OUTPUT_SHOWN = 4_000
_REQUEST_SHOWN = 20_000

_LEGEND = {
    Tone.GOOD: "landed, green",
    Tone.QUIET: "planning; nothing to land; superseded",
    Tone.OPEN: "not settled; worked on again",
    Tone.WARN: "undone; paused",
    Tone.BAD: "conflict, withheld, red",
}


def report_page(word: LastWord, timeline: Timeline | None, figures: Figures, version: str) -> str:
    """A whole HTML document. Every text in it passes `core/display.py`."""
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    body = [
        _header(word),
        _tiles(word, figures),
        _timeline(timeline),
        _left_over(word),
        _undone(word),
        _checks(word),
        tasks_section(word),
        _took(figures),
        _rounds(word, figures),
        _commands("How to review it", review_steps(word.request, word.report.head, word.landed_files)),
        _commands("How to undo it", undo_steps(word.build, [t.task.id for t in word.landed])),
        _commands("How to go on", next_steps(word.state, word.build, (x.task for x in word.report.leftovers))),
        _places(word),
        _settings(word),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{shown(word.build)}: {shown(word.standing)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + f"\n</main>\n<footer>Longshot on Dagster {shown(version)}, {moment(word.told_at)}. "
        "Written by a program from the build's ledger; no model had a say in it.</footer>\n</body>\n</html>\n"
    )


def _header(word: LastWord) -> str:
    request = shown(word.request.request, _REQUEST_SHOWN)
    parts = [
        f'<header><p class="eyebrow">Build report</p><h1>{shown(word.build)} {badge(word.standing, word.tone)}</h1>',
        f'<p class="sentence">{shown(word.sentence, 700)}.</p>',
    ]
    if word.request.rehearsal:
        parts.append('<p class="notice warn"><b>Rehearsal.</b> A scripted model answered, no real one.</p>')
    if since := word.undone_since:
        names = ", ".join(t.task.id for t in since[:PATHS_SHOWN])
        parts.append(f'<p class="notice warn"><b>Undone since then:</b> {shown(names)}.</p>')
    parts.append(f"<details open><summary>What was asked for</summary><pre>{request}</pre></details></header>")
    return "".join(parts)


def _tiles(word: LastWord, figures: Figures) -> str:
    report = word.report
    health = {"green": Tone.GOOD, "red": Tone.BAD}.get(report.health, Tone.WARN)
    superseded = f", {report.superseded} superseded" if report.superseded else ""
    tiles = [
        (
            "tasks landed",
            f"{report.landed} of {report.tasks}",
            f"{report.conflicts} in conflict on the way{superseded}",
        ),
        ("checks", badge(report.health, health), shown(report.reason, 160)),
        ("left over" if word.final else "not landed yet", str(len(report.leftovers)), ""),
        ("time", duration(report.wall_s), f"from {moment(word.request.created_at)}"),
        ("tokens", f"{report.tokens:,}", "planners and workers"),
        ("cost", shown(cost(report.cost_usd)), "" if report.cost_usd is not None else _why_unknown(word)),
        ("planning rounds", str(report.iterations), f"{report.finalization_attempts} finalizations ended red"),
        ("workers at once", str(figures.most_at_once), f"{figures.mean_at_once:.1f} on average"),
    ]
    listed = (f"<div><dt>{name}</dt><dd>{value}</dd><dd>{more}</dd></div>" for name, value, more in tiles)
    return f'<dl class="tiles">{"".join(listed)}</dl>'


def _why_unknown(word: LastWord) -> str:
    settings = word.request.settings
    unset = settings.llm_price_in is None or settings.llm_price_out is None
    return "no prices are set" if unset else "not everything was counted"


def _timeline(timeline: Timeline | None) -> str:
    if timeline is None:
        return ""
    legend = "".join(f'<li><span class="dot {tone}"></span>{text}</li>' for tone, text in _LEGEND.items())
    cut = (
        '<p class="small">A dotted line is a stretch in which nothing happened, left out.</p>' if timeline.cuts else ""
    )
    return section("Timeline", f'{timeline_svg(timeline)}<ul class="legend">{legend}</ul>{cut}')


def _left_over(word: LastWord) -> str:
    left = word.report.leftovers
    if not left:
        return ""
    rows = [
        (task_link(x.task), badge(x.state, Tone.BAD), shown(x.reason), shown(x.description, 200)) for x in left[:MANY]
    ]
    if len(left) > MANY:
        rows.append(("", "", f"and {len(left) - MANY} more, among the tasks below", ""))
    return section("Left over" if word.final else "Not landed yet", table(("task", "state", "why", "what"), rows))


def _undone(word: LastWord) -> str:
    if not word.undone:
        return ""
    rows = [
        (
            task_link(t.task.id),
            shown(t.task.title),
            shown(t.why),
            oid(t.landing.undone_by or "") if t.landing else "",
        )
        for t in word.undone
    ]
    return section("Undone", table(("task", "what", "why", "by commit"), rows))


def _checks(word: LastWord) -> str:
    sweep = word.final_sweep
    if sweep is None:
        return section("Checks", f"<p>{shown(word.report.reason or 'Nothing has been checked yet')}.</p>")
    parts = [f"<p>Sweep {sweep.number}, on commit {oid(sweep.head)}, {moment(sweep.started_at)}.</p>"]
    if sweep.error:
        parts.append(f'<p class="notice bad">It could not run: {shown(sweep.error)}</p>')
    if sweep.conflict_markers:
        paths = ", ".join(sweep.conflict_markers[:PATHS_SHOWN])
        parts.append(f'<p class="notice bad">Conflict markers in {shown(paths, 2_000)}</p>')
    if sweep.checks:
        parts.append(table(("check", "status", "command", "time"), [_check_row(c) for c in sweep.checks]))
    parts += [_output(c) for c in sweep.checks if c.red and c.output]
    if len(word.sweeps) > 1:
        parts.append(f"<details><summary>All {len(word.sweeps)} sweeps</summary>{_sweeps(word.sweeps)}</details>")
    return section("Checks", "".join(parts))


def _check_row(check: CheckResult) -> tuple[str, ...]:
    return (
        check.name.value,
        badge(check.status.value, CHECK_TONES[check.status]),
        f"<code>{shown(check.command, 300)}</code>" if check.command else "",
        f"{check.duration_ms / 1000:.1f} s",
    )


def _output(check: CheckResult) -> str:
    text = shown(check.output[-_OUTPUT_SHOWN:], _OUTPUT_SHOWN)
    return f"<details><summary>The end of what {check.name.value} printed</summary><pre>{text}</pre></details>"


def _sweeps(sweeps: Sequence[Sweep]) -> str:
    rows = [
        (
            str(s.number),
            moment(s.started_at),
            oid(s.head),
            check_badges(s.checks) or shown(s.error or "nothing to check"),
        )
        for s in sweeps
    ]
    return table(("sweep", "when", "commit", "checks"), rows)


def _took(figures: Figures) -> str:
    if not figures.outcomes:
        return ""
    rows = [tuple(shown(cell) for cell in f.row) for f in figures.outcomes]
    columns = ("outcome", "tasks", "workers' time", "of all time", "workers' tokens", "of all tokens")
    return section("Where the work went", table(columns, rows))


def _rounds(word: LastWord, figures: Figures) -> str:
    if not word.rounds:
        return ""
    took = {f.iteration: f for f in figures.rounds}
    rows = []
    for r in sorted(word.rounds, key=lambda r: r.ended_at or 0):
        f = took.get(r.key.short)
        rows.append(
            (
                shown(r.key.short),
                moment(r.ended_at) if r.ended_at else "",
                oid(r.plan.base) if r.plan else "",
                f"{len(r.plan.tasks)} planned" if r.plan else "",
                str(f.landed) if f else "",
                duration(f.median_s) if f and f.median_s is not None else "-",
                duration(f.longest_s) if f and f.longest_s is not None else "-",
                f"{r.plan.tokens:,} + {f.worker_tokens if f else 0:,}" if r.plan else "",
                shown(r.failure.reason, 300) if r.failure else "",
            )
        )
    columns = (
        "round",
        "planned at",
        "on commit",
        "tasks",
        "landed",
        "median task",
        "longest",
        "tokens, planner + workers",
    )
    return section("Planning rounds", table((*columns, "last failure"), rows))


def _commands(heading: str, steps: Sequence[Step]) -> str:
    if not steps:
        return ""
    listed = "".join(f"<dt>{shown(s.says)}</dt><dd><pre>{shown(s.command, 1_000)}</pre></dd>" for s in steps)
    return section(heading, f'<dl class="commands">{listed}</dl>')


def _places(word: LastWord) -> str:
    places, target = word.places, word.request.target
    rows = [
        ("repository", target.url),
        ("branch", f"{word.report.branch} at {word.report.head}, begun at {word.request.base}"),
        ("ledger, one document per fact", places.ledger),
        ("report", f"{places.document}, {places.markdown}, {places.page}"),
        ("transcripts", f"{places.ledger}/tasks/TASK/transcript.jsonl"),
        ("what workers handed in, landed or not", f"{places.work_refs}TASK in {places.mirror}"),
        ("the ledger's facts, beside the branch", places.checkpoint),
    ]
    listed = "".join(f"<dt>{shown(name)}</dt><dd><code>{shown(value, 1_500)}</code></dd>" for name, value in rows)
    return section("Where everything is", f'<dl class="facts">{listed}</dl>')


def _settings(word: LastWord) -> str:
    origins, settings = word.request.origins, word.request.settings
    rows = [
        (shown(name.upper()), f"<code>{shown(getattr(settings, name), 300)}</code>", shown(origin.value))
        for name, origin in sorted(origins.items())
        if hasattr(settings, name)
    ]
    if not rows:
        return section("Settings", "<p>All at their defaults.</p>")
    return section("Settings that were not the default", table(("setting", "value", "from"), rows))
