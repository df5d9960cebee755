"""When everything of a build happened, laid out for a picture: who worked beside whom, what landed and what was swept."""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from longshot_dagster.core.display import one_line
from longshot_dagster.core.landing_records import LandingState
from longshot_dagster.core.last_word import LastWord, Pause, TaskFacts, Tone
from longshot_dagster.core.models import Sweep, WorkerRun
from longshot_dagster.core.report import duration

_IDLE_S = 600.0  # a build that was resumed next morning would otherwise be two slivers at the ends of a night
_IDLE_SHARE = 0.15  # of the time in which something happened
_SLIT = 0.03  # of the width: what such a stretch is cut to
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 28_800, 86_400, 172_800, 604_800)
_TICKS = 6
_LANDING_TONES = {
    LandingState.LANDED: Tone.GOOD,
    LandingState.CONFLICT: Tone.BAD,
    LandingState.WITHHELD: Tone.BAD,
    LandingState.UNDONE: Tone.WARN,
}


@dataclass(frozen=True)
class Bar:
    """Something that took time, from `left` to `right` of a width of 1; a moment has both the same."""

    left: float
    right: float
    tone: Tone
    label: str
    title: str


@dataclass(frozen=True)
class Track:
    """Bars of one sort. Within a lane none covers another; moments are drawn as strokes and share one lane."""

    name: str
    lanes: tuple[tuple[Bar, ...], ...]
    moments: bool = False


@dataclass(frozen=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True)
class Timeline:
    """`cuts` are the middles of stretches in which nothing happened, with how long each was."""

    tracks: tuple[Track, ...]
    ticks: tuple[Tick, ...]
    cuts: tuple[Tick, ...]


@dataclass(frozen=True)
class Event:
    """As a bar, in seconds since the epoch."""

    start: float
    end: float
    tone: Tone
    label: str
    title: str


@dataclass(frozen=True)
class Stretch:
    """A stretch of time and where it lies on the width; a cut one has nothing in it."""

    start: float
    end: float
    left: float
    right: float
    cut: bool = False


def timeline(word: LastWord) -> Timeline | None:
    """None when nothing has happened yet."""
    tracks = {
        "planning": _planning(word),
        "workers": [e for t in word.tasks for e in _working(t)],
        "landings": [e for t in word.tasks for e in _landing(t)],
        "sweeps of the branch": [_sweeping(s) for s in word.sweeps],
    }
    axis = stretches([(e.start, e.end) for events in tracks.values() for e in events])
    if not axis:
        return None
    tracks["paused"] = [_pause(p) for p in word.pauses]  # after the axis: a night of it is cut like any other
    shown = [
        Track(name, tuple(tuple(_bar(axis, e) for e in lane) for lane in lanes), moments=name == "landings")
        for name, events in tracks.items()
        if (lanes := [sorted(events, key=_order)] if name == "landings" else pack(events))
    ]
    cuts = [Tick((s.left + s.right) / 2, f"{duration(s.end - s.start)} of nothing") for s in axis if s.cut]
    return Timeline(tuple(t for t in shown if t.lanes[0]), ticks(axis), tuple(cuts))


def pack(events: Iterable[Event]) -> list[list[Event]]:
    """Lanes in which no event covers another: as many as there were events at once, the first ones fullest."""
    lanes: list[list[Event]] = []
    free: list[int] = []
    taken: list[tuple[float, int]] = []
    for event in sorted(events, key=_order):
        while taken and taken[0][0] <= event.start:
            heapq.heappush(free, heapq.heappop(taken)[1])
        if free:
            lane = heapq.heappop(free)
        else:
            lane = len(lanes)
            lanes.append([])
        lanes[lane].append(event)
        heapq.heappush(taken, (event.end, lane))
    return lanes


def stretches(spans: Sequence[tuple[float, float]]) -> list[Stretch]:
    """The axis of these (start, end): time from left (0) to right (1), long idle stretches cut to a slit each."""
    busy = _merged(spans)
    if not busy:
        return []
    limit = max(_IDLE_S, _IDLE_SHARE * sum(end - start for start, end in busy))
    joined = [busy[0]]
    for start, end in busy[1:]:
        if start - joined[-1][1] > limit:
            joined.append((start, end))
        else:
            joined[-1] = (joined[-1][0], end)
    slit = min(_SLIT, 0.3 / len(joined))
    width = 1 - slit * (len(joined) - 1)
    total = sum(end - start for start, end in joined) or 1.0
    axis: list[Stretch] = []
    for start, end in joined:
        left = axis[-1].right if axis else 0.0
        if axis:
            axis.append(Stretch(axis[-1].end, start, left, left + slit, cut=True))
            left += slit
        axis.append(Stretch(start, end, left, left + width * (end - start) / total))
    return axis


