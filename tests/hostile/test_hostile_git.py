"""Bundles, objects and repositories of an agent's making, at the door of the mirror and of the landing branch."""

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attacks import attack
from bundles_by_hand import TAG, WHO, Forge

sys.path.append(str(Path(__file__).resolve().parents[1] / "adapters"))
from repositories import BUILD, World, bare, git, objects_in  # isort: skip - found through the line above

from longshot_dagster.adapters.repository import branch as branches
from longshot_dagster.adapters.repository import intake, merger
from longshot_dagster.adapters.repository.branch import Branch
from longshot_dagster.adapters.repository.git import Git
from longshot_dagster.adapters.repository.merger import Merged, Merger, Names
from longshot_dagster.adapters.sandboxes.sandbox_local import LocalProvider
from longshot_dagster.core import bundles
from longshot_dagster.core.errors import HostileBundle
from longshot_dagster.core.landing import Split
from longshot_dagster.core.sandbox import SandboxSpec
from longshot_dagster.core.settings import Isolation, MergeStrategy

TASK = "r001-01"
SMALL = "s" * 200


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """One for all: what is refused leaves nothing behind."""
    tmp_path = tmp_path_factory.mktemp("git")
    return World(tmp_path, bare(tmp_path / "origin.git", {"README.md": "hello\n", "small": SMALL}))


@pytest.fixture
def forge(world: World) -> Forge:
    return Forge(world.mirror.fetch(within_s=60))


def refused(world: World, data: bytes) -> bool:
    """Is the bundle refused, with nothing of it left in the mirror?"""
    git(world.mirror.path, "update-ref", "-d", f"refs/longshot/work/{BUILD}/{TASK}")
    before = objects_in(world.mirror.path)
    try:
        world.mirror.intake(BUILD, TASK, world.request.base, data)
    except HostileBundle:
        assert objects_in(world.mirror.path) == before
        assert git(world.mirror.path, "for-each-ref", "refs/longshot/work") == ""
        return True
    return False


def leniently(monkeypatch: pytest.MonkeyPatch) -> None:
    """git without its strict checks of objects."""
    strictly = Git.run

    def run(self: Git, *args: str, **options: Any) -> Any:
        return strictly(self, *(a for a in args if a != "--strict"), **options)

    monkeypatch.setattr(Git, "run", run)


def unproven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "_prove", lambda *given: None)


# --- trees that git would trip over ----------------------------------------------------------------------------------


def hooks(forge: Forge) -> str:
    hook = forge.tree(("100755", "post-checkout", forge.blob(b"#!/bin/sh\ntouch /tmp/owned\n")))
    return forge.tree(("40000", ".git", forge.tree(("40000", "hooks", hook))))


def linked_gitmodules(forge: Forge) -> str:
    return forge.tree(("120000", ".gitmodules", forge.blob(b"../../etc/passwd")))


def climbing(forge: Forge) -> str:
    return forge.tree(("40000", "..", forge.tree(("100644", "x", forge.blob()))))


def running_submodule(forge: Forge) -> str:
    text = b'[submodule "x"]\n\tpath = x\n\turl = -u./payload\n'
    return forge.tree(("100644", ".gitmodules", forge.blob(text)), ("160000", "x", "1" * 40))


