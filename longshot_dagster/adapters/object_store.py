"""Objects of a bare repository, looked up, compared and written without a process for each."""

import hashlib
import os
import re
import secrets
import tempfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from longshot_dagster.adapters.git import KEEP_BYTES, LOCAL_TIMEOUT_S, Git
from longshot_dagster.core.errors import RepositoryError

TREE_MODE = b"40000"
GONE = "000000"

_RAW = ("-r", "-z", "--raw", "--no-renames")
_PATCH = ("-r", "-z", "--raw", "--numstat", "-p", "--no-renames", "--no-ext-diff", "--no-textconv", "--no-color")
_MOST_TREES = 10_000
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


def read(git: Git, oid: str, kind: str) -> bytes:
    """The object's content, up to KEEP_BYTES. Raises RepositoryError when it is not here, or of another kind."""
    said = _asked_objects(git, f"contents {oid}\n".encode()) if _NAME.fullmatch(oid) else b""
    header, _, content = said.partition(b"\n")
    if header != f"{oid} {kind} {len(content) - 1}".encode():
        raise RepositoryError(f"{kind} {oid[:60]} is not in the mirror")
    return content[:-1]


def tree_of(git: Git, name: str) -> str:
    """The tree of a commit, or the tree itself. Raises RepositoryError when it is not here."""
    name = name.removesuffix("^{tree}")
    if name not in git.trees:
        found = look_up(git, f"{name}^{{tree}}")
        if found is None:
            raise RepositoryError(f"{name[:60]} is no commit or tree of the mirror")
        if len(git.trees) >= _MOST_TREES:
            git.trees.clear()
        git.trees[name] = found.oid
    return git.trees[name]


def compare(git: Git, old: str, new: str) -> bytes:
    """Paths that differ between two commits or trees, as `diff-tree --raw -z` tells them."""
    said = _asked_to_compare(git, _RAW, old, new, KEEP_BYTES)
    if said is None:
        raise RepositoryError(f"{old[:12]} and {new[:12]} differ in more paths than can be told")
    return said


def compare_in_full(git: Git, old: str, new: str, keep: int) -> bytes | None:
    """As `diff-tree --raw --numstat -p -z` tells it; None when that takes more than `keep` bytes."""
    return _asked_to_compare(git, _PATCH, old, new, keep)


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
    path = Path(git.directory, "objects", oid[:2], oid[2:])
    try:
        os.utime(path)  # cleaning goes by age
    except FileNotFoundError:
        _write_loose(path, zlib.compress(whole, 1))
    return oid


def _write_loose(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(exist_ok=True)
        # Named as git names it: its gc removes what a crash has left.
        handle, unfinished = tempfile.mkstemp(dir=path.parent, prefix="tmp_obj_")
    except OSError as e:
        raise RepositoryError(f"the mirror cannot be written: {e.strerror or e}") from e
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            os.fchmod(handle, 0o444)
        Path(unfinished).rename(path)
    except OSError as e:
        Path(unfinished).unlink(missing_ok=True)
        raise RepositoryError(f"the mirror cannot be written: {e.strerror or e}") from e


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
