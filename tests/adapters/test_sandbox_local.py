"""Local sandboxes: nothing gets out, nothing stays behind, and what cannot be promised is refused."""

import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from longshot_dagster.adapters.host.processes import start_time
from longshot_dagster.adapters.sandboxes import confinement
from longshot_dagster.adapters.sandboxes.sandbox_local import LocalProvider, LocalSandbox
from longshot_dagster.core.errors import Cancelled, FileMissing, SandboxError, SandboxGone, SandboxRefused, TooLarge
from longshot_dagster.core.sandbox import SandboxSpec
from longshot_dagster.core.settings import Isolation

NUMBERS = itertools.count()
ESCAPEES = "setsid -f sleep {0}; nohup sleep {0} >/dev/null 2>&1 & (sleep {0} & ) ; sleep {0}"


@pytest.fixture(params=[Isolation.AUTO, Isolation.NONE], ids=["bubblewrap", "unconfined"])
def provider(request: pytest.FixtureRequest, tmp_path: Path) -> LocalProvider:
    return LocalProvider(tmp_path / "sandboxes", request.param)


@pytest.fixture
def confined(tmp_path: Path) -> LocalProvider:
    return LocalProvider(tmp_path / "sandboxes", Isolation.AUTO)


def spec(provider: LocalProvider, **more: object) -> SandboxSpec:
    network = "none" if "none" in provider.capabilities.network else "open"
    return SandboxSpec(**{"name": f"t{next(NUMBERS)}", "network": network, **more})  # type: ignore[arg-type]


def sleepers(mark: str) -> bytes:
    return subprocess.run(["pgrep", "-fx", f"sleep {mark}"], capture_output=True).stdout


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def test_a_command_has_streams_exit_code_and_directory(provider: LocalProvider) -> None:
    sandbox = provider.create(spec(provider, env={"GIVEN": "1"}))
    live: list[tuple[str, bytes]] = []
    ran = sandbox.exec(
        ["sh", "-c", "cat; echo $GIVEN $MORE; echo err >&2; exit 7"],
        timeout_s=10,
        stdin=b"in\n",
        env={"MORE": "2"},
        on_output=lambda stream, data: live.append((stream, data)),
    )
    assert (ran.exit_code, ran.stdout, ran.stderr, ran.timed_out) == (7, b"in\n1 2\n", b"err\n", False)
    assert b"".join(d for s, d in live if s == "stdout") == b"in\n1 2\n"
    assert sandbox.exec(["echo", "$HOME; x"], timeout_s=10).stdout == b"$HOME; x\n"
    assert sandbox.exec(["sh", "-c", "kill -9 $$"], timeout_s=10).exit_code == 137
    assert sandbox.exec(["no-such-command"], timeout_s=10).exit_code == 127
    sandbox.terminate()


def test_much_input_and_output_neither_block_nor_pile_up(provider: LocalProvider) -> None:
    sandbox = provider.create(spec(provider))
    ran = sandbox.exec(["sh", "-c", "cat; seq 1 99999 >&2"], timeout_s=20, stdin=b"x" * 300_000, keep_bytes=1_000)
    assert (ran.stdout, ran.stderr[-6:], ran.truncated) == (b"x" * 1_000, b"99999\n", True)
    sandbox.terminate()


def test_a_timeout_kills_the_whole_tree_and_keeps_the_sandbox(provider: LocalProvider) -> None:
    sandbox = provider.create(spec(provider))
    ran = sandbox.exec(["sh", "-c", ESCAPEES.format("61.01")], timeout_s=0.5)
    assert (ran.exit_code, ran.timed_out) == (124, True)
    assert sleepers("61.01") == b""
    assert sandbox.exec(["echo", "alive"], timeout_s=10).stdout == b"alive\n"
    sandbox.terminate()


def test_what_a_command_leaves_running_ends_with_it(provider: LocalProvider) -> None:
    sandbox = provider.create(spec(provider))
    assert sandbox.exec(["sh", "-c", "setsid -f sleep 61.02; echo done"], timeout_s=10).stdout == b"done\n"
    assert sleepers("61.02") == b""
    sandbox.terminate()


def test_a_cancelled_run_stops_at_once(provider: LocalProvider) -> None:
    sandbox = provider.create(spec(provider))
    cancelled = threading.Event()
    with pytest.raises(Cancelled):
        sandbox.exec(
            ["sh", "-c", f"echo up; {ESCAPEES.format('61.03')}"],
            timeout_s=60,
            on_output=lambda *_: cancelled.set(),
            cancelled=cancelled.is_set,
        )
    assert sleepers("61.03") == b""
    sandbox.terminate()


