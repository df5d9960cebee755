"""Sandboxes of E2B, through its own SDK (2.63).

A sandbox lives on the service and outlives its client. CPU and memory are those of its template, so no limit can be asked
for; the network is open or closed, and a list of hosts is refused, because what the service does about other addresses could
not be tried.

    template    SANDBOX_IMAGE, a template that has python3 and git; `e2b:...` is a snapshot. Empty: Longshot's (DEFAULT_TEMPLATE)
    name        kept by us: of two that were made at once, the older one stays
    output      the SDK reads every output as UTF-8, so commands speak base64 (inside.py)
    metadata    the tags; `by` which installation, `workdir`

Whoever is `user` in E2B's own templates may become root there: `end_commands` ends what was started through us, and what a
root of the sandbox has hidden ends with the sandbox.
"""

import contextlib
import importlib
import importlib.util
import os
import queue
import re
import shlex
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from longshot_dagster.adapters.host.pacing import Pace
from longshot_dagster.adapters.sandboxes import inside, remote_commands
from longshot_dagster.adapters.sandboxes.heard import Heard
from longshot_dagster.adapters.sandboxes.own_mark import own_mark
from longshot_dagster.core import contract
from longshot_dagster.core.clock import Clock, SystemClock
from longshot_dagster.core.display import one_line
from longshot_dagster.core.errors import Cancelled, FileMissing, SandboxError, SandboxGone, SandboxRefused, TooLarge
from longshot_dagster.core.sandbox import WORKDIR, Capabilities, ExecResult, SandboxInfo, SandboxSpec, Stream
from longshot_dagster.core.settings import Settings

DEFAULT_TEMPLATE = "longshot-worker"
MISSING = "E2B's SDK is not installed beside Longshot: pip install e2b, or pipx inject longshot-dagster e2b"
_PREFIX = "e2b:"
_DAY_S = 86_400
_POLL_S = 0.2
_FRAME = 1 << 18  # of input in one request
_BEHIND = 64  # pieces of output that wait for whoever hears them
_FILE_S = 300.0
_FEW = 1 << 16


class E2BProvider:
    """Sandboxes of the account that E2B_API_KEY names. `folder` keeps what this installation remembers of it."""

    name = "e2b"
    capabilities = Capabilities(
        isolation="vm",
        network=frozenset({"none", "open"}),
        enforces_cpu=False,
        enforces_memory=False,
        survives_client=True,
        snapshots=True,
        max_lifetime_s=_DAY_S,
    )

    def __init__(self, settings: Settings, folder: Path, clock: Clock | None = None) -> None:
        """Raises SandboxRefused, in one line, without the SDK or a key."""
        if importlib.util.find_spec("e2b") is None:
            raise SandboxRefused(MISSING)
        if not os.environ.get("E2B_API_KEY"):
            raise SandboxRefused("SANDBOX_PROVIDER=e2b needs E2B_API_KEY; set it, or use SANDBOX_PROVIDER=local")
        self._template = settings.sandbox_image or DEFAULT_TEMPLATE
        self._folder = folder / "e2b"
        self._pace = Pace(settings.sandbox_creates_per_second, clock or SystemClock())

    def create(self, spec: SandboxSpec) -> "E2BSandbox":
        self._check(spec)
        if self._named(spec.name):
            raise SandboxRefused(f"there is a sandbox named {one_line(spec.name, 80)} already")
        self._pace.wait()
        metadata = {**spec.tags, "name": spec.name, "by": own_mark(self._folder), "workdir": spec.workdir}
        with speaking("make a sandbox"):
            made = _sdk().Sandbox.create(
                template=spec.image.removeprefix(_PREFIX) or self._template,
                timeout=spec.lifetime_s,
                metadata=metadata,
                envs=dict(spec.env),
                allow_internet_access=spec.network == "open",
            )
        sandbox = E2BSandbox(made, spec.workdir)
        try:
            self._furnish(sandbox, spec)
            if min(self._named(spec.name))[1] != sandbox.id:
                raise SandboxRefused(f"there is a sandbox named {one_line(spec.name, 80)} already")
        except BaseException:
            sandbox.terminate()
            raise
        return sandbox

    def list(self, tags: Mapping[str, str]) -> list[SandboxInfo]:
        # A build's name is its own; anything else may be another installation's.
        wanted = dict(tags) if "build" in tags else {**tags, "by": own_mark(self._folder)}
        return [info for info in self._listed(wanted) if wanted.items() <= info.tags.items()]

    def attach(self, sandbox_id: str) -> "E2BSandbox":
        if not re.fullmatch(r"[0-9A-Za-z-]{1,80}", sandbox_id):
            raise SandboxGone(f"{sandbox_id[:80]!r} is no sandbox of E2B")
        with speaking("attach to a sandbox"):
            found = _sdk().Sandbox.get_info(sandbox_id)
            workdir = (found.metadata or {}).get("workdir")
            if workdir is None:
                raise SandboxGone(f"{sandbox_id} is no sandbox of ours")
            return E2BSandbox(_sdk().Sandbox.connect(sandbox_id, timeout=1), workdir)  # never longer than it has

    def remove_snapshot(self, image: str) -> None:
        """Idempotent."""
        with contextlib.suppress(SandboxGone), speaking("remove a snapshot"):
            _sdk().Sandbox.delete_snapshot(image.removeprefix(_PREFIX))

    def _check(self, spec: SandboxSpec) -> None:
        """Raises SandboxRefused for the first thing that cannot be kept."""
        able = self.capabilities
        refused = {
            "limit a network to some hosts": spec.network not in able.network,
            "give a GPU": bool(spec.gpu),
            "show secrets by name": bool(spec.secrets),
            "limit CPU cores or memory: their template does": spec.cpu is not None or spec.memory_mb is not None,
            "end when they are idle": spec.idle_s is not None,
            "reach sockets of this host": bool(spec.sockets),
            "show folders of this host": bool(spec.layers or spec.readable),
            "live longer than a day": not 0 < spec.lifetime_s <= _DAY_S,
        }
        for what, wanted in refused.items():
            if wanted:
                raise SandboxRefused(f"e2b sandboxes cannot {what}")

    def _named(self, name: str) -> Sequence[tuple[float, str]]:
        """(when it was made, id) of those alive that have this name."""
        wanted = {"name": name, "by": own_mark(self._folder)}
        return [(i.created_at, i.id) for i in self._listed(wanted) if wanted.items() <= i.tags.items()]

    def _listed(self, wanted: Mapping[str, str]) -> Sequence[SandboxInfo]:
        sdk, found = _sdk(), []
        with speaking("list the sandboxes"):
            query = sdk.SandboxQuery(metadata=dict(wanted), state=[sdk.SandboxState.RUNNING])
            pages = sdk.Sandbox.list(query=query)
            while pages.has_next:
                found += pages.next_items()
        return [SandboxInfo(i.sandbox_id, dict(i.metadata or {}), i.started_at.timestamp()) for i in found]

    def _furnish(self, sandbox: "E2BSandbox", spec: SandboxSpec) -> None:
        """The folders that commands expect. Raises SandboxRefused for a template that cannot run them."""
        folders = " ".join(
            map(shlex.quote, dict.fromkeys([spec.workdir, WORKDIR, contract.DIRECTORY, contract.OUT, inside.HOME]))
        )
        with speaking("furnish a sandbox"):
            try:
                sandbox.there.commands.run(
                    f'mkdir -p {folders} && chown "$(stat -c %u:%g ~user 2>/dev/null || id -u)" {folders} && command -v python3',
                    user="root",
                    timeout=60,
                )
            except _sdk().CommandExitException as e:
                raise SandboxRefused(
                    f"this template cannot be used; it needs python3: {one_line(e.stderr, 200)}"
                ) from e


