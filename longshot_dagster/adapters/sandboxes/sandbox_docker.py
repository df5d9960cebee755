"""Sandboxes that are containers of a Docker Engine, or of podman.

A container has no capabilities, no new privileges, a user of its own, and no file of this host. Whoever has its labels finds
it from any process; what runs in it goes on when its client dies. Its first process ends it after its lifetime, and then the
engine removes it, with or without us.

    image      Longshot's own, which is built once (DEFAULT_IMAGE), or SANDBOX_IMAGE, which is pulled when it is not there; it
               has `python3`. `docker:longshot-snapshot:...` is a snapshot: a commit
    user       the image's own, or 1000 when that is root
    network    none, or open: the engine's bridge. No list of hosts: the engine can keep to none
    labels     the tags, as one JSON text, so that those of a snapshot's image do not shine through
"""

import contextlib
import hashlib
import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from longshot_dagster.adapters.sandboxes import inside
from longshot_dagster.adapters.sandboxes.docker_command import attend, pouring
from longshot_dagster.adapters.sandboxes.docker_engine import Engine, packed, speaking, status_of
from longshot_dagster.adapters.sandboxes.heard import Heard
from longshot_dagster.adapters.sandboxes.own_mark import own_mark
from longshot_dagster.core import contract
from longshot_dagster.core.display import one_line
from longshot_dagster.core.errors import Cancelled, SandboxError, SandboxGone, SandboxRefused
from longshot_dagster.core.sandbox import WORKDIR, Capabilities, ExecResult, SandboxInfo, SandboxSpec, Stream
from longshot_dagster.core.settings import Settings

DEFAULT_IMAGE = "longshot-worker"
SNAPSHOTS = "longshot-snapshot"
_PREFIX = "docker:"
_BY, _TAGS, _MADE_OF = "longshot.by", "longshot.tags", "longshot.made-of"
_FOLDERS = tuple(path.strip("/") for path in (WORKDIR, contract.DIRECTORY, contract.OUT, inside.HOME))
_USER = 1000
_PROCESSES = 4096
_MAX_FILE_BYTES = 2 << 30
_GOING_S = 15.0
_KILLED = 137
_LOOKS = 8
_MAX_PASSWD = 1 << 20


