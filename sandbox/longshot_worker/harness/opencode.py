"""OpenCode: `opencode run --format json`. A model's stream that breaks off makes it ask again for ever."""

from __future__ import annotations

import json
from typing import Iterable

from longshot_worker.harness.interface import (
    Event,
    Harness,
    Invocation,
    Request,
    Usage,
    amount,
    inner,
    json_line,
    number,
    text,
)


class OpenCode(Harness):
    name = "opencode"
    binary = "opencode"

    def prepare(self, request: Request) -> Invocation:
        folder = f"{request.scratch}/opencode"
        model = {
            "limit": {
                "context": request.context_tokens,
                "output": min(request.max_tokens, request.context_tokens // 2),
            },
            "tool_call": True,
        }
        provider = {
            "npm": "@ai-sdk/openai-compatible",  # comes with it
            "name": "Longshot",
            "options": {
                "baseURL": request.base_url,
                "apiKey": "{env:LONGSHOT_LLM_API_KEY}",
                "timeout": int(request.llm_timeout_s * 1000),
            },
            "models": {request.model: model},
        }
        config = {
            "autoupdate": False,
            "share": "disabled",
            "snapshot": False,
            "lsp": False,
            "formatter": False,
            "model": f"longshot/{request.model}",
            "small_model": f"longshot/{request.model}",
            "enabled_providers": ["longshot"],
            "provider": {"longshot": provider},
            "instructions": [f"{request.scratch}/system.md"],
            "permission": {
                "*": "allow",
                "question": "deny",
                "external_directory": "allow",
                "doom_loop": "allow",
                "webfetch": "deny",
                "websearch": "deny",
            },
        }
        switches = ("AUTOUPDATE", "MODELS_FETCH", "LSP_DOWNLOAD", "DEFAULT_PLUGINS", "CLAUDE_CODE", "SHARE")
        switches += ("PROJECT_CONFIG",)  # a repository may name other models in its own
        return Invocation(
            # Its prompt comes by standard input: one argument can have 128 kB at most. The title saves a request for one.
            ["opencode", "run", "--format", "json", "--model", f"longshot/{request.model}", "--title", "task"],
            request.repo,
            env={
                **{f"XDG_{kind}_HOME": f"{folder}/{kind.lower()}" for kind in ("CONFIG", "DATA", "CACHE", "STATE")},
                **{f"OPENCODE_DISABLE_{switch}": "1" for switch in switches},
                "OPENCODE_CONFIG": f"{folder}/opencode.json",
            },
            files={
                f"{folder}/opencode.json": json.dumps(config),
                f"{request.scratch}/system.md": request.system_prompt,
            },
            stdin=request.prompt,
            excludes=(".opencode/",),
        )

    def parse(self, line: str) -> Iterable[Event]:
        found = json_line(line)
        kind, part = found.get("type"), inner(found, "part")
        if kind == "text":
            return [Event("text", text(part.get("text")))]
        if kind == "tool_use":
            call, state = text(part.get("callID")), inner(part, "state")
            said = text(state.get("output") or state.get("error"))
            return [
                Event("tool_start", name=text(part.get("tool")), id=call, arguments=state.get("input")),
                Event("tool_end", said, id=call, ok=state.get("status") == "completed"),
            ]
        if kind == "step_finish":
            return _step(part)
        if kind == "error":
            error = inner(found, "error")
            data = inner(error, "data")
            said = text(data.get("message")) or text(found.get("error"))
            # What the endpoint answered, too: the message of a refusal does not always say which one it was.
            return [Event("error", f"{said} {text(data.get('responseBody'))[:500]}".strip())]
        return []


def _step(part: dict) -> list[Event]:
    tokens, reason = inner(part, "tokens"), part.get("reason")
    usage = Usage(
        number(tokens.get("input")),
        number(tokens.get("output")) + number(tokens.get("reasoning")),
        number(inner(tokens, "cache").get("read")),
        number(inner(tokens, "cache").get("write")),
    )
    found = [Event("turn", usage=usage, cost_usd=amount(part.get("cost")))]
    if reason == "stop":
        found.append(Event("done"))
    elif reason == "length":
        found.append(Event("limit", "its answer ran into the limit of tokens"))
    return found
