"""The gateway as its clients meet it: a real process, real unix sockets, a scripted endpoint behind it."""

import concurrent.futures
import contextlib
import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from model_double import ModelDouble, Reply, says, serving

from longshot_dagster.adapters.gateway.gateway_client import Gateway
from longshot_dagster.adapters.host.exclusive import claim
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.endpoints import Endpoint, parse_endpoints
from longshot_dagster.core.errors import ModelUnavailable, WrongUse

KEY = "sk-very-secret-0123456789"
FAST = {"rounds": 3, "backoff_s": 0.01, "max_wait_s": 0.05, "timeout_s": 20}


def endpoints(*urls: str, key: str = KEY) -> tuple[Endpoint, ...]:
    items = [{"name": f"e{n}", "endpoint": u, "apiKey": key} for n, u in enumerate(urls)]
    return parse_endpoints(json.dumps(items), "", "")


@contextlib.contextmanager
def a_home(folder: Path) -> Iterator[Home]:
    found = Home(folder / "home")
    yield found
    Gateway(found).stop()
    shutil.rmtree(found.runtime)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A home of the test's own, for what kills or inspects the process."""
    with a_home(tmp_path) as found:
        yield found


@pytest.fixture(scope="module")
def one_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with a_home(tmp_path_factory.mktemp("gateway")) as found:
        yield found


@pytest.fixture
def shared(one_home: Home) -> Home:
    """One process for most tests: starting it takes a second. Each test serves its own endpoint."""
    gateway = Gateway(one_home)
    if gateway.alive():
        until(lambda: gateway.status()["in_flight"] == 0)
    return one_home


@pytest.fixture
def build(request: pytest.FixtureRequest) -> str:
    return "b-" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]


def started(home: Home, *urls: str, **tuning: float) -> Gateway:
    gateway = Gateway(home)
    gateway.ensure(endpoints(*urls), {**FAST, **tuning})
    return gateway


class Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("x", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self._path)


