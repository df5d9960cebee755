"""A worker that is stopped keeps what it has done, and the next one goes on from there; a cancelled task is handed in."""

import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from worked import BUILD, Build, ScriptedChat, git

from scripted_chat import calls, done  # isort: skip - found through `worked`

from longshot_dagster.adapters.ledger.live_transcript import live_transcript
from longshot_dagster.core.errors import BudgetExhausted, Cancelled, ModelUnavailable
from longshot_dagster.core.landing import landable
from longshot_dagster.core.models import Handoff, HandoffStatus, WorkerRun
from longshot_dagster.core.working import BY_A_PERSON

TASK = "r001-01"
RAISE_PRICE = ("edit", {"path": "app.py", "old_text": "return 1", "new_text": "return 2"})
NO_CHECKS = {"check_test": "none", "check_compile": "none"}


@pytest.fixture
def socket() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="ls-"))
    yield folder / "model.sock"
    shutil.rmtree(folder)


def sleeping(mark: str) -> tuple[str, dict[str, str]]:
    """A call that sleeps for so many seconds that no other test sleeps as long."""
    return "bash", {"command": f"sleep {mark}"}


def asleep(mark: str) -> Callable[[], bool]:
    """Has the agent come to its sleep?"""
    return lambda: bool(subprocess.run(["pgrep", "-fx", f"sleep {mark}"], capture_output=True).stdout)


def interrupt(build: Build, mark: str) -> None:
    with pytest.raises(Cancelled):
        build.work(cancelled=asleep(mark))


def go_on(build: Build, socket: Path, replies: list[Any]) -> tuple[Handoff, ScriptedChat]:
    """The task worked on by the next worker, as another process would."""
    socket.unlink(missing_ok=True)
    build.chat = build.gateway.chat = ScriptedChat(str(socket), replies)
    return build.work(), build.chat


def run_of(build: Build) -> WorkerRun:
    run = build.ledger.run(TASK)
    assert run is not None
    return run


def message(chat: ScriptedChat) -> str:
    return str(chat.asked[0]["messages"][1]["content"])


def test_an_interrupted_worker_leaves_its_work_and_the_next_one_goes_on_from_there(
    tmp_path: Path, socket: Path
) -> None:
    note = ("write", {"path": "notes/new.txt", "content": "half\n"})
    build = Build(tmp_path, socket, [calls(RAISE_PRICE, note), calls(sleeping("61.11"))], **NO_CHECKS)
    interrupt(build, "61.11")
    partial, run = build.ledger.interrupted(TASK), run_of(build)
    assert build.ledger.handoff(TASK) is None
    assert partial is not None
    assert (partial.status, partial.files_changed) == (HandoffStatus.PARTIAL, ["app.py", "notes/new.txt"])
    assert (partial.metrics.files_created, partial.metrics.tool_call_count) == (1, 3)
    assert (run.harness_status, run.base, run.error) == ("cancelled", build.base, "")
    assert git(build.mirror.path, "show", f"{run.head}:notes/new.txt") == "half"
    assert list(build.home.sandboxes.iterdir()) == [] and not asleep("61.11")()

    git(tmp_path / "seed", "commit", "-q", "--allow-empty", "-m", "moved")
    git(tmp_path / "seed", "push", "-q", str(tmp_path / "target.git"), "main")
    more = ("write", {"path": "notes/new.txt", "content": "whole\n"})
    handoff, chat = go_on(
        build, socket, [calls(("bash", {"command": "cat notes/new.txt app.py"})), calls(more), done()]
    )
    assert (handoff.status, handoff.files_changed) == (HandoffStatus.COMPLETE, ["app.py", "notes/new.txt"])
    assert "half" in chat.asked[1]["messages"][-1]["content"], "the work tree is as the first worker left it"
    assert message(chat).splitlines()[0] == f"# Task {TASK}"
    assert "## What was done so far" in message(chat) and "app.py, notes/new.txt" in message(chat)
    after = run_of(build)
    assert (after.base, after.commits, after.harness_status) == (build.base, 2, "completed")
    assert git(build.mirror.path, "show", f"{after.head}:notes/new.txt") == "whole"
    lines = build.ledger.transcript(TASK).read_text(encoding="utf-8").splitlines()
    assert sum('"type": "start"' in line for line in lines) == 2, "the transcript tells of both workers"
    assert "sleep 61.11" in "".join(lines)


