"""The built-in coding agent: ask the model, do what it asks for, until it says it is done."""

from __future__ import annotations

import time

from longshot_worker.events import Events
from longshot_worker.handoff import HarnessResult
from longshot_worker.harness.builtin.chat import Call, Chat, ModelError, Reply
from longshot_worker.harness.builtin.conversation import Conversation
from longshot_worker.harness.builtin.tools import SCHEMA, Tools
from longshot_worker.order import Order

_MAX_EMPTY = 2  # empty replies in a row
_MAX_CUT = 4  # replies in a row that ran into max_tokens without a tool call
_MAX_SAME = 8  # times the very same call, with the very same result
_LAST_TURNS = 5
_WRAP_UP = "Little is left of what you were given ({left}). Bring the repository into a working state now and finish with your handoff."


def run(order: Order, repo: str, task: str, base_url: str, events: Events, until: float) -> HarnessResult:
    """Work on `task` in `repo` until the agent is done or `until` (monotonic seconds)."""
    chat = Chat(
        base_url,
        until,
        order.llm_timeout_s,
        model=order.model,
        max_tokens=order.max_tokens,
        temperature=order.temperature,
        tools=SCHEMA,
    )
    room = min(order.max_tokens, order.context_tokens // 4) + 4_000  # for the answer and for the tools' descriptions
    conversation = Conversation(order.system_prompt, task, max(order.context_tokens - room, order.context_tokens // 2))
    return Agent(chat, Tools(repo, until, order.idle_timeout_s), conversation, events, order.max_turns, until).work()


class Agent:
    """One conversation about one task."""

    def __init__(
        self, chat: Chat, tools: Tools, conversation: Conversation, events: Events, max_turns: int, until: float
    ) -> None:
        self._chat, self._tools, self._conversation, self._events = chat, tools, conversation, events
        self._max_turns, self._until, self._began = max_turns, until, time.monotonic()
        self._turns = self._empty = self._cut = self._calls = self._tokens_in = self._tokens_out = 0
        self._last: tuple[str, str] = ("", "")
        self._same = 0
        self._warned = False

    def work(self) -> HarnessResult:
        while self._turns < self._max_turns:
            if time.monotonic() >= self._until:
                return self._ended("timeout", "the time for this task is up")
            self._warn_once()
            try:
                reply = self._ask()
            except ModelError as e:
                return self._ended("llm_error" if e.kind == "context" else e.kind, str(e))
            if reply.calls:
                self._empty = self._cut = 0
                self._act(reply)
                if self._same >= _MAX_SAME:
                    return self._ended(
                        "stalled", f"the same call of {self._last[0][:60]} {_MAX_SAME} times with the same result"
                    )
            elif reply.cut and self._cut < _MAX_CUT:
                self._cut += 1
                self._conversation.said(reply)
                self._conversation.tell(
                    "Your answer was cut off by the token limit. Go on from there, in smaller steps."
                )
            elif reply.text:
                return self._ended("completed", final=reply.text)
            else:
                self._empty += 1
                if self._empty >= _MAX_EMPTY:
                    return self._ended("empty", f"the model answered {_MAX_EMPTY} times with nothing")
        return self._ended("limit", f"{self._max_turns} turns were not enough")

    def _ask(self) -> Reply:
        """The next reply; a conversation that is too long is compacted, beforehand or when the endpoint says so."""
        if self._conversation.compact():
            self._events.add("compaction", tokens=self._conversation.tokens)
        while True:
            try:
                reply = self._chat.ask(self._conversation.messages)
                break
            except ModelError as e:
                self._events.add("error", what=e.kind, text=str(e))
                if e.kind != "context" or not self._conversation.compact(force=True):
                    raise
                self._events.add("compaction", tokens=self._conversation.tokens)
        self._turns += 1
        self._tokens_in += reply.tokens_in
        self._tokens_out += reply.tokens_out
        self._events.add("turn", text=reply.text, tokens_in=reply.tokens_in, tokens_out=reply.tokens_out)
        return reply

    def _act(self, reply: Reply) -> None:
        self._conversation.said(reply)
        for call in reply.calls:
            self._calls += 1
            self._events.add("tool_start", id=call.id, name=call.name, arguments=_shown(call))
            text, worked = self._tools.run(call.name, call.arguments)
            self._events.add("tool_end", id=call.id, ok=worked, text=text)
            self._conversation.result(call, text if worked else f"error: {text}")
            this = (f"{call.name} {call.arguments}", text)
            self._same = self._same + 1 if this == self._last else 1
            self._last = this

    def _warn_once(self) -> None:
        left_s = self._until - time.monotonic()
        late = left_s < 0.15 * (self._until - self._began)
        if not self._warned and self._turns and (late or self._max_turns - self._turns <= _LAST_TURNS):
            self._warned = True
            left = f"{left_s:.0f} seconds" if late else f"{self._max_turns - self._turns} turns"
            self._conversation.tell(_WRAP_UP.format(left=left))

    def _ended(self, status: str, error: str = "", final: str = "") -> HarnessResult:
        self._events.add("harness_end", status=status, error=error, turns=self._turns, tool_calls=self._calls)
        return HarnessResult(status, error, final, self._calls, self._tokens_in, self._tokens_out)


def _shown(call: Call) -> object:
    if call.arguments is None:
        return None
    return {k: v[:2_000] if isinstance(v, str) else v for k, v in call.arguments.items()}
