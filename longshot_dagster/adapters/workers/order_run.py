"""One order carried out in one sandbox: everything in, the worker run, everything out with a size limit.

What comes out was written by an agent, so what is too large, missing or unreadable is a finding, never an exception.
"""

import contextlib
import functools
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from longshot_dagster.adapters.sandboxes.fleet import created, member_of
from longshot_dagster.adapters.sandboxes.model_relay import way_to_model
from longshot_dagster.adapters.sandboxes.worker_archive import worker_archive
from longshot_dagster.core import contract
from longshot_dagster.core.clock import Clock
from longshot_dagster.core.contract import Mode, WorkOrder, WorkResult
from longshot_dagster.core.errors import (
    Cancelled,
    FileMissing,
    HostileBundle,
    RepositoryError,
    SandboxError,
    SandboxRefused,
    TooLarge,
    WrongUse,
)
from longshot_dagster.core.sandbox import (
    Capabilities,
    ExecResult,
    NetworkMode,
    Sandbox,
    SandboxProvider,
    SandboxSpec,
    Stream,
)
from longshot_dagster.core.settings import Settings
from longshot_dagster.core.working import read_result

RETRIES = 2
BACK_OFF_S = 2.0
_SALVAGE_S = 90.0
_SALVAGE_WHEN_STOPPED_S = 6.0  # somebody waits for the run to end
_SALVAGES = threading.BoundedSemaphore(2 * (os.cpu_count() or 2))  # 200 at once would all miss their time
_MARGIN_S = 600  # of a sandbox's lifetime, for what comes before and after the work
_SHARED_BYTES = 16 << 20
_WORKER = Path(contract.WORKER)

T = TypeVar("T")


@dataclass(frozen=True)
class Delivery:
    """What came out. Without a `result`, `problem` says why in one line. `stopped`: `cancelled()` ended the worker."""

    result: WorkResult | None
    problem: str
    bundle: bytes | None
    transcript: bytes
    stopped: bool = False


@contextlib.contextmanager
def sandbox_for(
    provider: SandboxProvider,
    settings: Settings,
    tags: Mapping[str, str],
    work_s: float,
    sockets: Mapping[str, str] | None = None,
    notes: Mapping[str, str] | None = None,
    stays: Callable[[], bool] = lambda: False,
    image: str = "",
    layers: Mapping[str, str] | None = None,
    gpu: str = "",
) -> Iterator[Sandbox]:
    """A fresh sandbox that is gone afterwards, unless it `stays` for whoever can keep what is in it.

    `image` is a snapshot of the same provider. It carries `tags` and `notes`, its name is made of `tags` alone.
    """

    def spec_at(able: Capabilities) -> SandboxSpec:
        wanted = _network(settings.sandbox_network.value, able)
        return SandboxSpec(
            name="-".join(tags.values()),
            image=image,
            hosts=settings.allowed_hosts if wanted == "allowlist" else (),
            tags={**tags, **(notes or {})},
            env={"LONGSHOT_NETWORK": wanted},
            network=wanted,
            lifetime_s=int(work_s) + _MARGIN_S,
            cpu=settings.sandbox_cpu_cores if able.enforces_cpu else None,
            memory_mb=settings.sandbox_memory_mb if able.enforces_memory else None,
            sockets=(sockets or {}) if able.sockets else {},
            layers=(layers or {}) if able.layers else {},
            readable=settings.readable_folders,
            gpu=gpu,
        )

    sandbox = created(provider, "-".join(tags.values()), spec_at)
    try:
        with way_to_model(member_of(provider, sandbox.id), sandbox, sockets or {}, int(work_s) + _MARGIN_S):
            yield sandbox
    finally:
        with contextlib.suppress(
            SandboxError
        ):  # it ends with its build, or its lifetime; what came out of it is worth more
            if not stays():
                sandbox.terminate()


def _network(wanted: NetworkMode, able: Capabilities) -> NetworkMode:
    """As it was set; where nobody chose, and it cannot be closed, it is open, which was said when the build began."""
    return "open" if wanted == "none" and "none" not in able.network else wanted


def end_sandboxes(provider: SandboxProvider, tags: Mapping[str, str]) -> int:
    """Terminate every sandbox that carries `tags`; how many there were."""
    found = provider.list(tags)
    for info in found:
        with contextlib.suppress(SandboxError):
            provider.attach(info.id).terminate()
    return len(found)


def carry_out(
    sandbox: Sandbox,
    order: WorkOrder,
    bundle: Path | None,
    timeout_s: float,
    cancelled: Callable[[], bool],
    said: Callable[[bytes], None] | None = None,
) -> Delivery:
    """A worker that hangs, dies or is cancelled is ended and what it did is salvaged. `said` gets its output as it comes.

    `bundle` is None where the sandbox holds everything already. Raises SandboxError, and Cancelled for a sweep: of that nothing is worth keeping.
    """
    sandbox.write(contract.WORKER, _worker(order.harness))
    if bundle is not None:
        sandbox.write(contract.BUNDLE_IN, _content(bundle))
    try:
        ran = _run(sandbox, order, timeout_s, cancelled, said)
    except Cancelled:
        if order.mode is not Mode.WORK:
            raise
        return stopped(sandbox, order)
    if _was_interrupted(sandbox, ran) and order.mode is Mode.WORK:
        salvage = order.model_copy(update={"mode": Mode.SALVAGE, "deadline_s": _SALVAGE_S})
        try:
            _run(sandbox, salvage, _SALVAGE_S, cancelled)
        except Cancelled:
            return stopped(sandbox, order)
        return collect(sandbox, order, None if ran.timed_out else _last_words(ran))
    if ran.timed_out:
        return Delivery(None, f"nothing came back within {timeout_s:.0f} s", None, b"")
    return collect(sandbox, order)


