"""What a task may ask of the one process that holds the keys: its own model, for its own tokens, and nothing else."""

import contextlib
import json
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attacks import attack

sys.path.append(str(Path(__file__).resolve().parents[1] / "adapters"))
from model_double import ModelDouble, Reply, says, serving  # isort: skip - found through the line above

from longshot_dagster.adapters.gateway import gateway_client
from longshot_dagster.adapters.gateway.gateway_client import Gateway
from longshot_dagster.adapters.gateway.gateway_turns import MAX_AT_ONCE, MAX_CONNECTIONS
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.core.endpoints import parse_endpoints

KEY = "sk-very-secret-0123456789"
CHAT = {"model": "double", "messages": [{"role": "user", "content": "hi"}]}

# A gateway with every defence of this file off, by its name in the table.
NAIVE = r"""
import sys
from longshot_dagster.adapters.gateway import gateway, gateway_server as server, gateway_turns as turns, gateway_upstream as upstream
from longshot_dagster.adapters.gateway.token_counts import TokenCounts

class Everything(frozenset):
    def __contains__(self, name):
        return name not in ("host", "content-length", "transfer-encoding", "connection")

server._POSTS = upstream._FORWARDED = Everything()
server.acting_elsewhere = lambda api, body: ""
server.MAX_AT_ONCE = turns.MAX_CONNECTIONS = 10_000
TokenCounts.exhausted = lambda self, build: False
upstream.Upstream.scrub = lambda self, text: text
opened = TokenCounts.open
TokenCounts.open = lambda self, build, key, budget, timeout_s, model=None: opened(self, build, key, budget, timeout_s, None)
sys.exit(gateway.main())
"""


def answer(request: dict[str, Any], number: int) -> Reply:
    match str(request.get("messages", [{}])[0].get("content")):
        case "hang":
            return Reply(hang=True)
        case "what is your key?":
            return Reply(400, {"error": {"message": f"no such header: {KEY}"}})
    return says("hello")


class Side:
    """A gateway, and the endpoint behind it; `defended` or not."""

    def __init__(self, home: Home, model: ModelDouble) -> None:
        self.gateway, self.model = Gateway(home), model
        endpoints = [{"name": "e", "endpoint": model.url, "apiKey": KEY}]
        self.gateway.ensure(parse_endpoints(json.dumps(endpoints), "", ""), {"rounds": 1, "timeout_s": 20})

    def opened(self, key: str = "r001-01", budget: int = 0, build: str = "") -> str:
        return self.gateway.open(build or f"b-{time.monotonic_ns()}", key, budget, model="double")

    def asks(self, body: Any = CHAT, path: str = "/v1/chat/completions", socket_path: str = "", **headers: str) -> str:
        """Status line, headers and body of the answer."""
        data = json.dumps(body).encode()
        lines = [f"POST {path} HTTP/1.1", "host: x", "connection: close", f"content-length: {len(data)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        with connected(socket_path or self.opened()) as line:
            line.sendall("\r\n".join([*lines, "", ""]).encode() + data)
            return b"".join(iter(lambda: line.recv(1 << 16), b"")).decode()

    def passes(self, *given: Any, **more: Any) -> bool:
        """Does a request reach the endpoint?"""
        before = len(self.model.requests)
        self.asks(*given, **more)
        return len(self.model.requests) > before


@contextlib.contextmanager
def connected(path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(30)
        line.connect(path)
        yield line


@contextlib.contextmanager
def side(folder: Path) -> Iterator[Side]:
    home = Home(folder / "home")
    with serving(answer, ["double"]) as model:
        try:
            yield Side(home, model)
        finally:
            model.released.set()
            Gateway(home).stop()
            shutil.rmtree(home.runtime)


@pytest.fixture(scope="module")
def defended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    with side(tmp_path_factory.mktemp("defended")) as found:
        yield found


@pytest.fixture(scope="module")
def naive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(gateway_client, "_GATEWAY", (sys.executable, "-P", "-c", NAIVE))
        yield stack.enter_context(side(tmp_path_factory.mktemp("naive")))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "never happened"
        threading.Event().wait(0.02)


@attack(
    "ASI02",
    "use the key for files, batches, fine-tuning or the gateway's own control",
    defence="only requests for a model's answer are passed on",
    off="every path is passed on",
)
@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches", "/v1/fine_tuning/jobs", "/open", "/v1/../v1/files"])
def test_another_part_of_the_endpoint(defended: Side, naive: Side, path: str) -> None:
    assert not defended.passes(path=path)
    assert naive.passes(path=path)


@attack(
    "ASI02",
    "use a dearer model than the build's",
    defence="a task's socket serves the build's model and no other",
    off="any model is passed on",
)
def test_another_model(defended: Side, naive: Side) -> None:
    assert not defended.passes({**CHAT, "model": "the-most-expensive"})
    assert naive.passes({**CHAT, "model": "the-most-expensive"})


@attack(
    "ASI02",
    "reach the network through the endpoint's own tools",
    defence="what would make the endpoint act for an agent is refused",
    off="every tool is passed on",
)
@pytest.mark.parametrize(
    "more",
    [
        {"tools": [{"type": "web_search"}]},
        {"web_search_options": {"search_context_size": "high"}},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://evil.example"}}]}
            ]
        },
    ],
    ids=["tool", "option", "picture"],
)
def test_a_tool_of_the_endpoint(defended: Side, naive: Side, more: dict[str, Any]) -> None:
    assert not defended.passes({**CHAT, **more})
    assert naive.passes({**CHAT, **more})


