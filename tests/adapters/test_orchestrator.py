"""One orchestrator a build: two homes, one repository."""

import os
import shutil
from pathlib import Path

import pytest
from repositories import BUILD, World, bare, files_at, git

from longshot_dagster.adapters.host import processes
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.landing.heartbeat import Heartbeat, let_go, publish
from longshot_dagster.adapters.ledger.ledger import Ledger
from longshot_dagster.adapters.ledger.orchestrator import DOCUMENT, Seat, identity
from longshot_dagster.core.errors import TakenOver
from longshot_dagster.core.models import BuildPhase, BuildReport, Verdict
from longshot_dagster.core.orchestrating import BEAT_S, Hold, Orchestrator
from longshot_dagster.core.settings import Settings

REF = f"refs/longshot/{BUILD}"


class Clock:
    def __init__(self) -> None:
        self.at, self.passed = 1_000_000.0, 0.0

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.passed

    def sleep(self, seconds: float) -> None:
        self.after(seconds)

    def after(self, seconds: float) -> None:
        self.at += seconds
        self.passed += seconds


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "one", bare(tmp_path / "origin.git", {"a.py": "1\n"}))


@pytest.fixture
def elsewhere(world: World, tmp_path: Path) -> World:
    """Another home on the same repository, with a build of the same name."""
    return World(tmp_path / "two", world.origin)


def driver(world: World) -> Orchestrator:
    return Orchestrator.model_validate_json(files_at(world.origin, REF)[DOCUMENT])


def land(world: World, name: str, content: str):
    task = world.task(name, ("a.py",))
    world.plan(task)
    world.worked(task, {"a.py": content})
    return world.queue().land(task)


def take_over(world: World) -> None:
    """As `restoring` does it: from exactly the checkpoint that is there now."""
    world.mirror.fetch()
    Seat(world.mirror, BUILD).noted(git(world.origin, "rev-parse", REF), 1.0, released=True)
    assert world.queue().checkpoint(held=True) is None


# --- the name of a home ----------------------------------------------------------------------------------------------


def test_a_home_keeps_its_name_and_a_copy_of_it_gets_another(tmp_path: Path) -> None:
    one = Home(tmp_path / "one")
    name = identity(one)
    assert len(name) == 32 and identity(Home(tmp_path / "one")) == name
    assert (one.root / "orchestrator").stat().st_mode & 0o777 == 0o600
    shutil.copytree(one.root, tmp_path / "two")
    assert identity(Home(tmp_path / "two")) != name
    (one.root / "orchestrator").write_text("torn")
    assert identity(one) != name


# --- two homes -------------------------------------------------------------------------------------------------------


def test_after_a_take_over_the_first_one_lands_nothing_more_and_says_so(world: World, elsewhere: World) -> None:
    assert land(world, "r001-01", "2\n").state == "landed"
    take_over(elsewhere)
    before = world.main()
    with pytest.raises(TakenOver, match=f"build {BUILD} was taken over by the longshot on ") as told:
        land(world, "r001-02", "3\n")
    assert "\n" not in str(told.value) and f"longshot resume {BUILD} --take-over" in str(told.value)
    assert world.main() == before
    assert driver(world).id == identity(elsewhere.home)
    assert land(elsewhere, "r001-02", "4\n").state == "landed"


def test_a_take_over_between_reading_and_pushing_is_noticed(world: World, elsewhere: World) -> None:
    land(world, "r001-01", "2\n")
    task = world.task("r001-02", ("a.py",))
    world.plan(task)
    world.worked(task, {"a.py": "3\n"})
    queue, before = world.queue(), world.main()
    push, rounds = queue.mirror.push, []

    def raced(updates):
        if not rounds:
            take_over(elsewhere)
        rounds.append(updates)
        return push(updates)

    queue.mirror.push = raced  # type: ignore[method-assign]
    with pytest.raises(TakenOver):
        queue.land(task)
    assert world.main() == before and len(rounds) == 1


def test_one_that_was_taken_back_drives_it_again(world: World, elsewhere: World) -> None:
    land(world, "r001-01", "2\n")
    take_over(elsewhere)
    take_over(world)
    assert land(world, "r001-02", "3\n").state == "landed"
    with pytest.raises(TakenOver):
        elsewhere.queue().checkpoint()


def test_the_same_home_after_a_crash_is_never_refused(world: World) -> None:
    land(world, "r001-01", "2\n")
    for name in world.mirror.path.glob("longshot-*-*.json"):
        name.unlink()  # whatever of its memory was not on the disk yet
    again = Seat(world.mirror, BUILD)
    assert again.hold(git(world.origin, "rev-parse", REF), 2e9)[0] is Hold.OURS
    assert land(world, "r001-02", "3\n").state == "landed"


def test_a_checkpoint_without_a_name_is_anybodys(world: World, elsewhere: World) -> None:
    assert world.queue().checkpoint() is None
    tree = git(world.origin, "ls-tree", REF).replace("orchestrator.json", "junk.json")
    bare_tree = git(world.origin, "mktree", stdin=(tree + "\n").encode())
    commit = git(world.origin, "commit-tree", bare_tree, "-m", "Checkpoint")
    git(world.origin, "update-ref", REF, commit)
    assert elsewhere.queue().checkpoint() is None
    assert driver(world).id == identity(elsewhere.home)


