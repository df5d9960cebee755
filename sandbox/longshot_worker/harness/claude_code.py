"""Claude Code: `claude -p --output-format stream-json`. It speaks Anthropic's Messages API only."""

from __future__ import annotations

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

_MAX_TURNS_SHOWN = 10_000
_RETRIES = 3
_TIERS = ("HAIKU", "SONNET", "OPUS")


class ClaudeCode(Harness):
    name = "claude-code"
    api = "messages"
    binary = "claude"

    def prepare(self, request: Request) -> Invocation:
        models = ("ANTHROPIC_MODEL", "ANTHROPIC_SMALL_FAST_MODEL", "CLAUDE_CODE_SUBAGENT_MODEL")
        switches = ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "DISABLE_AUTOUPDATER", "DISABLE_TELEMETRY")
        argv = ["claude", "-p", "--output-format", "stream-json", "--verbose", "--dangerously-skip-permissions"]
        argv += ["--model", request.model, "--append-system-prompt-file", f"{request.scratch}/system.md"]
        argv += ["--no-session-persistence", "--max-turns", str(request.max_turns)]
        # A repository may have settings of its own for whoever works on it by hand: other models, servers, hooks.
        argv += ["--setting-sources", "user", "--strict-mcp-config"]
        return Invocation(
            argv,
            request.repo,
            env={
                **dict.fromkeys(models, request.model),
                **{f"ANTHROPIC_DEFAULT_{tier}_MODEL": request.model for tier in _TIERS},
                **dict.fromkeys((*switches, "DISABLE_ERROR_REPORTING"), "1"),
                "IS_SANDBOX": "1",  # without it, it refuses to work as root
                "CLAUDE_CONFIG_DIR": f"{request.scratch}/claude",
                "ANTHROPIC_BASE_URL": request.base_url[: -len("/v1")]
                if request.base_url.endswith("/v1")
                else request.base_url,
                "API_TIMEOUT_MS": str(int(request.llm_timeout_s * 1000)),
                "CLAUDE_CODE_MAX_RETRIES": str(_RETRIES),
                "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(request.max_tokens),
            },
            key_env=("ANTHROPIC_API_KEY",),
            files={f"{request.scratch}/system.md": request.system_prompt},
            stdin=request.prompt,
            excludes=(".claude/settings.local.json",),
        )

    def parse(self, line: str) -> Iterable[Event]:
        found = json_line(line)
        kind = found.get("type")
        if kind == "assistant":
            return [event for part in objects(inner(found, "message").get("content")) for event in _said(part)]
        if kind == "user":
            parts = objects(inner(found, "message").get("content"))
            return [_returned(part) for part in parts if part.get("type") == "tool_result"]
        if kind == "system" and found.get("subtype") == "api_retry":
            return [Event("retry", f"{text(found.get('error_status'))} {text(found.get('error'))}")]
        if kind == "result":
            return _result(found)
        return []


def _said(part: dict) -> list[Event]:
    if part.get("type") == "text":
        return [Event("text", text(part.get("text")))]
    if part.get("type") == "tool_use":
        call = text(part.get("id"))
        return [Event("tool_start", name=text(part.get("name")), id=call, arguments=part.get("input"))]
    return []


def _returned(part: dict) -> Event:
    content = part.get("content")
    said = content if isinstance(content, str) else "\n".join(text(p.get("text")) for p in objects(content))
    return Event("tool_end", said, id=text(part.get("tool_use_id")), ok=not part.get("is_error"))


def _result(found: dict) -> list[Event]:
    """The only place where its tokens are true; a `success` may be an error all the same."""
    usage = inner(found, "usage")
    tokens = Usage(
        number(usage.get("input_tokens")),
        number(usage.get("output_tokens")),
        number(usage.get("cache_read_input_tokens")),
        number(usage.get("cache_creation_input_tokens")),
    )
    turns = min(number(found.get("num_turns")), _MAX_TURNS_SHOWN)
    events = [Event("turn") for _ in range(turns)]
    events.append(Event("usage", usage=tokens, cost_usd=amount(found.get("total_cost_usd"))))
    errors = found.get("errors") if isinstance(found.get("errors"), list) else []
    said = text(found.get("result")) or "; ".join(text(e) for e in errors[:20]) or text(found.get("subtype"))
    if found.get("subtype") == "error_max_turns":
        events.append(Event("limit", said))
    elif found.get("is_error"):
        status = text(found.get("api_error_status"))
        events.append(Event("error", said if not status or status in said else f"{status} {said}"))
    elif isinstance(found.get("result"), str):
        events.append(Event("final", text(found["result"])))
    return [*events, Event("done")]
