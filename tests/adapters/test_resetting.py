"""Reset against real repositories: what would be lost, what is kept, and what is refused."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from repositories import World, bare, commit_on, git

from longshot_dagster.adapters.builds.resetting import Resetting, reset_target
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.ledger import Ledger
from longshot_dagster.adapters.settings import Resolved
from longshot_dagster.core.errors import RepositoryError, WrongUse
from longshot_dagster.core.models import BuildPhase, BuildRequest
from longshot_dagster.core.resetting import Loss, loss_lines, restoring
from longshot_dagster.core.settings import Settings

AT = 1_795_299_893.0  # 2026-11-21 22:24:53 UTC
KEPT = "refs/longshot/backup/main/20261121T222453Z"


class At:
    def now(self) -> float:
        return AT

    def monotonic(self) -> float:
        return AT

    def sleep(self, seconds: float) -> None:
        raise AssertionError("nobody waits here")


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    repository = bare(tmp_path / "origin.git", {"a": "1\n"})
    commit_on(repository, "main", {"a": "2\n"}, "Two")
    commit_on(repository, "main", {"a": "3\n"}, "Three \x1b[31mred\u2028by nobody")
    return repository


def resetting(tmp_path: Path, repository: Path | str, land_on: str | None = None) -> Resetting:
    home = Home(tmp_path / "home")
    return Resetting(home, reset_target(home, str(repository), Resolved(Settings(), {}), land_on), At())


def loss_of(one: Resetting) -> Loss:
    loss = one.loss()
    assert loss is not None
    return loss


def test_a_branch_goes_back_to_its_first_commit_and_a_backup_keeps_the_rest(tmp_path, origin):
    first, head = git(origin, "rev-parse", "main~2"), git(origin, "rev-parse", "main")
    one = resetting(tmp_path, origin)
    loss = loss_of(one)
    assert (loss.head, loss.first, loss.commits, loss.authors, loss.paused) == (head, first, 2, ("A Worker",), ())
    lines = loss_lines(loss)
    assert lines[:2] == [
        f"main of {origin} would go back to its first commit {first[:12]}",
        "that takes 2 commits from it, by A Worker; the newest:",
    ]
    assert [line.split(" A Worker: ")[1] for line in lines[2:]] == ["Three \ufffd[31mredby nobody", "Two"]
    assert one.carry_out(loss) == KEPT
    assert (git(origin, "rev-parse", "main"), git(origin, "rev-parse", KEPT)) == (first, head)
    assert resetting(tmp_path, origin).loss() is None, "a second reset has nothing to do"


def test_the_command_that_restores_it_does(tmp_path, origin):
    head, one = git(origin, "rev-parse", "main"), resetting(tmp_path, origin)
    loss = loss_of(one)
    command = restoring(one.target, loss.first, one.carry_out(loss))
    subprocess.run(["sh", "-c", command], check=True, cwd=tmp_path)
    assert git(origin, "rev-parse", "main") == head


@pytest.fixture
def served(tmp_path: Path, origin: Path) -> Iterator[str]:
    """`origin` over the git protocol."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--reuseaddr", "--export-all", "--enable=receive-pack", "--listen=127.0.0.1", f"--port={port}"]
    argv = ["git", "daemon", *options, f"--base-path={tmp_path}", str(tmp_path)]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    daemon = subprocess.Popen(argv, start_new_session=True, **quiet)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline and daemon.poll() is None, "git daemon does not start"
        yield f"git://127.0.0.1:{port}/origin.git"
    finally:
        os.killpg(daemon.pid, signal.SIGTERM)  # its own child does the serving
        daemon.wait(10)


def test_the_command_that_restores_a_remote_does_so_from_any_repository(tmp_path, origin, served):
    head, one = git(origin, "rev-parse", "main"), resetting(tmp_path, served)
    loss = loss_of(one)
    command = restoring(one.target, loss.first, one.carry_out(loss))
    somewhere = tmp_path / "somewhere"
    git(tmp_path, "init", "-q", str(somewhere))
    subprocess.run(["sh", "-c", command], check=True, cwd=somewhere, capture_output=True)
    assert git(origin, "rev-parse", "main") == head


def test_a_forge_that_takes_branches_only_keeps_the_backup_as_one(tmp_path, origin):
    hook(origin, "update", "case $1 in refs/heads/*) exit 0;; *) echo 'branches only' >&2; exit 1;; esac")
    head, one = git(origin, "rev-parse", "main"), resetting(tmp_path, origin)
    assert one.carry_out(loss_of(one)) == "refs/heads/longshot/backup-main-20261121T222453Z"
    assert git(origin, "rev-parse", "longshot/backup-main-20261121T222453Z") == head


def test_a_protected_branch_stays_and_no_backup_is_left(tmp_path, origin):
    git(origin, "config", "receive.denyNonFastForwards", "true")
    head, one = git(origin, "rev-parse", "main"), resetting(tmp_path, origin)
    with pytest.raises(RepositoryError, match=r"refused the reset, nothing was changed: .*non-fast-forward"):
        one.carry_out(loss_of(one))
    assert git(origin, "for-each-ref", "--format=%(refname) %(objectname)") == f"refs/heads/main {head}"


