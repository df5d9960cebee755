"""A Modal of this machine, for rehearsals: the unmodified `modal` SDK makes sandboxes that are local processes.

    with loopback_modal(folder) as env:        os.environ | env: any process with it uses this server, until the end
    with LoopbackModal(folder) as modal:       the same, with the server at hand: modal.environment(), modal.record

It speaks the SDK's own protocol (control plane and task command router on one port of 127.0.0.1), and its sandboxes are
those of the local provider: confined by bubblewrap, with the host's /usr for an image. All commands of a sandbox are
processes of one container: they see and can signal each other, background processes live on, all end with the sandbox.
Whoever has not the tokens of `environment()` is turned away. Sandboxes end with the server, however it ends.

What it is not:
    images        layers are accepted and never run; named images are those published to this server; ENV and WORKDIR of an
                  image are not applied
    network       none; open is the host's, loopback services included; an allow-list by name as the local provider
                  keeps it, none by address; no tunnels, no change while a sandbox runs
    limits        CPU and memory as far as the local provider keeps them; idle and life time are kept
    snapshots     of files, complete; they do not expire before the server ends; none of memory
    time-outs     a command that runs out of time is killed with its session and what descends from it; processes that
                  have left both live on, as they may on Modal
    output        a command that is 32 MiB ahead of its reader waits for it, as at a full pipe
    not there     GPUs, sidecars, terminals, volumes, proxies, connect tokens, readiness probes, persistent sandboxes, the
                  first generation's calls; a call that is not known is refused and noted in `record.missing`
    cost          0
Real Modal was not at hand when this was written: what it does was read from its SDK, 1.6.4.
"""

import asyncio
import contextlib
import fcntl
import hmac
import secrets
import socket
import threading
import weakref
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from grpclib.protocol import H2Protocol
from grpclib.server import Server
from modal._utils.grpc_utils import custom_detail_codec
from modal_proto import api_grpc, task_command_router_grpc

from longshot_dagster.adapters.sandboxes.local_snapshots import remove_tree
from longshot_dagster.adapters.sandboxes.sandbox_local import LocalProvider
from longshot_dagster.core.errors import LongshotError, WrongUse
from longshot_dagster.core.settings import Isolation
from longshot_dagster.testing.loopback_modal.calls import Record, servable
from longshot_dagster.testing.loopback_modal.control import Control
from longshot_dagster.testing.loopback_modal.images import Images
from longshot_dagster.testing.loopback_modal.router import Router
from longshot_dagster.testing.loopback_modal.sandboxes import Sandboxes

if TYPE_CHECKING:
    from grpclib._typing import IServable

_START_S = 60.0
_END_S = 30.0
_BACKLOG = 1024
_THREADS = 32  # for making and removing sandboxes


class LoopbackModal:
    """Serves between `start` and `stop`, in a thread of this process; its sandboxes lie in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.record = Record()
        self.url = ""
        self._folder = folder
        self._token_id, self._token_secret = f"ak-{secrets.token_hex(8)}", f"as-{secrets.token_hex(16)}"
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._sandboxes: Sandboxes | None = None
        self._thread = threading.Thread(target=self._run, name="loopback modal", daemon=True)

    def environment(self) -> dict[str, str]:
        """With what a process must be started, or be given before it imports modal, to use this server and no other."""
        return {
            "MODAL_SERVER_URL": self.url,
            "MODAL_TOKEN_ID": self._token_id,
            "MODAL_TOKEN_SECRET": self._token_secret,
            "MODAL_CONFIG_PATH": str(self._folder / "no-modal.toml"),  # a person's own has no say
        }

    def start(self) -> None:
        """Raises SandboxRefused when this host cannot isolate, WrongUse when another one is at work in the folder, OSError."""
        self._thread.start()
        self._ready.wait(_START_S)
        if self._failure is not None:
            self._thread.join()
            raise self._failure
        if not self.url:
            raise LongshotError(f"the loopback Modal server did not start within {_START_S:.0f} s")

    def stop(self) -> None:
        """All its sandboxes end with it."""
        if self._loop is not None and self._stop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended already
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_END_S)

    def seen(self) -> dict[str, Any]:
        """`made` sandboxes, `most_at_once`, those `left` at the end; how many `calls`, which were `missing` or `broken`."""
        boxes = self._sandboxes
        return {
            "made": boxes.made if boxes else 0,
            "most_at_once": boxes.most_at_once if boxes else 0,
            "left": boxes.left if boxes else 0,
            "calls": sum(self.record.called.values()),
            "missing": sorted(set(self.record.missing)),
            "broken": self.record.broken[:20],
        }

    def held_bytes(self) -> int:
        """What commands have said and is kept for their readers."""
        return self._sandboxes.held_bytes() if self._sandboxes else 0

    def __enter__(self) -> "LoopbackModal":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as e:
            self._failure = e
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "server.lock").open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as e:
                raise WrongUse(f"another loopback Modal server is at work in {self._folder}") from e
            await self._serve_alone()

    async def _serve_alone(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._loop.set_default_executor(ThreadPoolExecutor(_THREADS, thread_name_prefix="loopback modal"))
        boxes = self._folder / "sandboxes"
        remove_tree(boxes)
        provider = LocalProvider(boxes, Isolation.AUTO)
        _ = provider.capabilities  # this host can isolate, or we say so now
        images = Images(self._folder / "snapshots", provider)
        self._sandboxes = sandboxes = Sandboxes(provider)
        control = Control(sandboxes, images)
        router = Router(control, sandboxes, images)
        server = _Server(
            [
                servable(api_grpc.ModalClientBase, control, self.record, self._is_client),
                servable(
                    task_command_router_grpc.TaskCommandRouterBase,
                    router,
                    self.record,
                    lambda metadata: _same(_signature(metadata), control.token),
                ),
            ]
        )
        listening = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
        self.url = control.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        await server.start(sock=listening)
        self._ready.set()
        try:
            await self._stop.wait()
        finally:
            await sandboxes.end_all()
            await server.end()
            remove_tree(boxes)
            remove_tree(self._folder / "snapshots")

    def _is_client(self, metadata: Mapping[str, Any]) -> bool:
        given = str(metadata.get("x-modal-token-id", "")), str(metadata.get("x-modal-token-secret", ""))
        return _same("".join(given), self._token_id + self._token_secret)


class _Server(Server):
    """One that hangs up on its clients: asyncio waits for them otherwise, and a channel of the SDK stays open for long."""

    def __init__(self, services: "Collection[IServable]") -> None:
        super().__init__(services, status_details_codec=custom_detail_codec)
        self._lines: weakref.WeakSet[H2Protocol] = weakref.WeakSet()

    def _protocol_factory(self) -> H2Protocol:
        line = super()._protocol_factory()
        self._lines.add(line)
        return line

    async def end(self) -> None:
        self.close()
        for line in list(self._lines):
            if transport := getattr(getattr(line, "connection", None), "_transport", None):
                transport.abort()
        await self.wait_closed()


@contextlib.contextmanager
def loopback_modal(folder: Path) -> Iterator[dict[str, str]]:
    """The environment of a server in `folder`, as long as the block lasts.

    Raises WrongUse at its end when the rehearsal was none (`Record.check`).
    """
    with LoopbackModal(folder) as server:
        yield server.environment()
    server.record.check()


def _signature(metadata: Mapping[str, Any]) -> str:
    return str(metadata.get("authorization", "")).rpartition(".")[2]


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())
