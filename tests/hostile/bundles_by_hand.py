"""Git bundles made by hand, object by object, so that anything can be in them that git itself would not write."""

import hashlib
import struct
import zlib
from dataclasses import dataclass, field

from longshot_dagster.core.contract import WORK_REF

COMMIT, TREE, BLOB, TAG, REF_DELTA = 1, 2, 3, 4, 7
_WORDS = {COMMIT: "commit", TREE: "tree", BLOB: "blob", TAG: "tag"}
WHO = "A Worker <worker@example.invalid> 1700000000 +0000"


@dataclass
class Forge:
    """Objects on top of commit `base`; each method adds one and gives its id."""

    base: str
    entries: list[bytes] = field(default_factory=list)

    def add(self, kind: int, data: bytes) -> str:
        self.entries.append(_header(kind, len(data)) + zlib.compress(data, 1))
        return hashlib.sha1(f"{_WORDS[kind]} {len(data)}\0".encode() + data).hexdigest()

    def blob(self, data: bytes = b"B = 1\n") -> str:
        return self.add(BLOB, data)

    def tree(self, *entries: tuple[str, str, str]) -> str:
        """Of (mode, name, id), in the given order."""
        return self.add(TREE, b"".join(f"{m} {n}\0".encode() + bytes.fromhex(oid) for m, n, oid in entries))

    def commit(self, tree: str, *parents: str, message: str = "work", committer: str = WHO, more: str = "") -> str:
        lines = [f"tree {tree}", *(f"parent {p}" for p in (parents or (self.base,))), f"author {WHO}"]
        return self.add(COMMIT, "\n".join([*lines, f"committer {committer}{more}", "", message, ""]).encode())

    def delta(self, of: str, before: int, after: int) -> None:
        """An object that grows from `before` bytes of blob `of` to `after` by copying its beginning."""
        data = _varint(before) + _varint(after)
        data += (b"\x90" + bytes([before])) * (after // before)
        self.entries.append(_header(REF_DELTA, len(data)) + bytes.fromhex(of) + zlib.compress(data))

    def bundle(self, head: str, *refs: str, needs: tuple[str, ...] = ()) -> bytes:
        """With `refs` instead of the one that is asked for, where they are given."""
        header = [
            "# v2 git bundle",
            *(f"-{c}" for c in (self.base, *needs)),
            *(f"{head} {r}" for r in refs or (WORK_REF,)),
        ]
        pack = b"PACK" + struct.pack(">II", 2, len(self.entries)) + b"".join(self.entries)
        return "\n".join([*header, "", ""]).encode() + pack + hashlib.sha1(pack).digest()


def _header(kind: int, size: int) -> bytes:
    byte, size = (kind << 4) | (size & 15), size >> 4
    out = bytearray()
    while size:
        out.append(byte | 0x80)
        byte, size = size & 0x7F, size >> 7
    return bytes([*out, byte])


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append((number & 0x7F) | 0x80)
        number >>= 7
    return bytes([*out, number])
