"""An agent's transcript for a person: every line of it may be anything."""

import json

import pytest

from longshot_dagster.core.transcript import parse, render


def test_a_turn_its_call_and_its_output_are_readable_and_cut() -> None:
    output = "\n".join(f"line {n}" for n in range(100))
    events = [
        {"at": 0.1, "type": "start", "harness": "builtin", "model": "m-1", "prompt": "Do it\nwell"},
        {"at": 61.2, "type": "turn", "text": "I look first.", "tokens_in": 1200, "tokens_out": 30},
        {"at": 62, "type": "tool_start", "name": "bash", "arguments": {"command": "ls -l"}},
        {"at": 63, "type": "tool_end", "ok": False, "text": output},
        {"at": 64, "type": "harness_end", "status": "completed", "error": "", "turns": 2, "tool_calls": 1},
        {"at": 65, "type": "result", "status": "complete", "checks": ["test: green"]},
    ]
    lines = [line for e in events for line in render(parse(json.dumps(e).encode()))]
    assert lines[:6] == [
        "00:00  begins: builtin with m-1",
        "       Do it",
        "       well",
        "01:01  turn (1,200 tokens in, 30 out)",
        "       I look first.",
        '01:02  > bash {"command": "ls -l"}',
    ]
    assert lines[6:9] == ["01:03  failed", "       | line 0", "       | line 1"]
    assert "       | … 88 more lines …" in lines
    assert lines[-3:] == [
        "       | line 99",
        "01:04  ends: completed, 2 turns",
        "01:05  hands in: complete; test: green",
    ]


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe not json",
        b"[" * 100_000,
        b"12",
        b"null",
        b'{"type": ["start"], "at": "x"}',
        b'{"type": "start", "at": 1e400, "prompt": {"a": 1}, "model": null}',
        b'{"type": "turn", "at": true, "text": ["\\u001b[2J"], "tokens_in": "many"}',
        b'{"type": "turn", "tokens_in": 1' + b"0" * 400 + b"}",
        b'{"type": "tool_start", "name": "\\u202e\\u001b[2J", "arguments": [1, {"x": "\\u0007"}]}',
        b'{"type": "tool_end", "text": 5}',
        b'{"type": "result", "checks": {"a": 1}}',
        b'{"type": "result", "checks": ["\\n\\u001b]0;t\\u0007"]}',
        b'{"type": "\\u001b[2Jnew", "x": "\\u202e"}',
        b'{"type": "tool_end", "text": "' + b"a" * 900_000 + b'"}',
    ],
)
def test_a_hostile_line_is_shown_without_harm(line: bytes) -> None:
    shown = render(parse(line))
    assert shown
    assert all(len(s) < 1_000 and "\n" not in s and "\x1b" not in s and "\u202e" not in s for s in shown)


def test_what_is_told_to_a_program_is_json_whatever_python_takes_for_it() -> None:
    found = parse(b'{"at": NaN, "type": "turn", "tokens_in": 1e999, "tokens_out": -Infinity, "x": 1.5}')
    assert found == {"at": None, "type": "turn", "tokens_in": None, "tokens_out": None, "x": 1.5}
