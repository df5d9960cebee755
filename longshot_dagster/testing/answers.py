"""What the script answers to one request, in whatever language it came: a pure function, so the server needs no memory.

Who asks is read from the opening line of the system prompt, what for from the last user message that is headed
`# Task <id>`, `# Planning round <key>` or `# Fix round <key>`, and how far it has come from the assistant's messages
after that one.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from longshot_dagster.core.model_apis import Api
from longshot_dagster.core.models import TaskKind
from longshot_dagster.core.usage import BYTES_PER_TOKEN
from longshot_dagster.testing.hearing import Said, heard
from longshot_dagster.testing.script import Action, FaultKind, Role, Script, Step
from longshot_dagster.testing.toolbox import Toolbox

_ROLES = {
    "You are Longshot's root planner.": Role.ROOT,
    "You are a Longshot subplanner.": Role.SUBPLANNER,
    "You are a Longshot worker.": Role.WORKER,
    "You are Longshot's reconciler.": Role.RECONCILER,
}
_HEADING = re.compile(r"[\"']?# (?:Task|Planning round|Fix round) (\S+)\s*")  # some agents quote what they are told
_STEP = re.compile(r"call_.+_(\d+)_\d+")
_FOLDER = re.compile(r"(?:[Ww]orking directory: |<cwd>)(/[^\s<]+)")
_KIND = re.compile(r"^Kind: (plan|conflict-fix|check-fix)\s*$", re.MULTILINE)
_PROSE = "What a lovely task! I would begin by thinking about it carefully, and then do it step by step."


@dataclass(frozen=True)
class Asked:
    """One request, understood."""

    role: Role
    subject: str  # task id or short iteration key; empty when no message is headed
    text: str  # the headed message
    said: str  # all user messages
    step: int  # answers since the headed one
    tools: Toolbox
    prompt_tokens: int
    model: str = ""
    api: Api = Api.CHAT


@dataclass(frozen=True)
class Call:
    id: str
    tool: str
    arguments: str  # JSON, or the text itself of a `free_text` tool
    free_text: bool = False


@dataclass(frozen=True)
class Answer:
    content: str = ""
    calls: tuple[Call, ...] = ()
    delay_s: float = 0
    finish_reason: str = "stop"
    held: Callable[[], bool] | None = None  # asked five times a second: not before it says no
    dropped: bool = False  # begins, and ends as if it were over

    @property
    def completion_tokens(self) -> int:
        return _tokens(len(self.content) + sum(len(c.tool) + len(c.arguments) for c in self.calls))


def understand(body: dict[str, Any], api: Api = Api.CHAT) -> Asked:
    """`body` is a request of that language; what is missing or odd in it counts as absent."""
    request = heard(api, body)
    messages = request.messages
    users = [(n, part) for n, m in enumerate(messages) if m.role == "user" for part in m.parts or ("",)]
    headed = [(n, text, found[1]) for n, text in users if (found := _HEADING.fullmatch(_first_line(text)))]
    last_user = users[-1] if users else (-1, "")
    at, text, subject = headed[-1] if headed else (*last_user, "")
    everything = "\n".join(part for m in messages if m.role in ("system", "user") for part in m.parts)
    folders = _FOLDER.findall(everything)
    return Asked(
        role=_role(messages),
        subject=subject,
        text=text,
        said="\n".join(said for _, said in users),
        step=_step(messages[at + 1 :]),
        tools=Toolbox(request.tools, folders[-1] if folders else ""),
        prompt_tokens=_tokens(request.characters),
        model=str(body.get("model", "")),
        api=api,
    )


def _step(since: Sequence[Said]) -> int:
    """By the calls made, whose ids say it: agents write one answer down as several messages, or several as one."""
    ids = [found[1] for said in since for call in said.called if (found := _STEP.match(call))]
    return max(map(int, ids)) if ids else sum(said.role == "assistant" for said in since)


def endless(asked: Asked) -> Answer:
    """The same command again and again; a text where there is no shell."""
    action = Action.model_validate({"bash": "sleep 1; echo again"})
    return play(asked, [(action,)] * (asked.step + 1), _PROSE, 0)


def answer(script: Script, asked: Asked) -> Answer:
    """The next line of whoever is asked."""
    if not asked.subject:
        return Answer("This is the scripted model of a rehearsal; it answers Longshot's planners and workers.")
    match asked.role:
        case Role.ROOT | Role.SUBPLANNER:
            planner = script.planner(asked.role, asked.said)
            number = asked.subject.rpartition(".")[2]
            turn = planner.round(int(number) if number.isdigit() else 1)
            return play(asked, turn.look, turn.reply, turn.delay_s)
        case Role.WORKER:
            worker = script.worker(_kind(asked), asked.text)
            return play(asked, worker.steps, worker.last_words, 0 if asked.step else worker.delay_s)
        case Role.RECONCILER:
            return Answer(script.fixes(asked.text).reply)
    return Answer(_PROSE)


def spoiled(good: Answer, fault: FaultKind) -> Answer:
    """`good` as a model would spoil it; only for faults that are an answer at all."""
    match fault:
        case FaultKind.PROSE:
            return Answer(_PROSE)
        case FaultKind.EMPTY:
            return Answer("")
        case FaultKind.TRUNCATED:
            calls = tuple(replace(c, arguments=_half(c.arguments)) for c in good.calls)
            return replace(good, content=_half(good.content), calls=calls, finish_reason="length")
        case FaultKind.DROP:
            return replace(good, dropped=True)
    raise ValueError(f"{fault} is not an answer")


def play(asked: Asked, steps: Iterable[Step], last_words: str, delay_s: float) -> Answer:
    """The tool calls of the step that is due, those that are offered; after the last step, the last words."""
    possible = [offered for step in steps if (offered := [a for a in step if a.tool in asked.tools])]
    if asked.step >= len(possible):
        return Answer(last_words, delay_s=delay_s)
    calls = tuple(_call(asked, number, action) for number, action in enumerate(possible[asked.step], 1))
    return Answer(calls=calls, delay_s=delay_s, finish_reason="tool_calls")


def _call(asked: Asked, number: int, action: Action) -> Call:
    invoked = asked.tools.invoke(action)
    call = f"call_{asked.subject.replace('.', '_')}_{asked.step + 1}_{number}"
    return Call(call, invoked.tool, invoked.arguments, invoked.free_text)


def _kind(asked: Asked) -> TaskKind:
    if told := _KIND.search(asked.text):
        return TaskKind(told[1])
    if asked.subject.startswith("r"):
        return TaskKind.PLAN
    return TaskKind.CONFLICT_FIX if "conflict" in asked.text.lower() else TaskKind.CHECK_FIX


def _role(messages: Iterable[Said]) -> Role:
    for part in (part for message in messages if message.role == "system" for part in message.parts):
        # Any line: a client may put words of its own before the prompt (pydantic-ai does when it asks again).
        for line in part.splitlines():
            for opening, role in _ROLES.items():
                if line.startswith(opening):
                    return role
    return Role.OTHER


def _first_line(text: str) -> str:
    return text.lstrip().partition("\n")[0]


def _half(text: str) -> str:
    return text[: len(text) // 2]


def _tokens(characters: int) -> int:
    return characters // BYTES_PER_TOKEN + 1
