"""An ordinary http://127.0.0.1 address inside the sandbox for the gateway's unix socket outside of it."""

from __future__ import annotations

import contextlib
import socket
import threading


class Relay:
    """Copies bytes between each connection to its port and a new one to the unix socket. Use as a context manager."""

    def __init__(self, unix_path: str) -> None:
        self._unix_path = unix_path
        self._server = socket.create_server(("127.0.0.1", 0))

    @property
    def url(self) -> str:
        """Base URL of the OpenAI-compatible API."""
        return f"http://127.0.0.1:{self._server.getsockname()[1]}/v1"

    def __enter__(self) -> Relay:
        threading.Thread(target=self._accept, name="relay", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
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
            try:
                outside.connect(self._unix_path)
            except OSError:
                return  # the client sees a closed connection, as from any server that is down
            back = threading.Thread(target=_pump, args=(outside, inside), daemon=True)
            back.start()
            _pump(inside, outside)
            back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Copy until `source` ends, then tell `sink` so."""
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
