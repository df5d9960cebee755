"""What `longshot clean` takes away, from real repositories and mirrors, and what it leaves alone."""

import json
import os
import time
from pathlib import Path

import pytest
from repositories import World, bare, commit_on, files_at, git

from longshot_dagster.adapters.builds import cleaning
from longshot_dagster.adapters.builds.cleaning import Cleaning
from longshot_dagster.adapters.builds.leftovers import Leftovers
from longshot_dagster.adapters.gateway.token_counts import accounts_file
from longshot_dagster.adapters.host import leases
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.ledger import Ledger
from longshot_dagster.adapters.repository import build_refs
from longshot_dagster.adapters.stack.dagster_api import ACTIVE, ActiveRun, ApiUnavailable
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.landing_records import LandingState
from longshot_dagster.core.models import BuildPhase
from longshot_dagster.core.settings import Settings

OLD, OTHER = "old-build-1111", "other-build-2222"
DAY = 86_400


class Clock(SystemClock):
    """So many days after the build began, at second 1."""

    def __init__(self, days: float) -> None:
        self.days = days

    def now(self) -> float:
        return 1.0 + self.days * DAY


class ScriptedDagster:
    """Dagster's records as its API gives and deletes them."""

    def __init__(self, runs: list[ActiveRun], answers: bool = True) -> None:
        self.runs, self.answers = runs, answers
        self.forgotten: dict[str, list[str]] = {}

    def every_run(self):
        if not self.answers:
            raise ApiUnavailable("it does not answer")
        return iter(list(self.runs))

    def active(self) -> list[ActiveRun]:
        return [r for r in self.runs if r.status in ACTIVE]

    def delete_run(self, run_id: str) -> None:
        self.runs = [r for r in self.runs if r.id != run_id]

    def delete_partitions(self, name, keys) -> None:
        self.forgotten.setdefault(name, []).extend(keys)


def landed(world: World, name: str = "r001-01", edits: dict[str, str] | None = None) -> None:
    task = world.task(name, ("src/",))
    world.plan(task)
    world.worked(task, edits or {f"src/{world.build}-{name}.py": "1\n"})
    assert world.queue().land(task).state is LandingState.LANDED


def finish(world: World) -> None:
    world.ledger.update_state(lambda s: s.moved(BuildPhase.FINALIZING).moved(BuildPhase.FINISHED))


def clean(home: Home, days: float = 40, older_than: float = 30, api=None) -> list:
    found = Cleaning(home, Clock(days), api)
    return [found.take_away(r) for r in found.due(older_than)]


