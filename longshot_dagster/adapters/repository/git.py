"""The git command line, run so that neither a hostile repository nor the surroundings can steer it, and GitPython's objects.

Two kinds of commands. Local ones work on our own bare mirrors and read no configuration but the mirror's. Network ones
(`ls-remote`, `fetch`, `push`) may use the person's own configuration and agents, because that is where credentials are.
"""

import contextlib
import functools
import os
import re
import resource
import signal
import subprocess
import tempfile
import threading
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO

from longshot_dagster.adapters.repository.git_dialogue import Dialogue
from longshot_dagster.core.display import display
from longshot_dagster.core.errors import RepositoryError

if TYPE_CHECKING:
    import git

LOCAL_TIMEOUT_S = 300
NETWORK_TIMEOUT_S = 900
KEEP_BYTES = 64 << 20
OLDEST = (2, 38)  # merge-tree --write-tree
AT_ONCE = 2 * (os.cpu_count() or 1)  # local commands of one process; two hundred threads would only thrash

_NULL = os.devnull
_places = threading.BoundedSemaphore(AT_ONCE)
_ALWAYS = ("PATH", "TMPDIR", "GIT_TRACE2_EVENT", "GIT_EXEC_PATH")
_FOR_CREDENTIALS = (
    *(
        "HOME",
        "USER",
        "LOGNAME",
        "XDG_CONFIG_HOME",
        "XDG_RUNTIME_DIR",
        "GIT_CONFIG_GLOBAL",
        "GIT_CONFIG_NOSYSTEM",
        "DISPLAY",
    ),
    *("SSH_AUTH_SOCK", "SSH_ASKPASS", "GIT_SSH", "GIT_SSH_COMMAND", "GIT_ASKPASS", "DBUS_SESSION_BUS_ADDRESS"),
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO", "GIT_PROXY_SSL_CAINFO", "CURL_CA_BUNDLE"),
)
_CONFIG = (
    *("core.hooksPath=" + _NULL, "core.fsmonitor=false", "core.quotePath=false", "gc.auto=0", "maintenance.auto=false"),
    *("protocol.ext.allow=never", "submodule.recurse=false", "advice.detachedHead=false"),
    # None of the repository's own attributes: some versions read them from HEAD, where `-diff` hides a change from people.
    "attr.tree=4b825dc642cb6eb9a060e54bf8d69288fbee4904",
)
_NETWORK_CONFIG = ("push.followTags=false", "push.gpgSign=false", "fetch.prune=false", "fetch.writeCommitGraph=false")


Line = tuple[str, frozenset[str]]  # the last commit of a line of commits, and all of them


@dataclass(frozen=True)
class Ran:
    """A finished git command; `out` holds its first bytes, up to what the caller asked to keep."""

    code: int
    out: bytes
    err: str
    truncated: bool = False

    @property
    def text(self) -> str:
        return self.out.decode("utf-8", "replace").strip()


@dataclass(frozen=True)
class Limits:
    """What one command may use, where the kernel can enforce it (Linux)."""

    cpu_s: int
    memory_bytes: int
    file_bytes: int


