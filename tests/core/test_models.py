"""The ledger's documents: the wire contract, bounds, and which transitions are legal."""

import json

import pytest
from pydantic import ValidationError

from longshot_dagster.core.landing_records import LANDING_TRANSITIONS, LandingOutcome, LandingState
from longshot_dagster.core.models import (
    BUILD_TRANSITIONS,
    BuildPhase,
    BuildReport,
    BuildState,
    CheckName,
    CheckResult,
    CheckStatus,
    Handoff,
    HandoffStatus,
    PlannedTask,
    Sweep,
    Verdict,
)

HEAD = "a" * 40


def test_a_handoff_is_the_specifications_contract_field_for_field():
    wire = json.loads(Handoff(task_id="r001-01", status=HandoffStatus.COMPLETE, summary="done").model_dump_json())
    assert list(wire) == ["taskId", "status", "summary", "diff", "filesChanged", "concerns", "suggestions", "metrics"]
    assert list(wire["metrics"]) == [
        "linesAdded",
        "linesRemoved",
        "filesCreated",
        "filesModified",
        "tokensUsed",
        "toolCallCount",
        "durationMs",
    ]
    assert Handoff.model_validate(wire).task_id == "r001-01"


def test_a_planned_task_drops_the_models_own_names_and_normalises_its_scope():
    task = PlannedTask.model_validate(
        {"id": "fix-001", "branch": "evil", "description": " do ", "scope": ["./src//a.py", "src/a.py", "docs/"]}
    )
    assert task.scope == ["src/a.py", "docs/"]
    assert not hasattr(task, "id") and not hasattr(task, "branch")


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../x", "a/../../x", ".git/config", "a/.GIT/hooks", "C:\\x", "", "a\0b", "."]
)
def test_a_planned_task_with_an_impossible_scope_is_refused(path):
    with pytest.raises(ValidationError, match="scope"):
        PlannedTask.model_validate({"description": "x", "scope": [path]})


@pytest.mark.parametrize("before", list(BuildPhase))
@pytest.mark.parametrize("after", list(BuildPhase))
def test_a_build_moves_only_along_drawn_transitions(before, after):
    state = BuildState(phase=before)
    if after is before or after in BUILD_TRANSITIONS[before]:
        assert state.moved(after).phase is after
    else:
        with pytest.raises(ValueError, match="cannot become"):
            state.moved(after)


@pytest.mark.parametrize("before", list(LandingState))
@pytest.mark.parametrize("after", list(LandingState))
def test_a_landing_moves_only_along_drawn_transitions_and_remembers_them(before, after):
    landing = LandingOutcome(task="r001-01", state=before)
    if after is before or after in LANDING_TRANSITIONS[before]:
        assert landing.moved(after, 5.0, reason="why").history == ((after, 5.0),)
    else:
        with pytest.raises(ValueError, match="cannot become"):
            landing.moved(after, 5.0)


def check(status: CheckStatus) -> CheckResult:
    return CheckResult(name=CheckName.TEST, command="make test", status=status)


@pytest.mark.parametrize(
    ("checks", "markers", "error", "green", "red"),
    [
        ([CheckStatus.GREEN], (), "", True, False),
        ([CheckStatus.GREEN, CheckStatus.SKIPPED], (), "", True, False),
        ([CheckStatus.GREEN, CheckStatus.RED], (), "", False, True),
        ([CheckStatus.TIMEOUT], (), "", False, True),
        ([], (), "", False, False),
        ([CheckStatus.SKIPPED], (), "", False, False),
        ([CheckStatus.GREEN], ("a.py",), "", False, True),
        ([], (), "the sandbox died", False, True),
    ],
)
def test_a_sweep_is_green_only_when_something_ran_green_and_nothing_is_wrong(checks, markers, error, green, red):
    sweep = Sweep(
        number=1,
        head=HEAD,
        checks=tuple(check(c) for c in checks),
        conflict_markers=markers,
        error=error,
        started_at=0,
        ended_at=1,
    )
    assert (sweep.green, sweep.red) == (green, red)


def test_a_report_cannot_call_a_red_main_green():
    with pytest.raises(ValidationError, match="not green"):
        BuildReport(
            build="b", verdict=Verdict.GREEN, head=HEAD, branch="main", tasks=1, landed=1, superseded=0, health="red"
        )
