"""What a process that has taken over a sandbox can reach of its host: nothing, and with one defence less just that."""

import contextlib
import ctypes
import dataclasses
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attacks import Attack, enter

from longshot_dagster.adapters.sandboxes.confinement import Confined, Confinement
from longshot_dagster.adapters.sandboxes.sandbox_local import LocalProvider, LocalSandbox
from longshot_dagster.core.sandbox import SandboxSpec
from longshot_dagster.core.settings import Isolation

PAYLOAD = Path(__file__).with_name("payload.py").read_text(encoding="utf-8")

Switch = Callable[[list[str], dict[str, Any]], list[str]]


# --- switching one defence off ---------------------------------------------------------------------------------------


def without(*words: str) -> Switch:
    """The confinement's command without these words; that they are there is part of the proof."""

    def edit(argv: list[str], bait: dict[str, Any]) -> list[str]:
        assert set(words) <= set(argv), (words, argv)
        return [w for w in argv if w not in words]

    return edit


def instead(old: tuple[str, ...], new: tuple[str, ...]) -> Switch:
    """With `new` where `old` was; `{name}` is that bait."""

    def edit(argv: list[str], bait: dict[str, Any]) -> list[str]:
        sought, put = ([w.format_map(bait) for w in words] for words in (old, new))
        at = next((n for n in range(len(argv)) if argv[n : n + len(sought)] == sought), None)
        assert at is not None, (sought, argv)
        return [*argv[:at], *put, *argv[at + len(sought) :]]

    return edit


def both(*edits: Switch) -> Switch:
    def edit(argv: list[str], bait: dict[str, Any]) -> list[str]:
        for one in edits:
            argv = one(argv, bait)
        return argv

    return edit


def the_hosts_root(argv: list[str], bait: dict[str, Any]) -> list[str]:
    """All of the host as it is, with nothing bound over it."""
    at = next(n for n in range(len(argv)) if argv[n] == "--bind" and argv[n + 2] == "/")
    argv = instead(("--chdir", "/workspace"), ("--chdir", "/"))([*argv[: at + 1], "/", *argv[at + 2 :]], bait)
    while "--ro-bind" in argv:
        at = argv.index("--ro-bind")
        argv = [*argv[:at], *argv[at + 3 :]]
    return argv


def the_hosts_dev(argv: list[str], bait: dict[str, Any]) -> list[str]:
    if "/dev/shm" in argv:
        at = argv.index("/dev/shm") - 1
        while argv[at - 2] in ("--perms", "--size"):
            argv = [*argv[: at - 2], *argv[at:]]
            at -= 2
        argv = [*argv[:at], *argv[at + 2 :]]
    return instead(("--dev", "/dev"), ("--dev-bind", "/dev", "/dev"))(argv, bait)


def no_file_limit(argv: list[str], bait: dict[str, Any]) -> list[str]:
    assert any("ulimit -f" in word for word in argv), argv
    return [re.sub(r"ulimit -f \d+", ":", word) for word in argv]


def no_filter(argv: list[str], bait: dict[str, Any]) -> list[str]:
    at = argv.index("--seccomp")
    return [*argv[:at], *argv[at + 2 :]]


def no_mask_of_keys(argv: list[str], bait: dict[str, Any]) -> list[str]:
    return instead(("--ro-bind", "/dev/null", "/proc/keys"), ())(argv, bait) if "/proc/keys" in argv else argv


ISOLATION_NONE: Switch = lambda argv, bait: argv  # noqa: E731 - a mark: the switch is SANDBOX_ISOLATION itself
WITH_OUR_ENVIRONMENT: Switch = lambda argv, bait: argv  # noqa: E731 - another

