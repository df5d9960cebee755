"""The frames by which connections from a sandbox to the model travel over one command's standard input and output.

    stream (4 bytes, big-endian), kind (1), length of the payload (4), payload

    OPEN    a connection inside was accepted; its stream's number is new and grows       from the sandbox only
    DATA    bytes of it, at most MAX_PAYLOAD; never more than the other side has granted
    EOF     no more DATA in this direction
    RESET   the stream is over in both directions; both sides forget it
    CREDIT  4 bytes: so many more bytes of DATA may follow; each side begins with WINDOW
    ALIVE   stream 0; the first one says that connections are accepted, later ones that somebody is there

The other end is `sandbox/longshot_worker/mux.py`, which shares this as a format and not as code. Whatever comes out of a
sandbox is hostile: `Frames` raises ValueError at the first byte that cannot be.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

MAX_PAYLOAD = 32 << 10
WINDOW = 256 << 10
MAX_STREAMS = 64

_HEADER = struct.Struct(">IBI")
_CREDIT = struct.Struct(">I")


class Kind(IntEnum):
    OPEN = 1
    DATA = 2
    EOF = 3
    RESET = 4
    CREDIT = 5
    ALIVE = 6


@dataclass(frozen=True)
class Frame:
    stream: int
    kind: Kind
    payload: bytes = b""

    @property
    def encoded(self) -> bytes:
        return _HEADER.pack(self.stream, self.kind, len(self.payload)) + self.payload

    @property
    def credit(self) -> int:
        return int(_CREDIT.unpack(self.payload)[0])


ALIVE = Frame(0, Kind.ALIVE)


def credit(stream: int, more: int) -> Frame:
    return Frame(stream, Kind.CREDIT, _CREDIT.pack(more))


class Frames:
    """Frames out of bytes that come in any pieces; keeps less than one frame."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def of(self, data: bytes) -> Iterator[Frame]:
        """Raises ValueError for what is no frame; nothing that follows is one."""
        self._rest += data
        at = 0
        try:
            while len(self._rest) - at >= _HEADER.size:
                stream, kind, length = _HEADER.unpack_from(self._rest, at)
                _check(stream, kind, length)
                if len(self._rest) - at < _HEADER.size + length:
                    return
                at += _HEADER.size
                payload = bytes(self._rest[at : at + length])
                at += length
                yield Frame(stream, Kind(kind), payload)
        finally:
            del self._rest[:at]


def _check(stream: int, kind: int, length: int) -> None:
    if kind not in Kind.__members__.values():
        raise ValueError(f"a frame of kind {kind}")
    if (stream == 0) != (kind == Kind.ALIVE):
        raise ValueError(f"a frame of kind {kind} on stream {stream}")
    wanted = {Kind.DATA: range(1, MAX_PAYLOAD + 1), Kind.CREDIT: range(4, 5)}.get(Kind(kind), range(1))
    if length not in wanted:
        raise ValueError(f"a frame of kind {kind} with {length:,} bytes")
