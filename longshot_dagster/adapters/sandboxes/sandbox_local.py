"""Sandboxes on this host: a directory, a confinement, and every process that ever started in it.

    <base>/<id>/meta.json     what it is; without it the sandbox is over
               /root/         its whole file system, or what it may write of it
               /running/<pid> one per running command: when that process started; its time is the last sign of life
               /groups        control groups that hold its limits
               /room-*/, /egress-*/  of one running command: what the kernel needs for an overlay, a proxy's socket
    <base>/egress.jsonl       every connection that a sandbox with an allowlist has asked for

Another process of the same user can list, attach and end them, so nothing is lost when an orchestrator dies.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from longshot_dagster.adapters.host.processes import carrying, end_tree, kill, start_time
from longshot_dagster.adapters.sandboxes import egress
from longshot_dagster.adapters.sandboxes.attended import Outcome, attend
from longshot_dagster.adapters.sandboxes.confinement import (
    ROOT_VARIABLE,
    Confined,
    Confinement,
    Overlay,
    Unconfined,
    bubblewrap,
)
from longshot_dagster.adapters.sandboxes.control_groups import (
    MAX_PROCESSES,
    Limits,
    control_groups,
    end_groups,
    entering,
    memory_kills,
    remove_groups,
)
from longshot_dagster.adapters.sandboxes.egress import EgressProxy
from longshot_dagster.adapters.sandboxes.egress_relay import EGRESS_SOCKET
from longshot_dagster.adapters.sandboxes.layered_files import LayeredFiles
from longshot_dagster.adapters.sandboxes.limit_watch import WATCH, Watched
from longshot_dagster.adapters.sandboxes.local_promises import holds_cpu, holds_memory, on_cores, refuse_unenforceable
from longshot_dagster.adapters.sandboxes.local_snapshots import SCHEME, LocalSnapshots, SnapshotInfo, held, remove_tree
from longshot_dagster.core.errors import Cancelled, FileMissing, SandboxError, SandboxGone, SandboxRefused, TooLarge
from longshot_dagster.core.sandbox import Capabilities, ExecResult, SandboxInfo, SandboxSpec, Stream
from longshot_dagster.core.settings import Isolation

_UNIQUE = 8  # characters of an id that are drawn
_GRACE_S = 600.0  # for keeping what is in a sandbox whose lifetime was over before anybody came back


class LocalProvider:
    """Sandboxes below `base`. `reach` is how those with an allowlist get to a host of it."""

    name = "local"

    def __init__(self, base: Path, isolation: Isolation, reach: egress.Reach = egress.reach) -> None:
        self._base = base
        self._isolation = isolation
        self._reach = reach
        self._snapshots = LocalSnapshots(base)

    @property
    def confinement(self) -> Confinement:
        """Raises SandboxRefused when this host cannot isolate and nobody asked to go without."""
        return Unconfined() if self._isolation is Isolation.NONE else bubblewrap()

    @property
    def capabilities(self) -> Capabilities:
        able = self.confinement.capabilities
        return dataclasses.replace(able, enforces_cpu=holds_cpu(), enforces_memory=holds_memory())

    def create(self, spec: SandboxSpec) -> "LocalSandbox":
        confinement = self.confinement
        refuse_unenforceable(spec, self.capabilities)
        made = LocalSandbox(self._base / _new_id(spec.name), confinement, self._reach)
        try:
            made.root.mkdir(parents=True, mode=0o700)
            made.running.mkdir()
            below: list[str] = []
            if spec.image:
                below = self._snapshots.begin(spec.image, made.root, made.id)
                if below and not confinement.can_overlay(self._base):
                    raise SandboxRefused("this snapshot was made where overlays work, and here they do not")
            else:
                confinement.prepare(made.root, spec.sockets)
                made.host_path(spec.workdir).mkdir(parents=True, exist_ok=True)
            made.begin(spec, below)
        except OSError as e:
            made.terminate()
            raise SandboxError(f"cannot make a sandbox in {self._base}: {e.strerror or e}") from e
        except SandboxError:
            made.terminate()
            raise
        return made

    def attach(self, sandbox_id: str) -> "LocalSandbox":
        if not sandbox_id.startswith("sb-") or "/" in sandbox_id:
            raise SandboxGone(f"{sandbox_id[:80]!r} is no local sandbox")
        found = LocalSandbox(self._base / sandbox_id, self.confinement, self._reach)
        found.outlive(_GRACE_S)
        found.end_when_idle()
        return found

    def list(self, tags: Mapping[str, str]) -> list[SandboxInfo]:
        found = []
        for directory in sorted(self._base.glob("sb-*")):
            with contextlib.suppress(SandboxGone):
                sandbox = LocalSandbox(directory, self.confinement, self._reach)
                meta = sandbox.meta()
                if tags.items() <= meta["tags"].items():
                    sandbox.end_when_idle()
                    found.append(SandboxInfo(directory.name, meta["tags"], meta["created_at"]))
        return found

    def snapshots(self) -> tuple[SnapshotInfo, ...]:
        """Oldest first."""
        return tuple(self._snapshots.all())

    def remove_snapshot(self, image: str) -> bool:
        """False while something is put on it."""
        return self._snapshots.remove(image)


class LocalSandbox:
    """One sandbox; any number of threads may use it at once."""

    def __init__(self, directory: Path, confinement: Confinement, reach: egress.Reach = egress.reach) -> None:
        self.id = directory.name
        self.root = directory / "root"
        self.running = directory / "running"
        self._directory = directory
        self._confinement = confinement
        self._reach = reach
        self._snapshots = LocalSnapshots(directory.parent)

    def begin(self, spec: SandboxSpec, below: Sequence[str] = ()) -> None:
        """Write what the sandbox is; from here on it exists. Raises SandboxRefused when its name is in use."""
        now = time.time()
        tags = {**spec.tags, "name": spec.name}
        meta = {"created_at": now, "ends_at": now + spec.lifetime_s, "tags": tags, "env": dict(spec.env)}
        meta |= {"workdir": spec.workdir, "network": spec.network, "sockets": dict(spec.sockets)}
        meta |= {"readable": list(spec.readable), "layers": dict(spec.layers), "hosts": list(spec.hosts)}
        meta |= {"idle_s": spec.idle_s, "cpu": spec.cpu, "memory_mb": spec.memory_mb, "below": list(below)}
        self._limit(meta)
        with held(self._directory.parent):
            for other in self._directory.parent.glob(f"{self.id[:-_UNIQUE]}*"):
                with contextlib.suppress(SandboxGone):
                    if LocalSandbox(other, self._confinement).alive()["tags"].get("name") == spec.name:
                        raise SandboxRefused(f"a sandbox named {spec.name[:200]!r} is there already")
            self._note(meta)

    def _note(self, meta: Mapping[str, Any]) -> None:
        """Not for good, only whole: after the loss of power nothing of a sandbox can be relied on."""
        written = self._directory / f".meta-{uuid.uuid4().hex[:8]}"
        written.write_text(json.dumps(meta), encoding="utf-8")
        written.replace(self._directory / "meta.json")

    def meta(self) -> dict[str, Any]:
        """Raises SandboxGone."""
        try:
            found: dict[str, Any] = json.loads((self._directory / "meta.json").read_bytes())
        except (OSError, ValueError) as e:
            raise SandboxGone(f"sandbox {self.id} is over") from e
        return found

    def outlive(self, seconds: float) -> None:
        """Let what a crash has left be looked after, however long ago its lifetime was over: once, and only for so long.

        Raises SandboxGone.
        """
        meta, now = self.meta(), time.time()
        if now <= meta["ends_at"] or meta.get("outlived"):
            return
        meta |= {"ends_at": now + seconds, "outlived": True}
        with contextlib.suppress(OSError):  # a full disk: it is over, as it was
            self._note(meta)

    def end_when_idle(self) -> None:
        """Raises SandboxGone when it was to end because nothing has run in it for so long; it has then."""
        idle_s = self.meta().get("idle_s")
        if idle_s is None or self._commands():
            return
        with contextlib.suppress(FileNotFoundError):
            if time.time() - self.running.stat().st_mtime > idle_s:
                self.terminate()
                raise SandboxGone(f"sandbox {self.id} was ended: nothing has run in it for {idle_s} s")

    def _commands(self) -> list[int]:
        """Those that run."""
        found = []
        for note in self.running.glob("[0-9]*"):
            with contextlib.suppress(FileNotFoundError):
                if start_time(int(note.name)) == note.read_text(encoding="ascii"):
                    found.append(int(note.name))
        return found

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
        meta = self._in_use()
        groups = self._groups()
        if not all(group.exists() for group in groups):
            self._limit(meta)
        ended_before = memory_kills(groups)
        began = time.monotonic()
        with contextlib.ExitStack() as around:
            try:
                around.enter_context(held(self._directory, shared=True))
            except FileNotFoundError as e:
                raise SandboxGone(f"sandbox {self.id} is over") from e
            confined = self._confined(meta, argv, cwd, env or {}, around)
            deadline = time.monotonic() + max(0.0, min(timeout_s, meta["ends_at"] - time.time()))
            process = around.enter_context(self._started(confined, groups, stdin is not None, meta.get("cpu")))
            watched = self._watched(process.pid, meta, groups)
            WATCH.add(watched)
            try:
                outcome = attend(process, stdin, deadline, on_output, cancelled, keep_bytes)
            finally:
                WATCH.remove(watched)
        if not (self._directory / "meta.json").exists():
            raise SandboxGone(f"sandbox {self.id} was ended while a command ran in it")
        if outcome.ended == "cancelled":
            raise Cancelled("cancelled while a command ran in its sandbox")
        if meta.get("memory_mb") and memory_kills(groups) > ended_before:
            _say(outcome, f"a process was ended: more than {meta['memory_mb']:,} MB of memory used", on_output)
        if watched.over:
            _say(outcome, f"the command was ended: {watched.over}", on_output)
        timed_out = outcome.ended == "timeout"
        code = 137 if watched.over else process.returncode
        return ExecResult(
            exit_code=124 if timed_out else code if code >= 0 else 128 - code,
            stdout=bytes(outcome.tails["stdout"]),
            stderr=bytes(outcome.tails["stderr"]),
            timed_out=timed_out,
            truncated=outcome.truncated,
            duration_s=time.monotonic() - began,
        )

    def _confined(
        self,
        meta: Mapping[str, Any],
        argv: Sequence[str],
        cwd: str | None,
        env: Mapping[str, str],
        around: contextlib.ExitStack,
    ) -> Confined:
        """How `argv` is to be started; what it needs until it ends is there `around` it."""
        # A gateway that has gone took its folder along; what it served is not there, and the rest can still be had.
        sockets = {inside: host for inside, host in meta["sockets"].items() if Path(host).parent.is_dir()}
        if meta["network"] == "allowlist":
            folder = self._folder_for_now("egress-", around)
            marks = {"sandbox": self.id, **{k: str(v) for k, v in meta["tags"].items() if k in ("build", "task")}}
            proxy = EgressProxy(
                folder, meta.get("hosts", ()), self._reach, self._directory.parent / "egress.jsonl", marks
            )
            sockets[EGRESS_SOCKET] = str(around.enter_context(proxy).socket)
        overlay = None
        if below := self._snapshots.layers(meta.get("below", ())):
            above = self.root / "workspace"
            above.mkdir(exist_ok=True)
            # One for each mount: a second one clears the room of the first, which then cannot write any more.
            overlay = Overlay(below, above, self._folder_for_now("room-", around))
        return self._confinement.confine(
            self.root,
            argv,
            cwd=cwd or meta["workdir"],
            env={**meta["env"], **env},
            network=meta["network"],
            sockets=sockets,
            readable=meta.get("readable", ()),
            layers=meta.get("layers", {}),
            overlay=overlay,
        )

    def _folder_for_now(self, prefix: str, around: contextlib.ExitStack) -> Path:
        try:
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=self._directory))
        except OSError as e:
            raise SandboxError(f"cannot start a command in sandbox {self.id}: {e}") from e
        around.callback(remove_tree, folder)
        return folder

    def _watched(self, pid: int, meta: Mapping[str, Any], groups: Sequence[Path]) -> Watched:
        watched = Watched(pid, self.root)
        if not groups:
            watched.processes = MAX_PROCESSES
            watched.memory_bytes = (meta.get("memory_mb") or 0) << 20 or None
        return watched

    def _limit(self, meta: Mapping[str, Any]) -> None:
        """Have its limits held by the kernel, where it does that."""
        if (made := control_groups()) is not None:
            groups = made.make(self.id, Limits(meta.get("cpu"), meta.get("memory_mb"), MAX_PROCESSES))
            (self._directory / "groups").write_text("\n".join(map(str, groups)), encoding="utf-8")

    def _groups(self) -> tuple[Path, ...]:
        with contextlib.suppress(OSError):
            return tuple(Path(line) for line in (self._directory / "groups").read_text(encoding="utf-8").splitlines())
        return ()

    def write(self, path: str, data: bytes) -> None:
        files = self._files()
        try:
            with held(self._directory, shared=True):
                files.write(path, data)
        except OSError as e:
            raise SandboxError(f"cannot write {path} in sandbox {self.id}: {e.strerror}") from e

    def read(self, path: str, *, max_bytes: int = 32 << 20) -> bytes:
        files = self._files()
        try:
            data = files.read(path, max_bytes)
        except OSError as e:
            raise FileMissing(f"cannot read {path} in sandbox {self.id}: {e.strerror}") from e
        if len(data) > max_bytes:
            raise TooLarge(f"{path} in sandbox {self.id} is larger than {max_bytes:,} bytes")
        return data

    def _files(self) -> LayeredFiles:
        return LayeredFiles(self.root, self._snapshots.layers(self._in_use().get("below", ())))

    def snapshot(self) -> str:
        """While no command runs in it: one that runs would go on changing what has been kept."""
        self._in_use()
        if isinstance(self._confinement, Unconfined):
            raise SandboxRefused("sandboxes without isolation make no snapshots: what runs in them knows where it lies")
        with held(self._directory, wait=False) as mine:
            if not mine:
                raise SandboxError(
                    f"sandbox {self.id} has a command running in it; a snapshot is made when it has ended"
                )
            meta = self.meta()
            layered = self._confinement.can_overlay(self._directory.parent)
            name = self._snapshots.prepare(self.root, meta.get("below", []), self.id, layered=layered)
            if layered:
                try:
                    self._note(meta | {"below": [name, *meta.get("below", [])]})
                    self._snapshots.finish(name, self.root)
                except OSError as e:
                    raise SandboxError(f"cannot make a snapshot of sandbox {self.id}: {e.strerror or e}") from e
        return SCHEME + name

    def cost(self) -> Decimal | None:
        return None

    def terminate(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self._directory / "meta.json").unlink()
        self.end_commands()
        remove_groups(self._groups())
        remove_tree(self._directory)

    def end_commands(self) -> None:
        for note in self.running.glob("[0-9]*") if self.running.exists() else ():
            with contextlib.suppress(FileNotFoundError):
                end_tree(int(note.name), note.read_text(encoding="ascii"))
        end_groups(self._groups())
        if isinstance(self._confinement, Unconfined):
            kill(carrying(ROOT_VARIABLE, str(self.root)))

    def host_path(self, path: str) -> Path:
        """Where `path` of the sandbox lies on the host; for what we made ourselves, never for what an agent may have."""
        return self.root / Path(path).relative_to("/")

    def alive(self) -> dict[str, Any]:
        """What it is. Raises SandboxGone."""
        meta = self.meta()
        if time.time() > meta["ends_at"]:
            raise SandboxGone(f"sandbox {self.id} has reached the end of its lifetime")
        return meta

    def _in_use(self) -> dict[str, Any]:
        """As `alive`; from now on it has been idle for no time."""
        meta = self.alive()
        if meta.get("idle_s") is not None:
            self.end_when_idle()
            with contextlib.suppress(FileNotFoundError):
                os.utime(self.running)
        return meta

    @contextlib.contextmanager
    def _started(
        self, confined: Confined, groups: Sequence[Path], feed: bool, cpu: float | None
    ) -> Iterator["subprocess.Popen[bytes]"]:
        """A running process with its note; at the end nothing of its tree is left."""
        pipe = subprocess.PIPE
        try:
            with on_cores(None if groups else cpu):
                process = subprocess.Popen(  # its own session: a Ctrl-C at the terminal is ours to handle, not its
                    [*entering(groups), *confined.argv],
                    env=confined.env,
                    stdin=pipe if feed else subprocess.DEVNULL,
                    stdout=pipe,
                    stderr=pipe,
                    start_new_session=True,
                    pass_fds=confined.descriptors,
                )
        except OSError as e:
            raise SandboxError(f"cannot start a command in sandbox {self.id}: {e}") from e
        finally:
            for descriptor in confined.descriptors:
                os.close(descriptor)
        note = self.running / str(process.pid)
        started = start_time(process.pid)
        try:
            with contextlib.suppress(FileNotFoundError):
                note.write_text(started or "", encoding="ascii")
            yield process
        finally:
            self._end(process, started)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
            with contextlib.suppress(FileNotFoundError):
                note.unlink()

    def _end(self, process: "subprocess.Popen[bytes]", started: str | None) -> None:
        if process.poll() is None and isinstance(self._confinement, Unconfined):
            process.send_signal(signal.SIGTERM)  # the supervisor knows orphans that we cannot find any more
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
        if process.poll() is None:
            end_tree(process.pid, started)
        process.wait()


def _say(outcome: Outcome, line: str, on_output: Callable[[Stream, bytes], None] | None) -> None:
    said = f"longshot: {line}\n".encode()
    outcome.add("stderr", said)
    if on_output is not None:
        on_output("stderr", said)


def _new_id(name: str) -> str:
    """Begins alike for sandboxes of one name, so that another one of that name is found among hundreds."""
    return f"sb-{hashlib.sha256(name.encode()).hexdigest()[:6]}{uuid.uuid4().hex[:_UNIQUE]}"
