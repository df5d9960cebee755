"""What counts as plain work, and what is left to git: the rules one by one. Held against git itself in tests/adapters."""

import hashlib
import struct
import zlib

import pytest

from longshot_dagster.core import small_pack
from longshot_dagster.core.plain_work import judge
from longshot_dagster.core.small_pack import NotPlain, Object, apply_delta, object_id, unpack

BASE = "b" * 40
WHO = b"A Worker <worker@example.invalid> 1700000000 +0000"
FILE, RUN, FOLDER, LINK, MODULE = b"100644", b"100755", b"40000", b"120000", b"160000"
Entry = tuple[bytes, bytes, str]


def tree(*entries: Entry) -> Object:
    return "tree", b"".join(mode + b" " + name + b"\0" + bytes.fromhex(oid) for mode, name, oid in entries)


def commit(of: str, *parents: str, author: bytes = WHO, committer: bytes = WHO, more: bytes = b"") -> Object:
    lines = b"".join(b"parent %s\n" % p.encode() for p in parents or (BASE,))
    return "commit", b"tree %s\n%sauthor %s\ncommitter %s\n%s\nwork\n" % (of.encode(), lines, author, committer, more)


def oid(of: Object) -> str:
    return object_id(*of)


BLOB, OTHER = ("blob", b"new\n"), ("blob", b"old\n")
DEEP = tree((FILE, b"deep.py", oid(OTHER)))
WAS_SRC = tree((FILE, b"a.py", oid(OTHER)), (FOLDER, b"in", oid(DEEP)), (LINK, b"link", "1" * 40))
WAS = tree(
    (FILE, b"README", "2" * 40), (FOLDER, b"lib", "3" * 40), (MODULE, b"mod", "4" * 40), (FOLDER, b"src", oid(WAS_SRC))
)
MIRROR = {oid(o): o for o in (OTHER, DEEP, WAS_SRC, WAS)}


def is_plain(head: Object, *others: Object) -> bool:
    objects = {oid(o): o for o in (head, *others)}
    try:
        judge(oid(head), BASE, oid(WAS), objects, MIRROR.get)
    except NotPlain:
        return False
    return True


def with_root(*entries: Entry, others: tuple[Object, ...] = ()) -> bool:
    root = tree(*entries)
    return is_plain(commit(oid(root)), root, *others)


def named(name: bytes, mode: bytes = FILE, content: bytes = b"new\n") -> bool:
    return with_root((mode, name, oid(("blob", content))), others=(("blob", content),))


@pytest.mark.parametrize(
    "name",
    [
        b"a",
        b"a.py",
        b".env",
        b".github",
        b".gitignore",
        b"[id].tsx",
        b"(group)",
        b"a b",
        b"$x",
        b"_",
        b"@x",
        b"a" * 200,
    ],
)
def test_names_that_are_plain(name: bytes) -> None:
    assert named(name)
    assert named(name, RUN)


@pytest.mark.parametrize(
    "name",
    [
        *(b".git", b".GIT", b".Git", b"git~1", b"GIT~1", b".git ", b".git.", b".git\xe2\x80\x8c", b".git::$DATA"),
        *(b".gitmodules", b".GITMODULES", b"gitmod~1", b".gitattributesx", b".GITATTRIBUTES", b".githubx", b".GITHUB"),
        *(b"", b".", b"..", b"...", b"a/b", b"a\\b", b"a:b", b" a", b"-a", b"a ", b"a.", b"a\n", b"a\x1b", b"a" * 201),
        *("é".encode(), b"\xff"),
    ],
)
def test_names_that_are_left_to_git(name: bytes) -> None:
    assert not named(name)


@pytest.mark.parametrize("mode", [b"100664", b"0100644", b"040000", b"100600", LINK, MODULE, b"", b"0", b"10064"])
def test_modes_that_are_left_to_git(mode: bytes) -> None:
    assert not named(b"a", mode)


def test_git_looks_into_attributes_that_are_not_short() -> None:
    assert named(b".gitattributes", content=b"x" * 2047)
    assert not named(b".gitattributes", content=b"x" * 2048)
    below = tree((FILE, b"x", oid(BLOB)))
    assert not with_root((FOLDER, b".gitattributes", oid(below)), others=(below, BLOB))
    assert not with_root((FILE, b".gitattributes", "2" * 40))  # in the mirror, and not to be had here


