"""What a hostile worker may put into its bundle, and that nothing of it stays behind."""

import hashlib
import os
import struct
import zlib

import pytest
from repositories import BUILD, World, bare, commit_on, git, objects_in

from longshot_dagster.core import bundles
from longshot_dagster.core.contract import WORK_REF
from longshot_dagster.core.errors import HostileBundle

TASK = "r001-01"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """One for all: what is refused leaves nothing behind."""
    tmp_path = tmp_path_factory.mktemp("intake")
    return World(tmp_path, bare(tmp_path / "origin.git", {"README.md": "hello\n", "src/a.py": "a = 1\n"}))


class Forge:
    """A worker's repository in which anything can be written, and bundles made of it by hand."""

    def __init__(self, world: World) -> None:
        self.base = world.mirror.fetch()
        self.path = world.root / f"forge-{os.urandom(3).hex()}"
        git(world.root, "clone", "-q", "-b", "base", str(world.mirror.bundle(self.base)), str(self.path))

    def tree(self, *entries: tuple[str, str, str]) -> str:
        raw = b"".join(f"{mode} {name}".encode() + b"\0" + bytes.fromhex(oid) for mode, name, oid in entries)
        return git(self.path, "hash-object", "-t", "tree", "-w", "--literally", "--stdin", stdin=raw)

    def blob(self, text: bytes) -> str:
        return git(self.path, "hash-object", "-w", "--stdin", stdin=text)

    def commit(self, tree: str, *parents: str) -> str:
        words = [w for p in (parents or (self.base,)) for w in ("-p", p)]
        return git(self.path, "commit-tree", tree, *words, "-m", "work")

    def bundle(self, head: str, header: str | None = None) -> bytes:
        pack = self.path / "out.pack"
        given = f"{head}\n^{self.base}\n"
        script = f"printf '{given}' | git pack-objects --stdout --revs --thin -q > {pack}"
        git(self.path, "-c", f"alias.x=!{script}", "x")
        start = f"# v2 git bundle\n-{self.base} base\n{head} {WORK_REF}\n\n" if header is None else header
        return start.encode() + pack.read_bytes()


def raw_pack(*entries: bytes, count: int | None = None) -> bytes:
    body = b"PACK" + struct.pack(">II", 2, len(entries) if count is None else count) + b"".join(entries)
    return body + hashlib.sha1(body).digest()


def entry(kind: int, size: int, data: bytes, prefix: bytes = b"") -> bytes:
    first, rest = (kind << 4) | (size & 15), size >> 4
    head = bytearray()
    while rest:
        head.append(first | 0x80)
        first, rest = rest & 0x7F, rest >> 7
    head.append(first)
    return bytes(head) + prefix + zlib.compress(data)


def varint(number: int) -> bytes:
    out = bytearray()
    while True:
        out.append((number & 0x7F) | (0x80 if number > 0x7F else 0))
        number >>= 7
        if not number:
            return bytes(out)


def refused(world: World, data: bytes, match: str) -> None:
    base = world.mirror.fetch()
    before = objects_in(world.mirror.path)
    refs = git(world.mirror.path, "for-each-ref")
    with pytest.raises(HostileBundle, match=match) as error:
        world.mirror.intake(BUILD, TASK, base, data)
    assert "\n" not in str(error.value)
    assert objects_in(world.mirror.path) == before
    assert git(world.mirror.path, "for-each-ref") == refs
    assert not [p for p in (world.mirror.path / "longshot-quarantine").glob("*") if p.is_dir()]


def header(base: str, *lines: str) -> bytes:
    return "".join(f"{line}\n" for line in ("# v2 git bundle", f"-{base}", *lines, "")).encode()


# --- what comes in ---------------------------------------------------------------------------------------------------


def test_honest_work_comes_in_under_its_own_ref(world):
    base = world.mirror.fetch()
    head = world.mirror.intake(BUILD, TASK, base, world.bundle(base, {"src/a.py": "a = 2\n"}))
    assert git(world.mirror.path, "rev-parse", f"refs/longshot/work/{BUILD}/{TASK}") == head
    assert git(world.mirror.path, "show", f"{head}:src/a.py") == "a = 2"
    assert git(world.mirror.path, "for-each-ref", "refs/heads") == ""
    git(world.mirror.path, "fsck", "--strict")


def test_work_of_many_objects_stays_one_pack(world):
    base = world.mirror.fetch()
    many = {f"src/f{n}.py": f"{n}\n" for n in range(600)}
    head = world.mirror.intake(BUILD, TASK, base, world.bundle(base, many))
    assert len(list((world.mirror.path / "objects/pack").glob("*.idx"))) >= 1
    assert git(world.mirror.path, "show", f"{head}:src/f599.py") == "599"


