"""Objects of a bare repository, looked up, compared and written without a process for each."""

import contextlib
import hashlib
import os
import re
import secrets
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from longshot_dagster.adapters.host.documents import new_file
from longshot_dagster.adapters.repository.git import KEEP_BYTES, LOCAL_TIMEOUT_S, Git
from longshot_dagster.core.errors import RepositoryError

TREE_MODE = b"40000"
_SUBMODULE = b"160000"
GONE = "000000"

_RAW = ("-r", "-z", "--raw", "--no-renames")
_PATCH = ("-r", "-z", "--raw", "--numstat", "-p", "--no-renames", "--no-ext-diff", "--no-textconv", "--no-color")
_MOST_TREES = _MOST_SIZES = 10_000
_KEPT_COMPARISONS, _KEPT_COMPARISON = 200, 20_000  # and bytes of one
_KEPT_CONTENTS, _KEPT_CONTENT = 200, 20_000
_LOOSE_BYTES, _UNPACKED_BYTES = 1 << 20, 8 << 20  # larger ones are left to git
_ID = re.compile(r"[0-9a-f]{40}")
_NAME = re.compile(r"[0-9a-zA-Z^{}~/._-]{1,1000}")


@dataclass(frozen=True)
class Found:
    oid: str
    kind: str  # commit, tree, blob or tag
    size: int  # bytes


@dataclass(frozen=True)
class Entry:
    """A path's new content: `mode` is GONE for none. `path` is git's bytes."""

    path: bytes
    mode: str
    oid: str


# --- looking ---------------------------------------------------------------------------------------------------------


def look_up(git: Git, name: str) -> Found | None:
    """The object that a full id, or `ID^{tree}` and the like, names; None when it is not here."""
    if not _NAME.fullmatch(name):
        return None
    kind = _asked_objects(git, f"info {name}\n".encode()).decode("ascii", "replace").strip().split(" ")
    return Found(kind[0], kind[1], int(kind[2])) if len(kind) == 3 else None


def sizes(git: Git, oids: Iterable[str]) -> dict[str, int]:
    """Bytes of each object by its full id, with one question; what is not here is left out."""
    given = [oid for oid in dict.fromkeys(oids) if _ID.fullmatch(oid)]
    known = {oid: size for oid in given if (size := git.sizes.get(oid) or _loose_size(git, oid)) is not None}
    if wanted := [oid for oid in given if oid not in known]:
        said = _asked_objects(git, "".join(f"info {oid}\n" for oid in wanted).encode()).decode("ascii", "replace")
        fields = (line.split(" ") for line in said.splitlines())
        asked = {found[0]: int(found[2]) for found in fields if len(found) == 3}
        if len(git.sizes) > _MOST_SIZES:
            git.sizes.clear()
        git.sizes.update(asked)
        known |= asked
    return known


def read_up_to(git: Git, oid: str, limit: int) -> bytes | None:
    """A blob's content; None when it is larger than `limit` bytes or not here."""
    content = git.contents.get(oid)
    if content is None:
        if (loose := _loose(git, oid)) is not None and loose[0] == "blob":
            content = loose[1]
        elif sizes(git, [oid]).get(oid, limit + 1) <= limit:
            content = read(git, oid, "blob")
        if content is not None and len(content) <= _KEPT_CONTENT:
            if len(git.contents) >= _KEPT_CONTENTS:
                git.contents.clear()
            git.contents[oid] = content
    return content if content is not None and len(content) <= limit else None


def kept(git: Git, oid: str, limit: int) -> tuple[str, bytes] | None:
    """(kind, content) of an object by its full id; None when it has more than `limit` bytes, or is not here."""
    if (found := git.kept.get(oid)) is None:
        found = _loose(git, oid)
        if found is None and sizes(git, [oid]).get(oid, limit + 1) <= limit:
            header, _, content = _asked_objects(git, f"contents {oid}\n".encode()).partition(b"\n")
            told = header.decode("ascii", "replace").split(" ")
            found = (told[1], content[:-1]) if len(told) == 3 else None
        if found is not None and len(found[1]) <= _KEPT_CONTENT:
            if len(git.kept) >= _KEPT_CONTENTS:
                git.kept.clear()
            git.kept[oid] = found
    return found if found is not None and len(found[1]) <= limit else None


def read(git: Git, oid: str, kind: str) -> bytes:
    """The object's content, up to KEEP_BYTES. Raises RepositoryError when it is not here, or of another kind."""
    if (loose := _loose(git, oid)) is not None and loose[0] == kind:
        return loose[1]
    said = _asked_objects(git, f"contents {oid}\n".encode()) if _NAME.fullmatch(oid) else b""
    header, _, content = said.partition(b"\n")
    if header != f"{oid} {kind} {len(content) - 1}".encode():
        raise RepositoryError(f"{kind} {oid[:60]} is not in the mirror")
    return content[:-1]


