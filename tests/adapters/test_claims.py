"""Files that nobody owns, wanted by two at once: the first on the branch has them, whoever and wherever the two are."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from repositories import BUILD, World, bare, commit_on, files_at, git

from longshot_dagster.adapters.landing.unlanded import unlanded
from longshot_dagster.core.landing_records import ConcernKind, LandingOutcome, LandingState
from longshot_dagster.core.settings import Settings

LINES = [f"line {n}\n" for n in range(20)]
TOOL = "".join(LINES)
TOP, BOTTOM = "top\n" + TOOL, TOOL + "bottom\n"  # git merges the two without a conflict
WORK = "refs/longshot/work"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, bare(tmp_path / "origin.git", {"a": "1\n", "b": "1\n", "tool.py": TOOL}))


def strayed(world: World, scope: str, text: str, name: str = "r001-01", **more: object):
    task = world.task(name, (scope,))
    world.plan(task)
    world.worked(task, {scope: "2\n", "tool.py": text}, **more)
    return task


def another(world: World, folder: Path) -> World:
    return World(folder, world.origin, world.settings, build="other-build-2222")


def kept_back(outcome: LandingOutcome) -> str:
    """Who has it, of the one path that was withheld."""
    assert outcome.state is LandingState.LANDED and outcome.withheld_paths == ("tool.py",)
    (concern,) = (c for c in outcome.concerns if c.kind is ConcernKind.OUT_OF_SCOPE)
    return concern.text


@pytest.mark.parametrize(
    ("home", "strategy"), [(".", "rebase"), *(("elsewhere", s) for s in ("rebase", "squash", "merge-commit"))]
)
def test_of_two_builds_that_land_at_once_only_one_claims(tmp_path, home, strategy):
    settings = Settings(merge_strategy=strategy)
    first = World(tmp_path, bare(tmp_path / "origin.git", {"a": "1\n", "b": "1\n", "tool.py": TOOL}), settings)
    (tmp_path / home).mkdir(exist_ok=True)
    second = another(first, tmp_path / home)
    tasks = strayed(first, "a", TOP), strayed(second, "b", BOTTOM)
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda world, task: world.queue().land(task), (first, second), tasks))
    loser = 0 if "tool.py" in outcomes[0].withheld_paths else 1
    assert "tool.py" in outcomes[1 - loser].landed_paths
    assert kept_back(outcomes[loser]).startswith(f"tool.py: belongs to task {(BUILD, second.build)[1 - loser]}.r001-01")
    assert files_at(first.origin)["tool.py"] + "\n" == (TOP, BOTTOM)[1 - loser]


def test_what_a_lander_claimed_that_died_before_writing_it_down_stays_claimed(world):
    second = another(world, world.root)
    first, late = strayed(world, "a", TOP), strayed(second, "b", BOTTOM)
    third = strayed(world, "c", BOTTOM, name="r001-02")
    assert world.queue().land(first).state is LandingState.LANDED
    (world.ledger.directory / "tasks" / first.id / "landing.json").unlink()
    assert f"{BUILD}.r001-01" in kept_back(second.queue().land(late))
    assert f"{BUILD}.r001-01" in kept_back(world.queue().land(third))


def test_what_a_person_changed_meanwhile_is_nobodys_claim(world):
    task = strayed(world, "a", TOP)
    commit_on(world.origin, "main", {"tool.py": BOTTOM})
    outcome = world.queue().land(task)
    assert outcome.withheld_paths == () and files_at(world.origin)["tool.py"] == ("top\n" + BOTTOM).strip()


def test_what_was_withheld_of_a_landed_branch_stays_on_the_target_until_the_build_is_cleaned(world):
    first, second = world.task("r001-01", ("a",)), world.task("r001-02", ("b",))
    world.plan(first, second)
    head = world.worked(first, {"a": "2\n", "b": "mine\n"})
    queue = world.queue()
    assert queue.land(first).withheld_paths == ("b",)
    kept = f"{head} commit\t{WORK}/{BUILD}/r001-01"
    assert git(world.origin, "for-each-ref", WORK) == kept
    assert git(world.origin, "show", f"{WORK}/{BUILD}/r001-01:b") == "mine"
    world.worked(second, {"b": "2\n", "package-lock.json": "{}\n"})
    assert queue.land(second).withheld_paths == ("package-lock.json",)
    assert git(world.origin, "for-each-ref", WORK) == kept, "what a tool can make again needs no ref"
    assert unlanded(world.ledger) == {"r001-01": head}
