"""An ordinary http://127.0.0.1 address inside the sandbox for the gateway's unix socket outside of it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Callable

_AGAIN_S = 0.2


class Relay:
    """Copies bytes between each connection to its port and a new one to the unix socket. Use as a context manager."""

    def __init__(self, unix_path: str, away_s: float = 0) -> None:
        """`away_s`: how long a connection waits for somebody at the socket."""
        self._unix_path = unix_path
        self._away_s = away_s
        self._closed = False
        self._server = socket.create_server(("127.0.0.1", 0))
        self._asking: set[socket.socket] = set()  # connections inside on which the last word was not the model's
        self.heard = time.monotonic()  # when the last bytes went through, either way
        self.refusals = self.refused = 0  # requests refused in a row, and how the last one was (HTTP status)
        self.over_budget = False

    @property
    def waiting(self) -> bool:
        """Has something been asked that is not answered yet?"""
        return bool(self._asking)

    @property
    def url(self) -> str:
        """Base URL of the OpenAI-compatible API."""
        return f"http://127.0.0.1:{self._server.getsockname()[1]}/v1"

    def __enter__(self) -> Relay:
        threading.Thread(target=self._accept, name="relay", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in accept()
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                inside, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(inside,), daemon=True).start()

    def _connect(self, inside: socket.socket) -> None:
        with inside, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as outside:
            if not self._reached(outside):
                return  # the client sees a closed connection, as from any server that is down
            back = threading.Thread(
                target=_pump, args=(outside, inside, lambda data: self._answered(inside, data)), daemon=True
            )
            back.start()
            _pump(inside, outside, lambda data: self._asked(inside))
            back.join()
            self._asking.discard(inside)

    def _reached(self, outside: socket.socket) -> bool:
        """The way to the model is made anew when its other end has died; most agents wait for less than that takes."""
        until = time.monotonic() + self._away_s
        while True:
            try:
                outside.connect(self._unix_path)
                return True
            except (FileNotFoundError, ConnectionRefusedError):
                if self._closed or time.monotonic() > until:
                    return False
                time.sleep(_AGAIN_S)
            except OSError:
                return False

    def _asked(self, inside: socket.socket) -> None:
        self.heard = time.monotonic()
        self._asking.add(inside)

    def _answered(self, inside: socket.socket, data: bytes) -> None:
        self.heard = time.monotonic()
        if inside in self._asking:
            self._asking.discard(inside)
            self._began(data)
        self.over_budget = self.over_budget or (self.refused == 403 and b"budget_exhausted" in data)

    def _began(self, data: bytes) -> None:
        """An answer that begins with `data`: HTTP/1.1 200 OK."""
        status = data[9:12]
        if data.startswith(b"HTTP/1.") and status.isdigit():
            self.refused = int(status) if status >= b"400" else 0
            self.refusals = self.refusals + 1 if self.refused else 0
            self.over_budget = False


def _pump(source: socket.socket, sink: socket.socket, passed: Callable[[bytes], None]) -> None:
    """Copy until `source` ends, then tell `sink` so."""
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            passed(data)
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
