"""The agent's seven tools: read, write, edit, bash, grep, find, ls. Each answers with text, bounded, and never raises."""

from __future__ import annotations

import glob
import itertools
import os
import time
from collections.abc import Callable

from longshot_worker import commands
from longshot_worker.commands import clipped

MAX_OUTPUT = 30_000
_MAX_READ_BYTES = 20 << 20
_MAX_LINE = 2_000
_MAX_ENTRIES = 1_000
_BASH_DEFAULT_S, _BASH_MAX_S, _SEARCH_S = 120, 600, 60


class ToolError(Exception):
    """Raised by a tool when it cannot do what it is asked; the model reads the text."""


class Tools:
    """The tools on one repository. `until` (monotonic) ends every command; one that is silent for `silence_s` is ended."""

    def __init__(self, repo: str, until: float, silence_s: float) -> None:
        self._repo = os.path.realpath(repo)
        self._until = until
        self._silence_s = silence_s
        self._tools: dict[str, Callable[..., str]] = {
            n: getattr(self, f"_{n}") for n in ("read", "write", "edit", "bash", "grep", "find", "ls")
        }

    def run(self, name: str, arguments: dict[str, object] | None) -> tuple[str, bool]:
        """(text for the model, whether it worked)."""
        tool = self._tools.get(name)
        if tool is None:
            return f"there is no tool {name!r}; there are: {', '.join(self._tools)}", False
        if arguments is None:
            return "the arguments are not a JSON object (were they cut off? write long files in parts)", False
        try:
            return clipped(tool(**_checked(name, arguments)), MAX_OUTPUT), True
        except ToolError as e:
            return str(e), False
        except (OSError, ValueError) as e:
            return f"{type(e).__name__}: {e}"[:1_000], False

    def _read(self, path: str, offset: int = 1, limit: int = 2_000) -> str:
        full = self._inside(path)
        if not os.path.isfile(full):
            raise ToolError(f"{path} is {'a directory: use ls' if os.path.isdir(full) else 'not there'}")
        with open(full, "rb") as file:
            data = file.read(_MAX_READ_BYTES)
        if b"\0" in data[:8_000]:
            return f"{path} is binary, {os.path.getsize(full):,} bytes"
        lines = data.decode("utf-8", "replace").splitlines()
        start = max(offset, 1)
        shown = [
            f"{n}\t{line[:_MAX_LINE]}" for n, line in enumerate(lines[start - 1 : start - 1 + max(limit, 1)], start)
        ]
        left = len(lines) - (start - 1 + len(shown))
        more = [f"[{left:,} more lines: read again with offset={start + len(shown)}]"] if left > 0 else []
        return "\n".join(shown + more) or "(the file is empty)" if lines else "(the file is empty)"

    def _write(self, path: str, content: str) -> str:
        full = self._inside(path, writing=True)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.write(content)
        return f"wrote {len(content):,} characters to {path}"

    def _edit(self, path: str, old_text: str, new_text: str, replace_all: bool = False) -> str:
        full = self._inside(path, writing=True)
        if not os.path.isfile(full):
            raise ToolError(f"{path} is not there; use write to create it")
        with open(full, encoding="utf-8", errors="surrogateescape", newline="") as file:
            text = file.read()
        if "\r\n" in text and "\r\n" not in old_text:
            old_text, new_text = old_text.replace("\n", "\r\n"), new_text.replace("\n", "\r\n")
        count = text.count(old_text) if old_text else 0
        if count == 0:
            raise ToolError(f"old_text is not in {path}; read the file and copy the text exactly, with its indentation")
        if count > 1 and not replace_all:
            raise ToolError(
                f"old_text is {count} times in {path}; add lines around it until it is there once, or set replace_all"
            )
        with open(full, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.write(text.replace(old_text, new_text))
        return f"replaced {count} occurrence{'s' if count > 1 else ''} in {path}"

    def _bash(self, command: str, timeout: int = _BASH_DEFAULT_S) -> str:
        seconds = max(1.0, min(timeout, _BASH_MAX_S, self._until - time.monotonic()))
        ran = commands.run(
            ["bash", "-c", command], self._repo, seconds, keep=MAX_OUTPUT - 200, silence_s=self._silence_s
        )
        endings = {
            "timeout": f"ended after {seconds:.0f} s",
            "silence": f"ended: no output for {self._silence_s:.0f} s",
        }
        return f"{ran.output}\n[{endings.get(ran.ended, f'exit {ran.code}')}]".lstrip("\n")

    def _grep(self, pattern: str, path: str = ".", file_glob: str = "") -> str:
        where = os.path.relpath(self._inside(path), self._repo)
        spec = f":(glob){'' if where == '.' else where + '/'}**/{file_glob}" if file_glob else where
        ran = self._search(["git", "grep", "--untracked", "-nIE", "-e", pattern, "--", spec])
        if ran.code > 1:  # not a repository any more, or a bad pattern: grep itself says which
            ran = self._search(["grep", "-rnIE", "--exclude-dir=.git", "-e", pattern, "--", where])
        if ran.code > 1:
            raise ToolError(ran.output.strip()[:1_000])
        return "\n".join(line[:_MAX_LINE] for line in ran.output.splitlines()) or "no match"

    def _find(self, glob_pattern: str) -> str:
        pattern = glob_pattern.lstrip("/") or "*"
        pattern = pattern if "/" in pattern else f"**/{pattern}"
        ran = self._search(["git", "ls-files", "-co", "--exclude-standard", "--", f":(glob){pattern}"])
        if ran.code == 0:
            names = sorted(set(ran.output.splitlines()))
        else:
            found = glob.iglob(os.path.join(glob.escape(self._repo), pattern), recursive=True)
            names = sorted(os.path.relpath(f, self._repo) for f in itertools.islice(found, _MAX_ENTRIES))
        return "\n".join(names) or "no file matches"

    def _ls(self, path: str = ".") -> str:
        full = self._inside(path)
        if not os.path.isdir(full):
            raise ToolError(f"{path} is not a directory")
        names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in os.scandir(full))
        more = [f"[{len(names) - _MAX_ENTRIES:,} more]"] if len(names) > _MAX_ENTRIES else []
        return "\n".join(names[:_MAX_ENTRIES] + more) or "(the directory is empty)"

    def _search(self, argv: list[str]) -> commands.Ran:
        return commands.run(
            argv, self._repo, min(_SEARCH_S, max(1.0, self._until - time.monotonic())), keep=MAX_OUTPUT - 200
        )

    def _inside(self, path: str, writing: bool = False) -> str:
        full = os.path.realpath(os.path.join(self._repo, path))
        if full != self._repo and not full.startswith(self._repo + os.sep):
            raise ToolError(f"{path} is outside the repository; paths are relative to its root")
        if writing and os.path.relpath(full, self._repo).split(os.sep)[0] == ".git":
            raise ToolError("files in .git are not yours to write; use git through bash")
        return full


