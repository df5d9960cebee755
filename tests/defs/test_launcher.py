"""The contract of the launcher: a real run starter, real runs, and everything that may be killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import launched_jobs
import pytest
from dagster._core.errors import DagsterInvariantViolationError

from longshot_dagster.adapters.host import leases, processes
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.host.shipped import shipped
from longshot_dagster.adapters.stack import run_starter, supervised
from longshot_dagster.defs.launcher import ForkedRunLauncher, instance_ref

ENDED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)


class Place:
    """A home, its instance, and the run starter that serves it."""

    def __init__(self, home: Home, instance: dg.DagsterInstance) -> None:
        self.home = home
        self.instance = instance
        self.starter = self.start()

    def start(self) -> "subprocess.Popen[bytes]":
        argv = [sys.executable, "-m", "longshot_dagster.adapters.stack.run_starter", "--module", "launched_jobs"]
        argv += ["--runs", "longshot_dagster.defs.launcher"]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[1:])}
        with (self.home.logs / "runs.log").open("ab") as log:
            starter = subprocess.Popen(argv, cwd=Path(__file__).parent, env=environ, stdout=log, stderr=log)
        until(self.loaded, 120)
        return starter

    def loaded(self) -> bool:
        """It listens before it has loaded anything, and answers nobody until then: here with silence."""
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(run_starter.socket_path(self.home))):
                return False
            probe.sendall(b"\n")
            return _rest(probe) == b""

    def created(self, job: dg.JobDefinition, **config: Any) -> str:
        """A run that nobody has launched yet."""
        ops = {"ops": {op.name: {"config": config} for op in job.nodes}} if config else {}
        recon = dg.reconstructable(getattr(launched_jobs, job.name))
        run = self.instance.create_run_for_job(job, run_config=ops, job_code_origin=recon.get_python_origin())
        return run.run_id

    def launched(self, job: dg.JobDefinition, **config: Any) -> str:
        run_id = self.created(job, **config)
        self.instance.launch_run(run_id, workspace=None)  # type: ignore[arg-type]
        return run_id

    def status(self, run_id: str) -> dg.DagsterRunStatus:
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run.status

    def ended(self, run_id: str) -> str:
        until(lambda: self.status(run_id) in ENDED)
        return self.status(run_id).value

    def at_work(self, tmp_path: Path) -> tuple[str, int, Path]:
        """(run, pid, file that lets it end) of a run in the middle of its step."""
        let_go = tmp_path / "go"
        run_id = self.launched(launched_jobs.waiting, until=str(let_go))
        until(lambda: any(e.is_step_start for e in self.events(run_id)))
        pid = leases.holder(self.home, run_id)
        assert pid
        return run_id, pid, let_go

    def events(self, run_id: str) -> list[dg.DagsterEvent]:
        return [e.dagster_event for e in self.instance.all_logs(run_id) if e.dagster_event]


def until(true: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    home = Home(tmp_path_factory.mktemp("launcher") / "home")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("LONGSHOT_HOME", str(home.root))
        patched.setenv("DAGSTER_HOME", str(home.dagster))
        (home.dagster / "dagster.yaml").write_bytes(shipped("dagster.yaml").read_bytes())
        with dg.DagsterInstance.get() as instance:
            found = Place(home, instance)
            try:
                yield found
            finally:
                found.starter.terminate()
                found.starter.wait(30)
                home.leave_runtime()


@pytest.fixture(autouse=True)
def _in_the_installation(place: Place, _nobodys_settings: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSHOT_HOME", str(place.home.root))
    monkeypatch.setenv("DAGSTER_HOME", str(place.home.dagster))


def test_the_installation_uses_it(place: Place) -> None:
    assert isinstance(place.instance.run_launcher, ForkedRunLauncher)


def test_a_run_is_a_fork_with_a_session_of_its_own_and_nothing_of_its_parent(place: Place, tmp_path: Path) -> None:
    run_id = place.launched(launched_jobs.looking, to=str(tmp_path / "found"))
    assert place.ended(run_id) == "SUCCESS"
    found = json.loads((tmp_path / "found").read_text())
    assert (found["parent"], found["session"]) == (place.starter.pid, found["pid"])
    of_the_starter = {str(fd.readlink()) for fd in Path(f"/proc/{place.starter.pid}/fd").iterdir()}
    assert not of_the_starter & set(found["sockets"])
    assert sorted(found["others"]) == ["event writer", "step:look_around"]
    said = [e.message for e in place.events(run_id)]
    assert f"Started process for run (pid: {found['pid']})." in said
    until(lambda: leases.holder(place.home, run_id) is None)
    until(lambda: f"run {run_id} ended with 0" in (place.home.logs / "runs.log").read_text())


def test_the_run_starter_has_one_thread_and_has_opened_nothing(place: Place) -> None:
    proc = Path(f"/proc/{place.starter.pid}")
    assert len(list((proc / "task").iterdir())) == 1
    assert [f for f in (str(fd.readlink()) for fd in (proc / "fd").iterdir()) if f.endswith(".db")] == []


def test_what_the_instance_is_made_of_is_read_again_once_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    found, known = [], instance_ref()
    for level in ("INFO", "WARNING"):
        (tmp_path / "dagster.yaml").write_text(f"python_logs: {{python_log_level: {level}}}")
        known, before = instance_ref(), known
        assert known is not before
        assert instance_ref() is known
        found.append(known.settings["python_logs"])
    assert found == [{"python_log_level": "INFO"}, {"python_log_level": "WARNING"}]


def test_a_failed_step_fails_the_run(place: Place) -> None:
    assert place.ended(place.launched(launched_jobs.refusing)) == "FAILURE"


def test_a_cancelled_run_is_canceled_and_its_process_gone(place: Place, tmp_path: Path) -> None:
    run_id, pid, _ = place.at_work(tmp_path)
    assert place.instance.run_launcher.terminate(run_id)
    assert place.ended(run_id) == "CANCELED"
    until(lambda: processes.start_time(pid) is None)
    assert not place.instance.run_launcher.terminate(run_id)


def test_a_run_cancelled_before_it_has_a_process_does_no_step(place: Place, tmp_path: Path) -> None:
    run_id = place.created(launched_jobs.looking, to=str(tmp_path / "found"))
    assert place.instance.run_launcher.terminate(run_id)
    assert run_starter.ask(place.home, run_id)
    assert place.ended(run_id) == "CANCELED"
    assert not (tmp_path / "found").exists()


def test_a_run_cancelled_while_its_process_begins_is_canceled(place: Place, tmp_path: Path) -> None:
    run_id = place.launched(launched_jobs.waiting, until=str(tmp_path / "never"))
    assert place.instance.run_launcher.terminate(run_id)
    assert place.ended(run_id) == "CANCELED"


def test_a_bare_sigterm_fails_the_run(place: Place, tmp_path: Path) -> None:
    run_id, pid, _ = place.at_work(tmp_path)
    os.kill(pid, signal.SIGTERM)
    assert place.ended(run_id) == "FAILURE"


def test_a_killed_run_is_failed_at_once_with_the_reason(place: Place, tmp_path: Path) -> None:
    run_id, pid, _ = place.at_work(tmp_path)
    os.kill(pid, signal.SIGKILL)
    assert place.ended(run_id) == "FAILURE"
    assert "The run's process was killed by SIGKILL." in [e.message for e in place.events(run_id)]


def test_an_asker_that_gives_up_has_started_nothing(place: Place, tmp_path: Path) -> None:
    run_id = place.created(launched_jobs.looking, to=str(tmp_path / "found"))
    with socket.socket(socket.AF_UNIX) as asker:
        asker.connect(str(run_starter.socket_path(place.home)))
        asker.sendall(json.dumps({"run": run_id}).encode() + b"\n")
        pid = json.loads(asker.recv(4096))["pid"]
    until(lambda: processes.start_time(pid) is None)
    assert place.status(run_id) is dg.DagsterRunStatus.NOT_STARTED
    assert not leases.known(place.home, run_id)


@pytest.mark.parametrize("said", [b"\n", b"[]\n", b'{"run": "../x"}\n', b'{"run": 1}\n', b"x" * 5000, b"\xff\n"])
def test_whatever_else_is_said_to_it_starts_nothing(place: Place, said: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as asker:
        asker.connect(str(run_starter.socket_path(place.home)))
        asker.sendall(said)
        asker.shutdown(socket.SHUT_WR)
        assert _rest(asker) == b""
    assert place.starter.poll() is None


@pytest.fixture
def adopting() -> Iterator[None]:
    assert supervised.adopting(True)
    yield
    supervised.adopting(False)


def _asked(tmp_path: Path, parent: int, *arguments: str) -> run_starter.Serve:
    return run_starter.Serve(argv=["-m", "served_module", *arguments], log=str(tmp_path / "service.log"), parent=parent)


@pytest.mark.usefixtures("adopting")
def test_a_service_is_a_fork_that_becomes_a_child_of_whoever_asks(place: Place, tmp_path: Path) -> None:
    asked = _asked(tmp_path, os.getpid(), "--word", "here")
    pid = run_starter.have_served(place.home, asked, 60, lambda: True)
    assert pid
    service, log = supervised.Adopted(pid), tmp_path / "service.log"
    until(lambda: log.exists() and log.read_text().endswith("\n"))
    said = json.loads(log.read_text())
    assert (said["parent"], said["session"], said["arguments"]) == (os.getpid(), pid, ["--word", "here"])
    assert said["modules"] is True  # loaded before it was forked
    assert b"served_module" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    of_the_starter = {str(fd.readlink()) for fd in Path(f"/proc/{place.starter.pid}/fd").iterdir()}
    assert not of_the_starter & set(said["sockets"])
    assert service.poll() is None
    service.terminate()
    assert service.wait() == 7  # it says so itself
    assert service.poll() == 7


@pytest.mark.usefixtures("adopting")
def test_a_service_whose_asker_has_gone_or_is_not_its_parent_does_not_start(place: Place, tmp_path: Path) -> None:
    assert run_starter.have_served(place.home, _asked(tmp_path, os.getpid() + 1), 60, lambda: True) is None
    with socket.socket(socket.AF_UNIX) as asker:
        asker.connect(str(run_starter.socket_path(place.home)))
        asker.sendall(json.dumps({"serve": _asked(tmp_path, os.getpid())}).encode() + b"\n")
        pid = json.loads(asker.recv(4096))["pid"]
    assert supervised.Adopted(pid).wait() == 0
    log = tmp_path / "service.log"
    assert not log.exists() or log.read_text() == ""


def test_nobody_waits_for_a_service_longer_than_there_is_hope(tmp_path: Path) -> None:
    home = Home(tmp_path / "nobody")
    assert run_starter.have_served(home, _asked(tmp_path, 1), 0.2, lambda: True) is None
    hopes = [True, False]
    assert run_starter.have_served(home, _asked(tmp_path, 1), 60, lambda: hopes.pop(0)) is None
    home.leave_runtime()


@pytest.mark.parametrize("serve", [[], {}, {"argv": ["x"]}, {"argv": ["-c", "1"], "log": "x", "parent": 1}])
def test_what_is_no_service_is_not_served(place: Place, serve: object) -> None:
    with socket.socket(socket.AF_UNIX) as asker:
        asker.connect(str(run_starter.socket_path(place.home)))
        asker.sendall(json.dumps({"serve": serve}).encode() + b"\n")
        assert _rest(asker) == b""
    assert place.starter.poll() is None


def test_its_socket_is_for_its_owner_only(place: Place) -> None:
    assert run_starter.socket_path(place.home).stat().st_mode & 0o077 == 0


def test_a_run_outlives_the_run_starter_and_can_be_cancelled_without_it(place: Place, tmp_path: Path) -> None:
    """Last: it kills the run starter."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    going_on, cancelled = place.at_work(tmp_path / "a"), place.at_work(tmp_path / "b")
    place.starter.kill()
    place.starter.wait()
    assert run_starter.ask(place.home, going_on[0]) is None
    other = place.created(launched_jobs.looking, to=str(tmp_path / "found"))
    with pytest.raises(DagsterInvariantViolationError, match="workspace"):  # the stock way, which needs a code server
        place.instance.launch_run(other, workspace=None)  # type: ignore[arg-type]
    assert place.instance.run_launcher.terminate(cancelled[0])
    assert place.ended(cancelled[0]) == "CANCELED"
    going_on[2].touch()
    assert place.ended(going_on[0]) == "SUCCESS"


def _rest(connection: socket.socket) -> bytes:
    try:
        return connection.recv(10)
    except ConnectionResetError:
        return b""
