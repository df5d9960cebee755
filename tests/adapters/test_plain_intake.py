"""What is taken in without git is never more than git takes in, and byte for byte the same: held against git itself."""

import os
import random
import shutil
import struct
import subprocess
import time
import zlib
from collections.abc import Callable
from hashlib import sha1
from typing import Any

import pytest
from repositories import BUILD, ENV, Edits, World, bare, git

from longshot_dagster.adapters.repository import intake
from longshot_dagster.adapters.repository.git import Git
from longshot_dagster.adapters.repository.object_store import kept
from longshot_dagster.core.bundles import Bundle, read_bundle
from longshot_dagster.core.contract import WORK_REF
from longshot_dagster.core.errors import HostileBundle
from longshot_dagster.core.small_pack import NotPlain, Object, object_id, unpack

TASK = "r001-01"
WHO = b"A Worker <worker@example.invalid> 1700000000 +0000"
LONG = "".join(f"line {n} of a file that is worth a delta {n * n}\n" for n in range(200))
FILES = {
    ".gitignore": "*.pyc\n",
    ".gitattributes": "*.sh text\n",
    ".github/ci.yml": "on: push\n",
    "README.md": LONG,
    **{f"src/{a}/{b}.py": f"{a}{b} = 1\n{LONG if b == 'x' else ''}" for a in "abc" for b in "xyz"},
    "src/[id].tsx": "x\n",
    "docs/a b.md": "a b\n",
    "docs/deep/er/x.md": "deep\n",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """One for all: nothing is taken in but under a test's own ref."""
    tmp_path = tmp_path_factory.mktemp("plain")
    return World(tmp_path, bare(tmp_path / "origin.git", FILES))


@pytest.fixture(scope="module")
def base(world: World) -> str:
    return world.mirror.fetch()


def plain(world: World, base: str, data: bytes) -> dict[str, Object] | None:
    """What would be written without git, by id; None where git is to judge."""
    found = intake._plain_objects(world.mirror.git, read_bundle(data, WORK_REF), base)
    return None if found is None else {object_id(*o): o for o in found}


def new(world: World, found: dict[str, Object]) -> dict[str, Object]:
    """What the mirror does not have yet."""
    return {oid: o for oid, o in found.items() if kept(world.mirror.git, oid, 1 << 20) != o}


def through_git(world: World, base: str, data: bytes) -> dict[str, Object] | None:
    """What git makes of a bundle; None where it refuses it."""
    quarantine = world.root / f"quarantine-{os.urandom(4).hex()}"
    (quarantine / "pack").mkdir(parents=True)
    bundle = read_bundle(data, WORK_REF)
    try:
        intake._unpack(world.mirror.git, quarantine, bundle)
        intake._prove(world.mirror.git, quarantine, bundle, base)
    except HostileBundle:
        return None
    found = {}
    for file in quarantine.glob("??/*"):
        header, _, content = zlib.decompress(file.read_bytes()).partition(b"\0")
        found[file.parent.name + file.name] = (header.split(b" ")[0].decode(), content)
    return found


# --- honest work -----------------------------------------------------------------------------------------------------


def histories(chance: random.Random, count: int, base: str) -> str:
    """A stream for fast-import: as many branches of up to four commits of everything that people do to files."""
    stream = []
    for branch in range(count):
        files = dict(FILES)
        for number in range(chance.choice([1, 1, 1, 2, 4])):
            who = f"{chance.choice(['Žofie', 'A B'])} <a@b> {chance.randrange(2_000_000_000)} {chance.choice(['+', '-'])}0530"
            stream.append(f"commit refs/heads/w{branch}\nauthor {who}\ncommitter {who}\ndata 5\nwork\n")
            stream += [f"from {base}\n"] if number == 0 else [f"merge {base}\n"] if chance.random() < 0.1 else []
            stream += [_change(chance, files) for _ in range(chance.choice([0, 1, 1, 2, 3, 8]))]
    return "".join(stream)


def _change(chance: random.Random, files: dict[str, str]) -> str:
    kind, name = chance.choice("eeeeeanrcdml"), chance.choice(sorted(files))
    new = f"{chance.choice(['src/a', 'new', 'src/b/in', 'docs'])}/n{chance.randrange(50)}.py"
    if kind == "e":
        at = chance.randrange(len(files[name]) or 1)
        files[name] = files[name][:at] + f"changed {chance.randrange(999)}\n" + files[name][at:]
    elif kind == "d":
        files.pop(name)
        return f'D "{name}"\n'
    elif kind in "rc":
        files[new] = files.pop(name) if kind == "r" else files[name]
        return f'{kind.upper()} "{name}" "{new}"\n'
    elif kind in "an":
        name = new
        files[name] = f"{chance.random()}\n"
    mode = {"m": "100755", "l": "120000"}.get(kind, "100644")
    return f'M {mode} inline "{name}"\ndata {len(files[name].encode())}\n{files[name]}\n'


def test_honest_work_is_mostly_plain_and_the_same_as_git_makes_of_it(world: World, base: str) -> None:
    count, forge = 120, world.root / "forge.git"
    git(world.root, "clone", "-q", "--bare", str(world.origin), str(forge))
    git(forge, "fast-import", "--quiet", "--force", stdin=histories(random.Random(7), count, base).encode())
    heads = git(forge, "for-each-ref", "--format=%(objectname)", "refs/heads/w*").split()
    assert len(heads) == count
    judged, deltas = 0, 0
    for head in heads:
        options = ("--stdout", "--revs", "--thin", "--delta-base-offset", "-q")
        pack = subprocess.run(
            ["git", "pack-objects", *options],
            cwd=forge,
            input=f"{head}\n^{base}\n".encode(),
            capture_output=True,
            env=ENV,
            check=True,
        ).stdout
        data = f"# v2 git bundle\n-{base} x\n{head} {WORK_REF}\n\n".encode() + pack
        found = plain(world, base, data)
        if found is not None:
            judged += 1
            deltas += needs_the_mirror(data)
            assert through_git(world, base, data) == new(world, found)
    assert judged > count * 0.75, f"{judged} of {count}"
    assert deltas > judged // 2, f"{deltas} of {judged}"


def needs_the_mirror(data: bytes) -> bool:
    """Is there a delta in it, of something that is not?"""
    try:
        return not unpack(read_bundle(data, WORK_REF).pack, lambda oid: None)
    except NotPlain:
        return True


# --- work of a forger ------------------------------------------------------------------------------------------------

_NAMES = [
    *(
        b".git",
        b".GIT",
        b"git~1",
        b".git ",
        b".git.",
        b".git\xe2\x80\x8c",
        b".git::$INDEX_ALLOCATION",
        b"..",
        b".",
        b"",
    ),
    *(b"a/b", b"a\\b", b".gitmodules", b".GITMODULES", b".gitmodules ", b"gitmod~1", b"GI7EBA~1", b".gitattributes"),
    *(
        b".GITATTRIBUTES",
        b".gitignore",
        b".mailmap",
        b"x:y",
        b"-x",
        b" x",
        b"aux",
        b".github",
        b"\xff",
        b"x" * 300,
        b"a",
    ),
    *(b"a.py", b"src", b"a b", b"README.md", b"[id].tsx", b"new.py"),
]
_MODES = [b"100644", b"100755", b"40000", b"040000", b"100664", b"120000", b"160000", b"0", b"100600", b"777"]
_WORDS = [
    *(b"\0", b"<", b">", b"\n", b" ", b"0", b"-", b"\t", b"1", b"\xff", b"", b"+0000", b"\ngpgsig x", b"\nencoding x"),
    *(b"\nauthor A <a@b> 1 +0000", b"\nparent " + b"1" * 40, b"99999999999", b"<a@b>", b"  "),
]


class Forger:
    """Commits on `base`, of which one object or another is not as git would have written it."""

    def __init__(self, world: World, base: str, chance: random.Random) -> None:
        self.base, self.chance = base, chance
        self.objects: dict[str, Object] = {}
        self._odd = chance.randrange(7)  # which of the objects that are added is changed; some stay as they are
        self.links = False  # does it name what there may not be?
        self._store: Callable[[str], Object | None] = lambda oid: kept(world.mirror.git, oid, 1 << 20)
        self._ids = [git_id for files in self._folders().values() for _, _, git_id in files]

    def bundle(self) -> bytes:
        folders = self._folders()
        blob = self._add("blob", self.chance.choice([b"new\n", b"x" * 2047, b"x" * 2048, b"\0"]))
        src = [e for e in folders["src"] if e[1] != b"a"] + [(b"100644", b"new.py", blob)]
        tree = self._tree([e if e[1] != b"src" else (e[0], e[1], self._tree(src)) for e in folders[""]])
        first = self._commit(tree, self.base)
        again = [*folders[""], (b"100755", b"run", blob)]
        return self._bundle(self._commit(self._tree(again), first))

    def _folders(self) -> dict[str, list[tuple[bytes, bytes, str]]]:
        commit = self._store(self.base)
        assert commit is not None
        root = self._entries(commit[1][5:45].decode())
        return {"": root, "src": self._entries(next(oid for _, name, oid in root if name == b"src"))}

    def _entries(self, oid: str) -> list[tuple[bytes, bytes, str]]:
        tree = self._store(oid)
        assert tree is not None
        found, data = [], tree[1]
        while data:
            head, _, rest = data.partition(b"\0")
            mode, _, name = head.partition(b" ")
            found.append((mode, name, rest[:20].hex()))
            data = rest[20:]
        return found

    def _tree(self, entries: list[tuple[bytes, bytes, str]]) -> str:
        ordered = sorted(entries, key=lambda e: e[1] + b"/" if e[0] == b"40000" else e[1])
        if self._is_odd():
            at = self.chance.randrange(len(ordered))
            mode, name, oid = ordered[at]
            match self.chance.randrange(8):
                case 0:
                    ordered[at] = mode, self.chance.choice(_NAMES), oid
                    ordered.sort(key=lambda e: e[1] + b"/" if e[0] == b"40000" else e[1])
                case 1:
                    ordered[at] = mode, self.chance.choice(_NAMES), oid
                case 2:
                    ordered[at] = self.chance.choice(_MODES), name, oid
                    self.links = True
                case 3:
                    ordered.insert(at, (mode, name, oid))
                case 4:
                    self.chance.shuffle(ordered)
                case 5:
                    ids = [*self._ids, *self.objects, self.base, "0" * 40, "1" * 40]
                    ordered[at] = mode, name, self.chance.choice(ids)
                    self.links = True
                case 6:
                    del ordered[at]
                case _:
                    ordered.append((self.chance.choice(_MODES[:3]), self.chance.choice(_NAMES), oid))
                    ordered.sort(key=lambda e: e[1] + b"/" if e[0] == b"40000" else e[1])
                    self.links = True
        return self._add("tree", b"".join(m + b" " + n + b"\0" + bytes.fromhex(o) for m, n, o in ordered), True)

    def _commit(self, tree: str, parent: str) -> str:
        content = b"tree %s\nparent %s\nauthor %s\ncommitter %s\n\nwork\n" % (tree.encode(), parent.encode(), WHO, WHO)
        if self._is_odd():
            at = self.chance.randrange(len(content) - 5)
            gone = self.chance.choice([0, 0, 1, 1, 5, 41])
            content = content[:at] + self.chance.choice(_WORDS) + content[at + gone :]
            self.links = at < 96  # the tree, and the parent
        return self._add("commit", content, True)

    def _add(self, kind: str, content: bytes, judged: bool = False) -> str:
        if not judged and self._is_odd():
            kind = self.chance.choice(["commit", "tree", "blob", "tag"])
        oid = object_id(kind, content)
        self.objects[oid] = kind, content
        return oid

    def _is_odd(self) -> bool:
        self._odd -= 1
        return self._odd == -1

    def _bundle(self, head: str) -> bytes:
        missing = self.chance.choice(list(self.objects)) if self.chance.random() < 0.05 else ""
        self.links |= bool(missing)
        body = packed([o for oid, o in self.objects.items() if oid != missing])
        return f"# v2 git bundle\n-{self.base} x\n{head} {WORK_REF}\n\n".encode() + body


def packed(objects: list[Object]) -> bytes:
    numbers = {"commit": 1, "tree": 2, "blob": 3, "tag": 4}
    entries = []
    for kind, content in objects:
        size, first = len(content) >> 4, numbers[kind] << 4 | len(content) & 15
        number = bytearray()
        while size:
            number.append(first | 0x80)
            first, size = size & 0x7F, size >> 7
        entries.append(bytes([*number, first]) + zlib.compress(content, 1))
    body = b"PACK" + struct.pack(">II", 2, len(entries)) + b"".join(entries)
    return body + sha1(body).digest()


def test_git_takes_in_all_that_is_plain_of_what_a_forger_makes(world: World, base: str) -> None:
    """Those that may lack something are held against git one by one: others could bring it."""
    chance, count = random.Random(11), 2_500
    alone: dict[bytes, dict[str, Object]] = {}
    whole: dict[str, Object] = {}
    for _ in range(count):
        forger = Forger(world, base, chance)
        data = forger.bundle()
        if (found := plain(world, base, data)) is None:
            continue
        if forger.links:
            alone[data] = found
        else:
            whole |= found
    assert len(whole) > 200 and len(alone) > 50, f"{len(whole)} objects, {len(alone)} bundles of {count}"
    for data, found in [*alone.items()][:50]:
        assert through_git(world, base, data) == new(world, found)
    ordered = sorted(new(world, whole).values(), key=lambda o: ("blob", "tree", "commit").index(o[0]))
    quarantine = world.root / "together"
    (quarantine / "pack").mkdir(parents=True)
    for some in range(0, len(ordered), 400):
        pack = packed(ordered[some : some + 400])
        intake._unpack(world.mirror.git, quarantine, Bundle("", (), memoryview(pack), 400, 0))
    assert {f.parent.name + f.name for f in quarantine.glob("??/*")} == {object_id(*o) for o in ordered}


def test_a_pack_with_a_bit_that_is_wrong(world: World, base: str) -> None:
    """Its checksum is made anew each time, so that every other rule has to tell."""
    chance, good = random.Random(5), world.bundle(base, {"README.md": f"{LONG}more\n", "src/a/n.py": "n = 1\n"})
    start = bytes(good).index(b"PACK")
    found, taken = plain(world, base, good), 0
    assert found is not None and needs_the_mirror(good)
    for _ in range(1_500):
        pack = bytearray(good[start:-20])
        for _ in range(chance.choice([1, 1, 2])):
            pack[chance.randrange(len(pack))] ^= 1 << chance.randrange(8)
        data = good[:start] + pack + sha1(pack).digest()
        try:
            wrong = plain(world, base, data)
        except HostileBundle:
            continue
        if wrong is not None:
            taken += 1
            assert wrong == found == through_git(world, base, data)
    assert taken < 30


# --- taken in --------------------------------------------------------------------------------------------------------


def processes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The git commands that are run from now on, by name."""
    ran, run = [], Git.run

    def told(self: Git, *args: str, **options: Any) -> Any:
        ran.append(next(a for a in args if a in ("unpack-objects", "index-pack", "rev-list", "merge-base")))
        return run(self, *args, **options)

    monkeypatch.setattr(Git, "run", told)
    return ran


def test_plain_work_is_taken_in_without_a_process(world: World, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    edits = {"src/a/x.py": f"a = 2\n{LONG}", "docs/a b.md": None, "new/one.py": "1\n"}
    data, ran = world.bundle(base, edits, {"new/one.py": "2\n"}), processes(monkeypatch)
    head = world.mirror.intake(BUILD, TASK, base, data)
    assert ran == []
    assert git(world.mirror.path, "rev-parse", intake.work_ref(BUILD, TASK)) == head
    assert git(world.mirror.path, "diff", "--name-status", base, head).split("\n") == [
        *("D\tdocs/a b.md", "A\tnew/one.py", "M\tsrc/a/x.py")
    ]
    git(world.mirror.path, "fsck", "--strict")


@pytest.mark.parametrize("edits", [{"link": "-> README.md"}, {"é": "e\n"}, {"big": os.urandom(300_000)}])
def test_other_work_is_taken_in_by_git(world: World, base: str, edits: Edits, monkeypatch: pytest.MonkeyPatch) -> None:
    data, ran = world.bundle(base, edits), processes(monkeypatch)
    world.mirror.intake(BUILD, TASK, base, data)
    assert ran == ["unpack-objects", "rev-list"]


def test_what_a_killed_process_left_in_quarantine_goes_after_an_hour(
    world: World, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = world.mirror.path / "longshot-quarantine"
    for name, age in (("old", 4_000), ("new", 1_000)):
        (room / name / "pack").mkdir(parents=True)
        os.utime(room / name, (at := time.time() - age, at))
    data = world.bundle(base, {"a.py": "a\n"})
    monkeypatch.setattr(intake, "_next_sweep", {})
    world.mirror.intake(BUILD, TASK, base, data)
    assert [p.name for p in room.iterdir() if p.is_dir()] == ["new"]
    os.utime(room / "new", (0, 0))
    world.mirror.intake(BUILD, TASK, base, data)
    assert (room / "new").is_dir(), "looked for at every bundle"
    shutil.rmtree(room / "new")


def test_without_its_base_git_says_what_is_missing(world: World, base: str) -> None:
    data = world.bundle(base, {"a.py": "a\n"}).replace(b"-" + base.encode(), b"-" + b"1" * 40)
    with pytest.raises(HostileBundle):
        world.mirror.intake(BUILD, TASK, "1" * 40, data)
