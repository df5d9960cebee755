"""Codex: `codex exec --json`. It speaks OpenAI's Responses API only."""

from __future__ import annotations

import json
from typing import Iterable

from longshot_worker.harness.interface import Event, Harness, Invocation, Request, Usage, inner, json_line, number, text

_CALLS = ("command_execution", "file_change", "mcp_tool_call", "web_search")
_RETRIES = 2


class Codex(Harness):
    name = "codex"
    api = "responses"
    binary = "codex"

    def prepare(self, request: Request) -> Invocation:
        folder = f"{request.scratch}/codex"
        config = [
            f"model = {_toml(request.model)}",
            'model_provider = "longshot"',
            f"model_context_window = {request.context_tokens}",
            'approval_policy = "never"',
            'sandbox_mode = "danger-full-access"  # the sandbox is around it',
            "check_for_update_on_startup = false",
            "project_doc_max_bytes = 0  # the repository's guidance is in the prompt, as it was at the base",
            'web_search = "disabled"',
            f"developer_instructions = {_toml(request.system_prompt)}",
            "[analytics]\nenabled = false",
            "[feedback]\nenabled = false",
            '[history]\npersistence = "none"',
            '[shell_environment_policy]\nexclude = ["*_API_KEY"]',
            '[model_providers.longshot]\nname = "Longshot"',
            f"base_url = {_toml(request.base_url)}",
            'env_key = "LONGSHOT_LLM_API_KEY"\nwire_api = "responses"',
            f"request_max_retries = {_RETRIES}\nstream_max_retries = {_RETRIES}",
            f"stream_idle_timeout_ms = {int(request.llm_timeout_s * 1000)}",
            "supports_websockets = false",
        ]
        last = f"{request.scratch}/last.txt"
        argv = ["codex", "exec", "--json", "--ephemeral", "--skip-git-repo-check"]
        argv += ["--dangerously-bypass-approvals-and-sandbox", "--disable", "multi_agent", "-c", "features.goals=false"]
        return Invocation(
            [*argv, "-C", request.repo, "-o", last, "-"],
            request.repo,
            env={"CODEX_HOME": folder},
            files={f"{folder}/config.toml": "\n".join(config) + "\n"},
            stdin=request.prompt,
            excludes=(".codex/",),
        )

    def parse(self, line: str) -> Iterable[Event]:
        found = json_line(line)
        kind, item = found.get("type"), inner(found, "item")
        if kind in ("item.started", "item.completed") and item.get("type") in _CALLS:
            return _call(item, kind == "item.started")
        if kind == "item.completed" and item.get("type") == "agent_message":
            return [Event("text", text(item.get("text")))]
        if kind == "item.completed" and item.get("type") == "error":
            return [Event("note", text(item.get("message")))]  # a warning, whatever it is called
        if kind == "error":
            said = text(found.get("message"))
            return [Event("retry" if said.startswith("Reconnecting") else "error", said)]
        if kind == "turn.failed":
            return [Event("error", text(inner(found, "error").get("message")) or "its turn failed")]
        if kind == "turn.started":
            return [Event("began")]
        if kind == "turn.completed":
            return [Event("turn", usage=_usage(inner(found, "usage"))), Event("done")]
        return []


def _call(item: dict, starts: bool) -> list[Event]:
    """Not every call that is completed was said to have started, so both say that it has."""
    call, kind = text(item.get("id")), text(item.get("type"))
    about = {key: item[key] for key in ("command", "changes", "tool", "arguments", "query") if key in item}
    start = Event("tool_start", name=kind, id=call, arguments=about)
    if starts:
        return [start]
    ok = item.get("status") != "failed" and item.get("exit_code") in (0, None)
    return [start, Event("tool_end", text(item.get("aggregated_output")), id=call, ok=ok)]


def _usage(usage: dict) -> Usage:
    """Its `input_tokens` have the cached ones in them."""
    cached = number(usage.get("cached_input_tokens"))
    return Usage(max(0, number(usage.get("input_tokens")) - cached), number(usage.get("output_tokens")), cached)


def _toml(value: str) -> str:
    """A JSON string is a TOML string, too, but for one character; and TOML has no escapes for half a character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
