"""The process that runs are forked from: it has loaded what every run needs, opens nothing, and has one thread.

Started anew, a run's process imports for seconds of CPU before its first step. A fork of this one has everything at once.
So have the code server, the daemon and the webserver, which are forked for the supervisor and are its children; they need
less, and whoever asks for one while nobody has asked for a run is served before the rest is loaded.

One process per connection to `runtime/runs.sock`, one JSON document per line:

    asker    {"run": "<run id>"}      or {"serve": Serve}
    child    {"pid": 4711}            forked, in a session of its own
    asker    {"go": true}             from here on the run counts as started, whatever becomes of the connection
    child    {"held": true}           it holds the run's lease; a run's alone says so

    python -m longshot_dagster.adapters.stack.run_starter --runs longshot_dagster.defs.launcher --module DEFINITIONS

`--runs` names the module that knows what a run is, with the functions of `Runs`. It is imported after the socket is there.

An asker that gives up before `go` has started nothing, so it may have the run started in another way. Runs outlive this
process; while it is away, and the supervisor brings it back, they are started in that other way.
"""

import argparse
import contextlib
import ctypes
import gc
import importlib
import json
import os
import re
import select
import selectors
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypedDict, cast

from longshot_dagster.adapters.host import leases
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.stack.supervised import die_with

ANSWER_SECONDS = 20.0  # it listens before it has loaded anything: the first asker waits for that
GO_SECONDS = 5.0
_LOOK_SECONDS = 0.1
_QUIET_SECONDS = 5.0  # nobody asks for a service any more: time to load what runs need
_ADOPTED_SECONDS = 5.0
_REQUEST_SECONDS = 1.0  # an asker speaks as soon as it is connected, and nobody else is served meanwhile
_MAX_LINE = 4096
_RUN_ID = re.compile(r"[0-9a-zA-Z_-]{1,64}")
_QUIET = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


class Serve(TypedDict):
    """A process that serves until it is told to stop."""

    argv: Sequence[str]  # what follows the interpreter: -m MODULE and its arguments
    log: str  # path; standard output and error go there
    parent: int  # pid whose child it becomes, and dies with; it must adopt the orphans below it


class Runs(Protocol):
    """What runs and services are; `execute`, `bury` and `serve` are called in children."""

    def load_definitions(self, definitions: str) -> None:
        """Import what runs and services share."""

    def load(self) -> None:
        """Import whatever else runs need."""

    def serve(self, module: str, arguments: Sequence[str]) -> None:
        """Be `python -m module arguments`."""

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


def have_served(home: Home, asked: Serve, patience_s: float, hoping: Callable[[], bool]) -> int | None:
    """Have a service forked; its pid, or None when nothing was started in time or since `hoping` turned False."""
    until = time.monotonic() + patience_s
    while hoping() and time.monotonic() < until:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            if connection.connect_ex(str(socket_path(home))):
                time.sleep(_LOOK_SECONDS)  # it does not listen yet
                continue
            if not _is_ours(connection):
                return None
            with contextlib.suppress(OSError, ValueError):
                _say(connection, {"serve": asked})
                while not select.select([connection], [], [], _LOOK_SECONDS)[0]:
                    if not hoping() or time.monotonic() > until:
                        return None
                connection.settimeout(_REQUEST_SECONDS)
                pid = _heard(connection).get("pid")
                if isinstance(pid, int):
                    _say(connection, {"go": True})
                    return pid
            return None
    return None


def load(home: Home) -> None:
    """Have the starter load what runs need, if it has not."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(str(socket_path(home)))
        _say(connection, {})


class RunStarter:
    """One per home, the supervisor's."""

    def __init__(self, home: Home, load: Callable[[], Runs]) -> None:
        self._home = home
        self._load = load
        self._runs: dict[int, str] = {}  # pid -> run id
        self._stopping = False
        self._loaded = False  # also what runs alone need

    def serve(self) -> None:
        """Listen, load what runs need, then fork until SIGTERM; the runs go on."""
        woken, wake = socket.socketpair()
        with self._listening() as listener, woken, wake, selectors.DefaultSelector() as ready:
            wake.setblocking(False)
            woken.setblocking(False)
            signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
            for number in _QUIET:
                signal.signal(number, self._noticed)
            ready.register(listener, selectors.EVENT_READ, data="runs")
            ready.register(woken, selectors.EVENT_READ)
            self._inherited = (listener, woken, wake, ready)
            self._what = self._load()
            _freeze()
            while not self._stopping:
                found = ready.select(None if self._loaded else _QUIET_SECONDS)
                if not found:
                    self._load_rest()
                for key, _ in found:
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
                asked = _heard(connection) if _is_ours(connection) else {}
            except (OSError, ValueError):
                asked = {}
            if (service := _service(asked.get("serve"))) is not None:
                self._forked(partial(self._be_service, service, connection))
                return
            self._load_rest()
            run = asked.get("run")
            if isinstance(run, str) and _RUN_ID.fullmatch(run):
                pid = self._forked(partial(self._be_run, run, connection))
                if pid:
                    self._runs[pid] = run

    def _load_rest(self) -> None:
        if not self._loaded:
            self._what.load()
            _freeze()
            self._loaded = True

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
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else int(e.code is not None)
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

    def _be_service(self, asked: Serve, connection: socket.socket) -> None:
        """In a child of the child, which the asker adopts as soon as its parent is gone."""
        between = os.getpid()
        if os.fork():
            return
        os.setsid()
        until = time.monotonic() + _ADOPTED_SECONDS
        while os.getppid() == between and time.monotonic() < until:
            time.sleep(0.001)
        with connection:
            connection.settimeout(GO_SECONDS)
            if not die_with(asked["parent"]):
                return
            log = os.open(asked["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            _, module, *arguments = asked["argv"]
            _call_itself([sys.executable, *asked["argv"]])
            try:
                _say(connection, {"pid": os.getpid()})
                if _heard(connection).get("go") is not True:
                    return
            except (OSError, ValueError):
                return  # the asker has started it in another way
        sys.stdout.flush()
        sys.stderr.flush()
        for stream in (1, 2):
            os.dup2(log, stream)
        os.close(log)
        gc.enable()
        self._what.serve(module, arguments)


def _freeze() -> None:
    """A collection in a child would otherwise copy every page it looks at."""
    gc.collect()
    gc.freeze()


def _service(asked: object) -> Serve | None:
    """What was asked for, if it is a service at all."""
    if not isinstance(asked, dict):
        return None
    argv, log, parent = asked.get("argv"), asked.get("log"), asked.get("parent")
    if not (isinstance(argv, list) and all(isinstance(a, str) for a in argv) and len(argv) > 1 and argv[0] == "-m"):
        return None
    return Serve(argv=argv, log=log, parent=parent) if isinstance(log, str) and isinstance(parent, int) else None


def _call_itself(argv: Sequence[str]) -> None:
    """What `ps` shows of this process, as much as there is room for; a fork is else called what its parent is."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        start, end = int(fields[45]), int(fields[46])
        room = end - start
        name = b"\0".join(os.fsencode(a) for a in argv)[: room - 1]
        if 0 < start < end:
            ctypes.memmove(start, name.ljust(room, b"\0"), room)


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
    gc.disable()  # whatever is loaded stays; forks switch it on again

    def load() -> Runs:
        runs = cast(Runs, importlib.import_module(given.runs))
        runs.load_definitions(given.module)
        return runs

    RunStarter(Home(Path(os.environ["LONGSHOT_HOME"]).expanduser()), load).serve()


if __name__ == "__main__":
    main()
