"""A build brought back from its checkpoint alone: what returns, what is done again, and what a hostile one may not do."""

import copy
import json
import shutil
from pathlib import Path

import pytest
from repositories import BUILD, World, bare, commit_on, files_at, git

from longshot_dagster.adapters.builds.restoring import Restoring, behind
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.ledger import BuildLedger
from longshot_dagster.adapters.ledger.orchestrator import DOCUMENT, identity
from longshot_dagster.adapters.repository.mirror import Mirror
from longshot_dagster.adapters.sandboxes.providers import decided
from longshot_dagster.adapters.settings import resolve
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.errors import RepositoryError, TakenOver, WrongUse
from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.landing_records import LandingState
from longshot_dagster.core.models import SCHEMA, BuildPhase, HandoffStatus, MetricsSnapshot, Sweep
from longshot_dagster.core.orchestrating import Hold
from longshot_dagster.core.restoring import THE_BUILDS_OWN
from longshot_dagster.core.settings import Settings
from longshot_dagster.version import __version__

REF = f"refs/longshot/{BUILD}"
FILES = {"a.py": "a = 1\n", "b.py": "b = 1\n", "c.py": "c = 1\n"}


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Path]:
    """Made once, and a copy of it that no test touches."""
    root = tmp_path_factory.mktemp("half") / "at"
    made = half_done(World(root / "one", bare(root / "origin.git", FILES)))
    shutil.copytree(root, root.with_name("kept"), symlinks=True)
    return made, root


@pytest.fixture
def world(half: tuple[World, Path]) -> World:
    """Half a build: one task landed, one withheld, one in conflict, one never begun; all pushed.

    Put back where it was made, since it knows its own path.
    """
    made, root = half
    shutil.rmtree(root)
    shutil.copytree(root.with_name("kept"), root, symlinks=True)
    name = made.home.root / "orchestrator"  # which holds its own inode, so that a copied home is another one
    name.write_text(f"{name.read_text().split()[0]} {name.stat().st_ino}\n")
    found = copy.copy(made)
    found.mirror = Mirror(found.home, found.request.target)
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, str]:
    root = tmp_path_factory.mktemp("pushed")
    made = half_done(World(root / "one", bare(root / "origin.git", FILES)))
    return made, git(made.origin, "rev-parse", REF)


@pytest.fixture
def pushed(built: tuple[World, str]) -> World:
    """The same for tests that only change the checkpoint: made once, its checkpoint put back each time."""
    made, checkpoint = built
    git(made.origin, "update-ref", REF, checkpoint)
    return made


def half_done(world: World) -> World:
    scopes = {"r001-01": ("a.py",), "r001-02": ("b.py",), "r001-03": ("c.py",), "r001-04": ("d.py",)}
    tasks = {name: world.task(name, scope) for name, scope in scopes.items()}
    world.plan(*tasks.values())
    world.ledger.save_planner_turn("root", 1, turn())
    base = world.mirror.fetch()
    world.worked(tasks["r001-02"], {"b.py": "b = 2\n"}, status=HandoffStatus.PARTIAL)
    world.worked(tasks["r001-03"], {"c.py": "c = 2\n"}, base=base)
    commit_on(world.origin, "main", {"c.py": "c = 3\n"})
    world.worked(tasks["r001-01"], {"a.py": "a = 2\n"})
    assert {o.state.value for o in world.queue().drain()} == {"landed", "withheld", "conflict"}
    world.ledger.save_sweep(Sweep(number=1, head=world.main(), started_at=1.0, ended_at=2.0))
    assert world.queue().checkpoint() is None
    return world


def turn() -> bytes:
    return json.dumps({"iteration": "root.001", "head": "a" * 40, "reply": {"tasks": []}, "messages": []}).encode()


def elsewhere(world: World, name: str = "two", land_on: str | None = None, **given: object) -> Restoring:
    home = Home(world.root.parent / name / "home")
    resolved = resolve({}, {k: str(v) for k, v in given.items()}, {}, None, None)
    return Restoring(home, world.repository or str(world.origin), resolved, land_on, SystemClock())


def restored(restoring: Restoring, build: str = BUILD, **launched: int) -> tuple[BuildLedger, list[str]]:
    return restoring.carry_out(restoring.read(build), launched, rehearsal=False)


def facts(ledger: BuildLedger) -> dict[str, bytes]:
    folder = Path(str(ledger.directory))
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.json")}


