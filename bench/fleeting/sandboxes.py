"""The provider `fleet`, which stands for remote sandboxes: everything they are asked goes over a socket to one host.

Run processes find it by its entry point, as they would find anybody's: see `installed_as_a_package`.
"""

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fleeting import wire
from longshot_dagster.core.errors import Cancelled, FileMissing, SandboxError, SandboxGone, TooLarge
from longshot_dagster.core.sandbox import Capabilities, ExecResult, Sandbox, SandboxInfo, SandboxSpec, Stream

_BUFFER = 1 << 16
_LOOK_S = 0.5  # between two looks at whether the run was cancelled: it is to be heard within a second


def make_provider(settings: object, folder: Path) -> "FleetProvider":
    return FleetProvider(os.environ[wire.VARIABLE])


def installed_as_a_package(folder: Path) -> str:
    """PYTHONPATH with which a process finds the provider: a package of one file of metadata, made in `folder`."""
    metadata = folder / "longshot_fleet-1.dist-info"
    metadata.mkdir(parents=True)
    metadata.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: longshot-fleet\nVersion: 1\n", "utf-8")
    points = "[longshot_dagster.sandboxes]\nfleet = fleeting.sandboxes:make_provider\n"
    metadata.joinpath("entry_points.txt").write_text(points, "utf-8")
    bench, given = str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")
    return os.pathsep.join(filter(None, (str(folder), bench, given)))


class FleetProvider:
    name = "fleet"
    capabilities = Capabilities(
        isolation="vm",
        network=frozenset({"none", "open"}),
        enforces_cpu=True,
        enforces_memory=True,
        survives_client=False,
        sockets=True,
    )

    def __init__(self, host: str) -> None:
        self._host = host

    def create(self, spec: SandboxSpec) -> Sandbox:
        line = _Line(self._host)  # closed when the sandbox is ended
        asked = {"op": "create", "name": spec.name, "tags": dict(spec.tags), "sockets": dict(spec.sockets)}
        return FleetSandbox(line.ask(asked)[0]["id"], line)

    def attach(self, sandbox_id: str) -> Sandbox:
        line = _Line(self._host)
        try:
            line.ask({"op": "attach", "id": sandbox_id})
        except SandboxGone:
            line.close()
            raise
        return FleetSandbox(sandbox_id, line)

    def list(self, tags: Mapping[str, str]) -> list[SandboxInfo]:
        with contextlib.closing(_Line(self._host)) as line:
            found = line.ask({"op": "list", "tags": dict(tags)})[0]["sandboxes"]
        return [SandboxInfo(f["id"], f["tags"], f["created_at"]) for f in found]

    def at_work(self) -> int:
        """Sandboxes in which a command runs."""
        with contextlib.closing(_Line(self._host)) as line:
            return int(line.ask({"op": "list", "tags": {}})[0]["at_work"])


class FleetSandbox:
    def __init__(self, sandbox_id: str, line: "_Line") -> None:
        self.id = sandbox_id
        self._line = line

    def exec(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
        on_output: Callable[[Stream, bytes], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        keep_bytes: int = 1 << 20,
    ) -> ExecResult:
        began, stopped = time.monotonic(), ""
        said: dict[str, bytes] = {"stdout": b"", "stderr": b""}
        self._line.send({"op": "exec", "argv": list(argv)})
        while True:
            while not stopped and not self._line.waiting(_LOOK_S):
                stopped = "cancelled" if cancelled and cancelled() else stopped
                stopped = stopped or ("timeout" if time.monotonic() - began > timeout_s else "")
                if stopped:
                    self._line.send({"op": "kill"})
            header, data = self._line.hear()
            if "stream" in header:
                said[header["stream"]] = (said[header["stream"]] + data)[-keep_bytes:]
                if on_output is not None:
                    on_output(header["stream"], data)
                continue
            if stopped:
                self._line.hear()  # the answer to `kill`
            if stopped == "cancelled":
                raise Cancelled("cancelled while a command ran in its sandbox")
            took = time.monotonic() - began
            code = 124 if stopped else int(header["exit"])
            return ExecResult(code, said["stdout"], said["stderr"], bool(stopped), False, took)

    def write(self, path: str, data: bytes) -> None:
        self._line.ask({"op": "write", "path": path}, data)

    def read(self, path: str, *, max_bytes: int) -> bytes:
        header, data = self._line.ask({"op": "read", "path": path, "max_bytes": max_bytes})
        if header.get("missing"):
            raise FileMissing(f"no {path} in sandbox {self.id}")
        if header.get("too_large"):
            raise TooLarge(f"{path} in sandbox {self.id} is larger than {max_bytes:,} bytes")
        return data

    def end_commands(self) -> None:
        self._line.ask({"op": "kill"})

    def terminate(self) -> None:
        with contextlib.suppress(SandboxError):
            self._line.ask({"op": "terminate", "id": self.id})
        self._line.close()


class _Line:
    """One connection to the host, used by one thread at a time."""

    def __init__(self, host: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._connect(host)
        except OSError as e:
            self._socket.close()
            raise SandboxError(f"the fleet's host does not answer: {e.strerror or e}") from e
        self._heard = self._socket.makefile("rb", buffering=_BUFFER)
        self._read_ahead = True  # may there be something that the socket does not tell of any more?
        self._poll = select.poll()  # not select(): it knows no descriptor above 1,023
        self._poll.register(self._socket, select.POLLIN)

    def _connect(self, host: str) -> None:
        for attempt in range(20):
            try:
                self._socket.connect(host)
                return
            except BlockingIOError:
                time.sleep(0.02 * (attempt + 1))
        raise OSError("it is too busy")

    def ask(self, header: dict[str, Any], data: bytes = b"") -> tuple[dict[str, Any], bytes]:
        self.send(header, data)
        return self.hear()

    def send(self, header: dict[str, Any], data: bytes = b"") -> None:
        try:
            self._socket.sendall(wire.message(header, data))
        except OSError as e:
            raise SandboxError(f"the fleet's host has gone: {e.strerror or e}") from e

    def hear(self) -> tuple[dict[str, Any], bytes]:
        try:
            self._read_ahead = True
            header, data = wire.receive(self._heard)
        except (OSError, EOFError) as e:
            raise SandboxError("the fleet's host has gone") from e
        if "gone" in header:
            raise SandboxGone(header["gone"])
        return header, data

    def waiting(self, seconds: float) -> bool:
        """Has the host something to say? What has been read ahead is looked at without asking the socket."""
        if self._read_ahead:
            self._socket.setblocking(False)
            try:
                if self._heard.peek(1):
                    return True
            except OSError:
                pass
            finally:
                self._socket.setblocking(True)
            self._read_ahead = False
        return bool(self._poll.poll(seconds * 1000))

    def close(self) -> None:
        self._heard.close()
        self._socket.close()
