"""One running command attended to its end: fed, drained, and given up at its time."""

import contextlib
import os
import selectors
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from typing import IO, cast

from longshot_dagster.core.sandbox import Stream

_POLL_S = 0.2  # a cancelled run must stop within a quarter of a second


class Outcome:
    """What a command has said so far, and how its run ended: `exit`, `timeout` or `cancelled`."""

    def __init__(self, keep_bytes: int) -> None:
        self.ended = "exit"
        self.truncated = False
        self.tails: dict[Stream, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self._keep = keep_bytes

    def add(self, stream: Stream, data: bytes) -> None:
        tail = self.tails[stream]
        tail += data
        if len(tail) > self._keep:
            del tail[: len(tail) - self._keep]
            self.truncated = True


def attend(
    process: "subprocess.Popen[bytes]",
    stdin: bytes | Iterable[bytes] | None,
    deadline: float,
    on_output: Callable[[Stream, bytes], None] | None,
    cancelled: Callable[[], bool] | None,
    keep_bytes: int,
) -> Outcome:
    """Feed and drain `process` until it has ended and said everything, `deadline` passes, or `cancelled()`."""
    outcome = Outcome(keep_bytes)
    pending = memoryview(stdin if isinstance(stdin, bytes) else b"")
    with selectors.DefaultSelector() as selector:
        for name, pipe in (("stdout", process.stdout), ("stderr", process.stderr)):
            os.set_blocking(cast(IO[bytes], pipe).fileno(), False)
            selector.register(cast(IO[bytes], pipe), selectors.EVENT_READ, name)
        if process.stdin is not None and stdin is not None and not isinstance(stdin, bytes):
            threading.Thread(target=_pour, args=(stdin, os.dup(process.stdin.fileno())), daemon=True).start()
            process.stdin.close()
        elif process.stdin is not None:
            os.set_blocking(process.stdin.fileno(), False)
            selector.register(process.stdin, selectors.EVENT_WRITE, "stdin")
        while True:
            if cancelled is not None and cancelled():
                outcome.ended = "cancelled"
                return outcome
            left = deadline - time.monotonic()
            if left <= 0:
                outcome.ended = "timeout"
                return outcome
            for key, _ in selector.select(min(_POLL_S, left)):
                if key.data == "stdin":
                    pending = _feed(selector, cast(IO[bytes], key.fileobj), pending)
                elif data := _drain(cast(IO[bytes], key.fileobj)):
                    outcome.add(key.data, data)
                    if on_output is not None:
                        on_output(key.data, data)
                elif data is not None:
                    selector.unregister(key.fileobj)
            speaking = any(key.data != "stdin" for key in selector.get_map().values())
            if not speaking:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(min(_POLL_S, max(0.0, left)))
            if not speaking and process.poll() is not None:
                return outcome


def _pour(chunks: Iterable[bytes], pipe: int) -> None:
    """Feed a command whatever comes, until there is no more of it, or the command has ended."""
    with contextlib.suppress(OSError), os.fdopen(pipe, "wb", buffering=0) as sink:
        for chunk in chunks:
            view = memoryview(chunk)
            while view:
                view = view[sink.write(view) :]


def _drain(pipe: IO[bytes]) -> bytes | None:
    """What is there: empty at the end, None when there is nothing just now."""
    try:
        return os.read(pipe.fileno(), 1 << 16)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _feed(selector: selectors.BaseSelector, pipe: IO[bytes], pending: memoryview) -> memoryview:
    try:
        pending = pending[os.write(pipe.fileno(), pending[: 1 << 16]) :] if pending else pending
    except BlockingIOError:
        return pending
    except OSError:
        pending = pending[:0]  # it closed its end: it does not want the rest
    if not pending:
        selector.unregister(pipe)
        pipe.close()
    return pending
