"""Who may start beside whom: exclusive work is alone, two never wait for each other, and a distance never costs a slot."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longshot_dagster.core.apart import BEGINS_S, Nearness, Work, at_work, collision, preferred, start


def work(name: str, *scope: str, priority: int = 5, alone_on: tuple[str, ...] = ()) -> Work:
    return Work(name, priority, scope, alone_on)


def near_of(*works: Work) -> Nearness:
    near = Nearness()
    for each in works:
        near.add(each)
    return near


RENAME = work("r001-02", "src/", alone_on=("src/",))
INSIDE, OUTSIDE = work("r001-01", "src/a.py"), work("r001-03", "docs/a.md")


def test_exclusive_work_waits_for_what_is_at_work_in_its_paths_and_for_nothing_else():
    near = near_of(INSIDE, RENAME, OUTSIDE)
    found = start(["r001-02"], near, busy={"r001-01", "r001-03"}, expected=())
    assert found.order == ()
    assert found.held["r001-02"].why == "waits for r001-01, as it is to work alone on src/"
    assert start(["r001-02"], near, busy={"r001-03"}, expected=()).order == ("r001-02",)


def test_nobody_starts_where_exclusive_work_is_going_on():
    near = near_of(INSIDE, RENAME, OUTSIDE)
    found = start(["r001-01", "r001-03"], near, busy={"r001-02"}, expected=())
    assert found.order == ("r001-03",)
    assert found.held["r001-01"].why == "waits for r001-02, which works alone on src/"


def test_of_two_that_wait_the_urgent_one_starts_and_it_starts_all_at_once_or_not_at_all():
    late = work("r002-01", "src/a.py", "docs/a.md", priority=1, alone_on=("src/a.py", "docs/a.md"))
    near = near_of(INSIDE, OUTSIDE, late)
    assert start(["r001-01", "r001-03", "r002-01"], near, (), ()).order == ("r002-01",)
    assert start(["r002-01"], near, {"r001-03"}, ()).order == ()  # half of its paths are free: it has neither


def test_exclusive_work_that_waits_is_not_overtaken_by_what_comes_after_it():
    """Else a stream of small tasks would keep it from ever starting."""
    after = work("r003-01", "src/b.py")
    near = near_of(INSIDE, RENAME, after)
    here = start(["r001-02", "r003-01"], near, busy={"r001-01"}, expected=())
    assert (here.order, set(here.held)) == ((), {"r001-02", "r003-01"})
    assert here.held["r003-01"].why == "lets r001-02 go first, which is to work alone on src/"
    elsewhere = start(["r003-01"], near, busy=(), expected={"r001-02"})
    assert elsewhere.held["r003-01"].why == here.held["r003-01"].why
    urgent = work("r004-01", "src/c.py", priority=1)
    near.add(urgent)
    assert start(["r004-01"], near, busy=(), expected={"r001-02"}).order == ("r004-01",)


def test_paths_beyond_its_scope_are_kept_free_as_well():
    moving = work("r001-04", "src/", alone_on=("src/", "tests/"))
    assert collision(moving, work("r001-05", "tests/test_a.py")) == "tests/"
    assert collision(work("r001-05", "tests/test_a.py"), moving) == "tests/"
    assert collision(moving, OUTSIDE) == "" == collision(INSIDE, INSIDE)


def test_a_path_that_would_play_tricks_in_a_terminal_is_shown_harmless():
    near = near_of(work("r001-01", "\u202egpj.x"), work("r001-02", "\u202egpj.x", alone_on=("\u202egpj.x",)))
    assert "\u202e" not in start(["r001-02"], near, {"r001-01"}, ()).held["r001-02"].why


@pytest.mark.parametrize(
    ("begun_s", "handed_in", "lives", "expected"),
    [
        (1.0, False, False, True),  # has its slot, and its worker is about to take its lock
        (BEGINS_S, False, False, False),  # its process has died
        (BEGINS_S, False, True, True),
        (99.0, True, False, True),  # waits to land
        (100.0, True, False, False),  # its time is over
        (100.0, False, True, False),
        (-5.0, False, False, False),  # the clock was set back: only a living worker counts
        (-5.0, False, True, True),
        (None, False, False, False),
        (None, False, True, True),  # at work again at a person's wish, in a run of its own
    ],
)
def test_what_counts_as_at_work(begun_s, handed_in, lives, expected):
    assert at_work(begun_s, 100.0, handed_in, lambda: lives) is expected


def test_of_equal_tasks_those_with_nobody_in_their_files_come_first():
    works = [work(f"r001-{n:02d}", f"{path}.py") for n, path in enumerate("aabbc", 1)]
    near = near_of(*works, work("r000-01", "c.py"))
    waiting = [w.task for w in works]
    assert start(waiting, near, {"r000-01"}, ()).order == ("r001-01", "r001-03", "r001-02", "r001-04", "r001-05")
    urgent = work("r001-09", "c.py", priority=1)
    near.add(urgent)
    assert start([*waiting, "r001-09"], near, {"r000-01"}, ()).order[0] == "r001-09"  # an urgent one never gives way


def test_what_a_hundred_tasks_share_is_kept_apart_from_none_of_them_and_costs_nothing():
    works = [work(f"r001-{n:03d}", "hub.py") for n in range(3000)]
    near = near_of(*works, work("r002-01", "x/", alone_on=("hub.py",)))
    assert sum(map(len, near.near.values())) < 100 * 100
    assert len(near.colliding["r002-01"]) == 3000
    assert len(start([w.task for w in works], near, (), ()).order) == 3000


def test_slots_go_to_as_many_of_the_same_urgency():
    wanted = {"c": 1, "d": 2, "a": 1, "b": 1}
    assert preferred(["d", "a", "b"], wanted) == ["d", "c", "a"]
    assert preferred([], wanted) == []


paths = st.sampled_from(["a/", "a/x.py", "a/y.py", "b/", "b/x.py", "c.py", "d.py"])
tasks = st.lists(
    st.tuples(st.lists(paths, min_size=1, max_size=2), st.integers(1, 3), st.lists(paths, max_size=2) | st.just([])),
    min_size=1,
    max_size=14,
)


@settings(max_examples=300, deadline=None)
@given(tasks=tasks, slots=st.integers(1, 5), runs=st.integers(1, 3), seed=st.randoms(use_true_random=False))
def test_exclusive_work_is_always_alone_everything_ends_and_nothing_idles_for_a_distance(tasks, slots, runs, seed):
    """Builds played at random, in one to three processes that take turns in giving slots."""
    works = [Work(f"r001-{n:02d}", p, tuple(s), tuple(a)) for n, (s, p, a) in enumerate(tasks, 1)]
    near = near_of(*works)
    homes = {w.task: seed.randrange(runs) for w in works}
    waiting, busy, rounds = [w.task for w in works], set(), 0
    while waiting or busy:
        rounds += 1
        assert rounds < 500
        for run in seed.sample(range(runs), runs):
            mine = [t for t in waiting if homes[t] == run]
            elsewhere = {t for t in waiting if homes[t] != run and near.works[t].alone_on}
            found = start(mine, near, busy, elsewhere)
            assert sorted([*found.order, *found.held]) == sorted(mine)
            if not any(w.alone_on for w in works):
                assert not found.held
            wanted = {t: -near.works[t].priority for t in found.order}
            entitled = sorted(found.order, key=lambda t: -wanted[t])[: slots - len(busy)]
            started = preferred(entitled, wanted)
            # As many as without any preference, and no less urgent: a distance costs nobody a slot.
            assert len(set(started)) == len(entitled)
            assert [wanted[t] for t in started] == [wanted[t] for t in entitled]
            busy.update(started)
            waiting = [t for t in waiting if t not in busy]
        assert not any(collision(near.works[a], near.works[b]) for a in busy for b in busy if a < b)
        assert busy
        busy.remove(seed.choice(sorted(busy)))
