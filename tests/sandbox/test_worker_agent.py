"""The built-in agent's loop against a scripted endpoint: how every kind of run ends."""

import io
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from longshot_worker.events import Events
from longshot_worker.handoff import HarnessResult
from longshot_worker.harness.builtin import agent, chat
from longshot_worker.harness.builtin.chat import Call, Reply
from longshot_worker.harness.builtin.conversation import Conversation
from longshot_worker.order import Order
from longshot_worker.relay import Relay
from scripted_chat import ScriptedChat, calls, done, says


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory whose path leaves room for a socket's 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="ls-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat.Chat.__init__, "__defaults__", ((0.0, 0.0),))


class Played:
    """One run of the agent and everything it left."""

    def __init__(self, short: Path, tmp_path: Path, replies: list[Any], **order: Any) -> None:
        repo = tmp_path / "repo"
        repo.mkdir()
        events = Events(str(tmp_path / "transcript.jsonl"))
        wanted = Order(task_id="r001-01", base="0" * 40, deadline_s=60, system_prompt="S", **order)
        with ScriptedChat(str(short / "model.sock"), replies) as self.chat, Relay(self.chat.path) as relay:
            self.result: HarnessResult = agent.run(
                wanted, str(repo), "# Task r001-01", relay.url, events, time.monotonic() + 30
            )
        events.close()
        self.repo = repo
        self.transcript = [json.loads(line) for line in (tmp_path / "transcript.jsonl").read_text().splitlines()]


def test_an_agent_that_writes_a_file_and_says_so_is_completed(short: Path, tmp_path: Path) -> None:
    played = Played(short, tmp_path, [calls(("write", {"path": "a/b.txt", "content": "hi"})), done()])
    assert played.result.status == "completed"
    assert (played.repo / "a/b.txt").read_text() == "hi"
    assert (played.result.tool_calls, played.result.tokens_in, played.result.tokens_out) == (1, 200, 40)
    first = played.chat.asked[0]
    assert [m["role"] for m in first["messages"]] == ["system", "user"]
    assert first["messages"][1]["content"].splitlines()[0] == "# Task r001-01"
    assert {t["function"]["name"] for t in first["tools"]} == {"read", "write", "edit", "bash", "grep", "find", "ls"}
    assert [e["type"] for e in played.transcript] == ["turn", "tool_start", "tool_end", "turn", "harness_end"]