class DockerProvider:
    """Containers of the engine that DOCKER_HOST names. `folder` keeps what this installation remembers of it."""

    name = "docker"

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._folder = folder / "docker"
        self._image = settings.sandbox_image
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._able: Capabilities | None = None
        self._cores = 1.0
        self._users: dict[str, tuple[int, int, bytes | None]] = {}

    @property
    def engine(self) -> Engine:
        """Raises SandboxRefused."""
        with self._lock:
            if self._engine is None:
                self._engine = Engine()
            return self._engine

    @property
    def capabilities(self) -> Capabilities:
        """Raises SandboxRefused when no engine answers."""
        if self._able is None:
            with speaking("ask the engine what it can do"):
                info = self.engine.client.info()
            self._cores = float(info.get("NCPU") or 1)  # a limit above what there is, the engine refuses
            self._able = Capabilities(
                isolation="container",
                network=frozenset({"none", "open"}),
                enforces_cpu=bool(info.get("CpuCfsQuota")),
                enforces_memory=bool(info.get("MemoryLimit")),
                survives_client=True,
                enforces_idle=True,
                snapshots=True,
            )
        return self._able

    def create(self, spec: SandboxSpec) -> "DockerSandbox":
        self._check(spec)
        image = self._found_image(spec.image)
        try:
            with speaking("make a container"):
                user = self._user(image)
                made = self.engine.api.create_container(**self._described(spec, image, user))
        except SandboxError as e:
            if status_of(e.__cause__) == 409:
                raise SandboxRefused(f"there is a sandbox named {one_line(spec.name, 80)} already") from e
            raise
        sandbox = DockerSandbox(self, made["Id"])
        try:
            with speaking("start a container"):
                self._furnish(sandbox.id, spec, user)
                self.engine.api.start(sandbox.id)
        except SandboxError as e:
            sandbox.terminate()
            if status_of(e.__cause__) in (400, 404, 500):
                raise SandboxRefused(f"a container of {image} does not start; it needs python3: {e}") from e
            raise
        return sandbox

    def list(self, tags: Mapping[str, str]) -> list[SandboxInfo]:
        # A build's name is its own; anything else may be another installation's.
        label = _TAGS if "build" in tags else f"{_BY}={own_mark(self._folder)}"
        with speaking("list the containers"):
            found = self.engine.api.containers(filters={"label": [label], "status": ["running", "paused"]})
        infos = [SandboxInfo(c["Id"], _tags(c["Labels"]), float(c["Created"])) for c in found]
        return [info for info in infos if tags.items() <= info.tags.items()]

    def attach(self, sandbox_id: str) -> "DockerSandbox":
        if not re.fullmatch(r"[0-9a-f]{64}", sandbox_id):
            raise SandboxGone(f"{sandbox_id[:80]!r} is no container of ours")
        found = DockerSandbox(self, sandbox_id)
        found.spec()
        return found

    def snapshots(self) -> Sequence[tuple[str, float]]:
        """(what `snapshot()` returned, when) of this installation's, oldest first."""
        with speaking("list the images"):
            found = self.engine.api.images(filters={"label": [f"{_BY}={own_mark(self._folder)}"]})
        kept = [(f"{_PREFIX}{tag}", float(i["Created"])) for i in found for tag in i.get("RepoTags") or ()]
        return sorted((one for one in kept if one[0].startswith(f"{_PREFIX}{SNAPSHOTS}:")), key=lambda one: one[1])

    def remove_snapshot(self, image: str) -> None:
        """Idempotent. Raises SandboxError while a sandbox is made of it."""
        with contextlib.suppress(SandboxGone), speaking("remove a snapshot"):
            self.engine.api.remove_image(image.removeprefix(_PREFIX))

    def close(self) -> None:
        with self._lock:
            if self._engine is not None:
                self._engine.close()
            self._engine = None

    # --- making one --------------------------------------------------------------------------------------------------

    def _check(self, spec: SandboxSpec) -> None:
        """Raises SandboxRefused for the first thing that cannot be kept."""
        able = self.capabilities
        refused = {
            "limit a network to some hosts": spec.network not in able.network,
            "give a GPU": bool(spec.gpu),
            "keep secrets": bool(spec.secrets),
            "limit CPU cores on this engine": spec.cpu is not None and not able.enforces_cpu,
            "limit memory on this engine": spec.memory_mb is not None and not able.enforces_memory,
            "reach sockets of this host": bool(spec.sockets),
            "show folders of this host": bool(spec.layers or spec.readable),
            "be over before they begin": spec.lifetime_s <= 0,
        }
        for what, wanted in refused.items():
            if wanted:
                raise SandboxRefused(f"docker sandboxes cannot {what}")

    def _found_image(self, wanted: str) -> str:
        """Raises SandboxRefused."""
        image = (wanted or self._image or DEFAULT_IMAGE).removeprefix(_PREFIX)
        if wanted.startswith(_PREFIX) and not re.fullmatch(rf"{SNAPSHOTS}:[0-9a-f]{{32}}", image):
            raise SandboxRefused(f"{one_line(wanted, 80)} is no snapshot of a docker sandbox")
        with contextlib.suppress(SandboxGone), speaking(f"look for the image {image}"):
            self.engine.api.inspect_image(image)
            return image
        if wanted.startswith(_PREFIX):
            raise SandboxRefused(f"the snapshot {image} is not there any more")
        if image == DEFAULT_IMAGE:
            raise SandboxRefused(
                f"there is no image {image}; build it: longshot harnesses dockerfile | docker build -t {image} - , or name another as SANDBOX_IMAGE"
            )
        with self._lock_of_pulls:
            self.engine.pull(image)
        return image

    _lock_of_pulls = threading.Lock()

    def _described(self, spec: SandboxSpec, image: str, user: tuple[int, int, bytes | None]) -> dict[str, Any]:
        api = self.engine.api
        limit = spec.memory_mb * (1 << 20) if spec.memory_mb is not None else None
        host = api.create_host_config(
            network_mode="none" if spec.network == "none" else "bridge",
            nano_cpus=int(min(spec.cpu, self._cores) * 1e9) if spec.cpu is not None else None,
            mem_limit=limit,
            memswap_limit=limit,
            pids_limit=_PROCESSES,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            ulimits=[
                {"Name": "fsize", "Soft": _MAX_FILE_BYTES, "Hard": _MAX_FILE_BYTES},
                {"Name": "core", "Soft": 0, "Hard": 0},
            ],
            auto_remove=True,
        )
        made_of = {"workdir": spec.workdir, "env": dict(spec.env), "uid": user[0], "gid": user[1]}
        by = own_mark(self._folder)
        return {
            "image": image,
            "name": _container_name(by, spec.name),
            "entrypoint": inside.entry(spec.lifetime_s, spec.idle_s),
            "command": [],
            "user": f"{user[0]}:{user[1]}",
            "working_dir": "/",
            "hostname": "sandbox",
            "healthcheck": {"test": ["NONE"]},
            "labels": {_BY: by, _TAGS: json.dumps({**spec.tags, "name": spec.name}), _MADE_OF: json.dumps(made_of)},
            "host_config": host,
        }

    def _user(self, image: str) -> tuple[int, int, bytes | None]:
        """(user, group, a new /etc/passwd when the image's does not know that user) for containers of `image`."""
        config = self.engine.api.inspect_image(image)
        known = self._users.get(config["Id"])
        if known is None:
            known = self._users[config["Id"]] = self._asked(image, str(config["Config"].get("User") or ""))
        return known

    def _asked(self, image: str, named: str) -> tuple[int, int, bytes | None]:
        api = self.engine.api
        probe = api.create_container(image, entrypoint=["true"], command=[], network_disabled=True)["Id"]
        try:
            passwd = self.engine.get(probe, "/etc/passwd", _MAX_PASSWD)
        except SandboxError:
            passwd = b""
        finally:
            api.remove_container(probe, force=True, v=True)
        rows = [row.split(":") for row in passwd.decode(errors="replace").splitlines() if row.count(":") >= 6]
        name = named.partition(":")[0]
        for row in rows:
            if name in (row[0], row[2]) and name and row[2] != "0":
                return int(row[2]), int(row[3]), None
        if name.isdigit() and name != "0":
            return int(name), int(name), None
        if any(row[2] == str(_USER) for row in rows):
            return next((int(r[2]), int(r[3]), None) for r in rows if r[2] == str(_USER))
        ours = f"agent:x:{_USER}:{_USER}:agent:{inside.HOME}:/bin/sh\n".encode()
        return _USER, _USER, (passwd or b"root:x:0:0:root:/root:/bin/sh\n") + ours

    def _furnish(self, container: str, spec: SandboxSpec, user: tuple[int, int, bytes | None]) -> None:
        """What a fresh container needs before it starts."""
        uid, gid, passwd = user
        own = dict.fromkeys([*_FOLDERS, spec.workdir.strip("/")])
        folders = [] if spec.image.startswith(_PREFIX) else [(f, 0o755, None) for f in own]
        self.engine.put(container, "/", packed(*folders, uid=uid, gid=gid))
        if passwd is not None:
            self.engine.put(container, "/", packed(("etc/passwd", 0o644, passwd), uid=0, gid=0))


