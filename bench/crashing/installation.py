"""Longshot as the crash bench uses it: a home and a repository of its own, the command as a person runs it, and the pids
of what is to be killed."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from restoring.loop import git, make_repository

from crashing.assignment import REQUEST, Mode, first_files
from longshot_dagster.adapters.gateway.gateway_client import Gateway
from longshot_dagster.adapters.host import leases, processes
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.ledger import BuildLedger, Ledger
from longshot_dagster.adapters.settings import STACK_MARK
from longshot_dagster.adapters.stack import stack
from longshot_dagster.core.errors import LongshotError
from longshot_dagster.core.ids import parse_iteration_key
from longshot_dagster.core.report import EXIT_PAUSED
from longshot_dagster.core.usage import REHEARSAL_MODEL

_KEPT = ("PATH", "PYTHONPATH", "HOME", "LANG", "TMPDIR", "USER", "LOGNAME", "SANDBOX_ISOLATION")
_OF_THE_STACK = ("code server", "webserver", "daemon")
_PARTITION = "dagster/partition"
MAX_RESUMES = 40

# A push to this repository takes its time once `stall` says so: before or after it has moved the branch.
_HOOK = """#!/bin/sh
grep -q ' refs/heads/main$' || exit 0
[ "$(cat '{folder}/stall' 2>/dev/null)" = '{stage}' ] || exit 0
: > '{folder}/open/{stage}.'$$
sleep {seconds}
"""
_STALL_S = 2


@dataclass(frozen=True)
class Repository:
    """A bare repository whose pushes to main can be slowed down."""

    folder: Path

    @property
    def bare(self) -> Path:
        return self.folder / "repository.git"

    @property
    def opened(self) -> Path:
        """Where a file appears when a push has come to the stage that is slowed down."""
        return self.folder / "open"

    @classmethod
    def made(cls, folder: Path, mode: Mode) -> "Repository":
        tree, made = folder / "first", cls(folder)
        for path, text in first_files(mode).items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_text(text)
        make_repository(made.bare, tree, "The beginning")
        made.opened.mkdir()
        for stage, hook in (("before", "pre-receive"), ("after", "post-receive")):
            slow = made.bare / "hooks" / hook
            slow.write_text(_HOOK.format(folder=folder, stage=stage, seconds=_STALL_S))
            slow.chmod(0o755)
        return made

    def stall(self, stage: str) -> None:
        """From now on pushes wait `before` or `after` they move main; the empty stage is none."""
        (self.folder / "stall").write_text(stage)

    def tree(self) -> str:
        return git(self.bare, "rev-parse", "main^{tree}")


@dataclass
class Installation:
    """A home in `folder`; `settings` come on top of what it takes to run programs."""

    folder: Path
    settings: Mapping[str, str]
    repository: Repository
    resumed: list[str] = field(default_factory=list)  # why it had to be, one line each
    exit_code: int | None = None

    @property
    def home(self) -> Home:
        return Home(self.folder / "home")

    @property
    def ledger(self) -> BuildLedger | None:
        """The build's, once it has begun."""
        builds = Ledger(self.home.builds).builds()
        return Ledger(self.home.builds).build(builds[-1]) if builds else None

    # --- a person ----------------------------------------------------------------------------------------------------

    def begin(self) -> threading.Thread:
        """A person who starts the build, and resumes it whenever it pauses; `exit_code` is there when the thread ends."""
        person = threading.Thread(target=self._watch_over, name="person", daemon=True)
        person.start()
        return person

    def _watch_over(self) -> None:
        code = self.longshot(REQUEST, "--repo", str(self.repository.bare), "--yes")
        while code == EXIT_PAUSED and len(self.resumed) < MAX_RESUMES and (ledger := self.ledger):
            self.resumed.append(ledger.state().reason)
            code = self.longshot("resume", ledger.build)
        self.exit_code = code

    def longshot(self, *arguments: str) -> int:
        return self.command(*arguments).wait()

    def command(self, *arguments: str) -> "subprocess.Popen[bytes]":
        """`longshot` as it has just been started."""
        environ = {name: value for name, value in os.environ.items() if name in _KEPT}
        environ |= {"LONGSHOT_HOME": str(self.home.root), "LONGSHOT_UI_PORT": "0", **self.settings}
        argv = [sys.executable, "-m", "longshot_dagster.cli.main", *arguments]
        with (self.folder / "longshot.log").open("ab") as log:
            return subprocess.Popen(
                argv, cwd=self.folder, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def down(self) -> list[str]:
        """Stop the stack; what of it lives on, as command lines."""
        info = stack.read_info(self.home)
        self.longshot("down")
        left = processes.carrying(STACK_MARK, info.mark) if info and info.mark else []
        said = []
        for pid in left:
            with contextlib.suppress(OSError):
                said.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"))
        return said

    # --- what can be killed ------------------------------------------------------------------------------------------

    def targets(self) -> list[str]:
        """Names of what is killed in turn; a process of the stack that the webserver's clients can do without is one."""
        info = stack.running(self.home)
        others = sorted(set(info.children) - set(_OF_THE_STACK)) if info else []
        return ["run", "daemon", "code server", "gateway", *others]

    def pid_of(self, target: str) -> int | None:
        if target == "gateway":
            with contextlib.suppress(LongshotError):
                return int(Gateway(self.home).status()["pid"])
            return None
        info = stack.running(self.home)
        return info.children.get(target) if info else None

    def runs(self) -> dict[str, int]:
        """Run id -> pid of the process it lives in."""
        found = {}
        for lease in self.home.leases.glob("run-*"):
            run = lease.name.removeprefix("run-")
            if pid := leases.holder(self.home, run):
                found[run] = pid
        return found


class Runs:
    """Which iteration every living run is of; kept up to date by a thread, because a kill cannot wait for an answer."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._iterations: dict[str, str] = {}  # run id -> root.003
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="runs", daemon=True)
        self.living: dict[str, int] = {}

    def __enter__(self) -> "Runs":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def iteration(self, run: str) -> str:
        """`root.003`; empty when it is none."""
        return self._iterations.get(run, "")

    def of(self, iteration: str) -> tuple[str, int] | None:
        """(run id, pid) of the living run of `iteration`."""
        return next(((r, pid) for r, pid in self.living.items() if self.iteration(r) == iteration), None)

    def by_pid(self, pid: int) -> str:
        """Run id of the living run in process `pid`; empty when there is none."""
        return next((run for run, found in self.living.items() if found == pid), "")

    def _keep(self) -> None:
        while not self._over.wait(0.1):
            self.living = self._installation.runs()
            if any(run not in self._iterations for run in self.living):
                self._ask()

    def _ask(self) -> None:
        info = stack.running(self._installation.home)
        if info is None:
            return
        with contextlib.suppress(LongshotError):
            for run in stack.api(self._installation.home, info).active():
                self._iterations[run.id] = _short(run.tags.get(_PARTITION, ""))
        # One that has ended meanwhile is never asked for again.
        for run_id in self.living:
            self._iterations.setdefault(run_id, "")


def _short(partition: str) -> str:
    with contextlib.suppress(LongshotError):
        return parse_iteration_key(partition).short
    return ""


def settings(base_url: str, workers: int) -> dict[str, str]:
    """One check that every sweep runs, and no budget that could run out."""
    return {
        "LLM_BASE_URL": base_url,
        "LLM_API_KEY": "crash-bench",
        "LLM_MODEL": REHEARSAL_MODEL,
        "MAX_WORKERS": str(workers),
        "MAX_TOKENS_PER_BUILD": "0",
        "SANDBOX_PROVIDER": "local",
        "HEALTH_CHECK_INTERVAL": "2",
        "CHECK_TEST": "sleep 0.3; test ! -e broken",
        **dict.fromkeys(("CHECK_INSTALL", "CHECK_COMPILE", "CHECK_TYPES", "CHECK_LINT"), "none"),
    }


def wait_for(what: str, ready, seconds: float):  # type: ignore[no-untyped-def]
    """The first true value of `ready()`; raises LongshotError when there is none within `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        if time.monotonic() > deadline:
            raise LongshotError(f"{what} did not happen within {seconds:.0f} s")
        time.sleep(0.05)
    return found
