"""What the supervisor knows of one process: real ones that end, are adopted, or write too much."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from longshot_dagster.adapters.stack.supervised import (
    KEPT_LOG_BYTES,
    MAX_BACKOFF_SECONDS,
    MAX_LOG_BYTES,
    STEADY_SECONDS,
    Adopted,
    Service,
    adopting,
    bury_orphans,
)

# Leaves a child behind: prints its pid, and ends.
_LEAVES = "import os,signal\npid=os.fork()\nif pid: print(pid)\nelse: os.close(1), os.close(2), signal.pause()"


@pytest.fixture
def _adopting() -> Iterator[None]:
    assert adopting(True)
    yield
    adopting(False)


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(
        "toy", [sys.executable, "-c", "import sys; print('said', flush=True); sys.exit(3)"], tmp_path / "log"
    )


def left_behind() -> int:
    return int(subprocess.run([sys.executable, "-c", _LEAVES], capture_output=True, text=True).stdout)


def test_a_command_writes_to_its_log_and_its_end_is_known(service: Service, tmp_path: Path) -> None:
    service.exec(cwd=tmp_path, env=dict(os.environ))
    assert service.process is not None
    assert service.process.wait() == 3
    assert not service.alive
    assert service.log.read_text() == "said\n"
    assert service.died(service.started) == 3
    assert service.process is None


def test_what_dies_again_and_again_waits_longer_and_what_lived_long_begins_anew(service: Service) -> None:
    waits = []
    for _ in range(8):
        service.started = 100.0
        service.died(100.0)
        waits.append(service.not_before - 100.0)
    assert waits == [0.5, 1, 2, 4, 8, 16, MAX_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS]
    service.died(100.0 + STEADY_SECONDS + 1)
    assert service.not_before == 100.0 + STEADY_SECONDS + 1.5


def test_a_log_keeps_its_end(service: Service) -> None:
    service.log.write_bytes(b"a" * MAX_LOG_BYTES + b"b" * KEPT_LOG_BYTES)
    service.bound_log()
    assert service.log.read_bytes() == b""
    assert service.log.with_suffix(".log.1").read_bytes() == b"b" * KEPT_LOG_BYTES


@pytest.mark.usefixtures("_adopting")
def test_an_adopted_process_is_asked_and_ended_like_any_child(service: Service) -> None:
    pid = left_behind()
    service.runs_as(Adopted(pid))
    assert service.alive
    assert service.process is not None
    service.process.terminate()
    assert service.process.wait() == -signal.SIGTERM
    service.process.terminate()  # nobody any more
    assert service.died(service.started) == -signal.SIGTERM


def test_a_process_that_is_nobodys_child_has_ended() -> None:
    assert Adopted(1).poll() == -1


@pytest.mark.usefixtures("_adopting")
def test_orphans_are_buried_and_services_are_not(service: Service) -> None:
    ours, orphan = left_behind(), left_behind()
    service.runs_as(Adopted(ours))
    os.kill(orphan, signal.SIGKILL)
    while Path(f"/proc/{orphan}").exists():
        bury_orphans([service])
    os.kill(ours, signal.SIGKILL)
    os.waitid(os.P_PID, ours, os.WEXITED | os.WNOWAIT)
    bury_orphans([service])
    assert service.process is not None
    assert service.process.wait() == -signal.SIGKILL
