"""One restoration through the real loop: a bare repository, an installation of its own, `longshot` as a person runs it."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.host.processes import end_tree, start_time
from longshot_dagster.adapters.ledger.ledger import BuildLedger, Ledger
from longshot_dagster.adapters.sandboxes.sandbox_local import LocalProvider
from longshot_dagster.core.errors import LedgerError, SandboxError
from longshot_dagster.core.landing_records import LandingState
from longshot_dagster.core.settings import Isolation
from longshot_dagster.core.usage import REHEARSAL_MODEL

_AUTHOR = {"NAME": "restore bench", "EMAIL": "bench@longshot.invalid", "DATE": "2026-01-01T00:00:00Z"}
_KEPT = ("PATH", "PYTHONPATH", "HOME", "LANG", "TMPDIR", "USER", "LOGNAME", "SANDBOX_ISOLATION")


@dataclass
class Result:
    """What a build came to. `tasks` are those that count: one that another has replaced does not."""

    exit_code: int
    wall_s: float
    build: str = ""
    tasks: int = 0
    landed: int = 0
    superseded: int = 0
    conflicts: int = 0
    iterations: int = 0
    leftovers: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Installation:
    """Longshot in `folder`, with nothing of the person's but what it takes to run programs."""

    folder: Path
    settings: Mapping[str, str]

    @property
    def home(self) -> Home:
        return Home(self.folder / "home")

    @property
    def provider(self) -> LocalProvider:
        return LocalProvider(self.home.sandboxes, Isolation(os.environ.get("SANDBOX_ISOLATION", "auto")))

    def build(self, request: str, repository: Path) -> Result:
        began = time.monotonic()
        code = self._longshot(request, "--repo", str(repository), "--yes")
        return _result(self.home, code, time.monotonic() - began)

    def down(self) -> None:
        self._longshot("down")

    def kill_worker(self, task: str) -> bool:
        """SIGKILL everything that runs in the sandbox of `task`; False when nothing does."""
        struck = False
        for found in self.provider.list({"task": task}):
            try:
                running = list(self.provider.attach(found.id).running.glob("[0-9]*"))
            except (SandboxError, OSError):
                continue
            for note in running:
                end_tree(int(note.name), start_time(int(note.name)))
                struck = True
        return struck

    def _longshot(self, *arguments: str) -> int:
        environ = {name: value for name, value in os.environ.items() if name in _KEPT}
        environ |= {"LONGSHOT_HOME": str(self.home.root), "LONGSHOT_UI_PORT": "0", **self.settings}
        argv = [sys.executable, "-m", "longshot_dagster.cli.main", *arguments]
        return subprocess.run(argv, cwd=self.folder, env=environ, stdin=subprocess.DEVNULL, check=False).returncode


def settings(base_url: str, check: str, readable: Path, workers: int, check_seconds: int) -> dict[str, str]:
    """The build's settings: the package's own suite is its only check, and there is no budget to run out of."""
    return {
        "LLM_BASE_URL": base_url,
        "LLM_API_KEY": "oracle",
        "LLM_MODEL": REHEARSAL_MODEL,
        "MAX_WORKERS": str(workers),
        "MAX_TOKENS_PER_BUILD": "0",
        "SANDBOX_PROVIDER": "local",
        "SANDBOX_READABLE": str(readable),
        "CHECK_TEST": check,
        "CHECK_TIMEOUT": str(check_seconds),
        **dict.fromkeys(("CHECK_INSTALL", "CHECK_COMPILE", "CHECK_TYPES", "CHECK_LINT"), "none"),
    }


def make_repository(bare: Path, tree: Path, message: str) -> str:
    """A new bare repository whose branch main holds every file of `tree`; the id of that tree."""
    git(bare.parent, "init", "-q", "--bare", "-b", "main", str(bare))
    work = ("--git-dir", str(bare), "--work-tree", str(tree))
    git(tree, *work, "add", "--all", "--force", ".")
    git(tree, *work, "commit", "-q", "-m", message)
    return tree_of(bare)


def tree_of(bare: Path) -> str:
    return git(bare, "rev-parse", "main^{tree}")


def changed_files(bare: Path, ours: str, theirs: Path) -> int:
    """How many files differ between tree `ours` in `bare` and branch main of the repository `theirs`."""
    git(bare, "fetch", "-q", str(theirs), "main")
    return len(git(bare, "diff", "--name-only", "--no-renames", ours, "FETCH_HEAD").splitlines())


def git(where: Path, *arguments: str) -> str:
    """Raises CalledProcessError."""
    identity = {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in _AUTHOR.items()}
    environ = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")} | identity
    environ |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(["git", *arguments], cwd=where, env=environ, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _result(home: Home, code: int, wall_s: float) -> Result:
    builds = Ledger(home.builds).builds()
    if not builds:
        return Result(code, wall_s)
    ledger = Ledger(home.builds).build(builds[-1])
    return _read(ledger, Result(code, wall_s, build=ledger.build))


def _read(ledger: BuildLedger, result: Result) -> Result:
    try:
        report = ledger.report()
        landings = [landing for task in ledger.task_ids() if (landing := ledger.landing(task)) is not None]
        result.iterations = len(ledger.iterations())
    except LedgerError as unreadable:
        result.leftovers = [str(unreadable)]
        return result
    states = [landing.state for landing in landings]
    result.landed = states.count(LandingState.LANDED)
    result.superseded = states.count(LandingState.SUPERSEDED)
    result.tasks = len(ledger.task_ids()) - result.superseded
    result.conflicts = sum(any(s is LandingState.CONFLICT for s, _ in landing.history) for landing in landings)
    if report is not None:
        result.conflicts, result.iterations = report.conflicts, report.iterations
        result.leftovers = [f"{left.task} {left.state}: {left.reason}" for left in report.leftovers]
    return result
