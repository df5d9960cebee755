"""What a local sandbox may use of this host: held by control groups where they can be made, else looked at and ended."""

import itertools
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from longshot_dagster.adapters.sandboxes import limit_watch, local_promises, sandbox_local
from longshot_dagster.adapters.sandboxes.control_groups import (
    ControlGroups,
    Limits,
    entering,
    memory_kills,
    remove_groups,
)
from longshot_dagster.adapters.sandboxes.limit_watch import LimitWatch, Watched
from longshot_dagster.adapters.sandboxes.sandbox_local import LocalProvider, LocalSandbox
from longshot_dagster.core.errors import SandboxGone, SandboxRefused
from longshot_dagster.core.sandbox import ExecResult, SandboxSpec
from longshot_dagster.core.settings import Isolation

NUMBERS = itertools.count()
GREEDY = "import sys\nheld = []\nfor _ in range(400):\n held.append(bytes(1 << 20) + b'x')\nprint('had it all')\n"


def none_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (sandbox_local, local_promises):
        monkeypatch.setattr(module, "control_groups", lambda: None)


@pytest.fixture(params=["groups", "watch"])
def provider(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalProvider:
    """Once as this host is, and once as if nobody could make control groups."""
    if request.param == "watch":
        none_can_be_made(monkeypatch)
        monkeypatch.setattr(limit_watch, "_LOOK_S", 0.05)
    return LocalProvider(tmp_path / "sandboxes", Isolation.AUTO)


@pytest.fixture
def made() -> Iterator[list[LocalSandbox]]:
    found: list[LocalSandbox] = []
    yield found
    for sandbox in found:
        sandbox.terminate()


def begun(provider: LocalProvider, made: list[LocalSandbox], **more: object) -> LocalSandbox:
    made.append(provider.create(SandboxSpec(name=f"l{next(NUMBERS)}", **more)))  # type: ignore[arg-type]
    return made[-1]


def ran(sandbox: LocalSandbox, code: str, timeout_s: float = 30) -> ExecResult:
    return sandbox.exec(["python3", "-I", "-S", "-c", code], timeout_s=timeout_s)


def test_a_command_that_takes_too_much_memory_is_ended_and_it_is_said(
    provider: LocalProvider, made: list[LocalSandbox]
) -> None:
    assert provider.capabilities.enforces_memory
    sandbox = begun(provider, made, memory_mb=96)
    slowly = GREEDY.replace("\nprint", "\nimport time\ntime.sleep(20)\nprint")
    result = ran(sandbox, slowly)
    assert (result.exit_code, result.stdout) == (137, b"")
    assert b"longshot: " in result.stderr and b"more than 96 MB of memory used\n" in result.stderr
    assert ran(sandbox, "print('goes on')").stdout == b"goes on\n"


def test_shared_memory_is_bounded_too(provider: LocalProvider, made: list[LocalSandbox]) -> None:
    sandbox = begun(provider, made)
    result = sandbox.exec(["sh", "-c", "head -c 400000000 /dev/zero > /dev/shm/x; wc -c < /dev/shm/x"], timeout_s=30)
    assert int(result.stdout) <= 256 << 20
    assert sandbox.exec(["sh", "-c", "echo x > /dev/x"], timeout_s=10).exit_code != 0


def test_so_many_cores_and_no_more(provider: LocalProvider, made: list[LocalSandbox]) -> None:
    assert provider.capabilities.enforces_cpu
    count = "import os; print(len(os.sched_getaffinity(0)))"
    groups = sandbox_local.control_groups() is not None
    sandbox = begun(provider, made, cpu=1)
    assert int(ran(sandbox, count).stdout) == (len(os.sched_getaffinity(0)) if groups else 1)
    assert len(os.sched_getaffinity(0)) == (os.cpu_count() or 1), "this process keeps all of its own"
    if groups:
        quarter = begun(provider, made, cpu=0.25)
        result = ran(quarter, "import time\nwhile time.process_time() < 0.2: pass\nprint(time.monotonic())")
        assert result.duration_s > 0.45
    else:
        with pytest.raises(SandboxRefused, match="whole cores only"):
            begun(provider, made, cpu=0.5)


def test_a_fork_bomb_stays_in_its_sandbox(
    provider: LocalProvider, made: list[LocalSandbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox_local, "MAX_PROCESSES", 60)
    sandbox = begun(provider, made)
    bomb = "import os, time\nn = 0\nwhile n < 200:\n n += 1\n if os.fork() == 0: time.sleep(20)\nprint('all')\ntime.sleep(20)"
    result = ran(sandbox, bomb)
    assert result.stdout == b"" and result.exit_code in (1, 137)
    assert b"BlockingIOError" in result.stderr or b"more than 60 processes" in result.stderr
    assert ran(sandbox, "print('goes on')").stdout == b"goes on\n"


def test_groups_go_with_their_sandbox(provider: LocalProvider, made: list[LocalSandbox]) -> None:
    sandbox = begun(provider, made, memory_mb=64, cpu=1)
    groups = sandbox._groups()
    assert bool(groups) is (sandbox_local.control_groups() is not None)
    assert all(group.is_dir() for group in groups)
    remove_groups(groups)
    assert ran(sandbox, "print('made again')").stdout == b"made again\n"
    sandbox.terminate()
    assert not any(group.exists() for group in groups)


def test_who_fills_the_disk_is_ended(tmp_path: Path, made: list[LocalSandbox], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit_watch, "_LOOK_S", 0.05)
    monkeypatch.setattr(limit_watch, "_GRAIN_BYTES", 1 << 20)
    monkeypatch.setattr(limit_watch, "MAX_DISK_BYTES", 8 << 20)
    monkeypatch.setattr(limit_watch, "WATCH", watch := LimitWatch())
    monkeypatch.setattr(sandbox_local, "WATCH", watch)
    monkeypatch.setattr(
        sandbox_local, "Watched", lambda pid, root: Watched(pid, root, disk_bytes=limit_watch.MAX_DISK_BYTES)
    )
    sandbox = begun(LocalProvider(tmp_path / "sandboxes", Isolation.AUTO), made)
    fill = "import os, time\nfor n in range(30):\n f = open(f'f{n}', 'wb'); f.write(bytes(1 << 20)); f.flush(); os.fsync(f.fileno())\ntime.sleep(20)"
    result = ran(sandbox, fill)
    assert (result.exit_code, result.stderr) == (137, b"longshot: the command was ended: more than 8 MB written\n")


def test_nobody_looks_when_nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(limit_watch, "_LOOK_S", 0.01)
    watch = LimitWatch()
    watched = Watched(os.getpid(), tmp_path)
    watch.add(watched)
    thread = watch._thread
    assert thread is not None and thread.is_alive()
    watch.remove(watched)
    thread.join(10)
    assert not thread.is_alive()
    watch.add(watched)
    assert watch._thread is not thread
    watch.remove(watched)


def test_groups_of_version_2_are_written_as_the_kernel_wants_them(tmp_path: Path) -> None:
    """Its files, in a folder: this machine may have version 1."""
    found = ControlGroups(dict.fromkeys(("cpu", "memory", "pids"), tmp_path), 2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/memory.swap.max").touch()
    (group,) = found.make("sb-1", Limits(1.5, 512, 99))
    written = {p.name: p.read_text() for p in group.iterdir()}
    assert written == {"cpu.max": "150000 100000", "memory.max": "536870912", "memory.swap.max": "0", "pids.max": "99"}
    (group / "memory.events").write_text("low 0\nhigh 0\nmax 9\noom 2\noom_kill 3\noom_group_kill 0\n")
    assert memory_kills([group]) == 3
    assert entering([group])[-2:] == ["1", f"{group}/cgroup.procs"]


# --- time ------------------------------------------------------------------------------------------------------------


def test_a_sandbox_in_which_nothing_runs_ends_by_itself(tmp_path: Path, made: list[LocalSandbox]) -> None:
    provider = LocalProvider(tmp_path / "sandboxes", Isolation.AUTO)
    assert provider.capabilities.enforces_idle
    idle, busy, other = (begun(provider, made, idle_s=idle_s) for idle_s in (600, 600, None))
    up = threading.Event()
    argv = ["sh", "-c", "echo up; exec sleep 61.31"]
    running = threading.Thread(target=lambda: busy.exec(argv, timeout_s=20, on_output=lambda *_: up.set()))
    running.start()
    assert up.wait(10)
    assert {i.id for i in provider.list({})} == {idle.id, busy.id, other.id}
    for sandbox in (idle, busy, other):
        os.utime(sandbox.running, (time.time() - 700,) * 2)
    assert {i.id for i in provider.list({})} == {busy.id, other.id}
    with pytest.raises(SandboxGone):
        provider.attach(idle.id)
    with pytest.raises(SandboxGone):
        idle.read("/workspace/x")
    assert not idle.root.exists()
    busy.end_commands()
    running.join()
    assert busy.exec(["true"], timeout_s=10).exit_code == 0, "its command has just ended"


def test_what_is_used_is_not_idle(tmp_path: Path, made: list[LocalSandbox]) -> None:
    provider = LocalProvider(tmp_path / "sandboxes", Isolation.AUTO)
    sandbox = begun(provider, made, idle_s=600)
    os.utime(sandbox.running, (time.time() - 500,) * 2)
    sandbox.write("/workspace/x", b"x")
    assert time.time() - sandbox.running.stat().st_mtime < 100
    os.utime(sandbox.running, (time.time() + 5_000,) * 2)
    assert sandbox.read("/workspace/x") == b"x", "a clock that went backwards ends nothing"


# --- names -----------------------------------------------------------------------------------------------------------


def test_a_name_is_given_once_among_the_living(tmp_path: Path, made: list[LocalSandbox]) -> None:
    provider = LocalProvider(tmp_path / "sandboxes", Isolation.NONE)
    won: list[LocalSandbox] = []
    refused: list[str] = []
    together = threading.Barrier(8)

    def take() -> None:
        together.wait()
        try:
            won.append(provider.create(SandboxSpec(name="one", network="open")))
        except SandboxRefused as e:
            refused.append(str(e))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), set(refused)) == (1, {"a sandbox named 'one' is there already"})
    assert [i.id for i in provider.list({})] == [won[0].id]
    won[0].terminate()
    again = provider.create(SandboxSpec(name="one", network="open", lifetime_s=-1))
    made.append(provider.create(SandboxSpec(name="one", network="open")))
    assert again.id != made[0].id != won[0].id, "one whose time is over holds no name"
    again.terminate()


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_is_shown_at_another_place_and_cannot_be_changed(tmp_path: Path, made: list[LocalSandbox]) -> None:
    tools = tmp_path / "tools"
    (tools / "bin").mkdir(parents=True)
    (tools / "bin/greet").write_text("#!/bin/sh\necho hello\n")
    (tools / "bin/greet").chmod(0o755)
    sandbox = begun(
        LocalProvider(tmp_path / "sandboxes", Isolation.AUTO), made, layers={"/opt/longshot/harness": str(tools)}
    )
    assert sandbox.exec(["/opt/longshot/harness/bin/greet"], timeout_s=10).stdout == b"hello\n"
    assert sandbox.exec(
        ["sh", "-c", "rm -rf /opt/longshot/harness/bin; echo x > /opt/longshot/harness/x"], timeout_s=10
    ).exit_code
    assert [p.name for p in tools.iterdir()] == ["bin"]
