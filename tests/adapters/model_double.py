"""A small OpenAI-compatible server for the gateway's and planner's tests: plays what a test scripts, and remembers."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    status: int = 200
    body: Any = None  # a dict is sent as JSON, bytes as they are
    headers: dict[str, str] = field(default_factory=dict)
    events: list[Any] | None = None  # a stream, when given
    hang: bool = False
    break_off: bool = False


def says(text: str, tokens: tuple[int, int] | None = (100, 20), **more: Any) -> Reply:
    body: dict[str, Any] = {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "double",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        **more,
    }
    if tokens:
        body["usage"] = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
    return Reply(body=body)


def calls(tool: str, **arguments: Any) -> Reply:
    reply = says("")
    call = {"id": "call_1", "type": "function", "function": {"name": tool, "arguments": json.dumps(arguments)}}
    reply.body["choices"] = [
        {
            "index": 0,
            "message": {"role": "assistant", "content": None, "tool_calls": [call]},
            "finish_reason": "tool_calls",
        }
    ]
    return reply


class ModelDouble:
    """`script(request, number)` gives the reply to the number-th chat request (from 1)."""

    def __init__(self, script: Callable[[dict[str, Any], int], Reply], models: list[str]) -> None:
        self.script = script
        self.models = models
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.released = threading.Event()
        self.lock = threading.Lock()
        self.url = ""

    def user_texts(self, number: int) -> list[str]:
        return [str(m["content"]) for m in self.requests[number]["messages"] if m["role"] == "user"]


@contextlib.contextmanager
def serving(script: Callable[[dict[str, Any], int], Reply], models: list[str] | None = None) -> Iterator[ModelDouble]:
    double = ModelDouble(script, ["double"] if models is None else models)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None: ...

        def do_GET(self) -> None:
            self._json(200, {"object": "list", "data": [{"id": m} for m in double.models]})

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with double.lock:
                double.requests.append(request)
                double.headers.append({k.lower(): v for k, v in self.headers.items()})
                double.paths.append(self.path)
                number = len(double.requests)
            reply = double.script(request, number)
            if reply.hang:
                double.released.wait(30)
                self.close_connection = True
                return
            if reply.events is not None:
                self._stream(reply)
            elif isinstance(reply.body, bytes):
                self._send(reply.status, reply.body, reply.headers)
            else:
                self._json(reply.status, reply.body, reply.headers)

        def _json(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
            self._send(status, json.dumps(body).encode(), {"content-type": "application/json", **(headers or {})})

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.close_connection = True  # a kept connection would keep its thread, and the test would wait for it
            self.send_response(status)
            for name, value in {
                "content-type": "text/html",
                **headers,
                "content-length": str(len(body)),
                "connection": "close",
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def _stream(self, reply: Reply) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for event in reply.events or []:
                data = f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode()
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            if not reply.break_off:
                self.wfile.write(b"0\r\n\r\n")
            self.close_connection = True

    class Server(ThreadingHTTPServer):
        daemon_threads = False
        block_on_close = True
        request_queue_size = 512

        def handle_error(self, request: object, address: object) -> None: ...  # clients hang up in these tests

    server = Server(("127.0.0.1", 0), Handler)
    double.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield double
    finally:
        double.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