class E2BSandbox:
    """One sandbox; any number of threads may use it at once."""

    def __init__(self, there: Any, workdir: str) -> None:
        self.id: str = there.sandbox_id
        self.there = there
        self._workdir = workdir
        self._over = False

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
        self._alive()
        began, mark, heard = time.monotonic(), uuid.uuid4().hex, Heard(keep_bytes, on_output)
        with speaking("start a command"):
            command = _Command(self.there, inside.run(mark, as_text=True))
        ended: str | int = "trouble"
        try:
            command.pour(inside.fed(argv, cwd or self._workdir, env or {}, stdin, _FRAME))
            ended = command.attend(heard, began + timeout_s, cancelled)
        except (SandboxError, ValueError) as e:
            self._alive()
            raise e if isinstance(e, SandboxError) else SandboxError(f"a command talks nonsense: {e}") from e
        finally:
            command.close()
            if not isinstance(ended, int):
                with contextlib.suppress(SandboxError):
                    self._quietly(inside.end(mark))
        if ended == "cancelled":
            raise Cancelled("cancelled while a command ran in its sandbox")
        if ended == "timeout":
            self._alive()
            return heard.result(124, time.monotonic() - began, timed_out=True)
        assert isinstance(ended, int)
        if ended < 0 or ended == 137:
            self._alive()
        return heard.result(ended if ended >= 0 else 137, time.monotonic() - began)

    def write(self, path: str, data: bytes) -> None:
        ran = self.exec(
            remote_commands.writing(_checked(path)), timeout_s=_FILE_S, cwd="/", stdin=data, keep_bytes=_FEW
        )
        if ran.exit_code:
            raise SandboxError(f"cannot write {path}: {one_line(ran.stderr.decode(errors='replace'), 200)}")

    def read(self, path: str, *, max_bytes: int = 32 << 20) -> bytes:
        program = remote_commands.reading(_checked(path), max_bytes)
        ran = self.exec(program, timeout_s=_FILE_S, cwd="/", keep_bytes=max_bytes + 1)
        if ran.exit_code == remote_commands.MISSING:
            raise FileMissing(f"cannot read {path}: {one_line(ran.stderr.decode(errors='replace'), 200)}")
        if ran.exit_code == remote_commands.TOO_LARGE or len(ran.stdout) > max_bytes:
            raise TooLarge(f"{path} is larger than {max_bytes:,} bytes")
        if ran.exit_code:
            raise SandboxError(f"cannot read {path}: {one_line(ran.stderr.decode(errors='replace'), 200)}")
        return ran.stdout

    def snapshot(self) -> str:
        self._alive()
        with speaking("snapshot a sandbox"):
            return f"{_PREFIX}{self.there.create_snapshot(mode='filesystem').snapshot_id}"

    def cost(self) -> Decimal | None:
        return None

    def end_commands(self) -> None:
        self._alive()
        self._quietly(inside.end())

    def terminate(self) -> None:
        self._over = True
        with contextlib.suppress(SandboxGone), speaking("end a sandbox"):
            self.there.kill()

    def _alive(self) -> None:
        """Raises SandboxGone."""
        with speaking("reach a sandbox"):
            if self._over or not self.there.is_running():
                raise SandboxGone(f"sandbox {self.id} is over")

    def _quietly(self, argv: Sequence[str]) -> None:
        with speaking("run a command"), contextlib.suppress(_sdk().CommandExitException):
            self.there.commands.run(f"exec {shlex.join(argv)}", timeout=60)


