"""What is sent of a long conversation, and what may be made ready before one."""

import threading

from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)

from longshot_dagster.adapters.workers.llm import compacted, preload


def user(text: str) -> ModelRequest:
    return ModelRequest(parts=[UserPromptPart(content=text)])


def said(text: str) -> ModelResponse:
    return ModelResponse(parts=[TextPart(content=text)])


def looked(number: int, size: int) -> list[ModelMessage]:
    name = f"c{number}"
    return [
        ModelResponse(parts=[ToolCallPart(tool_name="read", args={"path": "x"}, tool_call_id=name)]),
        ModelRequest(parts=[ToolReturnPart(tool_name="read", content="y" * size, tool_call_id=name)]),
    ]


def test_a_short_conversation_is_sent_as_it_is() -> None:
    messages = [user("# Planning round root.001\n\nrequest"), said("{}")]
    assert compacted(messages) is messages


def test_old_rounds_go_and_the_beginning_and_the_current_round_stay() -> None:
    messages: list[ModelMessage] = [
        user("# Planning round root.001\n\nTHE REQUEST"),
        *looked(1, 50_000),
        said("plan 1"),
    ]
    messages += [user("# Planning round root.002\n\nold"), said("z" * 30_000)]
    messages += [user("# Planning round root.003\n\nYour scratchpad: PAD"), *looked(2, 10)]
    sent = compacted(messages)
    assert len(sent) == 3
    text = str(sent[0].parts[0].content)
    assert text.startswith("# Planning round root.003\n\nYour scratchpad: PAD")
    assert "THE REQUEST" in text
    assert "old" not in text.replace("older", "")
    assert sent[1:] == messages[-2:]
    assert len(messages) == 9


def test_a_long_round_loses_the_middle_of_its_old_looks_but_no_call() -> None:
    messages: list[ModelMessage] = [user("# Planning round root.001\n\nTHE REQUEST")]
    for number in range(12):
        messages += looked(number, 12_000)
    sent = compacted(messages)
    assert len(sent) == len(messages)
    returns = [p for m in sent for p in m.parts if isinstance(p, ToolReturnPart)]
    assert [p.tool_call_id for p in returns] == [f"c{n}" for n in range(12)]
    assert "call again if needed" in str(returns[0].content)
    assert len(str(returns[0].content)) < 600
    assert len(str(returns[-1].content)) == 12_000


def test_what_is_made_ready_before_a_fork_leaves_no_thread() -> None:
    before = threading.enumerate()
    preload()
    assert threading.enumerate() == before
