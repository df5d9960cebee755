"""Repository paths: what is one, and which scope covers it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshot_dagster.core import scope
from longshot_dagster.core.errors import WrongUse


@pytest.mark.parametrize(
    ("path", "becomes"),
    [
        ("a.py", "a.py"),
        ("./a//b/./c.py", "a/b/c.py"),
        ("src/", "src/"),
        ("a\\b", "a/b"),
        (" a ", "a"),
        (".gitignore", ".gitignore"),
        ("a/.github/x", "a/.github/x"),
        ("häßlich/文.py", "häßlich/文.py"),
    ],
)
def test_paths_are_normalised(path, becomes):
    assert scope.normalise(path) == becomes


@pytest.mark.parametrize(
    "path",
    [
        *("", " ", ".", "./", "/", "/etc/passwd", "~/x", "C:\\x", "c:x", "..", "a/../b", "a/..", "..\\x"),
        *(".git", ".git/hooks/x", "a/.GIT/x", ".git.", ".git ", "git~1/x", ".g\u200cit/x", ".git::$INDEX_ALLOCATION/x"),
        *("a\nb", "a\0b", "a\x7f", "x" * 4_097),
    ],
)
def test_what_is_no_path_in_a_repository_is_refused(path):
    with pytest.raises(WrongUse):
        scope.normalise(path)


@given(st.text(max_size=60))
def test_normalising_twice_is_normalising_once(text):
    try:
        once = scope.normalise(text)
    except WrongUse:
        return
    assert scope.normalise(once) == once
    assert ".." not in once.split("/") and not once.startswith("/")


@pytest.mark.parametrize(
    ("entries", "path", "covered"),
    [
        (("a/b.py",), "a/b.py", True),
        (("a/",), "a/b.py", True),
        (("a",), "a/b.py", True),
        (("a",), "ab.py", False),
        (("a/b",), "a", False),
        ((), "a", False),
    ],
)
def test_a_scope_covers_its_files_and_what_is_below_its_directories(entries, path, covered):
    assert scope.covers(entries, path) is covered


def test_a_subplanners_tasks_stay_inside_its_scope():
    assert scope.within(("a/b.py", "a/c/"), ("a/",))
    assert not scope.within(("a/", "b.py"), ("a/b.py", "b.py"))


def test_overlap_is_seen_from_both_sides():
    assert scope.overlap(("a/", "b.py", "c/d.py"), ("a/x.py", "c")) == ("a/", "c/d.py")


@pytest.mark.parametrize(
    ("path", "generated"),
    [
        ("package-lock.json", True),
        ("web/pnpm-lock.yaml", True),
        ("a/node_modules/b/c.js", True),
        ("x/__pycache__/y.pyc", True),
        ("y.pyc", True),
        ("package.json", False),
        ("src/builder.py", False),
    ],
)
def test_generated_files_are_known_by_name(path, generated):
    assert scope.is_generated(path) is generated


@given(st.lists(st.lists(st.text("ab/", min_size=1, max_size=6), min_size=1, max_size=3), max_size=8))
def test_neighbours_are_exactly_the_scopes_that_overlap(raw):
    scopes = [[p for p in ("/".join(filter(None, text.split("/"))) for text in paths) if p] for paths in raw]
    near = scope.Neighbours()
    for n, paths in enumerate(scopes):
        assert near.of(paths) == [m for m in range(n) if scope.overlap(paths, scopes[m])]
        near.add(n, paths)
