"""Protected paths against a real repository: withheld, shown, approved by a person, and then landed as they were shown."""

from pathlib import Path

import pytest
from repositories import BUILD, World, bare, commit_on, files_at, git, trailers

from longshot_dagster.adapters.builds.undoing import Undoing
from longshot_dagster.adapters.landing.approved_parts import ApprovedParts
from longshot_dagster.adapters.landing.approving import Approving
from longshot_dagster.adapters.ledger.approvals import approval_of, save_approval
from longshot_dagster.adapters.ledger.checkpoint import Checkpoint
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.errors import RepositoryError, WrongUse
from longshot_dagster.core.landing_records import ConcernKind, LandingState
from longshot_dagster.core.models import BuildPhase
from longshot_dagster.core.settings import Settings

CI = ".github/workflows/ci.yml"
FILES = {"README.md": "hello\n", "src/a.py": "a = 1\n", "pytest.ini": "[pytest]\n", CI: "on: push\n"}
NAME = "r001-01"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, bare(tmp_path / "origin.git", FILES))


def approving(world: World) -> Approving:
    return Approving(world.home, world.ledger, SystemClock())


def one(world: World, scope, edits, name=NAME, **more):
    task = world.task(name, scope)
    world.plan(task)
    world.worked(task, edits, **more)
    return task, world.queue().land(task)


def approved(world: World, name: str = NAME):
    found = approving(world)
    proposal = found.proposal(name)
    found.approve(proposal)
    return found.land(proposal)


def test_the_rest_lands_at_once_and_the_protected_part_when_it_is_approved(world):
    _, first = one(world, ("src/", CI), {"src/a.py": "a = 2\n", CI: "on: pull_request\n"})
    assert first.state is LandingState.LANDED and first.landed_paths == ("src/a.py",)
    assert first.withheld_paths == (CI,) and first.reason.startswith(f"waits for approval of {CI}: longshot approve")
    assert files_at(world.origin)[CI] == "on: push"
    proposal = approving(world).proposal(NAME)
    assert [c.path for c in proposal.changes] == [CI] and "+on: pull_request" in proposal.diff
    assert "src/a.py" not in proposal.diff and not proposal.cut
    commit_on(world.origin, "main", {"other.txt": "stranger\n"})
    outcome = approved(world)
    assert outcome.state is LandingState.LANDED and outcome.landed_paths == ("src/a.py", CI)
    assert outcome.withheld_paths == () and outcome.reason == ""
    assert {c.kind for c in outcome.concerns} == {ConcernKind.SQUASHED}
    assert len(outcome.commits) == 2 and outcome.commits[1] == world.main()
    assert outcome.approved.digest == proposal.digest and "@" in outcome.approved.by and outcome.approved.at > 1e9
    assert files_at(world.origin)[CI] == "on: pull_request" and files_at(world.origin)["other.txt"] == "stranger"
    assert f"Longshot-Task: {NAME}" in trailers(world.origin, "main")
    assert world.ledger.landing(NAME) == outcome
    with pytest.raises(WrongUse, match="landed already"):
        approving(world).proposal(NAME)


def test_a_task_that_changes_nothing_else_waits_whole_and_lands_whole(world):
    task, first = one(world, (CI,), {CI: "on: pull_request\n"})
    assert first.state is LandingState.WITHHELD and first.reason.startswith("waits for approval")
    assert world.queue().land(task) == first
    outcome = approved(world)
    assert outcome.state is LandingState.LANDED and outcome.approved is not None and outcome.reason == ""
    assert files_at(world.origin)[CI] == "on: pull_request"
    assert outcome.strategy == "rebase"


def test_what_landed_in_two_places_is_undone_as_one(world):
    one(world, ("src/", CI), {"src/a.py": "a = 2\n", CI: "on: pull_request\n"})
    commit_on(world.origin, "main", {"README.md": "stranger\n"})
    outcome = approved(world)
    assert len(outcome.commits) == 2
    world.ledger.update_state(lambda s: s.moved(BuildPhase.PAUSED, "x"))
    undone = Undoing(world.home, world.ledger, SystemClock()).carry_out((NAME,))
    assert [o.state for o in undone.outcomes] == [LandingState.UNDONE]
    files = files_at(world.origin)
    assert files["src/a.py"] == "a = 1" and files[CI] == "on: push" and files["README.md"] == "stranger"
    assert world.log()[0].startswith("Undo: ") and world.log()[1].startswith("Do ")


def test_another_diff_of_the_same_task_needs_another_approval(world):
    task, _ = one(world, (CI,), {CI: "on: pull_request\n"})
    found = approving(world)
    shown = found.proposal(NAME)
    found.approve(shown)
    world.ledger.forget_work(NAME)
    world.worked(task, {CI: "on: [push, pull_request_target]\n"})
    outcome = world.queue().land(task)
    assert outcome.state is LandingState.WITHHELD and outcome.approved is None
    assert not approving(world).is_approved(approving(world).proposal(NAME))
    assert files_at(world.origin)[CI] == "on: push"


def test_the_same_diff_again_is_approved_already_and_lands_by_itself(world):
    task, _ = one(world, (CI,), {CI: "on: pull_request\n"})
    found = approving(world)
    found.approve(found.proposal(NAME))
    world.ledger.forget_work(NAME)
    world.worked(task, {CI: "on: pull_request\n"})
    assert world.queue().land(task).state is LandingState.LANDED


