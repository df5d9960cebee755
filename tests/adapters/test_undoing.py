"""Undo against real repositories: what is taken back, what refuses, and that it happens once and in one push."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from repositories import BUILD, Edits, World, bare, commit_on, files_at, git, trailers

from longshot_dagster.adapters.builds.undoing import Undoing
from longshot_dagster.adapters.repository.landed import already_landed
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.errors import RepositoryError, WrongUse
from longshot_dagster.core.landing_records import LandingState
from longshot_dagster.core.models import (
    BuildPhase,
    BuildReport,
    Task,
    Verdict,
)
from longshot_dagster.core.settings import MergeStrategy, Settings

FILES = {"README.md": "hello\n", "src/a.py": "a = 1\n", "src/b.py": "b = 1\n"}


def world_of(tmp_path: Path, strategy: str = "squash", files: dict[str, str] | None = None) -> World:
    return World(tmp_path, bare(tmp_path / "origin.git", files or FILES), Settings(merge_strategy=strategy))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return world_of(tmp_path)


def land(world: World, name: str, *commits: Edits) -> Task:
    [task] = land_all(world, {name: commits})
    return task


def land_all(world: World, work: Mapping[str, Sequence[Edits]], base: str | None = None) -> list[Task]:
    """Tasks whose workers began on the same base, all landed with one push, in the order of their names."""
    base = base or world.mirror.fetch()
    tasks = [world.task(name, ("src/", "x/")) for name in work]
    world.plan(*tasks)
    for task, head in zip(tasks, committed(world, work, base), strict=True):
        world.delivered(task, base, head)
    assert {o.state for o in world.queue().drain()} == {LandingState.LANDED}
    return tasks


def committed(world: World, work: Mapping[str, Sequence[Edits]], base: str) -> list[str]:
    """The heads of these branches, made where intake puts them; how they get there is not tested here."""
    stream = []
    for task, commits in work.items():
        for edits in commits:
            stream.append(f"commit refs/longshot/work/{world.build}/{task}\nmark :1\n")
            stream.append("author A Worker <worker@example.invalid> 1700000000 +0000\n")
            stream.append("committer A Worker <worker@example.invalid> 1700000000 +0000\ndata 5\nwork\n\n")
            stream.append(f"from {base}\n" if edits is commits[0] else "")
            stream += [f"M 644 inline {n}\ndata {len(t)}\n{t}\n" for n, t in edits.items() if isinstance(t, str)]
        stream.append("get-mark :1\n")
    out = git(
        world.mirror.path, "fast-import", "--quiet", "--date-format=raw", "--force", stdin="".join(stream).encode()
    )
    return out.split()


def pause(world: World) -> None:
    world.ledger.update_state(lambda s: s.paused("cancelled by hand"))


def undoing(world: World) -> Undoing:
    return Undoing(world.home, world.ledger, SystemClock())


def undo(world: World, task: str | None):
    pause(world)
    one = undoing(world)
    return one.carry_out(one.concerned(task))


def refusal(world: World, task: str | None) -> str:
    head, facts = world.main(), {t: world.ledger.landing(t) for t in world.ledger.task_ids()}
    with pytest.raises(WrongUse) as refused:
        undo(world, task)
    assert world.main() == head, "a refused undo changes nothing"
    assert {t: world.ledger.landing(t) for t in world.ledger.task_ids()} == facts
    return str(refused.value)


def pushes(world: World) -> Path:
    """A file with one line for every push the target has taken."""
    log, script = world.root / "pushes", world.origin / "hooks/post-receive"
    script.write_text(f"#!/bin/sh\necho x >> {log}; cat > /dev/null\n")
    script.chmod(0o755)
    log.touch()
    return log


# --- one task --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", list(MergeStrategy))
def test_whatever_the_strategy_a_task_of_two_commits_is_taken_back_by_one(tmp_path, strategy):
    world = world_of(tmp_path, strategy)
    base = world.mirror.fetch()
    if strategy is not MergeStrategy.FAST_FORWARD:
        commit_on(world.origin, "main", {"other.txt": "stranger\n"})
    before = world.main()
    [task] = land_all(world, {"r001-02": ({"src/a.py": "a = 2\n"}, {"src/a.py": "a = 3\n", "x/n.py": "n\n"})}, base)
    assert world.ledger.landing("r001-02").strategy == strategy.value
    landed = world.main()
    done = undo(world, "r001-02")
    outcome = world.ledger.landing("r001-02")
    assert outcome.state is LandingState.UNDONE
    assert (outcome.undone_by, outcome.reason) == (world.main(), f"taken back by {world.main()[:12]}")
    assert (done.before, done.head, done.outcomes) == (landed, world.main(), (outcome,))
    assert git(world.origin, "rev-parse", "main^") == landed
    assert git(world.origin, "rev-parse", "main^{tree}") == git(world.origin, "rev-parse", f"{before}^{{tree}}")
    assert git(world.origin, "log", "-1", "--format=%s", "main") == "Undo: Do r001-02"
    assert trailers(world.origin, "main") == [f"Longshot-Build: {BUILD}", "Longshot-Undo: r001-02"]
    there = already_landed(world.mirror.git, world.request, world.queue()._read_remote())
    assert {t for t, _ in there} == {"r001-02"}
    assert world.main() not in {c for commits in there.values() for c in commits}, "a revert is no landing"
    assert world.queue().land(task) == outcome, "the queue lands nothing again that was taken back"


def test_a_fast_forward_of_which_only_the_tip_is_recorded_is_taken_back_whole(tmp_path):
    world = world_of(tmp_path, "fast-forward")
    task = land(world, "r001-01", {"src/a.py": "a = 2\n"}, {"src/b.py": "b = 2\n"})
    landing = world.ledger.landing(task.id)
    assert landing.strategy == "fast-forward"
    world.ledger.save_landing(landing.model_copy(update={"commits": landing.commits[-1:]}))
    undo(world, "r001-01")
    assert files_at(world.origin) == {n: t.strip() for n, t in FILES.items()}


def test_the_ledgers_new_facts_travel_in_the_same_push(world):
    land(world, "r001-01", {"src/a.py": "a = 2\n"})
    log = pushes(world)
    undo(world, "r001-01")
    assert log.read_text() == "x\n"
    pushed = json.loads(git(world.origin, "show", f"refs/longshot/{BUILD}:tasks/r001-01/landing.json"))
    assert (pushed["state"], pushed["undone_by"]) == ("undone", world.main())


def test_commits_of_people_stay_also_one_that_comes_between_look_and_push(world):
    land(world, "r001-01", {"src/a.py": "a = 2\n", "src/n.py": "n\n"})
    commit_on(world.origin, "main", {"README.md": "by hand\n"})
    pause(world)
    one, raced = undoing(world), []
    push = one._mirror.push

    def late(updates):
        if not raced:
            raced.append(commit_on(world.origin, "main", {"late.txt": "late\n"}))
        return push(updates)

    one._mirror.push = late
    one.carry_out(["r001-01"])
    assert git(world.origin, "rev-parse", "main^") == raced[0]
    assert files_at(world.origin) == {
        "README.md": "by hand",
        "src/a.py": "a = 1",
        "src/b.py": "b = 1",
        "late.txt": "late",
    }


def test_a_push_the_target_refuses_changes_nothing_and_says_why(world):
    land(world, "r001-01", {"src/a.py": "a = 2\n"})
    script = world.origin / "hooks/update"
    script.write_text('#!/bin/sh\necho "main is protected" >&2; exit 1\n')
    script.chmod(0o755)
    head = world.main()
    pause(world)
    with pytest.raises(RepositoryError, match="main is protected"):
        undoing(world).carry_out(["r001-01"])
    assert (world.main(), world.ledger.landing("r001-01").state) == (head, LandingState.LANDED)


def test_a_crash_between_push_and_ledger_is_made_good_without_a_second_commit(world):
    land(world, "r001-01", {"src/a.py": "a = 2\n"})
    landed = world.ledger.landing("r001-01")
    undo(world, "r001-01")
    head = world.main()
    world.ledger.save_landing(landed)
    done = undo(world, "r001-01")
    assert world.main() == head
    assert [(o.state, o.undone_by) for o in done.outcomes] == [(LandingState.UNDONE, head)]


def test_what_somebody_took_away_before_is_noted_and_nothing_is_pushed(world):
    land(world, "r001-01", {"src/a.py": "a = 2\n"})
    commit_on(world.origin, "main", {"src/a.py": "a = 1\n"}, "Revert it")
    head = world.main()
    undo(world, "r001-01")
    assert (world.main(), world.ledger.landing("r001-01").reason) == (head, "main held nothing of it any more")


def test_what_was_forced_off_the_branch_is_noted_as_gone(world):
    land(world, "r001-01", {"src/a.py": "a = 2\n"})
    git(world.origin, "update-ref", "refs/heads/main", world.request.base)
    done = undo(world, "r001-01")
    assert [o.reason for o in done.outcomes] == ["its commits were not on main any more"]
    assert world.main() == world.request.base


def test_a_rename_by_somebody_else_is_followed(world):
    long = "".join(f"line {n}\n" for n in range(30))
    commit_on(world.origin, "main", {"src/long.py": long})
    land(world, "r001-01", {"src/long.py": long.replace("line 7", "seven")})
    commit_on(world.origin, "main", {"src/long.py": None, "src/moved.py": long.replace("line 7", "seven")})
    undo(world, "r001-01")
    assert files_at(world.origin)["src/moved.py"] == long.strip()


def test_a_build_under_way_is_refused(world):
    land(world, "r001-01", {"src/a.py": "a = 2\n"})
    with pytest.raises(WrongUse, match=rf"{BUILD} is under way; `longshot cancel {BUILD}` first"):
        undoing(world).preview(["r001-01"])


def test_a_finished_builds_report_follows_also_after_a_crash(world):
    land(world, "r001-01", {"src/a.py": "a = 2\n"})
    report = BuildReport(
        build=BUILD, verdict=Verdict.GREEN, head=world.main(), branch="main", tasks=1, landed=1, superseded=0, health="green"
    )  # fmt: skip
    for phase in (BuildPhase.FINALIZING, BuildPhase.FINISHED):
        world.ledger.update_state(lambda s, phase=phase: s.moved(phase, verdict=Verdict.GREEN))
    world.ledger.save_report(report)
    undoing(world).carry_out(["r001-01"])
    after = world.ledger.report()
    assert (after.verdict, after.landed, after.head) == (Verdict.LEFTOVERS, 0, world.main())
    assert [(x.task, x.state) for x in after.leftovers] == [("r001-01", "undone")]
    assert (world.ledger.state().phase, world.ledger.state().verdict) == (BuildPhase.FINISHED, Verdict.LEFTOVERS)
    pushed = json.loads(git(world.origin, "show", f"refs/longshot/{BUILD}:report.json"))
    assert pushed["verdict"] == "leftovers"
    assert "undone" in (Path(str(world.ledger.directory)) / "report.md").read_text()
    world.ledger.save_report(report)
    undoing(world).retell()
    assert world.ledger.report().verdict is Verdict.LEFTOVERS


# --- dependants ------------------------------------------------------------------------------------------------------


def test_a_task_that_others_build_on_is_refused_until_these_are_undone(world):
    land(world, "r001-01", {"src/a.py": "a = 2\n"})
    land(world, "r001-02", {"src/b.py": "b = 5\n"})
    land(world, "r001-03", {"src/a.py": "a = 3\n"})
    line = refusal(world, "r001-01")
    assert (
        line
        == f"r001-01 was not undone: {BUILD}.r001-03 builds on it (src/a.py); first `longshot undo {BUILD}.r001-03`"
    )
    undo(world, "r001-03")
    undo(world, "r001-01")
    assert files_at(world.origin) == {"README.md": "hello", "src/a.py": "a = 1", "src/b.py": "b = 5"}


def test_a_fast_forward_and_a_task_of_another_build_are_named_too(tmp_path):
    world = world_of(tmp_path, "fast-forward")
    land(world, "r001-01", {"src/n.py": "one\n"})
    other = World(tmp_path, world.origin, Settings(merge_strategy="fast-forward"), build="other-1111")
    land(other, "r005-05", {"src/n.py": "one\ntwo\n"})
    assert "other-1111.r005-05 builds on it (src/n.py)" in refusal(world, "r001-01")


def test_a_persons_commit_that_builds_on_it_is_named(world):
    land(world, "r001-01", {"src/n.py": "one\n"})
    oid = commit_on(world.origin, "main", {"src/n.py": "one\ntwo\n"}, "Add two \x1b[31mred")
    line = refusal(world, "r001-01")
    assert f"commit {oid[:12]} of A Worker (Add two \ufffd[31mred) builds on it (src/n.py)" in line
    assert line.endswith(f"first `git revert {oid[:12]}`")


@pytest.mark.parametrize("trailer", ["Task", "Undo"])
def test_what_a_stranger_writes_into_a_trailer_is_never_part_of_a_command(world, trailer):
    land(world, "r001-01", {"src/n.py": "one\n"})
    forged = f"Add two\n\nLongshot-Build: $(touch x)\nLongshot-{trailer}: r001-02`id`\n"
    oid = commit_on(world.origin, "main", {"src/n.py": "one\ntwo\n"}, forged)
    line = refusal(world, "r001-01")
    assert line.endswith(
        f"commit {oid[:12]} of A Worker (Add two) builds on it (src/n.py); first `git revert {oid[:12]}`"
    )


def test_a_strangers_commit_that_claims_to_be_the_undo_is_not_taken_for_it(world):
    land(world, "r001-01", {"src/a.py": "a = 2\n"})
    forged = commit_on(world.origin, "main", {}, f"Nothing\n\nLongshot-Build: {BUILD}\nLongshot-Undo: r001-01\n")
    undo(world, "r001-01")
    outcome = world.ledger.landing("r001-01")
    assert (outcome.state, outcome.undone_by) == (LandingState.UNDONE, world.main())
    assert git(world.origin, "rev-parse", "main^") == forged
    assert files_at(world.origin)["src/a.py"] == "a = 1"


# --- a whole build ---------------------------------------------------------------------------------------------------


def test_a_whole_build_is_taken_back_newest_first_in_one_push(world):
    before = files_at(world.origin)
    land(world, "r001-01", {"src/a.py": "a = 2\n"})
    land(world, "r001-03", {"src/a.py": "a = 3\n"})
    land(world, "r001-02", {"src/a.py": "a = 4\n", "x/y.txt": "y\n"})
    commit_on(world.origin, "main", {"z.txt": "z\n"})
    log = pushes(world)
    done = undo(world, None)
    assert log.read_text() == "x\n"
    assert [o.task for o in done.outcomes] == ["r001-02", "r001-03", "r001-01"]
    assert world.log("-3") == ["Undo: Do r001-01", "Undo: Do r001-03", "Undo: Do r001-02"]
    assert files_at(world.origin) == before | {"z.txt": "z"}


def test_a_whole_build_is_left_whole_when_somebody_builds_on_one_task(world):
    land(world, "r001-01", {"src/n.py": "one\n"})
    land(world, "r001-02", {"src/n.py": "one\ntwo\n"})
    land(world, "r001-03", {"src/b.py": "b = 7\n"})
    oid = commit_on(world.origin, "main", {"src/n.py": "one\ntwo\nthree\n"}, "Three")
    line = refusal(world, None)
    assert line.startswith(f"r001-02 was not undone: commit {oid[:12]} of A Worker (Three) builds on it")


# --- twenty of many --------------------------------------------------------------------------------------------------

FILLED = {f"src/m{n}.py": "".join(f"m{n} line {i}\n" for i in range(30)) for n in range(12)}


@dataclass
class Grown:
    """A build of many landed tasks, and, by construction, which tasks stand on which."""

    world: World
    on: dict[str, set[str]] = field(default_factory=dict)  # task -> tasks whose lines it changes
    names: list[str] = field(default_factory=list)

    def dependants(self, task: str) -> list[str]:
        """In landing order, whoever stands on it or on one who does."""
        found: list[str] = []
        for name in self.names:
            if self.on[name] & {task, *found}:
                found.append(name)
        return found


def grow(world: World, count: int, chance: random.Random) -> Grown:
    """Land `count` tasks, a few at a time: most on lines of their own, some on lines or files that others have made."""
    grown, files = Grown(world), dict(FILLED)
    free = [(f, i) for f in FILLED for i in range(4, 30, 7)]
    chance.shuffle(free)
    ripe: list[tuple[str, int, str]] = []  # places of landed tasks that nobody has built on
    while len(grown.names) < count:
        fresh, wave = [], dict[str, list[Edits]]()
        before = dict(files)
        for number in range(len(grown.names), min(count, len(grown.names) + 5)):
            name = f"r{number // 9 + 1:03d}-{number % 9 + 1:02d}"
            kind = chance.choice(["own", "own", "new", "on", "on", "both"]) if ripe else "own"
            places = [(*free.pop(), name)] if kind in ("own", "both") else []
            grown.on[name] = set()
            edits: dict[str, str] = {}
            if kind == "new":
                edits[f"x/{name}.txt"] = "".join(f"{name} {i}\n" for i in range(9))
                fresh.append((f"x/{name}.txt", 4, name))
            if kind in ("on", "both"):
                file, line, below = ripe.pop(chance.randrange(len(ripe)))
                grown.on[name].add(below)
                places.append((file, line, name))
            for file, line, _ in places:
                edits[file] = _edit(edits.get(file, before[file]), line, name)
                files[file] = _edit(files[file], line, name)
            files |= {n: t for n, t in edits.items() if n not in files}
            fresh += places
            wave[name] = [edits]
        land_all(world, wave)
        grown.names += wave
        ripe += fresh
        if len(grown.names) == 10:
            commit_on(world.origin, "main", {"PEOPLE.md": "were here\n"})
    return grown


def _edit(text: str, line: int, word: str) -> str:
    lines = text.splitlines(keepends=True)
    lines[line] = f"{lines[line].rstrip()} {word}\n"
    return "".join(lines)


def replayed_without(grown: Grown, clone: Path, task: str) -> str | None:
    """The tree that git's own rebase gives when the landed commit is left out of the branch; None when it cannot."""
    [commit] = grown.world.ledger.landing(task).commits
    try:
        git(clone, "rebase", "-q", "--onto", f"{commit}^", commit, "origin/main")
    except AssertionError:
        git(clone, "rebase", "--abort")
        return None
    return git(clone, "rev-parse", "HEAD^{tree}")


def test_twenty_random_tasks_of_a_build_leave_what_the_build_had_been_without_them_or_name_who_stands_on_them(tmp_path):
    chance = random.Random(20)
    world = world_of(tmp_path, files=FILLED)
    grown = grow(world, 26, chance)
    pause(world)
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(world.origin), str(clone))
    free = 0
    for task in chance.sample(grown.names, 20):
        tree, standing = replayed_without(grown, clone, task), grown.dependants(task)
        if not standing:
            done = undoing(world).preview([task])
            assert git(world.mirror.path, "rev-parse", f"{done.head}^{{tree}}") == tree is not None
            free += 1
            continue
        assert tree is None, f"{task}: git finds nobody in the way, the test meant {standing}"
        with pytest.raises(WrongUse) as refused:
            undoing(world).preview([task])
        ways = [f"`longshot undo {BUILD}.{name}`" for name in reversed(standing)]
        assert str(refused.value).endswith(f"first {', then '.join(ways[:5])}")
    assert 5 <= free <= 15
    undo(world, None)
    assert files_at(world.origin) == {n: t.strip() for n, t in FILLED.items()} | {"PEOPLE.md": "were here"}
