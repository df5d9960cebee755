"""What a local sandbox can promise on this host; what it cannot is refused before there is one."""

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

from longshot_dagster.adapters.sandboxes.control_groups import control_groups
from longshot_dagster.adapters.sandboxes.egress import refuse_bad_hosts
from longshot_dagster.core.errors import SandboxRefused
from longshot_dagster.core.sandbox import Capabilities, SandboxSpec

_MAX_SOCKET_PATH = 107


@contextlib.contextmanager
def on_cores(cores: float | None) -> Iterator[None]:
    """What this thread starts meanwhile has so many cores; which ones is drawn, so that not all share the same."""
    mine = os.sched_getaffinity(0) if cores is not None and hasattr(os, "sched_getaffinity") else set()
    if cores is None or cores >= len(mine):
        yield
        return
    os.sched_setaffinity(0, random.sample(sorted(mine), max(1, int(cores))))
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)


def holds_cpu() -> bool:
    """By control groups, else by letting a sandbox have whole cores only."""
    return control_groups() is not None or hasattr(os, "sched_setaffinity")


def holds_memory() -> bool:
    """By control groups, else by looking often and ending what has too much."""
    return control_groups() is not None or Path("/proc/self/stat").exists()


def refuse_unenforceable(spec: SandboxSpec, able: Capabilities) -> None:
    """Raises SandboxRefused for the first thing in `spec` that local sandboxes cannot promise."""
    if spec.network not in able.network:
        raise SandboxRefused(
            "without isolation the network cannot be closed: set SANDBOX_NETWORK=open to say it is open"
        )
    if spec.network == "allowlist":
        refuse_bad_hosts(spec.hosts)
    if (spec.cpu is not None and not able.enforces_cpu) or (spec.memory_mb is not None and not able.enforces_memory):
        raise SandboxRefused("on this host local sandboxes cannot limit CPU cores or memory")
    if spec.cpu is not None and spec.cpu != int(spec.cpu) and control_groups() is None:
        raise SandboxRefused(f"without control groups a local sandbox has whole cores only, not {spec.cpu}")
    if spec.gpu or spec.secrets:
        raise SandboxRefused("local sandboxes have no GPU and keep no secrets")
    if spec.image and not able.snapshots:
        raise SandboxRefused("local sandboxes without isolation are made of no image")
    if spec.layers and not able.layers:
        raise SandboxRefused("without isolation a sandbox shows no folder at another place")
    for inside, folder in spec.layers.items():
        if not inside.startswith("/") or ".." in inside.split("/") or not Path(folder).is_dir():
            raise SandboxRefused(
                f"{folder} cannot be shown at {inside[:200]}: it is no folder, or that is no place for it"
            )
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
