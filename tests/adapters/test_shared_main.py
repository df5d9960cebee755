"""What builds on one branch share, in ledgers of their own: the newest sweep, and the one that mends."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.landing.shared_main import SharedMain, view_beside_others, waits_for
from longshot_dagster.adapters.ledger.ledger import BuildLedger, Ledger
from longshot_dagster.core.errors import Cancelled
from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.lifecycle import fixable_sweep, waits_for_mending
from longshot_dagster.core.models import (
    BuildPhase,
    BuildRequest,
    CheckName,
    CheckResult,
    CheckStatus,
    IterationFailure,
    MetricsSnapshot,
    Sweep,
    Target,
    TargetKind,
)
from longshot_dagster.core.settings import Settings

A, B = "toy-aaaa", "toy-bbbb"
FIX_A, FIX_B = IterationKey(A, "fix", 1), IterationKey(B, "fix", 1)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def begun(home: Home, build: str, branch: str = "main", created_at: float = 1.0, **settings: object) -> BuildLedger:
    target = Target(repository="r", url="r", kind=TargetKind.REMOTE, base_branch="main", branch=branch)
    request = BuildRequest(
        build=build, request="x", target=target, base="a" * 40, settings=Settings(**settings), created_at=created_at
    )
    ledger = Ledger(home.builds).build(build)
    ledger.save_request(request)
    return ledger


def shared(home: Home, ledger: BuildLedger) -> SharedMain:
    return SharedMain(home, ledger.request())


def sweep(head: str, status: CheckStatus = CheckStatus.RED, at: float = 10.0, **more: object) -> Sweep:
    check = CheckResult(name=CheckName.TEST, command="make test", status=status)
    return Sweep(number=1, head=head * 40, checks=(check,), started_at=at, ended_at=at + 1, **more)


@pytest.mark.parametrize(
    ("theirs", "mine", "error", "found"),
    [
        ({}, {}, "", True),
        ({}, {"llm_model": "another"}, "", True),
        ({}, {"check_test": "make test"}, "", False),
        ({"branch": "other"}, {}, "", False),
        ({}, {"created_at": 11.0}, "", False),
        ({}, {}, "no space left", False),
    ],
    ids=["same", "other-model", "other-check", "other-branch", "before-this-build", "could-not-run"],
)
def test_which_sweeps_of_another_build_are_this_builds_too(home, theirs, mine, error, found):
    a, b = begun(home, A, **theirs), begun(home, B, **mine)
    shared(home, a).publish(sweep("b", error=error))
    newest = shared(home, b).newest_sweep()
    assert (newest is not None) is found
    if newest is not None:
        assert (newest.head, newest.made_by) == ("b" * 40, A)
    assert shared(home, a).newest_sweep() is None  # its own it has in its ledger


def test_whoever_waits_for_anothers_sweep_can_be_cancelled(home):
    a, b = begun(home, A), begun(home, B)
    swept, enough = threading.Event(), threading.Event()

    def long_sweep() -> None:
        with shared(home, a).sweeping(lambda: False):
            swept.set()
            enough.wait(20)

    thread = threading.Thread(target=long_sweep)
    thread.start()
    swept.wait(20)
    with pytest.raises(Cancelled), shared(home, b).sweeping(swept.is_set):
        pytest.fail("two sweep at once")
    enough.set()
    thread.join()
    with shared(home, b).sweeping(lambda: False):
        pass


def test_the_first_to_take_a_red_main_up_keeps_it_while_it_is_at_it(home):
    a, b = begun(home, A), begun(home, B)
    assert shared(home, a).claim_mending(a, FIX_A) == ""
    assert a.iterations() == [FIX_A]
    assert shared(home, b).claim_mending(b, FIX_B) == A == shared(home, b).mended_by()
    assert b.iterations() == []
    assert shared(home, a).mended_by() == ""
    assert shared(home, a).claim_mending(a, FIX_A) == ""


def _gone(ledger: BuildLedger) -> None:
    directory = Path(str(ledger.directory))
    directory.rename(directory.with_name("gone"))


ENDS = {
    "paused": lambda a: a.update_state(lambda s: s.paused("by hand")),
    "finished": lambda a: a.update_state(lambda s: s.model_copy(update={"phase": BuildPhase.FINISHED})),
    "done": lambda a: a.save_metrics(FIX_A, MetricsSnapshot(iteration="fix.001")),
    "failed": lambda a: a.save_failure(FIX_A, IterationFailure(attempt=1, kind="model", reason="HTTP 500")),
    "unreadable": lambda a: Path(str(a.directory / "state.json")).write_text("{", encoding="utf-8"),
    "removed": _gone,
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_mender_that_stopped_keeps_nobody_waiting(home, end):
    a, b = begun(home, A), begun(home, B)
    shared(home, a).claim_mending(a, FIX_A)
    end(a)
    assert shared(home, b).mended_by() == ""
    assert shared(home, b).claim_mending(b, FIX_B) == ""


def test_one_that_is_resumed_finds_that_another_has_taken_over(home):
    a, b = begun(home, A), begun(home, B)
    shared(home, a).claim_mending(a, FIX_A)
    a.update_state(lambda s: s.paused("by hand"))
    shared(home, b).claim_mending(b, FIX_B)
    a.update_state(lambda s: s.moved(BuildPhase.RUNNING))
    assert shared(home, a).claim_mending(a, FIX_A) == B


def test_a_red_sweep_gives_way_to_a_newer_one_of_the_mender(home):
    a, b = begun(home, A), begun(home, B)
    b.add_sweep(sweep("b", CheckStatus.GREEN, at=5.0))
    b.add_sweep(sweep("c", CheckStatus.RED, at=10.0))
    shared(home, a).claim_mending(a, FIX_A)
    waiting = view_beside_others(home, b)
    assert (waiting.mended_by, waiting.sweep.regression) == (A, True)
    shared(home, a).publish(sweep("d", CheckStatus.GREEN, at=20.0))
    a.save_metrics(FIX_A, MetricsSnapshot(iteration="fix.001"))
    seen = view_beside_others(home, b)
    assert (seen.mended_by, seen.sweep.number, seen.sweep.red, seen.sweep.head) == ("", 3, False, "d" * 40)
    assert b.sweeps()[-1].made_by == A
    assert view_beside_others(home, b) == replace(seen, mended_by="")


@pytest.mark.parametrize("mender", [True, False])
def test_anothers_newer_red_sweep_takes_no_final_one_its_answer(home, mender):
    """It would be no final one of this build: each would cost a finalization, and none be mended."""
    a, b = begun(home, A), begun(home, B)
    b.add_sweep(sweep("c", CheckStatus.RED, at=10.0))
    b.update_state(lambda s: s.model_copy(update={"attempts": {"red-final.1": 1}}))
    if mender:
        shared(home, a).claim_mending(a, FIX_A)
    shared(home, a).publish(sweep("d", CheckStatus.RED, at=20.0))
    view = view_beside_others(home, b)
    assert (fixable_sweep(view), waits_for_mending(view)) == ((None, True) if mender else (1, False))


def test_whom_a_build_waits_for_is_told_and_nothing_is_changed_by_asking(home):
    a, b = begun(home, A), begun(home, B)
    b.add_sweep(sweep("b", CheckStatus.GREEN, at=5.0))
    b.add_sweep(sweep("c", CheckStatus.RED, at=10.0))
    assert waits_for(home, b) == ""
    shared(home, a).claim_mending(a, FIX_A)
    shared(home, a).publish(sweep("d", CheckStatus.GREEN, at=20.0))
    assert (waits_for(home, b), waits_for(home, a), len(b.sweeps())) == (A, "", 2)


def test_a_green_build_looks_at_nobody_else(home):
    a, b = begun(home, A), begun(home, B)
    b.add_sweep(sweep("c", CheckStatus.GREEN))
    shared(home, a).publish(sweep("d", CheckStatus.RED, at=20.0))
    assert view_beside_others(home, b).sweep.number == 1
    assert len(b.sweeps()) == 1
