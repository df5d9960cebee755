"""What the machine asks of a sandbox, whatever provides it. A specification that cannot be enforced is refused, never weakened."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal, Protocol

Stream = Literal["stdout", "stderr"]
NetworkMode = Literal["none", "allowlist", "open"]
Isolation = Literal["none", "namespace", "container", "vm"]

WORKDIR = "/workspace"


@dataclass(frozen=True)
class Capabilities:
    """What a provider can do and keep to. What it does not claim is not asked of it; `create` refuses what it cannot keep."""

    isolation: Isolation
    network: frozenset[str]  # of NetworkMode
    enforces_cpu: bool
    enforces_memory: bool
    survives_client: bool  # do commands run on when the process that started them dies?
    enforces_idle: bool = False  # does a sandbox in which nothing runs end by itself after `idle_s`?
    sockets: bool = False  # can unix sockets of this host be reached inside (SandboxSpec.sockets)?
    layers: bool = False  # can folders of this host be shown inside (SandboxSpec.layers, .readable)?
    live_stdin: bool = True  # can a command be fed while it runs (an iterable as `stdin`)?
    snapshots: bool = False
    gpus: bool = False
    cost: bool = False  # does `Sandbox.cost` know anything?
    max_lifetime_s: int | None = None


@dataclass(frozen=True)
class SandboxSpec:
    """One sandbox.

    `name`      unique among the living ones of a provider
    `image`     what a `snapshot()` of this provider returned, or an image by the provider's own name; empty: its default
    `cpu`       cores, `memory_mb` MB: upper limits; None: whatever the provider gives
    `lifetime_s`, `idle_s`  seconds until it ends by itself, whatever happens; with no command running (None: never)
    `env`       of every command; never a secret: it is stored
    `secrets`   names of secrets that the provider itself keeps, shown to commands as variables
    `network`   `allowlist`: only `hosts`, names or `*.name`, by HTTPS
    `sockets`   path inside -> unix socket of this host; `layers`: path inside -> folder of this host, read-only;
                `readable`: such folders at their own path
    `gpu`       the provider's word for one; empty: none
    """

    name: str
    image: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    workdir: str = WORKDIR
    network: NetworkMode = "none"
    hosts: tuple[str, ...] = ()
    lifetime_s: int = 3600
    idle_s: int | None = None
    cpu: float | None = None
    memory_mb: int | None = None
    gpu: str = ""
    sockets: Mapping[str, str] = field(default_factory=dict)
    layers: Mapping[str, str] = field(default_factory=dict)
    readable: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExecResult:
    """`exit_code` is 124 after a timeout and 128 + n after signal n; the streams hold their last bytes."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    timed_out: bool
    truncated: bool
    duration_s: float


@dataclass(frozen=True)
class SandboxInfo:
    """`created_at` is seconds since 1970."""

    id: str
    tags: Mapping[str, str]
    created_at: float


class Sandbox(Protocol):
    """Any number of threads may use one at once."""

    @property
    def id(self) -> str: ...

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
        """Run `argv` and wait; at the timeout, or when `cancelled()` turns true, its whole process tree is killed.

        `stdin` is followed by its end; None is an empty one. An iterable is asked for more, in a thread of its own, while
        the command runs, and is not asked any more once it has ended. `on_output` gets what is said as it is said.
        Raises Cancelled, SandboxGone, SandboxError.
        """

    def write(self, path: str, data: bytes) -> None:
        """Raises SandboxGone, SandboxError. Makes the folders on the way; never follows a link out of the sandbox."""

    def read(self, path: str, *, max_bytes: int = 32 << 20) -> bytes:
        """Raises FileMissing (a folder is no file), TooLarge, SandboxGone. Never follows a link out of the sandbox."""

    def snapshot(self) -> str:
        """Its files as they are now, as a `SandboxSpec.image` of the same provider. Raises SandboxRefused, SandboxError."""

    def cost(self) -> Decimal | None:
        """USD so far; None: unknown."""

    def end_commands(self) -> None:
        """End every command that still runs in it, whoever started it; its files stay. Raises SandboxError."""

    def terminate(self) -> None:
        """Idempotent; nothing of the sandbox runs afterwards, and a command that somebody waits for raises SandboxGone."""


class SandboxProvider(Protocol):
    """Cheap to make: it connects to nothing before it is asked for something."""

    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> Capabilities: ...

    def create(self, spec: SandboxSpec) -> Sandbox:
        """Raises SandboxRefused for a specification it cannot enforce or a name in use, SandboxError otherwise."""

    def list(self, tags: Mapping[str, str]) -> list[SandboxInfo]:
        """The living ones that carry all of `tags`."""

    def attach(self, sandbox_id: str) -> Sandbox:
        """Raises SandboxGone."""
