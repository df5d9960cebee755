"""What a command has said, kept until it is read, so that a reader whose connection broke loses nothing."""

import asyncio
from collections.abc import Callable

_BEHIND = 64 << 20  # bytes kept although they were sent: that many may be on their way to a client of the SDK
_SLACK = 8 << 20
_LAST_LOOK_S = 60.0  # after its end was read
_CHUNK = 1 << 16


class Bell:
    """Wakes whoever waits on the loop."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def ring(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    async def until(self, true: Callable[[], bool]) -> None:
        while not true():
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.add(waiting)
            try:
                await waiting
            finally:
                self._waiting.discard(waiting)


class Spoken:
    """One stream; any number of readers ask for what comes after an offset. `allow` is told how far it may go on.

    Who does not read holds the command up `window` bytes later, as a full pipe does.
    """

    def __init__(self, kept: bool, window: int, allow: Callable[[int], None]) -> None:
        self._kept = kept
        self._window = window
        self._allow = allow
        self._allowed = window
        self._data = bytearray()
        self._start = 0  # offset of the first byte that is still here
        self._read = 0  # the furthest that anybody has read
        self.ended = False
        self._bell = Bell()

    @property
    def held_bytes(self) -> int:
        return len(self._data)

    def add(self, data: bytes) -> None:
        """Raises ValueError when that is more than it was allowed, or comes after its end."""
        if self.ended or self._start + len(self._data) + len(data) > self._allowed:
            raise ValueError("a stream goes on where it must not")
        if self._kept:
            self._data += data
        else:
            self._start += len(data)
            self._was_read(self._start)
        self._bell.ring()

    def end(self) -> None:
        self.ended = True
        self._bell.ring()

    def forget(self) -> None:
        self._start += len(self._data)
        self._data.clear()

    async def after(self, offset: int) -> bytes:
        """Some bytes from `offset` on, as soon as there are any; none at the end. Raises LookupError when they are gone."""
        await self._bell.until(lambda: self.ended or self._start + len(self._data) > offset)
        if offset < self._start:
            raise LookupError(f"what was said before byte {self._start} has been read, and is gone")
        here = offset - self._start
        found = bytes(self._data[here : here + _CHUNK])
        self._was_read(offset + len(found))
        if not found:
            asyncio.get_running_loop().call_later(_LAST_LOOK_S, self.forget)
        if (surplus := self._read - _BEHIND - self._start) > _SLACK:
            del self._data[:surplus]
            self._start += surplus
        return found

    def _was_read(self, offset: int) -> None:
        self._read = max(self._read, offset)
        if self._read + self._window - self._allowed > self._window // 4:
            self._allowed = self._read + self._window
            self._allow(self._allowed)