class Git:
    """git on one repository directory, or on none (`ls-remote`, `init`)."""

    def __init__(self, directory: Path | None = None, *, network: bool = False) -> None:
        self.directory = directory
        self.network = network
        self.trees: dict[str, str] = {}  # commit -> its tree, of those that have been looked at
        self.sizes: dict[str, int] = {}  # object -> bytes; `object_store` keeps these six, none of which can change
        self.compared: dict[tuple[str, str], bytes] = {}  # two trees -> what differs
        self.contents: dict[str, bytes] = {}  # blob -> what it holds
        self.kept: dict[str, tuple[str, bytes]] = {}  # object -> its kind, what it holds; what work is compared with
        self.parents: dict[str, tuple[str, ...]] = {}  # commit -> its parents
        self.lines: dict[str, Line] = {}  # base -> the longest line of commits after it that was followed
        self._dialogues: dict[tuple[str, ...], Dialogue] = {}

    def dialogue(self, *args: str, through: tuple[str, ...] = ()) -> Dialogue:
        """`git ARGS`, a command that answers on stdout what it is asked on stdin, kept for more questions.

        `through` is a command that runs the one it is given, as its own process.
        """

        if (kept := self._dialogues.get((*through, *args))) is not None:
            return kept

        def start(errors: IO[bytes]) -> "subprocess.Popen[bytes]":
            return self._start(args, subprocess.PIPE, subprocess.PIPE, errors, through=through)

        return self._dialogues.setdefault((*through, *args), Dialogue(start))

    def run(
        self,
        *args: str,
        stdin: bytes = b"",
        ok: Container[int] = (0,),
        keep: int = KEEP_BYTES,
        timeout_s: float | None = None,
        env: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        into: BinaryIO | None = None,
    ) -> Ran:
        """Run `git ARGS`; a command that prints more than `keep` bytes is ended there and counts as a success.

        With `into`, what it prints goes to that file, at its position, and not through memory.

        Raises RepositoryError, one line, for an exit code not in `ok`, at the timeout, or when git is not installed.
        """
        timeout_s = timeout_s or (NETWORK_TIMEOUT_S if self.network else LOCAL_TIMEOUT_S)
        with self._place(), _given(stdin) as given, tempfile.TemporaryFile() as errors:
            process = self._start(args, given, into or subprocess.PIPE, errors, env)
            with process, _deadline(process, timeout_s) as expired:
                _limit(process, limits)
                out, truncated = _read(process, keep)
                code = process.wait()
            # Not by seeking: the position is shared with git's helpers, which may outlive it by a moment and still complain.
            err = os.pread(errors.fileno(), 64 << 10, 0).decode("utf-8", "replace")
        ran = Ran(code, out, err, truncated)
        if expired.is_set():
            raise RepositoryError(f"git {_verb(args)} did not end within {timeout_s:g} seconds")
        if code not in ok and not truncated:
            raise RepositoryError(f"git {_verb(args)}: {reason(err) or f'exit code {code}'}")
        return ran

    def _start(
        self,
        args: tuple[str, ...],
        stdin: IO[bytes] | int,
        stdout: IO[bytes] | int,
        errors: IO[bytes],
        env: Mapping[str, str] | None = None,
        through: tuple[str, ...] = (),
    ) -> "subprocess.Popen[bytes]":
        try:
            return subprocess.Popen(
                [*through, *self._command(), *args],
                stdin=stdin,
                stdout=stdout,
                stderr=errors,
                bufsize=0,
                env={**environment(self.network), **(env or {})},
                cwd="/",
                start_new_session=True,  # no terminal to ask a password on; killed as a group
            )
        except FileNotFoundError as e:
            raise RepositoryError("git is not installed, or not on PATH") from e

    def _place(self) -> contextlib.AbstractContextManager[object]:
        """Those that wait for a network are few already, and must not keep others waiting."""
        return contextlib.nullcontext() if self.network else _places

    def _command(self) -> list[str]:
        config = (*_CONFIG, *(_NETWORK_CONFIG if self.network else ()))
        where = [f"--git-dir={self.directory}"] if self.directory else []
        return ["git", *where, "--no-pager", *(word for entry in config for word in ("-c", entry))]