def refs(repository: Path) -> set[str]:
    return set(git(repository, "for-each-ref", "--format=%(refname)").splitlines())


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A finished build that fast-forwarded, which leaves every kind of ref."""
    made = World(tmp_path, bare(tmp_path / "origin.git", {"a.py": "1\n"}), Settings(merge_strategy="fast-forward"), OLD)
    landed(made)
    return made


# --- one build -------------------------------------------------------------------------------------------------------


def test_a_finished_build_goes_with_its_refs_and_main_keeps_its_work(world):
    finish(world)
    accounts_file(world.home.gateway, OLD).write_text("{}", encoding="utf-8")
    main, mirror = world.main(), world.mirror.path
    assert {f"refs/longshot/{OLD}", f"refs/longshot/landed/{OLD}/r001-01"} <= refs(world.origin)
    assert f"refs/longshot/work/{OLD}/r001-01" in refs(mirror)
    (outcome,) = clean(world.home)
    assert (outcome.waits, outcome.notes) == (False, [])
    assert refs(world.origin) == {"refs/heads/main"} and world.main() == main
    assert not [r for r in refs(mirror) if OLD in r]
    assert Ledger(world.home.builds).builds() == []
    assert list(world.home.leaving.iterdir()) == []
    assert [p for p in world.home.root.rglob(f"*{OLD}*") if ".lock" not in p.name] == []
    assert clean(world.home) == []


@pytest.mark.parametrize("phase", [BuildPhase.RUNNING, BuildPhase.PAUSED, BuildPhase.FINALIZING])
def test_what_has_not_finished_stays_however_old(world, phase):
    world.ledger.update_state(lambda s: s.moved(phase))
    before = refs(world.origin)
    assert clean(world.home, days=9_000, older_than=0) == []
    with pytest.raises(WrongUse, match=f"{OLD} is {phase}; only what has finished is removed"):
        Cleaning(world.home, Clock(1), None).one(OLD)
    assert refs(world.origin) == before and Ledger(world.home.builds).builds() == [OLD]


def test_a_young_build_stays_until_it_is_named(world):
    finish(world)
    assert clean(world.home, days=29.9) == []
    found = Cleaning(world.home, Clock(1), None)
    found.take_away(found.one(OLD))
    assert Ledger(world.home.builds).builds() == []


def test_an_unfinished_build_on_the_same_repository_loses_nothing(world, tmp_path):
    other = World(tmp_path, world.origin, world.settings, OTHER)
    landed(other)
    waiting = other.task("r001-02", ("src/",))
    other.plan(waiting)
    other.worked(waiting, {"src/more.py": "1\n"})
    finish(world)
    theirs = {r for r in refs(world.origin) | refs(world.mirror.path) if OTHER in r}
    assert len(clean(world.home)) == 1
    assert {r for r in refs(world.origin) | refs(world.mirror.path) if OTHER in r} == theirs
    assert Leftovers(world.home, None).idle_mirrors() == []
    assert Leftovers(world.home, None).pack_mirrors(frozenset({world.mirror.path})) == []
    assert other.queue().land(waiting).state is LandingState.LANDED
    assert "src/more.py" in files_at(world.origin)


def test_a_forge_that_takes_branches_only_loses_the_checkpoint_branch(tmp_path):
    origin = bare(tmp_path / "origin.git", {"a.py": "1\n"})
    hook = origin / "hooks" / "update"
    hook.write_text("#!/bin/sh\ncase $1 in refs/heads/*) exit 0;; *) exit 1;; esac\n")
    hook.chmod(0o755)
    world = World(tmp_path, origin, build=OLD)
    landed(world)
    assert f"refs/heads/longshot/checkpoint-{OLD}" in refs(origin)
    finish(world)
    clean(world.home)
    assert refs(origin) == {"refs/heads/main"}


def test_a_target_that_refuses_to_let_go_is_told_and_keeps_its_refs(world):
    finish(world)
    hook = world.origin / "hooks" / "update"
    hook.write_text("#!/bin/sh\necho 'nothing is deleted here' >&2; exit 1\n")
    hook.chmod(0o755)
    (outcome,) = clean(world.home)
    (note,) = outcome.notes
    assert note.startswith("2 refs stay on") and "nothing is deleted here" in note
    assert f"refs/longshot/{OLD}" in refs(world.origin) and Ledger(world.home.builds).builds() == []


@pytest.mark.parametrize("merged", [True, False])
def test_a_checkouts_result_stays_unless_it_is_merged(tmp_path, merged):
    git(tmp_path, "clone", "-q", str(bare(tmp_path / "origin.git", {"a.py": "1\n"})), "work")
    work = tmp_path / "work"
    git(work, "remote", "remove", "origin")
    (work / "a.py").write_text("dirty\n")
    world = World(tmp_path, work, repository=str(work), build=OLD)
    landed(world)
    finish(world)
    if merged:
        git(work, "update-ref", "refs/heads/main", f"refs/heads/longshot/{OLD}")
    (outcome,) = clean(world.home)
    there = {"refs/heads/main"} | (set() if merged else {f"refs/heads/longshot/{OLD}"})
    assert {r for r in refs(work) if not r.startswith("refs/remotes/")} == there
    assert outcome.notes == ([] if merged else [f"branch longshot/{OLD} of {work} holds its work and stays"])
    assert (work / "a.py").read_text() == "dirty\n"


def test_a_merged_result_that_somebody_has_committed_to_since_it_was_looked_at_stays(tmp_path):
    git(tmp_path, "clone", "-q", str(bare(tmp_path / "origin.git", {"a.py": "1\n"})), "work")
    work = tmp_path / "work"
    git(work, "remote", "remove", "origin")
    world = World(tmp_path, work, repository=str(work), build=OLD)
    landed(world)
    finish(world)
    result = f"refs/heads/longshot/{OLD}"
    git(work, "update-ref", "refs/heads/main", result)
    found = Cleaning(world.home, Clock(40), None)
    (removal,) = found.due(30)
    theirs = git(work, "commit-tree", f"{result}^{{tree}}", "-p", result, "-m", "mine")
    git(work, "update-ref", result, theirs)
    outcome = found.take_away(removal)
    assert git(work, "rev-parse", result) == theirs
    assert outcome.notes[0].startswith(f"branch longshot/{OLD} stays in {work}")


def test_a_merged_result_that_is_checked_out_stays(tmp_path):
    git(tmp_path, "clone", "-q", str(bare(tmp_path / "origin.git", {"a.py": "1\n"})), "work")
    work = tmp_path / "work"
    git(work, "remote", "remove", "origin")
    world = World(tmp_path, work, repository=str(work), build=OLD)
    landed(world)
    finish(world)
    git(work, "checkout", "-q", f"longshot/{OLD}")
    git(work, "branch", "-q", "-f", "main", f"longshot/{OLD}")
    (outcome,) = clean(world.home)
    assert git(work, "rev-parse", "--abbrev-ref", "HEAD") == f"longshot/{OLD}"
    assert outcome.notes[0].startswith(f"branch longshot/{OLD} stays in")


def test_a_repository_on_this_host_that_is_gone_keeps_nothing_from_going(world):
    finish(world)
    world.origin.rename(world.root / "away")
    (outcome,) = clean(world.home)
    assert outcome.notes == [] and Ledger(world.home.builds).builds() == []


# --- crashes ---------------------------------------------------------------------------------------------------------

STEPS = [
    (cleaning, "take_from_target"),
    (cleaning, "take_from_mirror"),
    (build_refs, "in_mirror"),
    (cleaning, "accounts_file"),
    (cleaning.shutil, "rmtree"),
    (cleaning.Cleaning, "_forgotten_by_dagster"),
]


@pytest.mark.parametrize(("where", "name"), STEPS, ids=[name for _, name in STEPS])
def test_a_clean_that_died_is_finished_by_the_next(world, where, name, monkeypatch):
    finish(world)
    found = Cleaning(world.home, Clock(40), None)
    (removal,) = found.due(30)

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(where, name, die)
        with pytest.raises(KeyboardInterrupt):
            found.take_away(removal)
    again = Cleaning(world.home, Clock(2), None)  # begun is begun, whatever the age asked for now
    (rest,) = again.due(30)
    assert rest.ended is None and again.one(OLD).leaving == rest.leaving
    again.take_away(rest)
    assert refs(world.origin) == {"refs/heads/main"}
    assert not [r for r in refs(world.mirror.path) if OLD in r]
    assert [p for p in world.home.root.rglob(f"*{OLD}*") if ".lock" not in p.name] == []


def test_a_new_build_that_took_the_name_of_a_half_removed_one_is_left_alone(world, tmp_path):
    finish(world)
    api = ScriptedDagster([], answers=False)
    (outcome,) = clean(world.home, api=api)
    assert outcome.waits
    again = World(tmp_path, world.origin, world.settings, OLD)
    again.ledger.save_request(again.request.model_copy(update={"created_at": 2.0}))
    assert clean(world.home, older_than=0) == []
    assert list(world.home.leaving.iterdir()) == []
    assert Ledger(world.home.builds).builds() == [OLD]


def test_two_cleans_at_once_are_one_too_many(world):
    one, two = Cleaning(world.home, Clock(1), None), Cleaning(world.home, Clock(1), None)
    with one.alone(), pytest.raises(WrongUse, match="another `longshot clean` is at work"), two.alone():
        pass


# --- dagster ---------------------------------------------------------------------------------------------------------


def test_dagsters_runs_logs_and_partitions_go_once_it_answers(world):
    finish(world)
    tags = {"by tag": {"longshot/build": OLD}, "by task": {"dagster/partition": f"{OLD}.r001-01"}}
    runs = [ActiveRun(name, "SUCCESS", "j", t) for name, t in tags.items()]
    runs += [ActiveRun("build", "FAILURE", "j", {"dagster/partition": OLD})]
    runs += [ActiveRun("other", "SUCCESS", "j", {"dagster/partition": f"{OLD}2.root.001"})]
    for run in runs:
        (world.home.dagster / "io" / run.id).mkdir(parents=True)
        (world.home.dagster / run.id / "compute_logs").mkdir(parents=True)
        for suffix in (".db", ".db-wal"):
            (world.home.dagster / f"{run.id}{suffix}").touch()
    api = ScriptedDagster(runs, answers=False)
    assert clean(world.home, api=api)[0].waits
    api.answers = True
    assert clean(world.home, days=1, api=api)[0].waits is False
    assert [r.id for r in api.runs] == ["other"]
    left = sorted(str(p.relative_to(world.home.dagster)) for p in world.home.dagster.rglob("*"))
    assert left == ["io", "io/other", "other", "other.db", "other.db-wal", "other/compute_logs"]
    assert api.forgotten == {"tasks": [f"{OLD}.r001-01"], "iterations": [f"{OLD}.root.001"], "builds": [OLD]}
    assert list(world.home.leaving.iterdir()) == []


@pytest.mark.parametrize("status", ["QUEUED", "STARTED", "CANCELING"])
def test_a_build_of_which_a_run_has_not_ended_is_kept(world, status):
    """A retry that waits for a slot: its build is finished until that begins."""
    finish(world)
    before = refs(world.origin)
    retry = ActiveRun("retry", status, "__ASSET_JOB", {"longshot/build": OLD, "dagster/partition": f"{OLD}.r001-01"})
    api = ScriptedDagster([retry])
    (outcome,) = clean(world.home, api=api)
    assert outcome.notes == ["kept: a run of it has not ended"]
    assert refs(world.origin) == before and Ledger(world.home.builds).builds() == [OLD]
    api.runs = []
    clean(world.home, api=api)
    assert Ledger(world.home.builds).builds() == []


# --- what belongs to nobody ------------------------------------------------------------------------------------------


def aged(path: Path, seconds: float) -> Path:
    at = time.time() - seconds
    os.utime(path, (at, at))
    return path


def sandbox(home: Home, name: str, build: str, ends_in: float) -> Path:
    folder = home.sandboxes / name
    (folder / "root").mkdir(parents=True)
    meta = {"tags": {"build": build}, "created_at": 1.0, "ends_at": time.time() + ends_in}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    return folder


def test_sandboxes_of_a_build_go_with_it_and_others_stay(world):
    finish(world)
    mine, other = sandbox(world.home, "sb-1", OLD, 60), sandbox(world.home, "sb-2", OTHER, 60)
    clean(world.home)
    assert (mine.exists(), other.exists()) == (False, True)


def test_only_what_nobody_can_be_working_on_is_a_leftover(tmp_path):
    home = Home(tmp_path / "home")
    over, alive = sandbox(home, "sb-over", OTHER, -2 * 3_600), sandbox(home, "sb-alive", OTHER, 60)
    dead, being_made = home.sandboxes / "sb-dead", home.sandboxes / "sb-made"
    half, starting = home.builds / "half-1111", home.builds / "half-2222"
    for folder in (dead, being_made, half, starting):
        folder.mkdir()
    aged(dead, 2 * 3_600)
    aged(half, 2 * DAY)
    leases.hold(home, "held")
    for run in ("held", "active", "ended", "young"):
        (home.leases / f"run-{run}").touch()
        aged(home.leases / f"run-{run}", 0 if run == "young" else 2 * 3_600)
    running = ScriptedDagster([ActiveRun("active", "STARTED", "j", {})])
    found = Leftovers(home, running).found()
    assert [o.path for o in found] == [dead, over, half, home.leases / "run-ended"]
    for leftover in found:
        Leftovers(home, running).take_away(leftover)
    assert not any(o.path.exists() for o in found)
    assert all(p.exists() for p in (alive, being_made, starting, home.leases / "run-active"))
    assert Leftovers(home, None).found() == []


def test_a_mirror_without_builds_goes_unless_a_build_is_just_starting(world):
    finish(world)
    clean(world.home)
    starting = ScriptedDagster([ActiveRun("1", "STARTED", "start_build", {})])
    assert Leftovers(world.home, starting).idle_mirrors() == []
    (idle,) = Leftovers(world.home, None).idle_mirrors()
    assert idle.path == world.mirror.path and idle.what == f"mirror of {world.origin}"
    Leftovers(world.home, None).take_away(idle)
    assert not world.mirror.path.exists()


def test_the_builds_that_are_about_to_go_do_not_keep_their_mirror(world):
    finish(world)
    assert Leftovers(world.home, None).idle_mirrors() == []
    assert len(Leftovers(world.home, None).idle_mirrors(frozenset({OLD}))) == 1


def test_packing_keeps_everything_that_is_named_and_what_has_landed(world):
    landed(world, "r001-02")
    commit_on(world.origin, "main", {"stranger.py": "1\n"})
    landed(world, "r001-03")
    head, mirror = world.main(), world.mirror.path
    finish(world)
    for loose in (mirror / "objects").glob("??/*"):
        aged(loose, 3 * DAY)
    assert Leftovers(world.home, None).pack_mirrors(frozenset()) == []
    assert len(list((mirror / "objects").glob("??/*"))) > 0, "a mirror that nothing was taken from is left alone"
    assert Leftovers(world.home, None).pack_mirrors(frozenset({mirror})) == []
    assert len(list((mirror / "objects").glob("??/*"))) == 0
    git(mirror, "fsck", "--connectivity-only", head)
