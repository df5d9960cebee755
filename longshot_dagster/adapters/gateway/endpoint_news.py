"""How a command tells the supervisor which endpoints the gateway serves from now on: a gateway that dies later gets those.

Keys travel through a socket and stay in memory, as on their way to the gateway itself.

    runtime/endpoints.sock     one connection per message, {"endpoints": [...]}, by this user only
"""

import contextlib
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.core.endpoints import Endpoint, endpoints_from_wire, endpoints_to_wire
from longshot_dagster.core.errors import LongshotError

_TALK_S = 2.0
_MAX_BYTES = 1 << 20


def tell(home: Home, endpoints: Sequence[Endpoint]) -> None:
    """Nothing happens where no supervisor listens."""
    if not (home.has_runtime and _path(home).exists()):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as s:
        s.settimeout(_TALK_S)
        s.connect(str(_path(home)))
        s.sendall(json.dumps({"endpoints": endpoints_to_wire(endpoints)}).encode())


class Hearing:
    """The supervisor's end; it asks now and then, and never waits for a message that is not there."""

    def __init__(self, home: Home) -> None:
        self._place = _path(home)
        self._place.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.setblocking(False)
        before = os.umask(0o177)
        try:
            self._socket.bind(str(self._place))
        finally:
            os.umask(before)
        self._socket.listen(16)

    def newest(self) -> tuple[Endpoint, ...]:
        """What the last command said since one was last asked for; empty when there was none, or none that can be read."""
        found: tuple[Endpoint, ...] = ()
        with contextlib.suppress(BlockingIOError):
            while True:
                connection, _ = self._socket.accept()
                with connection:
                    found = _read(connection) or found
        return found

    def close(self) -> None:
        self._socket.close()
        self._place.unlink(missing_ok=True)


def _path(home: Home) -> Path:
    return home.runtime / "endpoints.sock"


def _read(connection: socket.socket) -> tuple[Endpoint, ...]:
    connection.settimeout(_TALK_S)
    text = b""
    try:
        while got := connection.recv(65_536):
            text += got
            if len(text) > _MAX_BYTES:
                return ()
        return endpoints_from_wire(json.loads(text).get("endpoints"))
    except (OSError, ValueError, AttributeError, LongshotError):
        return ()
