"""The three languages in which a coding agent may speak with a model, and what of them stays inside the gateway.

An endpoint runs tools and fetches addresses of its own if it is asked to. A sandbox without a network must not get one
that way, so whatever would make the endpoint act for an agent is refused.
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import Any


class Api(StrEnum):
    """`chat` is OpenAI's chat completions, `responses` OpenAI's responses, `messages` Anthropic's messages."""

    CHAT = "chat"
    RESPONSES = "responses"
    MESSAGES = "messages"

    @property
    def path(self) -> str:
        """Below the endpoint's base URL."""
        return "chat/completions" if self is Api.CHAT else self.value

    @property
    def spoken(self) -> str:
        return {"chat": "chat completions", "responses": "OpenAI responses", "messages": "Anthropic messages"}[self]

    def short_question(self, model: str) -> dict[str, object]:
        """A request that costs next to nothing."""
        said = [{"role": "user", "content": "Answer: ok"}]
        if self is Api.RESPONSES:
            return {"model": model, "max_output_tokens": 16, "input": said, "store": False}
        return {"model": model, "max_tokens": 16, "messages": said}


def api_of_path(path: str) -> Api | None:
    """None for a path that is none of the three, such as the list of models."""
    return next((api for api in Api if api.path == path), None)


# What an agent's own program carries out. A type is one of these or begins with one of `_OWN_DATED` and a date.
_OWN_TOOLS = {
    Api.CHAT: frozenset({"function", "custom"}),
    Api.RESPONSES: frozenset({"function", "custom", "namespace", "local_shell", "apply_patch"}),
    Api.MESSAGES: frozenset({"", "custom"}),
}
_OWN_DATED = ("bash_20", "text_editor_20", "computer_20", "memory_20")
_ACTING = {
    Api.CHAT: ("web_search_options",),
    Api.RESPONSES: ("background", "conversation", "previous_response_id"),
    Api.MESSAGES: ("mcp_servers", "container"),
}


def acting_elsewhere(api: Api, body: dict[str, Any]) -> str:
    """What of a request would make the endpoint act on its own, run unseen or go on from somebody else's answer, in a few
    words; empty when nothing would.
    """
    for name in _ACTING[api]:
        if body.get(name):
            return f"`{name}`"
    for tool in _tools(body.get("tools")):
        kind = str(tool.get("type") or ("" if api is Api.MESSAGES else "function"))
        if kind in _OWN_TOOLS[api] or (api is Api.MESSAGES and kind.startswith(_OWN_DATED)):
            continue
        return f"the tool type {kind[:60]!r}"
    for part in _parts([body.get("messages"), body.get("input"), body.get("system")]):
        if _fetches(part):
            return "a file or picture to fetch from an address"
    return ""


def _tools(value: object) -> Iterator[dict[str, Any]]:
    for tool in value if isinstance(value, list) else ():
        if isinstance(tool, dict):
            yield tool
            if tool.get("type") == "namespace":
                yield from _tools(tool.get("tools"))


def _parts(value: list[object]) -> Iterator[dict[str, Any]]:
    """Every object in the conversation, however deep; an agent's own arguments are texts, or under `input` and no parts."""
    todo: list[object] = value
    while todo:
        found = todo.pop()
        if isinstance(found, list):
            todo += found
        elif isinstance(found, dict):
            yield found
            if found.get("type") != "tool_use":
                todo += [found[name] for name in ("content", "output") if name in found]


def _fetches(part: dict[str, Any]) -> bool:
    match part.get("type"):
        case "image_url" | "input_image":
            address = part.get("image_url")
            return _is_address(address.get("url") if isinstance(address, dict) else address)
        case "input_file" | "file":
            inner = part.get("file") if isinstance(part.get("file"), dict) else part
            return bool(inner.get("file_url") or inner.get("file_id")) if isinstance(inner, dict) else False
        case "image" | "document":
            source = part.get("source")
            return isinstance(source, dict) and source.get("type") in ("url", "file")
        case "item_reference":
            return True
    return False


def _is_address(value: object) -> bool:
    return isinstance(value, str) and not value.startswith("data:") and bool(value)
