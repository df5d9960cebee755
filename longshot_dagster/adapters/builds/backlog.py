"""One look at the backlog after another: `$LONGSHOT_HOME/backlog.json`, where every start is noted before it is asked for."""

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from longshot_dagster.adapters.builds.backlog_folder import Folder, read
from longshot_dagster.adapters.host import cron
from longshot_dagster.adapters.host.documents import locked, write_atomically
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.ledger import Ledger
from longshot_dagster.core import backlog as rules
from longshot_dagster.core.backlog import Book, Stage, Standing, Start, State
from longshot_dagster.core.clock import Clock
from longshot_dagster.core.display import one_line
from longshot_dagster.core.errors import LedgerError
from longshot_dagster.core.models import BuildPhase

_GIVEN_UP = "cancelled"  # how the reason begins when a person ended a build


@dataclass(frozen=True)
class Fate:
    """What Dagster knows of the launch of a start."""

    state: Literal["unseen", "under way", "succeeded", "failed", "cancelled"]
    reason: str = ""


@dataclass(frozen=True)
class Ask:
    """A launch to ask for: `start.order` says what, `start.key` is launched once."""

    item: str
    start: Start


@dataclass(frozen=True)
class Turn:
    """One look at the backlog: what to launch, and how everything stands."""

    asks: tuple[Ask, ...]
    standings: tuple[Standing, ...]
    found: Folder
    book: Book


