"""Whether a stack (code server, daemon, UI, gateway) runs for a home, and starting and stopping one from outside.

$LONGSHOT_HOME/stack.lock    flocked by the supervisor while it lives; holds its pid
$LONGSHOT_HOME/stack.json    StackInfo: port, pids, whether it is ready, why it ended
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from longshot_dagster.adapters.gateway.gateway_client import Gateway
from longshot_dagster.adapters.host import leases, processes
from longshot_dagster.adapters.host.documents import write_atomically
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.host.supervisor_lock import supervisor_pid
from longshot_dagster.adapters.ledger.ledger import Ledger
from longshot_dagster.adapters.settings import STACK_MARK, without_secrets
from longshot_dagster.adapters.stack.dagster_api import DagsterApi
from longshot_dagster.adapters.stack.ui_access import UiAccess
from longshot_dagster.core.display import display
from longshot_dagster.core.ending import runs_end_s
from longshot_dagster.core.endpoints import Endpoint, endpoints_to_wire
from longshot_dagster.core.errors import LedgerError, LongshotError, WrongUse
from longshot_dagster.version import __version__

START_SECONDS = 120
STOP_SECONDS = 10  # beside what the runs need


class StackInfo(BaseModel):
    """`stack.json`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    pid: int
    port: int
    version: str
    started: float = Field(description="seconds since the epoch")
    ready: bool = False
    mark: str = Field(default="", description="value of LONGSHOT_STACK in the environment of everything it started")
    children: dict[str, int] = Field(default_factory=dict, description="process name -> pid")
    error: str = Field(default="", description="why it could not start, or why it ended")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"


class StackFailed(LongshotError):
    """Raised when one of the stack's processes cannot start."""


def save_info(home: Home, info: StackInfo) -> None:
    write_atomically(home.root / "stack.json", info.model_dump_json(indent=1).encode())


def read_info(home: Home) -> StackInfo | None:
    try:
        return StackInfo.model_validate_json((home.root / "stack.json").read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def running(home: Home) -> StackInfo | None:
    """The living stack of `home`, ready or not."""
    pid, info = supervisor_pid(home), read_info(home)
    return info if pid and info and info.pid == pid else None


def api(home: Home, info: StackInfo) -> DagsterApi:
    return DagsterApi(info.port, UiAccess(home).token())


def ensure(
    home: Home,
    endpoints: Sequence[Endpoint],
    *,
    port: int,
    environ: Mapping[str, str],
    dotenv: str = "{}",
    say: Callable[[str], None] = lambda _: None,
) -> StackInfo:
    """The running stack of `home`, started in the background when there is none.

    `dotenv` is what `settings.inheritable` gives. Raises StackFailed with the tail of the log that says why.
    """
    if supervisor_pid(home) is None:
        say("starting Longshot in the background (`longshot down` stops it) ...")
        _spawn(home, endpoints, port, environ, dotenv)
    info = _wait_ready(home)
    if info.version != __version__:
        raise WrongUse(
            f"the running stack is version {info.version}, this command {__version__}: `longshot down`, then again"
        )
    return info


def _spawn(home: Home, endpoints: Sequence[Endpoint], port: int, environ: Mapping[str, str], dotenv: str) -> None:
    # Keys go by stdin: an argument or a variable is readable in the process list.
    told = json.dumps({"endpoints": endpoints_to_wire(endpoints), "dotenv": dotenv})
    # -P: started in somebody's checkout, `-m` would import what lies there, and hand it the keys.
    argv = [sys.executable, "-P", "-m", "longshot_dagster.adapters.stack.supervisor", "--home", str(home.root)]
    argv += ["--port", str(port), "--detach"]
    (home.root / "stack.json").unlink(missing_ok=True)
    with (home.logs / "stack.log").open("ab") as log:
        subprocess.run(argv, input=told.encode(), stdout=log, stderr=log, env=without_secrets(environ), check=True)


def _wait_ready(home: Home) -> StackInfo:
    deadline = time.monotonic() + START_SECONDS
    seen = False
    while time.monotonic() < deadline:
        info = running(home)
        if info and info.ready:
            return info
        alive = supervisor_pid(home) is not None
        seen = seen or alive
        ended = read_info(home)
        if not alive and (seen or (ended and ended.error)):
            why = ended.error if ended and ended.error else tail(home.logs / "stack.log")
            raise StackFailed(f"Longshot could not start: {why}")
        time.sleep(0.1)
    raise StackFailed(f"Longshot was not ready after {START_SECONDS} s; its logs are in {home.logs}")


def stop(home: Home) -> bool:
    """Stop the stack and everything it started, or whatever a killed one has left; False when there was nothing."""
    pid = supervisor_pid(home)
    if not pid:
        return _end_left(home)
    info = read_info(home)
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + ending_s(home) + STOP_SECONDS
    while (
        supervisor_pid(home) == pid or processes.start_time(pid) is not None
    ):  # it lets go of its lock a moment before it ends
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            break
        time.sleep(0.05)
    if info and info.mark:
        processes.kill(processes.carrying(STACK_MARK, info.mark))
    _end_left(home)
    return True


def _end_left(home: Home) -> bool:
    """Runs and the gateway outlive a supervisor that was killed. Builds pause, and runs keep what their workers have done."""
    gateway, left = Gateway(home), _started_by_a_stack(home)
    if not left and not gateway.alive():
        home.leave_runtime()
        return False
    pause_builds(home, "Longshot was stopped (longshot down)")
    held = {leases.holder(home, path.name.removeprefix("run-")) for path in home.leases.glob("run-*")}
    for run in held & set(left):
        if run:
            with contextlib.suppress(ProcessLookupError):
                os.kill(run, signal.SIGTERM)
    deadline = time.monotonic() + ending_s(home)
    while held & set(_started_by_a_stack(home)) and time.monotonic() < deadline:
        time.sleep(0.2)
    processes.kill(_started_by_a_stack(home))
    with contextlib.suppress(LongshotError):
        gateway.stop()
    for path in home.runtime.glob("*.sock"):
        path.unlink(missing_ok=True)
    home.leave_runtime()
    return True


def _started_by_a_stack(home: Home) -> list[int]:
    """Processes of this home that some supervisor has started, the running one or one before it."""
    found = processes.carrying("LONGSHOT_HOME", str(home.root))
    return [p for p in found if p != os.getpid() and STACK_MARK in processes.environment(p)]


def ending_s(home: Home) -> float:
    """Seconds that the runs of all builds may take to end: they keep what their workers have done."""
    workers = [0]
    with contextlib.suppress(LedgerError, OSError):
        for ledger in Ledger(home.builds).unfinished():
            with contextlib.suppress(LedgerError, WrongUse):  # one that cannot be read has no runs
                workers.append(ledger.request().settings.max_workers)
    return runs_end_s(max(workers))


def pause_builds(home: Home, reason: str) -> list[str]:
    """Pause every build that is under way, because nothing will drive it; their names."""
    paused = []
    ledger = Ledger(home.builds)
    for build in ledger.builds():
        mine = ledger.build(build)
        with contextlib.suppress(LedgerError):  # one that cannot be read keeps no other from being paused
            if mine.state().under_way:
                mine.update_state(lambda state: state.paused(reason))
                paused.append(build)
    return paused


def tail(log: Path, lines: int = 3) -> str:
    """The last lines of a log in one, for an error message."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return f"no log at {log}"
    last = deque((line.strip() for line in text.splitlines() if line.strip()), maxlen=lines)
    return display(" / ".join(last), "plain", 600) + f" ({log})"
