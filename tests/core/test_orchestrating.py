"""Who may drive a build: a truth table, and the lines that people are told."""

import itertools

import pytest
from pydantic import ValidationError

from longshot_dagster.core.orchestrating import SILENT_S, Hold, Orchestrator, hold, lost, refusal, seen

OURS, THEIRS, NOW = "a" * 32, "b" * 32, 10_000.0


def orchestrator(**more: object) -> Orchestrator:
    return Orchestrator(**{"id": THEIRS, "host": "other", "seen_at": NOW - 34, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "ended_here", "expected"),
    [
        (None, False, Hold.FREE),
        (orchestrator(released=True), False, Hold.FREE),
        (orchestrator(id=OURS), False, Hold.OURS),
        (orchestrator(id=OURS, seen_at=0.0), False, Hold.OURS),
        (orchestrator(id=OURS, released=True), False, Hold.FREE),
        (orchestrator(), False, Hold.HELD),
        (orchestrator(), True, Hold.DEAD),
        (orchestrator(seen_at=NOW - SILENT_S), False, Hold.HELD),
        (orchestrator(seen_at=NOW - SILENT_S - 1), False, Hold.SILENT),
        (orchestrator(seen_at=NOW + 86_400), False, Hold.HELD),
    ],
)
def test_how_a_build_stands_to_an_installation(found: Orchestrator | None, ended_here: bool, expected: Hold) -> None:
    assert hold(found, OURS, NOW, ended_here=ended_here) is expected


def test_of_two_installations_at_most_one_holds_a_build_whatever_the_clocks_say() -> None:
    for driver, released, seen_at, ended in itertools.product(
        (OURS, THEIRS), (False, True), (0.0, NOW, NOW * 2), (False, True)
    ):
        found = orchestrator(id=driver, released=released, seen_at=seen_at)
        holds = [hold(found, me, NOW, ended_here=ended) is Hold.OURS for me in (OURS, THEIRS)]
        assert sum(holds) == (0 if released else 1)


def test_a_refusal_names_who_when_and_what_to_do() -> None:
    found = orchestrator(host="ci\x1b[2J\u202e-7")
    assert refusal("shop-7f3k", found, NOW) == (
        "build shop-7f3k is driven by the longshot on ci\ufffd[2J\ufffd-7 (bbbbbb), last seen 34 s ago; `longshot down` "
        "there lets go of it, or take it over: longshot resume shop-7f3k --take-over"
    )
    assert "\n" not in lost("shop-7f3k", orchestrator(host="a\nb"))


def test_a_clock_that_is_ahead_is_said() -> None:
    assert seen(orchestrator(seen_at=NOW + 120), NOW) == "2 min 00 s ahead of the clock here"


@pytest.mark.parametrize(
    "wrong", [{"id": "x"}, {"id": "a" * 33}, {"host": "h" * 201}, {"seen_at": -1}, {"seen_at": 1e300}, {"pid": -1}]
)
def test_what_is_no_orchestrator_is_none(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        orchestrator(**wrong)


def test_a_newer_versions_fields_are_no_reason_not_to_read_it() -> None:
    assert Orchestrator.model_validate({**orchestrator().model_dump(), "mood": "good"}) == orchestrator()
