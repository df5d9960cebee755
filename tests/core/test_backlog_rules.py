"""What the backlog starts: a table of situations, and whole histories played with random edits, renames, refusals and deaths."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from longshot_dagster.core import backlog as rules
from longshot_dagster.core.backlog import BEGAN, RETRY_AFTER_S, SETTLE_S, Book, Entry, Stage, Start, State
from longshot_dagster.core.backlog_item import Item, parse_item

MINUTE = 60.0


def item(name: str, request: str = "Build it", **front: object) -> Item:
    lines = "".join(f"{k}: {v}\n" for k, v in front.items())
    return parse_item(f"/b/{name}.md", f"---\n{lines}---\n{request}\n")


@dataclass
class Play:
    """A backlog as it is looked at again and again; `stages` is how the build of each start stands in the world."""

    now: float = 1_000_000.0
    limit: int = 2
    files: list[Item] = field(default_factory=list)
    book: Book = field(default_factory=Book)
    stages: dict[str, Stage] = field(default_factory=dict)
    written: dict[str, float] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def turn(self, ticks: Mapping[str, float] | None = None, dies: bool = False) -> list[str]:
        """Builds asked for at this look; `dies`: what was decided is written down and then never launched."""
        written = {i.place: self.written.setdefault(i.place, self.now) for i in self.files}
        known = rules.recognise(self.book, self.files, {i.place for i in self.files}, written, self.now)
        book = known.book.replaced(self._looked)
        book = rules.note_ticks(book, {f"/b/{n}.md": t for n, t in (ticks or {}).items()})
        room = max(0, self.limit - rules.taken(book, {i.place for i in self.files if i.enabled}))
        begin = {i.place: i for i in rules.queue(book, self.files, known.copies, self.now)[:room]}

        def start(entry: Entry) -> Entry:
            if entry.place in begin:
                return rules.started(entry, begin[entry.place], self.now)
            if entry.newest and rules.lost(entry.newest, self.now):
                return rules.asked_again(entry, self.now)
            return entry

        self.book = book.replaced(start)
        made = [s for e in self.book.entries for s in e.starts if s.stage is Stage.ASKED and s.asked == self.now]
        if not dies:
            for s in made:
                self.stages.setdefault(s.build, Stage.RUNNING)
                self.asked.append(s.build)
        return [s.build for s in made]

    def settled(self, **more: object) -> list[str]:
        """Builds asked for at two looks; what is new has settled by the second."""
        first = self.turn()
        self.now += SETTLE_S
        return first + self.turn(**more)  # type: ignore[arg-type]

    def _looked(self, entry: Entry) -> Entry:
        starts = (self._seen(s) for s in entry.starts)
        return entry.model_copy(update={"starts": tuple(starts)})

    def _seen(self, start: Start) -> Start:
        stage = self.stages.get(start.build)
        return start if stage is None or start.stage is Stage.ENDED else start.seen(stage, "why", self.now)

    def states(self) -> dict[str, State]:
        written = {i.place: self.now for i in self.files}
        known = rules.recognise(self.book, self.files, {i.place for i in self.files}, written, self.now)
        found = {}
        for i in self.files:
            entry = known.book.by_place.get(i.place)
            copy = i.place in known.copies
            assert copy or entry is not None
            found[i.name] = State.COPY if copy or entry is None else rules.standing(entry, i, self.now).state
        return found

    def ends(self, *builds: str) -> None:
        self.stages |= dict.fromkeys(builds, Stage.ENDED)


def test_an_item_is_started_once_it_has_settled_and_never_again() -> None:
    play = Play(files=[item("a")])
    assert play.turn() == []
    play.now += SETTLE_S - 1
    assert play.turn() == []
    play.now += 1
    (build,) = play.turn()
    assert build.startswith("a-")
    for _ in range(3):
        play.now += 3_600
        assert play.turn() == []
    play.ends(build)
    assert play.turn() == []
    assert play.states() == {"a.md": State.DONE}


@pytest.mark.parametrize("started", [True, False])
def test_two_items_that_swap_their_contents_are_both_built_once(started: bool) -> None:
    play = Play(files=[item("a", "One"), item("b", "Two")])
    if started:
        play.settled()
    else:
        play.turn()
    play.files = [item("a", "Two"), item("b", "One")]
    play.settled()
    play.settled()
    assert sorted(b.rpartition("-")[0] for b in play.asked) == ["a", "b"]
    assert State.COPY not in play.states().values()


def test_what_is_still_being_written_waits() -> None:
    play = Play(files=[item("a", "Build")])
    play.turn()
    play.now += SETTLE_S - 1
    play.files = [item("a", "Build a RE")]
    assert play.turn() == []
    play.now += SETTLE_S - 1
    assert play.turn() == []
    play.now += 1
    assert len(play.turn()) == 1


@pytest.mark.parametrize("change", ["edited", "renamed", "renamed, then edited", "removed and put back", "copied"])
def test_what_was_started_is_not_built_again_when_its_file_is(change: str) -> None:
    play = Play(files=[item("a")])
    play.ends(*play.settled())
    steps: dict[str, Sequence[Sequence[Item]]] = {
        "edited": [[item("a", "Build it better", priority=1)]],
        "renamed": [[item("b")]],
        "renamed, then edited": [[item("b")], [item("b", "Build it better")]],
        "removed and put back": [[], [item("a")]],
        "copied": [[item("a"), item("b")], [item("b")]],
    }
    for files in steps[change]:
        play.files = list(files)
        assert play.settled() == []
    assert set(play.states().values()) == {State.DONE}


def test_a_copy_waits_until_it_says_something_of_its_own() -> None:
    play = Play(files=[item("a")])
    play.ends(*play.settled())
    play.files = [item("a"), item("b")]
    assert play.settled() == []
    assert play.states() == {"a.md": State.DONE, "b.md": State.COPY}
    play.files = [item("a"), item("b", "Build something else")]
    (build,) = play.settled()
    assert build.startswith("b-")


def test_two_new_files_that_say_the_same_are_one_item() -> None:
    play = Play(files=[item("b"), item("a")])
    play.written = {"/b/b.md": 1.0, "/b/a.md": 2.0}
    (build,) = play.settled()
    assert build.startswith("b-"), "the older file is the item"
    play.files = [item("a", "x"), item("c", "y"), item("d", "z")]
    play.limit = 9
    assert len(play.settled()) == 3
    other = Play(files=[item("a", "x"), item("b", "y")], limit=9)
    other.turn()
    other.files = [item("a", "same"), item("b", "same")]
    assert len(other.settled()) == 1, "made the same by an edit"


def test_a_new_file_in_an_old_ones_place_is_the_old_item_edited_but_a_moved_one_is_itself() -> None:
    play = Play(files=[item("a"), item("b", "Build that")], limit=1)
    play.written = {"/b/a.md": 1.0, "/b/b.md": 2.0}
    (first,) = play.settled()
    play.ends(first)
    play.files = [item("a", "Build that")]  # mv b.md a.md
    (second,) = play.settled()
    assert {first[:2], second[:2]} == {"a-"} and first != second
    play.ends(second)
    play.files = [item("a", "Build it"), item("c", "Build that")]  # both old contents, in whatever place
    assert play.settled() == []


def test_at_most_so_many_at_once_the_most_urgent_first_then_the_oldest() -> None:
    play = Play(files=[item("a", "1"), item("b", "2"), item("c", "3", priority=1), item("d", "4")])
    play.written = {"/b/a.md": 30.0, "/b/b.md": 20.0, "/b/c.md": 40.0, "/b/d.md": 20.0}
    assert {b[0] for b in play.settled()} == {"c", "b"}
    play.now += 1
    assert play.turn() == []
    play.ends(play.asked[0])
    (third,) = play.turn()
    assert third[0] == "d"
    play.ends(*play.asked)
    assert [b[0] for b in play.turn()] == ["a"]


@pytest.mark.parametrize(
    ("stage", "takes"),
    [
        (Stage.ASKED, True),
        (Stage.STARTING, True),
        (Stage.RUNNING, True),
        (Stage.PAUSED, True),
        (Stage.REFUSED, False),
        (Stage.GIVEN_UP, False),
        (Stage.ENDED, False),
    ],
)
def test_which_stage_takes_one_of_the_places(stage: Stage, takes: bool) -> None:
    play = Play(files=[item("a"), item("b", "Build that")], limit=1)
    (build,) = play.settled()
    play.stages[build] = stage
    play.now += 1
    assert bool(play.turn()) is not takes


@pytest.mark.parametrize("gone", [True, False])
def test_a_paused_build_gives_its_place_back_when_its_item_is_removed_or_switched_off(gone: bool) -> None:
    play = Play(files=[item("a", priority=1), item("b", "Build that")], limit=1)
    (build,) = play.settled()
    play.stages[build] = Stage.PAUSED
    play.now += 1
    assert play.turn() == []
    play.files = play.files[1:] if gone else [item("a", enabled="false"), play.files[1]]
    assert len(play.turn()) == 1


def test_a_launch_that_was_lost_is_asked_for_again_under_the_same_name() -> None:
    play = Play(files=[item("a")])
    (build,) = play.settled(dies=True)
    play.now += rules.ASK_AGAIN_S - 1
    assert play.turn() == []
    play.now += 1
    assert play.turn() == [build]
    assert play.turn() == []


def test_a_start_keeps_what_was_asked_for_when_the_file_changes_before_the_build_exists() -> None:
    play = Play(files=[item("a", "Build it", repository="/r.git")])
    (build,) = play.settled(dies=True)
    play.files = [item("a", "Build something else")]
    play.now += rules.ASK_AGAIN_S
    assert play.turn() == [build]
    (entry,) = play.book.entries
    assert entry.newest and entry.newest.order and entry.newest.order.request == "Build it"
    play.turn()
    assert play.book.entries[0].newest.order is None, "once begun, the build's own ledger holds it"  # type: ignore[union-attr]


def test_a_refused_start_is_tried_again_ever_later_and_then_only_after_an_edit() -> None:
    play = Play(files=[item("a")])
    (build,) = play.settled()
    waits = []
    for _ in RETRY_AFTER_S:
        play.stages[build] = Stage.REFUSED
        play.turn()
        refused = play.now
        del play.stages[build]
        while not play.turn():
            play.now += 1
        waits.append(play.now - refused)
    assert waits == list(RETRY_AFTER_S)
    play.stages[build] = Stage.REFUSED
    play.turn()
    play.now += 1e6
    assert play.turn() == []
    assert play.states() == {"a.md": State.REFUSED}
    play.files = [item("a", "Build it where it can be")]
    (other,) = play.settled()
    assert other != build


def test_an_item_that_is_switched_off_is_not_started() -> None:
    play = Play(files=[item("a", enabled="false")])
    assert play.settled() == []
    assert play.states() == {"a.md": State.OFF}
    play.files = [item("a")]
    assert len(play.settled()) == 1


# --- recurring items ---------------------------------------------------------------------------------------------------


def recurring(**more: object) -> Play:
    play = Play(files=[item("n", cron="* * * * *", **more)])
    assert play.settled() == []
    return play


def test_a_tick_that_had_passed_before_the_item_was_there_does_not_count() -> None:
    play = recurring()
    assert play.turn({"n": play.now - 30}) == []
    assert len(play.turn({"n": play.now + 1})) == 1


def test_one_build_for_each_tick_and_one_for_all_that_were_missed() -> None:
    play = recurring()
    made = []
    for minutes in (1, 2, 3, 600, 601):
        tick = 1_000_000.0 + minutes * MINUTE
        play.now = tick + 2
        made += play.turn({"n": tick})
        assert play.turn({"n": tick}) == [], "asked about the same tick twice"
        play.ends(*made)
    assert len(made) == len(set(made)) == 5
    assert {s.tick for s in play.book.entries[0].starts} == {1_000_000.0 + m * MINUTE for m in (1, 2, 3, 600, 601)}


@pytest.mark.parametrize("stage", [Stage.RUNNING, Stage.PAUSED, Stage.STARTING])
def test_while_one_build_of_an_item_is_under_way_its_ticks_wait_and_become_one(stage: Stage) -> None:
    play = recurring()
    (first,) = play.turn({"n": play.now + MINUTE})
    play.stages[first] = stage
    for n in range(2, 12):
        assert play.turn({"n": 1_000_000.0 + n * MINUTE}) == []
    play.ends(first)
    (second,) = play.turn()
    assert play.book.entries[0].newest and play.book.entries[0].newest.tick == 1_000_000.0 + 11 * MINUTE
    play.ends(second)
    assert play.turn() == []


def test_a_tick_waits_for_room_in_the_order_of_priorities() -> None:
    play = Play(files=[item("a", "1"), item("b", "2"), item("n", cron="* * * * *", priority=1)], limit=1)
    (first,) = play.settled()
    assert play.turn({"n": play.now + MINUTE}) == []
    play.ends(first)
    assert [b[0] for b in play.turn()] == ["n"]


def test_another_schedule_begins_anew_and_an_item_switched_off_and_on_too() -> None:
    for between in (item("n", cron="0 3 * * *"), item("n", cron="* * * * *", enabled="false")):
        play = recurring()
        play.ends(*play.turn({"n": play.now + MINUTE}))
        play.files = [between]
        play.now += 600
        play.turn()
        play.files = [item("n", cron="* * * * *")]
        play.turn()
        assert play.settled(ticks={"n": play.now - 30}) == []
        assert len(play.turn({"n": play.now + MINUTE})) == 1


def test_a_refused_tick_is_tried_again_and_gives_way_to_the_next_one() -> None:
    play = recurring()
    (first,) = play.turn({"n": play.now + MINUTE})
    play.stages[first] = Stage.REFUSED
    play.turn()
    del play.stages[first]
    play.now += RETRY_AFTER_S[0]
    assert play.turn() == [first]
    play.stages[first] = Stage.REFUSED
    (second,) = play.turn({"n": play.now + MINUTE})
    assert second != first


def test_the_tick_of_an_earlier_schedule_is_not_made_up_for_by_an_edit() -> None:
    play = recurring()
    (first,) = play.turn({"n": play.now + 1})
    play.stages[first] = Stage.REFUSED
    play.turn()
    play.now += 100
    play.files = [item("n", "Something else", cron="0 3 * * *")]
    assert play.settled() == []
    assert play.states() == {"n.md": State.SCHEDULED}


def test_a_removed_items_build_takes_its_place_until_it_ends() -> None:
    play = Play(files=[item("a")], limit=1)
    (build,) = play.settled()
    play.files = [item("b", "Build that")]
    assert play.settled() == []
    play.ends(build)
    assert len(play.turn()) == 1


def test_should_all_be_forgotten_the_build_still_has_its_name() -> None:
    names = set()
    for _ in range(2):
        play = Play(files=[item("a")])
        names |= set(play.settled())
    assert len(names) == 1


@pytest.mark.parametrize("seed", range(15))
def test_in_any_history_each_item_is_built_once_and_never_too_many_at_a_time(seed: int) -> None:
    chance = random.Random(seed)
    play = Play(limit=chance.choice([1, 2, 3]))
    texts = {n: f"Build {n}" for n in "abcdef"}
    places = {n: n for n in texts}

    def look(**more: bool) -> None:
        play.files = [item(places[n], texts[n], priority=1 + ord(n) % 3) for n in texts]
        play.turn(**more)
        assert sum(s in rules.TAKES_A_PLACE for s in play.stages.values()) <= play.limit

    for step in range(250):
        n = chance.choice("abcdef")
        under_way = [b for b, s in play.stages.items() if s in rules.TAKES_A_PLACE]
        match chance.randrange(8):
            case 0:
                texts[n] = f"Build {n} {step}"
            case 1:
                places[n] = f"{n}{step}"
            case 2 if under_way:
                play.stages[under_way[0]] = chance.choice([Stage.ENDED, Stage.PAUSED, Stage.RUNNING])
        play.now += chance.choice([1, 4, 6, 90])
        look(dies=chance.random() < 0.3)
    for _ in range(20):
        play.ends(*play.stages)
        play.now += 100
        look()
    assert play.states() == {f"{place}.md": State.DONE for place in places.values()}
    assert [sum(s.stage in BEGAN for s in e.starts) for e in play.book.entries] == [1] * 6
