"""The process that runs are forked from: it has loaded what every run needs, opens nothing, and has one thread.

Started anew, a run's process imports for seconds of CPU before its first step. A fork of this one has everything at once.

One run per connection to `runtime/runs.sock`, one JSON document per line:

    asker    {"run": "<run id>"}
    child    {"pid": 4711}            forked, in a session of its own
    asker    {"go": true}             from here on the run counts as started, whatever becomes of the connection
    child    {"held": true}           it holds the run's lease

    python -m longshot_dagster.adapters.run_starter --runs longshot_dagster.defs.launcher --module DEFINITIONS

`--runs` names the module that knows what a run is, with three functions: `load(definitions)`, `execute(run_id)` and
`bury(run_id, exit_code)`. It is imported after the socket is there.

An asker that gives up before `go` has started nothing, so it may have the run started in another way. Runs outlive this
process; while it is away, and the supervisor brings it back, they are started in that other way.
"""

import argparse
import contextlib
import gc
import importlib
import json
import os
import re
import selectors
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol, cast

from longshot_dagster.adapters import leases
from longshot_dagster.adapters.home import Home

ANSWER_SECONDS = 20.0  # it listens before it has loaded anything: the first asker waits for that
GO_SECONDS = 5.0
_REQUEST_SECONDS = 1.0  # an asker speaks as soon as it is connected, and nobody else is served meanwhile
_MAX_LINE = 4096
_RUN_ID = re.compile(r"[0-9a-zA-Z_-]{1,64}")
_QUIET = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


class Runs(Protocol):
    """What a run is; `execute` and `bury` are called in children."""

    def load(self, definitions: str) -> None:
        """Import whatever runs need."""

    def execute(self, run_id: str) -> None: ...

    def bury(self, run_id: str, code: int) -> None:
        """Report a run whose process ended with `code`, negative for a signal."""


def socket_path(home: Home) -> Path:
    return home.runtime / "runs.sock"