@pytest.mark.parametrize(
    ("entries", "plain"),
    [
        ([(FILE, b"a"), (FILE, b"b")], True),
        ([(FILE, b"b"), (FILE, b"a")], False),
        ([(FILE, b"a"), (FILE, b"a")], False),
        ([(FILE, b"a"), (RUN, b"a")], False),
        ([(FILE, b"a"), (FILE, b"a.b"), (FOLDER, b"a")], False),
        ([(FILE, b"a.b"), (FOLDER, b"a")], True),
        ([(FOLDER, b"a"), (FILE, b"a.b")], False),
        ([(FOLDER, b"a"), (FILE, b"a0")], True),
        ([(FILE, b"a"), (FILE, b"B")], False),
    ],
)
def test_a_tree_is_sorted_as_git_sorts_it(entries: list[tuple[bytes, bytes]], plain: bool) -> None:
    below = tree((FILE, b"x", oid(BLOB)))
    ids = {FILE: oid(BLOB), RUN: oid(BLOB), FOLDER: oid(below)}
    others = (BLOB, below) if any(mode == FOLDER for mode, _ in entries) else (BLOB,)
    assert with_root(*((mode, name, ids[mode]) for mode, name in entries), others=others) is plain


def test_a_tree_that_is_cut_off_or_has_more_than_entries() -> None:
    kind, content = tree((FILE, b"a", oid(BLOB)))
    for odd in (content[:-1], content + b"x", b"x" + content):
        assert not is_plain(commit(oid((kind, odd))), (kind, odd), BLOB)


@pytest.mark.parametrize(
    ("who", "plain"),
    [
        (WHO, True),
        ("Žofie <> 0 -1130".encode(), True),
        (b"A  B <a b> 9999999999 +0000", True),
        *((who, False) for who in (b"<a@b> 1 +0000", b" <a@b> 1 +0000", b"A<a@b> 1 +0000", b"A> <a@b> 1 +0000")),
        *((who, False) for who in (b"A <a@b>1 +0000", b"A <a@b> 01 +0000", b"A <a@b> -1 +0000", b"A <a@b> 1 +000")),
        *((who, False) for who in (b"A <a@b> 1 0000", b"A <a@b> 1 +0000 ", b"A <a@b>  1 +0000", b"A <a@b> 1  +0000")),
        *((who, False) for who in (b"A <a\0b> 1 +0000", b"A <a<b> 1 +0000", b"A <a@b> 99999999999 +0000", b"A", b"")),
    ],
)
def test_names_and_dates_as_git_writes_them(who: bytes, plain: bool) -> None:
    root = tree((FILE, b"a", oid(BLOB)))
    assert is_plain(commit(oid(root), author=who), root, BLOB) is plain
    assert is_plain(commit(oid(root), committer=who), root, BLOB) is plain


@pytest.mark.parametrize("more", [b"gpgsig x\n", b"encoding latin1\n", b"mergetag x\n", b"x y\n", b" \n"])
def test_headers_beyond_the_usual_are_left_to_git(more: bytes) -> None:
    root = tree((FILE, b"a", oid(BLOB)))
    assert not is_plain(commit(oid(root), more=more), root, BLOB)


@pytest.mark.parametrize(
    "change", [(b"\nwork", b"\nwo\0rk"), (b"\n\nwork", b"\nwork"), (b"parent ", b"parents "), (b"tree ", b"Tree ")]
)
def test_a_commit_that_is_not_as_git_writes_one(change: tuple[bytes, bytes]) -> None:
    root = tree((FILE, b"a", oid(BLOB)))
    kind, content = commit(oid(root))
    assert not is_plain((kind, content.replace(*change)), root, BLOB)


def test_what_the_base_holds_in_the_changed_folders_need_not_be_brought() -> None:
    src = tree((FILE, b"a.py", oid(BLOB)), (FOLDER, b"in", oid(DEEP)), (FILE, b"link", "1" * 40))
    root = tree((FILE, b"README", "2" * 40), (FOLDER, b"lib", "3" * 40), (FOLDER, b"src", oid(src)))
    assert is_plain(commit(oid(root)), root, src, BLOB)


def test_a_folder_moved_as_it_is() -> None:
    assert with_root((FILE, b"README", "2" * 40), (FOLDER, b"moved", "3" * 40))


