"""What real agents wrote while they worked or failed, as it was recorded, and the same broken in every way: what is made of it.

Seventeen runs of Pi 0.73.1, OpenCode 1.18.33, Claude Code 2.1.330 and Codex 0.169.0 against a scripted model.
`oc_drop` went on for ever; its beginning is kept.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from longshot_worker.handoff import HarnessResult
from longshot_worker.harness.claude_code import ClaudeCode
from longshot_worker.harness.codex import Codex
from longshot_worker.harness.interface import Harness, Tally
from longshot_worker.harness.opencode import OpenCode
from longshot_worker.harness.pi import Pi
from longshot_worker.harness.runner import Lines

RECORDED = Path(__file__).parent / "data" / "harness-events"
STATUSES = {"completed", "empty", "llm_error", "limit", "timeout", "stalled", "budget", "crashed", "config_error"}
WROTE = "Created calc.py with add(); "

# stream: agent, how it ended, exit code -> status, turns, tools, tokens, retries, how its message begins, part of its error
RUNS: dict[str, tuple[type[Harness], str, int, str, int, dict[str, int], int, int, str, str]] = {
    "pi": (Pi, "exited", 0, "completed", 3, {"write": 1, "bash": 1}, 360, 0, WROTE, ""),
    "pi500": (Pi, "exited", 0, "llm_error", 0, {}, 0, 3, "", "500 scripted 500"),
    "pi401": (Pi, "exited", 0, "llm_error", 0, {}, 0, 0, "", "401 scripted 401"),
    "piempty": (Pi, "exited", 0, "empty", 1, {}, 120, 0, "", "empty"),
    "pidrop": (Pi, "exited", 0, "empty", 1, {}, 0, 0, "", "empty"),
    "piloop": (Pi, "wall", 143, "timeout", 6, {"bash": 6}, 720, 0, "", "time"),
    "oc_ok": (OpenCode, "exited", 0, "completed", 3, {"write": 1, "bash": 1}, 360, 0, WROTE, ""),
    "oc_drop": (OpenCode, "killed", 143, "stalled", 3, {}, 0, 0, "", "3 turns in a row"),
    "oc_401": (OpenCode, "exited", 1, "llm_error", 0, {}, 0, 0, "", "scripted 401"),
    "claude": (ClaudeCode, "exited", 0, "completed", 3, {"Write": 1, "Bash": 1}, 480, 0, WROTE, ""),
    "cl500b": (ClaudeCode, "exited", 1, "llm_error", 1, {}, 0, 1, "", "API Error: 500 scripted 500."),
    "clempty": (ClaudeCode, "exited", 0, "empty", 2, {}, 320, 0, "", "empty"),
    "clmt": (ClaudeCode, "exited", 1, "limit", 2, {"Write": 1}, 160, 0, "", "Reached maximum number of turns (1)"),
    "codex": (Codex, "exited", 0, "completed", 1, {"command_execution": 2}, 360, 0, WROTE, ""),
    "cx500": (Codex, "exited", 1, "llm_error", 0, {}, 0, 2, "", "experiencing high demand"),
    "cx401": (Codex, "exited", 1, "llm_error", 0, {}, 0, 2, "", "unexpected status 401 Unauthorized"),
    "cxempty": (Codex, "exited", 0, "empty", 1, {}, 120, 0, "", "empty"),
}


def lines_of(name: str) -> list[str]:
    return (RECORDED / f"{name}.jsonl").read_text(errors="replace").splitlines()


def told(harness: Harness, lines: list[str]) -> Tally:
    tally = Tally()
    for line in lines:
        for event in harness.parse(line):
            tally.add(event)
        if tally.stalled:
            break
    return tally


@pytest.mark.parametrize("name", RUNS)
def test_a_recorded_run_is_classified_by_what_happened_in_it(name: str) -> None:
    agent, ended, code, status, turns, tools, tokens, retries, message, error = RUNS[name]
    tally = told(agent(), lines_of(name))
    result = agent().finish(tally, ended, code, {})
    found = (result.status, result.turns, tally.tools, result.tokens_in + result.tokens_out, result.retries)
    assert found == (status, turns, tools, tokens, retries)
    assert result.final.startswith(message) and error in result.error and bool(result.error) == bool(error)
    assert result.tool_calls == sum(tools.values()) and result.tool_errors == 0


@pytest.mark.parametrize("name", [name for name, run in RUNS.items() if run[1] == "exited"])
def test_an_exit_code_changes_nothing(name: str) -> None:
    agent = RUNS[name][0]
    results = {agent().finish(told(agent(), lines_of(name)), "exited", code, {}).status for code in (0, 1, 137)}
    assert results == {RUNS[name][3]}


@pytest.mark.parametrize("name", ["pi", "oc_ok", "claude", "codex"])
def test_a_run_that_breaks_off_before_its_end_is_never_complete(name: str) -> None:
    agent, lines = RUNS[name][0], lines_of(name)
    last = {"codex": 1, "claude": 1, "oc_ok": 1, "pi": 1}[name]
    for kept in range(len(lines) - last + 1):
        for ended in ("exited", "wall", "idle"):
            result = agent().finish(told(agent(), lines[:kept]), ended, 0, {})
            assert result.status != "completed", (kept, ended)


@pytest.mark.parametrize("name", ["pi", "oc_ok", "claude", "codex"])
def test_an_agent_that_had_finished_and_then_would_not_go_has_finished(name: str) -> None:
    agent = RUNS[name][0]
    for ended in ("wall", "idle"):
        assert agent().finish(told(agent(), lines_of(name)), ended, 143, {}).status == "completed"


# --- broken in every way ---------------------------------------------------------------------------------------------


def _without(key: str) -> Callable[[list[str], random.Random], list[str]]:
    def strip(value: object) -> object:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k != key}
        return [strip(v) for v in value] if isinstance(value, list) else value

    return lambda lines, _: [json.dumps(strip(json.loads(line))) for line in lines]


def _with(key: str, other: object) -> Callable[[list[str], random.Random], list[str]]:
    def put(value: object) -> object:
        if isinstance(value, dict):
            return {k: other if k == key else put(v) for k, v in value.items()}
        return [put(v) for v in value] if isinstance(value, list) else value

    return lambda lines, _: [json.dumps(put(json.loads(line))) for line in lines]


def _garbled(lines: list[str], rng: random.Random) -> list[str]:
    found = []
    for line in lines:
        data = bytearray(line.encode())
        for _ in range(max(1, len(data) // 50)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        found.append(data.decode("utf-8", "replace"))
    return found


BROKEN: dict[str, Callable[[list[str], random.Random], list[str]]] = {
    "each line cut in half": lambda lines, _: [line[: len(line) // 2] for line in lines],
    "each line without its end": lambda lines, _: [line[:-1] for line in lines],
    "each line without its beginning": lambda lines, _: [line[1:] for line in lines],
    "bytes garbled": _garbled,
    "binary": lambda lines, rng: [rng.randbytes(500).decode("latin-1") for _ in lines],
    "null bytes between": lambda lines, _: [line.replace(":", ":\0", 3) for line in lines],
    "backwards": lambda lines, _: lines[::-1],
    "shuffled": lambda lines, rng: rng.sample(lines, len(lines)),
    "everything twice": lambda lines, _: [line for line in lines for _ in range(2)],
    "every second one": lambda lines, _: lines[::2],
    "empty lines": lambda lines, _: [""] * 50,
    "prose": lambda lines, _: ["I shall now write the file.", "Done."],
    "JSON that is no object": lambda lines, _: ["null", "1", '"x"', "[]", "[[{}]]", "true", "NaN", "-1e999"],
    "empty objects": lambda lines, _: ["{}"] * 20,
    "deep nesting": lambda lines, _: ["[" * 100_000, '{"type":' * 50_000, '{"type":"text","part":' * 5_000],
    "huge numbers": _with("input", 10**400),
    "negative numbers": _with("output", -5),
    "numbers as text": _with("usage", {"input": "many", "output": "1", "input_tokens": "x", "output_tokens": None}),
    "not a number": _with("tokens", {"input": float("nan"), "output": float("inf"), "cache": {"read": True}}),
    "a lone surrogate": _with("text", "\ud800 said"),
    "text that is an object": _with("text", {"deep": [1]}),
    "text that is long": _with("text", "x" * 200_000),
    "a message that is a list": _with("message", ["x"]),
    "a message that is a text": _with("message", "x"),
    "a part that is null": _with("part", None),
    "an item that is a text": _with("item", "command_execution"),
    "content that is an object": _with("content", {"type": "text"}),
    "an error that is a list": _with("error", [1, 2]),
    "a type that is an object": _with("type", {"a": 1}),
    "a type that is a list": _with("type", ["result"]),
    "usage that is a list": _with("usage", [1]),
    "a state that is a number": _with("state", 7),
    "turns without end": _with("num_turns", 10**11),
    "a result that is an object": _with("result", {"content": [1, None, {"text": 5}]}),
    "errors that are objects": _with("errors", [{"a": 1}, None]),
    **{
        f"without {key!r}": _without(key)
        for key in ("type", "message", "usage", "part", "item", "content", "text", "id")
    },
    **{
        f"without its {key!r}": _without(key)
        for key in ("tokens", "result", "role", "toolName", "reason", "stopReason")
    },
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_stream_is_judged_and_breaks_nothing(how: str) -> None:
    rng = random.Random(how)
    for name, (agent, *_) in RUNS.items():
        lines = [line for line in lines_of(name) if "message_update" not in line][:30]
        tally = told(agent(), BROKEN[how](lines, rng))
        for ended in ("exited", "wall", "idle", "killed"):
            result = agent().finish(tally, ended, 0, {})
            assert result.status in STATUSES and len(result.error) <= 3_000 and len(result.final) <= 60_000, name
            assert 0 <= result.tokens_in <= 10**13 and 0 <= result.tokens_out <= 10**12 and result.turns <= 10_000
            json.dumps(vars(result)).encode()


def test_there_are_enough_ways_to_break_one() -> None:
    assert len(BROKEN) >= 30


# --- rules that hold for every agent ---------------------------------------------------------------------------------


def pi_said(text: str = "", *, output: int = 20, stop: str = "stop") -> str:
    content = [{"type": "text", "text": text}] if text else []
    usage = {"input": output * 2, "output": output, "cacheRead": 0, "cacheWrite": 0}
    message = {"role": "assistant", "content": content, "usage": usage, "stopReason": stop}
    return json.dumps({"type": "message_end", "message": message})


def pi_calls(call: str) -> list[str]:
    said = {"toolCallId": call, "toolName": "bash", "args": {"command": "true"}}
    return [json.dumps({"type": "tool_execution_start", **said}), json.dumps({"type": "tool_execution_end", **said})]


DONE = json.dumps({"type": "agent_end", "messages": []})


def judged(*lines: str, ended: str = "exited") -> HarnessResult:
    return Pi().finish(told(Pi(), list(lines)), ended, 0, {})


def test_what_was_said_before_more_work_is_not_the_last_word() -> None:
    result = judged(pi_said('{"status": "complete"}'), *pi_calls("1"), pi_said(), DONE)
    assert (result.status, result.final) == ("empty", "")


def test_an_answer_cut_by_the_limit_of_tokens_is_not_complete() -> None:
    assert judged(pi_said("half an ans", stop="length"), DONE).status == "limit"


def test_an_endpoint_that_counts_no_tokens_is_no_stalled_one() -> None:
    turns = [line for n in range(5) for line in (pi_said(f"step {n}", output=0), *pi_calls(str(n)))]
    assert judged(*turns, pi_said("done", output=0), DONE).status == "completed"


def test_an_error_that_is_got_over_is_forgotten_and_one_at_the_end_is_not() -> None:
    failed = json.dumps(
        {"type": "message_end", "message": {"role": "assistant", "stopReason": "error", "errorMessage": "500"}}
    )
    assert judged(failed, DONE, '{"type":"agent_start"}', pi_said("all is well"), DONE).status == "completed"
    assert judged(pi_said("all is well"), failed, DONE).status == "llm_error"


def test_a_budget_that_is_spent_is_told_from_a_model_that_fails() -> None:
    refused = {"role": "assistant", "stopReason": "error", "errorMessage": "403 budget_exhausted: nothing is left"}
    assert judged(json.dumps({"type": "message_end", "message": refused}), DONE).status == "budget"


def test_a_call_whose_start_is_told_twice_counts_once() -> None:
    tally = told(Codex(), lines_of("codex"))
    assert tally.tool_calls == 2 and sum("item.started" in line for line in lines_of("codex")) == 2


def test_pis_end_is_seen_although_its_line_is_too_long_to_be_read() -> None:
    lines = Lines(longest=1_000)
    long = DONE[:-3] + '[{"text":"' + "x" * 5_000 + '"}]}'
    found = [*lines.add(pi_said("done").encode() + b"\n" + long.encode() + b"\n"), *lines.rest()]
    assert Pi().finish(told(Pi(), found), "exited", 0, {}).status == "completed"


# --- lines -----------------------------------------------------------------------------------------------------------


def test_lines_come_whole_however_their_bytes_arrive() -> None:
    text = "".join(f'{{"n": {n}, "ü": "é"}}\n' for n in range(50)) + "the end"
    for size in (1, 2, 7, 4096):
        lines = Lines()
        data = text.encode()
        found = [line for at in range(0, len(data), size) for line in lines.add(data[at : at + size])]
        assert [*found, *lines.rest()] == text.split("\n")


def test_a_line_without_an_end_takes_no_memory() -> None:
    lines = Lines(longest=100_000)
    for _ in range(1_000):
        assert list(lines.add(b"x" * 10_000)) == []
        assert len(lines._buffer) <= 110_000
    assert [len(line) for line in lines.add(b"\nnext\n")] == [65_536, 4]


def test_pis_repetitions_are_dropped_before_they_are_looked_at() -> None:
    lines = Lines(Pi.skips)
    data = (RECORDED / "pi.jsonl").read_bytes()
    kept = [*lines.add(data), *lines.rest()]
    assert not any("message_update" in line for line in kept)
    assert sum(map(len, kept)) < len(data) / 3
    assert Pi().finish(told(Pi(), kept), "exited", 0, {}).status == "completed"
