"""How the tools of a script are called in a request: every coding agent has names and arguments of its own for them."""

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from longshot_dagster.testing.script import Action

# Words of a script -> what agents call the same.
_NAMES = {
    "read": ("read", "Read"),
    "write": ("write", "Write"),
    "edit": ("edit", "Edit"),
    "bash": ("bash", "Bash", "exec_command", "shell_command", "shell"),
    "grep": ("grep", "Grep"),
    "find": ("find", "glob", "Glob"),
    "ls": ("ls", "list"),
}
_ARGUMENTS = {
    "path": ("path", "filePath", "file_path"),
    "content": ("content", "contents"),
    "command": ("command", "cmd"),
    "old_text": ("old_text", "oldText", "oldString", "old_string"),
    "new_text": ("new_text", "newText", "newString", "new_string"),
    "pattern": ("pattern",),
    "glob_pattern": ("glob_pattern", "pattern"),
}
_ABSOLUTE = ("filePath", "file_path")
# Agents whose shell is how they read and write, where they have no better tool.
_HANDS = ("Bash", "exec_command", "shell_command", "shell")
_FILLED = {"string": "rehearsal", "boolean": False, "integer": 30, "number": 30, "array": [], "object": {}}
_PATIENCE_MS = 30_000
_REPLACE = (
    "import sys; p, a, b = sys.argv[1:]; t = open(p).read(); assert a in t; open(p, 'w').write(t.replace(a, b, 1))"
)


@dataclass(frozen=True)
class Tool:
    """One tool on offer. `free_text`: its input is a text, not JSON."""

    name: str
    properties: Mapping[str, Any] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    free_text: bool = False


@dataclass(frozen=True)
class Invoked:
    """`arguments` is JSON, or the text itself of a `free_text` tool."""

    tool: str
    arguments: str
    free_text: bool = False


class Toolbox:
    """The tools that one request offers. Paths are relative to `folder`, which an agent names in what it says."""

    def __init__(self, tools: Iterable[Tool] = (), folder: str = "") -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._folder = folder.rstrip("/")

    def __contains__(self, word: object) -> bool:
        return isinstance(word, str) and bool(self._named(word) or self._patches(word) or self._hands_do(word))

    def invoke(self, action: Action) -> Invoked:
        """The call that does what `action` says; raises KeyError when nothing on offer does."""
        if tool := self._named(action.tool):
            return Invoked(tool.name, json.dumps(self._arguments(tool, action), ensure_ascii=False))
        if self._patches(action.tool):
            lines = "".join(f"+{line}\n" for line in str(action.arguments.get("content", "")).splitlines())
            patch = f"*** Begin Patch\n*** Add File: {action.arguments.get('path')}\n{lines}*** End Patch\n"
            return Invoked("apply_patch", patch, free_text=True)
        if self._hands and self._hands_do(action.tool):
            by_hand = Action.model_validate({"bash": _by_hand(action)})
            return Invoked(self._hands.name, json.dumps(self._arguments(self._hands, by_hand), ensure_ascii=False))
        raise KeyError(action.tool)

    @property
    def _hands(self) -> Tool | None:
        return next((self._tools[name] for name in _HANDS if name in self._tools), None)

    def _hands_do(self, word: str) -> bool:
        return self._hands is not None and word in _NAMES

    def _named(self, word: str) -> Tool | None:
        names = _NAMES.get(word, (word,))
        return next((t for name in names if (t := self._tools.get(name)) and not t.free_text), None)

    def _patches(self, word: str) -> bool:
        return word == "write" and "apply_patch" in self._tools and self._tools["apply_patch"].free_text

    def _arguments(self, tool: Tool, action: Action) -> dict[str, Any]:
        if not tool.properties:
            return action.arguments
        given = dict(action.arguments)
        found: dict[str, Any] = {}
        if "edits" in tool.properties and "old_text" in given:
            found["edits"] = [{"oldText": given.pop("old_text"), "newText": given.pop("new_text", "")}]
        for word, value in given.items():
            name = next((n for n in _ARGUMENTS.get(word, (word,)) if n in tool.properties), None)
            if name is None:
                continue
            if name in _ABSOLUTE and self._folder and not str(value).startswith("/"):
                value = f"{self._folder}/{value}"
            found[name] = ["bash", "-lc", value] if _type(tool.properties[name]) == "array" else value
        if "yield_time_ms" in tool.properties:
            found["yield_time_ms"] = _PATIENCE_MS
        for name in tool.required:
            found.setdefault(name, _filling(tool.properties.get(name)))
        return found


def _by_hand(action: Action) -> str:
    """`action` as a line for a shell."""
    given = {name: str(value) for name, value in action.arguments.items()}
    path = shlex.quote(given.get("path", "."))
    match action.tool:
        case "bash":
            return given.get("command", "true")
        case "read":
            return f"cat {path}"
        case "ls":
            return f"ls -la {path}"
        case "write":
            folder = f'mkdir -p "$(dirname {path})" && '
            return f"{folder}printf %s {shlex.quote(given.get('content', ''))} > {path}"
        case "edit":
            texts = f"{shlex.quote(given.get('old_text', ''))} {shlex.quote(given.get('new_text', ''))}"
            return f"python3 -c {shlex.quote(_REPLACE)} {path} {texts}"
        case "grep":
            return f"grep -rn -- {shlex.quote(given.get('pattern', ''))} {path}"
        case "find":
            return f"find {path} -name {shlex.quote(given.get('glob_pattern', '*'))}"
    return "true"


def _filling(schema: object) -> Any:
    options = schema.get("enum") if isinstance(schema, dict) else None
    if isinstance(options, list) and options:
        return options[0]
    return _FILLED.get(_type(schema), "rehearsal")


def _type(schema: object) -> str:
    found = schema.get("type") if isinstance(schema, dict) else None
    return found if isinstance(found, str) else ""
