"""What lies where the orchestrator reads and writes: links, pipes and endless files that an agent has put there."""

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from attacks import attack

from longshot_dagster.adapters.sandboxes import confinement, layered_files
from longshot_dagster.adapters.sandboxes.local_snapshots import remove_tree
from longshot_dagster.adapters.sandboxes.sandbox_local import LocalProvider, LocalSandbox
from longshot_dagster.adapters.workers.order_run import collect
from longshot_dagster.core import contract
from longshot_dagster.core.contract import WorkOrder
from longshot_dagster.core.errors import SandboxError
from longshot_dagster.core.sandbox import SandboxSpec
from longshot_dagster.core.settings import Isolation

ORDER = WorkOrder(task_id="r001-01", base="0" * 40, deadline_s=1)
RESULT = json.dumps({"taskId": "r001-01", "harnessStatus": "completed", "status": "complete", "summary": "x"})


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("host")
    (folder / "result.json").write_text(RESULT)
    (folder / "victim").write_text("mine")
    return folder


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory, host: Path) -> Iterator[LocalSandbox]:
    """One, with every trap laid in one go; a test names the folder that it takes for /longshot/out."""
    made = LocalProvider(tmp_path_factory.mktemp("sandboxes"), Isolation.AUTO).create(SandboxSpec(name="traps"))
    script = f"""
    mkdir -p /t/link /t/pipe /t/endless /t/victim /t/python
    ln -s {host}/result.json /t/link/result.json
    ln -s {host} /t/folder
    mkfifo /t/pipe/result.json
    printf '%s' '{RESULT}' > /t/endless/result.json; truncate -s 5M /t/endless/result.json
    ln -s {host}/victim /t/victim/order.json
    """
    assert made.exec(["sh", "-c", script], timeout_s=20).exit_code == 0
    yield made
    made.terminate()


def links_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    def stat(name: str, folder: int) -> os.stat_result | None:
        with contextlib.suppress(FileNotFoundError):
            return os.stat(name, dir_fd=folder)
        return None

    monkeypatch.setattr(layered_files, "_stat", stat)
    for flags in ("_FOLDER", "_FILE"):
        monkeypatch.setattr(layered_files, flags, getattr(layered_files, flags) & ~os.O_NOFOLLOW)