@attack(
    "ASI05",
    "bring .git/hooks, a linked .gitmodules, `..` or a running submodule in a tree",
    defence="git's strict checks, in a quarantine",
    off="the same git without --strict",
)
@pytest.mark.parametrize("tree", [hooks, linked_gitmodules, climbing, running_submodule])
def test_a_tree_that_git_would_trip_over(
    world: World, forge: Forge, tree: Callable[[Forge], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = forge.bundle(forge.commit(tree(forge)))
    assert refused(world, data)
    leniently(monkeypatch)
    assert not refused(world, data)


# --- refs, histories, objects ----------------------------------------------------------------------------------------


@attack(
    "ASI07",
    "bring refs of others: main, another task's work, a replacement of a commit",
    defence="a bundle holds one ref of a fixed name, and we name it anew",
    off="git's own fetch of all that a bundle holds",
)
def test_refs_of_others(world: World, forge: Forge, tmp_path: Path) -> None:
    head = forge.commit(forge.tree(("100644", "a.py", forge.blob())))
    others = (f"refs/replace/{forge.base}", "refs/heads/main", f"refs/longshot/work/{BUILD}/r009-01")
    data = forge.bundle(head, *others)
    assert refused(world, data)
    (tmp_path / "all.bundle").write_bytes(data)
    copy = tmp_path / "copy.git"
    git(tmp_path, "clone", "-q", "--mirror", str(world.origin), str(copy))
    git(copy, "fetch", "-q", str(tmp_path / "all.bundle"), "+refs/*:refs/*")
    assert {git(copy, "rev-parse", ref) for ref in others} == {head}


@attack(
    "ASI07",
    "build on another task's work, which nobody has looked at yet",
    defence="a bundle may need only what its own base holds",
    off="what it needs is not looked at",
)
def test_somebody_elses_work_underneath(world: World, forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Forge(forge.base)
    theirs = other.commit(other.tree(("100644", "theirs.py", other.blob(b"secret = 1\n"))))
    world.mirror.intake(BUILD, "r009-01", forge.base, other.bundle(theirs))
    head = forge.commit(forge.tree(("100644", "a.py", forge.blob())), forge.base, theirs)
    data = forge.bundle(head, needs=(theirs,))
    try:
        # Nothing is left of it but the other task's own ref.
        with pytest.raises(HostileBundle, match="not part of its base"):
            world.mirror.intake(BUILD, TASK, forge.base, data)
        read = intake.read_bundle
        monkeypatch.setattr(intake, "read_bundle", lambda *a: dataclasses.replace(read(*a), prerequisites=()))
        assert world.mirror.intake(BUILD, TASK, forge.base, data) == head
    finally:
        git(world.mirror.path, "update-ref", "-d", f"refs/longshot/work/{BUILD}/r009-01")


@attack(
    "ASI05",
    "replace history: a branch that does not come from its base",
    defence="the head is proven to build on its base",
    off="nothing is proven",
)
def test_a_history_of_its_own(world: World, forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = forge.tree(("100644", "a.py", forge.blob()))
    root = f"tree {tree}\nauthor {WHO}\ncommitter {WHO}\n\nanother beginning\n".encode()
    data = forge.bundle(forge.add(1, root))
    assert refused(world, data)
    unproven(monkeypatch)
    assert not refused(world, data)


@attack(
    "ASI05",
    "hand in a tag, behind which something else is",
    defence="the ref is proven to be a commit",
    off="nothing is proven",
)
def test_a_tag_instead_of_a_commit(world: World, forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    head = forge.commit(forge.tree(("100644", "a.py", forge.blob())))
    tag = forge.add(TAG, f"object {head}\ntype commit\ntag x\ntagger {WHO}\n\nx\n".encode())
    data = forge.bundle(tag)
    assert refused(world, data)
    unproven(monkeypatch)
    assert not refused(world, data)


@attack(
    "ASI08",
    "break the mirror with a branch whose objects are missing",
    defence="every object is proven to be here before the first one is",
    off="neither strict checks nor a proof",
)
def test_objects_that_are_not_there(world: World, forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    data = forge.bundle(forge.commit(forge.tree(("100644", "a.py", "1" * 40))))
    assert refused(world, data)
    unproven(monkeypatch)
    leniently(monkeypatch)
    assert not refused(world, data)


# --- bombs -----------------------------------------------------------------------------------------------------------


@attack(
    "ASI08",
    "fill memory and disk with one object that compresses well",
    defence="each object's declared size is capped before anything is unpacked",
    off="the cap is far away",
)
def test_an_object_that_grows(world: World, forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    data = forge.bundle(forge.commit(forge.tree(("100644", "big", forge.blob(bytes(300_000))))))
    assert len(data) < 3_000
    monkeypatch.setattr(bundles, "MAX_BLOB_BYTES", 200_000)
    assert refused(world, data)
    monkeypatch.undo()
    assert not refused(world, data)


@attack(
    "ASI08",
    "fill them with a delta that grows",
    defence="what a delta declares to become counts",
    off="only the delta's own size counts",
)
def test_a_delta_that_grows(world: World, forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    of = git(world.mirror.path, "rev-parse", f"{forge.base}:small")
    forge.delta(of, len(SMALL), len(SMALL) * 1_500)
    data = forge.bundle(forge.commit(forge.tree(("100644", "a.py", forge.blob()))))
    monkeypatch.setattr(bundles, "MAX_BLOB_BYTES", 200_000)
    assert refused(world, data)
    monkeypatch.setattr(bundles, "_delta_result_size", lambda start: 0)
    assert not refused(world, data)


@attack(
    "ASI08",
    "hand in more objects or commits than anybody can look at",
    defence="objects and commits are counted",
    off="the caps are far away",
)
def test_more_than_can_be_looked_at(world: World, forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, head = forge.tree(("100644", "a.py", forge.blob())), forge.base
    for number in range(10):
        head = forge.commit(tree, head, message=f"{number}")
    data = forge.bundle(head)
    with monkeypatch.context() as few:
        few.setattr(bundles, "MAX_OBJECTS", 11)
        assert refused(world, data)
    with monkeypatch.context() as few:
        few.setattr(intake, "MAX_COMMITS", 9)
        assert refused(world, data)
    assert not refused(world, data)


# --- the repository in the sandbox -----------------------------------------------------------------------------------


@attack(
    "ASI05",
    "run a program on the host by the configuration of the repository it works in",
    defence="no git command ever runs in a folder that an agent wrote",
    off="`git status` on the host, in that folder",
)
def test_a_repository_that_runs_programs(world: World, tmp_path: Path) -> None:
    canary = tmp_path / "owned"
    sandbox = LocalProvider(tmp_path / "sandboxes", Isolation.AUTO).create(SandboxSpec(name="git"))
    try:
        sandbox.write("/longshot/in.bundle", world.mirror.bundle(world.request.base).read_bytes())
        script = f"""
        set -e; git clone -q -b base /longshot/in.bundle repo; cd repo
        git config user.name W; git config user.email w@example.invalid
        echo x > x; git add x; git commit -q -m x; git branch -q -f work
        mkdir -p /longshot/out; git bundle create -q /longshot/out/work.bundle {world.request.base}..work
        git config core.fsmonitor 'touch {canary}; false'
        """
        ran = sandbox.exec(["sh", "-c", script], timeout_s=60)
        assert ran.exit_code == 0, ran.stderr
        assert not refused(world, sandbox.read("/longshot/out/work.bundle"))
        assert not canary.exists()
        repository = sandbox.host_path("/workspace/repo")
        trusting = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
        subprocess.run(["git", "-C", str(repository), "status"], capture_output=True, env=trusting, check=False)
        assert canary.exists()
    finally:
        sandbox.terminate()


# --- commits that would land as they are -----------------------------------------------------------------------------


def landed_as(world: World, data: bytes) -> MergeStrategy:
    """How a branch lands in a build that wants the workers' own commits."""
    base = world.request.base
    tip = world.mirror.intake(BUILD, TASK, base, data)
    branch = Branch(world.mirror.git, base, tip)
    parts = Split(tuple(c.path for c in branch.changes), (), (), ())
    names = Names(BUILD, TASK, tip, "Raise the price")
    made, _ = Merger(world.mirror.git, 1.8e9).by_strategy(MergeStrategy.FAST_FORWARD, base, branch, parts, names, True)
    assert isinstance(made, Merged)
    return made.strategy


@attack(
    "ASI03",
    "have a commit with somebody else as committer, or a signature, land as it is",
    defence="only a commit with nothing in its header but clean names lands as it is",
    off="headers are not looked at",
)
@pytest.mark.parametrize(
    "forged",
    [
        {"committer": "A Person <person@example.com> 1700000000 +0000"},
        {"committer": "A Worker\x1b[31m <worker@example.invalid> 1700000000 +0000"},
        {"more": "\ngpgsig -----BEGIN PGP SIGNATURE-----\n \n iQEz\n -----END PGP SIGNATURE-----"},
    ],
    ids=["person", "escapes", "signature"],
)
def test_a_commit_in_somebodys_name(
    world: World, forge: Forge, forged: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = forge.bundle(forge.commit(forge.tree(("100644", "a.py", forge.blob())), **forged))  # type: ignore[arg-type]
    assert landed_as(world, data) is MergeStrategy.SQUASH
    monkeypatch.setattr(branches, "person", lambda *who: who)
    monkeypatch.setattr(branches, "_MORE", re.compile("(?!)"))
    assert landed_as(world, data) is MergeStrategy.FAST_FORWARD


@attack(
    "ASI10",
    "date a commit in the future, before which later work looks old",
    defence="a commit that is dated in the future does not land as it is",
    off="dates are not looked at",
)
def test_a_commit_of_the_future(world: World, forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    late = "A Worker <worker@example.invalid> 4000000000 +0000"
    data = forge.bundle(forge.commit(forge.tree(("100644", "a.py", forge.blob())), committer=late))
    assert landed_as(world, data) is MergeStrategy.SQUASH
    monkeypatch.setattr(merger, "_AHEAD_S", 1 << 62)
    assert landed_as(world, data) is MergeStrategy.FAST_FORWARD