_HOST_PROCESSES = both(
    without("--unshare-pid"), instead(("--proc", "/proc"), ("--ro-bind", "/proc", "/proc")), no_mask_of_keys
)
_SWITCHES: dict[str, Switch] = {
    "the host's root instead of its own": the_hosts_root,
    "the folder is bound writable": instead(
        ("--ro-bind", "{readable_folder}", "{readable_folder}"), ("--bind", "{readable_folder}", "{readable_folder}")
    ),
    "the socket's folder is bound writable": instead(
        ("--ro-bind", "{gateway}", "/longshot/gateway"), ("--bind", "{gateway}", "/longshot/gateway")
    ),
    "commands inherit the orchestrator's environment": WITH_OUR_ENVIRONMENT,
    "no --unshare-pid": _HOST_PROCESSES,
    "SANDBOX_ISOLATION=none": ISOLATION_NONE,
    "no --unshare-net": without("--unshare-net"),
    "--cap-add ALL": both(
        without("--disable-userns"), instead(("--cap-drop", "ALL"), ("--uid", "0", "--gid", "0", "--cap-add", "ALL"))
    ),
    "no --disable-userns": without("--disable-userns"),
    "no --unshare-ipc": without("--unshare-ipc"),
    "no system call filter": no_filter,
    "no --remount-ro /proc": instead(("--remount-ro", "/proc"), ()),
    "/proc/keys is not masked": no_mask_of_keys,
    "the host's /dev": the_hosts_dev,
    "no file size limit": no_file_limit,
    "no --unshare-pid, and nobody ends it": both(_HOST_PROCESSES, without("--die-with-parent")),
}

_ROOT, _NET, _FILTER = "a root of its own", "a network of its own, without a way out", "a system call filter"
_PIDS = "a process table of its own"
# name of the attack -> (risk, what is tried, defence, switch)
_INSIDE = {
    "reads_a_file_of_the_host": (
        "ASI03",
        "read a key in the host's files",
        _ROOT,
        "the host's root instead of its own",
    ),
    "writes_a_file_of_the_host": ("ASI05", "overwrite a file of the host", _ROOT, "the host's root instead of its own"),
    "reads_another_sandbox": ("ASI07", "read another task's work", _ROOT, "the host's root instead of its own"),
    "asks_on_another_tasks_socket": (
        "ASI07",
        "spend on another task's model socket",
        "only its own socket's folder is bound",
        "the host's root instead of its own",
    ),
    "learns_which_host_this_is": ("ASI03", "read the host's /etc", _ROOT, "the host's root instead of its own"),
    "reads_the_kernels_sysfs": ("ASI05", "look for a way out in /sys", _ROOT, "the host's root instead of its own"),
    "changes_a_folder_it_may_read": (
        "ASI04",
        "poison a folder that SANDBOX_READABLE shares",
        "shared folders are read-only",
        "the folder is bound writable",
    ),
    "takes_the_gateways_socket_away": (
        "ASI07",
        "replace the gateway's socket",
        "the socket's folder is read-only",
        "the socket's folder is bound writable",
    ),
    "reads_the_orchestrators_environment": (
        "ASI03",
        "read LLM_API_KEY from the environment",
        "commands get an environment made for them",
        "commands inherit the orchestrator's environment",
    ),
    "sees_processes_of_the_host": ("ASI03", "list the host's processes", _PIDS, "no --unshare-pid"),
    "signals_a_process_of_the_host": ("ASI08", "kill the orchestrator", _PIDS, "no --unshare-pid"),
    "reads_the_memory_of_a_process_of_the_host": (
        "ASI03",
        "read a key in another process",
        "process table and user namespace of its own",
        "SANDBOX_ISOLATION=none",
    ),
    "reaches_a_service_on_loopback": ("ASI02", "use a service on 127.0.0.1", _NET, "no --unshare-net"),
    "reaches_an_abstract_socket": ("ASI02", "use an abstract unix socket", _NET, "no --unshare-net"),
    "tells_a_name_server": ("ASI02", "carry data out by DNS", _NET, "no --unshare-net"),
    "sends_raw_packets": ("ASI02", "carry data out by ICMP", "no capabilities", "--cap-add ALL"),
    "listens_to_the_wire": ("ASI02", "listen to the network", "no capabilities", "--cap-add ALL"),
    "makes_namespaces_of_its_own": (
        "ASI05",
        "become root in a namespace of its own, for the kernel's bugs there",
        "no further user namespaces",
        "no --disable-userns",
    ),
    "reads_shared_memory": ("ASI07", "read shared memory", "an IPC namespace of its own", "no --unshare-ipc"),
    "takes_a_key_from_a_keyring": ("ASI03", "take a key from the kernel's keyring", _FILTER, "no system call filter"),
    "sets_up_io_uring": ("ASI05", "make system calls that no filter sees", _FILTER, "no system call filter"),
    "talks_to_the_hypervisor": ("ASI02", "reach the hypervisor by vsock", _FILTER, "no system call filter"),
    "writes_to_proc": ("ASI05", "set core_pattern in /proc/sys", "/proc is read-only", "no --remount-ro /proc"),
    "reads_the_names_of_keys": ("ASI03", "read /proc/keys", "/proc/keys is masked", "/proc/keys is not masked"),
    "reads_the_hosts_shared_memory_files": ("ASI07", "read /dev/shm", "a /dev of its own", "the host's /dev"),
    "writes_one_endless_file": ("ASI08", "fill the disk with one file", "a file size limit", "no file size limit"),
    "leaves_a_daemon_behind": (
        "ASI10",
        "leave a daemon behind",
        "a command's whole process table ends with it",
        "no --unshare-pid, and nobody ends it",
    ),
}
# What not every kernel offers in the first place: there nothing can be proven but that it is refused.
_KERNELS_OWN = {"takes_a_key_from_a_keyring", "sets_up_io_uring", "talks_to_the_hypervisor", "reads_the_names_of_keys"}

