"""A build with a repository, a ledger, real sandboxes and a scripted model, for the tests of worker and sweep."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.ledger import BuildLedger, Ledger
from longshot_dagster.adapters.repository.mirror import Mirror
from longshot_dagster.adapters.sandboxes.sandbox_local import LocalProvider
from longshot_dagster.adapters.workers.worker import WorkerRunner
from longshot_dagster.core.errors import ModelUnavailable
from longshot_dagster.core.models import BuildRequest, Handoff, Target, TargetKind, Task
from longshot_dagster.core.sandbox import SandboxProvider
from longshot_dagster.core.settings import Isolation, Settings
from longshot_dagster.core.usage import Usage

sys.path.append(str(Path(__file__).resolve().parents[1] / "sandbox"))
from scripted_chat import ScriptedChat

BUILD = "shop-7f3k"
APP = "def price():\n    return 1\n"
TEST = "import unittest\nimport app\n\nclass T(unittest.TestCase):\n    def test_price(self):\n        self.assertEqual(app.price(), 1)\n"


class TestClock:
    """The wall clock, except that nobody waits."""

    __test__ = False

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.at = 1_000.0

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        self.at += 0.001
        return self.at

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


class TestGateway:
    """One socket for every key, and counts of what passed through it."""

    __test__ = False

    def __init__(self, chat: ScriptedChat) -> None:
        self.chat = chat
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.gone = False

    def open(self, build: str, key: str, budget: int, timeout_s: float | None = None, model: str = "") -> str:
        if self.gone:
            raise ModelUnavailable("the gateway is gone")
        self.opened.append(key)
        return self.chat.path

    def begin(
        self, build: str, key: str, budget: int, timeout_s: float | None = None, model: str = ""
    ) -> tuple[str, Usage]:
        return self.open(build, key, budget, timeout_s), self.usage(build, key)

    def close(self, build: str, key: str) -> Usage | None:
        self.closed.append(key)
        return self.usage(build, key)

    def usage(self, build: str, key: str | None = None) -> Usage:
        return Usage(self.chat.tokens_in, self.chat.tokens_out)

    def comes_back(self) -> bool:
        return not self.gone


def git(cwd: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=cwd, check=True, capture_output=True, text=True).stdout.strip()


def repository(tmp_path: Path, files: dict[str, str]) -> Path:
    """A bare repository with `files` on main."""
    work, bare = tmp_path / "seed", tmp_path / "target.git"
    for name, text in files.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(text)
    git(tmp_path, "init", "-q", "-b", "main", str(work))
    git(work, "add", "-A")
    git(work, "commit", "-q", "-m", "first")
    git(tmp_path, "clone", "-q", "--bare", str(work), str(bare))
    return bare


class Build:
    """Everything a worker runs with. `replies` is what the model says."""

    def __init__(
        self,
        tmp_path: Path,
        socket: Path,
        replies: Sequence[Any],
        files: dict[str, str] | None = None,
        provider: SandboxProvider | None = None,
        isolation: Isolation = Isolation.AUTO,
        **settings: Any,
    ) -> None:
        bare = repository(tmp_path, files or {"app.py": APP, "test_app.py": TEST})
        self.home = Home(tmp_path / "home")
        target = Target(repository=str(bare), url=str(bare), kind=TargetKind.REMOTE, base_branch="main", branch="main")
        self.base = git(bare, "rev-parse", "main")
        self.request = BuildRequest(
            build=BUILD,
            request="a shop",
            target=target,
            base=self.base,
            settings=Settings(sandbox_isolation=isolation, worker_timeout=60, **settings),
            created_at=1.0,
        )
        self.ledger: BuildLedger = Ledger(self.home.builds).build(BUILD)
        self.ledger.save_request(self.request)
        self.mirror = Mirror(self.home, target)
        self.provider = provider or LocalProvider(self.home.sandboxes, isolation)
        self.clock = TestClock()
        self.chat = ScriptedChat(str(socket), replies)
        self.gateway = TestGateway(self.chat)

    def task(self, **more: Any) -> Task:
        fields = {"id": "r001-01", "build": BUILD, "iteration": "root.001", "planner": "root", "scope": ("app.py",)}
        fields |= {"description": "Raise the price.", "branch": f"worker/{BUILD}/r001-01", **more}
        return Task(**fields)

    @property
    def runner(self) -> WorkerRunner:
        return WorkerRunner(self.ledger, self.request, self.provider, self.mirror, self.gateway, self.clock)

    def work(self, cancelled: Any = lambda: False) -> Handoff:
        with self.chat:
            return self.runner.run(self.task(), cancelled)