def forged(world: World, **documents: str | bytes | None) -> None:
    """The checkpoint as anybody who can push could have written it. `__` stands for `/` and `_json` for the ending."""
    stream = b"commit refs/forged\ncommitter x <x@x> 1 +0000\ndata 1\nx\n"
    stream += f"from {git(world.origin, 'rev-parse', REF)}\n".encode()
    for name, content in documents.items():
        path = name.replace("__", "/").replace("_json", ".json")
        if content is None:
            stream += f"D {path}\n".encode()
        else:
            data = content.encode() if isinstance(content, str) else content
            stream += f"M 100644 inline {path}\ndata {len(data)}\n".encode() + data + b"\n"
    git(world.origin, "fast-import", "--quiet", "--force", stdin=stream)
    git(world.origin, "update-ref", REF, "refs/forged")


def changed(world: World, name: str, **fields: object) -> str:
    """A document of the ledger with other values, and without its checksum."""
    found = json.loads((world.ledger.directory / name).read_bytes())
    found.pop("sha256", None)
    return json.dumps({**found, **fields})


# --- what comes back -------------------------------------------------------------------------------------------------


def test_on_an_empty_machine_every_fact_is_back_and_only_what_was_never_handed_in_is_open(world: World) -> None:
    before = facts(world.ledger)
    world.ledger.update_state(lambda s: s.moved(BuildPhase.PAUSED))
    assert world.queue().checkpoint() is None
    restoring = elsewhere(world)
    found = restoring.read(BUILD)
    assert (found.hold, found.landed, found.count("handoff.json"), found.notes) == (Hold.FREE, 1, 3, ())
    ledger, notes = restoring.carry_out(found, {}, rehearsal=False)
    assert notes == []
    after = facts(ledger)
    same = set(before) - {"request.json", "state.json"}
    assert {n: after[n] for n in same} == {n: before[n] for n in same}
    assert set(after) - same == {"request.json", "state.json"}
    state = ledger.state()
    assert (state.phase, state.reason) == (BuildPhase.PAUSED, "restored from its checkpoint")
    assert [t.id for t in ledger.view().tasks if t.handoff is None] == ["r001-04"]
    assert json.loads(files_at(world.origin, REF)[DOCUMENT])["id"] == identity(Home(ledger.directory.parents[1]))


def test_work_that_was_handed_in_and_not_landed_is_on_the_target_and_fetched_back(world: World) -> None:
    kept = git(world.origin, "for-each-ref", "--format=%(refname) %(objectname)", "refs/longshot/work").splitlines()
    heads = {t: world.ledger.run(t).head for t in ("r001-02", "r001-03")}  # type: ignore[union-attr]
    assert kept == [f"refs/longshot/work/{BUILD}/{t} {head}" for t, head in heads.items()]
    assert git(world.origin, "for-each-ref", "--format=%(refname)", "refs/heads") == "refs/heads/main"
    world.ledger.update_state(lambda s: s.moved(BuildPhase.PAUSED))
    ledger, notes = restored(elsewhere(world))
    assert notes == []
    two = World.__new__(World)
    two.__dict__ |= {**world.__dict__, "home": Home(ledger.directory.parents[1]), "request": ledger.request()}
    assert two.queue().mirror.has(heads["r001-02"] or "")
    task = ledger.existing_task("r001-02")
    with ledger.lock("landing"):
        ledger.save_landing(ledger.landing("r001-02").moved(LandingState.QUEUED, 3.0))  # type: ignore[union-attr]
    handoff = ledger.handoff("r001-02")
    assert handoff is not None
    ledger.save_handoff(handoff.model_copy(update={"status": HandoffStatus.COMPLETE}))
    assert two.queue().land(task).state is LandingState.LANDED
    assert files_at(world.origin)["b.py"] == "b = 2"
    left = git(world.origin, "for-each-ref", "--format=%(refname)", "refs/longshot/work")
    assert left == f"refs/longshot/work/{BUILD}/r001-03", "what has landed needs no branch of its own"


def test_queued_work_whose_branch_is_nowhere_is_done_again(world: World) -> None:
    task = world.ledger.existing_task("r001-04")
    world.worked(task, {"d.py": "d = 1\n"})
    assert world.queue().checkpoint(held=False) is None
    assert world.ledger.landing("r001-04") is None
    for name in ("r001-02", "r001-03", "r001-04"):
        git(world.origin, "update-ref", "-d", f"refs/longshot/work/{BUILD}/{name}")
    ledger, notes = restored(elsewhere(world))
    assert notes == [
        "r001-02: its branch is not in the repository, only what became of it",
        "r001-03: its branch is not in the repository, only what became of it",
        "r001-04 is worked on again: its branch is not in the repository",
    ]
    assert ledger.handoff("r001-04") is None and ledger.handoff("r001-02") is not None


