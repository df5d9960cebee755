"""The model's socket inside a sandbox that no socket reaches: its connections travel over standard input and output.

The frames are described in longshot_dagster/core/relay_frames.py. One of these serves a path until its standard input
ends, nobody at the other end has been heard for a while, or a later one has taken the path over.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import struct
import time

MAX_PAYLOAD = 32 << 10
WINDOW = 256 << 10
MAX_STREAMS = 64

OPEN, DATA, EOF, RESET, CREDIT, ALIVE = 1, 2, 3, 4, 5, 6

_HEADER = struct.Struct(">IBI")
_NUMBER = struct.Struct(">I")
_CHUNK = 1 << 16
_MAX_WAITING = 256 << 10  # bytes for standard output; connections are not read while more than that waits
_ALIVE_S = 10.0
_LOOK_S = 1.0  # whether the path is still ours
_SILENCE_S = 45.0


def serve(path: str, stdin: int = 0, stdout: int = 1) -> int:
    """0 when the other end has closed its side, 3 when it has gone, 4 when the path belongs to a later one."""
    listener = _listen(path)
    mine = os.stat(path).st_ino
    try:
        return _Mux(listener, stdin, stdout, lambda: _inode(path) == mine).run()
    finally:
        listener.close()
        if _inode(path) == mine:
            os.unlink(path)


def _listen(path: str) -> socket.socket:
    """At `path` from one moment to the next, whatever was there. A path may be longer than a socket's address."""
    folder, name = os.path.split(path)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    part = ".%s-%d" % (name, os.getpid())
    here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind("/proc/self/fd/%d/%s" % (here, part))
        listener.listen(MAX_STREAMS)
        os.replace(os.path.join(folder, part), path)
    except OSError:
        listener.close()
        raise
    finally:
        os.close(here)
    listener.setblocking(False)
    return listener


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except OSError:
        return -1


class _Stream:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.to_write = bytearray()
        self.may_send = WINDOW  # bytes that the other end still takes
        self.to_grant = 0
        self.read_all = False  # we have sent EOF
        self.written_all = False  # the other end has


