"""The timeline: nothing covers anything, nothing is lost, and a night in which nothing happened takes no room."""

from itertools import pairwise
from random import Random

import pytest

from longshot_dagster.core.last_word import Tone
from longshot_dagster.core.timeline import Bar, Event, Tick, Timeline, Track, pack, place, stretches, ticks
from longshot_dagster.core.timeline_svg import timeline_svg

HOUR = 3600.0


def event(start: float, end: float, label: str = "x") -> Event:
    return Event(start, end, Tone.GOOD, label, label)


@pytest.mark.parametrize("seed", range(20))
def test_no_bar_covers_another_and_there_are_as_many_lanes_as_workers_at_once(seed: int) -> None:
    chance = Random(seed)
    starts = [chance.uniform(0, 500) for _ in range(200)]
    events = [event(s, s + chance.uniform(0, 80), str(n)) for n, s in enumerate(starts)]
    lanes = pack(events)
    assert sorted(e.label for lane in lanes for e in lane) == sorted(e.label for e in events)
    assert all(a.end <= b.start for lane in lanes for a, b in pairwise(lane))
    assert len(lanes) == max(sum(e.start <= at < e.end for e in events) for at in starts)


def test_a_worker_that_follows_another_takes_the_first_free_lane() -> None:
    lanes = pack([event(0, 10, "a"), event(0, 5, "b"), event(5, 9, "c"), event(10, 12, "d")])
    assert [[e.label for e in lane] for lane in lanes] == [["b", "c", "d"], ["a"]]


def test_time_runs_evenly_where_something_happens() -> None:
    axis = stretches([(100, 200), (150, 300)])
    assert [place(axis, at) for at in (100, 150, 200, 300, 999)] == [0.0, 0.25, 0.5, 1.0, 1.0]


def test_an_idle_night_is_cut_to_a_slit_that_says_how_long_it_was() -> None:
    axis = stretches([(0, HOUR), (10 * HOUR, 11 * HOUR)])
    assert [s.cut for s in axis] == [False, True, False]
    assert axis[1].right - axis[1].left == pytest.approx(0.03)
    assert place(axis, HOUR) == pytest.approx(0.485)
    assert place(axis, 10 * HOUR) == pytest.approx(0.515)
    assert place(axis, 5.5 * HOUR) == pytest.approx(0.5)


def test_a_short_wait_is_time_like_any_other() -> None:
    assert [s.cut for s in stretches([(0, 60), (300, 400)])] == [False]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (90, ["0", "15 s", "30 s", "45 s", "1 min", "1 min 15 s", "1 min 30 s"]),
        (1200, ["0", "5 min", "10 min", "15 min", "20 min"]),
        (9000, ["0", "30 min", "1 h", "1 h 30 min", "2 h", "2 h 30 min"]),
    ],
)
def test_the_axis_has_few_round_marks(seconds: float, said: list[str]) -> None:
    assert [t.text for t in ticks(stretches([(50, 50 + seconds)]))] == said


def test_marks_never_lie_upon_one_another_however_often_a_build_stood_still() -> None:
    spans = [(day * 86_400.0, day * 86_400.0 + 300) for day in range(12)]
    found = ticks(stretches(spans))
    assert found[0] == Tick(0.0, "0")
    assert all(b.at - a.at >= 0.08 for a, b in pairwise(found))


def test_a_moment_alone_is_still_drawn() -> None:
    axis = stretches([(5, 5)])
    assert place(axis, 5) == 0.0
    assert ticks(axis) == (Tick(0.0, "0"),)


def test_nothing_has_no_axis() -> None:
    assert stretches([]) == []


def test_text_in_the_picture_is_text_and_the_width_is_per_cent() -> None:
    evil = '</title><script>alert("1")</script>'
    wide, narrow = Bar(0, 0.5, Tone.BAD, evil, evil), Bar(0.5, 0.5, Tone.GOOD, evil, evil)
    svg = timeline_svg(Timeline((Track("workers", ((wide, narrow),)),), (Tick(0, evil),), (Tick(0.5, evil),)))
    assert "<script" not in svg
    assert 'x="0.00%" width="50.00%"' in svg
    assert 'width="0.16%"' in svg, "what took no time is seen too"


def test_a_thousand_lanes_stay_a_picture() -> None:
    lanes = tuple((Bar(0, 1, Tone.GOOD, str(n), str(n)),) for n in range(1_000))
    few = timeline_svg(Timeline((Track("workers", lanes[:4]),), (), ()))
    many = timeline_svg(Timeline((Track("workers", lanes[:100]),), (), ()))
    assert 'height="114"' in few
    assert 'height="386"' in many