def test_terminating_ends_a_running_command_and_leaves_nothing(provider: LocalProvider, tmp_path: Path) -> None:
    sandbox = provider.create(spec(provider))
    up = threading.Event()
    ending = threading.Thread(target=lambda: (up.wait(10), sandbox.terminate()))
    ending.start()
    with pytest.raises(SandboxGone):
        sandbox.exec(["sh", "-c", f"echo up; {ESCAPEES.format('61.04')}"], timeout_s=60, on_output=lambda *_: up.set())
    ending.join()
    sandbox.terminate()
    assert sleepers("61.04") == b""
    assert list((tmp_path / "sandboxes").iterdir()) == []
    for call in (lambda: sandbox.exec(["true"], timeout_s=1), lambda: sandbox.read("/workspace/x", max_bytes=1)):
        with pytest.raises(SandboxGone):
            call()


def test_another_process_finds_and_ends_what_a_killed_one_left(provider: LocalProvider, tmp_path: Path) -> None:
    isolation = "NONE" if provider.capabilities.isolation == "none" else "AUTO"
    code = f"""
from pathlib import Path
from longshot_dagster.adapters.sandboxes.sandbox_local import LocalProvider
from longshot_dagster.core.sandbox import SandboxSpec
from longshot_dagster.core.settings import Isolation
p = LocalProvider(Path({str(tmp_path / "sandboxes")!r}), Isolation.{isolation})
s = p.create(SandboxSpec(name="t", network={spec(provider).network!r}, tags={{"task": "r001-01"}}))
s.exec(["sh", "-c", "echo up; sleep 61.05"], timeout_s=60, on_output=lambda *_: print("up", flush=True))
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        process.kill()
    (found,) = provider.list({"task": "r001-01"})
    assert provider.list({"task": "other"}) == []
    provider.attach(found.id).terminate()
    wait_until(lambda: sleepers("61.05") == b"")
    assert provider.list({}) == []
    with pytest.raises(SandboxGone):
        provider.attach(found.id)


def test_a_recycled_pid_is_left_alone(provider: LocalProvider) -> None:
    sandbox = provider.create(spec(provider))
    with subprocess.Popen(["sleep", "61.06"]) as somebody:
        (sandbox.running / str(somebody.pid)).write_text("12345")
        sandbox.terminate()
        assert start_time(somebody.pid) is not None
        somebody.kill()


def test_files_go_in_and_out(provider: LocalProvider) -> None:
    sandbox = provider.create(spec(provider))
    data = bytes(range(256)) * 8_000
    sandbox.write("/workspace/a dir/b", b"old and longer than what follows" * 100_000)
    sandbox.write("/workspace/a dir/b", data)
    assert sandbox.read("/workspace/a dir/b", max_bytes=1 << 22) == data
    assert sandbox.exec(["wc", "-c", "a dir/b"], timeout_s=10).stdout == b"2048000 a dir/b\n"
    with pytest.raises(TooLarge):
        sandbox.read("/workspace/a dir/b", max_bytes=len(data) - 1)
    for path in ("/workspace/nothing", "/workspace/a dir", "/workspace/a dir/b/c"):
        with pytest.raises(FileMissing):
            sandbox.read(path, max_bytes=10)
    for path in ("relative", "/workspace/../../x", "/"):
        with pytest.raises(SandboxError):
            sandbox.write(path, b"")
    sandbox.terminate()


def test_no_link_or_pipe_of_an_agent_leads_the_host_astray(confined: LocalProvider, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("key")
    sandbox = confined.create(spec(confined))
    script = f"""
    ln -s {secret} file; ln -s {tmp_path} dir; mkfifo pipe; mkdir real; ln -s / real/up
    rm -rf /longshot; ln -s {tmp_path} /longshot
    """
    assert sandbox.exec(["sh", "-c", script], timeout_s=10).exit_code == 0
    for path in (
        "/workspace/file",
        "/workspace/dir/secret",
        "/workspace/pipe",
        "/longshot/secret",
        "/dev/zero",
        "/etc/shadow",
    ):
        with pytest.raises(FileMissing):
            sandbox.read(path, max_bytes=100)
    for path in ("/workspace/file", "/workspace/dir/new", "/longshot/new", "/workspace/pipe"):
        with pytest.raises(SandboxError):
            sandbox.write(path, b"x")
    assert secret.read_text() == "key"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sandboxes", "secret"]
    sandbox.terminate()


def test_inside_there_is_no_host(confined: LocalProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_API_KEY", "sk-secret")
    sandbox = confined.create(spec(confined))
    code = """
