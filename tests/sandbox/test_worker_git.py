"""The repository inside the sandbox: whatever an agent does to it, its work comes out or a reason does."""

import subprocess
from pathlib import Path

import pytest
from longshot_worker import git as worker_git
from longshot_worker.git import GitError, Repo


def run(cwd: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=cwd, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    origin = tmp_path / "origin"
    origin.mkdir()
    run(origin, "init", "-q", "-b", "base")
    (origin / "a.txt").write_text("one\n")
    (origin / "b.txt").write_text("two\n")
    run(origin, "add", "-A")
    run(origin, "commit", "-q", "-m", "first")
    run(origin, "bundle", "create", "-q", str(tmp_path / "in.bundle"), "refs/heads/base")
    base = run(origin, "rev-parse", "HEAD")
    return Repo.from_bundle(
        str(tmp_path / "in.bundle"), str(tmp_path / "repo"), base, "worker/b/r001-01", ("w", "w@x.invalid")
    )


def paths(repo: Repo, head: str) -> set[str]:
    return set(repo.git("diff", "--name-only", repo.base, head).split())


def test_commits_of_the_agent_are_kept_and_the_rest_is_collected(repo: Repo, tmp_path: Path) -> None:
    folder = Path(repo.path)
    (folder / "mine.txt").write_text("x\n")
    run(folder, "add", "-A")
    run(folder, "commit", "-q", "-m", "by the agent")
    (folder / "left.txt").write_text("y\n")
    (folder / "a.txt").unlink()
    head, left_out = repo.collect("rest")
    assert (repo.commits(head), left_out) == (2, [])
    assert paths(repo, head) == {"mine.txt", "left.txt", "a.txt"}
    figures = repo.figures(head)
    assert (figures.added, figures.removed, figures.created, figures.modified) == (2, 1, 2, 1)
    repo.bundle(head, str(tmp_path / "out.bundle"))
    assert run(tmp_path, "bundle", "list-heads", "out.bundle") == f"{head} refs/heads/work"


def test_build_output_stays_out_and_gitignore_stays_untouched(repo: Repo) -> None:
    folder = Path(repo.path)
    for name in ("node_modules/x/i.js", "__pycache__/a.pyc", "dist/o.js", ".venv/bin/p", "kept.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    head, _ = repo.collect("rest")
    assert paths(repo, head) == {"kept.py"}


def test_locks_of_a_git_that_was_killed_are_in_nobodys_way(repo: Repo) -> None:
    folder = Path(repo.path)
    for lock in ("index.lock", "HEAD.lock", "refs/heads/worker/b/r001-01.lock"):
        (folder / ".git" / lock).touch()
    (folder / "left.txt").write_text("y\n")
    head, _ = repo.collect("left over")
    assert paths(repo, head) == {"left.txt"}


def test_work_that_was_interrupted_is_gone_on_with_and_compared_with_the_base(repo: Repo, tmp_path: Path) -> None:
    (Path(repo.path) / "half.txt").write_text("y\n")
    half, _ = repo.collect("half")
    repo.git("bundle", "create", "-q", str(tmp_path / "half.bundle"), "refs/heads/worker/b/r001-01")
    data = (tmp_path / "half.bundle").read_bytes().replace(b"refs/heads/worker/b/r001-01\n", b"refs/heads/base\n", 1)
    (tmp_path / "half.bundle").write_bytes(data)
    author, bundle = ("w", "w@x.invalid"), str(tmp_path / "half.bundle")
    again = Repo.from_bundle(bundle, str(tmp_path / "again"), repo.base, "worker/b/r001-01", author)
    again.go_on_from(half)
    (Path(again.path) / "rest.txt").write_text("z\n")
    head, _ = again.collect("rest")
    assert paths(again, head) == {"half.txt", "rest.txt"} and again.commits(head) == 2


def test_nothing_done_is_nothing_changed(repo: Repo) -> None:
    head, _ = repo.collect("rest")
    assert head == repo.base
    assert not repo.changed(head)


def test_rewritten_history_becomes_one_commit_on_the_base(repo: Repo) -> None:
    folder = Path(repo.path)
    run(folder, "checkout", "-q", "--orphan", "other")
    (folder / "new.txt").write_text("x")
    run(folder, "add", "-A")
    run(folder, "commit", "-q", "-m", "no parents")
    head, _ = repo.collect("rest")
    assert repo.git("rev-parse", f"{head}^").strip() == repo.base
    assert paths(repo, head) == {"new.txt"}


def test_a_lock_a_hook_and_a_strange_configuration_stop_nobody(repo: Repo) -> None:
    folder = Path(repo.path)
    (folder / ".git/index.lock").touch()
    hook = folder / ".git/hooks/pre-commit"
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    run(folder, "config", "core.fsmonitor", "false; exit 1")
    run(folder, "config", "commit.gpgsign", "true")
    run(folder, "config", "core.excludesFile", "/dev/null")
    (folder / "new.txt").write_text("x")
    assert paths(repo, repo.collect("rest")[0]) == {"new.txt"}


def test_a_nested_repository_is_taken_in_as_files(repo: Repo) -> None:
    nested = Path(repo.path) / "app"
    nested.mkdir()
    run(nested, "init", "-q")
    (nested / "main.js").write_text("x")
    run(nested, "add", "-A")
    run(nested, "commit", "-q", "-m", "scaffold")
    assert paths(repo, repo.collect("rest")[0]) == {"app/main.js"}


def test_large_files_are_left_out_and_named(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_git, "MAX_FILE_BYTES", 1_000)
    folder = Path(repo.path)
    (folder / "big file.bin").write_bytes(b"x" * 2_000)
    (folder / "b.txt").write_bytes(b"x" * 2_000)
    (folder / "small.txt").write_text("x")
    head, left_out = repo.collect("rest")
    assert left_out == ["b.txt", "big file.bin"]
    assert paths(repo, head) == {"small.txt"}


def test_a_removed_git_directory_is_an_error_with_a_reason(repo: Repo) -> None:
    subprocess.run(["rm", "-rf", f"{repo.path}/.git"], check=True)
    with pytest.raises(GitError, match="the agent removed"):
        repo.collect("rest")


def test_conflict_markers_are_found_where_they_were_added(repo: Repo) -> None:
    folder = Path(repo.path)
    (folder / "a.txt").write_text("<<<<<<< ours\none\n=======\ntwo\n>>>>>>> theirs\n")
    (folder / "b.txt").write_text("two\n<<<<<<< only an opening\n=======\n")
    assert repo.conflict_markers(repo.collect("rest")[0]) == ["a.txt"]