def test_one_that_drove_it_from_this_machine_and_is_gone_is_known_to_be_dead(
    world: World, elsewhere: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longshot_dagster.adapters.ledger import orchestrator

    monkeypatch.setattr(orchestrator, "supervisor_pid", lambda home: os.getpid())
    assert world.queue().checkpoint() is None
    commit = git(world.origin, "rev-parse", REF)
    elsewhere.mirror.obtain(REF, commit)
    seat = Seat(elsewhere.mirror, BUILD)
    found = seat.found(commit)
    assert found is not None and found.started == processes.start_time(os.getpid())
    assert seat.hold(commit, found.seen_at)[0] is Hold.HELD
    monkeypatch.setattr(processes, "start_time", lambda pid: None)
    assert seat.hold(commit, found.seen_at)[0] is Hold.DEAD


def test_where_nothing_is_pushed_nobody_is_asked(tmp_path: Path) -> None:
    local = Settings(checkpoint="local")
    origin = bare(tmp_path / "o.git", {"a.py": "1\n"})
    one, two = World(tmp_path / "one", origin, local), World(tmp_path / "two", origin, local)
    assert land(one, "r001-01", "2\n").state == land(two, "r001-02", "3\n").state == "landed"
    assert git(origin, "for-each-ref", "--format=%(refname)") == "refs/heads/main"


# --- heartbeats ------------------------------------------------------------------------------------------------------


def beats(world: World) -> int:
    return int(git(world.origin, "rev-list", "--count", REF)) if git(world.origin, "for-each-ref", REF) else 0


def test_a_build_under_way_is_heard_of_once_a_minute(world: World) -> None:
    clock = Clock()
    heart = Heartbeat(world.home, clock)
    counted = []
    for _ in range(5):
        assert heart.beat(Ledger(world.home.builds).unfinished()) == []
        counted.append(beats(world))
        clock.after(BEAT_S / 2 + 1)
    assert counted == [1, 1, 2, 2, 3]
    assert driver(world).seen_at == clock.at - (BEAT_S / 2 + 1)


def test_a_clock_that_is_set_back_does_not_silence_it(world: World) -> None:
    clock = Clock()
    heart = Heartbeat(world.home, clock)
    heart.beat([world.ledger])
    clock.at -= 86_400
    clock.passed += BEAT_S
    heart.beat([world.ledger])
    assert beats(world) == 2


@pytest.mark.parametrize("phase", [BuildPhase.PAUSED, BuildPhase.FINISHED])
def test_one_that_stands_still_is_let_go_of_once(world: World, phase: BuildPhase) -> None:
    clock = Clock()
    heart = Heartbeat(world.home, clock)
    heart.beat([world.ledger])
    assert not driver(world).released
    if phase is BuildPhase.FINISHED:
        world.ledger.save_report(report(world))
        world.ledger.update_state(lambda s: s.moved(BuildPhase.FINALIZING))
    world.ledger.update_state(lambda s: s.moved(phase))
    for _ in range(3):
        clock.after(BEAT_S)
        heart.beat(Ledger(world.home.builds).unfinished())
    assert driver(world).released and beats(world) == 2
    assert ("report.json" in files_at(world.origin, REF)) is (phase is BuildPhase.FINISHED)


def report(world: World) -> BuildReport:
    return BuildReport(
        build=BUILD, verdict=Verdict.GREEN, head=world.main(), branch="main", tasks=0, landed=0, superseded=0
    )


def test_a_worker_that_still_keeps_its_work_is_waited_for(world: World) -> None:
    from longshot_dagster.adapters.host.exclusive import claim

    task = world.task("r001-01", ("a.py",))
    world.plan(task)
    clock = Clock()
    heart = Heartbeat(world.home, clock)
    heart.beat([world.ledger])
    world.ledger.update_state(lambda s: s.moved(BuildPhase.PAUSED))
    lock = world.ledger.work_lock("r001-01")
    assert lock is not None
    clock.after(BEAT_S)
    with claim(lock):
        heart.beat([])
    assert not driver(world).released
    heart.beat([])
    assert driver(world).released


def test_the_end_of_a_stack_lets_go_of_its_builds(world: World) -> None:
    clock = Clock()
    Heartbeat(world.home, clock).beat([world.ledger])
    let_go(world.home, clock)
    assert driver(world).released
    assert Seat(world.mirror, BUILD).last().released  # type: ignore[union-attr]


def test_a_build_that_was_taken_over_is_paused_with_one_line_and_left_alone(world: World, elsewhere: World) -> None:
    clock = Clock()
    heart = Heartbeat(world.home, clock)
    heart.beat([world.ledger])
    take_over(elsewhere)
    clock.after(BEAT_S)
    (said,) = heart.beat([world.ledger])
    state = world.ledger.state()
    assert state.phase is BuildPhase.PAUSED and state.reason in said and "was taken over by" in state.reason
    clock.after(BEAT_S)
    assert heart.beat([world.ledger]) == []
    assert driver(world).id == identity(elsewhere.home) and not driver(world).released


def test_a_target_out_of_reach_is_asked_once_a_minute(world: World) -> None:
    clock = Clock()
    heart = Heartbeat(world.home, clock)
    world.origin.rename(world.root / "away")
    said = []
    for _ in range(4):
        said.append(len(heart.beat([world.ledger])))
        clock.after(BEAT_S / 2)
    assert said == [1, 0, 1, 0]
    assert world.ledger.state().phase is BuildPhase.RUNNING


def test_a_lander_at_work_says_it_all(world: World) -> None:
    from longshot_dagster.adapters.host.documents import locked

    _ = world.mirror.git
    with locked(world.mirror.landing_lock):
        assert publish(world.home, world.ledger, Clock(), wait=False) == ""
    assert beats(world) == 0
