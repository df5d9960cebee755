"""What becomes of a sandbox that is found."""

from dataclasses import replace

import pytest

from longshot_dagster.core.models import BuildPhase
from longshot_dagster.core.orphans import Facts, Fate, fate

KILLED = Facts(ours=True, held=False, build="shop-7f3k", task="r001-01", phase=BuildPhase.RUNNING, handed_in=False)


def fate_of(**changed: object) -> Fate:
    return fate(replace(KILLED, **changed))[0]


def test_what_a_killed_worker_of_an_unfinished_build_has_done_is_kept_before_it_ends() -> None:
    assert {fate_of(phase=p) for p in BuildPhase if p is not BuildPhase.FINISHED} == {Fate.HOLDS_WORK}


@pytest.mark.parametrize(
    "changed",
    [
        {"phase": BuildPhase.FINISHED},
        {"phase": None},
        {"handed_in": True},
        {"task": ""},
        {"build": "", "task": "", "phase": None},
    ],
)
def test_nobody_needs_what_is_over_anonymous_or_handed_in(changed: dict[str, object]) -> None:
    assert fate_of(**changed) is Fate.ORPHAN


def test_what_a_living_process_answers_for_never_ends_whatever_the_ledger_says() -> None:
    for phase in (*BuildPhase, None):
        assert fate_of(held=True, phase=phase, handed_in=True) is Fate.AT_WORK


def test_what_another_installation_made_is_none_of_ours() -> None:
    assert {fate_of(ours=False, held=held, phase=None) for held in (True, False)} == {Fate.ANOTHERS}
