"""One script, three languages: an agent gets the same answers whichever of them it speaks, whole or streamed."""

import http.client
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from longshot_dagster.core.model_apis import Api
from longshot_dagster.core.usage import StreamMeter, is_rehearsal, reported
from longshot_dagster.testing.answers import understand
from longshot_dagster.testing.script import Action, Script
from longshot_dagster.testing.scripted_model import ScriptedModel
from longshot_dagster.testing.toolbox import Tool, Toolbox

WORKER = "You are a Longshot worker.\n\nWork."
TASK = "# Task r001-01\n\nThe adder\n\n## Scope\n\n- adder.py"
CONTENT = "def add(a, b):\n    return a + b\n" * 40
SCRIPT = Script.model_validate(
    {
        "workers": [
            {
                "match": "^The adder$",
                "steps": [
                    [{"write": {"path": "adder.py", "content": CONTENT}}, {"read": "SPEC.md"}],
                    {"bash": "make test"},
                ],
                "final": {"status": "complete", "summary": "It adds. Größer!"},
            }
        ]
    }
)


@pytest.fixture(scope="module")
def model() -> Iterator[ScriptedModel]:
    with ScriptedModel(SCRIPT, hang_limit_s=60) as running:
        yield running


def function(name: str, *arguments: str, required: tuple[str, ...] = ()) -> dict[str, Any]:
    schema = {"type": "object", "properties": {a: {"type": "string"} for a in arguments}, "required": [*required]}
    return {"name": name, "parameters": schema}


TOOLS = [
    function("write", "filePath", "content"),
    function("read", "filePath"),
    function("bash", "command", "description", required=("command", "description")),
]


def asked(api: Api, turns: int, model: str = "any") -> dict[str, Any]:
    """The request after `turns` answers, each of which made one call."""
    calls = [f"call_r001-01_{n}_1" for n in range(1, turns + 1)]
    if api is Api.RESPONSES:
        items: list[dict[str, Any]] = [{"type": "message", "role": "user", "content": TASK}]
        for call in calls:
            items.append({"type": "function_call", "call_id": call, "name": "bash", "arguments": "{}"})
            items.append({"type": "function_call_output", "call_id": call, "output": "fine"})
        tools = [{"type": "function", **t} for t in TOOLS]
        return {"model": model, "instructions": WORKER, "input": items, "tools": tools}
    if api is Api.MESSAGES:
        reminder = {"type": "text", "text": "Primary working directory: /workspace/repo"}
        messages: list[dict[str, Any]] = [{"role": "user", "content": [reminder, {"type": "text", "text": TASK}]}]
        for call in calls:
            messages.append({"role": "assistant", "content": [{"type": "tool_use", "id": call, "input": {}}]})
            result = {"type": "tool_result", "tool_use_id": call, "content": "fine"}
            messages.append({"role": "user", "content": [result, {"type": "text", "text": "Go on."}]})
        tools = [{"name": t["name"], "input_schema": t["parameters"]} for t in TOOLS]
        return {"model": model, "system": [{"type": "text", "text": WORKER}], "messages": messages, "tools": tools}
    said: list[dict[str, Any]] = [{"role": "system", "content": WORKER}, {"role": "user", "content": TASK}]
    for call in calls:
        said.append({"role": "assistant", "content": "", "tool_calls": [{"id": call, "function": {"name": "bash"}}]})
        said.append({"role": "tool", "tool_call_id": call, "content": "fine"})
    return {"model": model, "messages": said, "tools": [{"type": "function", "function": t} for t in TOOLS]}


