"""The sandboxes of a loopback server, by every name that Modal gives them, and how each comes to its end."""

import asyncio
import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from modal_proto import api_pb2

from longshot_dagster.core.errors import SandboxRefused
from longshot_dagster.core.sandbox import NetworkMode, SandboxProvider, SandboxSpec
from longshot_dagster.testing.loopback_modal.container import Command, Container
from longshot_dagster.testing.loopback_modal.spoken import Bell

TERMINATED = api_pb2.GenericResult.GENERIC_STATUS_TERMINATED
TIMED_OUT = api_pb2.GenericResult.GENERIC_STATUS_TIMEOUT
IDLE = api_pb2.GenericResult.GENERIC_STATUS_IDLE_TIMEOUT
SUCCESS = api_pb2.GenericResult.GENERIC_STATUS_SUCCESS
FAILURE = api_pb2.GenericResult.GENERIC_STATUS_FAILURE
_DEFAULT_LIFETIME_S = 300
_DEFAULT_WORKDIR = "/root"
_LAST_LOOK_S = 60.0  # what a sandbox's commands have said can be read for so long after its end
_ENTRYPOINT = "entrypoint"
_REMEMBERED = 2048  # sandboxes that have ended


@dataclass
class Sandbox:
    """One sandbox as Modal describes it; `container` does what is asked of it."""

    id: str
    app_id: str
    definition: api_pb2.Sandbox
    env: Mapping[str, str]
    tags: dict[str, str]
    container: Container = field(init=False)
    created_at: float = field(default_factory=time.time)
    result: api_pb2.GenericResult | None = None
    ended_at: float | None = None
    over: Bell = field(default_factory=Bell)
    timers: list[asyncio.TimerHandle] = field(default_factory=list)

    @property
    def task_id(self) -> str:
        return f"ta-{self.id[3:]}V"

    @property
    def name(self) -> str:
        return self.definition.name

    @property
    def workdir(self) -> str:
        return self.definition.workdir or _DEFAULT_WORKDIR


