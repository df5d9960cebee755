"""Endpoints as people write them; choice among them; what their refusals and usage mean."""

import json
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshot_dagster.core.endpoint_pool import EndpointPool
from longshot_dagster.core.endpoints import endpoints_from_wire, endpoints_to_wire, parse_endpoints
from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.refusals import Kind, Refusal, advice, kind_of_status
from longshot_dagster.core.usage import StreamMeter, Usage, estimated, is_rehearsal, reported

SECRET = "sk-secret-1234"


@pytest.mark.parametrize(
    ("given_url", "base"),
    [
        ("https://api.example.com", "https://api.example.com/v1"),
        ("https://api.example.com/", "https://api.example.com/v1"),
        ("https://api.example.com/v1", "https://api.example.com/v1"),
        ("https://api.example.com/v1/", "https://api.example.com/v1"),
        ("https://api.example.com/v1/chat/completions", "https://api.example.com/v1"),
        ("https://api.example.com/api/paas/v4", "https://api.example.com/api/paas/v4"),
        ("https://api.example.com/v1beta/openai/", "https://api.example.com/v1beta/openai"),
        ("http://127.0.0.1:8080/openai", "http://127.0.0.1:8080/openai/v1"),
    ],
)
def test_a_base_url_is_understood_however_it_is_written(given_url, base):
    (endpoint,) = parse_endpoints("", given_url, SECRET)
    assert endpoint.url == base
    assert SECRET not in repr(endpoint)
    assert SECRET not in str(endpoint.model_dump())


@pytest.mark.parametrize(
    "bad",
    [
        "ftp://x",
        "api.example.com",
        "https://",
        "https://u:p@x/v1",
        "https://x/v1?k=1",
        "https://x:99999/",
        "https://a b/",
    ],
)
def test_what_is_no_base_url_is_refused_by_name(bad):
    with pytest.raises(WrongUse, match="LLM_BASE_URL"):
        parse_endpoints("", bad, SECRET)


def test_several_endpoints_win_over_the_single_one():
    text = json.dumps(
        [
            {"name": "primary", "endpoint": "https://a.example.com", "apiKey": SECRET, "weight": 100},
            {"endpoint": "https://b.example.com/v1"},
        ]
    )
    first, second = parse_endpoints(text, "https://c.example.com", "other")
    assert (first.name, first.label, first.weight) == ("primary", "primary (a.example.com)", 100)
    assert (second.name, second.label) == ("b.example.com", "b.example.com")
    assert endpoints_from_wire(endpoints_to_wire([first, second])) == (first, second)
    assert parse_endpoints("", "", SECRET) == ()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[", "is not JSON"),
        ("{}", "is not JSON like"),
        ("[]", "is not JSON like"),
        (f'[{{"endpoint": "https://x", "apikey": "{SECRET}"}}]', "LLM_ENDPOINTS[0] has an unknown field 'apikey'"),
        (f'[{{"apiKey": "{SECRET}"}}]', "LLM_ENDPOINTS[0] needs `endpoint`"),
        (f'[{{"endpoint": "{SECRET}"}}]', "LLM_ENDPOINTS[0].endpoint is not a URL"),
        ('[{"endpoint": "https://x", "weight": 0}]', "LLM_ENDPOINTS[0].weight"),
        ('[{"endpoint": "https://x", "apis": ["chat", "grpc"]}]', "LLM_ENDPOINTS[0].apis is a list of the languages"),
        ('[{"endpoint": "https://x", "apis": []}]', "LLM_ENDPOINTS[0].apis is a list of the languages"),
        ('[{"endpoint": "https://x", "apis": [["chat"]]}]', "LLM_ENDPOINTS[0].apis is a list of the languages"),
        (f'[{{"endpoint": "https://x", "apiKey": "{SECRET} x"}}]', "LLM_ENDPOINTS[0].apiKey holds a space"),
        ('[{"name":"a","endpoint":"https://x"},{"name":"a","endpoint":"https://y"}]', "two endpoints alike"),
    ],
)
def test_a_mistake_in_llm_endpoints_is_named_and_no_key_is_quoted(text, told):
    with pytest.raises(WrongUse) as e:
        parse_endpoints(text, "", "")
    assert told in str(e.value)
    assert SECRET not in str(e.value)


