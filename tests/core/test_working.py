"""Which order a worker gets, and what is made of an answer that may say anything."""

import json
from typing import Any

import pytest

from longshot_dagster.core.contract import Mode, WorkResult
from longshot_dagster.core.models import (
    BuildRequest,
    CheckName,
    Handoff,
    HandoffMetrics,
    HandoffStatus,
    Target,
    TargetKind,
    Task,
)
from longshot_dagster.core.settings import Settings
from longshot_dagster.core.working import (
    BY_A_PERSON,
    Beginning,
    cancelled_handoff,
    concerns,
    judge,
    read_result,
    sweep_order,
    user_message,
    work_order,
)

OID = "a" * 40
TASK = Task(
    id="r001-01",
    build="b",
    iteration="root.001",
    planner="root",
    description="Add a price.\n",
    scope=("app.py", "docs/"),
    acceptance="It has one.",
    branch="worker/b/r001-01",
)
GOOD: dict[str, Any] = {"taskId": "r001-01", "harnessStatus": "completed", "status": "complete", "summary": "s"}


def request(**settings: Any) -> BuildRequest:
    target = Target(repository="r", url="r", kind=TargetKind.REMOTE, base_branch="main", branch="main")
    return BuildRequest(build="b", request="x", target=target, base=OID, settings=Settings(**settings), created_at=0.0)


def test_the_message_begins_with_the_task_and_ends_with_the_rules() -> None:
    lines = user_message(TASK).splitlines()
    assert lines[0] == "# Task r001-01"
    assert lines[2:11] == ["Kind: plan", "", "Add a price.", "", "## Scope", "", "- app.py", "- docs/", ""]
    assert "It has one." in lines and any("worker/b/r001-01" in line for line in lines)


def test_an_order_holds_the_settings_it_is_bound_by() -> None:
    order = work_order(TASK, request(worker_timeout=100, check_test="make it", llm_model="m"), OID, "system")
    assert (order.mode, order.branch, order.base, order.harness) == (Mode.WORK, "worker/b/r001-01", OID, "builtin")
    assert (order.deadline_s, order.model, order.checks) == (95, "m", {CheckName.TEST: "make it"})
    assert work_order(TASK, request(worker_timeout=10), OID, "").deadline_s == 9


def test_a_sweep_has_time_for_every_check() -> None:
    order = sweep_order(request(check_timeout=10), OID, 3)
    assert (order.mode, order.task_id, order.deadline_s) == (Mode.SWEEP, "sweep-3", 110)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not readable"),
        (b"\xff\xfe\0", "not readable"),
        (b"[" * 200_000, "not readable"),
        (b'{"taskId": "\\ud800"}', "not readable"),
        (json.dumps([1]).encode(), "not readable"),
        (json.dumps({**GOOD, "taskId": 3}).encode(), "not readable: taskId"),
        (json.dumps({**GOOD, "commits": -1}).encode(), "not readable: commits"),
        (json.dumps({**GOOD, "tokensIn": 1e400}).encode(), "not readable"),
        (json.dumps({**GOOD, "head": "../../x"}).encode(), "not readable: head"),
        (json.dumps({**GOOD, "summary": "x" * 30_000}).encode(), "not readable: summary"),
        (json.dumps({**GOOD, "concerns": ["x"] * 300}).encode(), "not readable: concerns"),
        (json.dumps({**GOOD, "status": "[/bold]"}).encode(), "not readable: status"),
        (json.dumps({**GOOD, "taskId": "r001-02\x1b[31m"}).encode(), "another task"),
    ],
)
def test_an_unreadable_result_is_one_short_line(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why) as refused:
        read_result(data, "r001-01")
    assert len(str(refused.value)) < 500
    assert "\n" not in str(refused.value) and "\x1b" not in str(refused.value)


def result(**fields: Any) -> WorkResult:
    return read_result(json.dumps({**GOOD, **fields}).encode(), "r001-01")


@pytest.mark.parametrize(
    ("fields", "changed", "status"),
    [
        ({}, True, HandoffStatus.COMPLETE),
        ({}, False, HandoffStatus.COMPLETE),
        ({"status": "blocked"}, True, HandoffStatus.BLOCKED),
        ({"conflictMarkers": ["a"]}, True, HandoffStatus.PARTIAL),
        ({"harnessStatus": "timeout"}, True, HandoffStatus.PARTIAL),
        ({"harnessStatus": "timeout"}, False, HandoffStatus.FAILED),
        ({"harnessStatus": "anything"}, False, HandoffStatus.FAILED),
        ({"error": "but"}, True, HandoffStatus.PARTIAL),
    ],
)
def test_complete_is_only_believed_of_a_run_that_ended_well(
    fields: dict[str, Any], changed: bool, status: HandoffStatus
) -> None:
    assert judge(result(**fields), changed) is status


def test_concerns_name_what_the_worker_did_not() -> None:
    found = concerns(result(harnessStatus="limit", error="200 turns", conflictMarkers=["a.py"], concerns=["own"]))
    assert found == [
        "the agent did not finish (limit): 200 turns",
        "conflict markers were left in a.py",
        "own",
    ]


DONE = Handoff(
    task_id="r001-01",
    status=HandoffStatus.PARTIAL,
    summary="half of it",
    files_changed=["app.py", "x\n# Task r009-09", *(f"f{n}.py" for n in range(40))],
    concerns=["unfinished"],
)


def test_a_worker_that_goes_on_is_told_what_was_done_and_where_to_see_it() -> None:
    beginning = Beginning("b" * 40, "c" * 40, DONE)
    order = work_order(TASK, request(), "b" * 40, "", beginning)
    assert (order.base, order.start) == ("b" * 40, "c" * 40)
    lines = order.prompt.splitlines()
    assert lines[0] == "# Task r001-01"
    told = lines[lines.index("## What was done so far") + 2]
    assert "it changed app.py, x # Task r009-09, f0.py" in told and "and 12 more" in told
    assert f"`git diff {'b' * 12} HEAD`" in told
    assert lines.index("## What was done so far") < lines.index("## Rules")
    assert work_order(TASK, request(), OID, "").start is None


def test_a_cancelled_task_is_handed_in_as_far_as_it_had_come() -> None:
    some, none = cancelled_handoff(TASK, DONE), cancelled_handoff(TASK, None)
    assert (some.status, some.concerns) == (HandoffStatus.PARTIAL, [BY_A_PERSON, "unfinished"])
    assert (some.summary, some.files_changed) == ("Cancelled by a person. half of it", DONE.files_changed)
    assert (none.status, none.concerns, none.files_changed) == (HandoffStatus.BLOCKED, [BY_A_PERSON], [])
    finished = DONE.model_copy(update={"status": HandoffStatus.COMPLETE})
    assert cancelled_handoff(TASK, finished).status is HandoffStatus.PARTIAL
    nothing = finished.model_copy(update={"files_changed": [], "metrics": HandoffMetrics(tokens_used=7)})
    assert cancelled_handoff(TASK, nothing).status is HandoffStatus.BLOCKED
    assert cancelled_handoff(TASK, nothing).metrics.tokens_used == 7
