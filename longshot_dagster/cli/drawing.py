"""A scene of the dashboard as lines of a terminal, exactly as many and as wide as it has. Only a dashboard that is shown loads this."""

from collections.abc import Mapping, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from longshot_dagster.core.dashboard import Occupancy, PlannerRow, Scene, Stand, sweep_words
from longshot_dagster.core.display import one_line
from longshot_dagster.core.models import BuildPhase
from longshot_dagster.core.report import duration

_WIDE = 120  # columns from which planners and feed stand side by side
_SMALL = (40, 12)
_LABEL = 9

_STYLES = {
    Stand.LANDED: "green",
    Stand.LANDING: "blue",
    Stand.AT_WORK: "cyan",
    Stand.WAITING: "bright_black",
    Stand.INTERRUPTED: "yellow",
    Stand.NOTHING: "bright_black",
    Stand.CONFLICT: "red",
    Stand.WITHHELD: "yellow",
    Stand.UNDONE: "yellow",
    Stand.SUPERSEDED: "bright_black",
}
_ORDER = (
    *(Stand.LANDED, Stand.LANDING, Stand.AT_WORK, Stand.CONFLICT, Stand.WITHHELD, Stand.INTERRUPTED),
    *(Stand.UNDONE, Stand.NOTHING, Stand.SUPERSEDED, Stand.WAITING),
)
_PHASES = {BuildPhase.RUNNING: "green", BuildPhase.FINALIZING: "cyan", BuildPhase.PAUSED: "yellow"}
_TONES = {"good": "green", "bad": "red", "plain": ""}
_HEALTH = {"green": "green", "red": "bold red", "unchecked": "bright_black"}


def full_screen() -> Live:
    """The other screen of this terminal, drawn only when told to."""
    return Live(screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)


def whole(lines: Sequence[Text]) -> Group:
    return Group(*lines)


def draw(scene: Scene, width: int, height: int, leaving: str) -> list[Text]:
    """`height` lines of at most `width` cells."""
    if width < _SMALL[0] or height < _SMALL[1]:
        return _fit([_header(scene, width), Text("the terminal is too small for the dashboard")], width, height)
    bar = 20 if width >= _WIDE else 10
    top = [_header(scene, width), _plain(scene.request, 400), _figures(scene, width)]
    top += [_slots(scene.occupancy, scene.state.phase, bar), _tasks(scene, bar), _health(scene)]
    room = height - len(top) - 1
    body = _side_by_side(scene, width, room) if width >= _WIDE else _stacked(scene, width, room)
    foot = Text(f" {leaving}", style="reverse bright_black")
    return [*_fit(top, width, len(top)), *_fit(body, width, room), *_fit([foot], width, 1)]