def test_every_event_is_told_at_once_to_whoever_listens_and_a_deaf_listener_stops_nothing(tmp_path: Path) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            if "two" in text:
                raise BrokenPipeError
            return super().write(text)

    live = Gone()
    events = Events(str(tmp_path / "t.jsonl"), live)
    for kind in ("one", "two", "three"):
        events.add(kind)
    events.close()
    kept = [json.loads(line)["type"] for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert kept == ["one", "two", "three"]
    assert [json.loads(line)["type"] for line in live.getvalue().splitlines()] == ["one"]


def test_prose_without_a_tool_call_is_the_final_message(short: Path, tmp_path: Path) -> None:
    played = Played(short, tmp_path, [says("I would rather talk.")])
    assert (played.result.status, played.result.final, played.result.tool_calls) == (
        "completed",
        "I would rather talk.",
        0,
    )


def test_two_empty_replies_end_the_run(short: Path, tmp_path: Path) -> None:
    played = Played(short, tmp_path, [says("")])
    assert played.result.status == "empty"
    assert len(played.chat.asked) == 2


@pytest.mark.parametrize(
    ("reply", "status", "asked", "says_why"),
    [
        ((500, {"error": {"message": "boom"}}), "llm_error", 3, "HTTP 500: boom"),
        ((429, {"error": {"message": "slow down"}}), "llm_error", 3, "HTTP 429: slow down"),
        ((401, {"error": {"message": "bad key"}}), "llm_error", 1, "HTTP 401: bad key"),
        ((404, b"no such page"), "llm_error", 1, "HTTP 404: no such page"),
        ((403, {"error": {"type": "budget_exhausted", "message": "spent"}}), "budget", 1, "HTTP 403: spent"),
        ((200, b"<html>"), "llm_error", 1, "no chat completion"),
        ((200, {"choices": []}), "llm_error", 1, "no chat completion"),
    ],
)
def test_a_model_that_does_not_answer_ends_the_run_with_its_reason(
    short: Path, tmp_path: Path, reply: Any, status: str, asked: int, says_why: str
) -> None:
    played = Played(short, tmp_path, [reply])
    assert played.result.status == status
    assert says_why in played.result.error
    assert len(played.chat.asked) == asked


def test_nothing_behind_the_relay_is_a_model_error(tmp_path: Path) -> None:
    with Relay(str(tmp_path / "nobody.sock")) as relay, pytest.raises(chat.ModelError) as failure:
        chat.Chat(relay.url, time.monotonic() + 60, 60, (0.0,), away_s=0, model="m").ask([])
    assert failure.value.kind == "llm_error"


def test_a_gateway_that_is_away_for_longer_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter((False, False, False, False, True))

    def look(self: chat.Chat, body: bytes) -> tuple[int, bytes]:
        if next(looks):
            return 200, b'{"choices": [{"message": {"content": "back"}}]}'
        raise ConnectionRefusedError("nobody is there")

    monkeypatch.setattr(chat, "_AWAY_WAIT_S", 0.0)
    monkeypatch.setattr(chat.Chat, "_post", look)
    asked = chat.Chat("http://127.0.0.1:1/v1", time.monotonic() + 60, 5, (0.0, 0.0), model="m")
    assert asked.ask([]).text == "back"


def test_a_short_outage_is_bridged(short: Path, tmp_path: Path) -> None:
    assert Played(short, tmp_path, [(503, b""), (502, b""), done()]).result.status == "completed"


def test_turns_run_out(short: Path, tmp_path: Path) -> None:
    replies = [calls(("bash", {"command": f"echo {n}"})) for n in range(9)]
    played = Played(short, tmp_path, replies, max_turns=7)
    assert (played.result.status, len(played.chat.asked)) == ("limit", 7)
    told = [m["content"] for m in played.chat.asked[-1]["messages"] if m["role"] == "user"]
    assert any("Little is left" in text for text in told)


def test_the_same_call_over_and_over_is_stalled(short: Path, tmp_path: Path) -> None:
    played = Played(short, tmp_path, [calls(("ls", {}))])
    assert played.result.status == "stalled"
    assert played.result.tool_calls == 8


def test_broken_arguments_and_unknown_tools_are_told_to_the_model(short: Path, tmp_path: Path) -> None:
    played = Played(short, tmp_path, [calls(("write", '{"path": "a'), ("fly", {}), ("read", {"path": "../x"})), done()])
    results = [m["content"] for m in played.chat.asked[1]["messages"] if m["role"] == "tool"]
    assert [r.startswith("error: ") for r in results] == [True, True, True]
    assert (
        "not a JSON object" in results[0] and "no tool 'fly'" in results[1] and "outside the repository" in results[2]
    )
    sent_back = played.chat.asked[1]["messages"][2]["tool_calls"][0]["function"]["arguments"]
    assert sent_back == "{}"  # broken JSON is not repeated to the endpoint


def test_an_answer_cut_off_by_the_token_limit_is_continued(short: Path, tmp_path: Path) -> None:
    played = Played(short, tmp_path, [says("I will now", finish="length"), done()])
    assert played.result.status == "completed"
    assert "cut off" in played.chat.asked[1]["messages"][-1]["content"]


def test_a_conversation_the_endpoint_finds_too_long_is_compacted_and_goes_on(short: Path, tmp_path: Path) -> None:
    long = [calls(("bash", {"command": f"seq {n} 3000"})) for n in range(1, 11)]
    too_long = (400, {"error": {"message": "This model's maximum context length is 8192 tokens"}})
    played = Played(short, tmp_path, [*long, too_long, done()])
    assert played.result.status == "completed"
    before, after = (len(json.dumps(a["messages"])) for a in played.chat.asked[-2:])
    assert after < 0.7 * before
    assert played.chat.asked[-1]["messages"][:1] == played.chat.asked[0]["messages"][:1]
    assert "compaction" in [e["type"] for e in played.transcript]


def test_an_endpoint_that_finds_even_the_task_too_long_is_an_error(short: Path, tmp_path: Path) -> None:
    played = Played(short, tmp_path, [(413, b"request too large")])
    assert played.result.status == "llm_error"
    assert len(played.chat.asked) <= 3


def test_compaction_keeps_calls_with_their_results_and_stays_below_the_limit() -> None:
    talk = Conversation("system", "# Task x", limit_tokens=4_000)
    for n in range(60):
        call = Call(f"c{n}", "write", {"path": f"f{n}.py", "content": "y" * 900})
        talk.said(Reply("", [call]))
        talk.result(call, f"line {n}\n" + "x" * 3_000)
        talk.compact()
        assert talk.tokens <= 4_000
        asked = [c["id"] for m in talk.messages for c in m.get("tool_calls", [])]
        answered = [m["tool_call_id"] for m in talk.messages if m["role"] == "tool"]
        assert asked == answered
    assert talk.messages[1]["content"].startswith("# Task x")
    assert "- write" in talk.messages[1]["content"]
