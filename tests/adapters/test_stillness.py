"""When the sensors may rest on, and which of them, by a real ledger and real leases."""

import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.ledger import BuildLedger, Ledger
from longshot_dagster.adapters.stack.stillness import (
    AT_WORK_S,
    BACKLOG,
    CHECKPOINTS,
    FAILED_RUNS,
    FINALIZE,
    IDLE_S,
    LOST_RUNS,
    OF_BUILDS,
    REPLAN,
    SENSORS,
    SETTLES_S,
    Stillness,
)
from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.models import (
    BuildPhase,
    BuildRequest,
    CheckResult,
    CheckStatus,
    MetricsSnapshot,
    Plan,
    Sweep,
    Target,
    TargetKind,
)
from longshot_dagster.core.settings import Settings

KEY = IterationKey("b-1111", "root", 1)
TARGET = Target(repository="r", url="r", kind=TargetKind.REMOTE, base_branch="main", branch="main")


class Watched:
    """A home, its stillness, and a clock and a newest run that ended badly, which a test moves."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.now = 1000.0
        self.newest = "first"
        self.wall = time.time()
        self.stillness = Stillness(
            home, home.root / "backlog", lambda: self.newest, lambda: self.now, lambda: self.wall
        )

    def lasts(self, waited_s: float = 5.0) -> bool:
        return self.stillness.lasts(waited_s)

    def wanted(self, waited_s: float = 5.0) -> set[str]:
        """The sensors that would look now."""
        self.stillness.look_again()
        return {s for s in SENSORS if not self.stillness.rests(s, waited_s)}

    def settled(self) -> "Watched":
        """Nothing has moved for long enough."""
        self.lasts()
        self.now += SETTLES_S
        return self


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path / "home")
    yield home
    home.leave_runtime()


def begun(home: Home) -> BuildLedger:
    ledger = Ledger(home.builds).build(KEY.build)
    ledger.save_request(
        BuildRequest(
            build=KEY.build, request="do it", target=TARGET, base="a" * 40, settings=Settings(), created_at=1.0
        )
    )
    return ledger


@pytest.fixture
def planning(home: Home) -> BuildLedger:
    """A build whose first iteration is at work."""
    ledger = begun(home)
    ledger.open_iteration(KEY)
    return ledger


def test_without_a_build_the_sensors_rest_half_a_minute(home: Home) -> None:
    watched = Watched(home).settled()
    assert watched.lasts(5.0)
    assert watched.lasts(IDLE_S - 1)
    assert not watched.lasts(IDLE_S)


@pytest.mark.usefixtures("planning")
def test_with_a_build_at_work_they_rest_until_its_checkpoint_may_be_due(home: Home) -> None:
    watched = Watched(home).settled()
    assert watched.lasts(AT_WORK_S - 1)
    assert not watched.lasts(AT_WORK_S)


def test_a_build_whose_iteration_is_due_is_looked_at(home: Home) -> None:
    watched = Watched(home).settled()
    begun(home)
    assert not watched.lasts()
    assert not watched.settled().lasts()  # and as long as it is due


def test_whatever_moves_is_looked_at_until_it_has_settled(home: Home, planning: BuildLedger) -> None:
    watched = Watched(home).settled()
    assert watched.lasts()
    watched.newest = "second"
    assert not watched.lasts()
    watched.now += SETTLES_S - 1
    assert not watched.lasts()
    watched.now += 1
    assert watched.lasts()
    planning.update_state(lambda s: s.moved(BuildPhase.PAUSED, "a reason"))
    assert not watched.lasts()
    assert watched.settled().lasts()


def test_a_process_that_ends_without_a_word_is_looked_for(home: Home) -> None:
    lease = os.open(home.leases / "run-1", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lease, fcntl.LOCK_EX)
    watched = Watched(home).settled()
    assert watched.lasts()
    os.close(lease)
    assert not watched.lasts()
    assert watched.settled().lasts()


def test_the_lease_of_a_run_that_ended_long_ago_is_not_opened_again(home: Home) -> None:
    lease = home.leases / "run-1"
    lease.touch()
    os.utime(lease, (0, 0))
    watched = Watched(home).settled()
    held = os.open(lease, os.O_RDWR)  # as nobody would do
    fcntl.flock(held, fcntl.LOCK_EX)
    assert watched.lasts()
    os.close(held)


def test_a_backlog_is_looked_at_as_often_as_ever(home: Home) -> None:
    (home.root / "backlog").mkdir(parents=True)
    assert not Watched(home).settled().lasts()


def test_only_who_may_find_something_looks(home: Home, planning: BuildLedger) -> None:
    watched = Watched(home).settled()
    assert watched.wanted() == set()
    watched.newest = "second"
    assert watched.wanted() == {FAILED_RUNS}
    lease = os.open(home.leases / "run-1", os.O_RDWR | os.O_CREAT)
    assert watched.wanted() == {FAILED_RUNS, LOST_RUNS}  # it may be about to be locked
    os.close(lease)
    watched.now += SETTLES_S
    planning.update_state(lambda s: s.moved(BuildPhase.PAUSED, "a reason"))
    assert watched.wanted() == OF_BUILDS | {CHECKPOINTS}
    watched.now += SETTLES_S
    (home.root / "backlog").mkdir()
    assert watched.wanted() == {BACKLOG}


def test_each_kind_of_work_is_for_its_own_sensor(home: Home) -> None:
    ledger = begun(home)
    watched = Watched(home)
    watched.wanted()
    watched.now += SETTLES_S
    assert watched.wanted() == {REPLAN}
    ledger.open_iteration(KEY)
    assert watched.wanted() == set()
    ledger.freeze_plan(KEY, Plan(iteration=str(KEY), tasks=(), base="a" * 40))
    ledger.save_metrics(KEY, MetricsSnapshot(iteration=str(KEY)))
    assert watched.wanted() == {FINALIZE}
    red = CheckResult(name="test", command="make test", status=CheckStatus.RED)
    ledger.add_sweep(Sweep(number=1, head="a" * 40, checks=(red,), started_at=1.0, ended_at=2.0))
    assert watched.wanted() == OF_BUILDS  # another build on the branch may mend it


def test_a_sensor_looks_before_long_whatever_is_seen(home: Home) -> None:
    watched = Watched(home).settled()
    assert watched.wanted(AT_WORK_S - 1) == set()
    assert watched.wanted(AT_WORK_S) == SENSORS
    assert watched.wanted(-1.0) == SENSORS  # the clock was set back
    assert not watched.stillness.rests("orphan_sandboxes", 5.0)  # nothing is known of what it looks at


def test_what_one_look_has_seen_holds_for_all_until_the_next(home: Home) -> None:
    watched = Watched(home).settled()
    assert watched.wanted() == set()
    begun(home)
    assert watched.stillness.rests(REPLAN, 5.0)
    watched.stillness.look_again()
    assert not watched.stillness.rests(REPLAN, 5.0)


def test_what_cannot_be_read_is_for_the_sensors_to_say(home: Home, planning: BuildLedger) -> None:
    watched = Watched(home).settled()
    Path(str(planning.directory / "request.json")).write_text("{")
    assert not watched.lasts()
    assert watched.wanted() == SENSORS


@pytest.mark.parametrize(("shift", "taken_since_is_seen"), [(-3600.0, False), (-0.5, False), (0.0, True)])
def test_a_lease_of_the_future_is_an_old_one(home: Home, shift: float, taken_since_is_seen: bool) -> None:
    """Written before the clock was set back; only one that is fresh may be about to be locked."""
    lease = home.leases / "run-1"
    lease.touch()
    watched = Watched(home)
    watched.wall = lease.stat().st_mtime + shift
    watched.settled()
    held = os.open(lease, os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    assert watched.lasts() is not taken_since_is_seen
    os.close(held)