import json, os, socket
def can(f):
    try: f()
    except OSError: return False
    return True
print(json.dumps({
  "env": sorted(os.environ), "processes": len([p for p in os.listdir("/proc") if p.isdigit()]),
  "home": os.listdir(HOST_HOME) if os.path.isdir(HOST_HOME) else [], "etc": sorted(os.listdir("/etc")),
  "tests": os.path.exists(HERE), "usr": can(lambda: open("/usr/x", "w")),
  "network": can(lambda: socket.create_connection(("192.0.2.1", 53), 0.5)), "loopback": can(lambda: socket.create_server(("127.0.0.1", 0))),
  "caps": [l.split()[1] for l in open("/proc/self/status") if l.startswith("CapEff")],
  "interfaces": [n for _, n in socket.if_nameindex()],
}))
""".replace("HOST_HOME", repr(str(Path.home()))).replace("HERE", repr(str(Path(__file__))))
    ran = sandbox.exec(["python3", "-I", "-W", "ignore", "-c", code], timeout_s=20)
    assert ran.exit_code == 0, ran.stderr
    seen = json.loads(ran.stdout)
    assert set(seen["env"]) <= {"HOME", "LANG", "LC_CTYPE", "PATH", "PWD", "TMPDIR"}
    assert seen["processes"] <= 3
    assert [n for n in seen["home"] if not n.startswith((".pyenv", ".local", ".conda"))] == []
    assert "shadow" not in seen["etc"] and "resolv.conf" not in seen["etc"]
    assert (seen["tests"], seen["usr"], seen["network"], seen["loopback"]) == (False, False, False, True)
    assert (seen["caps"], seen["interfaces"]) == (["0000000000000000"], ["lo"])
    nested = sandbox.exec(["unshare", "-U", "true"], timeout_s=10)
    assert nested.exit_code != 0
    sandbox.terminate()


def test_what_no_namespace_divides_is_out_of_reach(confined: LocalProvider) -> None:
    """Keyrings, the hypervisor's sockets, and the kernel's own settings, which root on the host owns."""
    sandbox = confined.create(spec(confined))
    code = """
import ctypes, errno, json, os, platform, socket
calls = (248, 249, 250, 425) if platform.machine() == "x86_64" else (217, 218, 219, 425)
libc = ctypes.CDLL(None, use_errno=True)
def refused(f, *args):
    try: f(*args)
    except OSError as e: return errno.errorcode[e.errno]
def writable(path):
    os.close(os.open(path, os.O_WRONLY))
