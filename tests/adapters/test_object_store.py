"""What is written without git is, byte for byte, what git would have written; what is looked up is only what was asked for."""

import random
import subprocess
from pathlib import Path

import pytest
from repositories import bare, git, write

from longshot_dagster.adapters.repository.branch import Branch, commit, read_changes
from longshot_dagster.adapters.repository.git import Git
from longshot_dagster.adapters.repository.object_store import (
    GONE,
    Entry,
    blob_at,
    compare,
    graft,
    kept,
    look_up,
    read,
    read_up_to,
    sizes,
    tree_of,
)
from longshot_dagster.adapters.repository.object_store import write as write_object
from longshot_dagster.adapters.repository.targets import queue_identity
from longshot_dagster.core.errors import RepositoryError
from longshot_dagster.core.landing import person

FILES = {"a": "a\n", "d/b": "b\n", "d/e/c": "c\n", "d.x": "x\n", "l": "-> a"}


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    return bare(tmp_path / "o.git", FILES)


@pytest.mark.parametrize("content", [b"", b"text\n", b"\0\xff" * 5_000])
def test_an_object_is_written_as_git_writes_it(origin, content):
    oid = write_object(Git(origin), "blob", content)
    assert oid == git(origin, "hash-object", "--stdin", stdin=content)
    assert read(Git(origin), oid, "blob") == content
    assert oct((origin / "objects" / oid[:2] / oid[2:]).stat().st_mode)[-3:] == "444"
    assert write_object(Git(origin), "blob", content) == oid
    git(origin, "fsck", "--strict")


@pytest.mark.parametrize(
    ("name", "email", "message"),
    [
        ("A Worker", "a@b", "subject\n"),
        ("", "", ""),
        ("., : x ;'\"\\", "<a@b>", "no end"),
        ("Žofie \u200b日本", " a b\t@c ", "\n\nüber\r\n\n  x  \n\n\n"),
        ("x\ny\x1b[31m", "\n", "a\tb\n\n\x0c\n"),
    ],
)
def test_a_commit_has_the_id_that_commit_tree_gives_it(origin, name, email, message):
    author, base = person(name, email), git(origin, "rev-parse", "main")
    for parents, at in (((), 7.9), ((base,), 1_700_000_000.0), ((base, base), 5.0)):
        words = [w for p in parents for w in ("-p", p)]
        expected = git(
            origin, "commit-tree", f"{base}^{{tree}}", *words, stdin=message.encode(), env=queue_identity(at, author)
        )
        assert commit(Git(origin), f"{base}^{{tree}}", parents, message, at, author) == expected


def test_no_commit_is_made_of_what_is_not_there(origin):
    base = git(origin, "rev-parse", "main")
    with pytest.raises(RepositoryError, match="no commit or tree"):
        commit(Git(origin), "1" * 40, (base,), "x", 1.0)
    with pytest.raises(RepositoryError, match="no commit or tree"):
        commit(Git(origin), base, ("1" * 40,), "x", 1.0)
    with pytest.raises(RepositoryError, match="NUL"):
        commit(Git(origin), base, (base,), "x\0y", 1.0)


@pytest.mark.parametrize("packed", [False, True])
def test_an_object_of_any_kind_unless_it_is_large(origin, packed):
    small, large = (git(origin, "hash-object", "-w", "--stdin", stdin=b"x" * size) for size in (10, 30_000))
    tree = git(origin, "rev-parse", "main^{tree}")
    if packed:
        objects = f"{small}\n{large}\n{tree}\n".encode()
        git(origin, "pack-objects", "-q", "objects/pack/pack", stdin=objects)
        git(origin, "prune-packed", "-q")
    store = Git(origin)
    for _ in range(2):
        assert kept(store, small, 10) == ("blob", b"x" * 10)
        assert kept(store, small, 9) is None
        assert kept(store, large, 30_000) == ("blob", b"x" * 30_000)
        assert kept(store, large, 29_999) is None
        assert kept(store, tree, 1_000) == ("tree", read(store, tree, "tree"))
        assert kept(store, "1" * 40, 10) is None
        assert kept(store, "HEAD", 1_000) is None
    assert set(store.kept) == {small, tree}


def test_only_what_is_asked_for_is_looked_up(origin):
    store, base = Git(origin), git(origin, "rev-parse", "main")
    found = look_up(store, base)
    assert found is not None and (found.oid, found.kind) == (base, "commit")
    for name in ("1" * 40, "", "main\ncontents main", "main:a", "x y", f"{base}^{{blob}}"):
        assert look_up(store, name) is None
    assert tree_of(store, base) == tree_of(store, tree_of(store, base)) == git(origin, "rev-parse", "main^{tree}")
    for oid, kind in (("1" * 40, "blob"), (base, "blob"), ("main\n", "commit")):
        with pytest.raises(RepositoryError, match="is not in the mirror"):
            read(store, oid, kind)


