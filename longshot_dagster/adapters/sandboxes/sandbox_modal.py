"""Sandboxes of Modal, through its own SDK (1.6).

A sandbox lives on the service and outlives its client: another process, on any host, lists it by its tags and attaches to
it, and a command in it runs on. It is reached by commands alone: files go in and out by small programs in argv
(remote_commands.py), because the SDK's own file calls follow links and do not end on a pipe or a device.

    cpu, memory     requested is a quarter (at least 0.125 cores, 128 MB), the limit is the specification's
    image           `modal:im-...` or `im-...` by id, anything else a published name; empty: Longshot's (modal_image.py)
    network         none blocks everything, DNS too; allowlist is the service's own (HTTPS, judged by server name)
    name            other characters than the service takes are replaced, and what is too long ends in a hash
    tags            beside those of the specification there are `name` and `made` (when). An empty value is left out, and so
                    matches nothing in `list`, which asks for every installation that uses the account

A GPU makes the SDK take its older backend; that way has not been tried.
"""

import contextlib
import hashlib
import math
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshot_dagster.adapters.host.pacing import Pace
from longshot_dagster.adapters.sandboxes import remote_commands
from longshot_dagster.adapters.sandboxes.modal_command import Heard, ModalCommand
from longshot_dagster.adapters.sandboxes.modal_image import longshot_image
from longshot_dagster.adapters.sandboxes.modal_sdk import check_credentials, client, sdk, speaking
from longshot_dagster.core.clock import Clock, SystemClock
from longshot_dagster.core.display import one_line
from longshot_dagster.core.errors import Cancelled, FileMissing, SandboxError, SandboxGone, SandboxRefused, TooLarge
from longshot_dagster.core.harnesses import HARNESSES
from longshot_dagster.core.image import DEFAULT_HARNESSES, recipe
from longshot_dagster.core.sandbox import Capabilities, ExecResult, SandboxInfo, SandboxSpec, Stream
from longshot_dagster.core.settings import Settings

if TYPE_CHECKING:
    import modal

APP = "longshot"
_PREFIX = "modal:"
_DAY_S = 86_400
_MAX_NAME = 63
_MIN_CPU = 0.125
_MIN_MEMORY_MB = 128
_MAX_ARGV = 60_000  # characters; the SDK refuses more than 65,536, and the wrapper takes some
_LOOK_S = 0.3
_BACKSTOP_S = 20  # after a command's own time: the service ends it if its wrapper did not
_FILE_S = 300.0
_FEW = 1 << 16  # bytes of what our own programs say
_ENDING_S = 30.0
_DRAIN_S = 15.0
_GOING_S = 60.0  # a name is in use for a while after its sandbox was ended
_SNAPSHOT_S = 600
_SNAPSHOT_KEPT_S = 7 * _DAY_S
_TRIES = 3
_LISTED_AT_ONCE = 16