@pytest.mark.parametrize(
    "entry",
    [
        (FILE, b"x", "5" * 40),  # nobody has it
        (FILE, b"x", oid(OTHER)),  # it is in the mirror, but in no folder that is changed
        (FOLDER, b"x", "2" * 40),  # a file of the base
        (FILE, b"x", "3" * 40),  # a folder of the base
        (FILE, b"x", "4" * 40),  # a submodule of the base
        (FILE, b"x", BASE),
        (FILE, b"x", oid(WAS)),
        (FILE, b"x", "0" * 40),
    ],
)
def test_what_is_not_known_to_be_whole_is_left_to_git(entry: Entry) -> None:
    assert not with_root(entry)


def test_an_object_taken_for_one_of_another_kind() -> None:
    below = tree((FILE, b"x", oid(BLOB)))
    assert with_root((FOLDER, b"a", oid(below)), others=(below, BLOB))
    assert not with_root((FOLDER, b"a", oid(below)), (FILE, b"b", oid(below)), others=(below, BLOB))
    assert not with_root((FILE, b"a", oid(BLOB)), (FOLDER, b"b", oid(BLOB)), others=(BLOB,))
    root = tree((FILE, b"a", oid(BLOB)))
    assert not is_plain(commit(oid(BLOB)), BLOB)
    assert not is_plain(root, BLOB)
    assert not is_plain(commit(oid(root), oid(root)), root, BLOB)


def test_every_line_of_history_ends_at_the_base() -> None:
    root = tree((FILE, b"a", oid(BLOB)))
    first, empty = commit(oid(root)), commit(oid(WAS))
    assert is_plain(commit(oid(root), oid(first)), first, root, BLOB)
    assert is_plain(commit(oid(root), oid(first), BASE), first, root, BLOB)
    assert is_plain(commit(oid(root), oid(first), oid(empty)), first, empty, root, BLOB)
    assert is_plain(empty)
    assert not is_plain(commit(oid(root), oid(first), "c" * 40), first, root, BLOB)
    kind, content = first
    orphan = kind, content.replace(b"parent %s\n" % BASE.encode(), b"")
    assert not is_plain(orphan, root, BLOB)
    assert not is_plain(commit(oid(root), oid(orphan), BASE), orphan, root, BLOB)


def test_nothing_comes_in_that_the_head_does_not_need() -> None:
    root = tree((FILE, b"a", oid(BLOB)))
    assert not is_plain(commit(oid(root)), root, BLOB, ("blob", b"stray"))
    assert not is_plain(commit(oid(root)), root, BLOB, commit(oid(root), more=b"gpgsig x\n"))


@pytest.mark.parametrize(("folders", "plain"), [(12, True), (20, False)])
def test_trees_that_stand_at_a_great_many_places_are_left_to_git(folders: int, plain: bool) -> None:
    """A few small trees can stand for very many folders, each beside another one of the base."""
    names = [b"%02d" % n for n in range(folders)]
    inner = tree((FILE, b"x", oid(BLOB)))
    middle = tree(*((FOLDER, name, oid(inner)) for name in names))
    root = tree(*((FOLDER, name, oid(middle)) for name in names))
    head = commit(oid(root))

    def there(of: str) -> Object:
        number = int(of, 16) * 100  # each folder of the base is another one
        return tree(*((FOLDER, name, f"{number + n + 1:040x}") for n, name in enumerate(names)))

    try:
        judge(oid(head), BASE, "0" * 40, {oid(o): o for o in (head, root, middle, inner, BLOB)}, there)
        assert plain
    except NotPlain as e:
        assert not plain and "places" in str(e)


# --- packs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("delta", "made"),
    [
        (b"\x03\x02\x02xy", b"xy"),
        (b"\x03\x02\x90\x02", b"ab"),
        (b"\x03\x03\x91\x01\x02\x01z", b"bcz"),
        (b"\x04\x02\x02xy", None),  # of something else
        (b"\x03\x03\x02xy", None),  # too short
        (b"\x03\x01\x02xy", None),  # too long
        (b"\x03\x02\x00\x02xy", None),  # an order that means nothing
        (b"\x03\x03\x91\x01\x03", None),  # beyond the source's end
        (b"\x03\x02\x91\x01\x03", None),
        (b"\x03\x03\x91\x01\x03\x01z", None),
        (b"\x03\x01\x05x", None),
        (b"\x03\x02\x91\x09\x02", None),
        (b"\x03\x02\x80", None),  # 64 KiB
        (b"\x03\x09\x09xy", None),
        (b"\x03\x80\x80\x80\x01", None),  # more than is allowed
        (b"\x80" * 12, None),
    ],
)
def test_a_delta_is_applied_strictly(delta: bytes, made: bytes | None) -> None:
    if made is None:
        with pytest.raises(NotPlain):
            apply_delta(b"abc", delta, 100)
    else:
        assert apply_delta(b"abc", delta, 100) == made


