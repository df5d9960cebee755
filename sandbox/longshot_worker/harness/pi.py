"""Pi: `pi --mode json`. It always exits with 0, and repeats the whole message with every piece of it."""

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
    objects,
    text,
)

_RETRIES = 3
_END = '{"type":"agent_end"'  # holds the whole conversation: its line may be too long to be read


class Pi(Harness):
    name = "pi"
    binary = "pi"
    tools = ("rg", "fd")
    skips = (b'{"type":"message_update"', b'{"type":"turn_end"', b'{"type":"tool_execution_update"')

    def prepare(self, request: Request) -> Invocation:
        folder = f"{request.scratch}/pi"
        model = {
            "id": request.model,
            "contextWindow": request.context_tokens,
            "maxTokens": min(request.max_tokens, request.context_tokens // 2),
            "cost": {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0},
        }
        provider = {
            "baseUrl": request.base_url,
            "api": "openai-completions",
            "apiKey": "LONGSHOT_LLM_API_KEY",  # the name of the variable
            "compat": {
                "supportsDeveloperRole": False,
                "supportsReasoningEffort": False,
                "supportsStore": False,
                "maxTokensField": "max_tokens",
                "supportsUsageInStreaming": True,
            },
            "models": [model],
        }
        settings = {
            "retry": {
                "enabled": True,
                "maxRetries": _RETRIES,
                "baseDelayMs": 2000,
                # Without it, a model that hangs is waited for until the worker's time is up.
                "provider": {"maxRetries": 0, "timeoutMs": int(request.llm_timeout_s * 1000)},
            },
            "enableInstallTelemetry": False,
        }
        search = [name for name, program in (("grep", "rg"), ("find", "fd")) if program in request.tools]
        argv = ["pi", "--mode", "json", "-p", "--no-session", "--provider", "longshot", "--model", request.model]
        argv += ["--thinking", "off", "--tools", ",".join(["read", "bash", "edit", "write", *search, "ls"])]
        argv += ["--append-system-prompt", f"{request.scratch}/system.md", "--no-extensions", "--no-skills"]
        argv += ["--no-prompt-templates", "--no-themes", "--no-context-files", "--offline"]
        return Invocation(
            argv,
            request.repo,
            env={"PI_CODING_AGENT_DIR": folder, "PI_OFFLINE": "1", "PI_TELEMETRY": "0", "PI_SKIP_VERSION_CHECK": "1"},
            files={
                f"{folder}/models.json": json.dumps({"providers": {"longshot": provider}}),
                f"{folder}/settings.json": json.dumps(settings),
                f"{request.scratch}/system.md": request.system_prompt,
            },
            stdin=request.prompt,
            excludes=(".pi/",),
        )

    def parse(self, line: str) -> Iterable[Event]:
        if line.startswith(_END):
            return [Event("done")]
        found = json_line(line)
        kind = found.get("type")
        if kind == "message_end":
            return _message(inner(found, "message"))
        if kind == "tool_execution_start":
            call = text(found.get("toolCallId"))
            return [Event("tool_start", name=text(found.get("toolName")), id=call, arguments=found.get("args"))]
        if kind == "tool_execution_end":
            said = "\n".join(text(part.get("text")) for part in objects(inner(found, "result").get("content")))
            return [Event("tool_end", said, id=text(found.get("toolCallId")), ok=not found.get("isError"))]
        if kind == "auto_retry_start":
            return [Event("retry", text(found.get("errorMessage")))]
        if kind == "agent_start":
            return [Event("began")]
        if kind == "agent_end":
            return [Event("done")]
        if kind == "compaction_start":
            return [Event("note", "the conversation is compacted")]
        return []


def _message(message: dict) -> list[Event]:
    if message.get("role") != "assistant":
        return []
    ended = message.get("stopReason")
    if ended in ("error", "aborted"):
        return [Event("error", text(message.get("errorMessage")) or str(ended))]
    said = "\n".join(text(part.get("text")) for part in objects(message.get("content")) if part.get("type") == "text")
    usage = inner(message, "usage")
    tokens = Usage(
        number(usage.get("input")),
        number(usage.get("output")),
        number(usage.get("cacheRead")),
        number(usage.get("cacheWrite")),
    )
    cost = amount(inner(usage, "cost").get("total"))
    cut = [Event("limit", "its answer ran into the limit of tokens")] if ended == "length" else []
    return [Event("text", said), Event("turn", usage=tokens, cost_usd=cost), *cut]
