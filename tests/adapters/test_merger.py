"""Merges in memory agree with `git merge` and `git rebase`, on random histories with renames."""

import random
from pathlib import Path

import pytest
from repositories import bare, git, write

from longshot_dagster.adapters.repository.branch import Branch
from longshot_dagster.adapters.repository.git import Git
from longshot_dagster.adapters.repository.merger import (
    Clean,
    Conflicted,
    Merged,
    Merger,
    Names,
    Unchanged,
    _conflicts_only,
)

NAMES = Names("a-build-7f3k", "r001-01", "0" * 40, "subject")


def grow(rng: random.Random, work: Path, commits: int) -> None:
    for n in range(commits):
        files = sorted(p for p in work.rglob("*.txt"))
        for path in rng.sample(files, 2):
            lines = path.read_text().splitlines()
            lines[rng.randrange(len(lines))] = f"changed {rng.random()}"
            path.write_text("\n".join(lines) + "\n")
        if rng.random() < 0.3:
            path = rng.choice(files)
            path.rename(path.with_name(f"moved{rng.randrange(9)}{path.name}"))
        write(work, {f"new{rng.randrange(30)}.txt": "".join(f"{rng.random()}\n" for _ in range(8))})
        git(work, "add", "-A")
        git(work, "commit", "-q", "-m", f"commit {n}")


@pytest.mark.parametrize("seed", range(4))
def test_squash_and_rebase_give_the_tree_that_git_gives(tmp_path, seed):
    rng = random.Random(seed)
    text = {f"d{n % 3}/f{n}.txt": "".join(f"line {i} of {n}\n" for i in range(30)) for n in range(14)}
    origin = bare(tmp_path / "o.git", text)
    work = tmp_path / "o.git-stranger"
    base = git(work, "rev-parse", "HEAD")
    git(work, "checkout", "-q", "-b", "task")
    grow(rng, work, 2)
    git(work, "checkout", "-q", "-b", "landing", base)
    grow(rng, work, 2)
    tip, onto = git(work, "rev-parse", "task"), git(work, "rev-parse", "landing")
    git(work, "push", "-q", "origin", "task", "landing")
    merger, branch = Merger(Git(origin), 1.0), Branch(Git(origin), base, tip)
    squash, rebase = merger.squash(onto, branch, tip, NAMES), merger.rebase(onto, branch, NAMES)

    def real(*command: str) -> str | None:
        git(work, "checkout", "-q", "-B", "try", command[-1])
        status = git(work, *command[:-1]) if _works(work, command[:-1]) else None
        return None if status is None else git(work, "rev-parse", "HEAD^{tree}")

    expected = real("merge", "-q", "-m", "x", tip, onto)
    assert (
        git(origin, "rev-parse", f"{squash.commits[-1]}^{{tree}}") if isinstance(squash, Merged) else None
    ) == expected
    if isinstance(squash, Conflicted):
        assert squash.files and all(f.kind for f in squash.files)
    expected = real("rebase", "-q", onto, tip)
    assert (
        git(origin, "rev-parse", f"{rebase.commits[-1]}^{{tree}}") if isinstance(rebase, Merged) else None
    ) == expected


def _works(work: Path, command: tuple[str, ...]) -> bool:
    """Try it; take it back and say no when it conflicts. What worked is asked again, which changes nothing."""
    try:
        git(work, *command)
    except AssertionError:
        git(work, command[0], "--abort")
        return False
    return True


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path, str]:
    origin = bare(tmp_path / "o.git", {"a.txt": "".join(f"{n}\n" for n in range(9)), "b.bin": b"\0\1"})
    work = tmp_path / "o.git-stranger"
    return origin, work, git(work, "rev-parse", "HEAD")


def side(work: Path, base: str, name: str, edits: dict) -> str:
    git(work, "checkout", "-q", "-B", name, base)
    write(work, edits)
    git(work, "add", "-A")
    git(work, "commit", "-q", "-m", name)
    git(work, "push", "-q", "origin", name)
    return git(work, "rev-parse", "HEAD")


@pytest.mark.parametrize(
    ("ours", "theirs", "path", "kind"),
    [
        ({"a.txt": "x\n"}, {"a.txt": "y\n"}, "a.txt", "contents"),
        ({"a.txt": "x\n"}, {"a.txt": None}, "a.txt", "modify/delete"),
        ({"n.txt": "x\n"}, {"n.txt": "y\n"}, "n.txt", "contents"),
        ({"b.bin": b"\0\2"}, {"b.bin": b"\0\3"}, "b.bin", "binary"),
        ({"we ird\n.txt": "x\n"}, {"we ird\n.txt": "y\n"}, "we ird\n.txt", "contents"),
    ],
)
def test_a_conflict_names_its_files_and_kind(pair, ours, theirs, path, kind):
    origin, work, base = pair
    result = Merger(Git(origin), 1.0).merge(side(work, base, "o", ours), side(work, base, "t", theirs), base)
    assert isinstance(result, Conflicted)
    (file,) = result.files
    assert (file.path, file.kind) == (path, kind)


def test_a_merge_onto_the_base_itself_is_the_branchs_own_tree(pair):
    origin, work, base = pair
    tip = side(work, base, "t", {"a.txt": "y\n"})
    assert Merger(Git(origin), 1.0).merge(base, tip, base) == Clean(f"{tip}^{{tree}}")


def test_what_is_there_already_is_unchanged(pair):
    origin, work, base = pair
    tip, other = side(work, base, "t", {"a.txt": "y\n"}), side(work, base, "o", {"a.txt": "y\n", "c": "c\n"})
    branch, merger = Branch(Git(origin), base, tip), Merger(Git(origin), 1.0)
    assert merger.squash(other, branch, tip, NAMES) == Unchanged() == merger.rebase(other, branch, NAMES)


def test_a_filtered_branch_holds_only_what_is_kept(pair):
    origin, work, base = pair
    tip = side(work, base, "t", {"a.txt": "y\n", "d/n.txt": "n\n", "b.bin": None})
    branch = Branch(Git(origin), base, tip)
    made = branch.filtered(frozenset({"d/n.txt", "b.bin"}), 1.0)
    assert git(origin, "diff", "--name-status", base, made).split() == ["D", "b.bin", "A", "d/n.txt"]


def test_of_a_long_conflicted_file_only_the_conflicts_are_shown():
    text = "".join(f"{n}\n" for n in range(20_000)) + "<<<<<<< a\nx\n=======\ny\n>>>>>>> b\n" + "z\n" * 9_000
    shown = _conflicts_only(text)
    assert "<<<<<<< a\nx\n=======\ny\n>>>>>>> b" in shown and len(shown) < 1_000 and "line 19986:" in shown


def test_a_new_file_follows_a_folder_that_the_landing_branch_has_renamed(tmp_path):
    text = {f"old/{n}.txt": "".join(f"line {i} of {n}\n" for i in range(9)) for n in range(4)}
    origin = bare(tmp_path / "o.git", text)
    work = tmp_path / "o.git-stranger"
    base = git(work, "rev-parse", "HEAD")
    onto = side(work, base, "o", dict.fromkeys(text) | {n.replace("old/", "new/"): t for n, t in text.items()})
    tip = side(work, base, "t", {"old/added.txt": "t\n"})
    result = Merger(Git(origin), 1.0).merge(onto, tip, base)
    assert isinstance(result, Conflicted) and "rename" in result.files[0].kind
