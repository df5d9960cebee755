"""`longshot logs`: everything that happened, in order, and what an agent did, while it does it too."""

import json
import threading
from pathlib import Path

import pytest
from told import HOSTILE, a_build, finish, hand_off, land, own_home, plan, sweep

from longshot_dagster.adapters.host.exclusive import claim
from longshot_dagster.cli import main
from longshot_dagster.cli.logs import Transcript
from longshot_dagster.core.ids import ROOT, IterationKey
from longshot_dagster.core.landing_records import LandingState
from longshot_dagster.core.models import (
    BuildPhase,
    CheckStatus,
    Handoff,
    HandoffStatus,
    IterationFailure,
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return own_home(tmp_path, monkeypatch)


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert main.run(["logs", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in out and "\u202e" not in out
    return out.splitlines()


def test_a_build_is_told_from_its_documents_in_order_of_time(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = a_build(home)
    tasks = plan(ledger, ROOT, 1, 2)
    hand_off(ledger, tasks[0].id, 1100.0)
    land(ledger, tasks[0].id, LandingState.SUPERSEDED, 1101.0)
    sweep(ledger, 1, CheckStatus.RED, 1200.0)
    lines = [line.split("  ", 1)[1] for line in told(capsys, "todo-0001")]
    assert lines == [
        "todo-0001 started on main of /srv/t.git: Build a todo API [/bold]\ufffd[2J\ufffd 日本語",
        "root.001 planned 2 tasks",
        "r001-01 began from aaaaaaaaaaaa (builtin, local)",
        "r001-01 handed off complete, +3 -1 in 1 file: done [/bold]\ufffd[2J\ufffd 日本語",
        "r001-01 queued to land",
        "r001-01 conflict",
        "r001-01 superseded by r002-01",
        "sweep 1 RED: test",
    ]


def test_without_a_build_the_newest_is_told_and_a_task_may_name_its_own(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["logs"]) == 2
    assert 'no builds yet; longshot "REQUEST" starts one' in capsys.readouterr().err
    ledger = a_build(home)
    [task] = plan(ledger, ROOT, 1, 1)
    assert told(capsys) == told(capsys, "todo-0001")
    assert told(capsys, "--task", f"todo-0001.{task.id}") == told(capsys, f"todo-0001.{task.id}")
    assert told(capsys, "--task", task.id) == told(capsys, f"todo-0001.{task.id}")


def test_pauses_failures_and_work_done_again_are_part_of_the_story(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = a_build(home)
    [task] = plan(ledger, ROOT, 1, 1)
    ledger.save_failure(
        IterationKey("todo-0001", ROOT, 1), IterationFailure(attempt=1, kind="model", reason="HTTP 500")
    )
    ledger.update_state(lambda s: s.paused("no endpoint answers"))
    ledger.update_state(lambda s: s.moved(BuildPhase.RUNNING))
    hand_off(ledger, task.id, status=HandoffStatus.FAILED)
    ledger.forget_work(task.id)
    ledger.save_interrupted(Handoff(task_id=task.id, status=HandoffStatus.PARTIAL, summary="half"))
    ledger.request_cancel(task.id, 1.0)
    finish(ledger)
    kinds = [json.loads(line)["kind"] for line in told(capsys, "todo-0001", "--json")]
    assert sorted(kinds) == sorted(
        [
            "started",
            "planned",
            "failed",
            "phase",
            "phase",
            "begun",
            "handed_off",
            "again",
            "interrupted",
            "cancel_asked",
            "phase",
            "phase",
        ]
    )
    objects = [json.loads(line) for line in told(capsys, "todo-0001", "--json")]
    assert [o["at"] for o in objects] == sorted(o["at"] for o in objects)
    phases = [(o["phase"], o["reason"], o["verdict"]) for o in objects if o["kind"] == "phase"]
    assert phases == [
        ("paused", "no endpoint answers", None),
        ("running", "", None),
        ("finalizing", "", None),
        ("finished", "", "green"),
    ]


def test_a_ledger_without_noted_phases_tells_the_present_one(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = a_build(home)
    ledger.update_state(lambda s: s.paused("why"))
    Path(str(ledger.directory / "phases.jsonl")).unlink()
    assert told(capsys, "todo-0001")[-1].endswith("paused: why")


def line(n: int, text: str = "") -> bytes:
    return (
        json.dumps({"at": n, "type": "turn", "text": f"say {n} {text}", "tokens_in": 1, "tokens_out": 2}).encode()
        + b"\n"
    )


def test_a_tasks_transcript_is_shown_readably_and_as_objects(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = a_build(home)
    [task] = plan(ledger, ROOT, 1, 1)
    ledger.save_transcript(task.id, line(1, HOSTILE) + b"not json \x1b[2J\n")
    hand_off(ledger, task.id)
    land(ledger, task.id)
    expected = [
        "r001-01 of todo-0001: Task 1 of root.001 [/bold]\ufffd[2J\ufffd 日本語",
        "00:01  turn (1 tokens in, 2 out)",
        "       say 1 [/bold]\ufffd[2J\ufffd 日本語",
        "       unreadable line of 13 bytes: not json \ufffd[2J",
        "handed off complete, landed",
    ]
    for words in (
        ["todo-0001", "--task", "r001-01"],
        ["todo-0001.r001-01"],
        ["todo-0001", "--task", "todo-0001.r001-01"],
    ):
        assert told(capsys, *words) == expected
    objects = [json.loads(x) for x in told(capsys, "todo-0001", "--task", "r001-01", "--json")]
    assert [o["type"] for o in objects] == ["turn", "note"]


def test_without_a_transcript_it_is_said_why(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = a_build(home)
    tasks = plan(ledger, ROOT, 1, 2, delegated=(2,))
    plan(ledger, tasks[1].id, 1, 1)
    assert told(capsys, "todo-0001", "--task", "r001-01")[1:] == [
        "there is no transcript (a worker's slot, or its worker is at it)"
    ]
    assert told(capsys, "todo-0001", "--task", "r001-02")[1:] == [
        "no agent worked on it: it went to a subplanner; its parts: r001-02-001-01"
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope"], "no build 'nope' here"),
        (["todo-0001", "--task", "r009-01"], "build todo-0001 has no task 'r009-01'"),
        (["todo-0001", "--task", "../../etc"], "'todo-0001.../../etc' is not"),
        (["todo-0001", "--task", "other-0002.r001-01"], "other-0002.r001-01 is no task of todo-0001"),
        (["todo-0001.r001-01", "--task", "r001-02"], "todo-0001.r001-02 is no task of todo-0001"),
    ],
)
def test_what_is_not_there_is_one_line(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    for name in ("todo-0001", "other-0002"):
        plan(a_build(home, name), ROOT, 1, 2)
    assert main.run(["logs", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert said.split("'")[0] in err


def test_a_live_transcript_goes_on_in_the_kept_one_without_a_line_twice(home: Path) -> None:
    ledger = a_build(home)
    [task] = plan(ledger, ROOT, 1, 1)
    transcript, live = Transcript(ledger, task.id), Path(str(ledger.live_transcript(task.id)))
    assert transcript.read() == []
    live.write_bytes(line(1) + line(2)[:10])
    assert transcript.read() == [line(1).strip()], "only whole lines"
    live.write_bytes(line(1) + line(2))
    assert transcript.read() == [line(2).strip()]
    assert transcript.read() == []
    ledger.save_transcript(task.id, line(1) + line(2) + line(3))
    live.unlink()
    assert transcript.read() == [line(3).strip()]
    assert transcript.read() == []


def test_a_second_workers_transcript_is_told_from_its_beginning(home: Path) -> None:
    ledger = a_build(home)
    [task] = plan(ledger, ROOT, 1, 1)
    transcript = Transcript(ledger, task.id)
    ledger.save_transcript(task.id, line(1) + line(2))
    assert len(transcript.read()) == 2
    Path(str(ledger.live_transcript(task.id))).write_bytes(line(5))
    assert transcript.read() == [line(5).strip()]


def test_following_a_task_ends_with_its_handoff(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = a_build(home)
    [task] = plan(ledger, ROOT, 1, 1)
    live = Path(str(ledger.live_transcript(task.id)))
    live.write_bytes(line(1))

    def work() -> None:
        with live.open("ab") as file:
            file.write(line(2))
        ledger.save_transcript(task.id, line(1) + line(2) + line(3))
        live.unlink()
        hand_off(ledger, task.id)

    worker = threading.Timer(0.2, work)
    worker.start()
    lines = told(capsys, "todo-0001", "--task", "r001-01", "--follow")
    worker.join()
    assert [x.strip() for x in lines if "say" in x] == ["say 1", "say 2", "say 3"]
    assert lines[-1] == "handed off complete"


def test_following_a_build_ends_when_it_does(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = a_build(home)
    plan(ledger, ROOT, 1, 1)
    ender = threading.Timer(0.2, finish, [ledger])
    ender.start()
    with claim(home / "stack.lock"):  # as a stack that runs does
        lines = told(capsys, "todo-0001", "--follow")
    ender.join()
    assert lines[-1].endswith("finished: green")
