"""The gateway in three languages: what is passed on, how it is counted, and what would act outside of a sandbox."""

import contextlib
import http.client
import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from model_double import ModelDouble, Reply, says, serving

from longshot_dagster.adapters.gateway.gateway_client import Gateway
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.core.endpoints import Endpoint
from longshot_dagster.core.errors import ModelUnavailable, WrongUse
from longshot_dagster.core.model_apis import Api
from longshot_dagster.core.usage import REHEARSAL_MODEL
from longshot_dagster.testing.script import Script
from longshot_dagster.testing.scripted_model import ScriptedModel

KEY = "sk-very-secret-0123456789"
FAST = {"rounds": 2, "backoff_s": 0.01, "max_wait_s": 0.05, "timeout_s": 20}
HELLO = {
    Api.CHAT: {"messages": [{"role": "user", "content": "hi"}]},
    Api.RESPONSES: {"input": "hi"},
    Api.MESSAGES: {"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    found = Home(tmp_path_factory.mktemp("languages") / "home")
    yield found
    Gateway(found).stop()
    shutil.rmtree(found.runtime)


@pytest.fixture
def build(request: pytest.FixtureRequest) -> str:
    return f"b-{abs(hash(request.node.nodeid)):x}"[:40]


class Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("x", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self._path)


def ask(path: str, api: Api, query: str = "", headers: dict[str, str] | None = None, **more: Any) -> tuple[int, Any]:
    with contextlib.closing(Connection(path)) as c:
        own = {"content-type": "application/json", "authorization": "Bearer longshot", "x-api-key": "longshot"}
        c.request(
            "POST", f"/v1/{api.path}{query}", json.dumps({"model": "m", **HELLO[api], **more}), own | (headers or {})
        )
        response = c.getresponse()
        text = response.read().decode()
        try:
            return response.status, json.loads(text)
        except ValueError:
            return response.status, text


def serving_gateway(home: Home, *urls: str, apis: tuple[Api, ...] | None = None) -> Gateway:
    gateway = Gateway(home)
    if gateway.alive():
        until(lambda: gateway.status()["in_flight"] == 0)
    served = tuple(Endpoint(name=f"e{n}", url=f"{u}/v1", api_key=KEY, apis=apis) for n, u in enumerate(urls))
    gateway.ensure(served, FAST)
    return gateway


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "never happened"
        threading.Event().wait(0.02)


def only(*spoken: Api, model: str = "m") -> Callable[[ModelDouble], Callable[[dict[str, Any], int], Reply]]:
    """An endpoint that has the addresses of `spoken` alone, and there knows one model."""

    def of(double: ModelDouble) -> Callable[[dict[str, Any], int], Reply]:
        def script(request: dict[str, Any], number: int) -> Reply:
            if not any(double.paths[number - 1].partition("?")[0] == f"/v1/{api.path}" for api in spoken):
                return Reply(404, {"detail": "Not Found"})
            if not request:
                return Reply(400, {"error": {"message": "model is required"}})
            if request.get("model") != model:
                return Reply(404, {"error": {"message": f"the model {request.get('model')} does not exist"}})
            return says("x")

        return script

    return of


@contextlib.contextmanager
def speaking(*spoken: Api) -> Iterator[ModelDouble]:
    def undecided(request: dict[str, Any], number: int) -> Reply:
        raise AssertionError("the script comes below")

    with serving(undecided, []) as double:
        double.script = only(*spoken)(double)
        yield double


# --- passed on -----------------------------------------------------------------------------------------------------------


def test_each_language_goes_to_its_own_address_with_the_key_as_it_wants_it(home: Home, build: str) -> None:
    with serving(lambda request, number: says("x")) as model:
        path = serving_gateway(home, model.url).open(build, "r001-01", 0)
        for api in Api:
            assert ask(path, api, headers={"anthropic-beta": "b-1", "x-other": "1"})[0] == 200
        ask(path, Api.MESSAGES, "?beta=true&key=1", headers={"anthropic-version": "2099-01-01"})
    assert model.paths == ["/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/messages?beta=true"]
    for sent in model.headers[:2]:
        assert sent["authorization"] == f"Bearer {KEY}"
        assert "x-api-key" not in sent
    for sent in model.headers[2:]:
        assert sent["x-api-key"] == KEY
        assert "authorization" not in sent
    assert [sent.get("anthropic-version") for sent in model.headers[2:]] == ["2023-06-01", "2099-01-01"]
    assert model.headers[2]["anthropic-beta"] == "b-1"
    assert all("x-other" not in sent for sent in model.headers)
    assert model.requests[1] == {"model": "m", "input": "hi"}


@pytest.mark.parametrize(
    ("api", "usage", "counted"),
    [
        (
            Api.CHAT,
            {"prompt_tokens": 100, "completion_tokens": 20, "prompt_tokens_details": {"cached_tokens": 40}},
            (100, 20),
        ),
        (
            Api.RESPONSES,
            {"input_tokens": 100, "input_tokens_details": {"cached_tokens": 40}, "output_tokens": 20},
            (100, 20),
        ),
        (
            Api.MESSAGES,
            {"input_tokens": 100, "cache_read_input_tokens": 40, "cache_creation_input_tokens": 7, "output_tokens": 20},
            (147, 20),
        ),
    ],
)
def test_cached_tokens_count_as_read_in_every_language(
    home: Home, build: str, api: Api, usage: dict[str, Any], counted: tuple[int, int]
) -> None:
    with serving(lambda request, number: Reply(body={"id": "x", "usage": usage})) as model:
        gateway = serving_gateway(home, model.url)
        ask(gateway.open(build, "r001-01", 0), api)
        used = gateway.usage(build, "r001-01")
    assert (used.tokens_in, used.tokens_out, used.estimated) == (*counted, False)


@pytest.mark.parametrize("api", Api)
def test_a_stream_of_any_language_is_passed_on_and_counted(home: Home, build: str, api: Api) -> None:
    with ScriptedModel(Script()) as model:
        gateway = Gateway(home)
        gateway.ensure((Endpoint(name="scripted", url=model.base_url, api_key=KEY),), FAST)
        path = gateway.open(build, "r001-01", 0)
        whole, text = ask(path, api), ask(path, api, stream=True)[1]
        until(lambda: gateway.usage(build).requests == 2)
        used = gateway.usage(build)
        assert whole[0] == 200
        assert "scripted model of a rehearsal" in text
        assert not used.estimated
        # Both were asked, and said, the same; the stream's question is a little longer where its usage is asked for.
        assert used.tokens_out % 2 == 0
        assert used.tokens_out > 0
        assert gateway.status()["rehearsal"] is True


@pytest.mark.parametrize("api", Api)
def test_the_budget_and_the_models_name_hold_in_every_language(home: Home, build: str, api: Api) -> None:
    with serving(lambda request, number: says("x", (100, 20))) as model:
        gateway = serving_gateway(home, model.url)
        path = gateway.open(build, "r001-01", 100, model="m")
        other = ask(path, api, model="a-dearer-one")
        assert (other[0], other[1]["error"]["type"]) == (404, "not_found")
        assert "m; no other one" in other[1]["error"]["message"]
        assert ask(path, api)[0] == 200
        spent = ask(path, api)
        assert (spent[0], spent[1]["error"]["type"]) == (403, "budget_exhausted")
        assert spent[1].get("type") == ("error" if api is Api.MESSAGES else None)
        assert len(model.requests) == 1


@pytest.mark.parametrize("api", Api)
def test_trouble_is_tried_again_and_then_told_as_the_language_tells_it(home: Home, build: str, api: Api) -> None:
    with serving(lambda request, number: Reply(status=500, body={"error": {"message": f"no {KEY}"}})) as model:
        path = serving_gateway(home, model.url).open(build, "r001-01", 0)
        status, body = ask(path, api)
    assert len(model.requests) == 2
    assert status == 500
    assert body.get("type") == ("error" if api is Api.MESSAGES else None)
    assert body["error"]["type"] == "endpoint_failed"
    assert KEY not in json.dumps(body)


@pytest.mark.parametrize(
    ("api", "asked", "told"),
    [
        (Api.CHAT, {"web_search_options": {"x": 1}}, "`web_search_options`"),
        (Api.RESPONSES, {"tools": [{"type": "function", "name": "f"}, {"type": "web_search"}]}, "'web_search'"),
        (Api.RESPONSES, {"background": True}, "`background`"),
        (Api.MESSAGES, {"mcp_servers": [{"url": "https://x"}]}, "`mcp_servers`"),
        (Api.MESSAGES, {"tools": [{"type": "code_execution_20250825", "name": "c"}]}, "'code_execution_20250825'"),
    ],
)
def test_what_would_make_an_endpoint_act_for_an_agent_is_not_passed_on(
    home: Home, build: str, api: Api, asked: dict[str, Any], told: str
) -> None:
    with serving(lambda request, number: says("x")) as model:
        path = serving_gateway(home, model.url).open(build, "r001-01", 0)
        status, body = ask(path, api, **asked)
        assert status == 400
        assert told in body["error"]["message"]
        assert model.requests == []


def test_other_addresses_of_an_endpoint_are_not_served(home: Home, build: str) -> None:
    with serving(lambda request, number: says("x")) as model:
        path = serving_gateway(home, model.url).open(build, "r001-01", 0)
        for url in ("messages/batches", "messages/count_tokens", "responses/resp_1/cancel", "files", "responses/"):
            with contextlib.closing(Connection(path)) as c:
                c.request("POST", f"/v1/{url}", "{}")
                assert c.getresponse().status == 404
        for method, url in (("GET", "responses/resp_1"), ("DELETE", "responses/resp_1"), ("GET", "messages")):
            with contextlib.closing(Connection(path)) as c:
                c.request(method, f"/v1/{url}")
                assert c.getresponse().status == 404
        assert model.requests == []


# --- which language an endpoint speaks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("api", [Api.RESPONSES, Api.MESSAGES])
def test_an_endpoint_that_does_not_speak_a_language_is_told_from_one_that_lacks_a_model(home: Home, api: Api) -> None:
    with speaking(Api.CHAT) as chat, speaking(*Api) as polyglot:
        gateway = serving_gateway(home, chat.url)
        assert gateway.probe("m") == ()
        with pytest.raises(WrongUse, match=rf"^endpoint e0 \(127.0.0.1:\d+\) does not speak .* {api}$"):
            gateway.probe("m", api)
        gateway = serving_gateway(home, polyglot.url)
        assert gateway.probe("m", api) == ()
        with pytest.raises(ModelUnavailable, match="the model other does not exist"):
            gateway.probe("other", api)
        gateway = serving_gateway(home, polyglot.url, chat.url)
        assert len(gateway.probe("m", api)) == 1


def test_it_is_asked_once_and_then_left_out(home: Home, build: str) -> None:
    with speaking(Api.CHAT) as chat, speaking(*Api) as polyglot:
        path = serving_gateway(home, chat.url, polyglot.url).open(build, "r001-01", 0)
        assert {ask(path, Api.RESPONSES)[0] for _ in range(12)} == {200}
        assert len(chat.requests) <= 2  # one request, and one without a word that told why it failed
        assert ask(path, Api.CHAT)[0] == 200
    with speaking(Api.CHAT) as chat:
        path = serving_gateway(home, chat.url).open(build, "r001-01", 0)
        for _ in range(2):
            status, body = ask(path, Api.MESSAGES)
            assert (status, body["type"], body["error"]["type"]) == (404, "error", "other_api")
            assert body["error"]["message"].endswith("does not speak Anthropic messages")
        assert len(chat.requests) == 2


def test_what_an_entry_says_it_speaks_is_believed(home: Home, build: str) -> None:
    with speaking(*Api) as model:
        gateway = serving_gateway(home, model.url, apis=(Api.MESSAGES,))
        with pytest.raises(WrongUse, match="does not speak chat completions"):
            gateway.probe("m")
        path = gateway.open(build, "r001-01", 0)
        assert ask(path, Api.CHAT)[0] == 404
        assert ask(path, Api.MESSAGES)[0] == 200
        assert model.paths == ["/v1/messages"]


def test_the_scripted_model_speaks_them_all(home: Home) -> None:
    with ScriptedModel(Script()) as model:
        gateway = Gateway(home)
        gateway.ensure((Endpoint(name="scripted", url=model.base_url),), FAST)
        for api in Api:
            assert gateway.probe(REHEARSAL_MODEL, api) == ()
