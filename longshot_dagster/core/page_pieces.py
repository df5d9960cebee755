"""The pieces of HTML that the report's page is put together from; every text in them passes `core/display.py`."""

import time
from collections.abc import Iterable, Sequence

from longshot_dagster.core.display import display
from longshot_dagster.core.last_word import Tone
from longshot_dagster.core.models import CheckResult, CheckStatus

MANY = 200  # rows that a person still reads
PATHS_SHOWN = 20

CHECK_TONES = {
    CheckStatus.GREEN: Tone.GOOD,
    CheckStatus.RED: Tone.BAD,
    CheckStatus.TIMEOUT: Tone.BAD,
    CheckStatus.RED_BEFORE: Tone.WARN,
    CheckStatus.SKIPPED: Tone.QUIET,
}


def section(heading: str, content: str) -> str:
    return f"<section><h2>{heading}</h2>{content}</section>"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = "".join(f"<tr>{cells(columns, row)}</tr>" for row in rows)
    return table_of(columns, f"<tbody>{body}</tbody>")


def table_of(columns: Sequence[str], bodies: str) -> str:
    head = "".join(f"<th scope='col'>{shown(c)}</th>" for c in columns)
    return f"<table><thead><tr>{head}</tr></thead>{bodies}</table>"


def cells(columns: Sequence[str], contents: Sequence[str]) -> str:
    """The column's name goes with every cell: a phone shows a row as a card, and leaves empty cells out."""
    return "".join(
        f'<td data-label="{shown(column)}"{"" if cell else " class=none"}><div>{cell}</div></td>'
        for column, cell in zip(columns, contents, strict=True)
    )


def badge(text: object, tone: Tone) -> str:
    return f'<span class="badge {tone}">{shown(text, 60)}</span>'


def check_badges(checks: Iterable[CheckResult]) -> str:
    """Those that ran."""
    ran = [c for c in checks if c.status is not CheckStatus.SKIPPED]
    return " ".join(badge(f"{c.name.value} {c.status.value}", CHECK_TONES[c.status]) for c in ran)


def codes(items: Sequence[str]) -> str:
    listed = " ".join(f"<code>{shown(i, 300)}</code>" for i in items[:PATHS_SHOWN])
    return listed + (f" and {len(items) - PATHS_SHOWN} more" if len(items) > PATHS_SHOWN else "")


def oid(commit: str) -> str:
    return f'<code class="oid">{shown(commit[:12])}</code>'


def task_link(task: str) -> str:
    return f'<a href="#{shown(task)}">{shown(task)}</a>'


def moment(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))


def shown(text: object, limit: int = 500) -> str:
    return display(text, "html", limit)
