"""Merges asked of one lasting git: the same answers as from a git for each, and it may die, be missing or keep silent."""

import gc
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
from repositories import Edits, bare, git, write

from longshot_dagster.adapters.repository import three_way
from longshot_dagster.adapters.repository.git import Git
from longshot_dagster.adapters.repository.git_dialogue import Dialogue
from longshot_dagster.adapters.repository.merger import Clean, Conflicted, Merger
from longshot_dagster.adapters.repository.three_way import _COMMAND, _Report, merge_report
from longshot_dagster.core.errors import RepositoryError

TEXT = "".join(f"line {n}\n" for n in range(9))
SIDES: list[tuple[Edits, Edits]] = [
    ({"o/n.txt": "o\n", "b.bin": b"\0\2"}, {"o/t.txt": "t\n", "a.txt": "x\n"}),
    ({"l": "-> a.txt"}, {"d/e/f": "f\n", "d.x": "x\n", "d/e.x": "y\n"}),
    ({"d": "file\n"}, {"d/e": "folder\n"}),
    ({"n.txt": "same\n"}, {"n.txt": "same\n"}),
    ({"a.txt": None, "moved.txt": TEXT}, {"a.txt": TEXT.replace("3", "three")}),
    ({"a.txt": "x\n", "1": "o\n", "0": "o\n"}, {"a.txt": "y\n", "1": "t\n", "0": "t\n"}),
    ({"a.txt": "x\n"}, {"a.txt": None}),
    ({"we ird\n.txt": "1\n"}, {"we ird\n.txt": "2\n"}),
]


class Sides:
    """A bare repository with the two sides of each merge, all on one base."""

    def __init__(self, folder: Path) -> None:
        self.origin = bare(folder / "o.git", {"a.txt": TEXT, "b.bin": b"\0\1"})
        self.work = folder / "o.git-stranger"
        self.base = git(self.work, "rev-parse", "HEAD")
        self.pairs = [(self._side(f"o{n}", o), self._side(f"t{n}", t)) for n, (o, t) in enumerate(SIDES)]
        git(self.work, "push", "-q", "origin", "--all")

    def _side(self, name: str, edits: Edits) -> str:
        git(self.work, "checkout", "-q", "-B", name, self.base)
        write(self.work, edits)
        git(self.work, "add", "-A")
        git(self.work, "commit", "-q", "-m", name)
        return git(self.work, "rev-parse", "HEAD")

    def merged(self, store: Git) -> list[Clean | Conflicted]:
        return [Merger(store, 1.0).merge(onto, tip, self.base) for onto, tip in self.pairs]


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Sides:
    return Sides(tmp_path_factory.mktemp("sides"))


@pytest.fixture
def store(sides: Sides, monkeypatch: pytest.MonkeyPatch) -> Iterator[Git]:
    monkeypatch.setattr(three_way, "_heard", Event())
    monkeypatch.setattr(three_way, "_unheard", Event())
    yield Git(sides.origin)
    gc.collect()


def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(three_way, "_unbuffered", tuple)


def lasting(store: Git) -> Dialogue:
    return store.dialogue(*_COMMAND, "--stdin", through=three_way._unbuffered())


def started(trace: Path) -> list[str]:
    events = (json.loads(line) for file in trace.iterdir() for line in file.read_text().splitlines())
    return [e["name"] for e in events if e["event"] == "cmd_name"]


def test_one_lasting_git_answers_as_a_git_for_each_merge_does(sides, store, tmp_path, monkeypatch):
    trace = tmp_path / "trace"
    trace.mkdir()
    monkeypatch.setenv("GIT_TRACE2_EVENT", str(trace))
    at_once = sides.merged(store)
    assert started(trace).count("merge-tree") == 1
    plain(monkeypatch)
    assert at_once == sides.merged(Git(sides.origin))
    assert started(trace).count("merge-tree") == 1 + len(SIDES)
    assert [isinstance(m, Clean) for m in at_once] == [True, True, False, True, True, False, False, False]