def ask(path: str, body: Any = None, url: str = "/v1/chat/completions") -> tuple[int, Any]:
    with contextlib.closing(Connection(path)) as c:
        sent = body if body is not None else {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        c.request(
            "POST",
            url,
            json.dumps(sent) if not isinstance(sent, bytes) else sent,
            {"content-type": "application/json", "authorization": "Bearer of-the-agent"},
        )
        response = c.getresponse()
        text = response.read().decode()
        try:
            return response.status, json.loads(text)
        except ValueError:
            return response.status, text


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "never happened"
        threading.Event().wait(0.02)


def constantly(reply: Reply) -> Callable[[dict[str, Any], int], Reply]:
    return lambda request, number: reply


def test_a_request_gets_the_key_and_is_counted_per_task_and_build(shared: Home, build: str) -> None:
    with serving(constantly(says("hello"))) as model:
        gateway = started(shared, model.url)
        one, two = gateway.open(build, "r001-01", 0), gateway.open(build, "planner-root", 0)
        assert ask(one)[1]["choices"][0]["message"]["content"] == "hello"
        ask(two)
        ask(two)
        assert model.headers[0]["authorization"] == f"Bearer {KEY}"
        assert (gateway.usage(build, "r001-01").tokens_in, gateway.usage(build, "r001-01").tokens_out) == (100, 20)
        assert gateway.usage(build).total == 360
        assert gateway.usage(build).requests == 3
        assert not gateway.usage(build).estimated
        assert gateway.usage(build, "r009-01").total == 0
        assert model.requests[0] == {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def test_an_answer_without_usage_is_estimated_and_marked(shared: Home, build: str) -> None:
    with serving(constantly(says("hello", tokens=None))) as model:
        gateway = started(shared, model.url)
        ask(gateway.open(build, "r001-01", 0))
        usage = gateway.usage(build, "r001-01")
        assert usage.estimated
        assert usage.tokens_in > 5
        assert usage.tokens_out > 5
        assert usage.cost_usd is None


def test_a_stream_is_passed_on_and_its_usage_is_asked_for_and_counted(shared: Home, build: str) -> None:
    events = [
        {"choices": [{"index": 0, "delta": {"content": "he"}}]},
        {"choices": [{"index": 0, "delta": {"content": "llo"}}]},
        {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}},
        "[DONE]",
    ]
    with serving(constantly(Reply(events=events))) as model:
        gateway = started(shared, model.url)
        path = gateway.open(build, "r001-01", 0)
        status, text = ask(path, {"model": "m", "messages": [], "stream": True})
        assert status == 200
        assert text.count("data:") == 4
        assert model.requests[0]["stream_options"] == {"include_usage": True}
        until(lambda: gateway.usage(build).total == 10)


def test_a_stream_that_breaks_off_is_broken_for_the_client_too_and_still_charged(shared: Home, build: str) -> None:
    events = [{"choices": [{"index": 0, "delta": {"content": "x" * 400}}]}]
    with serving(constantly(Reply(events=events, break_off=True))) as model:
        gateway = started(shared, model.url)
        path = gateway.open(build, "r001-01", 0)
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            ask(path, {"model": "m", "messages": [], "stream": True})
        until(lambda: gateway.usage(build).tokens_out == 100)
        assert gateway.usage(build).estimated


def test_the_budget_stops_the_build_before_the_next_request_is_forwarded(shared: Home, build: str) -> None:
    with serving(constantly(says("hello"))) as model:
        gateway = started(shared, model.url)
        path = gateway.open(build, "r001-01", 200)
        other = gateway.open(build + "-other", "r001-01", 200)
        assert [ask(path)[0], ask(path)[0]] == [200, 200]
        status, body = ask(path)
        assert (status, body["error"]["type"]) == (403, "budget_exhausted")
        assert len(model.requests) == 2
        assert ask(other)[0] == 200
        gateway.open(build, "r001-01", 1_000)  # a person raised MAX_TOKENS_PER_BUILD
        assert ask(path)[0] == 200


def test_429_and_500_are_tried_again_within_bounds(shared: Home, build: str) -> None:
    def script(request: dict[str, Any], number: int) -> Reply:
        if number == 1:
            return Reply(status=429, body={}, headers={"retry-after": "3600"})
        return Reply(status=500, body={}) if number == 2 else says("at last")

    with serving(script) as model:
        path = started(shared, model.url).open(build, "r001-01", 0)
        assert ask(path)[1]["choices"][0]["message"]["content"] == "at last"
        assert len(model.requests) == 3


def test_at_its_limit_an_endpoint_hears_the_planner_before_the_workers_that_came_first(
    shared: Home, build: str
) -> None:
    one_at_a_time, go_on, answered = threading.Lock(), threading.Semaphore(0), []

    def script(request: dict[str, Any], number: int) -> Reply:
        if not one_at_a_time.acquire(blocking=False):
            return Reply(status=429, body={})
        go_on.acquire(timeout=30)
        answered.append(request["user"])
        one_at_a_time.release()
        return says("ok")

    def asks(key: str) -> None:
        assert ask(gateway.open(build, key, 0), {"model": "m", "user": key, "messages": []})[0] == 200

    with serving(script) as model, concurrent.futures.ThreadPoolExecutor(5) as pool:
        gateway = started(shared, model.url)
        asking = [pool.submit(asks, f"r001-0{n}") for n in (1, 2, 3)]
        until(lambda: gateway.status()["waiting"] == 2)
        asking.append(pool.submit(asks, "planner-root"))
        until(lambda: gateway.status()["waiting"] == 3)
        for _ in asking:
            go_on.release()
        for each in asking:
            each.result()
        assert answered[1] == "planner-root"


@pytest.mark.parametrize(
    ("reply", "status", "kind", "words", "requests"),
    [
        (Reply(401, {"error": {"message": f"bad key {KEY}"}}), 401, "refused_key", "refused the key (HTTP 401)", 1),
        (Reply(429, {}), 429, "rate_limited", "is rate-limiting (HTTP 429)", 3),
        (Reply(503, {"error": "down"}), 503, "endpoint_failed", "failed (HTTP 503: down)", 3),
        (Reply(404, {}), 404, "not_found", "does not know this address or model", 1),
        (Reply(400, {"error": {"message": "too long"}}), 400, "rejected", "too long", 1),
        (Reply(200, b"<html>hello</html>"), 502, "endpoint_junk", "not as a model does", 3),
        (Reply(200, {"error": {"message": "overloaded"}}), 502, "endpoint_junk", "overloaded", 3),
        (Reply(302, b"", {"location": "http://127.0.0.1:1/"}), 502, "not_found", "redirect", 1),
    ],
)
def test_a_bad_answer_is_one_line_that_names_endpoint_and_status_and_no_key(
    shared: Home, build: str, reply: Reply, status: int, kind: str, words: str, requests: int
) -> None:
    with serving(constantly(reply)) as model:
        gateway = started(shared, model.url)
        got, body = ask(gateway.open(build, "r001-01", 0))
        assert (got, body["error"]["type"], len(model.requests)) == (status, kind, requests)
        assert words in body["error"]["message"]
        assert "e0 (127.0.0.1" in body["error"]["message"] or kind == "rejected"
        assert KEY not in json.dumps(body)
        assert "\n" not in body["error"]["message"]
        assert gateway.usage(build).total == 0
    assert KEY not in (shared.logs / "gateway.log").read_text()


def test_a_hanging_endpoint_ends_with_the_time_its_task_was_opened_with(shared: Home, build: str) -> None:
    with serving(constantly(Reply(hang=True))) as model:
        gateway = started(shared, model.url)
        status, body = ask(gateway.open(build, "r001-01", 0, timeout_s=0.2))
        assert (status, body["error"]["type"]) == (504, "endpoint_timeout")
        assert len(model.requests) == 1


def test_an_endpoint_that_fails_is_left_for_one_that_answers(shared: Home, build: str) -> None:
    with (
        serving(constantly(says("hello"))) as good,
        serving(constantly(Reply(401, {}))) as bad,
        contextlib.closing(socket.socket()) as taken,
    ):
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"
        path = started(shared, bad.url, nobody, good.url).open(build, "r001-01", 0)
        assert {ask(path)[0] for _ in range(12)} == {200}
        assert len(good.requests) == 12
        assert len(bad.requests) < 12


def test_only_the_model_is_reachable_through_a_task_socket(shared: Home, build: str) -> None:
    with serving(constantly(says("hello"))) as model:
        gateway = started(shared, model.url)
        path = gateway.open(build, "r001-01", 0)
        assert ask(path, url="/v1/files")[0] == 404
        assert ask(path, url="/open")[0] == 404
        assert ask(path, url="/v1/../stop")[0] == 404
        assert ask(path, body=b"not json")[0] == 400
        assert ask(path, body=b"[" * 100_000)[0] == 400
        assert not model.requests


def test_a_closed_task_gets_no_answer_even_on_a_connection_it_kept(shared: Home, build: str) -> None:
    with serving(constantly(says("hello"))) as model:
        gateway = started(shared, model.url)
        path = gateway.open(build, "r001-01", 0)
        with contextlib.closing(Connection(path)) as kept:
            kept.request("GET", "/v1/models")
            assert kept.getresponse().read()
            gateway.close(build, "r001-01")
            kept.request("POST", "/v1/chat/completions", "{}")
            response = kept.getresponse()
            assert (response.status, json.loads(response.read())["error"]["type"]) == (404, "unknown_task")
        assert not Path(path).exists()
        gateway.close(build, "r001-01")
        assert not model.requests


def test_opening_and_closing_tell_what_a_task_has_used(shared: Home, build: str) -> None:
    with serving(constantly(says("hello"))) as model:
        gateway = started(shared, model.url)
        path, before = gateway.begin(build, "r001-01", 0)
        ask(path)
        closed = gateway.close(build, "r001-01")
        assert closed is not None and closed == gateway.usage(build, "r001-01")
        assert (before.total, closed.tokens_in, closed.tokens_out) == (0, 100, 20)
        assert gateway.begin(build, "r001-01", 0)[1] == closed
        written = json.loads((shared.gateway / f"{build}.tokens.json").read_text())["accounts"]["r001-01"]
        assert written["tokens_in"] == 100, "written before the task's handoff is"


def test_a_forked_process_asks_on_a_line_of_its_own(shared: Home, build: str) -> None:
    with serving(constantly(says("hello"))) as model:
        gateway = started(shared, model.url)
        ask(gateway.open(build, "r001-01", 0))
        if not (child := os.fork()):
            os._exit(gateway.usage(build, "r001-01").tokens_out)
        answers = [gateway.usage(build).total for _ in range(20)]
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 20
        assert answers == [120] * 20


def test_a_client_that_hangs_up_harms_nobody(shared: Home, build: str) -> None:
    def script(request: dict[str, Any], number: int) -> Reply:
        return Reply(hang=True) if number == 1 else says("hello")

    with serving(script) as model:
        gateway = started(shared, model.url)
        path = gateway.open(build, "r001-01", 0)
        with contextlib.closing(Connection(path)) as gone:
            gone.request("POST", "/v1/chat/completions", json.dumps({"model": "m", "messages": []}))
            until(lambda: len(model.requests) == 1)
        until(lambda: gateway.status()["in_flight"] == 0)
        assert ask(path)[0] == 200


def test_counts_and_sockets_survive_a_killed_gateway(home: Home) -> None:
    with serving(constantly(says("hello"))) as model:
        gateway = started(home, model.url)
        path = gateway.open("b-1", "r001-01", 200)
        ask(path)
        file = home.gateway / "b-1.tokens.json"
        until(lambda: file.exists() and json.loads(file.read_text())["accounts"]["r001-01"]["tokens_in"] == 100)
        os.kill(gateway.status()["pid"], signal.SIGKILL)
        until(lambda: not gateway.alive())
        assert gateway.usage("b-1").total == 120  # read without the process
        started(home, model.url)
        assert ask(path)[0] == 200  # the sandbox's socket is served again, nobody opened it anew
        assert gateway.usage("b-1", "r001-01").total == 240
        assert ask(path)[0] == 403


def test_a_socket_that_was_opened_just_before_the_gateway_was_killed_is_served_again(home: Home) -> None:
    with serving(constantly(says("hello"))) as model:
        gateway = started(home, model.url)
        pid = gateway.status()["pid"]
        path = gateway.open("b-1", "r001-01", 200)
        os.kill(pid, signal.SIGKILL)
        until(lambda: not gateway.alive())
        started(home, model.url)
        assert ask(path)[0] == 200


def test_whoever_asks_while_the_supervisor_brings_a_killed_gateway_back_waits_for_it(home: Home) -> None:
    with serving(constantly(says("hello"))) as model, claim(home.root / "stack.lock") as supervising:
        assert supervising
        (home.root / "stack.lock").write_text("1")
        os.kill(started(home, model.url).status()["pid"], signal.SIGKILL)

        class Supervising(SystemClock):
            looks = 0

            def sleep(self, seconds: float) -> None:
                self.looks += 1
                if self.looks == 2:
                    started(home, model.url)

        clock = Supervising()
        until(lambda: not Gateway(home).alive())
        path = Gateway(home, clock).open("b-1", "r001-01", 0)
        assert (ask(path)[0], clock.looks) == (200, 2)
        Gateway(home).ensure(None)


def test_fifty_callers_start_one_gateway(home: Home) -> None:
    with serving(constantly(says("hello"))) as model:
        with concurrent.futures.ThreadPoolExecutor(50) as pool:
            list(pool.map(lambda _: Gateway(home).ensure(endpoints(model.url), FAST), range(50)))
        log = (home.logs / "gateway.log").read_text()
        assert log.count("INFO serving") == 1
        with claim(home.gateway / "gateway.lock") as free:
            assert not free


def test_without_endpoints_a_gateway_that_is_not_there_is_wrong_use(home: Home) -> None:
    with pytest.raises(WrongUse, match="LLM_BASE_URL and LLM_API_KEY"):
        Gateway(home).ensure(None)
    with pytest.raises(ModelUnavailable, match="longshot up"):
        Gateway(home).open("b-1", "r001-01", 0)
    Gateway(home).close("b-1", "r001-01")
    Gateway(home).stop()
    assert Gateway(home).usage("b-1").total == 0


def test_a_new_key_reaches_a_running_gateway(shared: Home, build: str) -> None:
    def script(request: dict[str, Any], number: int) -> Reply:
        return says("ok") if model.headers[-1]["authorization"] == "Bearer right" else Reply(401, {})

    with serving(script) as model:
        gateway = started(shared, model.url)
        path = gateway.open(build, "planner-root", 0)
        assert ask(path)[0] == 401
        gateway.ensure(endpoints(model.url, key="right"))
        assert ask(path)[0] == 200


def test_other_endpoints_are_refused_while_requests_are_under_way(shared: Home, build: str) -> None:
    with serving(constantly(Reply(hang=True))) as model, serving(constantly(says("x"))) as other:
        gateway = started(shared, model.url)
        path = gateway.open(build, "r001-01", 0)
        with contextlib.closing(Connection(path)) as busy:
            busy.request("POST", "/v1/chat/completions", json.dumps({"model": "m", "messages": []}))
            until(lambda: gateway.status()["in_flight"] == 1)
            with pytest.raises(WrongUse, match="another LONGSHOT_HOME"):
                gateway.ensure(endpoints(other.url))
        until(lambda: gateway.status()["in_flight"] == 0)
        gateway.ensure(endpoints(other.url))
        assert ask(path)[0] == 200


@pytest.mark.parametrize("by", ["models", "fingerprint"])
def test_a_rehearsal_is_noticed(shared: Home, build: str, by: str) -> None:
    models = ["longshot-scripted-model"] if by == "models" else ["glm-5"]
    more = {} if by == "models" else {"system_fingerprint": "rehearsal"}
    with serving(constantly(says("x", **more)), models) as model:
        gateway = started(shared, model.url)
        if by == "fingerprint":
            assert gateway.status()["rehearsal"] is False
            ask(gateway.open(build, "r001-01", 0))
        assert gateway.status()["rehearsal"] is True


def probe_of(model: ModelDouble, home: Home, name: str) -> tuple[str, ...]:
    return started(home, model.url).probe(name)


def test_a_probe_is_content_with_a_model_that_is_listed_or_answers(shared: Home) -> None:
    with serving(constantly(says("x")), ["glm-5"]) as model:
        assert probe_of(model, shared, "glm-5") == ()
        assert model.requests == []
        assert probe_of(model, shared, "unlisted") == ()
        assert model.requests[0]["max_tokens"] == 16


def test_a_probe_tells_a_wrong_model_in_one_line(shared: Home) -> None:
    with serving(constantly(Reply(404, {"error": {"message": f"no model for {KEY}"}}))) as model:
        with pytest.raises(ModelUnavailable) as e:
            probe_of(model, shared, "unlisted")
        assert "e0 (127.0.0.1" in str(e.value)
        assert "HTTP 404: no model for [key]" in str(e.value)
        assert "LLM_MODEL" in str(e.value)


def test_the_key_is_nowhere_but_in_memory(home: Home) -> None:
    with serving(constantly(says("x"))) as model:
        gateway = started(home, model.url)
        ask(gateway.open("b-1", "r001-01", 0))
        pid = gateway.status()["pid"]
        assert KEY not in json.dumps(gateway.status())
        for name in ("cmdline", "environ"):
            assert KEY.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
        gateway.stop()
        found = subprocess.run(["grep", "-r", KEY, str(home.root), str(home.runtime)], capture_output=True, check=False)
        assert found.returncode == 1


def test_two_hundred_tasks_are_served_at_once(shared: Home, build: str) -> None:
    with serving(constantly(says("x"))) as model:
        gateway = started(shared, model.url)
        with concurrent.futures.ThreadPoolExecutor(40) as pool:
            paths = list(pool.map(lambda n: gateway.open(build, f"r{n:03d}-01", 0), range(200)))
            assert {status for status, _ in pool.map(ask, paths)} == {200}
        assert gateway.status()["sockets"] >= 200
        assert gateway.usage(build).requests == 200