class ModalProvider:
    """Sandboxes of the Modal account that the environment names. `folder` keeps what this installation remembers of it."""

    name = "modal"
    capabilities = Capabilities(
        isolation="container",
        network=frozenset({"none", "allowlist", "open"}),
        enforces_cpu=True,
        enforces_memory=True,
        survives_client=True,
        enforces_idle=True,
        live_stdin=True,
        snapshots=True,
        gpus=True,
        cost=True,
        max_lifetime_s=_DAY_S,
    )

    def __init__(self, settings: Settings, folder: Path, clock: Clock | None = None) -> None:
        """Raises SandboxRefused, in one line, when there is no token."""
        check_credentials(os.environ)
        self._folder = folder
        self._image = settings.sandbox_image
        chosen = [settings.harness] if settings.harness in HARNESSES else []
        others = [name for name in DEFAULT_HARNESSES if name not in chosen]
        self._recipe = recipe([*others, *chosen], settings.harness_package)
        self._clock = clock or SystemClock()
        self._pace = Pace(settings.sandbox_creates_per_second, self._clock)
        self._lock = threading.Lock()
        self._app: modal.App | None = None
        self._ended: dict[str, float] = {}  # id or name of a sandbox -> when this process ended it

    def create(self, spec: SandboxSpec) -> "ModalSandbox":
        self._check(spec)
        name = sandbox_name(spec.name)
        tags = {key: value for key, value in spec.tags.items() if value}
        tags |= {"name": name, "made": f"{self._clock.now():.3f}"}
        mb = spec.memory_mb
        with speaking("be reached"):
            options: dict[str, Any] = {
                "app": self._application(),
                "client": client(),
                "name": name,
                "tags": tags,
                "env": {**spec.env, remote_commands.WORKDIR: spec.workdir},
                "timeout": spec.lifetime_s,
                "idle_timeout": spec.idle_s,
                "cpu": None if spec.cpu is None else (min(spec.cpu, max(_MIN_CPU, spec.cpu / 4)), spec.cpu),
                "memory": None if mb is None else (min(mb, max(_MIN_MEMORY_MB, mb // 4)), mb),
                "gpu": spec.gpu or None,
                "secrets": [sdk().Secret.from_name(secret, client=client()) for secret in spec.secrets],
                **_network(spec),
            }
        return ModalSandbox(self._created(name, options, spec.image), self, name)

    def list(self, tags: Mapping[str, str]) -> list[SandboxInfo]:
        wanted = {key: value for key, value in tags.items() if value}
        with speaking("list its sandboxes"):
            listed = sdk().Sandbox.list(app_id=self._application().app_id, tags=wanted, client=client())
            found = [s for s in listed if s.returncode is None and s.object_id not in self._ended]
        if not found:
            return []
        with ThreadPoolExecutor(min(_LISTED_AT_ONCE, len(found))) as asking:
            return [info for info in asking.map(_info, found) if info is not None]

    def attach(self, sandbox_id: str) -> "ModalSandbox":
        if not re.fullmatch(r"sb-[0-9A-Za-z]{1,60}", sandbox_id) or sandbox_id in self._ended:
            raise SandboxGone(f"{sandbox_id[:80]!r} is no sandbox of Modal that lives")
        with speaking("attach to a sandbox"):
            found = sdk().Sandbox.from_id(sandbox_id, client=client())
            if found.returncode is not None or found.poll() is not None:
                raise SandboxGone(f"sandbox {sandbox_id} is over")
        return ModalSandbox(found, self)

    # --- for its sandboxes -------------------------------------------------------------------------------------------

    @property
    def clock(self) -> Clock:
        return self._clock

    def note_ended(self, *names: str) -> None:
        now = self._clock.monotonic()
        with self._lock:
            self._ended |= dict.fromkeys(names, now)

    def has_ended(self, sandbox_id: str) -> bool:
        return sandbox_id in self._ended

    # --- making ------------------------------------------------------------------------------------------------------

    def _check(self, spec: SandboxSpec) -> None:
        if spec.sockets or spec.layers or spec.readable:
            raise SandboxRefused("Modal's sandboxes run elsewhere: nothing of this host can be shown in them")
        if not 1 <= spec.lifetime_s <= _DAY_S:
            raise SandboxRefused(f"Modal's sandboxes live for at most 24 hours, not {spec.lifetime_s} s")
        if spec.network == "allowlist" and not spec.hosts:
            raise SandboxRefused("an allowlist without hosts is the network `none`; say so")

    def _created(self, name: str, options: Mapping[str, Any], image: str) -> "modal.Sandbox":
        """Waits for the end of one of that name that this process has ended. Raises SandboxRefused, SandboxError."""
        import modal.exception as raised

        stale = False
        while True:
            self._pace.wait()
            try:
                with speaking("make a sandbox"):
                    made: modal.Sandbox = sdk().Sandbox.create(**options, image=self._image_of(image, anew=stale))
                    return made
            except SandboxGone as e:  # not the sandbox: what it is to be made of
                if stale or image or self._image:
                    raise SandboxRefused(f"{e}; is there such an image, and every secret?") from e
                stale = True
            except SandboxRefused as e:
                ended = self._ended.get(name)
                taken = isinstance(e.__cause__, raised.AlreadyExistsError)
                if not taken or ended is None or self._clock.monotonic() - ended > _GOING_S:
                    raise
                self._clock.sleep(1.0)

    def _image_of(self, image: str, *, anew: bool) -> "modal.Image":
        name = (image or self._image).removeprefix(_PREFIX)
        if name:
            by_id = re.fullmatch(r"im-[0-9A-Za-z]+", name) is not None
            named: modal.Image = (sdk().Image.from_id if by_id else sdk().Image.from_name)(name, client=client())
            return named
        return longshot_image(self._application(), self._folder / "modal", self._recipe, anew=anew)

    def _application(self) -> "modal.App":
        with self._lock:
            if self._app is None:
                self._app = sdk().App.lookup(APP, create_if_missing=True, client=client())
            return self._app


class ModalSandbox:
    """One sandbox; any number of threads may use it at once."""

    def __init__(self, there: "modal.Sandbox", provider: ModalProvider, name: str = "") -> None:
        self.id: str = there.object_id
        self._there = there
        self._provider = provider
        self._name = name

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
        if sum(map(len, argv)) > _MAX_ARGV:
            raise SandboxRefused(f"Modal takes at most {_MAX_ARGV:,} characters of arguments; put the rest into a file")
        began, mark = time.monotonic(), uuid.uuid4().hex[:16]
        whole = remote_commands.wrapped(argv, mark, max(0.0, timeout_s), cwd or "")
        command = self._started(whole, timeout_s + _BACKSTOP_S, env, mark, stdin, Heard(keep_bytes, on_output))
        while not self._has_ended(command):
            if cancelled is not None and cancelled():
                self._end(command, mark)
                raise Cancelled("cancelled while a command ran in its sandbox")
            if command.heard.failure is not None:
                self._end(command, mark)
                raise command.heard.failure
            if time.monotonic() - began > timeout_s + _BACKSTOP_S + _DRAIN_S:
                raise SandboxError(f"sandbox {self.id} does not say how a command ended")
        if command.heard.failure is not None:
            raise command.heard.failure
        code, took = command.code, time.monotonic() - began
        if code in (-1, 137) and self._is_over():
            raise SandboxGone(f"sandbox {self.id} was ended while a command ran in it")
        # The service says -1 or 137 where its own limit came before the wrapper's.
        late = took >= timeout_s + _BACKSTOP_S
        timed_out = code == -1 or (code == 124 and took >= timeout_s) or (code == 137 and late)
        return ExecResult(
            exit_code=124 if timed_out else code,
            stdout=bytes(command.heard.tails["stdout"]),
            stderr=bytes(command.heard.tails["stderr"]),
            timed_out=timed_out,
            truncated=command.heard.truncated,
            duration_s=took,
        )

    def write(self, path: str, data: bytes) -> None:
        code, _, why = self._tool(remote_commands.writing(_absolute(path)), data, _FEW, f"write {path}")
        if code:
            raise SandboxError(f"cannot write {path} in sandbox {self.id}: {why}")

    def read(self, path: str, *, max_bytes: int = 32 << 20) -> bytes:
        tool = remote_commands.reading(_absolute(path), max_bytes)
        code, data, why = self._tool(tool, b"", max_bytes + 1, f"read {path}")
        if code == remote_commands.TOO_LARGE or len(data) > max_bytes:
            raise TooLarge(f"{path} in sandbox {self.id} is larger than {max_bytes:,} bytes")
        if code == remote_commands.MISSING:
            raise FileMissing(f"cannot read {path} in sandbox {self.id}: {why}")
        if code:
            raise SandboxError(f"cannot read {path} in sandbox {self.id}: {why}")
        return data

    def snapshot(self) -> str:
        with speaking("make a snapshot"):
            image = self._there.snapshot_filesystem(timeout=_SNAPSHOT_S, ttl=_SNAPSHOT_KEPT_S)
            return f"{_PREFIX}{image.object_id}"

    def cost(self) -> Decimal | None:
        cost: Decimal | None = None
        with contextlib.suppress(SandboxError), speaking("tell the cost"):
            cost = self._there._experimental_stats().cost
        return cost

    def end_commands(self) -> None:
        code, _, why = self._tool(remote_commands.ending(), b"", _FEW, "end what runs in it", _ENDING_S)
        if code:
            raise SandboxError(f"cannot end what runs in sandbox {self.id}: {why}")

    def terminate(self) -> None:
        """Does not wait until the service has ended it, which may take it half a minute."""
        if self._provider.has_ended(self.id):
            return
        with contextlib.suppress(SandboxGone), speaking("end a sandbox"):
            self._name = self._name or str(self._there.get_tags().get("name", ""))
            self._there.terminate()
        self._provider.note_ended(self.id, self._name)
        with contextlib.suppress(SandboxError), speaking("let go of a sandbox"):
            self._there.detach()

    # --- commands ----------------------------------------------------------------------------------------------------

    def _started(
        self,
        argv: Sequence[str],
        seconds: float,
        env: Mapping[str, str] | None,
        mark: str,
        stdin: bytes | Iterable[bytes] | None,
        heard: Heard,
    ) -> ModalCommand:
        if self._provider.has_ended(self.id):
            raise SandboxGone(f"sandbox {self.id} is over")
        marked: dict[str, str | None] = {**(env or {}), **({remote_commands.MARK: mark} if mark else {})}
        with speaking("run a command"):
            process = self._there.exec(*argv, timeout=max(1, math.ceil(seconds)), env=marked, text=False)
        return ModalCommand(process, stdin, heard)

    def _end(self, command: ModalCommand, mark: str) -> None:
        """End its tree; gives up on a service that does not answer."""
        with contextlib.suppress(SandboxError):
            self._tool(remote_commands.ending(mark), b"", _FEW, "end a command", _ENDING_S)
        until = time.monotonic() + _DRAIN_S
        with contextlib.suppress(SandboxError):
            while not self._has_ended(command) and time.monotonic() < until:
                pass

    def _has_ended(self, command: ModalCommand) -> bool:
        """Waits a moment for it. Raises SandboxGone, SandboxError."""
        if self._provider.has_ended(self.id):
            raise SandboxGone(f"sandbox {self.id} was ended while a command ran in it")
        return command.has_ended(_LOOK_S)

    def _tool(
        self, argv: Sequence[str], stdin: bytes, keep: int, doing: str, seconds: float = _FILE_S
    ) -> tuple[int, bytes, str]:
        """(exit code, the first `keep` bytes of stdout, stderr as one line); tried again when the service fails."""
        for attempt in range(1, _TRIES + 1):
            try:
                return self._once(argv, stdin, keep, doing, seconds)
            except (SandboxGone, SandboxRefused):
                raise
            except SandboxError:
                if attempt == _TRIES:
                    raise
                self._provider.clock.sleep(0.5 * attempt)
        raise AssertionError("unreachable: the last attempt returns")

    def _once(self, argv: Sequence[str], stdin: bytes, keep: int, doing: str, seconds: float) -> tuple[int, bytes, str]:
        heard, until = Heard(keep, first=True), time.monotonic() + seconds
        command = self._started(argv, seconds, None, "", stdin, heard)
        while not self._has_ended(command):
            if heard.truncated:  # not what our own program would say
                return remote_commands.TOO_LARGE, b"", "it says more than it was asked for"
            if time.monotonic() > until + _DRAIN_S:
                raise SandboxError(f"sandbox {self.id} did not {doing} within {seconds:.0f} s")
        if command.code in (-1, 137):
            if self._is_over():
                raise SandboxGone(f"sandbox {self.id} was ended while it should {doing}")
            raise SandboxError(f"sandbox {self.id} did not {doing} within {seconds:.0f} s")
        return (
            command.code,
            bytes(heard.tails["stdout"]),
            one_line(heard.tails["stderr"].decode("utf-8", "replace"), 300),
        )

    def _is_over(self) -> bool:
        """Did the sandbox end, or was it ended?"""
        try:
            with speaking("look after a sandbox"):
                return self._provider.has_ended(self.id) or self._there.poll() is not None
        except SandboxGone:
            return True


def sandbox_name(name: str) -> str:
    """`name` as the service takes it, another one for every name."""
    plain = re.sub(r"[^0-9A-Za-z._-]", "-", name)
    if plain == name and 0 < len(name) <= _MAX_NAME:
        return name
    return f"{plain[: _MAX_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _network(spec: SandboxSpec) -> dict[str, Any]:
    if spec.network == "allowlist":
        return {"outbound_domain_allowlist": list(spec.hosts)}
    return {"block_network": spec.network == "none"}


def _info(there: "modal.Sandbox") -> SandboxInfo | None:
    """None for one that has ended meanwhile."""
    try:
        with speaking("tell a sandbox's tags"):
            tags: dict[str, str] = there.get_tags()
    except SandboxGone:
        return None
    try:
        made = float(tags.get("made", ""))
    except ValueError:
        made = 0.0
    return SandboxInfo(there.object_id, tags, made if math.isfinite(made) else 0.0)


def _absolute(path: str) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not path.startswith("/") or not parts or ".." in parts or "\0" in path:
        raise SandboxError(f"{path[:200]!r} is not an absolute path of a sandbox")
    return path