def environment(network: bool = False) -> dict[str, str]:
    """What git may know of the surroundings: never a key of ours, never GIT_DIR and its relatives."""
    names = (*_ALWAYS, *(_FOR_CREDENTIALS if network else ()))
    env = {name: os.environ[name] for name in names if name in os.environ}
    env |= {"LC_ALL": "C.UTF-8", "GIT_TERMINAL_PROMPT": "0", "GIT_ATTR_NOSYSTEM": "1", "GIT_OPTIONAL_LOCKS": "0"}
    if network:
        return env | {"GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh"}
    return env | {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": _NULL, "GIT_NO_LAZY_FETCH": "1"}


@functools.cache
def version() -> tuple[int, int]:
    """(major, minor) of the installed git; raises RepositoryError below OLDEST."""
    text = Git().run("version").text
    found = re.search(r"(\d+)\.(\d+)", text)
    number = (int(found[1]), int(found[2])) if found else (0, 0)
    if number < OLDEST:
        raise RepositoryError(f"git {OLDEST[0]}.{OLDEST[1]} or newer is needed, this is {text!r}")
    return number


def read_blobs(git: Git, oids: Iterable[str]) -> dict[str, bytes]:
    """Contents of objects by full id, in one process; what is not there is left out."""
    wanted = list(dict.fromkeys(oids))
    out = git.run("cat-file", "--batch", stdin="".join(f"{o}\n" for o in wanted).encode()).out if wanted else b""
    found: dict[str, bytes] = {}
    position = 0
    while (end := out.find(b"\n", position)) >= 0:
        oid, kind, *size = out[position:end].decode("ascii", "replace").split(" ")
        position = end + 1
        if kind != "missing":
            found[oid] = out[position : position + int(size[0])]
            position += int(size[0]) + 1
    return found


def reason(err: str, limit: int = 400) -> str:
    """git's own complaint as one line: what the other side said first, then the fatal line; credentials cut out."""
    lines = [line.strip() for line in err.replace("\r", "\n").splitlines() if line.strip()]
    said = [line.removeprefix("remote:").strip() for line in lines if line.startswith("remote:")]
    fatal = [line for line in lines if line.startswith(("fatal:", "error:")) and "failed to push some refs" not in line]
    words = "; ".join(dict.fromkeys(w for w in (*said, *(fatal or lines[:1] if not said else fatal[:1])) if w))
    return display(re.sub(r"://[^/@\s]+@", "://", words), "plain", limit).replace("\n", " ")


@contextlib.contextmanager
def objects(directory: Path) -> "Iterator[git.Repo]":
    """GitPython's handle to the objects of a bare repository, for reading; one per caller, because it is not thread-safe."""
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import git

    repo = git.Repo(directory)
    repo.git.update_environment(**environment())
    try:
        yield repo
    finally:
        repo.close()


@contextlib.contextmanager
def _given(stdin: bytes) -> Iterator[IO[bytes] | int]:
    if not stdin:
        yield subprocess.DEVNULL
        return
    with tempfile.TemporaryFile() as file:
        file.write(stdin)
        file.seek(0)
        yield file


@contextlib.contextmanager
def _deadline(process: "subprocess.Popen[bytes]", seconds: float) -> Iterator[threading.Event]:
    expired = threading.Event()

    def end() -> None:
        expired.set()
        _kill(process)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield expired
    except BaseException:
        _kill(process)
        raise
    finally:
        timer.cancel()


def _kill(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _read(process: "subprocess.Popen[bytes]", keep: int) -> tuple[bytes, bool]:
    if process.stdout is None:
        return b"", False
    parts: list[bytes] = []
    size = 0
    while chunk := process.stdout.read(1 << 16):
        parts.append(chunk[: keep - size])
        size += len(chunk)
        if size > keep:
            _kill(process)
            return b"".join(parts), True
    return b"".join(parts), False


def _verb(args: tuple[str, ...]) -> str:
    rest = args
    while len(rest) > 2 and rest[0] in ("-c", "-C"):
        rest = rest[2:]
    return rest[0]


def _limit(process: "subprocess.Popen[bytes]", limits: Limits | None) -> None:
    # Set from outside: a function between fork and exec is not safe in a process with threads.
    if limits is None or not hasattr(resource, "prlimit"):
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        resource.prlimit(process.pid, resource.RLIMIT_CPU, (limits.cpu_s, limits.cpu_s))
        resource.prlimit(process.pid, resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limits.file_bytes, limits.file_bytes))
