"""What a worker has left in a sandbox whose orchestrator died: waited for, collected or salvaged, and never paid for again."""

import contextlib
import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from longshot_dagster.adapters.ledger.ledger import BuildLedger
from longshot_dagster.adapters.sandboxes.model_relay import way_to_model
from longshot_dagster.adapters.sandboxes.worker_archive import worker_archive
from longshot_dagster.adapters.workers.order_run import Delivery, collect, salvaged
from longshot_dagster.core import contract
from longshot_dagster.core.contract import Mode, WorkOrder
from longshot_dagster.core.errors import Cancelled, FileMissing, SandboxError, TooLarge
from longshot_dagster.core.sandbox import ExecResult, Sandbox, SandboxInfo, SandboxProvider, Stream

_OID = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_MAX_ORDER_BYTES = 4 << 20


@dataclass(frozen=True)
class Begun:
    """How the work in a sandbox was begun; it travels as tags, because nothing inside can be believed.

    `base` and `start` are commits as in a work order; `tokens` is what the task had used before.
    """

    base: str
    start: str | None
    tokens: int

    @property
    def tags(self) -> dict[str, str]:
        return {
            "contract": str(contract.VERSION),
            "base": self.base,
            "start": self.start or "",
            "tokens": str(self.tokens),
        }

    @classmethod
    def of(cls, tags: Mapping[str, str]) -> "Begun | None":
        """None for a sandbox of another version, or one that was not made for a worker."""
        base, start, tokens = tags.get("base", ""), tags.get("start", ""), tags.get("tokens", "")
        if (
            tags.get("contract") != str(contract.VERSION)
            or not _OID.fullmatch(base)
            or not re.fullmatch(r"\d+", tokens)
        ):
            return None
        return cls(base, start, int(tokens)) if _OID.fullmatch(start) else cls(base, None, int(tokens))


class Leftovers:
    """Sandboxes of one build's tasks that earlier processes have left. Asked for once, when the first task begins: whatever
    this process makes later is its own and ends with its worker."""

    def __init__(self, provider: SandboxProvider, build: str) -> None:
        self._provider = provider
        self._build = build
        self._lock = threading.Lock()
        self._by_task: dict[str, list[SandboxInfo]] | None = None

    def take(self, task: str, *, anew: bool) -> list[SandboxInfo]:
        """Those of `task`, newest first; each is given out once. `anew`: somebody has worked on it a moment ago.

        Raises SandboxError when the provider cannot say: a worker that lives on must not be joined by a second one.
        """
        with self._lock:
            if self._by_task is None:
                self._by_task = {}
                for info in self._listed({"build": self._build}):
                    self._by_task.setdefault(info.tags.get("task", ""), []).append(info)
            found = self._by_task.pop(task, [])
        if anew:
            found = self._listed({"build": self._build, "task": task})
        return sorted(found, key=lambda info: info.created_at, reverse=True)

    def put_back(self, task: str, info: SandboxInfo) -> None:
        """It could not be looked after now."""
        with self._lock:
            self._by_task = self._by_task or {}
            self._by_task.setdefault(task, []).append(info)

    def _listed(self, tags: Mapping[str, str]) -> list[SandboxInfo]:
        return list(self._provider.list(tags))


def take_up(
    provider: SandboxProvider,
    sandbox: Sandbox,
    order: WorkOrder,
    timeout_s: float,
    cancelled: Callable[[], bool],
    said: Callable[[bytes], None] | None = None,
    way: Mapping[str, str] | None = None,
) -> Delivery:
    """What the worker in `sandbox` has brought about; `order` is as it was given to it. `way` leads to its model, path
    inside -> socket of this host.

    One that is still at work is waited for, where the provider lets it outlive whoever started it. What one that was killed
    has left is committed and bundled; that delivery is `stopped`, unless its time was over. Raises SandboxError.
    """
    timed_out = False
    if provider.capabilities.survives_client and not _finished(sandbox):
        with contextlib.suppress(Cancelled), way_to_model(provider, sandbox, way or {}, timeout_s, needed=False):
            timed_out = _attend(sandbox, timeout_s, cancelled, said).timed_out
    if _finished(sandbox):
        return collect(sandbox, order)
    sandbox.end_commands()
    sandbox.write(contract.WORKER, worker_archive())
    return replace(salvaged(sandbox, order, cancelled), stopped=not timed_out)


def _attend(
    sandbox: Sandbox, timeout_s: float, cancelled: Callable[[], bool], said: Callable[[bytes], None] | None
) -> ExecResult:
    def heard(stream: Stream, data: bytes) -> None:
        if said is not None and stream == "stdout":
            said(data)

    # Not over the worker's own archive: it may have modules of it still to import.
    sandbox.write(contract.ATTENDANT, worker_archive())
    argv = ["python3", "-I", contract.ATTENDANT.rpartition("/")[2], "attend"]
    return sandbox.exec(
        argv, cwd=contract.DIRECTORY, timeout_s=timeout_s, cancelled=cancelled, on_output=heard, keep_bytes=8_000
    )


def _finished(sandbox: Sandbox) -> bool:
    """Is there a result, and is it the worker's own? One of a salvage that nobody has fetched is not."""
    try:
        sandbox.read(contract.RESULT, max_bytes=contract.MAX_RESULT_BYTES)
    except FileMissing:
        return False
    except TooLarge:
        return True
    with contextlib.suppress(FileMissing, TooLarge, ValueError, RecursionError):
        order = json.loads(sandbox.read(contract.ORDER, max_bytes=_MAX_ORDER_BYTES))
        return isinstance(order, dict) and order.get("mode") == Mode.WORK.value
    return False


def end(provider: SandboxProvider, info: SandboxInfo) -> None:
    """Idempotent; one that cannot be reached now ends with its build or its lifetime."""
    with contextlib.suppress(SandboxError):
        provider.attach(info.id).terminate()


def end_all(provider: SandboxProvider, ledger: BuildLedger) -> None:
    """The sandboxes that killed processes have left of a build that is over, except for tasks that somebody is at work on.

    Raises SandboxError when they cannot be listed.
    """
    for info in provider.list({"build": ledger.build}):
        task = info.tags.get("task")
        if task is None or not ledger.at_work(task):
            end(provider, info)
