"""What a worker's git bundle claims to hold, read without git, so that a bomb is refused before anything unpacks it.

A bundle is a text header (version, prerequisites, refs) and one pack. Every pack entry declares its size before its
data, and a delta declares the size of its result, so the whole cost is known while at most 1 MB is unpacked at a time.
"""

import re
import zlib
from dataclasses import dataclass

from longshot_dagster.core.contract import MAX_BUNDLE_BYTES
from longshot_dagster.core.errors import HostileBundle

MAX_OBJECTS = 100_000
MAX_BLOB_BYTES = 100 << 20
MAX_OTHER_BYTES = 16 << 20  # a commit, tree or tag
MAX_TOTAL_BYTES = 1 << 30  # all objects unpacked

_MAX_HEADER_LINES = 200
_MAX_LINE = 4_400
_WINDOW = 1 << 20
_COMMIT, _TREE, _BLOB, _TAG, _OFFSET_DELTA, _REF_DELTA = 1, 2, 3, 4, 6, 7
_OID = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Bundle:
    """The one ref of a bundle, the commits it builds on, and where its pack begins."""

    head: str
    prerequisites: tuple[str, ...]
    pack: memoryview
    objects: int
    unpacked_bytes: int


def read_bundle(data: bytes, ref: str, max_bytes: int = MAX_BUNDLE_BYTES) -> Bundle:
    """Raises HostileBundle unless `data` is a bundle with exactly the one `ref` and a pack within the caps."""
    if len(data) > max_bytes:
        raise HostileBundle(f"the bundle has {len(data)} bytes, {max_bytes} are allowed")
    head, prerequisites, start = _read_header(data, ref)
    pack = memoryview(data)[start:]
    objects, unpacked = _scan(pack)
    return Bundle(head, prerequisites, pack, objects, unpacked)


def _read_header(data: bytes, ref: str) -> tuple[str, tuple[str, ...], int]:
    signature, position = _line(data, 0)
    if signature not in ("# v2 git bundle", "# v3 git bundle"):
        raise HostileBundle("this is not a git bundle")
    heads: dict[str, str] = {}
    prerequisites: list[str] = []
    for _ in range(_MAX_HEADER_LINES):
        line, position = _line(data, position)
        if not line:
            if set(heads) != {ref}:
                raise HostileBundle(f"the bundle must hold {ref} and nothing else, it names {len(heads)} refs")
            return heads[ref], tuple(prerequisites), position
        if line.startswith("@"):
            if signature != "# v3 git bundle" or line != "@object-format=sha1":
                raise HostileBundle("the bundle asks for a capability that is not allowed")
        elif line.startswith("-"):
            prerequisites.append(_oid(line[1:].partition(" ")[0]))
        else:
            oid, _, name = line.partition(" ")
            if name in heads:
                raise HostileBundle("the bundle names a ref twice")
            heads[name] = _oid(oid)
    raise HostileBundle("the bundle's header does not end")


def _line(data: bytes, position: int) -> tuple[str, int]:
    end = data.find(b"\n", position, position + _MAX_LINE)
    if end < 0:
        raise HostileBundle("the bundle's header is cut off or has an endless line")
    return data[position:end].decode("utf-8", "replace"), end + 1


def _oid(text: str) -> str:
    if not _OID.fullmatch(text):
        raise HostileBundle("the bundle's header holds something that is no commit id")
    return text


def _scan(pack: memoryview) -> tuple[int, int]:
    """(objects, bytes once unpacked); raises HostileBundle as soon as a declared size breaks a cap."""
    if len(pack) < 32 or bytes(pack[:4]) != b"PACK" or int.from_bytes(pack[4:8], "big") not in (2, 3):
        raise HostileBundle("the bundle holds no pack")
    count = int.from_bytes(pack[8:12], "big")
    if count > MAX_OBJECTS:
        raise HostileBundle(f"the bundle declares {count} objects, {MAX_OBJECTS} are allowed")
    body = pack[:-20]  # the trailing checksum is git's to verify
    position, total = 12, 0
    for _ in range(count):
        kind, size, position = _entry_header(body, position)
        _allow(kind, size, total)
        start, position = _inflate(body, position, size)
        if kind in (_OFFSET_DELTA, _REF_DELTA):
            size = _delta_result_size(start)
            _allow(_BLOB, size, total)
        total += size
    if position != len(body):
        raise HostileBundle("the pack has more data than it declares objects")
    return count, total


def _allow(kind: int, size: int, total: int) -> None:
    cap = MAX_OTHER_BYTES if kind in (_COMMIT, _TREE, _TAG) else MAX_BLOB_BYTES
    if size > cap:
        raise HostileBundle(f"the pack declares an object of {size} bytes, {cap} are allowed")
    if total + size > MAX_TOTAL_BYTES:
        raise HostileBundle(f"the pack declares more than {MAX_TOTAL_BYTES} bytes unpacked")


def _entry_header(body: memoryview, position: int) -> tuple[int, int, int]:
    """(type, declared size, position of the compressed data)."""
    try:
        kind, size, position = type_and_size(body, position)
        if kind == _OFFSET_DELTA:
            while body[position] & 0x80:
                position += 1
            position += 1
        elif kind == _REF_DELTA:
            position += 20
        elif kind not in (_COMMIT, _TREE, _BLOB, _TAG):
            raise HostileBundle("the pack holds an object of an unknown type")
    except IndexError:
        raise HostileBundle("the pack is cut off") from None
    return kind, size, position


def type_and_size(body: memoryview, position: int) -> tuple[int, int, int]:
    """(type, declared size, position after them) of an entry; raises IndexError where the pack ends."""
    byte = body[position]
    kind, size, shift = (byte >> 4) & 7, byte & 15, 4
    while byte & 0x80:
        position += 1
        byte = body[position]
        size |= (byte & 0x7F) << shift
        shift += 7
        if shift > 60:
            raise HostileBundle("the pack declares an impossible size")
    return kind, size, position + 1


def _inflate(body: memoryview, position: int, size: int) -> tuple[bytes, int]:
    """(first 32 bytes unpacked, position after the entry); checks that exactly `size` bytes come out."""
    stream = zlib.decompressobj()
    start, done = b"", 0
    while not stream.eof:
        # Deflate adds little to what it cannot compress: small entries are offered small windows, which are cheap.
        chunk = body[position : position + min(_WINDOW, size + size // 1000 + 64)]
        try:
            out = stream.decompress(chunk, _WINDOW)
        except zlib.error:
            raise HostileBundle("the pack holds data that does not unpack") from None
        # At the end zlib tells what is left over in both places, when an earlier window was full.
        used = len(chunk) - len(stream.unused_data if stream.eof else stream.unconsumed_tail)
        position += used
        done += len(out)
        if len(start) < 32:
            start = (start + out[:32])[:32]
        if done > size:
            raise HostileBundle("the pack holds an object larger than it declares")
        if not used and not out and not stream.eof:
            raise HostileBundle("the pack is cut off")
    if done != size:
        raise HostileBundle("the pack holds an object smaller than it declares")
    return start, position


def _delta_result_size(start: bytes) -> int:
    """The second of the two variable-length numbers that a delta begins with."""
    position = 0
    size = 0
    for _ in range(2):
        size = shift = 0
        while True:
            if position >= len(start) or shift > 60:
                raise HostileBundle("the pack holds a delta without sizes")
            byte = start[position]
            position += 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                break
    return size
