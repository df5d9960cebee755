"""A command of a container, seen from here: heard until it ends, its time is over or somebody cancels it, and fed meanwhile."""

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator

from longshot_dagster.adapters.sandboxes.docker_engine import Talk
from longshot_dagster.adapters.sandboxes.heard import Heard

_POLL_S = 0.2


def attend(talk: Talk, heard: Heard, deadline: float, cancelled: Callable[[], bool] | None) -> str:
    """Hear a command out: `exit`, `timeout` or `cancelled`. Raises SandboxError when the engine talks nonsense."""
    awaited = select.poll()
    awaited.register(talk.socket, select.POLLIN)
    while True:
        if cancelled is not None and cancelled():
            return "cancelled"
        left = deadline - time.monotonic()
        if left <= 0:
            return "timeout"
        if not awaited.poll(1000 * min(_POLL_S, left)):
            continue
        try:
            data = talk.socket.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            return "exit"
        for stream, piece in talk.parsed(data):
            heard.add("stdout" if stream == 1 else "stderr", piece)


@contextlib.contextmanager
def pouring(pieces: Iterator[bytes], into: socket.socket) -> Iterator[None]:
    """Feed a command from a thread of its own, until there is no more or the command has ended."""

    def pour() -> None:
        with contextlib.suppress(OSError, ValueError):
            for piece in pieces:
                into.sendall(piece)

    thread = threading.Thread(target=pour, daemon=True)
    thread.start()
    yield
