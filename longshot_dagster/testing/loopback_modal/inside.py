"""Runs in a loopback sandbox and starts its commands there, as the first process of a container does; stdlib only.

Orders come on its input and news go to its output, in frames: kind, number of the command (0: none), payload.

    START  {argv, env (besides ours), cwd}, or {files: what the SDK asks of its own program}          -> GONE at its end
    INPUT  bytes; FINISH no more of them                                                           -> TAKEN how many
    ALLOW  stream, up to which byte it may be sent                                                 -> OUT, ERR; empty: ended
    KILL   the command with all that is in its session or below it
"""

# Without pathlib, which would be half of the time that this needs to start.
# ruff: noqa: PTH102, PTH103, PTH106, PTH112, PTH114, PTH115, PTH119, PTH123, PTH208
from __future__ import annotations

import contextlib
import errno
import json
import os
import selectors
import signal
import stat
import struct
from collections.abc import Callable, Iterator
from typing import Any

START, INPUT, FINISH, ALLOW, KILL = b"S", b"I", b"F", b"A", b"K"
OUT, ERR, TAKEN, CLOSED, GONE = b"O", b"E", b"T", b"C", b"G"
MAX_PAYLOAD = 1 << 20
WINDOW = 32 << 20  # bytes of a stream that are sent before the other side allows more

_HEADER = struct.Struct(">cII")
_CHUNK = 1 << 16


def frame(kind: bytes, number: int, payload: bytes = b"") -> bytes:
    return _HEADER.pack(kind, number, len(payload)) + payload


class Frames:
    """Cuts what arrives into frames."""

    def __init__(self) -> None:
        self._data = bytearray()

    def add(self, data: bytes) -> Iterator[tuple[bytes, int, bytes]]:
        """Every whole (kind, number, payload); raises ValueError for one that is too long."""
        self._data += data
        at = 0
        while len(self._data) - at >= _HEADER.size:
            kind, number, length = _HEADER.unpack_from(self._data, at)
            if length > MAX_PAYLOAD:
                raise ValueError("a frame that is too long")
            if len(self._data) - at - _HEADER.size < length:
                break
            at += _HEADER.size + length
            yield kind, number, bytes(self._data[at - length : at])
        del self._data[:at]


class _Child:
    """One command: its process, what it has not read yet, and what it may still say."""

    def __init__(self, number: int, pid: int, stdin: int, streams: dict[bytes, int]) -> None:
        self.number = number
        self.pid = pid
        self.exited = False
        self.stdin = stdin  # -1: closed
        self.finishing = False
        self.pending = bytearray()
        self.streams = streams  # kind -> descriptor, while it is open
        self.said = dict.fromkeys(streams, 0)
        self.allowed = dict.fromkeys(streams, WINDOW)


