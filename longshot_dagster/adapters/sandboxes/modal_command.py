"""One command in a sandbox of Modal while it runs: fed, listened to, and its exit code in the end.

The SDK's calls block and cannot be interrupted, so each stream has a thread of its own that ends with it.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from longshot_dagster.adapters.sandboxes.modal_sdk import speaking
from longshot_dagster.core.errors import SandboxError
from longshot_dagster.core.sandbox import Stream

if TYPE_CHECKING:
    from modal.container_process import ContainerProcess
    from modal.io_streams import StreamReader

_CHUNK = 4 << 20  # of standard input; the SDK takes at most 16 MiB between two waits
_ASK_S = 0.5  # a command that has closed its streams runs on


class Heard:
    """What a command has said: the last `keep` bytes of each stream, or the `first`.

    `failure` is what `on_output` raised. Any number of threads may add.
    """

    def __init__(
        self, keep: int, on_output: Callable[[Stream, bytes], None] | None = None, *, first: bool = False
    ) -> None:
        self.truncated = False
        self.failure: Exception | None = None
        self.tails: dict[Stream, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self._keep = keep
        self._on_output = on_output
        self._first = first
        self._lock = threading.Lock()

    def add(self, stream: Stream, data: bytes) -> bool:
        """False when nobody wants to hear more."""
        with self._lock:
            tail = self.tails[stream]
            tail += data
            if len(tail) > self._keep:
                self.truncated = True
                if self._first:
                    return False
                del tail[: len(tail) - self._keep]
            if self._on_output is not None and self.failure is None:
                try:
                    self._on_output(stream, data)
                except Exception as e:
                    self.failure = e
            return self.failure is None


class ModalCommand:
    """A running command; `heard` is what it has said so far."""

    def __init__(self, process: "ContainerProcess[bytes]", stdin: bytes | Iterable[bytes] | None, heard: Heard) -> None:
        self.heard = heard
        self.code = -1
        self._process = process
        self._threads = [
            threading.Thread(target=self._listen, args=(name, stream), daemon=True)
            for name, stream in (("stdout", process.stdout), ("stderr", process.stderr))
        ]
        for thread in self._threads:
            thread.start()
        if stdin:
            threading.Thread(target=self._feed, args=(stdin,), daemon=True).start()
        else:
            self._end_of_input()

    def has_ended(self, within_s: float) -> bool:
        """Waits for that long; `code` is known afterwards. Raises SandboxGone, SandboxError."""
        until = time.monotonic() + within_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                return False
        with speaking("say how a command ended"):
            code = self._process.poll()
        if code is None:
            time.sleep(_ASK_S)
            return False
        self.code = code
        return True

    def _listen(self, name: Stream, stream: "StreamReader[bytes]") -> None:
        try:
            with speaking("say what a command says"):
                for data in stream:
                    if not self.heard.add(name, data):
                        return
        except SandboxError:  # its exit code, or that it has none, tells what happened
            self.heard.truncated = True

    def _feed(self, stdin: bytes | Iterable[bytes]) -> None:
        whole = (stdin[at : at + _CHUNK] for at in range(0, len(stdin), _CHUNK)) if isinstance(stdin, bytes) else stdin
        with contextlib.suppress(SandboxError), speaking("feed a command"):  # it has ended: it does not want the rest
            for chunk in whole:
                self._process.stdin.write(chunk)
                self._process.stdin.drain()
        self._end_of_input()

    def _end_of_input(self) -> None:
        with contextlib.suppress(SandboxError), speaking("feed a command"):
            self._process.stdin.write_eof()
            self._process.stdin.drain()
