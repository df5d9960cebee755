"""The objects of a small pack, unpacked without git; whatever is unusual about one is left to git, which knows more."""

import hashlib
import zlib
from collections.abc import Callable

from longshot_dagster.core.bundles import type_and_size

MOST_OBJECTS = 64
MOST_PACKED = 256 << 10  # bytes
MOST_UNPACKED = 512 << 10  # bytes, of all objects together, and of each that a delta is taken from

Object = tuple[str, bytes]  # kind (commit, tree or blob), content
There = Callable[[str], Object | None]  # by full id: what is in the mirror already, unless it is large

_KINDS = {1: "commit", 2: "tree", 3: "blob"}
_OFFSET_DELTA, _REF_DELTA = 6, 7
_START, _CHECKSUM = 12, 20  # bytes


class NotPlain(Exception):
    """Raised for what is not to be judged here. It says nothing against a pack: git is asked about it."""


def unpack(pack: memoryview, there: There) -> dict[str, Object]:
    """The objects by their ids, which are computed here, of a pack that `read_bundle` has let through.

    A delta's base comes earlier in the pack, or is in the mirror. Raises NotPlain.
    """
    body = pack[:-_CHECKSUM]
    count = int.from_bytes(body[8:_START], "big")
    if len(pack) > MOST_PACKED or count > MOST_OBJECTS:
        raise NotPlain("it is not small")
    if hashlib.sha1(body, usedforsecurity=False).digest() != bytes(pack[-_CHECKSUM:]):
        raise NotPlain("its checksum does not match")
    try:
        found = _unpacked(body, count, there)
    except IndexError:
        raise NotPlain("it ends too early") from None
    if len(found) != count:
        raise NotPlain("it holds an object twice")
    return found


def _unpacked(body: memoryview, count: int, there: There) -> dict[str, Object]:
    found: dict[str, Object] = {}
    starts: dict[int, str] = {}  # of entries, by which a delta may name its base
    position, left = _START, MOST_UNPACKED
    for _ in range(count):
        start = position
        number, size, position = type_and_size(body, position)
        base = ""
        if number == _OFFSET_DELTA:
            back, position = _distance(body, position)
            base = starts.get(start - back, "")
        elif number == _REF_DELTA:
            base = bytes(body[position : position + 20]).hex()
            position += 20
        content, position = _inflated(body, position, min(size, left))
        kind = _KINDS.get(number, "")
        if base and (source := found.get(base) or there(base)) is not None:
            kind, content = source[0], apply_delta(source[1], content, left)
        if kind not in _KINDS.values():
            raise NotPlain("it holds a tag, or a delta of what is not to be had here")
        left -= len(content)
        starts[start] = oid = object_id(kind, content)
        found[oid] = kind, content
    if position != len(body):
        raise NotPlain("it holds more than its objects")
    return found


def object_id(kind: str, content: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()


def _distance(body: memoryview, position: int) -> tuple[int, int]:
    """(how far before its own start the base of a delta starts, position after this number)."""
    byte = body[position]
    number = byte & 0x7F
    while byte & 0x80:
        position += 1
        byte = body[position]
        number = (number + 1) << 7 | byte & 0x7F
    return number, position + 1


def _inflated(body: memoryview, position: int, size: int) -> tuple[bytes, int]:
    """(exactly `size` bytes, position after the entry)."""
    stream = zlib.decompressobj()
    window = body[position : position + size + size // 1000 + 64]
    try:
        content = stream.decompress(window, size + 1)
    except zlib.error:
        raise NotPlain("it holds data that does not unpack") from None
    if not stream.eof or len(content) != size:
        raise NotPlain("it holds data of another size than it declares, or packed in an odd way")
    return content, position + len(window) - len(stream.unused_data)


def apply_delta(source: bytes, delta: bytes, most: int) -> bytes:
    """What `delta` makes of `source`, up to `most` bytes. Raises NotPlain; IndexError for a delta that is cut off."""
    before, position = _varint(delta, 0)
    after, position = _varint(delta, position)
    if before != len(source) or after > most:
        raise NotPlain("it holds a delta of something else, or a large one")
    made = bytearray()
    while position < len(delta):
        order, position = delta[position], position + 1
        if order & 0x80:  # copy from the source; absent bytes of the two numbers are zero
            start = length = 0
            for bit in range(4):
                if order >> bit & 1:
                    start |= delta[position] << 8 * bit
                    position += 1
            for bit in range(3):
                if order >> 4 + bit & 1:
                    length |= delta[position] << 8 * bit
                    position += 1
            length = length or 0x10000
            piece = source[start : start + length]
        else:
            length = order
            piece = delta[position : position + length]
            position += length
        if not length or len(piece) != length or len(made) + length > after:
            raise NotPlain("it holds a delta that goes beyond its bounds")
        made += piece
    if len(made) != after:
        raise NotPlain("it holds a delta of another size than it declares")
    return bytes(made)


def _varint(data: bytes, position: int) -> tuple[int, int]:
    number = shift = 0
    while shift < 60:
        byte, position = data[position], position + 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return number, position
    raise NotPlain("it holds a delta of an impossible size")
