"""The scripted model as a client meets it: over a real socket, with OpenAI's own client and with raw HTTP."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from longshot_dagster.core.errors import WrongUse
from longshot_dagster.testing.answers import Answer, Asked
from longshot_dagster.testing.script import Script, load
from longshot_dagster.testing.scripted_model import ScriptedModel

WORKER = "You are a Longshot worker.\n\nWork."
ROOT = "You are Longshot's root planner.\nPlan."
SUB = "You are a Longshot subplanner.\nPlan."
RECONCILER = "You are Longshot's reconciler.\nFix."
SCRIPT = {
    "planners": [
        {
            "planner": "root",
            "rounds": [
                {
                    "scratchpad": "first",
                    "look": [{"read": "SPEC.md"}],
                    "tasks": [{"description": "The adder", "scope": ["adder.py"]}],
                }
            ],
        },
        {"planner": "The big one", "rounds": [{"tasks": [{"description": "A part", "scope": ["part.py"]}]}]},
    ],
    "workers": [
        {"match": "^The adder$", "kind": "conflict-fix", "final": "fixed"},
        {
            "match": "^The adder$",
            "steps": [
                [
                    {"write": {"path": "adder.py", "content": "def add(a, b):\n    return a + b\n" * 40}},
                    {"write": {"path": "ü.md", "content": "größer"}},
                ],
                {"bash": "make test"},
            ],
            "final": {"status": "complete", "summary": "It adds."},
        },
        {"match": "^Slow$", "delay_s": 300, "final": "at last"},
    ],
    "reconciler": [{"match": "TypeError", "tasks": [{"description": "Heal it", "scope": ["adder.py"]}]}],
}


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    with ScriptedModel(Script.model_validate(SCRIPT), hang_limit_s=60) as running:
        yield running


@pytest.fixture
def client(model: ScriptedModel) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=model.base_url, api_key="sk-rehearsal", max_retries=0, timeout=30) as ready:
        yield ready


def tools(*names: str) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": n, "parameters": {"type": "object"}}} for n in names]


def conversation(system: str, *said: str, answers: int = 0) -> list[dict[str, Any]]:
    messages = [{"role": "system", "content": system}, *({"role": "user", "content": text} for text in said)]
    return messages + [{"role": "assistant", "content": "..."}] * answers


def complete(client: openai.OpenAI, messages: list[dict[str, Any]], *names: str, **more: Any) -> Any:
    extra = {"tools": tools(*names)} if names else {}
    return client.chat.completions.create(model="glm-5", messages=messages, **extra, **more)


def post(model: ScriptedModel, path: str, body: Any) -> tuple[int, dict[str, str], Any]:
    connection = http.client.HTTPConnection("127.0.0.1", model.port, timeout=30)
    try:
        connection.request("POST", path, json.dumps(body) if not isinstance(body, bytes) else body)
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), json.loads(answer.read())
    finally:
        connection.close()


def get(model: ScriptedModel, path: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", model.port, timeout=30)
    try:
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


TASK = "# Task r001-01\n\nThe adder\n\n## Scope\n\n- adder.py"


def test_a_worker_plays_its_steps_one_answer_after_the_other(client: openai.OpenAI) -> None:
    first = complete(client, conversation(WORKER, TASK), "write", "bash").choices[0]
    assert first.finish_reason == "tool_calls"
    assert [c.function.name for c in first.message.tool_calls] == ["write", "write"]
    assert json.loads(first.message.tool_calls[1].function.arguments) == {"path": "ü.md", "content": "größer"}
    second = complete(client, conversation(WORKER, TASK, answers=1), "write", "bash").choices[0].message
    assert json.loads(second.tool_calls[0].function.arguments) == {"command": "make test"}
    last = complete(client, conversation(WORKER, TASK, answers=2), "write", "bash").choices[0]
    assert last.finish_reason == "stop"
    assert json.loads(last.message.content) == {"status": "complete", "summary": "It adds."}


def test_the_same_question_gets_the_same_answer_however_often_it_is_asked(client: openai.OpenAI) -> None:
    asked = conversation(WORKER, TASK, answers=1)
    answers = [complete(client, asked, "write", "bash").choices[0].message for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]


def test_a_tool_that_is_not_offered_is_not_called(client: openai.OpenAI) -> None:
    message = complete(client, conversation(WORKER, TASK), "bash").choices[0].message
    assert [c.function.name for c in message.tool_calls] == ["bash"]
    assert "complete" in complete(client, conversation(WORKER, TASK)).choices[0].message.content


def test_streamed_and_whole_answers_say_the_same(client: openai.OpenAI) -> None:
    for answers in (0, 2):
        asked = conversation(WORKER, TASK, answers=answers)
        whole = complete(client, asked, "write", "bash")
        options = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = list(complete(client, asked, "write", "bash", **options))
        text, calls = "", {}
        for delta in (c.choices[0].delta for c in chunks if c.choices):
            text += delta.content or ""
            for call in delta.tool_calls or []:
                name, arguments = calls.get(call.index, ("", ""))
                calls[call.index] = (name or call.function.name, arguments + call.function.arguments)
        said = whole.choices[0].message
        assert text == (said.content or "")
        assert list(calls.values()) == [(c.function.name, c.function.arguments) for c in said.tool_calls or []]
        assert chunks[-1].usage == whole.usage
        assert {c.model for c in chunks} == {"longshot-scripted-model"}
        assert {c.system_fingerprint for c in chunks} == {"rehearsal"}


def test_usage_follows_the_sizes_and_is_streamed_only_when_asked_for(client: openai.OpenAI) -> None:
    short, long = (
        complete(client, conversation(WORKER, TASK + padding), "write").usage for padding in ("", " word" * 4_000)
    )
    assert long.prompt_tokens - short.prompt_tokens == pytest.approx(5_000, abs=2)
    assert short.completion_tokens == long.completion_tokens > 300
    assert short.total_tokens == short.prompt_tokens + short.completion_tokens
    assert all(c.usage is None for c in complete(client, conversation(WORKER, TASK), stream=True))


def test_planners_answer_by_the_round_they_are_asked_for(client: openai.OpenAI) -> None:
    def plan(system: str, *said: str, answers: int = 0, look: tuple[str, ...] = ()) -> Any:
        return complete(client, conversation(system, *said, answers=answers), *look).choices[0].message

    first = "# Planning round root.001\n\nBuild it."
    assert plan(ROOT, first, look=("read",)).tool_calls[0].function.name == "read"
    reply = json.loads(plan(ROOT, first, answers=1, look=("read",)).content)
    assert (reply["scratchpad"], [t["description"] for t in reply["tasks"]]) == ("first", ["The adder"])
    assert json.loads(plan(ROOT, first, "# Planning round root.002\n\nMore?").content)["tasks"] == []
    part = json.loads(plan(SUB, "# Planning round r001-02.001\n\nThe big one\n...").content)["tasks"]
    assert [t["scope"] for t in part] == [["part.py"]]
    assert json.loads(plan(SUB, "# Planning round r001-03.001\n\nAnother").content)["tasks"] == []


def test_the_reconciler_answers_what_failed(client: openai.OpenAI) -> None:
    def fixes(failure: str) -> Any:
        asked = conversation(RECONCILER, f"# Fix round fix.001\n\n{failure}")
        return json.loads(complete(client, asked).choices[0].message.content)["tasks"]

    assert [t["description"] for t in fixes("TypeError: no")] == ["Heal it"]
    assert fixes("something else") == []


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("# Task f001-01\n\nA conflict in adder.py\n\nThe adder\n", "fixed"),
        ("# Task r001-07\n\nKind: conflict-fix\n\nThe adder\n", "fixed"),
        ("# Task r001-07\n\nResolve nothing, conflict nowhere.\nThe adder\n", "It adds."),
        ("# Task r001-09\n\nSomething else\n", "blocked"),
    ],
)
def test_a_fix_task_finds_its_own_part(client: openai.OpenAI, message: str, expected: str) -> None:
    assert expected in complete(client, conversation(WORKER, message)).choices[0].message.content


def test_a_nudge_after_the_task_does_not_change_who_is_meant(client: openai.OpenAI) -> None:
    asked = [*conversation(WORKER, TASK, answers=2), {"role": "user", "content": "Please go on."}]
    assert "It adds." in complete(client, asked, "write", "bash").choices[0].message.content


def test_without_a_headed_message_it_says_what_it_is(client: openai.OpenAI) -> None:
    assert "rehearsal" in complete(client, [{"role": "user", "content": "hello"}]).choices[0].message.content
    assert [m.id for m in client.models.list()] == ["longshot-scripted-model"]


@pytest.mark.parametrize(("fault", "status"), [("401", 401), ("429", 429), ("500", 500)])
def test_a_refusal_has_its_status_and_names_itself(model: ScriptedModel, fault: str, status: int) -> None:
    assert post(model, "/faults", [{"role": "worker", "fault": fault, "times": 1}])[0] == 200
    body = {"model": "m", "messages": conversation(WORKER, TASK)}
    refused, headers, document = post(model, "/v1/chat/completions", body)
    assert refused == status
    assert (document["model"], document["system_fingerprint"]) == ("longshot-scripted-model", "rehearsal")
    assert document["error"]["message"].startswith("rehearsal:")
    assert headers.get("Retry-After") == ("1" if fault == "429" else None)
    assert post(model, "/v1/chat/completions", body)[0] == 200, "it was to fail once"
    assert [entry["fault"] for entry in model.log] == [fault, None]


def test_answers_are_spoiled_as_models_spoil_them(model: ScriptedModel, client: openai.OpenAI) -> None:
    def spoil(fault: str, *names: str) -> Any:
        post(model, "/faults", [{"fault": fault}])
        asked = conversation(WORKER, TASK, answers=0 if names else 2)
        return [complete(client, asked, *names, **mode) for mode in ({}, {"stream": True})]

    for fault in ("prose", "empty", "truncated"):
        whole, chunks = spoil(fault)
        choice = whole.choices[0]
        streamed = "".join(c.choices[0].delta.content or "" for c in chunks)
        assert streamed == choice.message.content
        assert "{" not in streamed if fault != "truncated" else streamed.startswith("{")
        with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
            json.loads(streamed)
        assert choice.finish_reason == ("length" if fault == "truncated" else "stop")
    cut = spoil("truncated", "write")[0].choices[0].message.tool_calls[0].function.arguments
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        json.loads(cut)


def test_a_fault_hits_only_whom_it_is_meant_for(model: ScriptedModel, client: openai.OpenAI) -> None:
    post(model, "/faults", [{"role": "root", "fault": "500"}, {"role": "worker", "match": "^Other$", "fault": "500"}])
    assert complete(client, conversation(WORKER, TASK)).choices
    for asked in (
        conversation(ROOT, "# Planning round root.001"),
        conversation(WORKER, "# Task r001-02\n\nOther\n"),
    ):
        with pytest.raises(openai.InternalServerError, match="rehearsal"):
            complete(client, asked)
    post(model, "/faults", [])
    assert complete(client, conversation(ROOT, "# Planning round root.001")).choices


def test_a_hanging_answer_ends_when_the_client_gives_up(model: ScriptedModel) -> None:
    model.set_faults(Script.model_validate({"faults": [{"fault": "hang"}]}).faults)
    before = threading.active_count()
    with socket.create_connection(("127.0.0.1", model.port), timeout=30) as connection:
        body = json.dumps({"messages": conversation(WORKER, TASK)}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        served = [t for t in threading.enumerate() if "process_request_thread" in t.name]
    for thread in served:
        thread.join(timeout=20)
    assert threading.active_count() <= before


def test_a_hanging_answer_ends_at_the_servers_own_limit() -> None:
    script = Script.model_validate({"faults": [{"fault": "hang"}]})
    with ScriptedModel(script, hang_limit_s=0.1) as model, pytest.raises(http.client.RemoteDisconnected):
        post(model, "/v1/chat/completions", {"messages": conversation(WORKER, TASK)})


def test_an_answer_that_is_held_comes_when_it_is_let_go() -> None:
    looks = iter([True, True, False])

    class Held(ScriptedModel):
        def reply(self, asked: Asked) -> Answer:
            return Answer("at last", held=lambda: next(looks))

    with Held(Script()) as model:
        status, _, document = post(model, "/v1/chat/completions", {"messages": [{"role": "user", "content": "?"}]})
    assert (status, document["choices"][0]["message"]["content"]) == (200, "at last")
    assert list(looks) == []


def test_stopping_does_not_wait_for_a_slow_answer_or_an_idle_client() -> None:
    with ScriptedModel(Script.model_validate(SCRIPT)) as model:
        idle = socket.create_connection(("127.0.0.1", model.port))
        slow = socket.create_connection(("127.0.0.1", model.port))
        body = json.dumps({"messages": conversation(WORKER, "# Task r001-03\n\nSlow\n")}).encode()
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        while not get(model, "/log"):
            pass
    with idle, slow:
        assert slow.recv(1) == b""


def test_the_log_tells_who_asked_for_what_and_keeps_no_key(model: ScriptedModel, client: openai.OpenAI) -> None:
    complete(client, conversation(WORKER, TASK, answers=1), "bash")
    complete(client, conversation(ROOT, "# Planning round root.001"), stream=True).close()
    log = get(model, "/log")
    shown = [{key: entry[key] for key in ("role", "task", "step", "fault", "stream", "authorized")} for entry in log]
    assert shown == [
        {"role": "worker", "task": "r001-01", "step": 1, "fault": None, "stream": False, "authorized": True},
        {"role": "root", "task": "root.001", "step": 0, "fault": None, "stream": True, "authorized": True},
    ]
    assert "sk-rehearsal" not in json.dumps(log)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/chat/completions", b"not json", 400),
        ("/v1/chat/completions", [1], 400),
        ("/v1/chat/completions", {"messages": [None, 7, {"role": "user", "content": [3, {"text": "# Task x"}]}]}, 200),
        ("/v1/chat/completions", {"messages": 5}, 200),
        ("/v1/chat/completions", {"messages": [], "tools": [{"function": 3}], "stream_options": 1}, 200),
        ("/faults", [{"fault": "earthquake"}], 400),
        ("/faults", b"{", 400),
        ("/v1/embeddings", {}, 404),
    ],
)
def test_odd_requests_are_answered_and_break_nothing(model: ScriptedModel, path: str, body: Any, status: int) -> None:
    assert post(model, path, body)[0] == status
    assert get(model, "/v1/models")["data"]


def test_many_ask_at_once(model: ScriptedModel) -> None:
    answered: list[int] = []
    body = {"messages": conversation(WORKER, TASK, answers=2)}

    def ask() -> None:
        answered.append(post(model, "/v1/chat/completions", body)[0])

    threads = [threading.Thread(target=ask) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answered == [200] * 50
    assert len(model.log) == 50


def test_the_command_prints_its_port_and_ends_on_a_signal(tmp_path: Path) -> None:
    (tmp_path / "script.json").write_text(json.dumps(SCRIPT), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "longshot_dagster.testing.scripted_model",
        "--script",
        str(tmp_path / "script.json"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdout is not None
        port = json.loads(process.stdout.readline())["port"]
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="k", max_retries=0) as client:
            assert (
                "It adds"
                in complete(client, conversation(WORKER, TASK, answers=2), "write", "bash").choices[0].message.content
            )
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[[workers]]\nmatch = '('", "not a regular expression"),
        ("[[workers]]\nsteps = [{write = 'gone.py'}]", "gone.py"),
        ("[[workers]]\nsteps = [{write = 'a', bash = 'b'}]", "one tool"),
        ("[[reconciler]]\n[[reconciler.tasks]]\ndescription = 'x'\nscope = ['../x']", "leaves the repository"),
        ("[[faults]]\nfault = 'flood'", "faults.0.fault"),
        ("wrokers = []", "wrokers"),
        ("= nonsense", "cannot be read"),
    ],
)
def test_a_script_with_a_mistake_is_one_clear_line(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "script.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(WrongUse) as refused:
        load(path)
    assert why in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_a_script_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match=r"absent\.toml"):
        load(tmp_path / "absent.toml")


def test_contents_come_from_the_files_beside_the_script(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.py").write_text("A = 1\n", encoding="utf-8")
    steps = "[{write = 'a.py'}, {write = {path = 'b.py', from = 'a.py'}}, {write = {path = 'c.py', content = ''}}]"
    (tmp_path / "s.toml").write_text(f"[[workers]]\nfiles = 'files'\nsteps = {steps}", encoding="utf-8")
    written = [action.arguments for step in load(tmp_path / "s.toml").workers[0].steps for action in step]
    assert written == [
        {"path": "a.py", "content": "A = 1\n"},
        {"path": "b.py", "content": "A = 1\n"},
        {"path": "c.py", "content": ""},
    ]