print(json.dumps({
  "calls": [(libc.syscall(n, 0, 0, 0, 0, 0), ctypes.get_errno()) == (-1, errno.ENOSYS) for n in calls],
  "vsock": refused(socket.socket, 40), "inet": refused(socket.socket), "keys": refused(open, "/proc/keys"),
  "kernel": [refused(writable, f"/proc/{n}") for n in ("sys/kernel/core_pattern", "sys/vm/swappiness")],
}))
"""
    ran = sandbox.exec(["python3", "-I", "-W", "ignore", "-c", code], timeout_s=20)
    assert ran.exit_code == 0, ran.stderr
    seen = json.loads(ran.stdout)
    assert (seen["calls"], seen["vsock"], seen["inet"]) == ([True] * 4, "EAFNOSUPPORT", None)
    assert (seen["kernel"], seen["keys"]) == (["EROFS"] * 2, "EACCES")
    sandbox.terminate()


def test_two_sandboxes_do_not_see_each_other(provider: LocalProvider) -> None:
    one, other = provider.create(spec(provider)), provider.create(spec(provider))
    one.write("/workspace/x", b"1")
    with pytest.raises(FileMissing):
        other.read("/workspace/x", max_bytes=10)
    assert other.exec(["ls"], timeout_s=10).stdout == b""
    one.terminate()
    other.terminate()


def test_a_socket_of_the_host_is_reached_and_survives_its_replacement(
    provider: LocalProvider, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("s")
    path = str(folder / "model.sock")
    sandbox = provider.create(spec(provider, sockets={"/longshot/gateway/model.sock": path}))
    code = (
        "import os, socket; s = socket.socket(socket.AF_UNIX); "
        "s.connect(os.path.realpath(os.environ.get('LONGSHOT_SANDBOX_ROOT', '') + '/longshot/gateway/model.sock')); "
        "print(s.recv(9).decode())"
    )
    for greeting in (b"first", b"second"):
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen()

            def greet(server: socket.socket = server, greeting: bytes = greeting) -> None:
                with server.accept()[0] as connection:
                    connection.sendall(greeting)

            thread = threading.Thread(target=greet)
            thread.start()
            ran = sandbox.exec(["python3", "-I", "-c", code], timeout_s=10)
            assert ran.stdout.strip() == greeting, ran.stderr
            thread.join()
        os.unlink(path)
    assert sandbox.exec(["sh", "-c", "touch /longshot/gateway/x"], timeout_s=10).exit_code != 0
    sandbox.terminate()


def test_one_file_cannot_fill_the_host(provider: LocalProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    limited = confinement._LIMITED[0].replace(str(confinement.MAX_FILE_BYTES // 512), "2048")
    monkeypatch.setattr(confinement, "_LIMITED", (limited, "sandbox"))
    sandbox = provider.create(spec(provider))
    ran = sandbox.exec(["sh", "-c", "head -c 5000000 /dev/zero > big; wc -c < big"], timeout_s=10)
    assert ran.stdout.strip() == b"1048576"
    sandbox.terminate()


def test_a_lifetime_that_is_over_is_over(provider: LocalProvider) -> None:
    sandbox = provider.create(spec(provider, lifetime_s=-1))
    with pytest.raises(SandboxGone):
        sandbox.exec(["true"], timeout_s=1)
    assert [i.id for i in provider.list({})] == [sandbox.id]
    provider.attach(sandbox.id).terminate()


def test_a_deep_and_locked_tree_is_removed(provider: LocalProvider, tmp_path: Path) -> None:
    sandbox = provider.create(spec(provider))
    code = "import os\nfor _ in range(1500):\n os.mkdir('d'); os.chdir('d')\nos.chmod('.', 0)"
    assert sandbox.exec(["python3", "-I", "-c", code], timeout_s=20).exit_code == 0
    sandbox.terminate()
    assert list((tmp_path / "sandboxes").iterdir()) == []


@pytest.mark.parametrize(
    "wish",
    [
        {"gpu": "any"},
        {"secrets": ("KEY",)},
        {"image": "debian"},
        {"image": "local:sn-000000000000"},
        {"network": "allowlist"},
        {"network": "allowlist", "hosts": ("127.0.0.1",)},
        {"layers": {"/opt/tools": "/no/such/folder"}},
        {"sockets": {"/x/a.sock": "/y/b.sock"}},
        {"sockets": {"/x/a": f"/{'y' * 120}/a"}},
    ],
)
def test_what_cannot_be_enforced_is_refused(provider: LocalProvider, tmp_path: Path, wish: dict[str, object]) -> None:
    with pytest.raises(SandboxRefused):
        provider.create(spec(provider, **wish))
    assert not (tmp_path / "sandboxes").exists() or not list((tmp_path / "sandboxes").iterdir())


def test_without_isolation_a_closed_network_is_refused(tmp_path: Path) -> None:
    provider = LocalProvider(tmp_path, Isolation.NONE)
    assert provider.capabilities.isolation == "none"
    with pytest.raises(SandboxRefused, match="SANDBOX_NETWORK=open"):
        provider.create(SandboxSpec(name="t", network="none"))


def test_a_host_without_namespaces_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(confinement, "_candidates", lambda: [str(broken)])
    monkeypatch.setattr(confinement, "bubblewrap", confinement.bubblewrap.__wrapped__)
    with pytest.raises(SandboxRefused, match=r"uid map: Permission denied.*SANDBOX_ISOLATION=none"):
        confinement.bubblewrap()


def test_many_sandboxes_at_once(confined: LocalProvider) -> None:
    def use(number: int) -> None:
        sandbox: LocalSandbox = confined.create(spec(confined))
        found.append(sandbox.exec(["echo", str(number)], timeout_s=30).stdout)
        sandbox.terminate()

    found: list[bytes] = []
    threads = [threading.Thread(target=use, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(int(f) for f in found) == list(range(12))
    assert confined.list({}) == []
