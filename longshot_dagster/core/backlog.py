"""Which items of the backlog become builds now: a one-off exactly once, a recurring one once per tick, few at a time.

What is remembered of an item (`Entry`) outlives its file. A file is the item it was before when it stands in the same
place, or has the same contents as an item whose own file is gone: it was renamed. The same contents in two files at once
are one item; the second is a copy and waits until it says something of its own. So neither a rename nor an edit makes a
second build of what was started, and `cp old.md new.md` starts nothing before `new.md` is edited.

A start is written down, with everything it needs, before its launch is asked for. Until the build exists it is asked for
again under the same name, which Dagster launches once and `start_build` begins once.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Self

from pydantic import Field

from longshot_dagster.core.backlog_item import Item
from longshot_dagster.core.ids import new_build_id
from longshot_dagster.core.models import MAX_LINE, Line, Record

SETTLE_S = 5.0  # an editor may write a file in several strokes
ASK_AGAIN_S = 60.0  # Dagster mends a launch that its own death interrupted; after this it is taken for lost
RETRY_AFTER_S = (60.0, 600.0, 3600.0)  # after a refusal, which may be a network that is down; then only after an edit
KEPT_STARTS = 20


class Stage(StrEnum):
    """How one start stood when it was last looked at."""

    ASKED = "asked"  # written down; no run of it was seen yet
    STARTING = "starting"
    REFUSED = "refused"  # no build came of it
    RUNNING = "running"
    PAUSED = "paused"
    GIVEN_UP = "given up"  # cancelled by a person: takes no place any more
    ENDED = "ended"


BEGAN = frozenset({Stage.RUNNING, Stage.PAUSED, Stage.GIVEN_UP, Stage.ENDED})
TAKES_A_PLACE = frozenset({Stage.ASKED, Stage.STARTING, Stage.RUNNING, Stage.PAUSED})


class Order(Record):
    """What a start asks `start_build` for; frozen, so that an edit meanwhile does not change it."""

    request: str
    repository: str
    land_on: str
    settings: dict[str, str]


class Start(Record):
    """One build that an item became, or is to become."""

    build: str
    contents: str = Field(description="SHA-256 of the item as it was started")
    at: float = Field(description="when it was decided")
    asked: float = Field(description="when its launch was last asked for")
    tick: float | None = Field(default=None, description="the tick it answers; None: a one-off")
    attempt: int = 1
    order: Order | None = Field(default=None, description="kept until the build has begun")
    stage: Stage = Stage.ASKED
    reason: Line = Field(default="", description="why it was refused, or is paused")
    since: float = Field(default=0.0, description="when it came to this stage")

    @property
    def key(self) -> str:
        """Dagster launches each key once."""
        return f"{self.build}#{self.attempt}"

    def seen(self, stage: Stage, reason: str, now: float) -> Self:
        if (stage, reason[:MAX_LINE]) == (self.stage, self.reason):
            return self
        order = None if stage in BEGAN else self.order
        since = self.since if stage is self.stage else now
        return self.model_copy(update={"stage": stage, "reason": reason[:MAX_LINE], "since": since, "order": order})


class Entry(Record):
    """What is remembered of one item; times in seconds since the epoch."""

    place: str = Field(description="path of its file, when last seen")
    contents: str
    written: float = Field(description="when its file was written, as first seen: its age in the queue")
    changed: float = Field(description="when its present contents were first seen")
    cron: str = ""
    since: float = Field(description="ticks after this count: `cron` was first seen then")
    due: float | None = Field(default=None, description="the newest tick that no build has answered yet")
    starts: tuple[Start, ...] = ()

    @property
    def name(self) -> str:
        return self.place.rpartition("/")[2]

    @property
    def newest(self) -> Start | None:
        return self.starts[-1] if self.starts else None

    def with_start(self, start: Start) -> Self:
        """The start takes the place of an earlier attempt at it."""
        others = tuple(s for s in self.starts if s.build != start.build)
        return self.model_copy(update={"starts": (*others, start)[-KEPT_STARTS:]})

    def holds(self, contents: str, says: str | None = None) -> bool:
        """Has it these contents, or did they become a build? `says`: what its file has now, if that can be read."""
        return contents == self.contents == (says or contents) or any(contents == s.contents for s in self.starts)


class Book(Record):
    """`backlog.json`: everything remembered, and what the running stack reads and allows."""

    schema_version: int = 1
    folder: str = ""
    limit: int = 0
    entries: tuple[Entry, ...] = ()

    @property
    def by_place(self) -> dict[str, Entry]:
        return {e.place: e for e in self.entries}

    def replaced(self, change: Callable[[Entry], Entry]) -> Self:
        return self.model_copy(update={"entries": tuple(change(e) for e in self.entries)})


class State(StrEnum):
    """How an item stands, in one word for a person."""

    OFF = "off"
    COPY = "copy"
    MALFORMED = "malformed"
    READY = "ready"
    WAITING = "waiting"
    SCHEDULED = "scheduled"
    STARTING = "starting"
    BUILDING = "building"
    PAUSED = "paused"
    DONE = "done"
    REFUSED = "refused"


@dataclass(frozen=True)
class Standing:
    """`build` is the newest build the item became or is to become, if any."""

    name: str
    state: State
    why: str = ""
    build: str = ""


@dataclass(frozen=True)
class Recognised:
    """`book` knows every item; `copies` maps the place of a copy to the place of what it repeats."""

    book: Book
    copies: Mapping[str, str]


def recognise(
    book: Book, items: Sequence[Item], present: Collection[str], written: Mapping[str, float], now: float
) -> Recognised:
    """Match `items` with what is remembered.

    `present` are the places of all files, unreadable ones too; `written` when each was last modified.
    """
    entries = book.by_place
    copies: dict[str, str] = {}
    says = {i.place: i.contents for i in items}  # what an entry says may be what another file says by now
    for item in sorted(items, key=lambda i: (min(written[i.place], now), i.place)):
        here = entries.get(item.place)
        if here is None or here.contents != item.contents:
            same = [e for e in entries.values() if e.place != item.place and e.holds(item.contents, says.get(e.place))]
            moved = next((e for e in same if e.place not in present), None)
            if moved is not None:
                entries.pop(moved.place)
                entries |= {} if here is None else {_buried(here): here.model_copy(update={"place": _buried(here)})}
                here = moved.model_copy(update={"place": item.place})
            elif same and not (here and here.starts):
                copies[item.place] = same[0].place
                continue
        entries[item.place] = _updated(here or _new(item, written[item.place], now), item, now)
    return Recognised(book.model_copy(update={"entries": tuple(entries.values())}), copies)


def _buried(entry: Entry) -> str:
    """Another file was moved over this one: what it became stays known by its contents alone."""
    return f"{entry.place}#{entry.contents[:12]}"


def _new(item: Item, written: float, now: float) -> Entry:
    return Entry(place=item.place, contents=item.contents, written=min(written, now), changed=now, since=now)


def _updated(entry: Entry, item: Item, now: float) -> Entry:
    changes: dict[str, object] = {}
    if entry.contents != item.contents:
        changes |= {"contents": item.contents, "changed": now}
    cron = item.cron if item.enabled else ""
    if entry.cron != cron:
        changes |= {"cron": cron, "since": now, "due": None}
    return entry.model_copy(update=changes) if changes else entry


def note_ticks(book: Book, latest: Mapping[str, float]) -> Book:
    """Remember, by place, the newest tick that has come: of many that were missed, the last alone counts."""

    def noted(entry: Entry) -> Entry:
        tick = latest.get(entry.place)
        answered = max((s.tick for s in entry.starts if s.tick is not None), default=0.0)
        if tick is None or tick <= max(entry.since, answered, entry.due or 0.0):
            return entry
        return entry.model_copy(update={"due": tick})

    return book.replaced(noted)


def standing(entry: Entry, item: Item, now: float) -> Standing:
    """How `item` stands by itself; READY: it may be started as soon as there is room."""
    newest = entry.newest
    build = newest.build if newest else ""

    def stands(state: State, why: str = "") -> Standing:
        return Standing(item.name, state, why, build)

    if newest and newest.stage in TAKES_A_PLACE:
        return _under_way(item, newest, entry.due)
    if not item.enabled:
        return stands(State.OFF, "enabled is false")
    if item.cron and entry.due is None and _refused_tick(entry) is None:
        return stands(State.SCHEDULED)
    if not item.cron and (begun := next((s for s in entry.starts if s.stage in BEGAN), None)):
        edited = "edited since; a new file makes a new build" if begun.contents != item.contents else ""
        return Standing(item.name, State.DONE, begun.reason or edited, begun.build)
    if newest and newest.stage is Stage.REFUSED and _same_again(entry, item, newest):
        wait = _retry_at(newest)
        if wait is None:
            return stands(State.REFUSED, f"{newest.reason}; tried {newest.attempt} times, again once it is edited")
        if newest.since <= now < wait:
            return stands(State.REFUSED, f"{newest.reason}; again {at(wait)}")
    if abs(now - entry.changed) < SETTLE_S:  # a clock that was set back keeps nothing waiting
        return stands(State.WAITING, "was changed a moment ago")
    return stands(State.READY)


def _under_way(item: Item, start: Start, due: float | None) -> Standing:
    more = f"the tick of {at(due)} waits for its end" if due is not None else ""
    if start.stage is Stage.PAUSED:
        return Standing(item.name, State.PAUSED, "; ".join(filter(None, (start.reason, more))), start.build)
    state = State.BUILDING if start.stage is Stage.RUNNING else State.STARTING
    return Standing(item.name, state, more, start.build)


def _same_again(entry: Entry, item: Item, refused: Start) -> bool:
    return refused.contents == item.contents and entry.due in (None, refused.tick)


def _refused_tick(entry: Entry) -> float | None:
    """The tick that is still to be answered because its start was refused; one of an earlier `cron` is not."""
    newest = entry.newest
    if newest is None or newest.stage is not Stage.REFUSED or newest.tick is None or newest.tick <= entry.since:
        return None
    return newest.tick


def _retry_at(refused: Start) -> float | None:
    return refused.since + RETRY_AFTER_S[refused.attempt - 1] if refused.attempt <= len(RETRY_AFTER_S) else None


def taken(book: Book, wanted: Collection[str]) -> int:
    """How many builds of the backlog are under way or starting; a paused one counts while its item is still `wanted`.

    `wanted` are the places of the files that are there and not switched off.
    """
    return sum(
        start.stage in TAKES_A_PLACE and (start.stage is not Stage.PAUSED or entry.place in wanted)
        for entry in book.entries
        for start in entry.starts
    )


def queue(book: Book, items: Sequence[Item], copies: Collection[str], now: float) -> list[Item]:
    """Items that may be started, in their order: priority, then age, then name."""
    found, entries = [], book.by_place
    for item in items:
        entry = entries.get(item.place) if item.place not in copies else None
        if entry and standing(entry, item, now).state is State.READY:
            found.append(((item.priority, entry.written, item.place), item))
    return [item for _, item in sorted(found, key=lambda x: x[0])]


def started(entry: Entry, item: Item, now: float) -> Entry:
    """`entry` with a start of what `item` says now: a new one, or the next attempt at one that was refused."""
    newest = entry.newest
    order = Order(request=item.request, repository=item.repository, land_on=item.land_on, settings=dict(item.settings))
    again = newest is not None and newest.stage is Stage.REFUSED and _same_again(entry, item, newest)
    if newest is not None and again:
        changes = {"attempt": newest.attempt + 1, "asked": now, "order": order}
        return _answered(entry.with_start(newest.model_copy(update=changes).seen(Stage.ASKED, "", now)))
    tick = (entry.due if entry.due is not None else _refused_tick(entry)) if item.cron else None
    start = Start(
        build=build_name(item, tick), contents=item.contents, at=now, asked=now, tick=tick, order=order, since=now
    )
    return _answered(entry.with_start(start))


def _answered(entry: Entry) -> Entry:
    return entry.model_copy(update={"due": None})


def build_name(item: Item, tick: float | None) -> str:
    """The same for the same contents and tick: should everything remembered be lost, the build is met again."""
    seed = f"{item.contents} {'' if tick is None else int(tick)}"
    return new_build_id(item.name.rpartition(".")[0], hashlib.sha256(seed.encode()).hexdigest()[:8])


def lost(start: Start, now: float) -> bool:
    """Must its launch be asked for again?"""
    return start.stage is Stage.ASKED and now - start.asked >= ASK_AGAIN_S


def asked_again(entry: Entry, now: float) -> Entry:
    newest = entry.newest
    return entry.with_start(newest.model_copy(update={"asked": now})) if newest else entry


def at(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M UTC")