class Inside:
    """The loop that does what the frames say."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._children: dict[int, _Child] = {}
        self._frames = Frames()

    def run(self) -> None:
        woken, waking = os.pipe()
        os.set_blocking(woken, False)
        os.set_blocking(waking, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waking)
        self._selector.register(0, selectors.EVENT_READ, self._take_orders)
        self._selector.register(woken, selectors.EVENT_READ, lambda: self._bury(woken))
        while True:
            for key, _ in self._selector.select():
                key.data()

    def _take_orders(self) -> None:
        data = os.read(0, _CHUNK)
        if not data:
            os._exit(0)  # and everything in this sandbox with it
        for kind, number, payload in self._frames.add(data):
            child = self._children.get(number)
            if kind == START:
                self._start(number, json.loads(payload))
            elif child is None:
                continue
            elif kind == INPUT:
                self._input(child, payload)
            elif kind == FINISH:
                child.finishing = True
                self._feed(child)
            elif kind == ALLOW:
                child.allowed[payload[:1]] = int(payload[1:])
                self._listen(child, payload[:1])
            elif kind == KILL and not child.exited:
                _kill(child.pid)

    def _start(self, number: int, order: dict[str, Any]) -> None:
        ours, theirs = [], []
        for given in (True, False, False):
            reading, writing = os.pipe()
            ours.append(writing if given else reading)
            theirs.append(reading if given else writing)
        try:
            pid = os.fork()
        except OSError as e:
            for descriptor in (*ours, *theirs):
                os.close(descriptor)
            _say(frame(ERR, number, f"cannot start: {e.strerror}\n".encode()) + frame(ERR, number) + frame(OUT, number))
            _say(frame(GONE, number, b"126"))
            return
        if pid == 0:
            _become(order, theirs, [0, 1, 2, *(k.fd for k in self._selector.get_map().values()), *ours])
        for descriptor in theirs:
            os.close(descriptor)
        for descriptor in ours:
            os.set_blocking(descriptor, False)
        child = self._children[number] = _Child(number, pid, ours[0], {OUT: ours[1], ERR: ours[2]})
        for kind in (OUT, ERR):
            self._listen(child, kind)

    def _input(self, child: _Child, payload: bytes) -> None:
        if child.stdin < 0:
            _say(frame(CLOSED, child.number))
            return
        child.pending += payload
        self._feed(child)

    def _feed(self, child: _Child) -> None:
        if child.stdin < 0:
            return
        try:
            taken = os.write(child.stdin, child.pending[:_CHUNK]) if child.pending else 0
        except BlockingIOError:
            taken = 0
        except OSError:  # it has closed its input
            self._close_input(child)
            _say(frame(CLOSED, child.number))
            return
        del child.pending[:taken]
        if taken:
            _say(frame(TAKEN, child.number, str(taken).encode()))
        if child.pending:
            if child.stdin not in self._selector.get_map():
                self._selector.register(child.stdin, selectors.EVENT_WRITE, lambda: self._feed(child))
        elif child.finishing:
            self._close_input(child)
        elif child.stdin in self._selector.get_map():
            self._selector.unregister(child.stdin)

    def _close_input(self, child: _Child) -> None:
        if child.stdin < 0:
            return
        if child.stdin in self._selector.get_map():
            self._selector.unregister(child.stdin)
        os.close(child.stdin)
        child.stdin = -1
        child.pending.clear()

    def _listen(self, child: _Child, kind: bytes) -> None:
        descriptor = child.streams.get(kind)
        if descriptor is not None and descriptor not in self._selector.get_map() and _left(child, kind):
            self._selector.register(descriptor, selectors.EVENT_READ, lambda: self._hear(child, kind))
            if child.exited:
                self._hear(child, kind)

    def _hear(self, child: _Child, kind: bytes) -> None:
        """Pass on what was said. Whoever has exited says no more, even when others still hold its end of the pipe."""
        descriptor = child.streams.get(kind)
        if descriptor is None:  # it ended while this was on its way
            return
        while left := _left(child, kind):
            try:
                data = os.read(descriptor, min(_CHUNK, left))
            except BlockingIOError:
                if not child.exited:
                    return
                data = b""
            _say(frame(kind, child.number, data))
            child.said[kind] += len(data)
            if not data:
                self._selector.unregister(descriptor)
                os.close(child.streams.pop(kind))
                self._forget(child)
                return
            if not child.exited:
                break
        if not _left(child, kind):
            self._selector.unregister(descriptor)

    def _bury(self, woken: int) -> None:
        os.read(woken, _CHUNK)
        for child in [c for c in self._children.values() if not c.exited]:
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if not pid:
                continue
            child.exited = True
            self._close_input(child)
            _say(frame(GONE, child.number, str(os.waitstatus_to_exitcode(status)).encode()))
            for kind in list(child.streams):
                if child.streams[kind] in self._selector.get_map():
                    self._hear(child, kind)
            self._forget(child)

    def _forget(self, child: _Child) -> None:
        if child.exited and not child.streams:
            self._children.pop(child.number, None)


def _left(child: _Child, kind: bytes) -> int:
    return max(0, child.allowed[kind] - child.said[kind])


def _say(data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(1, rest) :]


def _kill(pid: int) -> None:
    """SIGKILL whoever is in the session that `pid` leads, or descends from it."""
    parents, sessions = {}, {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError), open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
                parents[int(name)], sessions[int(name)] = int(fields[1]), int(fields[3])
    doomed = {pid, *(p for p, session in sessions.items() if session == pid)}
    while more := {p for p, parent in parents.items() if parent in doomed} - doomed:
        doomed |= more
    for each in doomed:
        with contextlib.suppress(OSError):
            os.kill(each, signal.SIGKILL)


def _become(order: dict[str, Any], streams: list[int], others: list[int]) -> None:
    """In the child: never returns."""
    code = 126
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        for place, stream in enumerate(streams):
            os.dup2(stream, place)
        for descriptor in {*others, *streams} - {0, 1, 2}:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        if "files" in order:
            os._exit(_files(order["files"]))
        os.chdir(order["cwd"])
        os.execvpe(order["argv"][0], order["argv"], {**os.environ, **order["env"]})
    except FileNotFoundError as e:
        code = 127
        _complain(e)
    except OSError as e:
        _complain(e)
    finally:
        os._exit(code)


def _complain(e: OSError) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{e.filename}: {e.strerror}\n".encode("utf-8", "replace"))


_KINDS = {
    "FileNotFoundError": "NotFound",
    "IsADirectoryError": "IsDirectory",
    "NotADirectoryError": "NotDirectory",
    "PermissionError": "PermissionDenied",
    "FileExistsError": "PathAlreadyExists",
}


def _files(command: str) -> int:
    """What Modal's own program for files does; `command` is {"ReadFile": {"path": ...}}, an error JSON on stderr."""
    ((name, asked),) = json.loads(command).items()
    try:
        _FILES[name](asked["path"], asked)
    except OSError as e:
        kind = "DirectoryNotEmpty" if e.errno == errno.ENOTEMPTY else _KINDS.get(type(e).__name__, "Other")
        said = {"error_kind": kind, "message": e.strerror or str(e), "detail": str(e)}
        os.write(2, json.dumps(said).encode())
        return 1
    except KeyError:
        os.write(
            2, json.dumps({"error_kind": "Other", "message": f"the loopback server does not know {name}"}).encode()
        )
        return 1
    return 0


