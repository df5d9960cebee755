"""A model endpoint that plays a script: for the demo, for tests, and for rehearsing a build without paying for one.

It speaks OpenAI's chat completions and responses and Anthropic's messages on 127.0.0.1, and says in every answer that it
is a rehearsal. `GET /log` lists the requests so far; `POST /faults` with a JSON list replaces the faults that are on. A
model whose name ends with `-` and a fault, such as `any-500`, has that fault always.

    python -m longshot_dagster.testing.scripted_model --script FILE [--port N]     prints {"port": N} when ready
"""

import argparse
import json
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.model_apis import Api, api_of_path
from longshot_dagster.core.usage import REHEARSAL_FINGERPRINT, REHEARSAL_MODEL
from longshot_dagster.testing.answers import Answer, Asked, answer, endless, spoiled, understand
from longshot_dagster.testing.languages import Event, Tokens, refused, streamed, whole
from longshot_dagster.testing.script import Fault, FaultKind, Script, load

HANG_LIMIT_S = 900.0  # a hanging answer ends then, even if the client is still there
_MAX_BODY = 64 << 20
_LOOK_S = 0.2  # between two looks at whether a waiting client is still there
_REFUSALS = {
    FaultKind.BAD_REQUEST: (400, "invalid_request_error", "scripted_refusal"),
    FaultKind.UNAUTHORIZED: (401, "authentication_error", "invalid_api_key"),
    FaultKind.RATE_LIMITED: (429, "rate_limit_error", "rate_limit_exceeded"),
    FaultKind.SERVER_ERROR: (500, "server_error", "internal_error"),
}
_FAULTS = TypeAdapter(list[Fault])