def test_another_base_than_git_would_find_is_the_one_that_counts(sides, store):
    def commits(parents: list[str], text: str) -> str:
        blob = git(sides.origin, "hash-object", "-w", "--stdin", stdin=text.encode())
        tree = git(sides.origin, "mktree", stdin=f"100644 blob {blob}\ta.txt\n".encode())
        return git(sides.origin, "commit-tree", tree, *(w for p in parents for w in ("-p", p)), "-m", text[:9])

    first = commits([sides.base], TEXT.replace("1", "one"))
    second = commits([first], TEXT.replace("1", "one").replace("8", "eight"))
    main = commits([first], TEXT.replace("1", "one").replace("5", "five"))
    beside, merge = commits([sides.base], TEXT), commits([main, second], TEXT.replace("1", "one"))
    assert three_way._part(store, main, second, first)
    for onto, tip, base in (
        (main, second, sides.base),  # both hold what came first
        (merge, beside, sides.base),  # no straight line
        (main, merge, sides.base),
        (main, second, beside),  # base of neither
        (main, "1" * 40, sides.base),
    ):
        assert not three_way._part(store, onto, tip, base)
    merged = Merger(store, 1.0).merge(main, second, first)
    assert isinstance(merged, Clean)
    assert git(sides.origin, "show", f"{merged.tree}:a.txt") == (
        TEXT.replace("1", "one").replace("5", "five").replace("8", "eight").strip()
    )


def test_its_merges_are_the_ones_git_itself_makes(sides, store):
    for number, (merged, (onto, tip)) in enumerate(zip(sides.merged(store), sides.pairs, strict=True)):
        git(sides.work, "checkout", "-q", "--detach", onto)
        try:
            git(sides.work, "merge", "-q", "-m", "x", tip)
        except AssertionError:
            assert isinstance(merged, Conflicted), number
            git(sides.work, "merge", "--abort")
        else:
            assert merged == Clean(git(sides.work, "rev-parse", "HEAD^{tree}")), number


def test_one_that_was_killed_is_started_again(sides, store):
    before = sides.merged(store)
    talk = lasting(store)._talk
    assert talk is not None
    os.kill(talk._process.pid, signal.SIGKILL)
    assert sides.merged(store) == before
    again = lasting(store)._talk
    assert again is not None and again is not talk
    assert not Path(f"/proc/{talk._process.pid}").exists()


def test_many_threads_get_each_their_own_answer(sides, store):
    expected = sides.merged(store)
    asked = [n % len(SIDES) for n in range(64)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: Merger(store, 1.0).merge(*sides.pairs[n], sides.base), asked))
    assert found == [expected[n] for n in asked]


def test_a_git_that_keeps_its_answers_to_itself_is_asked_once_and_then_not_again(sides, store, monkeypatch):
    """As where stdbuf is there and does nothing: a git that is linked statically."""
    monkeypatch.setattr(three_way, "_unbuffered", lambda: ("/usr/bin/env",))
    monkeypatch.setattr(three_way, "_FIRST_S", 0.2)
    found = sides.merged(store)
    assert three_way._unheard.is_set() and lasting(store)._talk is None
    plain(monkeypatch)
    assert found == sides.merged(Git(sides.origin))


def test_what_cannot_be_merged_says_why_and_the_next_merge_is_whole(sides, store):
    (onto, tip), *_ = sides.pairs
    with pytest.raises(RepositoryError, match="merge-tree"):
        Merger(store, 1.0).merge(onto, "0" * 40, sides.base)
    assert isinstance(Merger(store, 1.0).merge(onto, tip, sides.base), Clean)


def test_a_report_ends_where_it_ends_however_it_comes_and_whatever_its_paths_are(sides, store):
    for onto, tip in sides.pairs:
        clean, said = merge_report(store, onto, tip, sides.base, 1.0)
        whole = (b"1\0" if clean else b"0\0") + said + b"\0"
        for step in (1, 7, len(whole)):
            ending, heard, found = _Report(), bytearray(), -1
            for at in range(0, len(whole), step):
                assert found < 0
                heard += whole[at : at + step]
                found = ending(heard)
            assert found == len(whole) - 1
        assert _Report()(bytearray(whole + b"1\0")) == len(whole) - 1
