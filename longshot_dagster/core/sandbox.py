"""What the machine asks of a sandbox, whatever provides it. A specification that cannot be enforced is refused, never weakened."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

Stream = Literal["stdout", "stderr"]
NetworkMode = Literal["none", "open"]


@dataclass(frozen=True)
class Capabilities:
    isolation: Literal["none", "namespace", "container", "vm"]
    network: frozenset[str]
    enforces_cpu: bool
    enforces_memory: bool
    survives_client: bool  # do commands run on when the process that started them dies?


@dataclass(frozen=True)
class SandboxSpec:
    """One sandbox. `sockets` maps a path inside to a unix socket of the host, `readable` names folders of the host that
    can be read at the same path inside (both: local provider only)."""

    name: str
    tags: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str = "/work"
    network: NetworkMode = "none"
    lifetime_s: int = 3600
    cpu: float | None = None
    memory_mb: int | None = None
    sockets: Mapping[str, str] = field(default_factory=dict)
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
    id: str
    tags: Mapping[str, str]
    created_at: float


class Sandbox(Protocol):
    @property
    def id(self) -> str: ...

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
        """Run `argv` and wait; at the timeout, or when `cancelled()` turns true, its whole process tree is killed.

        Raises Cancelled, SandboxGone, SandboxError.
        """

    def write(self, path: str, data: bytes) -> None: ...

    def read(self, path: str, *, max_bytes: int) -> bytes:
        """Raises FileMissing, TooLarge, SandboxGone. Never follows a link out of the sandbox."""

    def end_commands(self) -> None:
        """End every command that still runs in it, whoever started it; its files stay. Raises SandboxError."""

    def terminate(self) -> None:
        """Idempotent; nothing of the sandbox runs afterwards."""


class SandboxProvider(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> Capabilities: ...

    def create(self, spec: SandboxSpec) -> Sandbox:
        """Raises SandboxRefused for a specification it cannot enforce, SandboxError otherwise."""

    def list(self, tags: Mapping[str, str]) -> list[SandboxInfo]: ...

    def attach(self, sandbox_id: str) -> Sandbox:
        """Raises SandboxGone."""