class ScriptedModel:
    """One server; `with ScriptedModel(script) as model:` or `.start()` and `.stop()`."""

    def __init__(self, script: Script, port: int = 0, hang_limit_s: float = HANG_LIMIT_S) -> None:
        self.script = script
        self.hang_limit_s = hang_limit_s
        self.stopping = threading.Event()
        self._port = port
        self._lock = threading.Lock()
        self._log: list[dict[str, Any]] = []
        self._faults: list[list[Any]] = []  # [fault, how often it still hits or None]
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self.set_faults(script.faults)

    def start(self) -> Self:
        """Listen; raises WrongUse when the port is taken."""
        try:
            self._server = _Server(self, self._port)
        except OSError as taken:
            raise WrongUse(f"the scripted model cannot listen on port {self._port}: {taken.strerror}") from None
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="scripted-model", daemon=True
        )
        self._thread.start()
        return self

    def stop(self) -> None:
        """Close every connection and wait for the threads that served them."""
        self.stopping.set()
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._server.hang_up()
        self._server.server_close()
        self._thread.join()
        self._server = self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def port(self) -> int:
        if self._server is None:
            raise WrongUse("the scripted model is not running")
        return int(self._server.server_address[1])

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def log(self) -> list[dict[str, Any]]:
        """Requests so far, oldest first: time, role, task (its id, or the round's key), step, fault, stream, authorized,
        api, model.
        """
        with self._lock:
            return [dict(entry) for entry in self._log]

    def set_faults(self, faults: tuple[Fault, ...] | list[Fault]) -> None:
        """These faults from now on, instead of those before."""
        with self._lock:
            self._faults = [[fault, fault.times] for fault in faults]

    def reply(self, asked: Asked) -> Answer:
        """What is answered; a model that knows more than a script says something else here."""
        return answer(self.script, asked)

    def take(self, asked: Asked, stream: bool, authorized: bool) -> FaultKind | None:
        """Write the request down and say how it is to fail, if it is."""
        with self._lock:
            fault = _fault_of(asked.model) or self._next_fault(asked)
            self._log.append(
                {
                    "time": time.time(),
                    "role": str(asked.role),
                    "task": asked.subject,
                    "step": asked.step,
                    "fault": fault and str(fault),
                    "stream": stream,
                    "authorized": authorized,
                    "api": str(asked.api),
                    "model": asked.model,
                }
            )
        return fault

    def _next_fault(self, asked: Asked) -> FaultKind | None:
        for entry in self._faults:
            fault, left = entry
            if left != 0 and fault.hits(asked.role, asked.text):
                entry[1] = None if left is None else left - 1
                kind: FaultKind = fault.fault
                return kind
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # server_close() then waits for them: no thread outlives stop()
    request_queue_size = 128

    def __init__(self, model: ScriptedModel, port: int) -> None:
        self.model = model
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        super().__init__(("127.0.0.1", port), _Connection)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._open_lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._open_lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients go away in the middle of an answer; that is theirs to report."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def hang_up(self) -> None:
        with self._open_lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    disable_nagle_algorithm = True  # a streamed answer is many small writes

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        match self.path.partition("?")[0]:
            case "/v1/models" | "/models":
                self._json(
                    200,
                    {
                        "object": "list",
                        "data": [{"id": REHEARSAL_MODEL, "object": "model", "owned_by": REHEARSAL_FINGERPRINT}],
                    },
                )
            case "/log":
                self._json(200, self.server.model.log)
            case _:
                self._refuse(404, "not_found", "no_such_path")

    def do_HEAD(self) -> None:
        """Some agents look whether anybody is there."""
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        body, path = self._body(), self.path.partition("?")[0]
        api = api_of_path(path.removeprefix("/").removeprefix("v1/"))
        if path == "/faults":
            self._switch_faults(body)
        elif api is None:
            self._refuse(404, "not_found", "no_such_path")
        elif not isinstance(body, dict):
            self._refuse(400, "invalid_request_error", "not_a_json_object", api)
        elif not body:
            self._refuse(400, "invalid_request_error", "no_model", api)
        else:
            self._complete(api, body)

    def _complete(self, api: Api, body: dict[str, Any]) -> None:
        model, asked, stream = self.server.model, understand(body, api), body.get("stream") is True
        key = self.headers.get("Authorization") or self.headers.get("x-api-key")
        fault = model.take(asked, stream, bool(key))
        if fault is FaultKind.HANG:
            self._wait(model.hang_limit_s)
            self.close_connection = True
            return
        if fault in _REFUSALS:
            self._refuse(*_REFUSALS[fault], api)
            return
        reply = endless(asked) if fault is FaultKind.LOOP else model.reply(asked)
        if (reply.delay_s or reply.held) and not self._wait(reply.delay_s, reply.held):
            self.close_connection = True
            return
        if fault not in (None, FaultKind.LOOP):
            reply = spoiled(reply, fault)
        tokens = Tokens(asked.prompt_tokens, reply.completion_tokens, wanted=_wants_usage(body))
        if stream:
            self._stream(streamed(api, reply, tokens))
        elif reply.dropped:
            self.close_connection = True
        else:
            self._json(200, whole(api, reply, tokens))

    def _switch_faults(self, body: Any) -> None:
        try:
            faults = _FAULTS.validate_python(body)
        except ValidationError:
            self._refuse(400, "invalid_request_error", "not_a_list_of_faults")
            return
        self.server.model.set_faults(faults)
        self._json(200, [fault.model_dump(mode="json") for fault in faults])

    def _wait(self, seconds: float, held: Callable[[], bool] | None = None) -> bool:
        """False when the client went away, or the server is being stopped, before `seconds` were over and `held` let go."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 or (held is not None and held()):
            left = left if left > 0 else _LOOK_S
            readable, _, _ = select.select([self.connection], [], [], min(left, _LOOK_S))
            if self.server.model.stopping.is_set() or (readable and not self.connection.recv(1, socket.MSG_PEEK)):
                return False
            if readable:  # the next request is already waiting: the client is there, and select would only spin
                self.server.model.stopping.wait(min(left, _LOOK_S))
        return True

    def _body(self) -> Any:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > _MAX_BODY:
            self.close_connection = True
            return None
        try:
            return json.loads(self.rfile.read(int(length)))
        except ValueError:
            return None

    def _refuse(self, status: int, kind: str, code: str, api: Api | None = None) -> None:
        self._json(status, refused(api, status, kind, code))

    def _json(self, status: int, document: Any) -> None:
        content = json.dumps(document, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if status == 429:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(content)

    def _stream(self, events: Iterator[Event]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        for name, document in events:
            head = f"event: {name}\n" if name else ""
            data = document if isinstance(document, str) else json.dumps(document, ensure_ascii=False)
            self.wfile.write(f"{head}data: {data}\n\n".encode())


def _fault_of(model: str) -> FaultKind | None:
    """The fault that the name of a model asks for."""
    _, dash, ending = model.rpartition("-")
    return FaultKind(ending) if dash and ending in set(FaultKind) else None


def _wants_usage(body: dict[str, Any]) -> bool:
    options = body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="longshot-scripted-model", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--script", type=Path, required=True, help="TOML or JSON file; docs/rehearsal.md describes it")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0: any free one")
    given = parser.parse_args(arguments)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    try:
        with ScriptedModel(load(given.script), given.port) as model:
            sys.stdout.write(json.dumps({"port": model.port}) + "\n")
            sys.stdout.flush()
            ended.wait()
    except WrongUse as wrong:
        sys.stderr.write(f"{wrong}\n")
        return wrong.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