def _copy(source: int, sink: int) -> None:
    while data := os.read(source, _CHUNK):
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(sink, rest) :]


def _write(path: str, asked: dict[str, Any]) -> None:
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
    except FileExistsError as e:
        raise NotADirectoryError(errno.ENOTDIR, "Not a directory", path) from e
    _copy(0, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644))


def _read(path: str, asked: dict[str, Any]) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        raise IsADirectoryError(errno.EISDIR, "Is a directory", path)
    _copy(descriptor, 1)


def _make(path: str, asked: dict[str, Any]) -> None:
    if asked.get("parents"):
        os.makedirs(path, exist_ok=True)
    else:
        os.mkdir(path)


def _remove(path: str, asked: dict[str, Any]) -> None:
    if not os.path.isdir(path) or os.path.islink(path):
        os.unlink(path)
        return
    for folder, folders, names in os.walk(path, topdown=False) if asked.get("recursive") else ():
        for each in names + [f for f in folders if os.path.islink(os.path.join(folder, f))]:
            os.unlink(os.path.join(folder, each))
        if folder != path:
            os.rmdir(folder)
    os.rmdir(path)


def _list(path: str, asked: dict[str, Any]) -> None:
    os.write(1, json.dumps([_entry(os.path.join(path, name)) for name in sorted(os.listdir(path))]).encode())


def _stat(path: str, asked: dict[str, Any]) -> None:
    os.write(1, json.dumps(_entry(path)).encode())


def _entry(path: str) -> dict[str, Any]:
    found = os.lstat(path)
    kind = "symlink" if stat.S_ISLNK(found.st_mode) else "directory" if stat.S_ISDIR(found.st_mode) else "file"
    return {
        "name": os.path.basename(path),
        "path": path,
        "type": kind,
        "size": found.st_size,
        "mode": found.st_mode,
        "permissions": format(found.st_mode & 0o7777, "o"),
        "owner": str(found.st_uid),
        "group": str(found.st_gid),
        "modified_time": found.st_mtime,
        "symlink_target": os.readlink(path) if kind == "symlink" else None,
    }


_FILES: dict[str, Callable[[str, dict[str, Any]], None]] = {
    "WriteFile": _write,
    "ReadFile": _read,
    "MakeDirectory": _make,
    "Remove": _remove,
    "ListFiles": _list,
    "Stat": _stat,
}

if __name__ == "__main__":
    Inside().run()