def test_a_worker_that_had_done_nothing_is_begun_anew(tmp_path: Path, socket: Path) -> None:
    build = Build(tmp_path, socket, [calls(sleeping("61.12"))], **NO_CHECKS)
    interrupt(build, "61.12")
    assert build.ledger.interrupted(TASK) is None
    assert (run_of(build).harness_status, run_of(build).head) == ("cancelled", None)
    handoff, chat = go_on(build, socket, [calls(RAISE_PRICE), done()])
    assert handoff.status is HandoffStatus.COMPLETE
    assert "What was done so far" not in message(chat)


def test_what_was_kept_outlives_interruptions_that_add_nothing_and_a_silent_model(tmp_path: Path, socket: Path) -> None:
    build = Build(tmp_path, socket, [calls(RAISE_PRICE), calls(sleeping("61.13"))], **NO_CHECKS)
    interrupt(build, "61.13")
    head = run_of(build).head
    with pytest.raises(Cancelled):
        build.runner.run(build.task(), lambda: True)
    assert run_of(build).head == head
    socket.unlink(missing_ok=True)
    build.chat = build.gateway.chat = ScriptedChat(str(socket), [(401, {"error": {"message": "bad key"}})])
    with pytest.raises(ModelUnavailable):
        build.work()
    assert build.ledger.handoff(TASK) is None, "a silent model makes no partial handoff of what was there before"
    assert (run_of(build).head, run_of(build).harness_status) == (head, "cancelled")
    assert go_on(build, socket, [done()])[0].files_changed == ["app.py"]


def test_work_that_is_gone_from_the_mirror_is_begun_anew(tmp_path: Path, socket: Path) -> None:
    build = Build(tmp_path, socket, [calls(RAISE_PRICE), calls(sleeping("61.14"))], **NO_CHECKS)
    interrupt(build, "61.14")
    shutil.rmtree(build.mirror.path)  # as on another machine, where only the checkpoint came along
    build.mirror = type(build.mirror)(build.home, build.request.target)
    handoff, chat = go_on(build, socket, [calls(RAISE_PRICE), done()])
    assert handoff.status is HandoffStatus.COMPLETE
    assert "What was done so far" not in message(chat)


def test_a_spent_budget_keeps_what_was_done_for_a_larger_one(tmp_path: Path, socket: Path) -> None:
    spent = (403, {"error": {"type": "budget_exhausted", "message": "spent"}})
    build = Build(tmp_path, socket, [calls(RAISE_PRICE), spent], max_tokens_per_build=100, **NO_CHECKS)
    with pytest.raises(BudgetExhausted):
        build.work()
    partial = build.ledger.interrupted(TASK)
    assert partial is not None and partial.files_changed == ["app.py"]
    more = build.request.settings.model_copy(update={"max_tokens_per_build": 10**6})
    build.ledger.save_request(build.request.model_copy(update={"settings": more}))
    handoff, chat = go_on(build, socket, [done()])
    assert (handoff.status, handoff.files_changed) == (HandoffStatus.COMPLETE, ["app.py"])
    assert "What was done so far" in message(chat)


# --- cancelled by a person -------------------------------------------------------------------------------------------


def test_a_task_that_is_cancelled_at_work_is_handed_in_with_what_there_is_and_never_lands(
    tmp_path: Path, socket: Path
) -> None:
    build = Build(tmp_path, socket, [calls(RAISE_PRICE), calls(sleeping("61.15"))], **NO_CHECKS)

    def nobody_stops_the_run() -> bool:
        if asleep("61.15")():
            build.ledger.request_cancel(TASK, 7.0)
        return False

    handoff = build.work(cancelled=nobody_stops_the_run)
    assert (handoff.status, handoff.files_changed) == (HandoffStatus.PARTIAL, ["app.py"])
    assert handoff.concerns[0] == BY_A_PERSON
    assert build.ledger.handoff(TASK) == handoff and build.ledger.interrupted(TASK) is None
    refused = landable(handoff, run_of(build))
    assert refused is not None and refused.text == "a person cancelled the task"
    assert list(build.home.sandboxes.iterdir()) == []