def _parameter(kind: str, description: str) -> dict[str, str]:
    return {"type": kind, "description": description}


_PATH = _parameter("string", "relative to the repository's root")
# name: (description, required parameters, optional parameters)
_SIGNATURES: dict[str, tuple[str, dict[str, dict[str, str]], dict[str, dict[str, str]]]] = {
    "read": (
        "Read a text file, with line numbers.",
        {"path": _PATH},
        {
            "offset": _parameter("integer", "first line, from 1"),
            "limit": _parameter("integer", "lines, 2000 unless given"),
        },
    ),
    "write": (
        "Create a file or replace all of it.",
        {"path": _PATH, "content": _parameter("string", "the whole file")},
        {},
    ),
    "edit": (
        "Replace text in a file. old_text must be there exactly once, unless replace_all is true.",
        {
            "path": _PATH,
            "old_text": _parameter("string", "exact text, with its indentation"),
            "new_text": _parameter("string", "what replaces it"),
        },
        {"replace_all": _parameter("boolean", "replace every occurrence")},
    ),
    "bash": (
        "Run a bash command in the repository's root. Both streams come back. What it starts in the background ends with it.",
        {"command": _parameter("string", "the command")},
        {"timeout": _parameter("integer", f"seconds, {_BASH_DEFAULT_S} unless given, {_BASH_MAX_S} at most")},
    ),
    "grep": (
        "Search file contents with an extended regular expression; ignored files are left out.",
        {"pattern": _parameter("string", "extended regular expression")},
        {
            "path": _parameter("string", "directory or file to search"),
            "file_glob": _parameter("string", "only files named so, e.g. *.py"),
        },
    ),
    "find": (
        "List files by name; ignored files are left out.",
        {"glob_pattern": _parameter("string", "e.g. *.py or src/**/test_*.js")},
        {},
    ),
    "ls": ("List a directory.", {}, {"path": _PATH}),
}

SCHEMA: list[dict[str, object]] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {"type": "object", "properties": {**required, **optional}, "required": list(required)},
        },
    }
    for name, (description, required, optional) in _SIGNATURES.items()
]


def _checked(name: str, arguments: dict[str, object]) -> dict[str, object]:
    """`arguments` with the types the tool declares; raises ToolError naming the first that is missing or wrong."""
    _, required, optional = _SIGNATURES[name]
    known = {**required, **optional}
    for parameter in required:
        if parameter not in arguments:
            raise ToolError(f"{name} needs {parameter!r}; it was given {', '.join(arguments) or 'nothing'}")
    return {
        p: _typed(p, v, known[p]["type"])
        for p, v in arguments.items()
        if p in known and (v is not None or p in required)
    }


def _typed(parameter: str, value: object, kind: str) -> object:
    if kind == "boolean":
        return value is True or str(value).lower() == "true"
    if kind == "integer":
        try:
            return int(str(value).split(".")[0])
        except ValueError:
            raise ToolError(f"{parameter} must be a whole number, not {value!r}"[:300]) from None
    if not isinstance(value, str):
        raise ToolError(f"{parameter} must be a text, not {type(value).__name__}")
    return value
