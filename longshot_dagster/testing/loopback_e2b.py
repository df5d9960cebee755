"""An E2B of this machine, for rehearsals: the unmodified `e2b` SDK makes sandboxes that are local processes.

    with loopback_e2b(folder) as env:        os.environ | env: any process with it uses this server, until the end

It answers the calls that our provider makes: sandboxes made, listed, looked up, attached to, snapshotted and ended over
REST, commands started and fed over envd's Connect protocol in JSON. A call that it does not know is refused, and the block
raises WrongUse at its end.

What it is not: templates are the host's /usr; `sudo` and users there are none; the network is closed, whatever was asked
for; no pauses, no files API, no terminals, no metrics; HTTP/1.1. Real E2B was not at hand when this was written: what it
does was read from its SDK, 2.63.
"""

import asyncio
import base64
import contextlib
import itertools
import json
import secrets
import threading
import time
import urllib.parse
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web

from longshot_dagster.adapters.sandboxes.sandbox_local import LocalProvider
from longshot_dagster.core.errors import SandboxError, WrongUse
from longshot_dagster.core.sandbox import SandboxSpec
from longshot_dagster.core.settings import Isolation
from longshot_dagster.testing.loopback_modal.container import Command, Container
from longshot_dagster.testing.loopback_modal.images import Images
from longshot_dagster.testing.loopback_modal.spoken import Spoken

_ENVD = "0.6.4"
_TEMPLATES = ("base", "longshot-worker")
_PAGE = 100
_LAST = 0x02  # flag of the envelope that ends a stream
_START_S = 20.0
_KEEP_ALIVE_S = 5.0


@dataclass
class _Sandbox:
    """`ends_at` is seconds since 1970."""

    id: str
    template: str
    metadata: dict[str, str]
    started_at: float
    ends_at: float
    container: Container
    timer: asyncio.TimerHandle | None = None

    def described(self) -> dict[str, Any]:
        return {
            "sandboxID": self.id,
            "templateID": self.template,
            "clientID": "loopback",
            "envdVersion": _ENVD,
            "metadata": self.metadata,
            "startedAt": _moment(self.started_at),
            "endAt": _moment(self.ends_at),
            "state": "running",
            "cpuCount": 1,
            "memoryMB": 1024,
            "diskSizeMB": 1024,
        }