def test_a_branch_of_another_content_than_the_run_recorded_is_not_taken(world: World) -> None:
    world.worked(world.ledger.existing_task("r001-04"), {"d.py": "d = 1\n"})
    assert world.queue().checkpoint(held=False) is None
    git(world.origin, "update-ref", f"refs/longshot/work/{BUILD}/r001-04", "refs/heads/main")
    git(world.origin, "gc", "-q", "--prune=now")
    ledger, notes = restored(elsewhere(world))
    assert notes == ["r001-04 is worked on again: its branch is not in the repository"]
    assert ledger.handoff("r001-04") is None


def test_a_run_key_that_was_launched_here_is_never_used_again(world: World) -> None:
    assert world.queue().checkpoint(held=False) is None
    ledger, _ = restored(elsewhere(world), **{"root.001": 2, "root.002": 1})
    assert ledger.state().attempts == {"root.001": 3, "root.002": 2}


def test_a_finished_build_comes_back_finished(world: World) -> None:
    from test_orchestrator import report

    world.ledger.save_metrics(IterationKey(BUILD, "root", 1), MetricsSnapshot(iteration="root.001"))
    world.ledger.save_report(report(world))
    world.ledger.update_state(lambda s: s.moved(BuildPhase.FINALIZING))
    world.ledger.update_state(lambda s: s.moved(BuildPhase.FINISHED))
    assert world.queue().checkpoint() is None
    ledger, _ = restored(elsewhere(world))
    assert ledger.state().phase is BuildPhase.FINISHED and ledger.report() == report(world)


def test_where_only_the_ledger_was_deleted_the_mirror_has_it_and_main_says_what_landed(tmp_path: Path) -> None:
    world = World(tmp_path / "one", bare(tmp_path / "o.git", FILES), Settings(checkpoint="local"))
    for name, path in (("r001-01", "a.py"), ("r001-02", "b.py")):
        task = world.task(name, (path,))
        world.plan(task)
        world.worked(task, {path: "new = 1\n"})
        assert world.queue().land(task).state is LandingState.LANDED
    first = git(world.origin, "rev-parse", "main~1")
    git(world.origin, "update-ref", "refs/heads/main", first)  # the second push never came
    shutil.rmtree(str(world.ledger.directory))
    restoring = Restoring(
        world.home, str(world.origin), resolve({}, {"checkpoint": "local"}, {}, None, None), None, SystemClock()
    )
    assert restoring.builds() == []
    ledger, notes = restored(restoring)
    assert notes == ["r001-02 is about to land again: it is not on main"]
    assert (ledger.landing("r001-01").state, ledger.landing("r001-02")) == (LandingState.LANDED, None)  # type: ignore[union-attr]
    assert ledger.handoff("r001-02") is not None


def test_a_forge_that_takes_branches_only_restores_too(world: World) -> None:
    keeper = world.queue()._keeper()
    git(world.origin, "update-ref", "-d", REF)
    from longshot_dagster.adapters.ledger.checkpoint import Form

    keeper.remember(Form.BRANCH)
    assert world.queue().checkpoint(held=False) is None
    assert git(world.origin, "for-each-ref", f"refs/heads/longshot/checkpoint-{BUILD}")
    assert [k.build for k in elsewhere(world).builds()] == [BUILD]
    assert restored(elsewhere(world))[0].handoff("r001-01") is not None


def test_a_checkout_restores_from_inside_it(tmp_path: Path) -> None:
    work = tmp_path / "work"
    git(tmp_path, "init", "-q", "-b", "main", str(work))
    (work / "a.py").write_text("a = 1\n")
    git(work, "add", "-A")
    git(work, "commit", "-q", "-m", "first")
    world = World(tmp_path / "one", work, repository=str(work))
    task = world.task("r001-01", ("a.py",))
    world.plan(task)
    world.worked(task, {"a.py": "a = 2\n"})
    assert world.queue().land(task).state is LandingState.LANDED
    assert world.queue().checkpoint(held=False) is None
    ledger, _ = restored(elsewhere(world))
    assert ledger.request().target == world.request.target
    assert ledger.landing("r001-01").state is LandingState.LANDED  # type: ignore[union-attr]


# --- who drives it ---------------------------------------------------------------------------------------------------