def test_a_delta_that_is_cut_off() -> None:
    for delta in (b"", b"\x03", b"\x03\x02\x91", b"\x80"):
        with pytest.raises(IndexError):
            apply_delta(b"abc", delta, 100)


def packed(*entries: tuple[int, bytes, bytes]) -> memoryview:
    """A pack of (type, what stands before the data, data); no entry has more than 2,047 bytes."""
    body = b"PACK" + struct.pack(">II", 2, len(entries))
    for kind, before, data in entries:
        body += bytes([0x80 | kind << 4 | len(data) & 15, len(data) >> 4]) + before + zlib.compress(data)
    return sealed(body)


def sealed(body: bytes) -> memoryview:
    return memoryview(body + hashlib.sha1(body).digest())


def refused(pack: memoryview) -> bool:
    try:
        unpack(pack, MIRROR.get)
    except NotPlain:
        return True
    return False


def test_the_base_of_a_delta_is_earlier_in_the_pack_or_in_the_mirror() -> None:
    more = b"\x04\x05\x90\x04\x01!"
    new = "blob", b"new\n!"
    assert unpack(packed((3, b"", b"new\n"), (7, bytes.fromhex(oid(BLOB)), more)), MIRROR.get) == {
        oid(BLOB): BLOB,
        oid(new): new,
    }
    first = len(packed((3, b"", b"new\n"))) - 12 - 20
    assert oid(new) in unpack(packed((3, b"", b"new\n"), (6, bytes([first]), more)), MIRROR.get)
    assert unpack(packed((7, bytes.fromhex(oid(OTHER)), more)), MIRROR.get) == {
        oid(("blob", b"old\n!")): ("blob", b"old\n!")
    }
    assert refused(packed((7, bytes.fromhex(oid(BLOB)), more), (3, b"", b"new\n")))
    assert refused(packed((3, b"", b"new\n"), (6, bytes([first + 1]), more)))
    assert refused(packed((3, b"", b"new\n"), (6, b"\x00", more)))


def test_packs_that_are_left_to_git() -> None:
    good = packed((3, b"", b"new\n"))
    assert not refused(good)
    assert refused(memoryview(bytes(good[:-1]) + bytes([good[-1] ^ 1])))
    assert refused(sealed(bytes(good[:-20]) + b"x"))
    assert refused(sealed(bytes(good[:-21])))
    assert refused(packed((4, b"", b"object x\n")))
    assert refused(packed((3, b"", b"new\n"), (3, b"", b"new\n")))
    assert refused(packed(*((3, b"", b"%d" % n) for n in range(65))))
    assert not refused(packed(*((3, b"", b"%d" % n) for n in range(64))))


def test_what_deltas_grow_to_is_bounded_together() -> None:
    source = ("blob", bytes(1 << 16))
    half, more = (
        (b"\x80\x80\x04" + b"\x80\x80\x10" + b"\x80" * 4),
        b"\x80\x80\x04" + b"\x81\x80\x10" + b"\x80" * 4 + b"\x01!",
    )
    entries = [(7, bytes.fromhex(oid(source)), delta) for delta in (half, more)]
    mirror = {oid(source): source}
    assert [len(content) for entry in entries for _, content in unpack(packed(entry), mirror.get).values()] == [
        1 << 18,
        (1 << 18) + 1,
    ]
    with pytest.raises(NotPlain, match="large"):
        unpack(packed(*entries), mirror.get)


def test_what_objects_unpack_to_is_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_pack, "MOST_UNPACKED", 100)
    assert not refused(packed((3, b"", b"a" * 50), (3, b"", b"b" * 50)))
    assert refused(packed((3, b"", b"a" * 50), (3, b"", b"b" * 51)))
    assert refused(packed((3, b"", b"a" * 50), (3, b"", b"b" * 50), (3, b"", b"c")))
