"""Names that must survive Dagster, git refs and file names alike."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshot_dagster.core import ids
from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.ids import IterationKey


@given(st.text(max_size=200), st.from_regex(r"[a-z0-9]{4}", fullmatch=True))
def test_any_request_gives_a_legal_build_name(request, suffix):
    build = ids.new_build_id(request, suffix)
    assert build.endswith(suffix)
    assert ids.check_build_id(build) == build


@pytest.mark.parametrize("bad", ["", "-x", "x-", "A", "a.b", "../x", "a/b", "a" * 49, "a b", "a\n", "é"])
def test_what_is_not_a_build_name(bad):
    with pytest.raises(WrongUse):
        ids.check_build_id(bad)


@pytest.mark.parametrize(
    ("planner", "number", "position", "expected"),
    [
        ("root", 2, 3, "r002-03"),
        ("fix", 1, 5, "f001-05"),
        ("r002-03", 1, 2, "r002-03-001-02"),
        ("r002-03-001-02", 4, 9, "r002-03-001-02-004-09"),
        ("root", 1, 1000, "r001-1000"),
        ("r001-1000", 1, 100, "r001-1000-001-100"),
    ],
)
def test_task_names_derive_from_their_iteration(planner, number, position, expected):
    key = IterationKey("b-1", planner, number)
    assert ids.task_id(key, position) == expected
    assert ids.parse_iteration_key(str(key)) == key
    assert re.fullmatch(r"[A-Za-z0-9_]+", ids.mapping_key(expected))
    assert ids.mapped_task(ids.mapping_key(expected)) == expected
    assert ids.parse_task_partition(ids.task_partition("b-1", expected)) == ("b-1", expected)


@pytest.mark.parametrize(
    "task, above", [("r001-01", 0), ("f001-01", 0), ("r001-01-001-02", 1), ("r001-01-001-02-001-03", 2)]
)
def test_depth_counts_the_subplanners_above(task, above):
    assert ids.depth(task) == above


@pytest.mark.parametrize("position", [0, 1001])
def test_an_iteration_names_a_thousand_tasks_and_no_more(position):
    with pytest.raises(ValueError, match="1 to 1000 tasks"):
        ids.task_id(IterationKey("b-1", "root", 1), position)


@pytest.mark.parametrize("bad", ["x", "b.root", "b.root.1", "b.root.0001", "b.other.001", "B.root.001", "b.root.001.x"])
def test_what_is_not_an_iteration(bad):
    with pytest.raises(WrongUse):
        ids.parse_iteration_key(bad)


@pytest.mark.parametrize(
    "bad", ["r1-1", "r001", "x001-01", "r001-01/../..", "r001-01-001", "r001-01-001-01-001-01-001-01"]
)
def test_what_is_not_a_task(bad):
    with pytest.raises(WrongUse):
        ids.check_task_id(bad)
