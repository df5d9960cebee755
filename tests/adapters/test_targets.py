"""Where a build lands: from what a person types to a proven target, and what is refused with one clear line."""

import os
from pathlib import Path

import pytest
from repositories import bare, files_at, git, write

from longshot_dagster.adapters.repository.targets import prepare_target, resolve_target
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.models import Target, TargetKind
from longshot_dagster.core.settings import Settings

BUILD = "a-build-7f3k"
FILES = {"README.md": "hello\n"}


def resolve(what: object, land_on: str | None = None, **settings: object) -> Target:
    return resolve_target(str(what), Settings(**settings), BUILD, land_on)


def prepare(target: Target) -> str:
    return prepare_target(target, SystemClock())


def checkout(path: Path, files: dict | None = None) -> Path:
    path.mkdir()
    git(path, "init", "-q", "-b", "main")
    if files:
        write(path, files)
        git(path, "add", "-A")
        git(path, "commit", "-q", "-m", "first")
    return path


@pytest.mark.parametrize(
    "url",
    [
        "https://example.invalid/o/r.git",
        "https://someone@example.invalid/o/r.git",
        "ssh://git@example.invalid:2222/o/r.git",
        "git@example.invalid:o/r.git",
        "example.invalid:o/r.git",
    ],
)
def test_a_url_lands_on_its_main_branch_or_another(url):
    target = resolve(url)
    assert (target.url, target.kind, target.base_branch, target.branch) == (url, TargetKind.REMOTE, "main", "main")
    assert resolve(url, "dev", git_main_branch="trunk").branch == "dev"
    assert resolve(url, "dev", git_main_branch="trunk").base_branch == "trunk"


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("", "no repository given"),
        ("https://me:secret@example.invalid/o/r.git", "credential helper"),
        ("https://ghp_0123456789@example.invalid/o/r", "credential helper"),
        ("https://x-access-token@example.invalid/o/r", "credential helper"),
        ("ssh://git:secret@example.invalid/o/r", "credential helper"),
        ("ext::sh -c touch% /tmp/owned", "runs programs"),
        ("fd::17/foo", "runs programs"),
        ("--upload-pack=touch /tmp/owned", "neither a path nor the URL"),
        ("-oProxyCommand=x:y", "neither a path nor the URL"),
        ("ssh://-oProxyCommand=touch/x", "no host"),
        ("git@-oProxyCommand=x:y", "begins with '-'|does not exist"),
        ("ftp://example.invalid/x", "not supported"),
        ("https:///x", "no host"),
        ("https://[", "cannot be read"),
        ("file://elsewhere/x", "names no host"),
        ("/no/such/folder", "does not exist"),
        ("a\nb", "neither a path nor the URL"),
    ],
)
def test_what_cannot_be_a_target_is_refused_in_one_line(what, says):
    with pytest.raises(WrongUse, match=says) as error:
        resolve(what)
    text = str(error.value)
    assert "\n" not in text and "secret" not in text and "ghp_" not in text


@pytest.mark.parametrize("branch", ["-x", "a..b", "refs/heads/x", "a b", "x.lock", "a//b"])
def test_an_illegal_landing_branch_is_refused(tmp_path, branch):
    with pytest.raises(WrongUse, match="not a legal branch name"):
        resolve(bare(tmp_path / "r.git", FILES), branch)


def test_a_bare_repository_by_path_and_by_file_url(tmp_path):
    origin = bare(tmp_path / "o r.git", FILES)
    for what in (origin, f"file://{str(origin).replace(' ', '%20')}"):
        target = resolve(what)
        assert (target.url, target.kind, target.branch) == (str(origin), TargetKind.REMOTE, "main")
        assert prepare(target) == git(origin, "rev-parse", "main")


def test_a_checkout_with_an_origin_lands_on_that_origin(tmp_path):
    origin = bare(tmp_path / "origin.git", FILES)
    git(tmp_path, "clone", "-q", str(origin), "work")
    (tmp_path / "work/README.md").write_text("dirty\n")
    assert resolve(tmp_path / "work").url == str(origin)
    assert resolve(tmp_path / "work/.git").url == str(origin)
    git(tmp_path / "work", "remote", "set-url", "origin", "../origin.git")
    assert resolve(tmp_path / "work").url == str(origin)
    git(tmp_path / "work", "remote", "set-url", "origin", "git@example.invalid:o/r.git")
    assert resolve(tmp_path / "work").url == "git@example.invalid:o/r.git"
    git(tmp_path / "work", "remote", "set-url", "origin", "https://me:secret@example.invalid/r")
    with pytest.raises(WrongUse, match="credential helper"):
        resolve(tmp_path / "work")
    git(tmp_path / "work", "remote", "set-url", "origin", "ext::sh -c x")
    with pytest.raises(WrongUse, match="runs programs"):
        resolve(tmp_path / "work")


def test_an_origin_that_is_a_checkout_needs_another_branch(tmp_path):
    there = checkout(tmp_path / "there", FILES)
    git(tmp_path, "clone", "-q", str(there), "work")
    with pytest.raises(WrongUse, match="has main checked out"):
        resolve(tmp_path / "work")
    assert resolve(tmp_path / "work", "result").branch == "result"


