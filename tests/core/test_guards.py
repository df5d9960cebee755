"""What a landing must not do to lines of others, and what no landed file may hold."""

import random

import pytest

from longshot_dagster.core.guards import has_conflict_markers, keeps_others_keys, keeps_others_lines


def text(*lines):
    return "".join(f"{line}\n" for line in lines).encode()


BASE = text(*(f"line {n}" for n in range(20)))
BRANCH = BASE.replace(b"line 3\n", b"line three\n")
OTHERS = BASE.replace(b"line 15\n", b"line fifteen\nand more\n")
MERGED = OTHERS.replace(b"line 3\n", b"line three\n")


@pytest.mark.parametrize(
    ("merged", "kept"),
    [
        (MERGED, True),
        (OTHERS, True),  # less of the branch than could be is not for this guard to say
        (BRANCH, False),
        (BASE, False),
        (MERGED.replace(b"and more\n", b""), False),
        (MERGED.replace(b"line fifteen\n", b"line 15\n"), False),
        (MERGED.replace(b"line 18\nline 19\n", b"line 19\nline 18\n"), False),
        (MERGED + b"who wrote this?\n", False),
    ],
)
def test_lines_that_the_branch_did_not_touch_are_just_as_others_left_them(merged, kept):
    assert keeps_others_lines(BASE, BRANCH, OTHERS, merged) is kept


def test_lines_that_others_have_only_moved_stay_where_they_put_them():
    moved = BASE.replace(b"line 15\n", b"").replace(b"line 8\n", b"line 8\nline 15\n")
    right = moved.replace(b"line 3\n", b"line three\n")
    assert keeps_others_lines(BASE, BRANCH, moved, right) is True
    assert keeps_others_lines(BASE, BRANCH, moved, BRANCH) is False


def test_what_others_removed_does_not_come_back():
    without = BASE.replace(b"line 15\n", b"")
    assert keeps_others_lines(BASE, BRANCH, without, BRANCH) is False
    assert keeps_others_lines(BASE, BRANCH, without, without.replace(b"line 3\n", b"line three\n")) is True


def test_both_sides_of_a_new_file_may_be_kept():
    assert keeps_others_lines(b"", text("ours"), text("theirs"), text("theirs", "ours")) is True
    assert keeps_others_lines(b"", text("ours"), text("theirs"), text("ours")) is False


def test_a_file_that_is_too_different_to_be_compared_is_said_to_be():
    a, b = (text(*(f"{side} {n}" for n in range(3_000))) for side in "ab")
    assert keeps_others_lines(a, b, a, b) is None


def test_a_merge_by_lines_always_passes():
    """Edits far apart, made to one text from two sides, and put together by place: what any merge gives."""
    for seed in range(300):
        rng = random.Random(seed)
        base = [f"line {n}" for n in range(40)]
        branch, others = dict[int, list[str]](), dict[int, list[str]]()
        for at in rng.sample(range(2, 38, 4), 5):
            new = rng.choice(([], ["new"], ["", "}"], [base[at], "new"], [base[(at + 9) % 40]]))
            rng.choice((branch, others))[at] = new

        def made(edits, base=base):
            return text(*(line for n, old in enumerate(base) for line in edits.get(n, [old])))

        assert keeps_others_lines(made({}), made(branch), made(others), made(branch | others)) is True, seed


@pytest.mark.parametrize(
    ("merged", "kept"),
    [
        (b'{"v": "2", "d": {"a": "1", "b": "1", "c": "1"}}', True),
        (b'{"d": {"c": "1", "b": "1", "a": "1"},\n "v": "2"}', True),
        (b'{"v": "1", "d": {"a": "1", "b": "1", "c": "1"}}', False),
        (b'{"v": "2", "d": {"a": "1", "b": "1"}}', False),
        (b'{"v": "2", "d": {"a": "1", "b": "1", "c": "1", "x": "1"}}', False),
        (b'["v"]', False),
        (b"{", False),
        (b"[" * 100_000, False),
    ],
)
def test_of_json_every_key_that_only_others_changed_is_as_they_left_it(merged, kept):
    base, branch = b'{"v": "1", "d": {"a": "1"}}', b'{"v": "1", "d": {"a": "1", "b": "1"}}'
    others = b'{"v": "2", "d": {"a": "1", "c": "1"}}'
    assert keeps_others_keys(base, branch, others, merged) is kept


@pytest.mark.parametrize(
    ("content", "marked"),
    [
        (text("a", "<<<<<<< ours", "x", "=======", "y", ">>>>>>> theirs"), True),
        (text("<<<<<<< HEAD", "x", "||||||| base", "=======", ">>>>>>> 12ab").replace(b"\n", b"\r\n"), True),
        (text("Title", "=======", "text"), False),
        (text(">>>>>>> b", "=======", "<<<<<<< a"), False),
        (text("  <<<<<<< a", "=======", ">>>>>>> b"), False),
        (text("<<<<<<<", "=======", ">>>>>>>"), False),
        (text("<<<<<<< a", ">>>>>>> b"), False),
        (b"", False),
    ],
)
def test_conflict_markers_are_three_lines_in_their_order(content, marked):
    assert has_conflict_markers(content) is marked