class _Mux:
    def __init__(self, listener: socket.socket, stdin: int, stdout: int, still_ours: object) -> None:
        self._listener = listener
        self._in = stdin
        self._out = stdout
        self._still_ours = still_ours
        self._streams: dict[int, _Stream] = {}
        self._last = 0
        self._said = bytearray()  # for stdout
        self._heard = bytearray()
        self._selector = selectors.DefaultSelector()

    def run(self) -> int:
        for end in (self._in, self._out):
            os.set_blocking(end, False)
        self._selector.register(self._in, selectors.EVENT_READ, "in")
        self._selector.register(self._listener, selectors.EVENT_READ, "listener")
        try:
            return self._run()
        finally:
            for stream in self._streams.values():
                stream.connection.close()
            self._selector.close()

    def _run(self) -> int:
        heard = time.monotonic()
        alive_at = look_at = heard
        while True:
            now = time.monotonic()
            if now >= look_at:
                if not self._still_ours():
                    return 4
                look_at = now + _LOOK_S
            if now >= alive_at:
                self._say(0, ALIVE)
                alive_at = now + _ALIVE_S
            if now - heard > _SILENCE_S:
                return 3
            self._attend_to()
            for key, events in self._selector.select(max(0.0, min(alive_at, look_at, heard + _SILENCE_S) - now)):
                if key.data == "in":
                    data = os.read(self._in, _CHUNK)
                    if not data:
                        return 0
                    heard = time.monotonic()
                    self._hear(data)
                elif key.data == "out":
                    if not self._flush():
                        return 0
                elif key.data == "listener":
                    self._accept()
                elif key.data in self._streams:
                    if events & selectors.EVENT_WRITE:
                        self._write(key.data)
                    if events & selectors.EVENT_READ and key.data in self._streams:
                        self._read(key.data)

    def _attend_to(self) -> None:
        """Ask the selector for just what can be done now."""
        self._ask(self._out, selectors.EVENT_WRITE if self._said else 0, "out")
        room = len(self._said) < _MAX_WAITING
        self._ask(self._listener, selectors.EVENT_READ if room and len(self._streams) < MAX_STREAMS else 0, "listener")
        for number, stream in self._streams.items():
            reading = room and stream.may_send > 0 and not stream.read_all
            wanted = (selectors.EVENT_READ if reading else 0) | (selectors.EVENT_WRITE if stream.to_write else 0)
            self._ask(stream.connection, wanted, number)

    def _ask(self, end: object, events: int, data: object) -> None:
        known = self._selector.get_map().get(end if isinstance(end, int) else end.fileno())
        if known is None:
            if events:
                self._selector.register(end, events, data)
        elif not events:
            self._selector.unregister(end)
        elif known.events != events:
            self._selector.modify(end, events, data)

    # --- the other end -----------------------------------------------------------------------------------------------

    def _say(self, stream: int, kind: int, payload: bytes = b"") -> None:
        self._said += _HEADER.pack(stream, kind, len(payload)) + payload

    def _flush(self) -> bool:
        try:
            del self._said[: os.write(self._out, bytes(self._said[:_CHUNK]))]
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True

    def _hear(self, data: bytes) -> None:
        """The other end is ours: it keeps the rules."""
        self._heard += data
        at = 0
        while len(self._heard) - at >= _HEADER.size:
            number, kind, length = _HEADER.unpack_from(self._heard, at)
            if len(self._heard) - at < _HEADER.size + length:
                break
            at += _HEADER.size
            payload = bytes(self._heard[at : at + length])
            at += length
            stream = self._streams.get(number)
            if stream is None:
                continue
            if kind == DATA:
                stream.to_write += payload
            elif kind == EOF:
                stream.written_all = True
                self._write(number)
            elif kind == CREDIT:
                stream.may_send += _NUMBER.unpack(payload)[0]
            elif kind == RESET:
                self._forget(number)
        del self._heard[:at]

    # --- connections -------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        self._last += 1
        self._streams[self._last] = _Stream(connection)
        self._say(self._last, OPEN)

    def _read(self, number: int) -> None:
        stream = self._streams[number]
        try:
            data = stream.connection.recv(min(MAX_PAYLOAD, stream.may_send))
        except BlockingIOError:
            return
        except OSError:
            self._reset(number)
            return
        if data:
            stream.may_send -= len(data)
            self._say(number, DATA, data)
            return
        stream.read_all = True
        self._say(number, EOF)
        self._forget_if_over(number)

    def _write(self, number: int) -> None:
        stream = self._streams[number]
        try:
            while stream.to_write:
                count = stream.connection.send(stream.to_write[:_CHUNK])
                del stream.to_write[:count]
                stream.to_grant += count
        except BlockingIOError:
            pass
        except OSError:
            self._reset(number)
            return
        if stream.to_grant and (stream.to_grant >= WINDOW // 4 or not stream.to_write):
            self._say(number, CREDIT, _NUMBER.pack(stream.to_grant))
            stream.to_grant = 0
        if stream.written_all and not stream.to_write:
            try:
                stream.connection.shutdown(socket.SHUT_WR)
            except OSError as e:
                if e.errno != errno.ENOTCONN:
                    self._reset(number)
                    return
            self._forget_if_over(number)

    def _forget_if_over(self, number: int) -> None:
        stream = self._streams[number]
        if stream.read_all and stream.written_all and not stream.to_write:
            self._forget(number)

    def _reset(self, number: int) -> None:
        self._say(number, RESET)
        self._forget(number)

    def _forget(self, number: int) -> None:
        stream = self._streams.pop(number)
        self._ask(stream.connection, 0, number)
        stream.connection.close()