def test_what_others_have_changed_since_is_not_merged_with_what_was_approved(world):
    one(world, ("src/", CI), {"src/a.py": "a = 2\n", CI: "on: push\n# mine\n"})
    commit_on(world.origin, "main", {CI: "# theirs\n" * 20 + "on: push\n"})
    found = approving(world)
    proposal = found.proposal(NAME)
    found.approve(proposal)
    before = world.main()
    outcome = found.land(proposal)
    assert (
        outcome.state is LandingState.LANDED and outcome.approved is None and outcome.reason.startswith("approved, but")
    )
    assert world.main() == before and outcome.concerns[-1].kind is ConcernKind.CONFLICT
    with pytest.raises(WrongUse, match="nothing of"):
        approving(world).proposal(NAME)


def test_checks_that_the_build_found_are_protected_and_those_it_wrote_itself_are_not(world):
    _, first = one(world, ("src/",), {"src/a.py": "2\n", "pytest.ini": "[pytest]\naddopts = -k nothing\n"})
    assert first.withheld_paths == ("pytest.ini",)
    _, second = one(world, ("ruff.toml",), {"ruff.toml": "line-length = 100\n"}, name="r001-02")
    assert second.landed_paths == ("ruff.toml",)
    _, third = one(world, ("ruff.toml",), {"ruff.toml": "line-length = 120\n"}, name="r001-03")
    assert third.state is LandingState.LANDED


def test_a_crash_between_push_and_ledger_does_not_land_it_twice(world):
    one(world, ("src/", CI), {"src/a.py": "a = 2\n", CI: "on: pull_request\n"})
    waits = world.ledger.landing(NAME)
    outcome = approved(world)
    head = world.main()
    world.ledger.save_landing(waits)  # as the lander that died had left it
    again = approving(world)
    proposal = again.proposal(NAME)
    assert again.is_approved(proposal)
    found = again.land(proposal)
    assert world.main() == head and found.approved == outcome.approved and found.withheld_paths == ()
    assert found.commits == outcome.commits


def test_a_finished_build_is_open_again_to_be_checked_anew(world):
    one(world, (CI,), {CI: "on: pull_request\n"})
    world.ledger.update_state(lambda s: s.moved(BuildPhase.FINALIZING))
    world.ledger.update_state(lambda s: s.moved(BuildPhase.FINISHED))
    assert approved(world).state is LandingState.LANDED
    assert world.ledger.state().phase is BuildPhase.RUNNING


def test_an_approval_is_no_fact_for_a_checkpoint_and_a_damaged_one_approves_nothing(world):
    one(world, (CI,), {CI: "on: pull_request\n"})
    found = approving(world)
    proposal = found.proposal(NAME)
    approval = found.approve(proposal)
    assert approval_of(world.ledger, NAME) == approval
    world.queue().checkpoint()
    keeper = Checkpoint(world.mirror.git, world.mirror.path, world.ledger.directory, BUILD)
    listed = git(world.mirror.path, "ls-tree", "-r", "--name-only", str(keeper.local_head()))
    assert "landing.json" in listed and "approvals" not in listed
    path = world.ledger.directory / "approvals" / f"{NAME}.json"
    path.write_bytes(path.read_bytes().replace(b'"by"', b'"bY"'))
    assert approval_of(world.ledger, NAME) is None and not found.is_approved(proposal)
    save_approval(world.ledger, approval.model_copy(update={"task": "r001-02"}))
    assert approval_of(world.ledger, "r001-02") is not None
    path.write_bytes((world.ledger.directory / "approvals" / "r001-02.json").read_bytes())
    assert approval_of(world.ledger, NAME) is None


def test_a_person_may_protect_nothing_or_more_and_set_the_size(tmp_path):
    settings = Settings(merge_strategy="rebase", protected_paths="deploy/", max_file_mb=1)
    world = World(tmp_path, bare(tmp_path / "origin.git", FILES), settings)
    edits = {CI: "on: pull_request\n", "deploy/x": "x\n", "big": "0" * ((1 << 20) + 1)}
    _, outcome = one(world, (CI, "deploy/", "big"), edits)
    assert outcome.landed_paths == (CI,) and outcome.withheld_paths == ("big", "deploy/x")
    assert {c.kind for c in outcome.concerns} >= {ConcernKind.PROTECTED, ConcernKind.TOO_LARGE}


def test_nothing_of_an_unknown_or_unlanded_task_can_be_approved(world):
    world.plan(world.task(NAME, ("src/",)))
    with pytest.raises(WrongUse, match="not tried to land"):
        approving(world).proposal(NAME)
    with pytest.raises(WrongUse, match="no task"):
        approving(world).proposal("r001-09")


def test_an_approval_whose_push_was_refused_is_carried_out_by_the_builds_next_landing(world):
    one(world, ("src/", CI), {"src/a.py": "a = 2\n", CI: "on: pull_request\n"})
    one(world, ("pytest.ini",), {"pytest.ini": "[pytest]\naddopts = -q\n"}, name="r001-02")
    hook = world.origin / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    for name in (NAME, "r001-02"):
        with pytest.raises(RepositoryError):
            approved(world, name)
    ready = ApprovedParts(world.ledger, world.request, world.mirror, SystemClock()).ready()
    assert [t.id for t in ready] == [NAME, "r001-02"]
    hook.unlink()
    outcomes = {o.task: o for o in world.queue().drain()}
    assert {t: (o.state, o.withheld_paths, o.reason) for t, o in outcomes.items()} == dict.fromkeys(
        (NAME, "r001-02"), (LandingState.LANDED, (), "")
    )
    assert all(o.approved for o in outcomes.values())
    files, head = files_at(world.origin), world.main()
    assert (files[CI], files["pytest.ini"]) == ("on: pull_request", "[pytest]\naddopts = -q")
    world.queue().drain()
    assert world.main() == head
