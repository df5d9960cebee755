"""The order of a batch: urgent first, then so that most of it can land."""

from itertools import combinations
from random import Random

from longshot_dagster.core.landing import Change
from longshot_dagster.core.models import Task
from longshot_dagster.core.ordering import Footprint, footprint, landing_order


def print_of(task: str, *paths: str, priority: int = 5) -> Footprint:
    return Footprint(task, priority, frozenset(paths))


def landed_first(order: list[str], prints: dict[str, Footprint]) -> int:
    """How many land when every shared path is a conflict with what has landed before."""
    taken: set[str] = set()
    count = 0
    for task in order:
        if prints[task].paths.isdisjoint(taken):
            taken |= prints[task].paths
            count += 1
    return count


def test_the_urgent_go_first_however_many_they_collide_with():
    urgent = print_of("r001-09", "a", "b", "c", priority=1)
    assert landing_order([print_of("r001-01", "a"), print_of("r001-02", "b"), urgent])[0] == "r001-09"


def test_one_that_touches_what_many_others_touch_goes_after_them():
    hub = print_of("r001-01", "a", "b", "c")
    others = [print_of(f"r001-0{n}", path) for n, path in enumerate("abc", 2)]
    assert landing_order([hub, *others]) == ["r001-02", "r001-03", "r001-04", "r001-01"]


def test_what_collides_with_something_more_urgent_makes_room_for_its_equals():
    first = print_of("r001-09", "a", priority=1)
    spoilt, free = print_of("r001-01", "a", "b"), print_of("r001-02", "b")
    assert landing_order([spoilt, free, first]) == ["r001-09", "r001-02", "r001-01"]


def test_branches_that_share_nothing_go_by_name_in_whatever_order_they_come():
    prints = [print_of(f"r001-{n:02d}", f"{n}.py") for n in range(30)]
    shuffled = Random(1).sample(prints, len(prints))
    assert landing_order(shuffled) == sorted(p.task for p in prints)
    assert landing_order([]) == []


def test_everything_is_in_the_order_exactly_once_and_it_does_not_depend_on_who_came_first():
    chance = Random(2)
    for _ in range(200):
        some = [
            print_of(f"t{n:02d}", *chance.sample("abcdefghij", chance.randrange(4)), priority=chance.choice([1, 5]))
            for n in range(chance.randrange(1, 25))
        ]
        order = landing_order(some)
        assert sorted(order) == sorted(p.task for p in some)
        assert order == landing_order(chance.sample(some, len(some)))
        priorities = {p.task: p.priority for p in some}
        assert [priorities[t] for t in order] == sorted(priorities.values())


def test_with_hot_files_more_land_in_the_first_pass_than_in_the_order_of_arrival():
    """200 branches, each in one to three files of its own and now and then in one of twelve that many touch."""
    chance, ours, fifo = Random(3), 0, 0
    for _ in range(20):
        some = []
        for n in range(200):
            paths = {f"own{n}-{k}" for k in range(chance.randrange(1, 4))}
            if chance.random() < 0.3:
                paths |= {f"hub{chance.randrange(12)}" for _ in range(chance.randrange(1, 3))}
            some.append(print_of(f"t{n:03d}", *paths))
        prints = {p.task: p for p in some}
        first = landed_first(landing_order(some), prints)
        assert first >= landed_first(sorted(prints), prints)
        ours, fifo = ours + first, fifo + landed_first(sorted(prints), prints)
    assert ours > fifo


def test_of_small_batches_the_first_pass_is_as_large_as_any_order_could_make_it_or_one_less():
    chance = Random(4)
    for _ in range(60):
        some = {f"t{n}": print_of(f"t{n}", *chance.sample("abcdef", chance.randrange(1, 4))) for n in range(7)}
        best = max(
            size
            for size in range(1, 8)
            if any(
                all(a.paths.isdisjoint(b.paths) for a, b in combinations(group, 2))
                for group in combinations(some.values(), size)
            )
        )
        assert landed_first(landing_order(some.values()), some) >= best - 1


def test_only_what_may_land_from_the_branch_counts():
    task = Task(
        id="r001-01",
        build="a-build-7f3k",
        iteration="root.001",
        planner="root",
        description="x",
        scope=("src/", "package-lock.json"),
        branch="b",
    )
    paths = ["src/a.py", "src/package-lock.json", "package-lock.json", "other/strayed.py", "src/node_modules/x.js"]
    changes = [Change(path, "100644", "0" * 40, "M") for path in paths]
    assert footprint(task, changes) == Footprint("r001-01", 5, frozenset({"src/a.py"}))
