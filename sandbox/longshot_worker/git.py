"""The repository inside the sandbox: made from a bundle, collected into a bundle, whatever the agent did in between."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from dataclasses import dataclass

ARTIFACTS = (
    "__pycache__/ *.pyc *.pyo .pytest_cache/ .mypy_cache/ .ruff_cache/ .hypothesis/ .tox/ .venv/ venv/ *.egg-info/ .eggs/ "
    "node_modules/ .next/ .turbo/ .cache/ .npm/ .parcel-cache/ dist/ build/ target/ coverage/ .coverage htmlcov/ "
    "*.tsbuildinfo .DS_Store *.swp .aider*"
).split()
MAX_FILE_BYTES = 50 << 20
_BASE, _WORK = "refs/longshot/base", "refs/heads/work"
_TIMEOUT_S = 300
# An agent may write any configuration into its repository; it runs in the sandbox only, but must not stop our own commands.
_CALM = [
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "core.fsmonitor=false",
    "-c",
    "commit.gpgsign=false",
    "-c",
    "gc.auto=0",
]
_CALM += ["-c", "core.quotePath=false", "-c", "advice.addEmbeddedRepo=false", "-c", "core.excludesFile=/dev/null"]


class GitError(Exception):
    """Raised when git fails; its text is one line."""


@dataclass(frozen=True)
class Stat:
    added: int = 0
    removed: int = 0
    created: int = 0
    modified: int = 0


class Repo:
    """A work tree at `path`, based on commit `base`."""

    def __init__(self, path: str, base: str) -> None:
        self.path = path
        self.base = base

    @classmethod
    def from_bundle(cls, bundle: str, path: str, base: str, branch: str, author: tuple[str, str]) -> Repo:
        """A new repository with `branch` checked out at `base`; no remote, and build output excluded."""
        os.makedirs(path)
        repo = cls(path, base)
        repo.git("init", "--quiet")
        repo.git("fetch", "--quiet", bundle, f"refs/heads/base:{_BASE}")
        repo.git("config", "user.name", author[0])
        repo.git("config", "user.email", author[1])
        os.makedirs(os.path.join(path, ".git", "info"), exist_ok=True)  # where git has no templates, init makes none
        with open(os.path.join(path, ".git", "info", "exclude"), "a", encoding="utf-8") as file:
            # Never .gitignore: every branch would change it, and every branch would conflict.
            file.write("\n".join(ARTIFACTS) + "\n")
        repo.git("checkout", "--quiet", "-B", branch, base)
        return repo

    @classmethod
    def from_snapshot(cls, bundle: str, path: str, base: str, branch: str, author: tuple[str, str]) -> Repo:
        """As `from_bundle`, of a repository that is there already; `bundle` has what is newer, and is missing when nothing is."""
        repo = cls(path, base)
        if os.path.exists(bundle):
            repo.git("fetch", "--quiet", bundle, f"+refs/heads/base:{_BASE}")
        with open(os.path.join(path, ".git", "config"), encoding="utf-8") as file:
            known = {line.strip() for line in file}
        for name, value in (("name", author[0]), ("email", author[1])):
            if f"{name} = {value}" not in known:
                repo.git("config", f"user.{name}", value)
        # Nobody but a worker has ever run there, so that nothing has to be cleaned away.
        repo.git("checkout", "--quiet", "--force", "-B", branch, base)
        return repo

    @classmethod
    def beside(cls, other: str, path: str, base: str) -> Repo:
        """`base` checked out at `path`, with the objects of the repository `other`."""
        os.makedirs(path)
        repo = cls(path, base)
        repo.git("init", "--quiet")
        with open(os.path.join(path, ".git", "objects", "info", "alternates"), "w", encoding="utf-8") as file:
            file.write(os.path.join(os.path.abspath(other), ".git", "objects") + "\n")
        repo.git("checkout", "--quiet", "-B", "base", base)
        return repo

    def go_on_from(self, start: str) -> None:
        """Check out what an interrupted worker had made of the base by commit `start`; still compared with the base."""
        self.git("reset", "--quiet", "--hard", start)

    def collect(self, message: str) -> tuple[str, list[str]]:
        """Commit what the agent left uncommitted; the tip of its work on top of the base, and files left out as too large.

        Raises GitError when the agent destroyed the repository.
        """
        if not os.path.isdir(os.path.join(self.path, ".git")):
            raise GitError("the agent removed .git")
        self._remove_locks()
        too_large = self._too_large()
        self.git("add", "--all", "--", ".", *(f":(exclude,top,literal){name}" for name in too_large[:500]))
        self._absorb_nested_repositories()
        if self.git("diff", "--cached", "--name-only").strip():
            self.git("commit", "--quiet", "--no-verify", "--message", message)
        head = self.git("rev-parse", "--verify", "HEAD").strip()
        if not self._descends(head):  # rewritten history: keep the work, as one commit on the base
            head = self.git("commit-tree", f"{head}^{{tree}}", "-p", self.base, "-m", message).strip()
        return head, too_large

    def bundle(self, head: str, path: str) -> None:
        """`base..head` as a bundle with one ref."""
        self.git("update-ref", _WORK, head)
        self.git("bundle", "create", "--quiet", path, _WORK, f"^{self.base}")

    def changed(self, head: str) -> bool:
        return bool(self.git("diff", "--name-only", "--no-renames", self.base, head, "--").strip())

    def commits(self, head: str) -> int:
        return int(self.git("rev-list", "--count", f"{self.base}..{head}"))

    def figures(self, head: str) -> Stat:
        rows = [r.split("\t", 2) for r in self._diff("--numstat", head)]
        status = [r[0] for r in self._diff("--name-status", head)]
        return Stat(
            added=sum(int(r[0]) for r in rows if r[0].isdigit()),
            removed=sum(int(r[1]) for r in rows if r[1].isdigit()),
            created=status.count("A"),
            modified=len(status) - status.count("A"),
        )

    def conflict_markers(self, head: str) -> list[str]:
        """Changed files to which both an opening and a closing conflict marker were added."""
        found, path, seen = [], "", set()
        for line in self.git(
            "diff", "--unified=0", "--no-renames", "--no-color", "--no-ext-diff", self.base, head, "--"
        ).splitlines():
            if line.startswith("+++ "):
                path, seen = line[6:], set()
            elif line.startswith(("+<<<<<<< ", "+>>>>>>> ")):
                seen.add(line[1])
                if len(seen) == 2 and path not in found:
                    found.append(path)
        return found

    def git(self, *arguments: str) -> str:
        argv = ["git", *_CALM, *arguments]
        try:
            ran = subprocess.run(
                argv,
                cwd=self.path,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as e:
            raise GitError(f"git {arguments[0]}: {e}") from e
        if ran.returncode:
            lines = ran.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit {ran.returncode}"]
            raise GitError(f"git {arguments[0]}: {lines[-1][:500]}")
        return ran.stdout.decode("utf-8", "replace")

    def _diff(self, how: str, head: str) -> list[str]:
        return self.git("diff", how, "--no-renames", self.base, head, "--").splitlines()

    def _descends(self, head: str) -> bool:
        try:
            self.git("merge-base", "--is-ancestor", self.base, head)
        except GitError:
            return False
        return True

    def _remove_locks(self) -> None:
        """A git that was killed at work leaves its locks behind."""
        folder = os.path.join(self.path, ".git")
        for lock in ("index.lock", "HEAD.lock", "packed-refs.lock"):
            _remove(os.path.join(folder, lock))
        for directory, _, names in os.walk(os.path.join(folder, "refs")):
            for name in names:
                if name.endswith(".lock"):
                    _remove(os.path.join(directory, name))

    def _too_large(self) -> list[str]:
        listing = self.git("ls-files", "-z", "--others", "--modified", "--exclude-standard")
        return sorted(
            {name for name in listing.split("\0") if name and _size(os.path.join(self.path, name)) > MAX_FILE_BYTES}
        )

    def _absorb_nested_repositories(self) -> None:
        """A scaffolding tool's `git init` in a subdirectory would turn its files into a submodule and lose them."""
        for row in self.git("diff", "--cached", "--raw", "-z", "--no-renames", self.base).split("\0:"):
            meta, _, path = row.lstrip(":").partition("\0")
            path = path.rstrip("\0")
            if meta.split(" ")[1:2] == ["160000"] and path:
                shutil.rmtree(os.path.join(self.path, path, ".git"), ignore_errors=True)
                _remove(os.path.join(self.path, path, ".git"))
                self.git("rm", "--cached", "--quiet", "--force", "--", path)
                self.git("add", "--all", "--", path)


def _environment() -> dict[str, str]:
    return {
        **os.environ,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_EDITOR": "true",
        "LC_ALL": "C.UTF-8",
    }


def _size(path: str) -> int:
    try:
        found = os.lstat(path)
    except OSError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