def test_a_checkout_without_an_origin_lands_on_a_branch_of_its_own(tmp_path):
    work = checkout(tmp_path / "work", FILES)
    target = resolve(work)
    assert (target.kind, target.branch) == (TargetKind.CHECKOUT, f"longshot/{BUILD}")
    assert target.url == str(work / ".git")
    (work / "README.md").write_text("dirty\n")
    before = git(work, "status", "--porcelain", "--branch")
    assert prepare(target) == git(work, "rev-parse", "main")
    assert git(work, "status", "--porcelain", "--branch") == before
    with pytest.raises(WrongUse, match="no origin"):
        resolve(work, "other")
    with pytest.raises(WrongUse, match="lies inside"):
        (work / "sub").mkdir()
        resolve(work / "sub")


def test_a_linked_work_tree_lands_in_its_repository(tmp_path):
    work = checkout(tmp_path / "work", FILES)
    git(work, "worktree", "add", "-q", "../linked")
    assert resolve(tmp_path / "linked").url == str(work / ".git")


def test_an_empty_repository_gets_a_first_commit_once(tmp_path):
    origin = bare(tmp_path / "empty.git")
    target = resolve(origin, "dev")
    first = prepare(target)
    assert git(origin, "rev-parse", "main") == first and files_at(origin) == {}
    assert git(origin, "log", "-1", "--format=%an <%ae>", "main") == "longshot queue <queue@longshot.invalid>"
    assert prepare(target) == first


def test_an_empty_checkout_keeps_its_own_branch_unborn(tmp_path):
    work = checkout(tmp_path / "work")
    first = prepare(resolve(work))
    assert git(work, "for-each-ref", "--format=%(refname) %(objectname)") == f"refs/heads/longshot/{BUILD} {first}"
    assert git(work, "symbolic-ref", "HEAD") == "refs/heads/main" and "No commits yet" in git(work, "status")
    assert prepare(resolve(work)) == first


def test_a_missing_main_branch_names_those_there_are(tmp_path):
    origin = bare(tmp_path / "o.git", FILES, branch="master")
    with pytest.raises(WrongUse, match="no branch 'main'; it has master: set GIT_MAIN_BRANCH"):
        prepare(resolve(origin))
    assert prepare(resolve(origin, git_main_branch="master")) == git(origin, "rev-parse", "master")


def test_an_existing_landing_branch_is_where_work_starts(tmp_path):
    origin = bare(tmp_path / "o.git", FILES)
    work = tmp_path / "o.git-stranger"
    write(work, {"dev.txt": "d\n"})
    git(work, "add", "-A")
    git(work, "commit", "-q", "-m", "dev")
    git(work, "push", "-q", "origin", "HEAD:dev")
    assert prepare(resolve(origin, "dev")) == git(origin, "rev-parse", "dev")


def test_a_branch_in_the_way_is_named(tmp_path):
    work = checkout(tmp_path / "work", FILES)
    git(work, "branch", "longshot")
    with pytest.raises(WrongUse, match="branch longshot is in its way"):
        prepare(resolve(work))


def test_a_folder_that_is_no_repository_says_what_to_do(tmp_path):
    with pytest.raises(WrongUse, match="git init"):
        resolve(tmp_path)


def test_an_unreachable_remote_gives_gits_reason_in_one_line(tmp_path):
    origin = bare(tmp_path / "o.git", FILES)
    target = resolve(origin)
    origin.rename(tmp_path / "gone")
    with pytest.raises(WrongUse, match="cannot be read") as error:
        prepare(target)
    assert "\n" not in str(error.value)
    refused = Target(repository="x", url="http://127.0.0.1:9/x.git", kind="remote", base_branch="main", branch="main")
    with pytest.raises(WrongUse, match="cannot be read"):
        prepare(refused)


def test_a_repository_that_cannot_be_written_is_refused_at_once(tmp_path, monkeypatch):
    target = resolve(bare(tmp_path / "o.git", FILES))
    monkeypatch.setattr(os, "access", lambda *_: False)  # root, as whom CI may run, may write everywhere
    with pytest.raises(WrongUse, match="cannot be written"):
        prepare(target)


def test_a_repository_with_sha256_names_is_refused(tmp_path):
    path = tmp_path / "s.git"
    path.mkdir()
    git(path, "init", "-q", "--bare", "-b", "main", "--object-format=sha256")
    tree = git(path, "mktree")
    git(path, "update-ref", "refs/heads/main", git(path, "commit-tree", tree, "-m", "x"))
    with pytest.raises(WrongUse, match="SHA-256"):
        prepare(resolve(path))


@pytest.mark.parametrize("name", ["work", "landed", "fetched"])
def test_a_build_cannot_take_the_name_of_our_own_refs(tmp_path, name):
    with pytest.raises(WrongUse, match="cannot name a build"):
        resolve_target(str(tmp_path), Settings(), name, None)