for _name, (_risk, _tries, _defence, _off) in _INSIDE.items():
    enter(_name, Attack(_risk, _tries, _defence, _off))


class Weakened:
    """A confinement with one defence less."""

    def __init__(self, inner: Confinement, switch: Switch, bait: dict[str, Any]) -> None:
        self._inner, self._switch, self._bait = inner, switch, bait

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def confine(self, *args: Any, **options: Any) -> Confined:
        made = self._inner.confine(*args, **options)
        env = {**os.environ, **made.env} if self._switch is WITH_OUR_ENVIRONMENT else made.env
        return dataclasses.replace(made, argv=self._switch(list(made.argv), self._bait), env=env)


class Provider(LocalProvider):
    """Local sandboxes, with `switch` for the defence that is off in them."""

    def __init__(self, base: Path, switch: Switch | None, bait: dict[str, Any]) -> None:
        super().__init__(base, Isolation.NONE if switch is ISOLATION_NONE else Isolation.AUTO)
        self._switch, self._bait = switch, bait

    @property
    def confinement(self) -> Confinement:
        whole = super().confinement
        return whole if self._switch is None else Weakened(whole, self._switch, self._bait)  # type: ignore[return-value]


# --- what there is to be had -----------------------------------------------------------------------------------------


def answering(listening: socket.socket, token: bytes, stop: threading.Event) -> threading.Thread:
    """Say `token` to whoever asks."""

    def serve() -> None:
        while not stop.is_set():
            with contextlib.suppress(TimeoutError, OSError):
                if listening.type == socket.SOCK_DGRAM:
                    _, who = listening.recvfrom(100)
                    listening.sendto(token, who)
                else:
                    with listening.accept()[0] as line:
                        line.sendall(token)

    listening.settimeout(0.1)
    thread = threading.Thread(target=serve)
    thread.start()
    return thread