def ask(home: Home, run_id: str, *, answer_s: float = ANSWER_SECONDS) -> int | None:
    """Have `run_id` started; its pid, or None when nobody answered in time and nothing was started."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(answer_s)
            connection.connect(str(socket_path(home)))
            if not _is_ours(connection):
                return None
            _say(connection, {"run": run_id})
            pid = _heard(connection).get("pid")
            if not isinstance(pid, int):
                return None
            _say(connection, {"go": True})
            with contextlib.suppress(OSError, ValueError):
                _heard(connection)  # whoever cancels the run now finds its process
            return pid
    except (OSError, ValueError):
        return None


class RunStarter:
    """One per home, the supervisor's."""

    def __init__(self, home: Home, load: Callable[[], Runs]) -> None:
        self._home = home
        self._load = load
        self._runs: dict[int, str] = {}  # pid -> run id
        self._stopping = False

    def serve(self) -> None:
        """Listen, load what runs need, then fork until SIGTERM; the runs go on."""
        woken, wake = socket.socketpair()
        with self._listening() as listener, woken, wake, selectors.DefaultSelector() as ready:
            wake.setblocking(False)
            woken.setblocking(False)
            signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
            for number in _QUIET:
                signal.signal(number, self._noticed)
            self._what = self._load()
            gc.collect()
            gc.freeze()  # a collection in a child would otherwise copy every page it looks at
            ready.register(listener, selectors.EVENT_READ, data="runs")
            ready.register(woken, selectors.EVENT_READ)
            self._inherited = (listener, woken, wake, ready)
            while not self._stopping:
                for key, _ in ready.select():
                    if key.data:
                        self._serve_one(listener)
                    else:
                        with contextlib.suppress(BlockingIOError):
                            woken.recv(4096)
                self._reap()
            signal.set_wakeup_fd(-1)

    def _noticed(self, number: int, _frame: object) -> None:
        self._stopping = self._stopping or number != signal.SIGCHLD

    @contextlib.contextmanager
    def _listening(self):  # type: ignore[no-untyped-def]
        path = socket_path(self._home)
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            before = os.umask(0o177)
            try:
                listener.bind(str(path))
            finally:
                os.umask(before)
            listener.listen(128)
            yield listener
            path.unlink(missing_ok=True)

    def _serve_one(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            connection.settimeout(_REQUEST_SECONDS)
            try:
                asked = _heard(connection).get("run") if _is_ours(connection) else None
            except (OSError, ValueError):
                return
            if isinstance(asked, str) and _RUN_ID.fullmatch(asked):
                pid = self._forked(partial(self._be_run, asked, connection))
                if pid:
                    self._runs[pid] = asked

    def _reap(self) -> None:
        """Take the exit codes of children; a run that did not end by itself is reported."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.wait4(-1, os.WNOHANG))[0]:
                run_id, code = self._runs.pop(ended[0], None), os.waitstatus_to_exitcode(ended[1])
                if run_id is None:
                    continue
                used = ended[2].ru_utime + ended[2].ru_stime
                _log(f"run {run_id} ended with {code} after {used:.2f} s of CPU, its children's included")
                if code:
                    self._forked(partial(self._what.bury, run_id, code))

    def _forked(self, work: Callable[[], None]) -> int | None:
        """The pid of a child that does `work` and nothing else; None when the machine allows no more processes."""
        # A signal between fork and the child's own handlers would be taken for one to this process.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _QUIET)
        try:
            pid = os.fork()
        except OSError as e:
            _log(f"cannot fork: {e}")
            pid = -1
        if pid == 0:
            self._be_child(work, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return pid if pid > 0 else None

    def _be_child(self, work: Callable[[], None], mask: set[int | signal.Signals]) -> NoReturn:
        code = 1
        try:
            self._leave_parent(mask)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)  # not by way of the interpreter: it would touch every page shared with the parent

    def _leave_parent(self, mask: set[int | signal.Signals]) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for inherited in self._inherited:
            inherited.close()
        self._runs.clear()
        os.setsid()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _be_run(self, run_id: str, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(GO_SECONDS)
            try:
                _say(connection, {"pid": os.getpid()})
                if _heard(connection).get("go") is not True:
                    return
            except (OSError, ValueError):
                return  # the asker has had the run started in another way
            leases.hold(self._home, run_id)
            with contextlib.suppress(OSError):
                _say(connection, {"held": True})
        gc.enable()
        self._what.execute(run_id)


def _is_ours(connection: socket.socket) -> bool:
    """Is the process at the other end this user's own?"""
    if not hasattr(socket, "SO_PEERCRED"):  # macOS: the folder is the owner's alone
        return True
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", found)[1]) == os.getuid()


def _say(connection: socket.socket, document: Mapping[str, object]) -> None:
    connection.sendall(json.dumps(document).encode() + b"\n")


def _heard(connection: socket.socket) -> dict[str, Any]:
    """One line. Raises ValueError when it is too long or no JSON object, OSError when none comes."""
    line = b""
    while not line.endswith(b"\n"):
        got = connection.recv(_MAX_LINE)
        line += got
        if not got or len(line) > _MAX_LINE:
            raise ValueError("no line")
    document = json.loads(line)
    if not isinstance(document, dict):
        raise ValueError("no document")
    return document


def _log(line: str) -> None:
    sys.stderr.write(f"run starter: {line}\n")
    sys.stderr.flush()


def main() -> None:
    """Until SIGTERM. LONGSHOT_HOME must be set."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--runs", required=True)
    options.add_argument("--module", required=True)
    given = options.parse_args()

    def load() -> Runs:
        runs = cast(Runs, importlib.import_module(given.runs))
        runs.load(given.module)
        return runs

    RunStarter(Home(Path(os.environ["LONGSHOT_HOME"]).expanduser()), load).serve()


if __name__ == "__main__":
    main()
