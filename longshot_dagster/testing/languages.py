"""The scripted model's answer in each of the three languages, whole and streamed."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from longshot_dagster.core.model_apis import Api
from longshot_dagster.core.usage import REHEARSAL_FINGERPRINT, REHEARSAL_MODEL
from longshot_dagster.testing.answers import Answer, Call

_PIECE = 400  # characters of one streamed piece

Event = tuple[str, dict[str, Any] | str]  # its name, empty where a language has none, and what it says


@dataclass(frozen=True)
class Tokens:
    """`wanted`: a chat stream tells them only when it was asked to."""

    sent: int
    said: int
    wanted: bool = True


def whole(api: Api, reply: Answer, tokens: Tokens) -> dict[str, Any]:
    """The answer in one piece."""
    match api:
        case Api.CHAT:
            return _completion(reply, tokens)
        case Api.RESPONSES:
            return _response(reply, tokens)
        case Api.MESSAGES:
            return _message(reply, tokens)


def streamed(api: Api, reply: Answer, tokens: Tokens) -> Iterator[Event]:
    match api:
        case Api.CHAT:
            yield from _completion_events(reply, tokens)
        case Api.RESPONSES:
            yield from _response_events(reply, tokens)
        case Api.MESSAGES:
            yield from _message_events(reply, tokens)


def refused(api: Api | None, status: int, kind: str, code: str) -> dict[str, Any]:
    """The body of an error."""
    said: dict[str, Any] = {"message": f"rehearsal: scripted {status} {code}", "type": kind}
    if api is Api.MESSAGES:
        return {"type": "error", "error": said, "model": REHEARSAL_MODEL}
    return {
        "error": {**said, "code": code},
        "model": REHEARSAL_MODEL,
        "system_fingerprint": REHEARSAL_FINGERPRINT,
    }


def _new_id(kind: str) -> str:
    return f"{kind}-rehearsal-{time.monotonic_ns():x}"


def _head(kind: str) -> dict[str, Any]:
    return {
        "id": _new_id("chatcmpl"),
        "object": kind,
        "created": int(time.time()),
        "model": REHEARSAL_MODEL,
        "system_fingerprint": REHEARSAL_FINGERPRINT,
    }


def _chat_usage(tokens: Tokens) -> dict[str, int]:
    return {
        "prompt_tokens": tokens.sent,
        "completion_tokens": tokens.said,
        "total_tokens": tokens.sent + tokens.said,
    }


def _completion(reply: Answer, tokens: Tokens) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": reply.content or (None if reply.calls else "")}
    if reply.calls:
        message["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.tool, "arguments": c.arguments}}
            for c in reply.calls
        ]
    choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason, "logprobs": None}
    return {**_head("chat.completion"), "choices": [choice], "usage": _chat_usage(tokens)}


def _completion_events(reply: Answer, tokens: Tokens) -> Iterator[Event]:
    head = _head("chat.completion.chunk")

    def chunk(delta: dict[str, Any], finish: str | None = None) -> Event:
        return "", {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    yield chunk({"role": "assistant", "content": ""})
    if reply.dropped:
        return
    for piece in _pieces(reply.content):
        yield chunk({"content": piece})
    for index, call in enumerate(reply.calls):
        opening = {"name": call.tool, "arguments": ""}
        yield chunk({"tool_calls": [{"index": index, "id": call.id, "type": "function", "function": opening}]})
        for piece in _pieces(call.arguments):
            yield chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    yield chunk({}, reply.finish_reason)
    if tokens.wanted:
        yield "", {**head, "choices": [], "usage": _chat_usage(tokens)}
    yield "", "[DONE]"


def _response(reply: Answer, tokens: Tokens) -> dict[str, Any]:
    cut = reply.finish_reason == "length"
    output = [_output_call(call) for call in reply.calls]
    if reply.content or not reply.calls:
        text = {"type": "output_text", "text": reply.content, "annotations": []}
        said = {"type": "message", "id": _new_id("msg"), "role": "assistant", "status": "completed", "content": [text]}
        output.insert(0, said)
    return {
        "id": _new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "error": None,
        "model": REHEARSAL_MODEL,
        "output": output,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "metadata": {"fingerprint": REHEARSAL_FINGERPRINT},
        "usage": {
            "input_tokens": tokens.sent,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": tokens.said,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": tokens.sent + tokens.said,
        },
    }


def _output_call(call: Call) -> dict[str, Any]:
    if call.free_text:
        kind: dict[str, Any] = {"type": "custom_tool_call", "id": f"ctc_{call.id}", "input": call.arguments}
    else:
        kind = {"type": "function_call", "id": f"fc_{call.id}", "arguments": call.arguments}
    return {**kind, "call_id": call.id, "name": call.tool, "status": "completed"}


def _response_events(reply: Answer, tokens: Tokens) -> Iterator[Event]:
    response, number = _response(reply, tokens), 0

    def event(kind: str, **more: Any) -> Event:
        nonlocal number
        number += 1
        return kind, {"type": kind, "sequence_number": number - 1, **more}

    begun = {**response, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    yield event("response.created", response=begun)
    if reply.dropped:
        return
    for index, item in enumerate(response["output"]):
        at = {"output_index": index}
        empty = {name: "" if name in ("input", "arguments") else value for name, value in item.items()}
        yield event(
            "response.output_item.added", **at, item={**empty, "status": "in_progress"} | _no_content(item["type"])
        )
        at["item_id"] = item["id"]
        if item["type"] == "message":
            part = item["content"][0]
            inside = {**at, "content_index": 0}
            yield event("response.content_part.added", **inside, part={**part, "text": ""})
            for piece in _pieces(part["text"]):
                yield event("response.output_text.delta", **inside, delta=piece, logprobs=[])
            yield event("response.output_text.done", **inside, text=part["text"], logprobs=[])
            yield event("response.content_part.done", **inside, part=part)
        elif item["type"] == "function_call":
            for piece in _pieces(item["arguments"]):
                yield event("response.function_call_arguments.delta", **at, delta=piece)
            yield event("response.function_call_arguments.done", **at, name=item["name"], arguments=item["arguments"])
        else:
            for piece in _pieces(item["input"]):
                yield event("response.custom_tool_call_input.delta", **at, delta=piece)
            yield event("response.custom_tool_call_input.done", **at, input=item["input"])
        yield event("response.output_item.done", output_index=index, item=item)
    yield event(f"response.{response['status']}", response=response)


def _no_content(kind: str) -> dict[str, Any]:
    return {"content": []} if kind == "message" else {}


_STOP_REASONS = {"stop": "end_turn", "tool_calls": "tool_use", "length": "max_tokens"}


def _message(reply: Answer, tokens: Tokens) -> dict[str, Any]:
    blocks: list[dict[str, Any]] = [{"type": "text", "text": reply.content}] if reply.content else []
    for call in reply.calls:
        blocks.append({"type": "tool_use", "id": call.id, "name": call.tool, "input": _parsed(call.arguments)})
    return {
        "id": _new_id("msg"),
        "type": "message",
        "role": "assistant",
        "model": REHEARSAL_MODEL,
        "content": blocks,
        "stop_reason": _STOP_REASONS.get(reply.finish_reason, "end_turn"),
        "stop_sequence": None,
        "usage": {
            "input_tokens": tokens.sent,
            "output_tokens": tokens.said,
            "cache_read_input_tokens": 0,
            "cache_creation_input_tokens": 0,
        },
    }


def _message_events(reply: Answer, tokens: Tokens) -> Iterator[Event]:
    message = _message(reply, tokens)

    def event(kind: str, **more: Any) -> Event:
        return kind, {"type": kind, **more}

    begun: dict[str, Any] = {"content": [], "stop_reason": None, "usage": {**message["usage"], "output_tokens": 1}}
    yield event("message_start", message=message | begun)
    if reply.dropped:
        return
    said: list[dict[str, Any]] = [{"type": "text", "text": reply.content}] if reply.content or not reply.calls else []
    calls: list[dict[str, Any]] = [{"type": "tool_use", "id": c.id, "name": c.tool, "input": {}} for c in reply.calls]
    texts = [reply.content] * len(said) + [c.arguments for c in reply.calls]
    for index, (block, text) in enumerate(zip([*said, *calls], texts, strict=True)):
        is_text = block["type"] == "text"
        opened = {**block, "text": ""} if is_text else block
        yield event("content_block_start", index=index, content_block=opened)
        for piece in _pieces(text):
            delta = {"type": "text_delta", "text": piece} if is_text else _json_piece(piece)
            yield event("content_block_delta", index=index, delta=delta)
        yield event("content_block_stop", index=index)
    ended = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    yield event("message_delta", delta=ended, usage={"output_tokens": tokens.said})
    yield event("message_stop")


def _json_piece(piece: str) -> dict[str, str]:
    return {"type": "input_json_delta", "partial_json": piece}


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:  # cut in half by a fault
        return {}


def _pieces(text: str) -> Iterator[str]:
    for start in range(0, len(text), _PIECE):
        yield text[start : start + _PIECE]
