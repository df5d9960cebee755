"""Any other agent: a command that somebody gives, whose output is plain text or like that of an agent that is known."""

from __future__ import annotations

import json
from typing import Iterable

from longshot_worker.handoff import HarnessResult
from longshot_worker.harness.claude_code import ClaudeCode
from longshot_worker.harness.codex import Codex
from longshot_worker.harness.interface import Event, Harness, Invocation, Request, Tally
from longshot_worker.harness.opencode import OpenCode
from longshot_worker.harness.pi import Pi

_LIKE = {harness.name: harness for harness in (Pi, OpenCode, Codex, ClaudeCode)}


class Command(Harness):
    """`argv` with its placeholders replaced; the prompt is its standard input, too."""

    name = "command"

    def __init__(self) -> None:
        self._like: Harness | None = None

    def prepare(self, request: Request) -> Invocation:
        argv, parser = understood(request.command)
        if parser != "text":
            self._like = _LIKE[parser]()
            self.skips = self._like.skips
        places = {
            "prompt_file": f"{request.scratch}/prompt.md",
            "system_file": f"{request.scratch}/system.md",
            "model": request.model,
            "base_url": request.base_url,
            "repo": request.repo,
        }
        host = request.base_url[: -len("/v1")] if request.base_url.endswith("/v1") else request.base_url
        return Invocation(
            [_replaced(word, places) for word in argv],
            request.repo,
            # What most agents and their libraries look at.
            env={
                "OPENAI_BASE_URL": request.base_url,
                "OPENAI_API_BASE": request.base_url,
                "ANTHROPIC_BASE_URL": host,
                "LONGSHOT_MODEL": request.model,
                **{f"LONGSHOT_{name.upper()}": value for name, value in places.items() if name.endswith("_file")},
            },
            key_env=("LONGSHOT_LLM_API_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY"),
            files={places["prompt_file"]: request.prompt, places["system_file"]: request.system_prompt},
            stdin=request.prompt,
        )

    def parse(self, line: str) -> Iterable[Event]:
        if self._like is not None:
            return self._like.parse(line)
        return [Event("line", line)]

    def finish(self, tally: Tally, ended: str, exit_code: int, files: dict[str, str]) -> HarnessResult:
        """Plain text tells no events, so here, and only here, the exit code is all there is."""
        if self._like is not None:
            return self._like.finish(tally, ended, exit_code, files)
        said = tally.final.strip()
        if ended == "wall":
            return HarnessResult("timeout", "the time for this task is up", said)
        if ended == "idle":
            return HarnessResult("stalled", "it gave no sign of life any more", said)
        if exit_code:
            return HarnessResult("crashed", f"it ended with exit code {exit_code}", said)
        return HarnessResult("completed", "", said)


def understood(command: str) -> tuple[list[str], str]:
    """(words, parser) of HARNESS_COMMAND: a JSON list, an object with `argv` and `parser`, or a line for a shell.

    Raises ValueError.
    """
    if not command.strip():
        raise ValueError("HARNESS_COMMAND is empty")
    if command.lstrip()[:1] not in ("[", "{"):
        return ["bash", "-c", command], "text"
    found = json.loads(command)
    wire = found if isinstance(found, dict) else {"argv": found}
    argv, parser = wire.get("argv"), wire.get("parser", "text")
    if not isinstance(argv, list) or not argv or not all(isinstance(word, str) for word in argv):
        raise ValueError("HARNESS_COMMAND is not a JSON list of words")
    if parser != "text" and parser not in _LIKE:
        raise ValueError(f"HARNESS_COMMAND names no parser with {str(parser)[:40]!r}")
    return argv, parser


def _replaced(word: str, places: dict[str, str]) -> str:
    for name, value in places.items():
        word = word.replace("{" + name + "}", value)
    return word