@pytest.mark.parametrize("size", [(1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5_000_000])
def test_a_large_file_that_compresses_well_comes_in(world, size):
    world.mirror.intake(
        BUILD, f"r001-{size % 89 + 10}", base := world.mirror.fetch(), world.bundle(base, {"big": "0" * size})
    )


def test_doing_the_task_again_moves_its_ref(world):
    base = world.mirror.fetch()
    world.mirror.intake(BUILD, TASK, base, world.bundle(base, {"src/a.py": "2\n"}))
    head = world.mirror.intake(BUILD, TASK, base, world.bundle(base, {"src/a.py": "3\n"}))
    assert git(world.mirror.path, "rev-parse", f"refs/longshot/work/{BUILD}/{TASK}") == head


# --- trees that would hurt -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [".git", ".GIT", "git~1", ".git\u200c", "..", "."])
def test_a_directory_that_git_would_take_for_its_own(world, name):
    forge = Forge(world)
    hooks = forge.tree(("100755", "post-checkout", forge.blob(b"#!/bin/sh\ntouch /tmp/owned\n")))
    refused(world, forge.bundle(forge.commit(forge.tree(("40000", name, hooks)))), "refused")


def test_a_path_that_climbs_out(world):
    forge = Forge(world)
    tree = forge.tree(("100644", "../x", forge.blob(b"x")))
    refused(world, forge.bundle(forge.commit(tree)), "refused")


def test_a_gitmodules_that_is_a_link(world):
    forge = Forge(world)
    tree = forge.tree(("120000", ".gitmodules", forge.blob(b"elsewhere")))
    refused(world, forge.bundle(forge.commit(tree)), "refused")


def test_a_gitmodules_that_runs_a_program(world):
    forge = Forge(world)
    text = b'[submodule "x"]\n\tpath = x\n\turl = -u./payload\n'
    tree = forge.tree(("100644", ".gitmodules", forge.blob(text)), ("160000", "x", "1" * 40))
    refused(world, forge.bundle(forge.commit(tree)), "refused")


def test_a_bad_tree_hidden_in_an_earlier_commit(world):
    forge = Forge(world)
    hooks = forge.tree(("100755", "x", forge.blob(b"x")))
    first = forge.commit(forge.tree(("40000", ".git", hooks)))
    clean = git(forge.path, "rev-parse", f"{forge.base}^{{tree}}")
    refused(world, forge.bundle(forge.commit(clean, first)), "refused")


def test_a_submodule_comes_in_and_is_withheld_at_landing(world):
    forge = Forge(world)
    link = forge.tree(("100644", "a.py", forge.blob(b"2\n")), ("160000", "sub", "1" * 40))
    task = world.task(TASK, ("src/",))
    world.plan(task)
    readme = git(forge.path, "rev-parse", f"{forge.base}:README.md")
    head = forge.commit(forge.tree(("100644", "README.md", readme), ("40000", "src", link)))
    world.delivered(task, forge.base, world.mirror.intake(BUILD, TASK, forge.base, forge.bundle(head)))
    outcome = world.queue().land(task)
    assert outcome.landed_paths == ("src/a.py",) and outcome.withheld_paths == ("src/sub",)


# --- histories -------------------------------------------------------------------------------------------------------


def test_objects_that_are_not_there(world):
    forge = Forge(world)
    head = forge.commit(forge.tree(("100644", "x", "2" * 40)))
    git(
        forge.path,
        "config",
        "alias.pack",
        f"!printf '{head}\\n%s\\n' $(git rev-parse {head}^{{tree}}) | git pack-objects --stdout -q",
    )
    pack = forge.path / "partial.pack"
    git(forge.path, "-c", f"alias.y=!git pack > {pack}", "y")
    refused(world, header(forge.base, f"{head} {WORK_REF}") + pack.read_bytes(), "refused")


def test_a_history_that_does_not_build_on_its_base(world):
    forge = Forge(world)
    orphan = git(forge.path, "commit-tree", forge.tree(("100644", "x", forge.blob(b"x"))), "-m", "orphan")
    refused(world, forge.bundle(orphan), "does not build on its base")


def test_a_prerequisite_that_is_somebody_elses_work(world):
    other = commit_on(world.origin, "other", {"x": "x\n"})
    forge = Forge(world)
    world.mirror.obtain("refs/heads/other", other)
    head = forge.commit(forge.tree(("100644", "x", forge.blob(b"x"))))
    text = f"# v2 git bundle\n-{other} x\n{head} {WORK_REF}\n\n"
    refused(world, forge.bundle(head, text), "not part of its base")


def test_a_ref_that_is_not_a_commit(world):
    forge = Forge(world)
    blob = forge.blob(b"just a blob")
    pack = raw_pack(entry(3, 11, b"just a blob"))
    refused(world, header(forge.base, f"{blob} {WORK_REF}") + pack, "not a commit")


# --- bombs and forgeries ---------------------------------------------------------------------------------------------


def test_a_file_of_five_gigabytes_is_refused_by_its_declared_size(world):
    base = world.mirror.fetch()
    pack = raw_pack(entry(3, 5 << 30, b"\0" * (1 << 20)))
    refused(world, header(base, f"{'1' * 40} {WORK_REF}") + pack, "declares an object of 5368709120 bytes")


def test_a_delta_that_would_grow_to_five_gigabytes_is_refused(world):
    base = world.mirror.fetch()
    blob = bytes.fromhex(git(world.mirror.path, "rev-parse", f"{base}:README.md"))
    delta = varint(6) + varint(5 << 30) + b"\x90\x06" * 20
    pack = raw_pack(entry(7, len(delta), delta, blob))
    refused(world, header(base, f"{'1' * 40} {WORK_REF}") + pack, "declares an object of 5368709120 bytes")


def test_many_small_bombs_are_refused_together(world, monkeypatch):
    monkeypatch.setattr(bundles, "MAX_TOTAL_BYTES", 8 << 20)
    base = world.mirror.fetch()
    pack = raw_pack(*[entry(3, 1 << 20, b"\0" * (1 << 20))] * 9)
    refused(world, header(base, f"{'1' * 40} {WORK_REF}") + pack, "bytes unpacked")


@pytest.mark.parametrize(
    ("pack", "says"),
    [
        (raw_pack(count=4_000_000_000), "declares 4000000000 objects"),
        (raw_pack(entry(3, 5, b"longer than five")), "larger than it declares"),
        (raw_pack(entry(3, 500, b"short")), "smaller than it declares"),
        (raw_pack(entry(3, 5, b"12345"), count=2), "cut off"),
        (raw_pack(entry(3, 5, b"12345"), b"trailing"), "unpack|unknown type|cut off"),
        (raw_pack(entry(3, 5, b"12345"), b"x", count=1), "more data"),
        (raw_pack(entry(5, 5, b"12345")), "unknown type"),
        (raw_pack(b"\x35not zlib at all"), "does not unpack"),
        (raw_pack(b"\xff" * 40), "impossible size"),
        (raw_pack(entry(7, 1, b"\x80", b"\0" * 20)), "delta without sizes"),
        (b"PACK", "no pack"),
        (b"", "no pack"),
    ],
)
def test_packs_that_lie_about_themselves(world, pack, says):
    base = world.mirror.fetch()
    refused(world, header(base, f"{'1' * 40} {WORK_REF}") + pack, says)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "cut off"),
        (b"# v9 git bundle\n\n", "not a git bundle"),
        (b"<html>\n", "not a git bundle"),
        (b"# v2 git bundle\n" + b"x" * 10_000, "endless"),
        (b"# v2 git bundle\n" + b"-" + b"1" * 40 + b"\n", "cut off"),
        (b"# v2 git bundle\n\nPACK", "names 0 refs"),
        (b"# v2 git bundle\n" + b"1" * 40 + b" refs/heads/main\n\n", "nothing else"),
        (b"# v2 git bundle\n" + b"1" * 40 + b" " + WORK_REF.encode() + b"\n" + b"1" * 40 + b" HEAD\n\n", "2 refs"),
        (b"# v2 git bundle\n--upload-pack=x\n\n", "no commit id"),
        (b"# v2 git bundle\n@object-format=sha1\n\n", "capability"),
        (b"# v3 git bundle\n@filter=blob:none\n\n", "capability"),
        (b"# v3 git bundle\n" + b"@object-format=sha1\n" * 300, "does not end"),
    ],
)
def test_headers_that_are_not_what_was_asked_for(world, data, says):
    refused(world, data, says)


def test_a_bundle_over_the_size_limit_is_not_even_read():
    with pytest.raises(HostileBundle, match="11 are allowed"):
        bundles.read_bundle(b"# v2 git bundle\n\n", WORK_REF, max_bytes=11)


def test_a_corrupt_checksum_is_gits_to_refuse(world):
    forge = Forge(world)
    data = forge.bundle(forge.commit(forge.tree(("100644", "x", forge.blob(b"x")))))
    refused(world, data[:-1] + bytes([data[-1] ^ 1]), "refused")


@pytest.mark.parametrize(
    ("said", "room"),
    [
        ("git unpack-objects: fatal: unable to write loose object file: No space left on device", False),
        ("git index-pack: fatal: write error: Disk quota exceeded; more", False),
        ("git unpack-objects: error: object x: missingNameBeforeEmail", True),
    ],
)
def test_a_full_disk_is_not_the_bundles_fault(said: str, room: bool) -> None:
    """Refused, it would cost the work that was paid for; so it is taken in again later."""
    from longshot_dagster.adapters.repository import intake

    assert (intake._NO_ROOM.search(said) is None) is room