def test_a_branch_that_moves_after_the_look_is_left_alone(tmp_path, origin):
    one = resetting(tmp_path, origin)
    loss = loss_of(one)
    late = commit_on(origin, "main", {"late": "1\n"})
    with pytest.raises(RepositoryError, match="main has moved meanwhile; nothing was changed"):
        one.carry_out(loss)
    assert git(origin, "for-each-ref", "--format=%(refname) %(objectname)") == f"refs/heads/main {late}"


def test_an_empty_repository_and_one_at_its_first_commit_have_nothing_to_reset(tmp_path):
    assert resetting(tmp_path, bare(tmp_path / "empty.git")).loss() is None
    assert resetting(tmp_path, bare(tmp_path / "first.git", {"a": "1\n"})).loss() is None


def test_a_branch_that_is_not_there_and_one_with_two_first_commits_are_refused(tmp_path, origin):
    with pytest.raises(WrongUse, match=r"has no branch 'mian' to reset; it has main"):
        resetting(tmp_path, origin, "mian").loss()
    tree = git(origin, "rev-parse", "main^{tree}")
    other = git(origin, "commit-tree", tree, "-m", "another first")
    both = git(origin, "commit-tree", tree, "-m", "both", "-p", "main", "-p", other)
    git(origin, "update-ref", "refs/heads/main", both)
    with pytest.raises(
        WrongUse, match=rf"main has 2 first commits \(.*{other[:12]}.*\), so there is no one to go back to"
    ):
        resetting(tmp_path, origin).loss()


def test_a_build_under_way_there_is_named_and_a_paused_one_is_told(tmp_path, origin):
    world = World(tmp_path, origin)
    with pytest.raises(WrongUse, match=rf"{world.build} is under way on main; `longshot cancel {world.build}` first"):
        resetting(tmp_path, origin).loss()
    world.ledger.update_state(lambda s: s.paused("by hand"))
    one = resetting(tmp_path, origin)
    loss = loss_of(one)
    assert loss.paused == (world.build,)
    assert loss_lines(loss)[-1] == f"unfinished builds stand on it: {world.build}; what they have landed goes, too"
    world.ledger.update_state(lambda s: s.moved(BuildPhase.RUNNING))
    with pytest.raises(WrongUse, match="is under way"):
        one.carry_out(loss)
    elsewhere = Ledger(world.home.builds).build("elsewhere-1111")
    target = world.request.target.model_copy(update={"branch": "other"})
    elsewhere.save_request(BuildRequest(**dict(world.request) | {"build": "elsewhere-1111", "target": target}))
    world.ledger.update_state(lambda s: s.paused("by hand"))
    assert loss_of(resetting(tmp_path, origin)).paused == (world.build,)


def test_in_a_checkout_without_an_origin_only_a_builds_own_branch_is_reset_and_kept_there(tmp_path):
    checkout = tmp_path / "checkout"
    git(tmp_path, "init", "-q", "-b", "main", str(checkout))
    for text in ("1", "2"):
        (checkout / "a").write_text(text)
        git(checkout, "add", "-A")
        git(checkout, "commit", "-q", "-m", text)
    git(checkout, "branch", "longshot/shop-7f3k")
    with pytest.raises(WrongUse, match="has no origin, so each build lands on a branch of its own there"):
        resetting(tmp_path, checkout)
    with pytest.raises(WrongUse, match="has no origin"):
        resetting(tmp_path, checkout, "main")
    one = resetting(tmp_path, checkout, "longshot/shop-7f3k")
    loss = loss_of(one)
    backup = one.carry_out(loss)
    assert backup == "refs/longshot/backup/longshot/shop-7f3k/20261121T222453Z"
    assert git(checkout, "rev-list", "--count", backup) == "2"
    assert git(checkout, "rev-list", "--count", "longshot/shop-7f3k") == "1"
    assert git(checkout, "status", "--porcelain", "-b") == "## main"
    subprocess.run(["sh", "-c", restoring(one.target, loss.first, backup)], check=True)
    git(checkout, "checkout", "-q", "longshot/shop-7f3k")
    with pytest.raises(WrongUse, match=rf"longshot/shop-7f3k is checked out in {checkout}; switch to another branch"):
        resetting(tmp_path, checkout, "longshot/shop-7f3k").loss()


def test_a_targets_own_settings_say_which_branch_builds_land_on(tmp_path, origin):
    commit_on(origin, "main", {".longshot.toml": 'git_main_branch = "trunk"\n'})
    commit_on(origin, "trunk", {"t": "1\n"})
    commit_on(origin, "trunk", {"t": "2\n"})
    assert resetting(tmp_path, origin).target.branch == "trunk"
    assert resetting(tmp_path, origin, "main").target.branch == "main"


def test_git_is_not_asked_anything_through_a_shallow_copy(tmp_path, origin):
    shallow = tmp_path / "shallow.git"
    git(tmp_path, "clone", "-q", "--bare", "--depth=1", f"file://{origin}", str(shallow))
    with pytest.raises(WrongUse, match="is a shallow clone"):
        resetting(tmp_path, shallow)


def hook(repository: Path, name: str, script: str) -> None:
    path = repository / "hooks" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