def tree_of(git: Git, name: str) -> str:
    """The tree of a commit, or the tree itself. Raises RepositoryError when it is not here."""
    name = name.removesuffix("^{tree}")
    if name not in git.trees:
        if (
            (loose := _loose(git, name)) is not None
            and loose[0] == "commit"
            and _ID.fullmatch(told := _tree_line(loose[1]))
        ):
            note_tree(git, name, told)
            return told
        found = look_up(git, f"{name}^{{tree}}")
        if found is None:
            raise RepositoryError(f"{name[:60]} is no commit or tree of the mirror")
        note_tree(git, name, found.oid)
    return git.trees[name]


def _tree_line(commit: bytes) -> str:
    return commit[5:45].decode("ascii", "replace") if commit.startswith(b"tree ") else ""


def note_tree(git: Git, name: str, tree: str) -> None:
    """The tree of a commit that was read or written here, so that nobody need ask for it; a tree's own is itself."""
    if len(git.trees) >= _MOST_TREES:
        git.trees.clear()
    git.trees[name] = tree


def parents(git: Git, commit: str) -> tuple[str, ...]:
    """Of a commit by its full id; none when it is no commit, or not here."""
    if (known := git.parents.get(commit)) is not None:
        return known
    try:
        head, _, _ = read(git, commit, "commit").partition(b"\n\n")
    except RepositoryError:
        return ()
    lines = head.decode("ascii", "replace").split("\n")
    found = tuple(line.removeprefix("parent ") for line in lines[1:] if line.startswith("parent "))
    if len(git.parents) >= _MOST_TREES:
        git.parents.clear()
    git.parents[commit] = found
    return found


def blob_at(git: Git, tree: str, path: bytes) -> str | None:
    """Id of the file or link at a path of a tree; None when there is none."""
    *folders, name = path.split(b"/")
    for folder in folders:
        mode, tree = _parse_tree(read(git, tree, "tree")).get(folder, (b"", ""))
        if mode != TREE_MODE:
            return None
    mode, oid = _parse_tree(read(git, tree, "tree")).get(name, (b"", ""))
    return oid if oid and mode not in (TREE_MODE, _SUBMODULE) else None


def compare(git: Git, old: str, new: str) -> bytes:
    """Paths that differ between two commits or trees, as `diff-tree --raw -z` tells them."""
    trees = tree_of(git, old), tree_of(git, new)
    if (known := git.compared.get(trees)) is not None:  # trees never change, and each landing is compared three times
        return known
    said = _asked_to_compare(git, _RAW, old, new, KEEP_BYTES)
    if said is None:
        raise RepositoryError(f"{old[:12]} and {new[:12]} differ in more paths than can be told")
    if len(said) <= _KEPT_COMPARISON:
        if len(git.compared) >= _KEPT_COMPARISONS:
            git.compared.clear()
        git.compared[trees] = said
    return said


def compare_in_full(git: Git, old: str, new: str, keep: int) -> bytes | None:
    """As `diff-tree --raw --numstat -p -z` tells it; None when that takes more than `keep` bytes."""
    return _asked_to_compare(git, _PATCH, old, new, keep)


def _loose(git: Git, oid: str) -> tuple[str, bytes] | None:
    """(kind, content) of an object that has a file to itself; None for any that git is to be asked for."""
    if git.directory is None or not _ID.fullmatch(oid):
        return None
    try:
        with open(f"{git.directory}/objects/{oid[:2]}/{oid[2:]}", "rb", buffering=0) as file:  # noqa: PTH123
            data = file.read(_LOOSE_BYTES + 1)
        unpacker = zlib.decompressobj()
        whole = unpacker.decompress(data, _UNPACKED_BYTES)
    except (OSError, zlib.error):
        return None
    header, _, content = whole.partition(b"\0")
    kind, _, size = header.decode("ascii", "replace").partition(" ")
    return (kind, content) if unpacker.eof and size == str(len(content)) else None


def _loose_size(git: Git, oid: str) -> int | None:
    """As its header has it; None where git is to be asked."""
    if git.directory is None:
        return None
    try:
        with open(f"{git.directory}/objects/{oid[:2]}/{oid[2:]}", "rb", buffering=0) as file:  # noqa: PTH123
            header, end, _ = zlib.decompressobj().decompress(file.read(256), 64).partition(b"\0")
    except (OSError, zlib.error):
        return None
    size = header.partition(b" ")[2]
    return int(size) if end and size.isdigit() else None