class LoopbackE2B:
    """Serves between `start` and `stop`, in a thread of this process; its sandboxes lie in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.url = ""
        self.missing: list[str] = []
        self._folder = folder
        self._key = f"e2b_{secrets.token_hex(20)}"
        self._numbers = itertools.count(1)
        self._sandboxes: dict[str, _Sandbox] = {}
        self._images: dict[str, str] = {}
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._endings: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name="loopback e2b", daemon=True)

    def environment(self) -> dict[str, str]:
        return {"E2B_API_KEY": self._key, "E2B_API_URL": self.url, "E2B_SANDBOX_URL": self.url, "E2B_DEBUG": "false"}

    def start(self) -> None:
        """Raises SandboxRefused when this host cannot isolate, OSError."""
        self._thread.start()
        self._ready.wait(_START_S)
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        if self._loop is not None and self._stop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_START_S)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as e:
            self._failure = e
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._provider = LocalProvider(self._folder / "sandboxes", Isolation.AUTO)
        _ = self._provider.capabilities  # this host can isolate, or we say so now
        self._archives = Images(self._folder / "snapshots", self._provider)
        app = web.Application(middlewares=[self._checked], client_max_size=64 << 20)
        app.add_routes(
            [
                web.post("/v2/sandboxes", self._create),
                web.get("/v2/sandboxes", self._list),
                web.get("/sandboxes/{id}", self._look),
                web.delete("/sandboxes/{id}", self._kill),
                web.post("/v2/sandboxes/{id}/connect", self._connect),
                web.post("/sandboxes/{id}/snapshots", self._snapshot),
                web.get("/health", self._health),
                web.post("/process.Process/Start", self._start),
                web.post("/process.Process/SendInput", self._send_input),
            ]
        )
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()
        try:
            await self._stop.wait()
        finally:
            await asyncio.gather(*(self._end(s) for s in list(self._sandboxes.values())))
            await runner.cleanup()

    @web.middleware
    async def _checked(self, request: web.Request, handler: Any) -> web.StreamResponse:
        rest = request.path.startswith(("/v2/", "/sandboxes"))
        if rest and not secrets.compare_digest(request.headers.get("X-API-Key", ""), self._key):
            return _error(401, "no such key")
        try:
            answer: web.StreamResponse = await handler(request)
        except web.HTTPException as e:
            self.missing.append(f"{request.method} {request.path}")
            return _error(e.status, "the loopback server does not know this call")
        except SandboxError as e:
            return _error(400, str(e))
        return answer

    # --- sandboxes ---------------------------------------------------------------------------------------------------

    async def _create(self, request: web.Request) -> web.Response:
        asked = await request.json()
        template, lifetime_s = asked["templateID"], float(asked.get("timeout", 300))
        image = self._images.get(template, "")
        if template not in (*_TEMPLATES, *self._images):
            return _error(404, f"template '{template}' not found")
        number = f"i{next(self._numbers):07d}{secrets.token_hex(6)}"
        spec = SandboxSpec(
            name=number,
            image=image,
            env=asked.get("envVars") or {},
            workdir="/home/user",
            lifetime_s=int(lifetime_s) + 60,
        )
        box = await asyncio.to_thread(self._provider.create, spec)
        now = time.time()
        made = _Sandbox(
            number,
            template,
            dict(asked.get("metadata") or {}),
            now,
            now + lifetime_s,
            Container(box, lifetime_s + 60, lambda: None),
        )
        if template in self._images and not image:  # the local provider makes no snapshots here
            await self._archives.unpack(
                self._archives.get(template.removeprefix("snap-")), made.container, "/", over=True
            )
        self._sandboxes[number] = made
        loop = asyncio.get_running_loop()
        made.timer = loop.call_later(lifetime_s, lambda: self._end_soon(made))
        return web.json_response(made.described(), status=201)

    async def _list(self, request: web.Request) -> web.Response:
        pairs = urllib.parse.parse_qsl(request.query.get("metadata", ""), keep_blank_values=True)
        wanted = {urllib.parse.unquote(k): urllib.parse.unquote(v) for k, v in pairs}
        after = int(request.query.get("nextToken", "0"))
        found = [s.described() for s in self._sandboxes.values() if wanted.items() <= s.metadata.items()]
        more = {"x-next-token": str(after + _PAGE)} if len(found) > after + _PAGE else {}
        return web.json_response(found[after : after + _PAGE], headers=more)

    async def _look(self, request: web.Request) -> web.Response:
        sandbox = self._sandboxes.get(request.match_info["id"])
        return web.json_response(sandbox.described()) if sandbox else _error(404, "sandbox not found")

    async def _connect(self, request: web.Request) -> web.Response:
        return await self._look(request)

    async def _kill(self, request: web.Request) -> web.Response:
        sandbox = self._sandboxes.get(request.match_info["id"])
        if sandbox is None:
            return _error(404, "sandbox not found")
        await self._end(sandbox)
        return web.Response(status=204)

    async def _snapshot(self, request: web.Request) -> web.Response:
        sandbox = self._sandboxes.get(request.match_info["id"])
        if sandbox is None:
            return _error(404, "sandbox not found")
        image = await self._archives.snapshot(sandbox.container)
        self._images[f"snap-{image.id}"] = image.ref
        return web.json_response({"snapshotID": f"snap-{image.id}", "names": []}, status=201)

    def _end_soon(self, sandbox: _Sandbox) -> None:
        task = asyncio.ensure_future(self._end(sandbox))
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)

    async def _end(self, sandbox: _Sandbox) -> None:
        if self._sandboxes.pop(sandbox.id, None) is not None:
            if sandbox.timer is not None:
                sandbox.timer.cancel()
            await sandbox.container.end()

    # --- envd --------------------------------------------------------------------------------------------------------

    def _inside(self, request: web.Request) -> _Sandbox | None:
        return self._sandboxes.get(request.headers.get("E2b-Sandbox-Id", ""))

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=204) if self._inside(request) else _over()

    async def _start(self, request: web.Request) -> web.StreamResponse:
        sandbox = self._inside(request)
        if sandbox is None:
            return _over()
        asked = json.loads((await request.read())[5:])
        process, pid = asked["process"], next(self._numbers)
        argv = [process["cmd"], *process.get("args", [])]
        command = sandbox.container.start(
            str(pid), argv, cwd=process.get("cwd") or "/", env=process.get("envs") or {}, timeout_s=None
        )
        if not asked.get("stdin"):
            await command.feed(b"", 0, last=True)
        answer = web.StreamResponse(headers={"Content-Type": "application/connect+json"})
        await answer.prepare(request)
        await answer.write(_enveloped({"event": {"start": {"pid": pid}}}))
        async for event in _events(command):
            await answer.write(_enveloped({"event": event}))
        if sandbox.id not in self._sandboxes:  # it went down with its sandbox
            gone = {"error": {"code": "unavailable", "message": "the sandbox was not found"}}
            await answer.write(_enveloped(gone, _LAST))
            return answer
        code = await command.ended()
        shown = code if code >= 0 else -1
        ended = {"exitCode": shown, "exited": code >= 0, "status": f"exit status {code}"}
        await answer.write(_enveloped({"event": {"end": ended}}))
        await answer.write(_enveloped({}, _LAST))
        return answer

    async def _send_input(self, request: web.Request) -> web.Response:
        sandbox = self._inside(request)
        if sandbox is None:
            return _over()
        asked = await request.json()
        command = sandbox.container.commands.get(str(asked["process"]["pid"]))
        if command is None or command.code is not None:
            return web.json_response({"code": "not_found", "message": "no such process"}, status=404)
        with contextlib.suppress(BrokenPipeError):
            await command.feed(base64.b64decode(asked["input"]["stdin"]), command.given, last=False)
        return web.json_response({})


async def _events(command: Command) -> AsyncIterator[dict[str, Any]]:
    """What the command says on both streams, as envd words it, with signs of life between."""
    said: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue(8)

    async def follow(name: str, stream: Spoken) -> None:
        offset = 0
        while data := await stream.after(offset):
            offset += len(data)
            await said.put((name, data))
        await said.put((name, b""))

    following = [
        asyncio.ensure_future(follow(*each)) for each in (("stdout", command.stdout), ("stderr", command.stderr))
    ]
    open_streams = len(following)
    try:
        while open_streams:
            try:
                name, data = await asyncio.wait_for(said.get(), _KEEP_ALIVE_S)
            except TimeoutError:
                yield {"keepalive": {}}
                continue
            if data:
                yield {"data": {name: base64.b64encode(data).decode()}}
            else:
                open_streams -= 1
    finally:
        for task in following:
            task.cancel()


def _enveloped(message: Mapping[str, Any], flags: int = 0) -> bytes:
    data = json.dumps(message).encode()
    return bytes([flags]) + len(data).to_bytes(4, "big") + data


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"code": status, "message": message}, status=status)


def _over() -> web.Response:
    """How the service's own proxy answers for a sandbox that is not there."""
    return web.json_response({"code": 502, "message": "The sandbox was not found", "sandboxId": ""}, status=502)


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


@contextlib.contextmanager
def loopback_e2b(folder: Path) -> Iterator[dict[str, str]]:
    """The environment of a server in `folder`, as long as the block lasts. Raises WrongUse when it lacked a call."""
    server = LoopbackE2B(folder)
    server.start()
    try:
        yield server.environment()
    finally:
        server.stop()
    if server.missing:
        raise WrongUse(f"the loopback E2B server lacks {', '.join(sorted(set(server.missing)))}")