class Sandboxes:
    """All of one server. Used on its loop only."""

    def __init__(self, provider: SandboxProvider) -> None:
        self._provider = provider
        self._numbers = itertools.count(1)
        self._by_id: dict[str, Sandbox] = {}
        self._by_task: dict[str, Sandbox] = {}
        self._names: dict[tuple[str, str], str] = {}  # (app, name) -> id, of those alive or being made
        self._last_made_at = 0.0
        self.made = 0
        self.most_at_once = 0
        self.left = 0  # when the server ended
        self._tasks: set[asyncio.Future[None]] = set()

    def by_id(self, sandbox_id: str) -> Sandbox | None:
        return self._by_id.get(sandbox_id)

    def by_task(self, task_id: str) -> Sandbox | None:
        return self._by_task.get(task_id)

    def by_name(self, name: str) -> list[Sandbox]:
        """Those that have or had it, the newest first."""
        return sorted((s for s in self._by_id.values() if s.name == name), key=lambda s: -s.created_at)

    def listed(self, app_id: str, tags: Mapping[str, str], before: float, finished: bool) -> list[Sandbox]:
        """The newest first."""
        found = [
            s
            for s in self._by_id.values()
            if (not app_id or s.app_id == app_id)
            and (finished or s.result is None)
            and tags.items() <= s.tags.items()
            and (not before or s.created_at < before)
        ]
        return sorted(found, key=lambda s: -s.created_at)

    def held_bytes(self) -> int:
        commands = [c for s in list(self._by_id.values()) for c in list(s.container.commands.values())]
        return sum(c.stdout.held_bytes + c.stderr.held_bytes for c in commands)

    async def create(
        self,
        request: api_pb2.SandboxCreateV2Request,
        env: Mapping[str, str],
        image: str,
    ) -> Sandbox:
        """Raises FileExistsError for a name in use, SandboxRefused, SandboxError; `image` is of the provider."""
        definition = request.definition
        # "sb-" and 22 letters would be one of the first generation, which the SDK speaks to otherwise.
        sandbox_id = f"sb-{next(self._numbers):022d}Z"
        named = (request.app_id, definition.name)
        if definition.name and self._names.setdefault(named, sandbox_id) != sandbox_id:
            raise FileExistsError(definition.name)
        tags = {tag.tag_name: tag.tag_value for tag in request.tags}
        made = Sandbox(sandbox_id, request.app_id, definition, env, tags)
        self._last_made_at = made.created_at = max(made.created_at, self._last_made_at + 1e-6)  # lists page by it
        lifetime_s = definition.timeout_secs or _DEFAULT_LIFETIME_S
        try:
            box = await asyncio.to_thread(self._provider.create, self._spec(made, image, lifetime_s))
        except BaseException:
            self._names.pop(named, None)
            raise
        made.container = Container(box, lifetime_s + 60, lambda: self._died(made))
        self._by_id[made.id] = self._by_task[made.task_id] = made
        self.made += 1
        self.most_at_once = max(self.most_at_once, sum(s.result is None for s in self._by_id.values()))
        self._set_timers(made, lifetime_s)
        if definition.entrypoint_args:
            self._enter(made)
        return made

    async def end(self, sandbox: Sandbox, status: "api_pb2.GenericResult.GenericStatus.ValueType", code: int) -> None:
        """Idempotent: the first reason stays."""
        if sandbox.result is not None:
            return
        sandbox.result = api_pb2.GenericResult(status=status, exitcode=code)
        sandbox.ended_at = time.time()
        for timer in sandbox.timers:
            timer.cancel()
        self._names.pop((sandbox.app_id, sandbox.name), None)
        sandbox.over.ring()
        await sandbox.container.end()
        asyncio.get_running_loop().call_later(_LAST_LOOK_S, sandbox.container.forget)
        self._forget_old()

    async def end_all(self) -> None:
        living = [s for s in self._by_id.values() if s.result is None]
        self.left = len(living)
        await asyncio.gather(*(self.end(s, TERMINATED, 137) for s in living))

    def _spec(self, sandbox: Sandbox, image: str, lifetime_s: float) -> SandboxSpec:
        resources = sandbox.definition.resources
        able = self._provider.capabilities
        network, hosts = _network(sandbox.definition.network_access)
        return SandboxSpec(
            name=sandbox.id,
            image=image,
            env={"HOME": "/root", **sandbox.env},
            workdir=sandbox.workdir,
            network=network,
            hosts=hosts,
            lifetime_s=int(lifetime_s) + 60,  # ours comes first and says why
            cpu=resources.milli_cpu_max / 1000 or None if able.enforces_cpu else None,
            memory_mb=resources.memory_mb_max or None if able.enforces_memory else None,
        )

    def _set_timers(self, sandbox: Sandbox, lifetime_s: float) -> None:
        loop = asyncio.get_running_loop()
        sandbox.timers.append(loop.call_later(lifetime_s, self._end_soon, sandbox, TIMED_OUT, 124))
        if idle_s := sandbox.definition.idle_timeout_secs:
            self._watch_idle(sandbox, idle_s, time.monotonic())

    def _watch_idle(self, sandbox: Sandbox, idle_s: float, since: float) -> None:
        now = time.monotonic()
        busy_at = now if sandbox.container.running() else max(since, sandbox.container.last_ended_at)
        if now - busy_at >= idle_s:
            self._end_soon(sandbox, IDLE, 0)
            return
        loop = asyncio.get_running_loop()
        wait_s = min(1.0, max(0.05, busy_at + idle_s - now))
        sandbox.timers[1:] = [loop.call_later(wait_s, self._watch_idle, sandbox, idle_s, busy_at)]

    def _end_soon(self, sandbox: Sandbox, status: "api_pb2.GenericResult.GenericStatus.ValueType", code: int) -> None:
        self._keep(asyncio.ensure_future(self.end(sandbox, status, code)))

    def _enter(self, sandbox: Sandbox) -> None:
        """The command that the sandbox was made for: it ends with it."""
        argv = list(sandbox.definition.entrypoint_args)
        command = sandbox.container.start(_ENTRYPOINT, argv, cwd=sandbox.workdir, env={}, timeout_s=None)
        self._keep(asyncio.ensure_future(self._left(sandbox, command)))

    async def _left(self, sandbox: Sandbox, command: Command) -> None:
        code = await command.ended()
        await self.end(sandbox, SUCCESS if code == 0 else FAILURE, code if code >= 0 else 128 - code)

    def _died(self, sandbox: Sandbox) -> None:
        self._end_soon(sandbox, FAILURE, 137)

    def _keep(self, task: "asyncio.Future[None]") -> None:
        """Until it is done: the loop itself would forget it."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _forget_old(self) -> None:
        ended = [s for s in self._by_id.values() if s.result is not None]
        for old in ended[:-_REMEMBERED]:
            del self._by_id[old.id], self._by_task[old.task_id]


def entrypoint(sandbox: Sandbox) -> Command | None:
    return sandbox.container.commands.get(_ENTRYPOINT)


def _network(asked: api_pb2.NetworkAccess) -> tuple[NetworkMode, tuple[str, ...]]:
    """Raises SandboxRefused for addresses in place of names."""
    if asked.network_access_type == api_pb2.NetworkAccess.BLOCKED:
        return "none", ()
    if asked.network_access_type != api_pb2.NetworkAccess.ALLOWLIST:
        return "open", ()
    if asked.allowed_cidrs:
        raise SandboxRefused("the loopback server allows hosts by name only, no outbound_cidr_allowlist")
    return ("allowlist", tuple(asked.allowed_domains)) if asked.allowed_domains else ("none", ())