def place(axis: Sequence[Stretch], at: float) -> float:
    """Where a moment lies on the width, 0 to 1."""
    for stretch in axis:
        if at <= stretch.end:
            length = stretch.end - stretch.start
            share = max(0.0, at - stretch.start) / length if length else 0.0
            return stretch.left + share * (stretch.right - stretch.left)
    return 1.0


def ticks(axis: Sequence[Stretch]) -> tuple[Tick, ...]:
    """Five or six marks of the time since the beginning, none of them inside a cut or upon another."""
    drawn = [s for s in axis if not s.cut]
    begin, total = drawn[0].start, sum(s.end - s.start for s in drawn)
    step = next((s for s in _STEPS if total / s <= _TICKS), _STEPS[-1])
    found: list[Tick] = []
    for stretch in drawn:
        first = -(-(stretch.start - begin) // step) * step
        for number in range(int((stretch.end - begin - first) // step) + 1):
            after = first + number * step
            at = place(axis, begin + after)
            if not found or at - found[-1].at >= 0.5 / _TICKS:
                found.append(Tick(at, _round_time(after)))
    return tuple(found)


def _round_time(seconds: float) -> str:
    """`0`, `30 s`, `5 min`, `1 h 30 min`: what the steps of an axis come to."""
    hours, rest = divmod(int(seconds), 3600)
    parts = [(hours, "h"), (rest // 60, "min"), (rest % 60, "s")]
    return " ".join(f"{n} {unit}" for n, unit in parts if n) or "0"


def _pause(pause: Pause) -> Event:
    title = one_line(f"paused for {duration(pause.end - pause.start)}: {pause.reason}", 200)
    return Event(pause.start, pause.end, Tone.WARN, "paused", title)


def _planning(word: LastWord) -> list[Event]:
    found = []
    for r in word.rounds:
        if r.ended_at is None or r.started_at is None or r.plan is None:
            continue
        count = len(r.plan.tasks)
        title = f"{r.key.short} planned {count} task{'' if count == 1 else 's'}, {r.plan.tokens:,} tokens"
        found.append(Event(r.started_at, r.ended_at, Tone.QUIET, r.key.short, title))
    return found


def _working(facts: TaskFacts) -> list[Event]:
    found = [_run(facts, run, "set aside, and worked on again", Tone.OPEN) for run in facts.earlier]
    if facts.run is not None:
        found.append(_run(facts, facts.run, facts.outcome, facts.tone))
    return found


def _run(facts: TaskFacts, run: WorkerRun, outcome: str, tone: Tone) -> Event:
    took = f"{duration(run.ended_at - run.started_at)}, {run.tokens_in + run.tokens_out:,} tokens"
    title = one_line(f"{facts.task.id} {outcome}, {took}: {facts.task.title}", 200)
    return Event(run.started_at, max(run.started_at, run.ended_at), tone, facts.task.id, title)


def _landing(facts: TaskFacts) -> list[Event]:
    history = facts.landing.history if facts.landing else ()
    return [
        Event(at, at, _LANDING_TONES[state], facts.task.id, one_line(f"{facts.task.id} {state.value}", 200))
        for state, at in history
        if state in _LANDING_TONES
    ]


def _sweeping(sweep: Sweep) -> Event:
    tone = Tone.BAD if sweep.red else Tone.GOOD if sweep.green else Tone.OPEN
    red = ", ".join(c.name.value for c in sweep.checks if c.red)
    word = f"red {red}".strip() if sweep.red else "green" if sweep.green else "nothing to check"
    title = f"sweep {sweep.number} of {sweep.head[:12]}: {word}, {duration(sweep.ended_at - sweep.started_at)}"
    return Event(sweep.started_at, max(sweep.started_at, sweep.ended_at), tone, str(sweep.number), title)


def _bar(axis: Sequence[Stretch], event: Event) -> Bar:
    return Bar(place(axis, event.start), place(axis, event.end), event.tone, event.label, event.title)


def _order(event: Event) -> tuple[float, float, str]:
    return event.start, event.end, event.label


def _merged(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