def _stacked(scene: Scene, width: int, room: int) -> list[Text]:
    working = _working(scene, min(3, max(1, room // 8))) if scene.at_work else []
    planners = _planners(scene.planners, max(2, (room - 3) * 2 // 5))
    lines = [_rule("planners", width), *planners]
    lines += [_rule("at work", width), *working] if working else []
    feed = room - len(lines) - 1
    return [*lines, _rule("feed", width), *_feed(scene, width, feed)]


def _side_by_side(scene: Scene, width: int, room: int) -> list[Text]:
    left = width * 45 // 100
    right = width - left - 3
    wanted = len(scene.at_work) + 1 if scene.at_work else 0
    working = min(wanted, max(2, room // 2))
    planners = _planners(scene.planners, room - 1 - working)
    column = [_rule("planners", left), *planners]
    column += [_rule("at work", left), *_working(scene, working - 1)] if working else []
    feed = [_rule("feed", right), *_feed(scene, right, room - 1)]
    rows = zip(_fit(column, left, room), _fit(feed, right, room), strict=True)
    return [Text.assemble(a, (" │ ", "bright_black"), b) for a, b in rows]


def _header(scene: Scene, width: int) -> Text:
    state = scene.state
    line = Text(f" {one_line(scene.build, 60)} ", style="bold reverse")
    line.append(f" {state.phase.value} ", style=f"bold {_PHASES.get(state.phase, 'default')}")
    if scene.rehearsal:
        line.append(f" REHEARSAL{': a scripted model answers' if width >= _WIDE else ''} ", style="bold yellow")
    if state.reason:
        line.append(f" {one_line(state.reason, 300)}", style="yellow")
    return _ends(line, Text(f"{duration(scene.elapsed_s)} "), width)


def _figures(scene: Scene, width: int) -> Text:
    cost = "cost unknown" if scene.cost_usd is None else f"${scene.cost_usd:,.2f}"
    right = Text(f"{scene.tokens:,} tokens, {cost} ")
    return _ends(_plain(scene.where, 300, "bright_black"), right, width)


def _slots(found: Occupancy | None, phase: BuildPhase, cells: int) -> Text:
    line = _label("slots")
    if found is None:
        why = "" if phase in (BuildPhase.PAUSED, BuildPhase.FINISHED) else "not known: Longshot does not answer"
        return line.append(why or "none in use", style="bright_black")
    waiting = f", {found.waiting} waiting" if found.waiting else ""
    if found.limit is None:
        return line.append(f"{found.used} in use, no limit{waiting}")
    if found.limit == 0:
        return line.append(f"{found.used} in use; the limit of pool `sandbox` is 0, nothing starts{waiting}", "yellow")
    filled = min(cells, -(-found.used * cells // found.limit))
    line.append("█" * filled, style="cyan").append("░" * (cells - filled), style="bright_black")
    return line.append(f"  {found.used} of {found.limit} in use by all builds{waiting}")


def _tasks(scene: Scene, cells: int) -> Text:
    line, total = _label("tasks"), sum(scene.counts.values())
    if not total:
        return line.append("none planned yet", style="bright_black")
    line.append_text(_bar(scene.counts, total, cells)).append(f"  {total}: ")
    return line.append_text(_words(scene.counts))


def _bar(counts: Mapping[Stand, int], total: int, room: int) -> Text:
    """A bar of tasks by where they are; whatever is there at all has a cell, as long as there is room."""
    bar, done, cells = Text(), 0, 0
    for where in _ORDER:
        done += counts.get(where, 0)
        until = min(room, max(cells + bool(counts.get(where)), done * room // total))
        bar.append("█" * (until - cells), style=_STYLES[where])
        cells = until
    return bar


def _words(counts: Mapping[Stand, int]) -> Text:
    words = Text()
    for where in _ORDER:
        if counts.get(where):
            words.append(", " if words else "").append(f"{counts[where]} {where.value}", style=_STYLES[where])
    return words


def _health(scene: Scene) -> Text:
    word, checks = sweep_words(scene.sweep)
    line = _label("health").append(word, style=_HEALTH[word])
    line.append(f"  {one_line(checks, 300)}")
    if scene.sweep:
        ago = duration(scene.sweep_age_s)
        line.append(f"  sweep {scene.sweep.number} of {scene.sweep.head[:10]}, {ago} ago", style="bright_black")
    return line


def _planners(rows: Sequence[PlannerRow], room: int) -> list[Text]:
    shown = list(rows)
    if len(shown) > room:  # root and fixes, and then those that still have something to do
        by_interest = sorted(
            range(len(shown)), key=lambda i: (shown[i].depth > 0, not (shown[i].thinking or _open(shown[i])))
        )
        shown = [shown[i] for i in sorted(by_interest[: max(1, room - 1)])]
    lines = [_planner(row) for row in shown]
    if len(shown) < len(rows):
        lines.append(Text(f"… {len(rows) - len(shown)} more planners", style="bright_black"))
    return lines


def _open(row: PlannerRow) -> bool:
    return any(row.counts.get(s) for s in (Stand.WAITING, Stand.AT_WORK, Stand.LANDING, Stand.INTERRUPTED))


def _planner(row: PlannerRow) -> Text:
    line = Text("  " * row.depth + ("└ " if row.depth else ""), style="bright_black")
    line.append(row.name, style="bold default")
    if row.thinking:
        line.append(f"  plans round {max(1, row.rounds)}", style="cyan")
    elif row.rounds:
        line.append(f"  round {row.rounds}", style="default")
    if row.total:
        line.append("  ").append_text(_words(row.counts))
    if row.title:
        line.append(f"  {one_line(row.title, 100)}", style="bright_black")
    return line


def _working(scene: Scene, room: int) -> list[Text]:
    tasks = list(scene.at_work)
    shown = tasks if len(tasks) <= room else tasks[: max(1, room - 1)]
    lines = [Text.assemble((name, "cyan"), f"  {one_line(title, 200)}") for name, title in shown]
    if len(shown) < len(tasks) and room > 1:
        lines.append(Text(f"… {len(tasks) - len(shown)} more", style="bright_black"))
    return lines


def _feed(scene: Scene, width: int, room: int) -> list[Text]:
    """The newest last; a long one takes a second line where there is room for both."""
    console, under, lines = Console(width=width), " " * 9, list[Text]()
    for at, line, tone in reversed(scene.feed):
        whole = Text(one_line(line, 300), _TONES[tone])
        first, *more = whole.wrap(console, max(20, width - len(under)), overflow="ellipsis") or [whole]
        if len(lines) + 1 + bool(more) > room:
            first, more = whole, []
        if len(lines) >= room:
            break
        rest = [Text(under).append(" ".join(m.plain.strip() for m in more), _TONES[tone])] if more else []
        lines = [Text.assemble((f"{at} ", "bright_black"), first), *rest, *lines]
    return lines


def _label(word: str) -> Text:
    return Text().append(f"{word:<{_LABEL}}", style="bold")


def _plain(text: str, limit: int, style: str = "") -> Text:
    return Text(one_line(text, limit), style=style)


def _rule(title: str, width: int) -> Text:
    line = Text(f"─ {title} ", style="bright_black")
    return line.append("─" * max(0, width - line.cell_len))


def _ends(left: Text, right: Text, width: int) -> Text:
    """`left` cut so that `right` stands at the right edge."""
    room = max(0, width - right.cell_len - 1)
    left.truncate(room, overflow="ellipsis", pad=True)
    return Text.assemble(left, " ", right)


def _fit(lines: Sequence[Text], width: int, height: int) -> list[Text]:
    """Exactly `height` lines of exactly `width` cells."""
    fitted = [*lines[:height], *(Text() for _ in range(height - len(lines)))]
    for line in fitted:
        line.no_wrap = True
        line.truncate(width, overflow="ellipsis", pad=True)
    return fitted
