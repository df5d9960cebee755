"""How a run has the sensors look at once, when what it has just written makes something due: a word on a socket.

Dagster looks every five seconds. Nothing depends on the word: who says it decides nothing, and a lost one costs those
seconds. The sensors alone open work, by the same rules whether woken or not.

    runtime/wake.sock     datagrams, of whatever content; the daemon listens
"""

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.core.lifecycle import BuildView, opens_work

LOOK_EVERY_S = 1.0  # a look reads the whole build, and handoffs may come many a second
_PAUSES = 50  # times as long as a look took: a build of ten thousand tasks is looked at for a fiftieth of the time
_POLL_S = 0.5
_STILL_S = 1.0


def socket_path(home: Home) -> Path:
    return home.runtime / "wake.sock"


def wake(home: Home) -> None:
    """Have the sensors look; nothing happens where no daemon listens."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.setblocking(False)
        s.sendto(b"!", str(socket_path(home)))


class Lookout:
    """One build's, in a process that writes its ledger: looks after every change, and wakes the sensors when it matters."""

    def __init__(self, home: Home, view: Callable[[], BuildView], every_s: float = LOOK_EVERY_S) -> None:
        self._home = home
        self._view = view
        self._every_s = every_s
        self._guard = threading.Lock()
        self._changed = False
        self._looking = False

    def changed(self) -> None:
        """Returns at once; a change that comes while one is looked at is looked at afterwards."""
        if not (self._home.has_runtime and socket_path(self._home).exists()):
            return
        with self._guard:
            self._changed = True
            if self._looking:
                return
            self._looking = True
        threading.Thread(target=self._look, name="lookout", daemon=True).start()

    def _look(self) -> None:
        while True:
            with self._guard:
                if not self._changed:
                    self._looking = False
                    return
                self._changed = False
            began = time.thread_time()
            with contextlib.suppress(Exception):  # a ledger that cannot be read: the sensors say so
                if opens_work(self._view()):
                    wake(self._home)
            time.sleep(max(self._every_s, _PAUSES * (time.thread_time() - began)))


class Listening:
    """The daemon's end. `stopping` is asked while waiting; `still(waited_s)` at the end of it, which goes on while it is."""

    def __init__(
        self,
        home: Home,
        stopping: Callable[[], bool],
        at_least_s: float,
        still: Callable[[float], bool] = lambda _: False,
    ) -> None:
        self._path = socket_path(home)
        self._path.unlink(missing_ok=True)
        self._stopping = stopping
        self._still = still
        self._at_least_s = at_least_s
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        before = os.umask(0o177)
        try:
            self._socket.bind(str(self._path))
        finally:
            os.umask(before)

    def close(self) -> None:
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def wait(self, seconds: float) -> None:
        """Until somebody wakes us, but `at_least_s`; at most `seconds`, and as many again while nothing is to be done."""
        begun, pause = time.monotonic(), seconds
        while not self._woken(begun, pause) and not self._stopping() and self._still(time.monotonic() - begun):
            pause = max(seconds, _STILL_S)
        self._drain()

    def _woken(self, begun: float, seconds: float) -> bool:
        """Somebody has woken us within `seconds`, and those who look have rested since `begun`."""
        until, woken = time.monotonic() + seconds, False
        while not self._stopping() and (left := until - time.monotonic()) > 0:
            if woken:
                time.sleep(min(left, _POLL_S))
            elif select.select([self._socket], [], [], min(left, _POLL_S))[0]:
                self._drain()
                woken, until = True, min(until, begun + self._at_least_s)
        return woken

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._socket.recv(16):
                pass