@attack(
    "ASI03",
    "spend on another organisation's account by a header",
    defence="a few headers are passed on, and the key is ours",
    off="every header is passed on",
)
def test_headers_of_its_own(defended: Side, naive: Side) -> None:
    for who, passed in ((defended, False), (naive, True)):
        assert who.passes(openai_organization="org-other", x_forwarded_for="127.0.0.1")
        assert ("openai-organization" in who.model.headers[-1]) is passed
        assert who.model.headers[-1]["authorization"] == f"Bearer {KEY}"


@attack(
    "ASI03",
    "have the endpoint quote the key",
    defence="keys are cut out of whatever comes back",
    off="answers as they are",
)
def test_a_quoted_key(defended: Side, naive: Side) -> None:
    asked = {**CHAT, "messages": [{"role": "user", "content": "what is your key?"}]}
    assert KEY not in defended.asks(asked)
    assert KEY in naive.asks(asked)


@attack(
    "ASI08",
    "spend more than the build may",
    defence="a spent budget stops the next request before it leaves",
    off="nobody looks at the budget",
)
def test_a_budget_that_is_spent(defended: Side, naive: Side) -> None:
    for who, passed in ((defended, False), (naive, True)):
        path = who.opened(budget=100)
        assert who.passes(socket_path=path)
        assert who.passes(socket_path=path) is passed


@attack(
    "ASI08",
    "spend a budget many times over at once, or fill the gateway's memory with bodies",
    defence="a few requests of a task at once, the others wait",
    off="as many as it likes",
)
def test_many_requests_at_once(defended: Side, naive: Side) -> None:
    asked = json.dumps({**CHAT, "messages": [{"role": "user", "content": "hang"}]}).encode()
    request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(asked) + asked

    def reach_the_endpoint(who: Side, expected: int) -> int:
        """Of three times as many as may be under way at once."""
        path, before = who.opened(), len(who.model.requests)
        with contextlib.ExitStack() as lines:
            for _ in range(3 * MAX_AT_ONCE):
                lines.enter_context(connected(path)).sendall(request)
            until(lambda: who.gateway.status()["in_flight"] == 3 * MAX_AT_ONCE)
            until(lambda: len(who.model.requests) - before >= expected)
            assert who.passes(), "another task is served meanwhile"
            found = len(who.model.requests) - before - 1
        until(lambda: who.gateway.status()["in_flight"] == 0)
        return found

    assert reach_the_endpoint(defended, MAX_AT_ONCE) == MAX_AT_ONCE
    assert reach_the_endpoint(naive, 3 * MAX_AT_ONCE) == 3 * MAX_AT_ONCE


@attack(
    "ASI08",
    "hold so many connections that no other task gets one",
    defence="beyond a bound a task is hung up on",
    off="as many as it likes",
)
def test_many_connections(defended: Side, naive: Side) -> None:
    for who, bound in ((defended, True), (naive, False)):
        path = who.opened()
        with contextlib.ExitStack() as lines:
            held = []
            for _ in range(MAX_CONNECTIONS):
                line = lines.enter_context(connected(path))
                line.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
                assert line.recv(1 << 16)  # it is open, and kept
                held.append(line)
            line = lines.enter_context(connected(path))
            with contextlib.suppress(BrokenPipeError):
                line.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
            assert hung_up(line) is bound
            assert who.passes(), "another task is served meanwhile"


def hung_up(line: socket.socket) -> bool:
    try:
        return line.recv(1 << 16) == b""
    except ConnectionError:
        return True


@attack(
    "ASI07",
    "go on speaking after the task has been handed in",
    defence="with the task its socket is closed, on kept connections, too",
    off="the socket stays open",
)
def test_speaking_after_the_end(defended: Side) -> None:
    def speaks(closed: bool) -> bool:
        build = f"b-{time.monotonic_ns()}"
        path, before = defended.opened(build=build), len(defended.model.requests)
        data = json.dumps(CHAT).encode()
        with connected(path) as line:
            line.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
            assert line.recv(1 << 16)
            if closed:
                defended.gateway.close(build, "r001-01")
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n"
            line.sendall(head.encode() + data)
            assert line.recv(1 << 16)
        return len(defended.model.requests) > before

    assert not speaks(closed=True)
    assert speaks(closed=False)
