"""A git bundle with one commit that adds one file, in plain Python: what a trivial worker of the fleet hands over."""

import hashlib
import subprocess
import threading
import zlib
from pathlib import Path

_COMMIT, _TREE, _BLOB = 1, 2, 3
_NAMES = {_COMMIT: b"commit", _TREE: b"tree", _BLOB: b"blob"}
_DIRECTORY = b"40000"


class Objects:
    """Commits and trees of a bare repository, through one lasting `git cat-file --batch`."""

    def __init__(self, repository: Path) -> None:
        argv = ["git", "-C", str(repository), "cat-file", "--batch"]
        self._git = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._lock = threading.Lock()

    def read(self, name: str) -> bytes:
        """The object's content; raises KeyError when the repository does not have it."""
        source, answers = self._git.stdin, self._git.stdout
        assert source is not None and answers is not None
        with self._lock:
            source.write(name.encode() + b"\n")
            source.flush()
            header = answers.readline().split()
            if len(header) != 3:
                raise KeyError(name)
            content = answers.read(int(header[2]))
            answers.read(1)
        return content

    def close(self) -> None:
        self._git.communicate()


def one_file_bundle(objects: Objects, base: str, path: str, content: bytes, subject: str, at: int) -> tuple[str, bytes]:
    """(id of the commit, the bundle base..commit): `path` with `content`, added to the tree of commit `base`."""
    made: list[tuple[int, bytes]] = []
    root = objects.read(base).split(b"\n", 1)[0].removeprefix(b"tree ").decode()
    tree = _grown(objects, root, path.split("/"), content, made)
    who = f"fleet worker <worker@longshot.invalid> {at} +0000"
    commit = f"tree {tree.hex()}\nparent {base}\nauthor {who}\ncommitter {who}\n\n{subject}\n".encode()
    head = _add(made, _COMMIT, commit).hex()
    return head, f"# v2 git bundle\n-{base}\n{head} refs/heads/work\n\n".encode() + _pack(made)


def _grown(
    objects: Objects, tree: str | None, parts: list[str], content: bytes, made: list[tuple[int, bytes]]
) -> bytes:
    """Id of a new tree: `tree`, with the file of path `parts` in it."""
    entries = _entries(objects.read(tree)) if tree else {}
    name = parts[0].encode()
    if len(parts) == 1:
        entries[name] = (b"100644", _add(made, _BLOB, content))
    else:
        below = entries[name][1].hex() if entries.get(name, (b"",))[0] == _DIRECTORY else None
        entries[name] = (_DIRECTORY, _grown(objects, below, parts[1:], content, made))
    # git sorts a directory as if its name ended with a slash.
    ordered = sorted(entries.items(), key=lambda e: e[0] + b"/" if e[1][0] == _DIRECTORY else e[0])
    return _add(made, _TREE, b"".join(mode + b" " + n + b"\0" + oid for n, (mode, oid) in ordered))


def _entries(tree: bytes) -> dict[bytes, tuple[bytes, bytes]]:
    found, position = {}, 0
    while position < len(tree):
        end = tree.index(b"\0", position)
        mode, _, name = tree[position:end].partition(b" ")
        found[name] = (mode, tree[end + 1 : end + 21])
        position = end + 21
    return found


def _add(made: list[tuple[int, bytes]], kind: int, content: bytes) -> bytes:
    made.append((kind, content))
    return hashlib.sha1(_NAMES[kind] + b" %d\0" % len(content) + content).digest()


def _pack(made: list[tuple[int, bytes]]) -> bytes:
    parts = [b"PACK", (2).to_bytes(4, "big"), len(made).to_bytes(4, "big")]
    for kind, content in made:
        parts += [_entry_header(kind, len(content)), zlib.compress(content, 1)]
    data = b"".join(parts)
    return data + hashlib.sha1(data).digest()


def _entry_header(kind: int, size: int) -> bytes:
    header, byte, size = bytearray(), (kind << 4) | (size & 15), size >> 4
    while size:
        header.append(byte | 0x80)
        byte, size = size & 0x7F, size >> 7
    header.append(byte)
    return bytes(header)
