"""A conversation with the build's model behind one of the gateway's sockets, and what its errors mean for a person.

The only importer of pydantic_ai and openai; both are loaded when a conversation begins, not before.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from longshot_dagster.core.display import one_line
from longshot_dagster.core.errors import BudgetExhausted, BuildPaused, ModelUnavailable, PlanUnreadable
from longshot_dagster.core.refusals import BUDGET_EXHAUSTED, Kind, advice
from longshot_dagster.core.settings import Settings

if TYPE_CHECKING:
    import httpx2
    from pydantic_ai.exceptions import ModelHTTPError
    from pydantic_ai.messages import ModelMessage, ToolReturnPart
    from pydantic_ai.models import Model

COMPACT_FROM = 60_000  # characters of a serialised conversation
_KEEP_OF_FIRST = 40_000
_KEEP_OF_TOOL = 400
_RECENT = 6  # messages whose tool results stay whole
_PATIENCE = 8  # the gateway asks several endpoints several times; it gives up long before we do
_TOOL_RETRIES = 10
_GATEWAYS = 3  # that may die under one question
_ROUND_HEADINGS = ("# Planning round ", "# Fix round ")


@dataclass(frozen=True)
class Conversation:
    """`messages`: all of it, as JSON values, never compacted; None when no answer was acceptable, and `problem` says why."""

    messages: list[Any] | None
    problem: str = ""


def converse(
    socket: str,
    settings: Settings,
    build: str,
    *,
    system: str,
    message: str,
    history: list[Any],
    tools: Sequence[Callable[..., str]],
    accept: Callable[[str], str],
    retries: int,
    max_requests: int,
    comes_back: Callable[[], bool] = lambda: False,
) -> Conversation:
    """Say `message` after `history`, let the model use `tools`, and hear its answer out.

    `accept` gets the answer's text and returns "" or what the model is told to do better, `retries` times at most.
    `comes_back` waits for a gateway that has died; when it is true, the same is asked again. Raises ModelUnavailable,
    BudgetExhausted, PlanUnreadable (endless looking), each in one line.
    """
    from pydantic_ai import Agent, ModelRetry, TextOutput, UsageLimits
    from pydantic_ai.exceptions import AgentRunError, UnexpectedModelBehavior, UsageLimitExceeded
    from pydantic_ai.messages import ModelMessagesTypeAdapter

    def read(text: str) -> str:
        if complaint := accept(text):
            raise ModelRetry(complaint)
        return text

    async def run() -> "list[ModelMessage]":
        async with _chat_model(socket, settings, comes_back) as model:
            agent = Agent(
                model,
                output_type=TextOutput(read),
                instructions=system,
                tools=list(tools),
                retries={"tools": _TOOL_RETRIES, "output": retries},
                model_settings={"temperature": settings.llm_temperature, "max_tokens": settings.llm_max_tokens},
            )
            earlier = ModelMessagesTypeAdapter.validate_python(history) if history else None
            limits = UsageLimits(request_limit=max_requests)
            return (await agent.run(message, message_history=earlier, usage_limits=limits)).all_messages()

    try:
        return Conversation(ModelMessagesTypeAdapter.dump_python(asyncio.run(run()), mode="json"))
    except UnexpectedModelBehavior as e:
        return Conversation(None, one_line(str(e)))
    except UsageLimitExceeded as e:
        raise PlanUnreadable(
            f"model {settings.llm_model} asked for files without end and gave no plan; check LLM_MODEL, {_resume(build)}"
        ) from e
    except AgentRunError as e:
        raise _explained(e, build, settings) from e


def preload() -> None:
    """For a process whose forks hold conversations: load, and build once, what one needs. Neither thread nor connection is left.

    Measured, the first conversation of a process costs 0.4 s of CPU more than its second.
    """
    import httpx2
    from pydantic_ai import Agent, TextOutput
    from pydantic_ai.messages import ModelMessagesTypeAdapter

    turns = iter(_REHEARSED)
    answers = httpx2.MockTransport(lambda _: httpx2.Response(200, json=next(turns)))

    def read_file(path: str) -> str:
        """A tool as planners have them."""
        return path

    def read(text: str) -> str:
        return text

    async def rehearse() -> None:
        async with _chat_model("", Settings(llm_model="none"), lambda: False, answers) as model:
            agent = Agent(model, output_type=TextOutput(read), instructions="Say yes.", tools=[read_file])
            ModelMessagesTypeAdapter.dump_python((await agent.run("")).all_messages(), mode="json")

    ModelMessagesTypeAdapter.rebuild()
    asyncio.run(rehearse())


def _answer(**message: object) -> dict[str, object]:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": None, **message}}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "none", "choices": [choice], "usage": usage}


_CALLED = {"id": "1", "type": "function", "function": {"name": "read_file", "arguments": '{"path": "a"}'}}
_REHEARSED = (_answer(tool_calls=[_CALLED]), _answer(content="yes"))


def silent(build: str, settings: Settings, problem: str) -> ModelUnavailable:
    """For a model that answers nothing at all."""
    return ModelUnavailable(
        f"model {settings.llm_model} gave no usable answer ({problem}); check LLM_MODEL and LLM_MAX_TOKENS, {_resume(build)}"
    )


@contextlib.asynccontextmanager
async def _chat_model(
    socket: str,
    settings: Settings,
    comes_back: Callable[[], bool],
    answers: "httpx2.AsyncBaseTransport | None" = None,  # instead of the socket's
) -> "AsyncIterator[Model]":
    import httpx2
    from openai import AsyncOpenAI
    from pydantic_ai.exceptions import ModelAPIError, ModelHTTPError
    from pydantic_ai.models import ModelRequestParameters
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.models.wrapper import WrapperModel
    from pydantic_ai.profiles.openai import OpenAIModelProfile
    from pydantic_ai.providers.openai import OpenAIProvider
    from pydantic_ai.settings import ModelSettings

    class CompactingModel(WrapperModel):
        """Sends a shortened conversation when it has grown long; the conversation itself stays whole."""

        async def request(
            self,
            messages: "list[ModelMessage]",
            model_settings: ModelSettings | None,
            model_request_parameters: ModelRequestParameters,
        ) -> Any:
            sent = compacted(messages)
            for _ in range(_GATEWAYS):
                try:
                    return await super().request(sent, model_settings, model_request_parameters)
                except ModelAPIError as e:
                    # A gateway that has died in the middle of an answer is started again, and serves the same socket.
                    if isinstance(e, ModelHTTPError) or not await asyncio.to_thread(comes_back):
                        raise
            return await super().request(sent, model_settings, model_request_parameters)

    # Endpoints differ in what they take of the interface; this is what all of them take. Two system messages, or one in
    # the middle of a conversation, are refused by strict chat templates.
    plain = OpenAIModelProfile(
        supports_json_schema_output=False,
        supports_json_object_output=False,
        supports_inline_system_prompts=False,
        openai_supports_strict_tool_definition=False,
        openai_system_prompt_role="system",
        openai_chat_supports_max_completion_tokens=False,
        openai_chat_supports_multiple_system_messages=False,
    )
    timeout = httpx2.Timeout(settings.llm_timeout * _PATIENCE, connect=30)
    # A unix socket needs no TLS: an empty context trusts nobody; the default one reads 73 ms of certificates.
    transport = answers or httpx2.AsyncHTTPTransport(uds=socket, verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    async with httpx2.AsyncClient(transport=transport, timeout=timeout) as http:
        client = AsyncOpenAI(base_url="http://gateway/v1", api_key="gateway-adds-it", http_client=http, max_retries=0)
        provider = OpenAIProvider(openai_client=client)
        yield CompactingModel(OpenAIChatModel(settings.llm_model, provider=provider, profile=plain))


# --- compaction ------------------------------------------------------------------------------------------------------


def compacted(messages: "list[ModelMessage]", budget: int = COMPACT_FROM) -> "list[ModelMessage]":
    """`messages`, or when they are longer than `budget` characters: how the conversation began, and the current round.

    The current round's message carries the planner's scratchpad, which is what it wanted to keep. Inside the round, old
    tool results are cut as well.
    """
    if _size(messages) <= budget:
        return messages
    rounds = [n for n, m in enumerate(messages) if _round_text(m)]
    if len(rounds) > 1:
        first, current = messages[rounds[0]], messages[rounds[-1]]
        messages = [_with_beginning(current, _round_text(first)), *messages[rounds[-1] + 1 :]]
    return _tools_cut(messages) if _size(messages) > budget else messages


def _with_beginning(current: "ModelMessage", beginning: str) -> "ModelMessage":
    text = (
        f"{_round_text(current)}\n\n---\nEarlier messages were dropped to save room; your scratchpad is what you kept of "
        f"them, and your tools still read everything. The conversation began with:\n\n{beginning[:_KEEP_OF_FIRST]}"
    )
    assert current.kind == "request"
    prompts = [replace(p, content=text) for p in current.parts if p.part_kind == "user-prompt"]
    return replace(current, parts=prompts[:1])


def _tools_cut(messages: "Sequence[ModelMessage]") -> "list[ModelMessage]":
    cut: list[ModelMessage] = []
    for number, message in enumerate(messages):
        if message.kind == "request" and number < len(messages) - _RECENT:
            parts = [_part_cut(p) if p.part_kind == "tool-return" else p for p in message.parts]
            cut.append(replace(message, parts=parts))
        else:
            cut.append(message)
    return cut


def _part_cut(part: "ToolReturnPart[Any]") -> "ToolReturnPart[Any]":
    text = part.model_response_str()
    if len(text) <= _KEEP_OF_TOOL:
        return part
    return replace(
        part, content=f"{text[:_KEEP_OF_TOOL]}\n(cut to save room, {len(text)} characters; call again if needed)"
    )


def _round_text(message: "ModelMessage") -> str:
    """The text that opens a round, when this message does."""
    if message.kind == "request":
        for part in message.parts:
            if part.part_kind == "user-prompt" and str(part.content).startswith(_ROUND_HEADINGS):
                return str(part.content)
    return ""


def _size(messages: "list[ModelMessage]") -> int:
    from pydantic_ai.messages import ModelMessagesTypeAdapter

    return len(ModelMessagesTypeAdapter.dump_json(messages))


# --- errors ----------------------------------------------------------------------------------------------------------


def _explained(error: Exception, build: str, settings: Settings) -> BuildPaused:
    """Why there is no answer, as the one line with which the build pauses."""
    from pydantic_ai.exceptions import ModelHTTPError

    if not isinstance(error, ModelHTTPError):
        return ModelUnavailable(
            f"the gateway to the model does not answer; start it with `longshot up`, {_resume(build)}"
        )
    told = _error_body(error)
    kind, line = str(told.get("type", "")), one_line(str(told.get("message", "")))
    if kind == BUDGET_EXHAUSTED:
        budget = settings.max_tokens_per_build
        return BudgetExhausted(f"MAX_TOKENS_PER_BUILD={budget:,} is spent; start again with more, {_resume(build)}")
    if kind == Kind.REJECTED:
        line = f"endpoint {told.get('endpoint', '')} rejected the request (HTTP {error.status_code}): {line}"
    return ModelUnavailable(
        f"{line or f'the gateway answered HTTP {error.status_code}'}; {advice(kind)}, {_resume(build)}"
    )


def _error_body(error: "ModelHTTPError") -> dict[str, object]:
    body = error.body
    inner = body.get("error", body) if isinstance(body, dict) else None
    return inner if isinstance(inner, dict) else {}


def _resume(build: str) -> str:
    return f"then `longshot resume {build}`"