def _worker(harness: str) -> bytes:
    try:
        return worker_archive(harness)
    except WrongUse as e:  # of a package that was uninstalled meanwhile, say
        raise SandboxRefused(str(e)) from e


def _content(bundle: Path) -> bytes:
    """Workers that start together share one copy of a bundle, which is written once and never changes, unless it is large."""
    return _shared(str(bundle)) if bundle.stat().st_size <= _SHARED_BYTES else bundle.read_bytes()


@functools.lru_cache(maxsize=2)
def _shared(bundle: str) -> bytes:
    return Path(bundle).read_bytes()


def retried(once: Callable[[int], T], failed: Callable[[str], T], clock: Clock, cancelled: Callable[[], bool]) -> T:
    """`once(attempt)`, again after infrastructure trouble, and at last `failed(why)`.

    Trouble of sandbox or git may pass. What else is raised, as Cancelled and a paused build, is the caller's.
    """
    for attempt in range(1, RETRIES + 2):
        try:
            return once(attempt)
        except (HostileBundle, SandboxRefused) as e:
            return failed(str(e))
        except (SandboxError, RepositoryError, OSError) as e:
            if attempt > RETRIES:
                return failed(f"{e} (tried {attempt} times)")
            clock.sleep(BACK_OFF_S * 2 ** (attempt - 1))
            if cancelled():
                raise Cancelled("cancelled between two attempts") from e
    raise AssertionError("unreachable: the last attempt returns")


def stopped(sandbox: Sandbox, order: WorkOrder) -> Delivery:
    """What a worker had done that somebody has just stopped; one that had finished at that moment has simply finished."""
    with contextlib.suppress(FileMissing, TooLarge):
        sandbox.read(contract.RESULT, max_bytes=contract.MAX_RESULT_BYTES)
        return collect(sandbox, order)
    return salvaged(sandbox, order)


def salvaged(sandbox: Sandbox, order: WorkOrder, cancelled: Callable[[], bool] | None = None) -> Delivery:
    """What lies in a sandbox in which no worker is at work any more; within seconds, unless nobody has `cancelled`."""
    within_s = _SALVAGE_WHEN_STOPPED_S if cancelled is None else _SALVAGE_S
    salvage = order.model_copy(update={"mode": Mode.SALVAGE, "deadline_s": within_s})
    try:
        with _SALVAGES if cancelled is None else contextlib.nullcontext():
            _run(sandbox, salvage, within_s, cancelled)
    except Cancelled:
        return salvaged(sandbox, order)
    return replace(collect(sandbox, order), stopped=True)


def _run(
    sandbox: Sandbox,
    order: WorkOrder,
    timeout_s: float,
    cancelled: Callable[[], bool] | None,
    said: Callable[[bytes], None] | None = None,
) -> ExecResult:
    sandbox.write(contract.ORDER, json.dumps(order.model_dump(mode="json", by_alias=True)).encode())

    def heard(stream: Stream, data: bytes) -> None:
        if said is not None and stream == "stdout":
            said(data)

    argv, cwd = ["python3", "-I", _WORKER.name], str(_WORKER.parent)
    return sandbox.exec(argv, cwd=cwd, timeout_s=timeout_s, cancelled=cancelled, on_output=heard, keep_bytes=8_000)


def _was_interrupted(sandbox: Sandbox, ran: ExecResult) -> bool:
    """Did the worker end before it wrote its result?"""
    if ran.timed_out or ran.exit_code != 0:
        return True
    try:
        sandbox.read(contract.RESULT, max_bytes=contract.MAX_RESULT_BYTES)
    except FileMissing:
        return True
    except TooLarge:
        return False
    return False


def collect(sandbox: Sandbox, order: WorkOrder, crash: str | None = None) -> Delivery:
    """What a worker has written; `crash` says how it ended when it was not by itself."""
    transcript = _optional(sandbox, contract.TRANSCRIPT, contract.MAX_TRANSCRIPT_BYTES)
    if isinstance(transcript, str):
        transcript = json.dumps({"type": "note", "text": f"no transcript is kept: {transcript}"}).encode() + b"\n"
    try:
        result = read_result(sandbox.read(contract.RESULT, max_bytes=contract.MAX_RESULT_BYTES), order.task_id)
    except FileMissing:
        return Delivery(None, crash or "the worker ended without a result", None, transcript or b"")
    except (TooLarge, ValueError) as e:
        return Delivery(None, str(e), None, transcript or b"")
    if crash:
        result = result.model_copy(update={"harness_status": "crashed", "error": crash})
    bundle = _optional(sandbox, contract.BUNDLE_OUT, contract.MAX_BUNDLE_BYTES) if result.head else None
    if isinstance(bundle, str):
        return Delivery(None, bundle, None, transcript or b"")
    return Delivery(result, "", bundle, transcript or b"")


def _optional(sandbox: Sandbox, path: str, max_bytes: int) -> bytes | str | None:
    """The file's bytes, None when it is missing, or one line when it is too large."""
    try:
        return sandbox.read(path, max_bytes=max_bytes)
    except FileMissing:
        return None
    except TooLarge as e:
        return str(e)


def _last_words(ran: ExecResult) -> str:
    if ran.exit_code == 0:
        return "the worker ended without a result"
    lines = ran.stderr.decode("utf-8", "replace").strip().splitlines()
    return f"the worker ended with exit code {ran.exit_code}: {lines[-1][:500] if lines else 'it said nothing'}"