def test_a_build_that_is_driven_elsewhere_is_held_and_what_moved_since_it_was_read_is_refused(world: World) -> None:
    restoring = elsewhere(world)
    found = restoring.read(BUILD)
    assert found.hold is Hold.HELD and found.driven_by is not None and found.driven_by.id == identity(world.home)
    task = world.ledger.existing_task("r001-04")
    world.worked(task, {"d.py": "d = 1\n"})
    assert world.queue().land(task).state is LandingState.LANDED
    with pytest.raises(TakenOver):
        restoring.carry_out(found, {}, rehearsal=False)
    assert not (world.root.parent / "two" / "home" / "builds" / BUILD).exists()
    assert not list((world.root.parent / "two" / "home" / "restoring").iterdir())
    assert json.loads(files_at(world.origin, REF)[DOCUMENT])["id"] == identity(world.home)
    ledger, _ = restored(restoring)  # read again, it is taken as it is now
    assert ledger.handoff("r001-04") is not None
    assert json.loads(files_at(world.origin, REF)[DOCUMENT])["id"] != identity(world.home)


def test_one_that_was_driven_on_elsewhere_is_caught_up_with_and_its_own_ledger_kept(world: World) -> None:
    assert behind(world.home, world.ledger, SystemClock()) == (Hold.OURS, None)
    ledger, _ = restored(elsewhere(world))
    hold, found = behind(world.home, world.ledger, SystemClock())
    assert hold is Hold.HELD and found is not None
    (Path(str(ledger.directory)) / "iterations" / "root.002").mkdir(parents=True)
    ledger.save_sweep(Sweep(number=2, head=world.main(), started_at=1.0, ended_at=2.0))
    again = elsewhere(world, "one")
    again.carry_out(again.read(BUILD), {}, rehearsal=False, keep_request=True)
    assert world.ledger.request().settings.merge_strategy == world.settings.merge_strategy
    (aside,) = (world.home.restoring).iterdir()
    assert aside.name == f"{BUILD}-before-1" and (aside / "request.json").exists()
    assert behind(world.home, world.ledger, SystemClock()) == (Hold.OURS, None)
    assert behind(Home(ledger.directory.parents[1]), ledger, SystemClock())[0] is Hold.HELD


def test_a_target_out_of_reach_does_not_keep_a_build_of_this_home(world: World) -> None:
    world.origin.rename(world.root / "away")
    assert behind(world.home, world.ledger, SystemClock()) == (Hold.OURS, None)


# --- a hostile checkpoint --------------------------------------------------------------------------------------------

DANGEROUS = {
    "sandbox_provider": "local",
    "sandbox_isolation": "none",
    "sandbox_network": "open",
    "sandbox_readable": "/srv",
    "max_tokens_per_build": 0,
    "max_workers": 999,
    "max_iterations": 999,
    "worker_timeout": 86_400,
    "llm_model": "theirs",
    "git_repo_url": "https://example.invalid/theirs.git",
    "checkpoint": "local",
}


def test_where_it_works_with_what_and_for_how_much_is_this_persons_word(pushed: World) -> None:
    request = json.loads(changed(pushed, "request.json"))
    request["settings"] |= {**DANGEROUS, "check_test": "make test", "merge_strategy": "squash"}
    request["target"] |= {"url": "https://example.invalid/theirs.git", "kind": "checkout"}
    request |= {"rehearsal": True, "origins": {"max_workers": "command line"}}
    forged(pushed, request_json=json.dumps(request))
    made = elsewhere(pushed, max_workers=3).read(BUILD).request
    mine = decided(Settings(max_workers=3))
    taken = {n for n in DANGEROUS if getattr(made.settings, n) != getattr(mine, n)}
    assert taken == set() and not made.rehearsal
    assert (made.settings.check_test, made.settings.merge_strategy.value) == ("make test", "squash")
    assert made.target.url == str(pushed.origin) and made.origins["max_workers"] == "command line"
    assert not set(THE_BUILDS_OWN) & set(DANGEROUS)
    assert elsewhere(pushed, check_test="none").read(BUILD).request.settings.check_test == "none"