@pytest.mark.parametrize("seed", range(5))
def test_a_grafted_tree_is_the_one_an_index_gives(origin, tmp_path, seed):
    rng, store = random.Random(seed), Git(origin)
    tree = git(origin, "rev-parse", "main^{tree}")
    for step in range(4):
        there = set(git(origin, "ls-tree", "-r", "--name-only", tree).split())
        gone = rng.sample(sorted(there), min(2, len(there)))
        new = rng.sample(["a", "a/x", "d", "d/b", "d/e", "d/e/c/z", "n/o/p", "q"], 2)
        new = [n for n in new if not any(m.startswith(f"{n}/") for m in new) and n not in gone]
        blob = write_object(store, "blob", f"{seed} {step}\n".encode())
        entries = [Entry(n.encode(), GONE, "0" * 40) for n in gone]
        entries += [Entry(n.encode(), rng.choice(["100644", "100755", "120000"]), blob) for n in new]
        env = {"GIT_INDEX_FILE": str(tmp_path / f"index{step}")}
        git(origin, "read-tree", tree, env=env)
        given = b"".join(f"{e.mode} {e.oid}\t".encode() + e.path + b"\0" for e in entries)
        git(origin, "update-index", "-z", "--index-info", stdin=given, env=env)
        expected = git(origin, "write-tree", env=env)
        tree = graft(store, tree, entries)
        assert tree == expected
    assert graft(
        store, tree, [Entry(n.encode(), GONE, "") for n in git(origin, "ls-tree", "--name-only", tree).split()]
    )


def test_what_differs_is_told_as_git_tells_it(origin):
    work = origin.parent / "o.git-stranger"
    write(work, {"a": None, 'd/n\n"\tame': "n\n", "d/b": "-> ../a", "l": "-> d"})
    git(work, "add", "-A")
    git(work, "commit", "-q", "-m", "x")
    git(work, "push", "-q", "origin", "HEAD:main")
    options = ("-r", "-z", "--raw", "--no-renames", "--abbrev=40")
    expected = subprocess.run(
        ["git", "diff-tree", *options, "main~1", "main"], cwd=origin, capture_output=True, check=True
    ).stdout
    assert compare(Git(origin), "main~1", "main") == expected
    links = {c.path: c.link for c in read_changes(Git(origin), "main~1", "main") if c.link is not None}
    assert links == {"d/b": "../a", "l": "d"}


def test_two_commits_of_which_one_is_not_here_cannot_be_compared(origin):
    with pytest.raises(RepositoryError, match="no commit or tree"):
        compare(Git(origin), "main", "1" * 40)


def test_a_straight_line_of_commits_is_read_as_git_tells_it(origin, monkeypatch):
    base = tip = git(origin, "rev-parse", "main")
    messages = ["plain\n", "\n \nlate\n\n\nend  \n\n", "    indented\n\ttab\r\n", "Longshot-Task: x\n", "\x1b[31mred\n"]
    for message in messages:
        tip = git(origin, "commit-tree", "main^{tree}", "-p", tip, stdin=message.encode())
    encoded = b"tree %s\nparent %s\nauthor A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\nencoding latin1\n\n\xe9t\xe9\n"
    raw = encoded % (git(origin, "rev-parse", "main^{tree}").encode(), tip.encode())
    foreign = git(origin, "hash-object", "-t", "commit", "-w", "--stdin", stdin=raw)
    straight = Branch(Git(origin), base, tip)
    read_at_once = Branch(Git(origin), base, tip)
    monkeypatch.setattr(read_at_once, "_straight", lambda: None)
    assert straight.commits == read_at_once.commits and len(straight.commits) == len(messages)
    assert straight.linear and Branch(Git(origin), base, foreign).commits[-1].message.startswith("été")
    merge = git(origin, "commit-tree", "main^{tree}", "-p", tip, "-p", base, "-m", "merge")
    assert len(Branch(Git(origin), base, merge).commits) == len(messages) + 1
    assert not Branch(Git(origin), base, merge).linear


def test_an_object_with_a_file_of_its_own_is_read_without_git_and_a_torn_one_is_not_believed(origin, monkeypatch):
    store = Git(origin)
    oid = write_object(store, "blob", b"whole\n")
    path = origin / "objects" / oid[:2] / oid[2:]
    data = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(store, "dialogue", lambda *_: pytest.fail("git was asked"))
        assert read(store, oid, "blob") == b"whole\n"
        assert sizes(store, [oid]) == {oid: 6}
        assert (read_up_to(store, oid, 6), read_up_to(store, oid, 5)) == (b"whole\n", None)
    path.chmod(0o644)
    for torn in (b"", data[:-4], b"garbage", data[:-6] + bytes(6)):
        path.write_bytes(torn)
        with pytest.raises(RepositoryError):
            read(Git(origin), oid, "blob")
    path.write_bytes(data)
    with pytest.raises(RepositoryError, match="not in the mirror"):
        read(store, oid, "tree")


def test_what_is_at_a_path_of_a_tree(origin):
    store, tree = Git(origin), git(origin, "rev-parse", "main^{tree}")
    for path in ("a", "d/b", "d/e/c", "l"):
        assert blob_at(store, tree, path.encode()) == git(origin, "rev-parse", f"main:{path}")
    assert [blob_at(store, tree, p) for p in (b"d", b"a/b", b"none", b"d/none/x")] == [None] * 4
