"""Sandboxes on this host: a directory, a confinement, and every process that ever started in it.

    <base>/<id>/meta.json     what it is; without it the sandbox is over
               /root/         its whole file system, or what it may write of it
               /running/<pid> one per running command: when that process started

Another process of the same user can list, attach and end them, so nothing is lost when an orchestrator dies.
"""

import contextlib
import errno
import json
import os
import selectors
import shutil
import signal
import stat
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, cast

from longshot_dagster.adapters.confinement import ROOT_VARIABLE, Confined, Confinement, Unconfined, bubblewrap
from longshot_dagster.adapters.documents import write_atomically
from longshot_dagster.adapters.processes import carrying, end_tree, kill, start_time
from longshot_dagster.core.errors import Cancelled, FileMissing, SandboxError, SandboxGone, SandboxRefused, TooLarge
from longshot_dagster.core.sandbox import Capabilities, ExecResult, SandboxInfo, SandboxSpec, Stream
from longshot_dagster.core.settings import Isolation

_POLL_S = 0.2  # a cancelled run must stop within a quarter of a second
_MAX_SOCKET_PATH = 107
_GRACE_S = 600.0  # for keeping what is in a sandbox whose lifetime was over before anybody came back


class LocalProvider:
    """Sandboxes below `base`."""

    name = "local"

    def __init__(self, base: Path, isolation: Isolation) -> None:
        self._base = base
        self._isolation = isolation

    @property
    def confinement(self) -> Confinement:
        """Raises SandboxRefused when this host cannot isolate and nobody asked to go without."""
        return Unconfined() if self._isolation is Isolation.NONE else bubblewrap()

    @property
    def capabilities(self) -> Capabilities:
        return self.confinement.capabilities

    def create(self, spec: SandboxSpec) -> "LocalSandbox":
        confinement = self.confinement
        _refuse_unenforceable(spec, confinement.capabilities)
        made = LocalSandbox(self._base / f"sb-{uuid.uuid4().hex[:12]}", confinement)
        try:
            made.root.mkdir(parents=True, mode=0o700)
            made.running.mkdir()
            confinement.prepare(made.root, spec.sockets)
            made.host_path(spec.workdir).mkdir(parents=True, exist_ok=True)
            made.begin(spec)
        except OSError as e:
            made.terminate()
            raise SandboxError(f"cannot make a sandbox in {self._base}: {e.strerror or e}") from e
        return made

    def attach(self, sandbox_id: str) -> "LocalSandbox":
        if not sandbox_id.startswith("sb-") or "/" in sandbox_id:
            raise SandboxGone(f"{sandbox_id[:80]!r} is no local sandbox")
        found = LocalSandbox(self._base / sandbox_id, self.confinement)
        found.outlive(_GRACE_S)
        return found

    def list(self, tags: Mapping[str, str]) -> list[SandboxInfo]:
        found = []
        for directory in sorted(self._base.glob("sb-*")):
            with contextlib.suppress(SandboxGone):
                meta = LocalSandbox(directory, self.confinement).meta()
                if tags.items() <= meta["tags"].items():
                    found.append(SandboxInfo(directory.name, meta["tags"], meta["created_at"]))
        return found