def with_out(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setattr(contract, "RESULT", f"/t/{folder}/result.json")


@attack(
    "ASI03",
    "make result.json a link to a file of the host",
    defence="no link is followed when a sandbox is read",
    off="links are followed",
)
def test_a_result_that_is_a_link(sandbox: LocalSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    with_out(monkeypatch, "link")
    assert collect(sandbox, ORDER).result is None
    links_are_followed(monkeypatch)
    assert collect(sandbox, ORDER).result is not None


@attack(
    "ASI03",
    "make the folder of the results a link to one of the host",
    defence="no link is followed on the way either",
    off="links are followed",
)
def test_a_folder_that_is_a_link(sandbox: LocalSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    with_out(monkeypatch, "folder")
    assert collect(sandbox, ORDER).result is None
    links_are_followed(monkeypatch)
    assert collect(sandbox, ORDER).result is not None


@attack(
    "ASI08",
    "make the orchestrator wait for a pipe for ever",
    defence="opened without waiting, and only regular files are read",
    off="opened without O_NONBLOCK",
)
def test_a_result_that_is_a_pipe(sandbox: LocalSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    with_out(monkeypatch, "pipe")
    assert collect(sandbox, ORDER).result is None
    monkeypatch.setattr(layered_files, "_FILE", layered_files._FILE & ~os.O_NONBLOCK)
    reader = threading.Thread(target=collect, args=(sandbox, ORDER))
    reader.start()
    reader.join(0.3)
    waits = reader.is_alive()
    os.close(os.open(sandbox.host_path("/t/pipe/result.json"), os.O_RDWR))
    reader.join(10)
    assert waits


@attack(
    "ASI08",
    "fill the orchestrator's memory with an endless result",
    defence="no more is read than a result may have",
    off="MAX_RESULT_BYTES is a gigabyte",
)
def test_a_result_that_does_not_end(sandbox: LocalSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    with_out(monkeypatch, "endless")
    assert "larger than" in collect(sandbox, ORDER).problem
    monkeypatch.setattr(contract, "MAX_RESULT_BYTES", 1 << 30)
    assert "larger than" not in collect(sandbox, ORDER).problem


@attack(
    "ASI05",
    "have the next order written over a file of the host",
    defence="no link is followed when a sandbox is written",
    off="links are followed",
)
def test_an_order_that_is_a_link(sandbox: LocalSandbox, host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SandboxError):
        sandbox.write("/t/victim/order.json", b"owned")
    assert (host / "victim").read_text() == "mine"
    links_are_followed(monkeypatch)
    sandbox.write("/t/victim/order.json", b"owned")
    assert (host / "victim").read_text() == "owned"


@attack(
    "ASI05",
    "put a link where the next command's files are mounted",
    defence="nothing is started where a mount point has become a link",
    off="nobody looks at the mount points",
)
def test_a_mount_point_that_is_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host, shared = tmp_path / "host", tmp_path / "up" / "shared"
    host.mkdir()
    shared.mkdir(parents=True)
    spec = SandboxSpec(name="astray", readable=(str(shared),))
    made = LocalProvider(tmp_path / "sandboxes", Isolation.AUTO).create(spec)
    try:
        script = f"mv {shared.parent} {tmp_path}/away && ln -s /oldroot{host} {shared.parent}"  # where bubblewrap keeps the host while it mounts
        ran = made.exec(["sh", "-c", script], timeout_s=20)
        assert ran.exit_code == 0, ran.stderr
        with pytest.raises(SandboxError, match="has become a link"):
            made.exec(["true"], timeout_s=20)
        assert list(host.iterdir()) == []
        monkeypatch.setattr(confinement, "_must_not_be_led_astray", lambda *given: None)
        made.exec(["true"], timeout_s=20)
        assert [p.name for p in host.iterdir()] == ["shared"]
    finally:
        made.terminate()


@attack(
    "ASI05",
    "leave Python files where the salvaging worker starts",
    defence="every worker is started with `python3 -I`",
    off="it is started without -I",
)
def test_python_files_for_the_next_worker(sandbox: LocalSandbox) -> None:
    plant = """
    import os, site
    folder = site.getusersitepackages()
    os.makedirs(folder, exist_ok=True)
    open(folder + "/usercustomize.py", "w").write("print('owned')")
    """
    code = "\n".join(line.strip() for line in plant.strip().splitlines())
    assert sandbox.exec(["python3", "-c", code], timeout_s=20).exit_code == 0
    sandbox.write("/t/python/worker.py", b"print('honest')\n")

    def said(*options: str) -> bytes:
        return sandbox.exec(["python3", *options, "/t/python/worker.py"], timeout_s=20).stdout

    assert said("-I") == b"honest\n"
    assert said() == b"owned\nhonest\n"


@attack(
    "ASI10",
    "leave something for the next task",
    defence="every task has a fresh sandbox",
    off="the sandbox is used again",
)
def test_what_is_left_for_the_next_task(sandbox: LocalSandbox, tmp_path: Path) -> None:
    assert sandbox.exec(["sh", "-c", 'echo "echo owned" > "$HOME/.profile"'], timeout_s=20).exit_code == 0
    fresh = LocalProvider(tmp_path / "sandboxes", Isolation.AUTO).create(SandboxSpec(name="next"))
    try:
        login = ["sh", "-l", "-c", "echo work"]
        assert fresh.exec(login, timeout_s=20).stdout == b"work\n"
        assert sandbox.exec(login, timeout_s=20).stdout == b"owned\nwork\n"
    finally:
        fresh.terminate()


@attack(
    "ASI08",
    "fill the orchestrator's memory by talking",
    defence="only the last bytes of what a command says are kept",
    off="a gigabyte is kept",
)
def test_endless_talk(sandbox: LocalSandbox) -> None:
    talk = ["sh", "-c", "head -c 3000000 /dev/zero"]
    assert len(sandbox.exec(talk, timeout_s=20, keep_bytes=8_000).stdout) == 8_000
    assert len(sandbox.exec(talk, timeout_s=20, keep_bytes=1 << 30).stdout) == 3_000_000


def by_path(directory: Path) -> None:
    for here, _, _ in os.walk(directory, topdown=False):
        os.rmdir(here)  # noqa: PTH106


@attack(
    "ASI08",
    "be too deep to be removed",
    defence="what an agent left is removed by `rm`, which goes down step by step",
    off="it is removed by its paths",
)
def test_a_tree_too_deep_to_remove(tmp_path: Path) -> None:
    made = LocalProvider(tmp_path / "sandboxes", Isolation.AUTO).create(SandboxSpec(name="deep"))
    code = "import os\nfor n in range(30):\n    os.mkdir('d' * 200); os.chdir('d' * 200)"
    try:
        assert made.exec(["python3", "-c", code], timeout_s=60).exit_code == 0
        work = made.host_path("/workspace")
        with pytest.raises(OSError, match="not empty"):
            by_path(work)
        remove_tree(work)
        assert not work.exists()
    finally:
        made.terminate()


@attack(
    "ASI10",
    "ignore every signal and run on after its time is over",
    defence="at the timeout the whole process table is killed",
    off="it is asked to end, by `timeout`",
)
def test_a_command_that_does_not_end(sandbox: LocalSandbox) -> None:
    stubborn = ["sh", "-c", "trap '' HUP INT TERM; exec sleep 2"]
    ended = sandbox.exec(stubborn, timeout_s=1)
    assert (ended.exit_code, ended.timed_out) == (124, True)
    asked = sandbox.exec(["timeout", "1", *stubborn], timeout_s=20)
    assert (asked.exit_code, asked.duration_s > 1.9) == (124, True)


@attack(
    "ASI06",
    "poison the repository that later workers start from",
    defence="a snapshot is never written: what is put on it is each sandbox's own",
    off="later workers start where this one ended",
)
def test_a_poisoned_snapshot(tmp_path: Path) -> None:
    provider = LocalProvider(tmp_path / "sandboxes", Isolation.AUTO)
    with contextlib.ExitStack() as ends:

        def begun(name: str, image: str = "") -> LocalSandbox:
            made = provider.create(SandboxSpec(name=name, image=image))
            ends.callback(made.terminate)
            return made

        def reads(sandbox: LocalSandbox) -> bytes:
            return sandbox.exec(["cat", "repo/app.py"], timeout_s=20).stdout

        seed = begun("seed")
        seed.write("/workspace/repo/app.py", b"honest\n")
        image = seed.snapshot()
        hijacked = begun("hijacked", image)
        assert hijacked.exec(["sh", "-c", "echo owned > repo/app.py; rm -rf repo/.git"], timeout_s=20).exit_code == 0
        assert reads(begun("next", image)) == b"honest\n"
        assert reads(begun("after", hijacked.snapshot())) == b"owned\n"
