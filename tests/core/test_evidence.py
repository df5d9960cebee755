"""What a worker says, held against what was measured: which contradictions become concerns, and what is left alone."""

import json
import random
import time
from typing import Any

import pytest

from longshot_dagster.core.evidence import MAX_DOUBTS, claimed_paths, claims_green, doubts
from longshot_dagster.core.models import CheckName, CheckResult, CheckStatus
from longshot_dagster.core.working import read_result

GOOD: dict[str, Any] = {"taskId": "r001-01", "harnessStatus": "completed", "status": "complete", "summary": "s"}
RED = CheckResult(
    name=CheckName.TEST, command="make test", status=CheckStatus.RED, exit_code=2, output="...\nFAILED (errors=1)\n\n"
)
SLOW = CheckResult(name=CheckName.LINT, command="make lint", status=CheckStatus.TIMEOUT)
BEFORE = CheckResult(name=CheckName.TEST, command="make test", status=CheckStatus.RED_BEFORE, exit_code=1)


def told(changed: tuple[str, ...], *checks: CheckResult, there: tuple[str, ...] = (), **fields: Any) -> list[str]:
    result = read_result(json.dumps({**GOOD, **fields}).encode(), "r001-01")
    return doubts(result, changed, checks, lambda path: path in there)


def test_what_is_said_and_what_was_measured_agree() -> None:
    summary = "Created `src/calc.py` with add() and wrote tests/test_calc.py. All tests pass."
    assert told(("src/calc.py", "tests/test_calc.py"), summary=summary) == []
    assert told(("app.py",), BEFORE, summary="Fixed app.py. The suite is green.") == []


def test_complete_without_a_change_is_doubted_unless_it_says_that_nothing_was_to_be_done() -> None:
    line = "nothing-changed: it says that the task is complete, and no file was changed"
    assert told(()) == [line]
    for summary in ("It was already there.", "There was nothing to do.", "No changes were needed."):
        assert told((), summary=summary) == []
    assert told((), status="blocked") == []


def test_checks_that_are_red_are_named_with_what_was_measured() -> None:
    measured = "test red (exit code 2: FAILED (errors=1)), lint red (timed out)"
    assert told(("a.py",), RED, SLOW, summary="All 12 tests pass.") == [
        f"checks-red: it says that tests or checks pass; measured on what it handed in: {measured}"
    ]
    assert told(("a.py",), RED, SLOW) == [
        f"checks-red: it says that the task is complete; measured on what it handed in: {measured}"
    ]
    assert told(("a.py",), RED, status="partial", summary="Tests do not pass yet.") == []


def test_files_that_it_names_and_did_not_change_are_named() -> None:
    summary = "Created src/gone.py and updated `app.py`.\nAlso changed docs/guide.md and src/app.py."
    assert told(("src/app.py",), summary=summary, there=("docs/guide.md",)) == [
        "no-such-file: it says that it changed src/gone.py, and there is no such file",
        "untouched: it says that it changed docs/guide.md, which is not among the changed files",
    ]


def test_last_words_instead_of_a_handoff_are_said_to_be_that() -> None:
    assert told(("a.py",), said=False) == [
        "no-handoff: it ended without a handoff; its last words stand as the summary"
    ]


def test_a_run_that_did_not_end_well_is_doubted_as_it_is() -> None:
    assert told((), RED, harnessStatus="timeout", summary="All tests pass. Created src/x.py.") == []
    assert told((), RED, error="it broke") == []


@pytest.mark.parametrize(
    ("summary", "green"),
    [
        ("All tests pass.", True),
        ("Ran pytest: 12 passed", True),
        ("`make test` and lint are clean", True),
        ("Tests do not pass", False),
        ("all tests pass except the two that failed before", False),
        ("Tests should pass once the server is there", False),
        ("I looked at the tests. The code is clean.", False),
        ("It compiles.", False),
    ],
)
def test_what_counts_as_saying_that_checks_pass(summary: str, green: bool) -> None:
    assert claims_green(summary) is green


@pytest.mark.parametrize(
    ("summary", "paths"),
    [
        ("Added /workspace/repo/src/a.py and ./b/c.go", ["src/a.py", "b/c.go"]),
        ("Wrote `a.py` for node.js", ["a.py"]),
        ("Did not change src/a.py", []),
        ("Read src/a.py, then changed src/b.py", ["src/b.py"]),
        ("Added https://example.org/x/y.html and /etc/hosts.txt and ../out/of.py", []),
        ("src/a.py needs a change", []),
        ("Updated version to 1.2.3 in and/or e.g. others", []),
    ],
)
def test_only_what_is_called_changed_counts(summary: str, paths: list[str]) -> None:
    assert claimed_paths(summary) == paths


def test_hostile_summaries_cost_no_time_and_say_little() -> None:
    rng = random.Random(4)
    alphabet = "abc./`@+-_ \n\x1b\u202eaddtestspass:é"
    hostile = [
        "a/" * 10_000 + "x.py",
        "`" * 20_000,
        "added " + "a." * 9_000,
        "tests " * 3_300,
        "added " + "s/x.py " * 2_800,
    ]
    hostile += ["".join(rng.choice(alphabet) for _ in range(20_000)) for _ in range(5)]
    began = time.process_time()
    for summary in hostile:
        found = told((), RED, summary=summary[:20_000])
        assert len(found) <= MAX_DOUBTS and all(len(line) < 2_000 and "\x1b" not in line for line in found)
    assert time.process_time() - began < 2