class _Command:
    """A running command: a thread hears it, another one feeds it."""

    def __init__(self, there: Any, argv: Sequence[str]) -> None:
        self._there = there
        self._said: queue.Queue[str | int | Exception] = queue.Queue(_BEHIND)
        self._closed = threading.Event()
        self._handle = there.commands.run(
            f"exec {shlex.join(argv)}", background=True, stdin=True, timeout=0, cwd="/", retain_output=False
        )
        threading.Thread(target=self._hear, daemon=True).start()

    def pour(self, pieces: Iterator[bytes]) -> None:
        threading.Thread(target=self._pour, args=(pieces,), daemon=True).start()

    def attend(self, heard: Heard, deadline: float, cancelled: Callable[[], bool] | None) -> str | int:
        """Its exit code, `timeout` or `cancelled`. Raises SandboxError, and ValueError for nonsense."""
        lines = inside.Lines()
        while True:
            if cancelled is not None and cancelled():
                return "cancelled"
            left = deadline - time.monotonic()
            if left <= 0:
                return "timeout"
            with contextlib.suppress(queue.Empty):
                said = self._said.get(timeout=min(_POLL_S, left))
                if isinstance(said, int):
                    return said
                if isinstance(said, Exception):
                    with speaking("hear a command"):
                        raise said
                for stream, data in lines.add(said):
                    heard.add("stdout" if stream == "1" else "stderr", data)

    def close(self) -> None:
        self._closed.set()

    def _hear(self) -> None:
        try:
            ended: int | Exception = self._handle.wait(on_stdout=self._tell).exit_code
        except _sdk().CommandExitException as e:
            ended = int(e.exit_code)
        except Exception as e:  # whatever the SDK raises: it is judged by whoever waits
            ended = e
        self._tell(ended)

    def _tell(self, said: str | int | Exception) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._said.put(said, timeout=_POLL_S)
                return

    def _pour(self, pieces: Iterator[bytes]) -> None:
        try:
            for piece in pieces:
                if self._closed.is_set():
                    return
                self._there.commands.send_stdin(self._handle.pid, piece)
        except Exception:  # it has ended, or the service has: whoever hears it learns why
            return


def _sdk() -> Any:
    """It need not be there."""
    return importlib.import_module("e2b")


@contextlib.contextmanager
def speaking(what: str) -> Iterator[None]:
    """Trouble with the service as ours. Raises SandboxGone, SandboxRefused, SandboxError."""
    sdk, httpx = _sdk(), importlib.import_module("httpx")
    try:
        yield
    except (sdk.SandboxNotFoundException, sdk.SandboxNotRunningException) as e:
        raise SandboxGone(f"E2B cannot {what}: {one_line(e, 200)}") from e
    except (sdk.AuthenticationException, sdk.InvalidArgumentException, sdk.TemplateException) as e:
        raise SandboxRefused(f"E2B cannot {what}: {one_line(e, 300)}") from e
    except sdk.CommandExitException:
        raise
    except (sdk.SandboxException, sdk.ServiceBusyException, httpx.HTTPError, OSError) as e:
        missing = isinstance(e, sdk.NotFoundException) or str(e).startswith("404")
        raise (SandboxRefused if missing else SandboxError)(f"E2B cannot {what}: {one_line(e, 300)}") from e


def _checked(path: str) -> str:
    """Raises SandboxError."""
    parts = [p for p in path.split("/") if p not in ("", ".")]
    if not path.startswith("/") or not parts or ".." in parts or "\0" in path:
        raise SandboxError(f"{path[:200]!r} is not an absolute path of a sandbox")
    return "/" + "/".join(parts)