def pool(weights, at):
    items = [{"name": n, "endpoint": f"https://{n}.example.com", "weight": w} for n, w in weights.items()]
    found = parse_endpoints(json.dumps(items), "", "")
    return EndpointPool(found, lambda: at[0], random.Random(7)), {e.name: e for e in found}


def test_endpoints_are_chosen_by_weight():
    chosen, _ = pool({"a": 75, "b": 25}, [0.0])
    firsts = Counter(chosen.order()[0].name for _ in range(4_000))
    assert 0.72 < firsts["a"] / 4_000 < 0.78


def test_a_slow_endpoint_is_asked_less_and_a_failing_one_last():
    at = [0.0]
    chosen, by = pool({"a": 50, "b": 50}, at)
    chosen.succeeded(by["a"], 4.0)
    chosen.succeeded(by["b"], 1.0)
    firsts = Counter(chosen.order()[0].name for _ in range(4_000))
    assert 0.30 < firsts["a"] / 4_000 < 0.37
    for _ in range(3):
        chosen.failed(by["b"])
    assert {chosen.order()[0].name for _ in range(50)} == {"a"}
    at[0] = 31.0
    assert {chosen.order()[0].name for _ in range(50)} == {"a", "b"}


def test_an_endpoint_that_asked_for_quiet_gets_it():
    at = [10.0]
    chosen, by = pool({"a": 50}, at)
    chosen.failed(by["a"], told_to_wait_s=4.0)
    assert chosen.wait_s(by["a"]) == 4.0
    at[0] = 14.0
    assert chosen.wait_s(by["a"]) == 0


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (200, None),
        (401, Kind.REFUSED_KEY),
        (403, Kind.REFUSED_KEY),
        (402, Kind.NO_CREDIT),
        (404, Kind.NOT_FOUND),
        (400, Kind.REJECTED),
        (422, Kind.REJECTED),
        (408, Kind.FAILED),
        (429, Kind.RATE_LIMITED),
        (500, Kind.FAILED),
        (302, Kind.FAILED),
    ],
)
def test_what_a_status_means(status, kind):
    assert kind_of_status(status) is kind


@pytest.mark.parametrize("kind", list(Kind))
def test_every_refusal_is_one_plain_line_with_its_endpoint_and_an_advice(kind):
    line = Refusal(kind, "primary (host)", 500, "first\nsecond \x1b[31m" + "x" * 1_000).line
    assert "primary (host)" in line
    assert len(line) < 400
    assert not any(c in line for c in "\n\x1b")
    assert advice(kind)


@pytest.mark.parametrize(
    ("document", "tokens"),
    [
        ({"usage": {"prompt_tokens": 3, "completion_tokens": 4}}, (3, 4)),
        ({"usage": {"input_tokens": 3, "output_tokens": 4}}, (3, 4)),
        ({"response": {"usage": {"input_tokens": 3, "output_tokens": 4}}}, (3, 4)),
        ({"usage": {"prompt_tokens": -3}}, None),
        ({"usage": {"prompt_tokens": True}}, None),
        ({"usage": "much"}, None),
        ({"usage": None}, None),
        ([], None),
    ],
)
def test_usage_is_read_from_any_interface_and_never_made_up(document, tokens):
    assert reported(document) == tokens


@given(st.binary(max_size=300), st.integers(1, 20))
def test_a_stream_of_junk_is_measured_without_harm(junk, size):
    meter = StreamMeter()
    for start in range(0, len(junk), size):
        meter.feed(junk[start : start + size])
    meter.end()


def test_a_stream_is_measured_wherever_its_chunks_are_cut():
    events = [
        {"choices": [{"delta": {"content": "hello"}}]},
        {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 6}, "system_fingerprint": "rehearsal"},
    ]
    data = "".join(f"data: {json.dumps(e)}\r\n\r\n" for e in events).encode() + b"data: [DONE]"
    for size in (1, 7, 1_000):
        meter = StreamMeter()
        for start in range(0, len(data), size):
            meter.feed(data[start : start + size])
        meter.end()
        assert (meter.usage, meter.text_bytes, meter.rehearsal) == ((5, 6), 5, True)


def test_usages_add_up():
    assert Usage(1, 2, 1) + Usage(3, 4, 1, True) == Usage(4, 6, 2, True)
    assert estimated(9, 4) == (3, 1)
    assert is_rehearsal({"model": "longshot-scripted-model"})
    assert not is_rehearsal({"model": "glm-5"})
