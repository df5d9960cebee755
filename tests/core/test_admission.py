"""Whose request goes next when the endpoints get too many: planners first, then in order; and how many go together."""

from longshot_dagster.core.admission import Admission


def busy(workers: int) -> Admission[str]:
    """A gateway with so many workers' requests under way, none refused so far."""
    found: Admission[str] = Admission()
    assert all(found.enter(f"w{n}", planner=False) for n in range(workers))
    return found


def test_nobody_waits_while_nobody_is_refused() -> None:
    found = busy(1_000)
    assert (found.limit, found.busy, found.waiting) == (None, 1_000, 0)


def test_those_refused_together_halve_the_number_once() -> None:
    found = busy(8)
    assert [found.ended(refused=True) for _ in range(8)] == [[]] * 8
    assert (found.limit, found.busy) == (4, 0)


def test_refused_again_and_again_one_request_still_goes() -> None:
    found = busy(2)
    for _ in range(5):
        found.ended(refused=True)
        found.enter("again", planner=False)
    assert (found.limit, found.busy) == (1, 1)


def test_a_planner_goes_before_workers_that_came_earlier() -> None:
    found = busy(4)
    found.ended(refused=True)
    assert found.limit == 2
    assert [found.enter(who, planner=who == "plan") for who in ("a", "b", "plan", "c")] == [False] * 4
    assert [found.ended(refused=False) for _ in range(3)] == [[], ["plan"], ["a"]]
    found.leave_line("b")
    assert found.ended(refused=False) == ["c"]


def test_who_gave_up_waiting_is_not_let_in() -> None:
    found = busy(2)
    found.ended(refused=True)
    found.enter("a", planner=False)
    found.leave_line("a")
    assert found.waiting == 0
    assert (found.ended(refused=False), found.busy) == ([], 0)
    assert found.enter("b", planner=False)


def test_the_number_grows_by_one_for_every_round_that_went_well() -> None:
    found = busy(8)
    for _ in range(8):
        found.ended(refused=True)
    seen = []
    for _ in range(24):
        found.enter("x", planner=False)
        found.ended(refused=False)
        seen.append(found.limit)
    assert seen == [4] * 9 + [5] * 10 + [6] * 5


def test_a_saturated_line_empties_and_every_request_is_let_in_once() -> None:
    found = busy(10)
    found.ended(refused=True)
    names = [f"r{n}" for n in range(50)]
    going = [n for n in names if found.enter(n, planner=False)]
    ends = 9 + len(going)
    while ends:
        admitted = found.ended(refused=False)
        going += admitted
        ends += len(admitted) - 1
    assert (going, found.busy, found.waiting) == (names, 0, 0)