class Backlog:
    """The items in `folder`, of which at most `limit` are builds at once; none may have more tokens than `budget` (0: any)."""

    def __init__(self, home: Home, folder: Path, limit: int, budget: int, clock: Clock) -> None:
        self._home = home
        self._folder = folder
        self._limit = limit
        self._budget = budget
        self._clock = clock
        self._builds = Ledger(home.builds)

    def turn(
        self, fate: Callable[[Start], Fate], *, ticking: float | None = None, recurring_only: bool = False
    ) -> Turn:
        """Note what has changed, decide what starts now, write it down, and return it.

        `ticking` is a time up to which ticks of recurring items are noted. Whatever dies after this, the next turn asks
        for the same launches again. Raises LedgerError when `backlog.json` is unreadable: nothing is started then.
        """
        with locked(self._home.root / ".backlog.lock"):
            now, before = self._clock.now(), self.book()
            found = read(self._folder, self._budget)
            known = rules.recognise(before, found.items, found.present, found.written, now)
            book = known.book.model_copy(update={"folder": str(self._folder), "limit": self._limit})
            book = self._looked(book, fate, now)
            if ticking is not None:
                ticks = {i.place: cron.latest(i.cron, ticking) for i in found.items if i.cron and i.enabled}
                book = rules.note_ticks(book, ticks)
            asks: list[Ask] = []
            if not found.missing:
                book, asks = self._started(book, found, known.copies, now, recurring_only)
            if book != before:
                self._save(book)
            return Turn(tuple(asks), self._standings(book, found, known.copies, now), found, book)

    def look(self) -> Turn:
        """How everything stands, changing nothing."""
        now, found = self._clock.now(), read(self._folder, self._budget)
        known = rules.recognise(self.book(), found.items, found.present, found.written, now)
        book = self._looked(known.book, _not_asked, now)
        later = now + rules.SETTLE_S  # what only settles is in the queue for a person
        return Turn((), self._standings(book, found, known.copies, later), found, book)

    def book(self) -> Book:
        return book_of(self._home)

    def _save(self, book: Book) -> None:
        text = json.dumps(book.model_dump(mode="json"), ensure_ascii=False, indent=1)
        write_atomically(_book_path(self._home), text.encode("utf-8", "replace"))

    # --- what became of earlier starts -------------------------------------------------------------------------------

    def _looked(self, book: Book, fate: Callable[[Start], Fate], now: float) -> Book:
        def look(entry: rules.Entry) -> rules.Entry:
            starts = tuple(self._seen(start, fate, now) for start in entry.starts)
            return entry if starts == entry.starts else entry.model_copy(update={"starts": starts})

        return book.replaced(look)

    def _seen(self, start: Start, fate: Callable[[Start], Fate], now: float) -> Start:
        if start.stage is Stage.ENDED:
            return start
        ledger = self._builds.build(start.build)
        if ledger.exists():
            with contextlib.suppress(LedgerError):  # one that cannot be read stays what it was
                state = ledger.state()
                if state.phase is BuildPhase.FINISHED:
                    return start.seen(Stage.ENDED, "", now)
                if state.phase is not BuildPhase.PAUSED:
                    return start.seen(Stage.RUNNING, "", now)
                given_up = state.reason.startswith(_GIVEN_UP)
                return start.seen(Stage.GIVEN_UP if given_up else Stage.PAUSED, one_line(state.reason), now)
            return start
        if start.stage in rules.BEGAN:
            return start.seen(Stage.ENDED, "", now)  # its ledger was removed
        return start if start.stage is Stage.REFUSED else _launched(start, fate(start), now)

    # --- what starts -------------------------------------------------------------------------------------------------

    def _started(
        self, book: Book, found: Folder, copies: Mapping[str, str], now: float, recurring_only: bool
    ) -> tuple[Book, list[Ask]]:
        room = max(0, self._limit - rules.taken(book, found.wanted))
        chosen = rules.queue(book, found.items, copies, now)[:room]
        begin = {i.place: i for i in chosen if i.cron or not recurring_only}
        lost = {e.place for e in book.entries if e.newest and rules.lost(e.newest, now) and not recurring_only}

        def start(entry: rules.Entry) -> rules.Entry:
            if entry.place in begin:
                return rules.started(entry, begin[entry.place], now)
            return rules.asked_again(entry, now) if entry.place in lost else entry

        after = self._looked(book.replaced(start), _not_asked, now)  # a build of that name may be there already
        asked = [(e, e.newest) for e in after.entries if e.place in lost or e.place in begin]
        return after, [Ask(e.name, s) for e, s in asked if s and s.stage is Stage.ASKED]

    # --- what is said ------------------------------------------------------------------------------------------------

    def _standings(self, book: Book, found: Folder, copies: Mapping[str, str], now: float) -> tuple[Standing, ...]:
        said = [Standing(name, State.MALFORMED, line) for name, line in found.malformed.items()]
        entries, taken = book.by_place, rules.taken(book, found.wanted)
        waiting = {item.place: n for n, item in enumerate(rules.queue(book, found.items, copies, now), 1)}
        for item in found.items:
            if original := copies.get(item.place):
                why = f"says the same as {one_line(original.rpartition('/')[2], 100)}; edit it to make it an item of its own"
                said.append(Standing(item.name, State.COPY, why))
                continue
            stands = rules.standing(entries[item.place], item, now)
            if stands.state is State.READY:
                stands = Standing(item.name, State.WAITING, self._waits(taken, waiting[item.place]), stands.build)
            said.append(stands)
        return tuple(sorted(said, key=lambda s: s.name))

    def _waits(self, taken: int, number: int) -> str:
        if self._limit == 0:
            return "LONGSHOT_BACKLOG_BUILDS is 0, so that nothing starts"
        return f"number {number} in the queue; {taken} of {self._limit} builds are under way"


def _launched(start: Start, fate: Fate, now: float) -> Start:
    match fate.state:
        case "unseen":
            return start
        case "under way":
            return start.seen(Stage.STARTING, "", now)
        case "succeeded":
            return start.seen(Stage.ENDED, "", now)  # built, and removed since
        case "failed":
            return start.seen(Stage.REFUSED, one_line(fate.reason, 1_000), now)
        case "cancelled":  # by a person, who does not want it again by itself
            last = start.model_copy(update={"attempt": len(rules.RETRY_AFTER_S) + 1})
            return last.seen(Stage.REFUSED, one_line(fate.reason, 1_000), now)


def _not_asked(start: Start) -> Fate:
    return Fate("unseen")


def _book_path(home: Home) -> Path:
    return home.root / "backlog.json"


def book_of(home: Home) -> Book:
    """Raises LedgerError: what cannot be read is never taken for empty, or everything would be built again."""
    path = _book_path(home)
    try:
        return Book.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return Book()
    except (OSError, ValidationError) as e:
        raise LedgerError(f"{path} cannot be read, so the backlog starts nothing; mend it, or remove it") from e
