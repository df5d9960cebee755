"""One git process that answers many questions, where a process for each would cost more than the answers."""

import contextlib
import os
import select
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import IO

from longshot_dagster.core.errors import RepositoryError

IDLE_S = 30.0  # a process nobody has asked for so long is ended; the next question starts another
MAX_QUESTIONS = 5_000  # git remembers every object it has looked at

Ending = Callable[[bytearray], int]  # given all that was said so far: where the answer ends in it; below 0: not yet

_CHUNK = 1 << 16
_GRACE_S = 5.0


class _Ended(Exception):
    """The process went before its answer was whole; says what it complained of."""


class Dialogue:
    """Questions to the git process that `start` gives, one at a time, from any thread.

    It is started when first asked, again when it has died, and ends with this object, when idle, or at end of file when
    this process is killed. A forked child starts its own.
    """

    def __init__(self, start: Callable[[IO[bytes]], "subprocess.Popen[bytes]"]) -> None:
        self._start = start
        self._lock = threading.Lock()
        self._talk: _Talk | None = None

    def ask(self, question: bytes, end: bytes | Callable[[], Ending], *, keep: int, timeout_s: float) -> bytes | None:
        """What it says before `end`; None for more than `keep` bytes. The question may be put twice, to two processes.

        `question` must fit into a pipe, 4 KB; `end` must be nothing that a repository can make it say, or else give
        for each answer what finds its end. Raises RepositoryError with git's last words, or at the timeout.
        """
        with self._lock:
            try:
                return self._asked(question, end, keep, timeout_s)
            except _Ended:
                self._close()
            try:
                return self._asked(question, end, keep, timeout_s)
            except _Ended as e:
                self._close()
                raise RepositoryError(f"git: {e}") from e

    def end_if_idle(self, now: float) -> None:
        """Called by the watch over all dialogues; `now` is monotonic."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self._talk is not None and now - self._talk.asked_at > IDLE_S:
                self._close()
        finally:
            self._lock.release()

    def _asked(self, question: bytes, end: bytes | Callable[[], Ending], keep: int, timeout_s: float) -> bytes | None:
        talk = self._talk
        if talk is None or talk.owner != os.getpid() or talk.questions >= MAX_QUESTIONS:
            self._close()
            talk = self._talk = _Talk(self._start)
            _watch(self)
        said = None
        try:
            said = talk.ask(question, _Mark(end) if isinstance(end, bytes) else end(), keep, timeout_s)
        finally:
            if said is None:  # cut short: whatever it says next is no answer to anything
                self._close()
        return said

    def _close(self) -> None:
        if self._talk is not None:
            self._talk.end()
            self._talk = None


class _Mark:
    """The ending that is a mark; what has been searched is not searched again."""

    def __init__(self, mark: bytes) -> None:
        self.mark = mark
        self._from = 0

    def __call__(self, said: bytearray) -> int:
        found = said.find(self.mark, self._from)
        self._from = max(0, len(said) - len(self.mark))
        return found


class _Talk:
    """One process."""

    def __init__(self, start: Callable[[IO[bytes]], "subprocess.Popen[bytes]"]) -> None:
        self.owner = os.getpid()
        self.questions = 0
        self.asked_at = time.monotonic()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed by `end`
        try:
            self._process = start(self._errors)
        except BaseException:
            self._errors.close()
            raise
        self.end = weakref.finalize(self, _end, self._process, self._errors, self.owner)

    def ask(self, question: bytes, ending: Ending, keep: int, timeout_s: float) -> bytes | None:
        """As Dialogue.ask; raises _Ended when the process is gone."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self.questions += 1
        self.asked_at = time.monotonic()
        try:
            self._process.stdin.write(question)
        except OSError as e:
            raise _Ended(self._complaint()) from e
        said = bytearray()
        for chunk in self._chunks(self._process.stdout.fileno(), timeout_s):
            said += chunk
            if (found := ending(said)) >= 0:
                return None if found > keep else bytes(said[:found])
            if len(said) > keep + _CHUNK:
                return None
        raise _Ended(self._complaint())

    def _chunks(self, source: int, timeout_s: float) -> Iterator[bytes]:
        poll = select.poll()
        poll.register(source, select.POLLIN)
        while True:
            left = self.asked_at + timeout_s - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise RepositoryError(f"git did not answer within {timeout_s:g} seconds")
            if not (chunk := os.read(source, _CHUNK)):
                return
            yield chunk

    def _complaint(self) -> str:
        from longshot_dagster.adapters.repository.git import reason

        said = os.pread(self._errors.fileno(), _CHUNK, 0)  # its helpers may still write, at the position they share
        return reason(said.decode("utf-8", "replace")) or "it ended before it had answered"


def _end(process: "subprocess.Popen[bytes]", errors: IO[bytes], owner: int) -> None:
    if process.stdin is not None and process.stdout is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
        process.stdout.close()
    errors.close()
    if os.getpid() != owner:  # a forked child: the process is its parent's
        process.returncode = 0
        return
    process.terminate()  # and not killed: it takes its lock files with it
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# --- idle ones -------------------------------------------------------------------------------------------------------

_open: "weakref.WeakSet[Dialogue]" = weakref.WeakSet()
_guard = threading.Lock()
_watchers: set[int] = set()  # the process whose thread looks; a forked child has none


def _watch(dialogue: Dialogue) -> None:
    with _guard:
        _open.add(dialogue)
        if os.getpid() in _watchers:
            return
        _watchers.clear()
        _watchers.add(os.getpid())
    threading.Thread(target=_end_idle_ones, name="idle git processes", daemon=True).start()


def _end_idle_ones() -> None:
    while True:
        time.sleep(IDLE_S / 2)
        with _guard:
            found = list(_open)
        while found:  # none is kept alive by this thread
            found.pop().end_if_idle(time.monotonic())