def _asked_objects(git: Git, question: bytes) -> bytes:
    mark = secrets.token_hex(16)  # no content can hold what is chosen after it
    said = git.dialogue("cat-file", "--batch-command").ask(
        question + f"info {mark}\n".encode(), f"{mark} missing\n".encode(), keep=KEEP_BYTES, timeout_s=LOCAL_TIMEOUT_S
    )
    if said is None:
        raise RepositoryError(f"an object of more than {KEEP_BYTES >> 20} MiB cannot be read here")
    return said


def _asked_to_compare(git: Git, options: tuple[str, ...], old: str, new: str, keep: int) -> bytes | None:
    # A line that names no object is repeated as it is, and what was said before it flushed.
    pair, mark = f"{tree_of(git, old)} {tree_of(git, new)}\n".encode(), f"-{secrets.token_hex(24)}\n".encode()
    said = git.dialogue("diff-tree", "--stdin", *options).ask(
        pair + mark, mark, keep=keep + len(pair), timeout_s=LOCAL_TIMEOUT_S
    )
    if said is not None and not said.startswith(pair):
        raise RepositoryError(f"{old[:12]} and {new[:12]} cannot be compared")
    return None if said is None else said[len(pair) :]


# --- writing ---------------------------------------------------------------------------------------------------------


def write(git: Git, kind: str, content: bytes) -> str:
    """Write an object as git itself would, loose; returns its id."""
    assert git.directory is not None
    whole = f"{kind} {len(content)}\0".encode() + content
    oid = hashlib.sha1(whole, usedforsecurity=False).hexdigest()
    folder = f"{git.directory}/objects/{oid[:2]}"
    try:
        os.utime(f"{folder}/{oid[2:]}")  # cleaning goes by age
    except FileNotFoundError:
        _write_loose(folder, oid[2:], zlib.compress(whole, 1))
    return oid


def _write_loose(folder: str, name: str, data: bytes) -> None:
    try:
        handle, unfinished = _unfinished(folder)
    except OSError as e:
        raise RepositoryError(f"the mirror cannot be written: {e.strerror or e}") from e
    try:
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(handle, rest) :]
        finally:
            os.close(handle)
        os.rename(unfinished, f"{folder}/{name}")  # noqa: PTH104 - paths cost more than the file
    except OSError as e:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
        raise RepositoryError(f"the mirror cannot be written: {e.strerror or e}") from e


def _unfinished(folder: str) -> tuple[int, str]:
    """Named as git names it: its gc removes what a crash has left."""
    try:
        return new_file(f"{folder}/tmp_obj_", 0o444)  # noqa: S108 - no temporary folder
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)  # noqa: PTH102
        return new_file(f"{folder}/tmp_obj_", 0o444)  # noqa: S108 - no temporary folder


def graft(git: Git, tree: str, entries: Iterable[Entry]) -> str:
    """Write `tree` with `entries` in it, as an index would be: a file takes the place of a folder and the other way round."""
    return _grafted(git, tree, [(e.path.split(b"/"), e) for e in entries]) or write(git, "tree", b"")


def _grafted(git: Git, tree: str | None, entries: list[tuple[list[bytes], Entry]]) -> str | None:
    """None for an empty tree, which git does not keep inside another."""
    there = _parse_tree(read(git, tree, "tree")) if tree else {}
    below: dict[bytes, list[tuple[list[bytes], Entry]]] = {}
    files: dict[bytes, Entry] = {}
    for (name, *rest), entry in entries:
        if rest:
            below.setdefault(name, []).append((rest, entry))
        else:
            files[name] = entry
    for name, inner in below.items():
        mode, oid = there.get(name, (b"", ""))
        made = _grafted(git, oid if mode == TREE_MODE else None, inner)
        if made:
            there[name] = (TREE_MODE, made)
        elif mode == TREE_MODE:
            del there[name]
    for name, entry in files.items():
        if entry.mode != GONE:
            there[name] = (entry.mode.encode(), entry.oid)
        elif name not in below:
            there.pop(name, None)
    return write(git, "tree", _tree(there)) if there else None


def _parse_tree(data: bytes) -> dict[bytes, tuple[bytes, str]]:
    """name -> (mode, id)."""
    found = {}
    position = 0
    while position < len(data):
        space = data.index(b" ", position)
        end = data.index(b"\0", space)
        found[data[space + 1 : end]] = (data[position:space], data[end + 1 : end + 21].hex())
        position = end + 21
    return found


def _tree(entries: dict[bytes, tuple[bytes, str]]) -> bytes:
    ordered = sorted(entries.items(), key=lambda e: e[0] + b"/" if e[1][0] == TREE_MODE else e[0])
    return b"".join(mode + b" " + name + b"\0" + bytes.fromhex(oid) for name, (mode, oid) in ordered)
