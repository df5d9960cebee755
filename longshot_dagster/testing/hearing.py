"""What the scripted model is given to read: a request of any of the three languages, made alike."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from longshot_dagster.core.model_apis import Api
from longshot_dagster.testing.toolbox import Tool


@dataclass(frozen=True)
class Said:
    """One message. `role` is system, user, assistant or tool; `called` are the ids of the calls an assistant makes."""

    role: str
    parts: tuple[str, ...]
    called: tuple[str, ...] = ()


@dataclass(frozen=True)
class Heard:
    """A request of any language; what is missing or odd in it counts as absent."""

    messages: tuple[Said, ...]
    tools: tuple[Tool, ...]
    characters: int


def heard(api: Api, body: dict[str, Any]) -> Heard:
    offered = objects(body.get("tools"))
    said = list(_HEARD[api](body))
    size = len(json.dumps([body.get("messages") or body.get("input") or [], offered], ensure_ascii=False))
    choice = body.get("tool_choice")
    silent = choice == "none" or (isinstance(choice, dict) and choice.get("type") == "none")
    return Heard(tuple(said), () if silent else tuple(_tools(offered)), size)


def _chat(body: dict[str, Any]) -> Iterator[Said]:
    for message in objects(body.get("messages")):
        role = "system" if message.get("role") == "developer" else str(message.get("role"))
        called = tuple(str(call.get("id")) for call in objects(message.get("tool_calls")))
        yield Said(role, _parts(message.get("content")), called)


def _responses(body: dict[str, Any]) -> Iterator[Said]:
    if isinstance(body.get("instructions"), str):
        yield Said("system", (body["instructions"],))
    asked = body.get("input")
    if isinstance(asked, str):
        yield Said("user", (asked,))
    for item in objects(asked):
        kind = str(item.get("type", "message"))
        if kind == "message":
            role = "system" if item.get("role") == "developer" else str(item.get("role"))
            yield Said(role, _parts(item.get("content")))
        elif kind.endswith("_call_output"):
            yield Said("tool", _parts(item.get("output")))
        elif kind.endswith("_call"):
            yield Said("assistant", (), (str(item.get("call_id")),))


def _messages(body: dict[str, Any]) -> Iterator[Said]:
    if body.get("system"):
        yield Said("system", _parts(body["system"]))
    for message in objects(body.get("messages")):
        content = message.get("content")
        blocks = objects(content)
        parts = _parts(content)
        if message.get("role") == "assistant":
            yield Said("assistant", parts, tuple(str(b.get("id")) for b in blocks if b.get("type") == "tool_use"))
            continue
        if any(b.get("type") == "tool_result" for b in blocks):
            yield Said("tool", ())
        if parts:
            yield Said(str(message.get("role")), parts)


_HEARD: dict[Api, Callable[[dict[str, Any]], Iterator[Said]]] = {
    Api.CHAT: _chat,
    Api.RESPONSES: _responses,
    Api.MESSAGES: _messages,
}


def _tools(offered: list[dict[str, Any]]) -> Iterator[Tool]:
    for tool in offered:
        if tool.get("type") == "namespace":
            yield from _tools(objects(tool.get("tools")))
            continue
        told = tool.get("function") if isinstance(tool.get("function"), dict) else tool
        assert isinstance(told, dict)
        if not isinstance(name := told.get("name"), str):
            continue
        schema = told.get("parameters") or told.get("input_schema")
        schema = schema if isinstance(schema, dict) else {}
        properties, required = schema.get("properties"), schema.get("required")
        yield Tool(
            name,
            properties if isinstance(properties, dict) else {},
            tuple(str(r) for r in required) if isinstance(required, list) else (),
            free_text=tool.get("type") == "custom" and "input_schema" not in told,
        )


def objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _parts(content: Any) -> tuple[str, ...]:
    """The texts of a message, whether it is written as one string or as parts."""
    if isinstance(content, str):
        return (content,)
    return tuple(text for part in objects(content) if isinstance(text := part.get("text"), str))