def test_a_task_cancelled_before_it_began_needs_no_sandbox(tmp_path: Path, socket: Path) -> None:
    build = Build(tmp_path, socket, [done()])
    build.ledger.request_cancel(TASK, 7.0)
    handoff = build.work()
    assert (handoff.status, handoff.concerns, handoff.files_changed) == (HandoffStatus.BLOCKED, [BY_A_PERSON], [])
    assert build.gateway.opened == [] and build.ledger.run(TASK) is None


def test_a_task_cancelled_after_an_interrupt_hands_in_what_was_kept(tmp_path: Path, socket: Path) -> None:
    build = Build(tmp_path, socket, [calls(RAISE_PRICE), calls(sleeping("61.16"))], **NO_CHECKS)
    interrupt(build, "61.16")
    build.ledger.request_cancel(TASK, 7.0)
    handoff = build.runner.run(build.task(), lambda: False)
    assert (handoff.status, handoff.files_changed) == (HandoffStatus.PARTIAL, ["app.py"])
    assert build.gateway.opened == [TASK], "nobody has worked on it again"


def test_a_task_cancelled_at_the_moment_it_was_done_does_not_land(tmp_path: Path, socket: Path) -> None:
    build = Build(tmp_path, socket, [calls(RAISE_PRICE), done()], **NO_CHECKS)
    intake = build.mirror.intake

    def cancelled_meanwhile(*arguments: Any) -> str:
        build.ledger.request_cancel(TASK, 7.0)
        return intake(*arguments)

    build.mirror.intake = cancelled_meanwhile  # type: ignore[method-assign]
    handoff = build.work()
    assert (handoff.status, handoff.concerns[0]) == (HandoffStatus.PARTIAL, BY_A_PERSON)
    assert run_of(build).harness_status == "completed"


# --- the live transcript ---------------------------------------------------------------------------------------------


def test_the_transcript_can_be_read_while_the_worker_is_at_it(tmp_path: Path, socket: Path) -> None:
    build = Build(tmp_path, socket, [calls(RAISE_PRICE), calls(sleeping("61.17"))], **NO_CHECKS)
    seen: list[bytes] = []

    def look() -> bool:
        path = build.ledger.live_transcript(TASK)
        text = path.read_bytes() if path.exists() else b""
        if b"sleep 61.17" in text:
            seen.append(text)
        return bool(seen)

    with pytest.raises(Cancelled):
        build.work(cancelled=look)
    kinds = [json.loads(line)["type"] for line in seen[0].splitlines()]
    assert kinds == ["start", "turn", "tool_start", "tool_end", "turn", "tool_start"]
    assert not build.ledger.live_transcript(TASK).exists()
    assert build.ledger.transcript(TASK).read_bytes().startswith(seen[0])


def test_a_live_transcript_is_bounded_and_begins_with_what_earlier_workers_said(tmp_path: Path) -> None:
    from upath import UPath

    path = UPath(tmp_path / "tasks" / TASK / "live.jsonl")
    with live_transcript(path, b"earlier\n") as live:
        live._left = 10
        live.add(b"\x1b[31m\xff\n" * 10)
        live.add(b"more")
        assert path.read_bytes() == b"earlier\n" + b"\x1b[31m\xff\n\x1b[3"
    assert not path.exists()


def test_two_that_are_at_the_same_task_end_together(tmp_path: Path, socket: Path) -> None:
    """The run of an iteration and a retry by hand: whoever waits for the other notices the interrupt, too."""
    build = Build(tmp_path, socket, [calls(RAISE_PRICE), calls(sleeping("61.18"))], **NO_CHECKS)
    ended: list[str] = []
    stop = threading.Event()

    def work() -> None:
        with pytest.raises(Cancelled):
            build.runner.run(build.task(), lambda: stop.is_set() or (asleep("61.18")() and not stop.set()))
        ended.append(BUILD)

    with build.chat:
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert ended == [BUILD, BUILD]
    assert build.ledger.interrupted(TASK) is not None and not build.ledger.at_work(TASK)