def test_only_names_of_the_known_layout_enter_the_ledger(pushed: World) -> None:
    names = {
        "evil_json": "{}",
        "tasks__r001-01__extra_json": "{}",
        "tasks__r001-01__earlier-1__task_json": "{}",
        "tasks__nobody__task_json": "{}",
        "tasks__r009-09__handoff_json": "{}",
        "planners__..-..__001_json": "{}",
        "builds__other__request_json": "{}",
        "tasks__r001-01__transcript.jsonl": "{}",
        ".git-credentials": "x",
    }
    forged(pushed, **names)
    link = (
        b"commit refs/forged\ncommitter x <x@x> 1 +0000\ndata 1\nx\n"
        + f"from {git(pushed.origin, 'rev-parse', REF)}\n".encode()
    )
    link += b"M 120000 inline sweeps/7.json\ndata 11\n/etc/passwd\nM 100755 inline sweeps/8.json\ndata 2\n{}\n"
    git(pushed.origin, "fast-import", "--quiet", "--force", stdin=link)
    git(pushed.origin, "update-ref", REF, "refs/forged")
    known = set(facts(pushed.ledger)) | {"state.json"}
    assert set(elsewhere(pushed).read(BUILD).documents) | {"state.json"} == known


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("request_json", "{", "request.json: "),
        ("request_json", None, "has no request.json"),
        ("iterations__root.001__plan_json", "[]", "iterations/root.001/plan.json: "),
        ("tasks__r001-01__task_json", '{"id": "../../x"}', "tasks/r001-01/task.json: "),
    ],
)
def test_what_cannot_be_done_without_stops_it_with_one_line(
    pushed: World, name: str, content: str | None, said: str
) -> None:
    forged(pushed, **{name: content})
    with pytest.raises(RepositoryError, match=said) as told:
        elsewhere(pushed).read(BUILD)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "lie",
    [
        {"id": "r001-02"},
        {"build": "other-7f3k"},
        {"iteration": "root.001/.."},
        {"iteration": "fix.001"},
        {"branch": "--upload-pack=x"},
        {"branch": "a/../b"},
    ],
)
def test_a_task_that_denies_its_place_is_refused(pushed: World, lie: dict[str, str]) -> None:
    forged(pushed, **{"tasks__r001-01__task_json": changed(pushed, "tasks/r001-01/task.json", **lie)})
    with pytest.raises(RepositoryError, match=r"tasks/r001-01/task\.json"):
        elsewhere(pushed).read(BUILD)


def test_a_handoff_that_cannot_be_used_counts_as_never_written(pushed: World) -> None:
    forged(pushed, **{"tasks__r001-01__handoff_json": changed(pushed, "tasks/r001-01/handoff.json", taskId="r001-02")})
    found = elsewhere(pushed).read(BUILD)
    assert found.notes == ("tasks/r001-01/handoff.json is left out: it is about r001-02",)
    assert sorted(n for n in found.documents if n.startswith("tasks/r001-01/")) == ["tasks/r001-01/task.json"]


def test_a_torn_document_is_told_by_its_checksum(pushed: World) -> None:
    whole = Path(str(pushed.ledger.directory / "tasks/r001-01/run.json")).read_bytes()
    forged(pushed, **{"tasks__r001-01__run_json": whole.replace(b'"local"', b'"other"')})
    (note,) = elsewhere(pushed).read(BUILD).notes
    assert "tasks/r001-01/run.json is left out" in note and "checksum" in note


def test_another_repositorys_build_and_another_branchs_are_told_apart(pushed: World) -> None:
    forged(pushed, request_json=changed(pushed, "request.json", base="b" * 40))
    with pytest.raises(RepositoryError, match="is not on main of"):
        elsewhere(pushed).read(BUILD)
    commit_on(pushed.origin, "stable", FILES)
    with pytest.raises(WrongUse, match="lands on branch main, not on stable; --land-on main says so"):
        elsewhere(pushed, land_on="stable").read(BUILD)


def test_a_newer_versions_checkpoint_is_one_clear_line(pushed: World) -> None:
    forged(pushed, request_json=changed(pushed, "request.json", schema_version=SCHEMA + 1, written_by="9.1"))
    with pytest.raises(WrongUse, match=rf"needs longshot 9\.1 or newer: .*longshot {__version__} reads"):
        elsewhere(pushed).read(BUILD)


def test_a_build_that_has_no_checkpoint_is_named_with_those_that_have(pushed: World) -> None:
    with pytest.raises(WrongUse, match=f"holds no checkpoint of build 'other'; it has those of {BUILD}"):
        elsewhere(pushed).read("other")
    with pytest.raises(WrongUse, match="is not a build name"):
        elsewhere(pushed).read("../x")


def test_what_can_be_resumed_is_listed(pushed: World) -> None:
    git(pushed.origin, "update-ref", "refs/longshot/no-build", "refs/heads/main")
    git(pushed.origin, "update-ref", "refs/longshot/work/x/r001-01", "refs/heads/main")
    (kept,) = elsewhere(pushed).builds()
    assert (kept.build, kept.phase, kept.tasks, kept.handed_in) == (BUILD, BuildPhase.RUNNING, 4, 3)
    assert kept.driven_by is not None and kept.driven_by.id == identity(pushed.home)