class LocalSandbox:
    """One sandbox; any number of threads may use it at once."""

    def __init__(self, directory: Path, confinement: Confinement) -> None:
        self.id = directory.name
        self.root = directory / "root"
        self.running = directory / "running"
        self._directory = directory
        self._confinement = confinement

    def begin(self, spec: SandboxSpec) -> None:
        """Write what the sandbox is; from here on it exists."""
        now = time.time()
        tags = {**spec.tags, "name": spec.name}
        meta = {"created_at": now, "ends_at": now + spec.lifetime_s, "tags": tags, "env": dict(spec.env)}
        meta |= {"workdir": spec.workdir, "network": spec.network, "sockets": dict(spec.sockets)}
        meta["readable"] = list(spec.readable)
        write_atomically(self._directory / "meta.json", json.dumps(meta).encode())

    def meta(self) -> dict[str, Any]:
        """Raises SandboxGone."""
        try:
            found: dict[str, Any] = json.loads((self._directory / "meta.json").read_bytes())
        except (OSError, ValueError) as e:
            raise SandboxGone(f"sandbox {self.id} is over") from e
        return found

    def outlive(self, seconds: float) -> None:
        """Let what a crash has left be looked after, however long ago its lifetime was over: once, and only for so long.

        Raises SandboxGone.
        """
        meta, now = self.meta(), time.time()
        if now <= meta["ends_at"] or meta.get("outlived"):
            return
        meta |= {"ends_at": now + seconds, "outlived": True}
        with contextlib.suppress(OSError):  # a full disk: it is over, as it was
            write_atomically(self._directory / "meta.json", json.dumps(meta).encode())

    def exec(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | Iterable[bytes] | None = None,
        on_output: Callable[[Stream, bytes], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        keep_bytes: int = 1 << 20,
    ) -> ExecResult:
        meta = self._alive()
        confined = self._confinement.confine(
            self.root,
            argv,
            cwd=cwd or meta["workdir"],
            env={**meta["env"], **(env or {})},
            network=meta["network"],
            # A gateway that has gone took its folder along; what it served is not there, and the rest can still be had.
            sockets={inside: host for inside, host in meta["sockets"].items() if Path(host).parent.is_dir()},
            readable=meta.get("readable", ()),
        )
        began = time.monotonic()
        deadline = began + max(0.0, min(timeout_s, meta["ends_at"] - time.time()))
        with self._started(confined, stdin is not None) as process:
            outcome = _attend(process, stdin, deadline, on_output, cancelled, keep_bytes)
        if not (self._directory / "meta.json").exists():
            raise SandboxGone(f"sandbox {self.id} was ended while a command ran in it")
        if outcome.ended == "cancelled":
            raise Cancelled("cancelled while a command ran in its sandbox")
        timed_out = outcome.ended == "timeout"
        code = process.returncode
        return ExecResult(
            exit_code=124 if timed_out else code if code >= 0 else 128 - code,
            stdout=bytes(outcome.tails["stdout"]),
            stderr=bytes(outcome.tails["stderr"]),
            timed_out=timed_out,
            truncated=outcome.truncated,
            duration_s=time.monotonic() - began,
        )

    def write(self, path: str, data: bytes) -> None:
        self._alive()
        try:
            with _parent_of(self.root, path, create=True) as (parent, name):
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                with os.fdopen(os.open(name, flags, 0o644, dir_fd=parent), "wb") as file:
                    _must_be_file(file, path)
                    file.write(data)
        except OSError as e:
            raise SandboxError(f"cannot write {path} in sandbox {self.id}: {e.strerror}") from e

    def read(self, path: str, *, max_bytes: int = 32 << 20) -> bytes:
        self._alive()
        try:
            with _parent_of(self.root, path, create=False) as (parent, name):
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                with os.fdopen(os.open(name, flags, dir_fd=parent), "rb") as file:
                    _must_be_file(file, path)
                    data = file.read(max_bytes + 1)
        except OSError as e:
            raise FileMissing(f"cannot read {path} in sandbox {self.id}: {e.strerror}") from e
        if len(data) > max_bytes:
            raise TooLarge(f"{path} in sandbox {self.id} is larger than {max_bytes:,} bytes")
        return data

    def snapshot(self) -> str:
        raise SandboxRefused("local sandboxes without bubblewrap 0.11 make no snapshots")

    def cost(self) -> Decimal | None:
        return None

    def terminate(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self._directory / "meta.json").unlink()
        self.end_commands()
        _remove(self._directory)

    def end_commands(self) -> None:
        for note in self.running.glob("[0-9]*") if self.running.exists() else ():
            with contextlib.suppress(FileNotFoundError):
                end_tree(int(note.name), note.read_text(encoding="ascii"))
        if isinstance(self._confinement, Unconfined):
            kill(carrying(ROOT_VARIABLE, str(self.root)))

    def host_path(self, path: str) -> Path:
        """Where `path` of the sandbox lies on the host; for what we made ourselves, never for what an agent may have."""
        return self.root / Path(path).relative_to("/")

    def _alive(self) -> dict[str, Any]:
        meta = self.meta()
        if time.time() > meta["ends_at"]:
            raise SandboxGone(f"sandbox {self.id} has reached the end of its lifetime")
        return meta

    @contextlib.contextmanager
    def _started(self, confined: Confined, feed: bool) -> Iterator["subprocess.Popen[bytes]"]:
        """A running process with its note; at the end nothing of its tree is left."""
        pipe = subprocess.PIPE
        try:
            process = subprocess.Popen(  # its own session: a Ctrl-C at the terminal is ours to handle, not its
                confined.argv,
                env=confined.env,
                stdin=pipe if feed else subprocess.DEVNULL,
                stdout=pipe,
                stderr=pipe,
                start_new_session=True,
                pass_fds=confined.descriptors,
            )
        except OSError as e:
            raise SandboxError(f"cannot start a command in sandbox {self.id}: {e}") from e
        finally:
            for descriptor in confined.descriptors:
                os.close(descriptor)
        note = self.running / str(process.pid)
        started = start_time(process.pid)
        try:
            with contextlib.suppress(FileNotFoundError):
                note.write_text(started or "", encoding="ascii")
            yield process
        finally:
            self._end(process, started)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
            with contextlib.suppress(FileNotFoundError):
                note.unlink()

    def _end(self, process: "subprocess.Popen[bytes]", started: str | None) -> None:
        if process.poll() is None and isinstance(self._confinement, Unconfined):
            process.send_signal(signal.SIGTERM)  # the supervisor knows orphans that we cannot find any more
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
        if process.poll() is None:
            end_tree(process.pid, started)
        process.wait()


class _Outcome:
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


def _attend(
    process: "subprocess.Popen[bytes]",
    stdin: bytes | Iterable[bytes] | None,
    deadline: float,
    on_output: Callable[[Stream, bytes], None] | None,
    cancelled: Callable[[], bool] | None,
    keep_bytes: int,
) -> _Outcome:
    """Feed and drain `process` until it has ended and said everything, `deadline` passes, or `cancelled()`."""
    outcome = _Outcome(keep_bytes)
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


def _refuse_unenforceable(spec: SandboxSpec, able: Capabilities) -> None:
    """Raises SandboxRefused for the first thing in `spec` that local sandboxes cannot promise."""
    if spec.network not in able.network:
        raise SandboxRefused(
            "without isolation the network cannot be closed: set SANDBOX_NETWORK=open to say it is open"
        )
    if spec.cpu is not None or spec.memory_mb is not None:
        raise SandboxRefused("local sandboxes cannot limit CPU cores or memory")
    for folder in spec.readable:
        if not Path(folder).is_dir():
            raise SandboxRefused(f"SANDBOX_READABLE names {folder}, and there is no such folder")
    for inside, host in spec.sockets.items():
        if Path(inside).name != Path(host).name:
            raise SandboxRefused(f"a socket keeps its file name: {host} cannot be {inside}")
        if len(os.fsencode(host)) > _MAX_SOCKET_PATH:
            raise SandboxRefused(
                f"{host} is too long for a unix socket ({_MAX_SOCKET_PATH} bytes); set a shorter TMPDIR"
            )


@contextlib.contextmanager
def _parent_of(root: Path, path: str, *, create: bool) -> Iterator[tuple[int, str]]:
    """An open directory and a name in it. No component may be a link: an agent made them, the host would follow them."""
    parts = [p for p in path.split("/") if p not in ("", ".")]
    if not path.startswith("/") or not parts or ".." in parts:
        raise SandboxError(f"{path[:200]!r} is not an absolute path of a sandbox")
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    here = os.open(root, flags)
    try:
        for part in parts[:-1]:
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=here)
            following = os.open(part, flags, dir_fd=here)
            os.close(here)
            here = following
        yield here, parts[-1]
    finally:
        os.close(here)


def _must_be_file(file: IO[bytes], path: str) -> None:
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", path)


def _remove(directory: Path) -> None:
    """Delete what an agent left, however deep or locked. `rm`, because Python's rmtree ends at its recursion limit."""
    if not directory.exists():
        return
    subprocess.run(["rm", "-rf", "--", directory], stderr=subprocess.DEVNULL, check=False)
    if directory.exists():
        subprocess.run(["chmod", "-R", "u+rwX", "--", directory], stderr=subprocess.DEVNULL, check=False)
        shutil.rmtree(directory, ignore_errors=True)