class DockerSandbox:
    """One container; any number of threads may use it at once."""

    def __init__(self, provider: DockerProvider, container: str) -> None:
        self.id = container
        self._provider = provider
        self._known: dict[str, Any] | None = None

    def spec(self) -> dict[str, Any]:
        """What its commands need: workdir, env, uid, gid. Raises SandboxGone when it is over."""
        with speaking(f"reach the sandbox {self.id[:12]}"):
            found = self._api.inspect_container(self.id)
        if not found["State"]["Running"]:
            raise SandboxGone(f"sandbox {self.id[:12]} is over")
        if self._known is None:
            labels = found["Config"]["Labels"] or {}
            if _MADE_OF not in labels:
                raise SandboxGone(f"{self.id[:12]} is no sandbox of ours")
            self._known = dict(json.loads(labels[_MADE_OF]))
        return self._known

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
        began = time.monotonic()
        spec, mark, heard = self.spec(), uuid.uuid4().hex, Heard(keep_bytes, on_output)
        with speaking("start a command"):
            prepared = self._api.exec_create(self.id, inside.run(mark), stdin=True)["Id"]
            talk = self._provider.engine.start(prepared)
        told = inside.fed(argv, cwd or spec["workdir"], {**spec["env"], **(env or {})}, stdin)
        ended = "trouble"
        try:
            with pouring(told, talk.socket):
                ended = attend(talk, heard, began + timeout_s, cancelled)
        finally:
            talk.close()
            if ended != "exit":
                self._end(mark, prepared)
        if ended == "cancelled":
            raise Cancelled("cancelled while a command ran in its sandbox")
        if ended == "timeout":
            self.spec()
            return heard.result(124, time.monotonic() - began, timed_out=True)
        return heard.result(self._exit_code(prepared), time.monotonic() - began)

    def write(self, path: str, data: bytes) -> None:
        folder, name = _split(path)
        spec = self.spec()
        archive = packed((name, 0o644, data), uid=spec["uid"], gid=spec["gid"])
        with speaking(f"write {path}"):
            if self._provider.engine.put(self.id, folder, archive):
                return
            self.spec()
            made = self.exec(["mkdir", "-p", "--", folder], timeout_s=60, cwd="/")
            if made.exit_code != 0 or not self._provider.engine.put(self.id, folder, archive):
                raise SandboxError(f"cannot write {path}: {one_line(made.stderr.decode(errors='replace'), 200)}")

    def read(self, path: str, *, max_bytes: int = 32 << 20) -> bytes:
        folder, name = _split(path)
        self.spec()
        with speaking(f"read {path}"):
            return self._provider.engine.get(self.id, f"{folder.rstrip('/')}/{name}", max_bytes)

    def snapshot(self) -> str:
        self.spec()
        tag = uuid.uuid4().hex
        with speaking("snapshot a sandbox"):
            self._provider.engine.commit(self.id, SNAPSHOTS, tag)
        return f"{_PREFIX}{SNAPSHOTS}:{tag}"

    def cost(self) -> Decimal | None:
        return None

    def end_commands(self) -> None:
        self.spec()
        with contextlib.suppress(SandboxError):  # too many processes to start one more
            if self._quietly(inside.end_all()) == 0:
                return
        with speaking("end the commands of a sandbox"):
            self._api.restart(self.id, timeout=0)

    def terminate(self) -> None:
        deadline = time.monotonic() + _GOING_S
        while True:
            try:
                with speaking("remove a container"):
                    self._api.remove_container(self.id, force=True, v=True)
                    return
            except SandboxGone:
                return
            except SandboxError as e:  # the engine is at it already
                if status_of(e.__cause__) != 409 or time.monotonic() > deadline:
                    raise
            time.sleep(0.05)

    # --- commands ----------------------------------------------------------------------------------------------------

    @property
    def _api(self) -> Any:
        return self._provider.engine.api

    def _exit_code(self, prepared: str) -> int:
        """Raises SandboxGone when the command ended because its sandbox did."""
        deadline = time.monotonic() + _GOING_S
        while True:
            with speaking("ask how a command ended"):
                found = self._api.exec_inspect(prepared)
            if not found["Running"] and found["ExitCode"] is not None:
                break
            if time.monotonic() > deadline:
                raise SandboxError("the engine does not say how a command ended")
            time.sleep(0.02)
        code = int(found["ExitCode"])
        looks = _LOOKS if code == _KILLED else 1  # a container that ends is seen to a moment after its commands
        for look in range(looks):
            time.sleep(0.1 if look else 0)
            self.spec()
        return code

    def _end(self, mark: str, prepared: str) -> None:
        """End one command with everything it started, or, where that has become impossible, every command."""
        with contextlib.suppress(SandboxGone):
            try:
                code = self._quietly(inside.end(mark))
            except SandboxGone:
                raise
            except SandboxError:
                code = -1
            if code == 3:
                with speaking("ask how a command ended"):
                    found = self._api.exec_inspect(prepared)
                if found["Running"] or found["ExitCode"] == 137:  # somebody killed what watched over it
                    self.end_commands()
            elif code != 0:
                self.end_commands()

    def _quietly(self, argv: list[str]) -> int:
        with speaking("run a command"):
            prepared = self._api.exec_create(self.id, argv)["Id"]
            self._api.exec_start(prepared)
            return int(self._api.exec_inspect(prepared)["ExitCode"] or 0)


def _split(path: str) -> tuple[str, str]:
    """(folder, name). Raises SandboxError."""
    parts = [p for p in path.split("/") if p not in ("", ".")]
    if not path.startswith("/") or not parts or ".." in parts or "\0" in path:
        raise SandboxError(f"{path[:200]!r} is not an absolute path of a sandbox")
    return "/" + "/".join(parts[:-1]), parts[-1]


def _tags(labels: Mapping[str, str]) -> dict[str, str]:
    with contextlib.suppress(ValueError):
        found = json.loads(labels.get(_TAGS, "{}"))
        if isinstance(found, dict):
            return {str(k): str(v) for k, v in found.items()}
    return {}


def _container_name(by: str, name: str) -> str:
    """Of the characters that a container's name may have; what was cut or replaced ends in a hash."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "-", name)[:100]
    if plain != name:
        plain += "-" + hashlib.sha256(name.encode()).hexdigest()[:12]
    return f"longshot-{by[:8]}-{plain}"


def engine_trouble() -> str:
    """Why no container can be made here, in one line; empty: one can."""
    try:
        Engine().close()
    except SandboxRefused as e:
        return str(e)
    return ""