@pytest.fixture(scope="module")
def bait(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Secrets, services and processes of a host, all of the test's own."""
    token, short = f"token-{uuid.uuid4().hex}", Path(tempfile.mkdtemp(prefix="ls-"))
    folder = tmp_path_factory.mktemp("host")
    (folder / "secret").write_text(token)
    (folder / "victim").write_text("mine")
    (folder / "shared").mkdir()
    (folder / "shared/lib.py").write_text("x = 1\n")
    (short / "own").mkdir()
    (short / "other").mkdir()
    neighbour = LocalProvider(folder / "sb", Isolation.AUTO).create(SandboxSpec(name="neighbour"))
    neighbour.write("/workspace/work", token.encode())
    dev_shm = Path(tempfile.mkdtemp(prefix="ls-", dir="/dev/shm"))
    (dev_shm / "file").write_text(token)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    shm_key = 0x10000 + int.from_bytes(os.urandom(3), "big")
    shm = libc.shmget(shm_key, 100, 0o1600)  # IPC_CREAT
    at = libc.shmat(shm, None, 0)
    ctypes.memmove(at, token.encode(), len(token))
    key = f"longshot-{uuid.uuid4().hex[:8]}"
    add_key = 248 if os.uname().machine == "x86_64" else 217
    libc.syscall(add_key, b"user", key.encode(), token.encode(), len(token), -3)
    # The name of one is what is looked for, its environment a key; the other is what is killed.
    argv = [sys.executable, "-c", "import signal; signal.pause()", f"marker-{token}"]
    keeper, victim = (subprocess.Popen(argv, env={"API_KEY": token}) for _ in range(2))
    sockets = {
        "tcp": socket.create_server(("127.0.0.1", 0)),
        "udp": socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "abstract": socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
        "own": socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
        "other": socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
    }
    sockets["udp"].bind(("127.0.0.1", 0))
    sockets["abstract"].bind(f"\0{token}")
    for name in ("own", "other"):
        sockets[name].bind(str(short / name / "model.sock"))
    stop = threading.Event()
    threads = []
    for listening in sockets.values():
        if listening.type == socket.SOCK_STREAM:
            listening.listen()
        threads.append(answering(listening, token.encode(), stop))
    yield {
        "token": token,
        "marker": ["marker", token],  # in two, for whoever tries it carries it on its own command line
        "secret": str(folder / "secret"),
        "victim": str(folder / "victim"),
        "neighbour": str(neighbour.host_path("/workspace/work")),
        "other_socket": str(short / "other/model.sock"),
        "gateway": str(short / "own"),
        "hosts": Path("/etc/hosts").read_text(encoding="utf-8"),
        "readable": str(folder / "shared/lib.py"),
        "readable_folder": str(folder / "shared"),
        "keeper": keeper.pid,
        "victim_pid": victim.pid,
        "tcp": sockets["tcp"].getsockname()[1],
        "udp": sockets["udp"].getsockname()[1],
        "abstract": token,
        "shm": shm_key,
        "key": key,
        "dev_shm": str(dev_shm / "file"),
    }
    stop.set()
    for thread in threads:
        thread.join()
    for listening in sockets.values():
        listening.close()
    for process in (keeper, victim):
        process.kill()
        process.wait()
    libc.shmdt(ctypes.c_void_p(at))
    libc.shmctl(shm, 0, None)  # IPC_RMID
    neighbour.terminate()
    shutil.rmtree(dev_shm)
    shutil.rmtree(short)


class Tried:
    """What worked in a sandbox with `switch` off; None is a sandbox as it is."""

    def __init__(self, folder: Path, switch: Switch | None, bait: dict[str, Any], names: list[str]) -> None:
        provider = Provider(folder / "sandboxes", switch, bait)
        spec = SandboxSpec(
            name="hostile",
            network="open" if switch is ISOLATION_NONE else "none",
            sockets={"/longshot/gateway/model.sock": f"{bait['gateway']}/model.sock"},
            readable=(bait["readable_folder"],),
        )
        sandbox = provider.create(spec)
        try:
            argv = ["python3", "-I", "-W", "ignore", "-c", PAYLOAD, json.dumps({"try": names, "bait": bait})]
            ran = sandbox.exec(argv, timeout_s=60)
            assert ran.exit_code == 0, ran.stderr.decode()
            self.worked: dict[str, Any] = json.loads(ran.stdout)
            if "leaves_a_daemon_behind" in names:
                assert self.worked["leaves_a_daemon_behind"] is True
                self.worked["leaves_a_daemon_behind"] = daemon_lives(sandbox, bait, 0.5 if switch else 20)
        finally:
            sandbox.terminate()


def daemon_lives(sandbox: LocalSandbox, bait: dict[str, Any], within_s: float) -> bool:
    """Is the lock that the daemon took still held? It is ended here when it is."""
    deadline = time.monotonic() + within_s
    with sandbox.host_path("/workspace/daemon").open("r+") as file:
        while time.monotonic() < deadline:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return False
            time.sleep(0.02)
        pid = int(file.read())
    if bait["token"].encode() in Path(f"/proc/{pid}/cmdline").read_bytes():  # by its number inside it would be anybody
        os.kill(pid, signal.SIGKILL)
    return True


@pytest.fixture(scope="module")
def defended(tmp_path_factory: pytest.TempPathFactory, bait: dict[str, Any]) -> dict[str, Any]:
    """All of it, in one session of one sandbox."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_API_KEY", bait["token"])
        return Tried(tmp_path_factory.mktemp("defended"), None, bait, list(_INSIDE)).worked


@pytest.mark.parametrize("name", _INSIDE)
def test_a_sandbox_keeps_in(
    name: str, defended: dict[str, Any], bait: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert defended[name] is False, defended
    if name == "writes_a_file_of_the_host":
        assert Path(bait["victim"]).read_text() == "mine"
    monkeypatch.setenv("LLM_API_KEY", bait["token"])
    weakened = Tried(tmp_path, _SWITCHES[_INSIDE[name][3]], bait, [name]).worked
    if weakened[name] is False and name in _KERNELS_OWN:
        assert Tried(tmp_path, ISOLATION_NONE, bait, [name]).worked[name] is False, "this kernel has none of it"
        return
    assert weakened[name] is True, weakened
