"""Keeps one home's code server, daemon, guarded UI and gateway running until it is told to stop.

`dagster dev` is not used: its state dies with it, the daemon's death ends it, and a killed code server is not restarted
(measured). The run starter comes first: the other three, and runs, are forks of it (`supervised.py`), and survive its death.
Everything ends with an orderly stop.
"""

import argparse
import contextlib
import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from longshot_dagster.adapters.gateway.endpoint_news import Hearing
from longshot_dagster.adapters.gateway.gateway_client import Gateway
from longshot_dagster.adapters.host import processes, waking
from longshot_dagster.adapters.host.documents import write_atomically
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.host.loopback import free_port
from longshot_dagster.adapters.host.shipped import shipped
from longshot_dagster.adapters.host.supervisor_lock import lock_path
from longshot_dagster.adapters.settings import INHERITED_DOTENV, STACK_MARK, without_secrets
from longshot_dagster.adapters.stack import run_starter
from longshot_dagster.adapters.stack.dagster_api import LOCATION, ApiUnavailable, DagsterApi
from longshot_dagster.adapters.stack.room import Room
from longshot_dagster.adapters.stack.stack import (
    START_SECONDS,
    StackFailed,
    StackInfo,
    ending_s,
    pause_builds,
    save_info,
    tail,
)
from longshot_dagster.adapters.stack.supervised import Adopted, Service, adopting, bury_orphans
from longshot_dagster.adapters.stack.ui_access import UiAccess
from longshot_dagster.core.endpoints import Endpoint, endpoints_from_wire
from longshot_dagster.core.errors import LongshotError, WrongUse
from longshot_dagster.version import __version__

TICK_SECONDS = 0.5
SERVICES_END_SECONDS = 3.0
LET_GO_SECONDS = 5.0  # a target that is out of reach longer finds out by itself that nobody drives its builds
FORK_SECONDS = 20.0  # for one that has died; a run starter that has died with it loads faster than it would itself
LEAVE_ALONE_SECONDS = 60.0  # a run starter that is stuck costs one service its time, not every one

Say = Callable[[str], None]


