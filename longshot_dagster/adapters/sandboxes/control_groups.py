"""CPU, memory and number of processes of a sandbox, held by the kernel's control groups where this user may make any.

With version 1 of the kernel's interface a sandbox gets a group below our own in each of three trees, with version 2 one
beside our own: there, a group that has processes must not have groups. Whether it works is found out by doing it.
"""

import contextlib
import functools
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from longshot_dagster.core.errors import SandboxError

MAX_PROCESSES = 1_024  # of one sandbox, threads included
_CONTROLLERS = ("cpu", "memory", "pids")
_PERIOD_US = 100_000
_NAME = "longshot-"
_END_S = 3.0
_OLD_S = 6 * 3600


@dataclass(frozen=True)
class Limits:
    """Of one sandbox: cores, MB, processes and threads; None: as much as there is."""

    cpu: float | None = None
    memory_mb: int | None = None
    processes: int = MAX_PROCESSES


@dataclass(frozen=True)
class ControlGroups:
    """Where groups are made: a folder for each controller; with version 2 it is the same for all."""

    parents: Mapping[str, Path]
    version: int

    def make(self, name: str, limits: Limits) -> tuple[Path, ...]:
        """The groups of a sandbox, empty. Raises SandboxError."""
        settings = self._settings(limits)
        groups = tuple(dict.fromkeys(self.parents[c] / f"{_NAME}{name}" for c in _CONTROLLERS))
        try:
            for group in groups:
                group.mkdir(exist_ok=True)
            for controller, written in settings.items():
                for file, value in written.items():
                    (self.parents[controller] / f"{_NAME}{name}" / file).write_text(value, encoding="ascii")
        except OSError as e:
            remove_groups(groups)
            raise SandboxError(f"cannot limit a sandbox by control groups: {e.strerror or e}") from e
        return groups

    def _settings(self, limits: Limits) -> dict[str, dict[str, str]]:
        quota = max(1_000, int((limits.cpu or 0) * _PERIOD_US))
        memory = str((limits.memory_mb or 0) << 20)
        if self.version == 2:
            cpu = {"cpu.max": f"{quota} {_PERIOD_US}"} if limits.cpu else {}
            held = {"memory.max": memory, "memory.swap.max": "0"} if limits.memory_mb else {}
        else:
            cpu = {"cpu.cfs_period_us": str(_PERIOD_US), "cpu.cfs_quota_us": str(quota)} if limits.cpu else {}
            held = {"memory.limit_in_bytes": memory, "memory.memsw.limit_in_bytes": memory} if limits.memory_mb else {}
        absent = [file for file in held if "sw" in file and not self._has("memory", file)]  # a kernel without swap
        held = {file: value for file, value in held.items() if file not in absent}
        return {"cpu": cpu, "memory": held, "pids": {"pids.max": str(limits.processes)}}

    def _has(self, controller: str, file: str) -> bool:
        """Of the groups below our own; the outermost one of version 2 has no limits itself."""
        parent = self.parents[controller]
        return (parent / file).exists() or any(parent.glob(f"*/{file}"))


def entering(groups: Iterable[Path]) -> list[str]:
    """Words before a command that put it into `groups`; they run as we do, outside of the sandbox."""
    places = [str(group / "cgroup.procs") for group in groups]
    if not places:
        return []
    script = 'n=$1; shift; while [ "$n" -gt 0 ]; do echo $$ > "$1" || exit 126; shift; n=$((n-1)); done; exec "$@"'
    return ["/bin/sh", "-c", script, "limited", str(len(places)), *places]


def memory_kills(groups: Iterable[Path]) -> int:
    """How many of their processes the kernel has ended for want of memory."""
    for group in groups:
        for file in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError):
                if found := re.search(r"^oom_kill (\d+)$", (group / file).read_text(encoding="ascii"), re.MULTILINE):
                    return int(found[1])
    return 0


def end_groups(groups: Iterable[Path]) -> None:
    """Kill whatever runs in them."""
    for group in groups:
        with contextlib.suppress(OSError, ValueError):
            for pid in (group / "cgroup.procs").read_text(encoding="ascii").split():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(int(pid), signal.SIGKILL)


def remove_groups(groups: Iterable[Path]) -> None:
    """Idempotent; what does not go within seconds is empty and stays, until the machine is started anew."""
    deadline = time.monotonic() + _END_S
    for group in groups:
        if not group.name.startswith(_NAME):
            continue
        while True:
            try:
                group.rmdir()
            except FileNotFoundError:
                break
            except OSError:
                if time.monotonic() > deadline:
                    break
                end_groups((group,))
                time.sleep(0.005)
            else:
                break


@functools.cache
def control_groups() -> ControlGroups | None:
    """None where this user cannot make any that work."""
    for found in (_version_1(), _version_2()):
        if found is not None and _works(found):
            _sweep(found)
            return found
    return None


def _sweep(found: ControlGroups) -> None:
    """Remove what killed processes have left; an old sandbox that was only waiting has its groups made again."""
    for parent in set(found.parents.values()):
        for group in parent.glob(f"{_NAME}*"):
            with contextlib.suppress(OSError):
                if time.time() - group.stat().st_mtime > _OLD_S:
                    group.rmdir()  # fails while anything runs in it


def _works(found: ControlGroups) -> bool:
    """A process is put into groups with limits, and is seen there."""
    try:
        groups = found.make(f"trial-{os.getpid()}", Limits(cpu=0.5, memory_mb=64, processes=16))
    except SandboxError:
        return False
    try:
        words = [*entering(groups), "/bin/sh", "-c", "cat /proc/self/cgroup"]
        ran = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
        return ran.returncode == 0 and ran.stdout.count(groups[0].name) >= len(groups)
    except (OSError, subprocess.TimeoutExpired):
        return False
    finally:
        remove_groups(groups)


def _version_1() -> ControlGroups | None:
    parents = {}
    for controller in _CONTROLLERS:
        if (own := _own_group("cgroup", controller)) is None:
            return None
        parents[controller] = own[1]
    return ControlGroups(parents, 1)


def _version_2() -> ControlGroups | None:
    if (own := _own_group("cgroup2", "")) is None:
        return None
    top, group = own
    parent = group if group == top else group.parent
    try:
        given = set((parent / "cgroup.subtree_control").read_text(encoding="ascii").split())
    except OSError:
        return None
    if not given >= set(_CONTROLLERS):
        with contextlib.suppress(OSError):
            (parent / "cgroup.subtree_control").write_text(" ".join(f"+{c}" for c in _CONTROLLERS), encoding="ascii")
    return ControlGroups(dict.fromkeys(_CONTROLLERS, parent), 2)


def _own_group(kind: str, controller: str) -> tuple[Path, Path] | None:
    """(where the tree with `controller` is mounted, this process's own group in it)."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        groups = Path("/proc/self/cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    own = next((path for _, names, path in (g.split(":", 2) for g in groups) if controller in names.split(",")), "/")
    for line in mounts:
        left, _, right = line.partition(" - ")
        fields, (found, _, options) = left.split(" "), right.split(" ", 2)
        if found == kind and (not controller or controller in options.split(",")):
            top, shown = Path(fields[4]), fields[3]
            below = own.removeprefix(shown).lstrip("/") if shown != "/" else own.lstrip("/")
            return top, (top / below if (top / below).is_dir() else top)
    return None