def post(model: ScriptedModel, api: Api, body: dict[str, Any]) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", model.port, timeout=30)
    try:
        connection.request("POST", f"/v1/{api.path}?beta=true", json.dumps(body), {"x-api-key": "k"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def events(stream: bytes) -> list[dict[str, Any]]:
    lines = [line[6:] for line in stream.decode().splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def said_whole(api: Api, answer: dict[str, Any]) -> tuple[str, list[tuple[str, Any]]]:
    """(text, calls as (name, arguments)) of an answer."""
    match api:
        case Api.CHAT:
            message = answer["choices"][0]["message"]
            functions = [c["function"] for c in message.get("tool_calls", [])]
            return message["content"] or "", [(f["name"], json.loads(f["arguments"])) for f in functions]
        case Api.RESPONSES:
            texts = [i["content"][0]["text"] for i in answer["output"] if i["type"] == "message"]
            calls = [i for i in answer["output"] if i["type"] == "function_call"]
            return "".join(texts), [(c["name"], json.loads(c["arguments"])) for c in calls]
        case Api.MESSAGES:
            texts = [b["text"] for b in answer["content"] if b["type"] == "text"]
            return "".join(texts), [(b["name"], b["input"]) for b in answer["content"] if b["type"] == "tool_use"]


def said_streamed(api: Api, stream: bytes) -> tuple[str, list[tuple[str, Any]]]:
    text, calls = "", dict[int, list[str]]()
    for event in events(stream):
        match api:
            case Api.CHAT:
                delta = event["choices"][0]["delta"] if event["choices"] else {}
                text += delta.get("content") or ""
                for call in delta.get("tool_calls", []):
                    name, arguments = calls.get(call["index"], ["", ""])
                    told = call["function"]
                    calls[call["index"]] = [name or told["name"], arguments + told["arguments"]]
            case Api.RESPONSES:
                if event["type"] == "response.output_item.added" and event["item"]["type"] == "function_call":
                    calls[event["output_index"]] = [event["item"]["name"], ""]
                elif event["type"] == "response.function_call_arguments.delta":
                    calls[event["output_index"]][1] += event["delta"]
                elif event["type"] == "response.output_text.delta":
                    text += event["delta"]
            case Api.MESSAGES:
                if event["type"] == "content_block_start" and event["content_block"]["type"] == "tool_use":
                    calls[event["index"]] = [event["content_block"]["name"], ""]
                elif event["type"] == "content_block_delta":
                    text += event["delta"].get("text", "")
                    if "partial_json" in event["delta"]:
                        calls[event["index"]][1] += event["delta"]["partial_json"]
    return text, [(name, json.loads(arguments)) for name, arguments in calls.values()]


@pytest.mark.parametrize("api", Api)
def test_a_worker_plays_its_steps_in_any_language_whole_and_streamed(model: ScriptedModel, api: Api) -> None:
    folder = "/workspace/repo/" if api is Api.MESSAGES else ""  # the only one of these that says where it works
    expected = [
        (
            "",
            [
                ("write", {"filePath": f"{folder}adder.py", "content": CONTENT}),
                ("read", {"filePath": f"{folder}SPEC.md"}),
            ],
        ),
        ("", [("bash", {"command": "make test", "description": "rehearsal"})]),
        (json.dumps({"status": "complete", "summary": "It adds. Größer!"}, indent=2, ensure_ascii=False), []),
    ]
    for turns, answer in enumerate(expected):
        body = asked(api, turns)
        assert said_whole(api, json.loads(post(model, api, body)[1])) == answer
        assert said_streamed(api, post(model, api, {**body, "stream": True})[1]) == answer


@pytest.mark.parametrize("api", Api)
def test_every_answer_tells_its_tokens_and_that_it_is_a_rehearsal(model: ScriptedModel, api: Api) -> None:
    body = asked(api, 1)
    whole = json.loads(post(model, api, body)[1])
    meter = StreamMeter()
    meter.feed(post(model, api, {**body, "stream": True, "stream_options": {"include_usage": True}})[1])
    meter.end()
    assert meter.usage == reported(whole)
    assert meter.usage is not None
    assert min(meter.usage) > 0
    assert meter.rehearsal
    assert is_rehearsal(whole)


@pytest.mark.parametrize("api", Api)
@pytest.mark.parametrize("status", [400, 401, 429, 500])
def test_a_models_name_asks_for_its_fault(model: ScriptedModel, api: Api, status: int) -> None:
    got, body = post(model, api, asked(api, 0, f"any-{status}"))
    error = json.loads(body)
    assert got == status
    assert f"scripted {status}" in error["error"]["message"]
    assert error.get("type") == ("error" if api is Api.MESSAGES else None)
    assert (model.log[-1]["fault"], model.log[-1]["api"]) == (str(status), str(api))


@pytest.mark.parametrize("api", Api)
def test_a_dropped_stream_begins_and_says_nothing(model: ScriptedModel, api: Api) -> None:
    status, stream = post(model, api, {**asked(api, 0, "any-drop"), "stream": True})
    assert status == 200
    assert len(events(stream)) == 1
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        post(model, api, asked(api, 0, "any-drop"))


@pytest.mark.parametrize("api", Api)
def test_an_endless_model_calls_the_same_command_again_and_again(model: ScriptedModel, api: Api) -> None:
    for turns in (0, 7):
        _, calls = said_whole(api, json.loads(post(model, api, asked(api, turns, "any-loop"))[1]))
        assert [(name, arguments["command"]) for name, arguments in calls] == [("bash", "sleep 1; echo again")]


@pytest.mark.parametrize("api", Api)
def test_an_empty_answer_is_well_formed(model: ScriptedModel, api: Api) -> None:
    body = asked(api, 0, "any-empty")
    assert said_whole(api, json.loads(post(model, api, body)[1])) == ("", [])
    assert said_streamed(api, post(model, api, {**body, "stream": True})[1]) == ("", [])


def test_openais_own_client_reads_responses(model: ScriptedModel) -> None:
    with openai.OpenAI(base_url=model.base_url, api_key="sk-x", max_retries=0, timeout=30) as client:
        body = asked(Api.RESPONSES, 2)
        whole = client.responses.create(**body)
        with client.responses.stream(**{**body, "tools": []}) as stream:
            for _ in stream:
                pass
            final = stream.get_final_response()
    assert json.loads(whole.output_text)["status"] == "complete"
    assert final.output_text == whole.output_text
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens


def test_calls_written_down_apart_or_together_are_one_step() -> None:
    body = asked(Api.RESPONSES, 0)
    for number in (1, 2):
        call = f"call_r001-01_1_{number}"
        body["input"].append({"type": "function_call", "call_id": call, "name": "bash", "arguments": "{}"})
        body["input"].append({"type": "function_call_output", "call_id": call, "output": "fine"})
    assert understand(body, Api.RESPONSES).step == 1


def test_a_task_in_quotes_is_still_a_task() -> None:
    body = asked(Api.CHAT, 0)
    body["messages"][1]["content"] = f'"{TASK}"'
    assert understand(body).subject == "r001-01"


def test_what_is_odd_in_a_request_counts_as_absent() -> None:
    odd = [None, 7, "x", [], {}, [None, 7, "x"], [{"role": 3, "content": [None, {"text": 5}]}], [{"type": "_call"}]]
    for api in Api:
        for value in odd:
            body = {"messages": value, "input": value, "system": value, "instructions": value, "tools": value}
            assert understand(body, api).subject == ""


# --- the tools of each agent ---------------------------------------------------------------------------------------------


def tool(name: str, **properties: Any) -> Tool:
    return Tool(name, {n: {"type": t} if isinstance(t, str) else t for n, t in properties.items()})


def do(box: Toolbox, **action: Any) -> tuple[str, Any]:
    invoked = box.invoke(Action.model_validate(action))
    return invoked.tool, invoked.arguments if invoked.free_text else json.loads(invoked.arguments)


def test_each_agents_tools_are_called_by_their_own_names() -> None:
    claude = Toolbox([tool("Write", file_path="string", content="string"), tool("Bash", command="string")], "/w/")
    assert do(claude, write={"path": "a/b.py", "content": "x"}) == ("Write", {"file_path": "/w/a/b.py", "content": "x"})
    assert do(claude, bash="make") == ("Bash", {"command": "make"})
    pi = Toolbox([tool("edit", path="string", edits="array")])
    edit = {"path": "a", "old_text": "x", "new_text": "y"}
    assert do(pi, edit=edit) == ("edit", {"path": "a", "edits": [{"oldText": "x", "newText": "y"}]})
    opencode = Toolbox([tool("edit", filePath="string", oldString="string", newString="string")], "/w")
    assert do(opencode, edit=edit) == ("edit", {"filePath": "/w/a", "oldString": "x", "newString": "y"})


def test_an_agent_with_nothing_but_a_shell_does_everything_with_it() -> None:
    codex = Toolbox([tool("exec_command", cmd="string", yield_time_ms="number")])
    name, arguments = do(codex, write={"path": "a b/c.py", "content": "it's\n"})
    assert name == "exec_command"
    assert arguments["cmd"] == "mkdir -p \"$(dirname 'a b/c.py')\" && printf %s 'it'\"'\"'s\n' > 'a b/c.py'"
    assert do(codex, read="SPEC.md")[1]["cmd"] == "cat SPEC.md"
    listed = Toolbox([tool("shell", command="array")])
    assert do(listed, bash="make test") == ("shell", {"command": ["bash", "-lc", "make test"]})
    assert "write" not in Toolbox([tool("bash", command="string")])


def test_a_patch_is_written_where_an_agent_takes_patches() -> None:
    codex = Toolbox([Tool("apply_patch", free_text=True), tool("exec_command", cmd="string")])
    patch = "*** Begin Patch\n*** Add File: a.py\n+x\n+y\n*** End Patch\n"
    assert do(codex, write={"path": "a.py", "content": "x\ny\n"}) == ("apply_patch", patch)


def test_what_a_tool_demands_besides_is_filled_in() -> None:
    properties = {
        "command": {"type": "string"},
        "kind": {"type": "string", "enum": ["b", "a"]},
        "n": {"type": "integer"},
    }
    strict = Toolbox([Tool("bash", properties, ("command", "kind", "n"))])
    assert do(strict, bash="make") == ("bash", {"command": "make", "kind": "b", "n": 30})