class Supervisor:
    """One per home. `run` blocks until SIGTERM or SIGINT; everything it started is gone when it returns."""

    def __init__(
        self,
        home: Home,
        *,
        port: int,
        endpoints: Sequence[Endpoint],
        environ: Mapping[str, str],
        dotenv: str,
        say: Say,
        on_ready: Callable[[StackInfo], None] = lambda _: None,
        definitions: str = "longshot_dagster.definitions",
    ) -> None:
        self._home = home
        self._definitions = definitions
        self._wanted_port = port
        self._endpoints = tuple(endpoints)
        self._environ = environ
        self._dotenv = dotenv
        self._say = say
        self._on_ready = on_ready
        self._stop = threading.Event()
        self._mark = secrets.token_hex(8)
        self._services: list[Service] = []
        self._adopts = False
        self._not_asked_before = 0.0
        self._gateway = Gateway(home)
        self._gateway_down = False

    def run(self) -> None:
        """Raises StackFailed when a process cannot start, LongshotError when another supervisor has the home."""
        with _only_one(self._home), self._signals():
            port = free_port(self._wanted_port)
            if self._wanted_port and port != self._wanted_port:
                self._say(f"port {self._wanted_port} is taken, using {port}")
            info = StackInfo(pid=os.getpid(), port=port, version=__version__, started=time.time(), mark=self._mark)
            save_info(self._home, info)
            self._news = Hearing(self._home)
            # A child of another thread would be this one's, and die with that thread.
            self._adopts = threading.current_thread() is threading.main_thread() and adopting(True)
            try:
                self._start(info)
                if not self._stop.is_set():
                    info = self._noted(info, ready=True)
                    self._on_ready(info)
                room = Room(self._home)
                while not self._stop.wait(TICK_SECONDS):
                    if paused := room.look():
                        self._say(f"{', '.join(paused[:5])} paused: {room.reason}")
                    self._endpoints = self._news.newest() or self._endpoints
                    if self._tend():
                        info = self._noted(info, ready=True)
            except StackFailed as e:
                save_info(self._home, info.model_copy(update={"error": str(e)}))
                raise
            finally:
                self._end(info)

    # --- starting ----------------------------------------------------------------------------------------------------

    def _start(self, info: StackInfo) -> None:
        self._prepare_dagster_home()
        if self._endpoints:
            self._gateway.ensure(self._endpoints)
        python, log = sys.executable, self._home.logs
        code = [python, "-m", "dagster", "api", "grpc", "--socket", str(self._socket), "-m", self._definitions]
        code += ["--location-name", LOCATION, "--use-python-environment-entry-point", "--empty-working-directory"]
        web = [python, "-m", "longshot_dagster.defs.webserver", "--port", str(info.port)]
        daemon = [python, "-m", "longshot_dagster.defs.daemon"]
        starter = [python, "-m", "longshot_dagster.adapters.stack.run_starter", "--module", self._definitions]
        starter += ["--runs", "longshot_dagster.defs.launcher"]
        workspace = str(self._workspace)
        self._starter = Service("run starter", starter, log / "runs.log")
        code_server = Service("code server", code, log / "code-server.log")
        self._services = [
            self._starter,
            code_server,
            Service("webserver", [*web, "--workspace", workspace], log / "webserver.log"),
            Service("daemon", [*daemon, "--workspace", workspace], log / "daemon.log"),
        ]
        api = DagsterApi(info.port, UiAccess(self._home).token(), timeout_s=10)
        if self._adopts:
            self._spawn(self._starter, START_SECONDS)
        self._spawn(code_server, START_SECONDS)
        # The other two look at the code server once as they start; it must be there, or they wait for their next look.
        self._wait("code server", self._code_server_listens)
        for service in self._services:
            if not service.alive:
                self._spawn(service, START_SECONDS)
        run_starter.load(self._home)
        self._noted(info, ready=False)
        self._wait("webserver", api.answers)
        self._wait("stack", lambda: _healthy(api))

    def _prepare_dagster_home(self) -> None:
        ours, wanted = self._home.dagster / "dagster.yaml", shipped("dagster.yaml").read_bytes()
        if not ours.exists() or ours.read_bytes() != wanted:
            write_atomically(ours, wanted)
        # JSON is YAML, and quotes any path right.
        where = {"grpc_server": {"socket": str(self._socket), "location_name": LOCATION}}
        write_atomically(self._workspace, json.dumps({"load_from": [where]}).encode())

    def _wait(self, what: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._stop.is_set() and not ready():
            for service in self._services:
                if service.process is not None and not service.alive:
                    ended = service.process.wait()
                    raise StackFailed(f"the {service.name} ended with {ended} as it started: {tail(service.log)}")
            if time.monotonic() > deadline:
                raise StackFailed(f"the {what} was not ready after {START_SECONDS} s; logs are in {self._home.logs}")
            self._stop.wait(0.1)

    def _code_server_listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as s:
            try:
                s.connect(str(self._socket))
            except OSError:
                return False
        return True

    def _spawn(self, service: Service, patience_s: float = FORK_SECONDS) -> None:
        """As a fork of the run starter, which may still be loading; with its command when none comes."""
        if self._adopts and service is not self._starter and time.monotonic() >= self._not_asked_before:
            asked = run_starter.Serve(argv=service.argv[1:], log=str(service.log), parent=os.getpid())
            pid = run_starter.have_served(
                self._home, asked, patience_s, lambda: self._starter.alive and not self._stop.is_set()
            )
            if pid is not None:
                service.runs_as(Adopted(pid))
                return
            if self._starter.alive:
                self._not_asked_before = time.monotonic() + LEAVE_ALONE_SECONDS
        if not self._stop.is_set():
            # No .env of the person's folder: it may hold keys.
            service.exec(cwd=self._home.dagster, env=self._child_environment())

    def _child_environment(self) -> dict[str, str]:
        return {
            **without_secrets(self._environ),
            "DAGSTER_HOME": str(self._home.dagster),
            "LONGSHOT_HOME": str(self._home.root),
            "PYTHONUNBUFFERED": "1",
            "DAGSTER_DISABLE_TELEMETRY": "1",
            INHERITED_DOTENV: self._dotenv,
            STACK_MARK: self._mark,
        }

    # --- keeping -----------------------------------------------------------------------------------------------------

    def _tend(self) -> bool:
        """Restart what has died, bound the logs; True when a process changed."""
        changed, now = False, time.monotonic()
        for service in self._services:
            service.bound_log()
            if service.alive:
                continue
            if service.process is not None:
                self._say(f"the {service.name} ended with {service.died(now)}; starting it again")
            if now >= service.not_before:
                self._spawn(service)
                changed = True
        if self._adopts:
            bury_orphans(self._services)
        self._tend_gateway()
        return changed

    def _tend_gateway(self) -> None:
        if not self._endpoints or self._gateway.alive():
            return
        try:
            self._gateway.ensure(self._endpoints)
            self._gateway_down = False
        except LongshotError as e:
            if not self._gateway_down:  # said once, tried at every tick
                self._say(f"the gateway cannot be started: {e}")
            self._gateway_down = True

    def _noted(self, info: StackInfo, ready: bool) -> StackInfo:
        pids = {s.name: s.process.pid for s in self._services if s.process}
        info = info.model_copy(update={"ready": ready, "children": pids})
        save_info(self._home, info)
        return info

    # --- ending ------------------------------------------------------------------------------------------------------

    def _end(self, info: StackInfo) -> None:
        """Builds pause, runs end politely, then processes; longer than about fifteen seconds only with many workers."""
        with contextlib.suppress(LongshotError):
            pause_builds(self._home, "Longshot was stopped (longshot down)")
        if any(s.name == "webserver" and s.alive for s in self._services):
            self._end_runs(DagsterApi(info.port, UiAccess(self._home).token(), timeout_s=3))
        for service in self._services:
            if service.alive and service.process:
                service.process.terminate()
        deadline = time.monotonic() + SERVICES_END_SECONDS
        while any(s.alive for s in self._services) and time.monotonic() < deadline:
            time.sleep(0.05)
        for service in self._services:
            service.end()
        processes.kill(processes.carrying(STACK_MARK, self._mark))
        self._let_go()
        with contextlib.suppress(LongshotError):
            self._gateway.stop()
        self._news.close()
        for left in (self._socket, run_starter.socket_path(self._home), waking.socket_path(self._home)):
            left.unlink(missing_ok=True)
        self._home.leave_runtime()
        if self._adopts:
            bury_orphans(self._services)
            adopting(False)

    def _end_runs(self, api: DagsterApi) -> None:
        deadline = time.monotonic() + ending_s(self._home)
        with contextlib.suppress(LongshotError):
            api.terminate([r.id for r in api.active()])
            while api.active() and time.monotonic() < deadline:
                time.sleep(0.2)
            api.terminate([r.id for r in api.active()], now=True)

    def _let_go(self) -> None:
        """Say on their targets that nobody drives the builds of this home any more, so that another may at once."""
        if not any((self._home.root / "mirrors").glob("*.git/longshot-beat-*.json")):
            return
        argv = [
            sys.executable,
            "-P",
            "-m",
            "longshot_dagster.adapters.landing.heartbeat",
            "--home",
            str(self._home.root),
        ]
        with (self._home.logs / "stack.log").open("ab") as log:
            letting_go = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._child_environment()
            )
        started = processes.start_time(letting_go.pid)
        try:
            letting_go.wait(LET_GO_SECONDS)
        except subprocess.TimeoutExpired:
            processes.end_tree(letting_go.pid, started)
            letting_go.wait()

    # --- plumbing ----------------------------------------------------------------------------------------------------

    @property
    def _socket(self) -> Path:
        return self._home.runtime / "code.sock"

    @property
    def _workspace(self) -> Path:
        return self._home.dagster / "workspace.yaml"

    @contextlib.contextmanager
    def _signals(self):  # type: ignore[no-untyped-def]
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {n: signal.signal(n, lambda *_: self._stop.set()) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, action in before.items():
                signal.signal(number, action)


def _healthy(api: DagsterApi) -> bool:
    try:
        health = api.health()
    except ApiUnavailable:
        return False
    if health.error:
        raise StackFailed(f"the code location does not load: {health.error}")
    return not health.waiting


@contextlib.contextmanager
def _only_one(home: Home):  # type: ignore[no-untyped-def]
    home.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = os.open(lock_path(home), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise WrongUse(f"a stack is already running for {home.root}; `longshot down` stops it") from e
        os.ftruncate(file, 0)
        os.write(file, str(os.getpid()).encode())
        yield
    finally:
        os.close(file)


def main() -> None:
    """Run by `stack.ensure`; endpoints and the person's .env settings come as JSON on stdin."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--home", type=Path, required=True)
    options.add_argument("--port", type=int, required=True)
    options.add_argument("--detach", action="store_true")
    given = options.parse_args()
    told = json.load(sys.stdin)
    if given.detach:
        if os.fork():
            os._exit(0)
        os.setsid()
        os.chdir("/")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)  # noqa: T201 - goes to logs/stack.log

    try:
        Supervisor(
            Home(given.home),
            port=given.port,
            endpoints=endpoints_from_wire(told["endpoints"]),
            environ=dict(os.environ),
            dotenv=told["dotenv"],
            say=say,
        ).run()
    except LongshotError as e:
        say(str(e))
        sys.exit(e.exit_code)


if __name__ == "__main__":
    main()
