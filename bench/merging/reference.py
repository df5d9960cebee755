"""The reference's merge queue, command by command: one work tree, rebase, retries, a push for each branch.

Its source was read and its git commands counted (29 for a branch that lands, 89 for one that conflicts); this is the same
sequence with the same commands, started from Python instead of Node.
"""

import os
import subprocess
import time
from pathlib import Path

from restoring.loop import git

from merging.workload import Workload

_TRIES = 3
_UNMERGED = ("UU", "AA", "DD", "AU", "UA", "DU", "UD")


class Reference:
    """Lands branches of a clone of the workload that is its own."""

    def __init__(self, folder: Path, workload: Workload) -> None:
        self.origin = folder / "reference.git"
        self._work = folder / "reference"
        self.landed: list[str] = []
        self.conflicts: dict[str, list[str]] = {}  # branch -> files
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_") or "TRACE2" in k} | {
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_EDITOR": "true",
            **{
                f"GIT_{who}_{what}": "queue@longshot.invalid"
                for who in ("AUTHOR", "COMMITTER")
                for what in ("NAME", "EMAIL")
            },
        }
        git(folder, "clone", "-q", "--bare", str(workload.repository), str(self.origin))
        git(folder, "clone", "-q", str(self.origin), str(self._work))
        git(self._work, "config", "gc.auto", "0")

    def land(self, branch: str) -> bool:
        for attempt in range(_TRIES):
            self._clean()
            self._tried("fetch", "origin", branch)
            self._git("checkout", "main")
            if self._rebased(branch):
                self._git("push", "origin", "main")
                self._tried("push", "origin", "--delete", branch)
                self.landed.append(branch)
                return True
            if attempt < _TRIES - 1:
                self._retried(branch)
        return False

    def tree(self) -> str:
        return git(self.origin, "rev-parse", "main^{tree}")

    def _rebased(self, branch: str) -> bool:
        self._tried("rebase", "--abort")
        name = f"tmp-rebase-{time.time_ns()}"
        self._git("checkout", "-b", name, f"origin/{branch}")
        try:
            self._git("rebase", "main")
            self._git("checkout", "main")
            self._git("merge", "--ff-only", name)
        except subprocess.CalledProcessError:
            status = self._git("status", "--porcelain").splitlines()
            self.conflicts[branch] = [line[3:] for line in status if line[:2] in _UNMERGED]
            self._tried("rebase", "--abort")
            self._tried("checkout", "main")
            self._tried("branch", "-D", name)
            self._abort()
            return False
        self._tried("branch", "-D", name)
        return True

    def _retried(self, branch: str) -> None:
        name = f"retry-rebase-{time.time_ns()}"
        self._git("checkout", "-b", name, f"origin/{branch}")
        self._git("checkout", name)
        if not self._tried("rebase", "main"):
            self._tried("rebase", "--abort")
        self._clean()
        self._tried("branch", "-D", name)

    def _clean(self) -> None:
        self._abort()
        self._tried("reset", "--hard", "HEAD")
        self._tried("clean", "-fd")
        self._tried("branch", "--list", "retry-rebase-*")
        self._tried("checkout", "main")

    def _abort(self) -> None:
        self._tried("rebase", "--abort")
        self._tried("merge", "--abort")

    def _tried(self, *arguments: str) -> bool:
        try:
            self._git(*arguments)
        except subprocess.CalledProcessError:
            return False
        return True

    def _git(self, *arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=self._work, env=self._environment, capture_output=True, text=True, check=True
        )
        return done.stdout
