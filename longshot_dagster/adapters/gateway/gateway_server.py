"""What the gateway serves: one unix socket per task, behind which the keys, the token counts and the budget are.

A sandbox is given the folder with its own socket and nothing else. The control socket lies in a folder that only the
owner can enter; on it a request is a line, `{"ask": NAME, ...}`, and so is its answer, `{"answer": {...}}`,
`{"refused": "why"}` or `{"failed": "what"}`. With `gateway_upstream.py` the only importer of aiohttp.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

from longshot_dagster.adapters.gateway.gateway_turns import MAX_AT_ONCE, few_connections
from longshot_dagster.adapters.gateway.gateway_upstream import Answer, Tuning, Upstream
from longshot_dagster.adapters.gateway.token_counts import TokenCounts, is_key, write_accounts
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.core.endpoints import Endpoint, endpoints_from_wire
from longshot_dagster.core.errors import LongshotError, WrongUse
from longshot_dagster.core.model_apis import Api, acting_elsewhere, api_of_path
from longshot_dagster.core.refusals import BUDGET_EXHAUSTED, Kind, Refusal
from longshot_dagster.core.usage import StreamMeter, estimated, reported
from longshot_dagster.version import __version__

MAX_REQUEST_BYTES = 64 << 20
MAX_SOCKET_PATH = 107  # bytes, Linux
_MAX_CONTROL_BYTES = 4 << 20
_FLUSH_S = 0.5
_PLANNERS = "planner-"  # how their keys begin
# Nothing else of an endpoint is reachable from a sandbox: no files, no fine-tuning, no account.
_POSTS = frozenset({"completions", *(api.path for api in Api)})

_Asked = Mapping[str, Any]  # of the control socket
_Told = dict[str, Any]

log = logging.getLogger("longshot.gateway")


class GatewayServer:
    """Sockets, accounts and forwarding in one event loop."""

    def __init__(self, home: Home, endpoints: tuple[Endpoint, ...], tuning: Tuning) -> None:
        self._runtime = home.runtime
        self._counts = TokenCounts(home.gateway)
        self._upstream = Upstream(endpoints, tuning)
        self._sockets: dict[str, tuple[str, str]] = {}
        self._turns: dict[str, asyncio.Semaphore] = {}
        self._servers: dict[str, asyncio.Server] = {}
        self._in_flight = 0
        self._stopping = asyncio.Event()
        self._writing = asyncio.Lock()
        self._looked: asyncio.Task[None] | None = None

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until told to stop; `ready` is called once the control socket answers."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        # A client that hangs up cancels its request, so that nobody pays for an answer nobody reads.
        self._tasks_runner = web.AppRunner(
            self._task_app(), handler_cancellation=True, access_log=None, shutdown_timeout=1
        )
        control_path = self._runtime / "gateway.sock"
        async with self._upstream:
            await self._tasks_runner.setup()
            await self._reopen()
            _make_room(control_path)
            control_server = await asyncio.start_unix_server(
                self._control, str(control_path), backlog=1024, limit=_MAX_CONTROL_BYTES
            )
            flusher = asyncio.create_task(self._keep_flushing())
            self._look_again()
            log.info("serving %s", ", ".join(e.label for e in self._upstream.endpoints) or "no endpoint")
            ready()
            try:
                await self._stopping.wait()
            finally:
                control_server.close()
                control_path.unlink(missing_ok=True)
                self._stopping.set()
                if self._looked:
                    self._looked.cancel()
                for server in self._servers.values():
                    server.close()
                await self._tasks_runner.cleanup()
                await flusher
                self._flush()
                log.info("stopped")

    # --- sockets -----------------------------------------------------------------------------------------------------

    async def _listen(self, path: Path) -> asyncio.Server:
        _make_room(path)
        assert self._tasks_runner.server is not None
        ends = few_connections(self._tasks_runner.server, path)
        return await asyncio.get_running_loop().create_unix_server(ends, path=str(path), backlog=64)

    def _socket_path(self, build: str, key: str) -> Path:
        short = hashlib.sha256(f"{build}/{key}".encode()).hexdigest()[:12]
        return self._runtime / "t" / short / "model.sock"

    async def _open_socket(self, build: str, key: str) -> str:
        path = str(self._socket_path(build, key))
        if path not in self._servers:
            self._servers[path] = await self._listen(Path(path))
            self._sockets[path] = (build, key)
            self._turns[path] = asyncio.Semaphore(MAX_AT_ONCE)
        return path

    def _close_socket(self, build: str, key: str) -> None:
        path = self._socket_path(build, key)
        self._sockets.pop(str(path), None)
        self._turns.pop(str(path), None)
        if server := self._servers.pop(str(path), None):
            server.close()
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()

    async def _reopen(self) -> None:
        """Sockets that a gateway before this one had open: their sandboxes may still be at work."""
        for build, key in self._counts.left_open():
            if self._socket_path(build, key).parent.is_dir():
                await self._open_socket(build, key)
            else:
                self._counts.close(build, key)

    # --- accounts ----------------------------------------------------------------------------------------------------

    async def _keep_flushing(self) -> None:
        said = ""
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), _FLUSH_S)
            why = ""
            try:
                await self._written()
            except OSError as e:
                why = e.strerror or str(e)  # without the name of a temporary file, which is another each time
            if why and why != said:
                log.error("cannot write token counts: %s", why)
            elif said and not why:
                log.warning("token counts are written again")
            said = why

    async def _written(self) -> None:
        """Whatever has been counted is in its file now. One writes at a time, so that no older state replaces a newer one;
        those that come meanwhile share the next.
        """
        async with self._writing:
            if documents := self._counts.take_dirty():
                try:
                    await asyncio.to_thread(write_accounts, documents)
                except OSError:
                    self._counts.not_written(documents)
                    raise

    def _flush(self) -> None:
        write_accounts(self._counts.take_dirty())

    # --- a task's socket ---------------------------------------------------------------------------------------------

    def _task_app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_REQUEST_BYTES)
        app.router.add_route("*", "/{path:.*}", self._from_task)
        return app

    async def _from_task(self, request: web.Request) -> web.StreamResponse:
        socket = str(request.transport.get_extra_info("sockname")) if request.transport else ""
        owner, turn = self._sockets.get(socket), self._turns.get(socket)
        if owner is None or turn is None:
            return _error(404, "unknown_task", "this task's model socket is closed")
        path = request.match_info["path"].removeprefix("v1/")
        if not (request.method == "POST" and path in _POSTS) and (request.method, path) != ("GET", "models"):
            served = "only chat/completions, completions, responses, messages and models are served here"
            return _error(404, "not_found", served, api=api_of_path(path))
        build, key = owner
        self._in_flight += 1
        try:
            async with turn:
                if self._counts.exhausted(build):
                    spent = f"build {build} has spent its MAX_TOKENS_PER_BUILD"
                    return _error(403, BUDGET_EXHAUSTED, spent, api=api_of_path(path))
                return await self._forward(request, build, key, path)
        finally:
            self._in_flight -= 1

    async def _forward(self, request: web.Request, build: str, key: str, path: str) -> web.StreamResponse:
        body, stream, api = await request.read(), False, api_of_path(path)
        account = self._counts.build(build).accounts.get(key)
        if request.method == "POST":
            try:
                asked = json.loads(body)
            except (ValueError, RecursionError):
                asked = None
            if not isinstance(asked, dict):
                return _error(400, Kind.REJECTED, "the request's body is not a JSON object", api=api)
            if account and account.model and asked.get("model") != account.model:
                other = f"the model of this build is {account.model}; no other one is served here"
                return _error(404, Kind.NOT_FOUND, other, api=api)
            if api and (what := acting_elsewhere(api, asked)):
                return _error(400, Kind.REJECTED, f"{what} would act outside of the sandbox: not passed on", api=api)
            stream = asked.get("stream") is True
            if stream and api is Api.CHAT:
                options = asked.get("stream_options")
                asked["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
                body = json.dumps(asked).encode()
        timeout_s = (account.timeout_s if account else None) or self._upstream.tuning.timeout_s
        outcome = await self._upstream.ask(
            request.method,
            f"{path}?beta=true" if api is Api.MESSAGES and request.query.get("beta") == "true" else path,
            request.headers,
            body or None,
            stream=stream,
            timeout_s=timeout_s,
            planner=key.startswith(_PLANNERS),
        )
        if isinstance(outcome, Refusal):
            log.warning("%s/%s: %s", build, key, self._upstream.scrub(outcome.line))
            return _refused(outcome, api)
        if outcome.response is not None:
            return await self._pass_stream(request, outcome, build, key, len(body))
        if request.method == "POST":
            told = reported(outcome.document)
            tokens = told or estimated(len(body), len(outcome.body))
            self._counts.charge(build, key, tokens, estimated=told is None)
        return web.Response(body=outcome.body, status=outcome.status, content_type=outcome.content_type)

    async def _pass_stream(
        self, request: web.Request, answer: Answer, build: str, key: str, sent_bytes: int
    ) -> web.StreamResponse:
        """Pass an event stream on as it comes; however it ends, what was used is charged."""
        assert answer.response is not None
        meter = StreamMeter()
        passed = web.StreamResponse(status=answer.status, headers={"content-type": answer.content_type})
        try:
            await passed.prepare(request)
            async for chunk in answer.response.content.iter_any():
                meter.feed(chunk)
                await passed.write(chunk)
            await passed.write_eof()
        except (ConnectionResetError, asyncio.CancelledError):
            raise  # the client is gone
        except Exception as e:  # the endpoint broke off: the client must see a broken stream, not a short answer
            log.warning("%s/%s: stream of %s broke off: %s", build, key, answer.endpoint.label, type(e).__name__)
            if request.transport:
                request.transport.abort()
        finally:
            answer.response.close()
            meter.end()
            tokens = meter.usage or estimated(sent_bytes, meter.text_bytes)
            self._counts.charge(build, key, tokens, estimated=meter.usage is None)
            self._upstream.rehearsal = self._upstream.rehearsal or meter.rehearsal
        return passed

    # --- the control socket ------------------------------------------------------------------------------------------

    async def _control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: its requests, one after the other."""
        try:
            while line := await reader.readline():
                writer.write(json.dumps(await self._said(line)).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError, asyncio.CancelledError):
            pass  # it has gone, what it says never ends, or the gateway itself is ending
        finally:
            writer.close()

    async def _said(self, line: bytes) -> _Told:
        try:
            asked = json.loads(line)
            return {"answer": await self._asks[asked["ask"]](asked)}
        except LongshotError as e:
            return {"refused": str(e)}
        except (KeyError, ValueError, TypeError) as e:
            return {"refused": f"the gateway did not understand the request ({type(e).__name__})"}
        except Exception as e:  # a full disk
            log.exception("a request could not be served")
            return {"failed": type(e).__name__}

    @property
    def _asks(self) -> Mapping[str, Callable[[_Asked], Coroutine[Any, Any, _Told]]]:
        return {
            "open": self._open,
            "close": self._close,
            "usage": self._usage,
            "status": self._status,
            "endpoints": self._serve,
            "probe": self._probe_all,
            "examine": self._examine,
            "stop": self._stop,
        }

    async def _open(self, asked: _Asked) -> _Told:
        build, key = _owner(asked)
        path = await self._open_socket(build, key)
        timeout_s = asked.get("timeout_s")
        model, budget = asked.get("model"), int(asked.get("budget") or 0)
        self._counts.open(build, key, budget, float(timeout_s) if timeout_s else None, str(model) if model else None)
        # Killed a moment later, the next gateway opens this socket again. A full disk is told by whoever closes it.
        with contextlib.suppress(OSError):
            await self._written()
        return {"path": path, "usage": vars(self._counts.usage(build, key))}

    async def _close(self, asked: _Asked) -> _Told:
        build, key = _owner(asked)
        self._close_socket(build, key)
        self._counts.close(build, key)
        await self._written()
        return {"usage": vars(self._counts.usage(build, key))}

    async def _usage(self, asked: _Asked) -> _Told:
        return vars(self._counts.usage(asked["build"], asked.get("key")))

    async def _status(self, asked: _Asked) -> _Told:
        if self._looked and not self._looked.done():
            await asyncio.wait([self._looked], timeout=5)
        return {
            "pid": os.getpid(),
            "version": __version__,
            "endpoints": [{"name": e.name, "host": e.host, "weight": e.weight} for e in self._upstream.endpoints],
            "rehearsal": self._upstream.rehearsal,
            "sockets": len(self._sockets),
            "in_flight": self._in_flight,
            "waiting": self._upstream.waiting,
        }

    async def _serve(self, asked: _Asked) -> _Told:
        endpoints = endpoints_from_wire(asked.get("endpoints"))
        before = self._upstream.endpoints
        moved = {e.url for e in before} != {e.url for e in endpoints}
        if moved and before and self._in_flight:
            serving = ", ".join(e.label for e in before)
            raise WrongUse(
                f"the gateway of this LONGSHOT_HOME is working with {serving}: wait, `longshot down`, or use another LONGSHOT_HOME"
            )
        if endpoints and endpoints != before:
            self._upstream.replace(endpoints)
            if moved:
                self._upstream.rehearsal = False
                self._look_again()
            log.info("now serving %s", ", ".join(e.label for e in endpoints))
        return {}

    async def _probe_all(self, asked: _Asked) -> _Told:
        api = Api(asked.get("api") or Api.CHAT)
        found = await asyncio.gather(*(self._probe(e, asked.get("model"), api) for e in self._upstream.endpoints))
        problems = [{"kind": r.kind, "line": r.line} for r in found if r]
        return {"endpoints": len(found), "problems": problems}

    async def _probe(self, endpoint: Endpoint, model: str | None, api: Api) -> Refusal | None:
        refusal, models = await self._upstream.look(endpoint)
        spoken = None if refusal and refusal.kind.lasting else await self._speaks(endpoint, api)
        if spoken is False:
            return Refusal(Kind.OTHER_API, endpoint.label, detail=api.spoken)
        # Some endpoints list no models, or not all they serve: then only an answer tells.
        if model and (model not in models or not spoken) and (refusal is None or not refusal.kind.lasting):
            refusal = await self._upstream.try_model(endpoint, model, timeout_s=60, api=api)
        # What may have passed in a moment is the planner's first round to find out, with the gateway's patience.
        passing = (Kind.RATE_LIMITED, Kind.TIMEOUT)
        return None if refusal and refusal.kind in passing else refusal

    async def _speaks(self, endpoint: Endpoint, api: Api) -> bool | None:
        """An endpoint that does not say what it speaks is taken to speak chat completions."""
        if api is Api.CHAT and endpoint.apis is None:
            return True
        return await self._upstream.learn(endpoint, api)

    async def _examine(self, asked: _Asked) -> _Told:
        return {"endpoints": await self._upstream.examine(str(asked["model"]), Api(asked.get("api") or Api.CHAT))}

    async def _stop(self, asked: _Asked) -> _Told:
        asyncio.get_running_loop().call_later(0.05, self._stopping.set)
        return {}

    def _look_again(self) -> None:
        async def look() -> None:
            await asyncio.gather(*(self._upstream.look(e) for e in self._upstream.endpoints))

        if self._looked:
            self._looked.cancel()
        self._looked = asyncio.create_task(look())


def _make_room(path: Path) -> None:
    """For a socket at `path`. Raises WrongUse when no socket can be there."""
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise WrongUse(f"{path} is longer than a unix socket's path may be; set TMPDIR to a shorter folder")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)


def _owner(asked: _Asked) -> tuple[str, str]:
    build, key = asked.get("build"), asked.get("key")
    if not isinstance(build, str) or not is_key(key):
        raise WrongUse("the gateway needs the names of a build and of a task or planner")
    return build, str(key)


def _error(status: int, kind: str, message: str, *, api: Api | None = None, **more: object) -> web.Response:
    error = {"error": {"type": kind, "code": kind, "message": message, **more}}
    return web.json_response({"type": "error", **error} if api is Api.MESSAGES else error, status=status)


def _refused(refusal: Refusal, api: Api | None) -> web.Response:
    # Of what it has itself done wrong, the agent must read the endpoint's own words, for instance "context too long".
    told = refusal.detail or refusal.line if refusal.kind is Kind.REJECTED else refusal.line
    response = _error(refusal.http_status, refusal.kind, told, api=api, endpoint=refusal.endpoint)
    if refusal.retry_after_s:
        response.headers["retry-after"] = f"{refusal.retry_after_s:.0f}"
    return response
