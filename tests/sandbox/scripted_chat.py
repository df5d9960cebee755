"""A chat completions endpoint on a unix socket that plays a list of replies and remembers what it was asked."""

import json
import socketserver
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler
from typing import Any

TOKENS = {"prompt_tokens": 100, "completion_tokens": 20}


def says(text: str, finish: str = "stop") -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}], "usage": TOKENS}


def calls(*wanted: tuple[str, Any]) -> dict[str, Any]:
    """An answer that calls each (tool, arguments); arguments that are a text are sent as they are."""
    made = [
        {
            "id": f"c{n}",
            "type": "function",
            "function": {"name": t, "arguments": a if isinstance(a, str) else json.dumps(a)},
        }
        for n, (t, a) in enumerate(wanted)
    ]
    message = {"role": "assistant", "content": None, "tool_calls": made}
    return {"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": TOKENS}


def done(status: str = "complete", summary: str = "did it", **more: Any) -> dict[str, Any]:
    return says(
        "All done.\n```json\n" + json.dumps({"status": status, "summary": summary, "concerns": [], **more}) + "\n```"
    )


class ScriptedChat:
    """Replies in order, the last one again and again; a reply is a body, or (HTTP status, body). A context manager."""

    def __init__(self, path: str, replies: Sequence[Any]) -> None:
        self.path = path
        self.replies = list(replies)
        self.asked: list[dict[str, Any]] = []
        self.tokens_in = self.tokens_out = 0
        self._server = _Server(path, _handler(self))

    def __enter__(self) -> "ScriptedChat":
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def reply(self, body: dict[str, Any]) -> tuple[int, Any]:
        self.asked.append(body)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        status, answer = reply if isinstance(reply, tuple) else (200, reply)
        if status == 200 and isinstance(answer, dict) and "usage" in answer:
            self.tokens_in += answer["usage"]["prompt_tokens"]
            self.tokens_out += answer["usage"]["completion_tokens"]
        return status, answer


class _Server(socketserver.ThreadingUnixStreamServer):
    request_queue_size = 64


def _handler(chat: ScriptedChat) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, answer = chat.reply(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def address_string(self) -> str:  # a unix peer has no address
            return "unix"

        def log_message(self, *_: object) -> None:
            pass

    return Handler
