"""An installation of its own, as a person would have it, and what tests ask of it."""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.ledger import BuildLedger, Ledger
from longshot_dagster.adapters.stack import stack
from longshot_dagster.adapters.stack.dagster_api import DagsterApi
from longshot_dagster.core.models import BuildPhase
from longshot_dagster.testing.scripted_model import ScriptedModel

KEY = "sk-e2e-secret"
_PATIENCE = 240.0  # a machine that does something else meanwhile is no failure


@dataclass
class Installation:
    home: Home
    model: ScriptedModel
    environ: Mapping[str, str]

    def longshot(self, *arguments: str, timeout: float = _PATIENCE) -> subprocess.CompletedProcess[str]:
        """The command as a person runs it."""
        argv = [sys.executable, "-m", "longshot_dagster.cli.main", *arguments]
        return subprocess.run(argv, capture_output=True, text=True, timeout=timeout, env=self.environ, check=False)

    def started(self, *arguments: str) -> "subprocess.Popen[str]":
        """The same, still running."""
        argv = [sys.executable, "-m", "longshot_dagster.cli.main", *arguments]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(argv, text=True, env=self.environ, **streams)

    @property
    def api(self) -> DagsterApi:
        info = stack.running(self.home)
        assert info is not None, "the stack is not running"
        return stack.api(self.home, info)

    def ledger(self, build: str) -> BuildLedger:
        return Ledger(self.home.builds).build(build)

    def asked(self, build_start: int = 0) -> list[dict[str, Any]]:
        """The model's log from entry `build_start` on."""
        return self.model.log[build_start:]

    def launch(self, build: str, repository: Path, **more: Any) -> str:
        """`start_build` as the launchpad starts it; the run's id."""
        config = {"request": "Write alpha and beta", "repository": str(repository), "build": build, **more}
        return self.api.launch("start_build", {"ops": {"start_build": {"config": config}}}, {})

    def wait(self, what: str, ready: Callable[[], Any], seconds: float = _PATIENCE) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := ready()):
            assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
            time.sleep(0.1)
        return found

    def finished(self, build: str) -> bool:
        return self.ledger(build).exists() and self.ledger(build).state().phase is BuildPhase.FINISHED


def bare(folder: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(folder)], check=True)
    return folder


def git(repository: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(repository), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()
