"""What runs inside a sandbox of a remote service on our behalf: Python ≥ 3.9, its standard library, and no rights.

ENTRY   the first process: gathers the dead, and ends, with everything else, after its lifetime or when nothing has run for long
RUN     starts one command and ends whatever the command leaves, however it hid: orphans become RUN's own children
END     ends one RUN with its command; ALL, every process but the first

RUN reads frames from its input: four bytes of length, then so many bytes. The first one is JSON, {argv, cwd, env}; the
others are the command's input, and an empty one is its end. What it is told thus stands in no list of processes.

As text, RUN says on one stream what the command says on two: lines of `1` or `2` and base64. It is for services that take
every output for UTF-8.
"""

import binascii
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

PYTHON = ("python3", "-I", "-S", "-c")
HOME = "/home/agent"
_MAX_LINE = 1 << 20


def entry(lifetime_s: float, idle_s: float | None) -> list[str]:
    """The first process of a sandbox; `idle_s` None: it is never too idle."""
    return [*PYTHON, ENTRY, str(lifetime_s), str(idle_s or 0)]


def run(mark: str, *, as_text: bool = False) -> list[str]:
    """A command to come, of which `mark` is the name."""
    return [*PYTHON, RUN, "text" if as_text else "bytes", "longshot-run", mark]


def end(mark: str = "") -> list[str]:
    """Without a mark, each command there is. Ends with 3 when there is none."""
    return [*PYTHON, END, "longshot-end", mark]


def end_all() -> list[str]:
    return [*PYTHON, "import os, signal; os.kill(-1, signal.SIGKILL)"]


def fed(
    argv: Sequence[str],
    cwd: str,
    env: Mapping[str, str],
    stdin: bytes | Iterable[bytes] | None,
    frame_bytes: int = 1 << 16,
) -> Iterator[bytes]:
    """What RUN is to read, piece by piece, as it comes."""
    yield _frame(json.dumps({"argv": list(argv), "cwd": cwd, "env": dict(env)}).encode())
    for chunk in [stdin or b""] if stdin is None or isinstance(stdin, bytes) else stdin:
        view = memoryview(chunk)
        for start in range(0, len(view), frame_bytes):
            yield _frame(bytes(view[start : start + frame_bytes]))
    yield _frame(b"")


class Lines:
    """What RUN says as text, as it comes in pieces."""

    def __init__(self) -> None:
        self._held = ""

    def add(self, text: str) -> Iterator[tuple[str, bytes]]:
        """(`1` or `2`, what was said). Raises ValueError."""
        *whole, self._held = (self._held + text).split("\n")
        if len(self._held) > _MAX_LINE:
            raise ValueError("a line without an end")
        for line in whole:
            try:
                yield line[:1], binascii.a2b_base64(line[1:])
            except binascii.Error as e:
                raise ValueError(f"{line[:100]!r} is none of ours") from e


def _frame(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


ENTRY = r"""
import os, signal, sys, time
began = seen = time.monotonic()
ends, idle = began + float(sys.argv[1]), float(sys.argv[2])
awaited = {signal.SIGCHLD, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
while True:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
    now = time.monotonic()
    if idle and any(name.isdigit() and name != str(os.getpid()) for name in os.listdir("/proc")):
        seen = now
    wait = min(ends, seen + idle if idle else ends) - now
    if wait <= 0:
        break
    got = signal.sigtimedwait(awaited, min(wait, max(0.2, idle / 10)) if idle else wait)
    if got is not None and got.si_signo == signal.SIGTERM:
        break
"""

_BELOW = r"""
import os, signal, sys, time
def below(top):
    rows = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open("/proc/%s/stat" % name, "rb") as f:
                    rest = f.read().rpartition(b")")[2].split()
            except OSError:
                continue
            if rest[0] not in b"ZX":
                rows.append((int(name), int(rest[1])))
    found, frontier = set(), {top}
    while frontier:
        frontier = {p for p, parent in rows if parent in frontier} - found
        found |= frontier
    return found
def kill(pids):
    for p in pids:
        try:
            os.kill(p, signal.SIGKILL)
        except OSError:
            pass
"""

RUN = (
    _BELOW
    + r"""
import binascii, ctypes, json, threading
as_text = sys.argv[1] == "text"
def take(n):
    data = b""
    while len(data) < n:
        more = os.read(0, min(n - len(data), 1 << 20))
        if not more:
            raise EOFError
        data += more
    return data
def frame():
    return take(int.from_bytes(take(4), "big"))
def stop(*_):
    raise SystemExit
def feed(pipe):
    try:
        while True:
            view = memoryview(frame())
            if not view:
                break
            while view:
                view = view[os.write(pipe, view):]
    except (EOFError, OSError):
        pass
    finally:
        os.close(pipe)
speaking = threading.Lock()
def say(stream, pipe):
    while True:
        data = os.read(pipe, 1 << 15)
        if not data:
            return
        view = memoryview(stream + binascii.b2a_base64(data))
        with speaking:
            while view:
                view = view[os.write(1, view):]
try:
    order = json.loads(frame())
except EOFError:
    os._exit(125)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGPIPE, signal.SIG_IGN)
try:
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
except (OSError, AttributeError):
    pass
env = {"LANG": "C.UTF-8", "TMPDIR": "/tmp", **os.environ, "HOME": "/home/agent", **order["env"]}
read, write = os.pipe()
said = [os.pipe(), os.pipe()] if as_text else []
child = os.fork()
if child == 0:
    code = 127
    try:
        os.setsid()
        os.dup2(read, 0)
        for stream, (_, sink) in enumerate(said, 1):
            os.dup2(sink, stream)
        os.closerange(3, 256)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.chdir(order["cwd"])
        os.execvpe(order["argv"][0], order["argv"], env)
    except OSError as e:
        code = 127 if isinstance(e, FileNotFoundError) else 126
        os.write(2, ("%s: %s\n" % (order["argv"][0], e.strerror)).encode("utf-8", "replace"))
    except BaseException as e:
        os.write(2, repr(e).encode("utf-8", "replace"))
    finally:
        os._exit(code)
os.close(read)
pumps = []
for stream, (source, sink) in enumerate(said, 1):
    os.close(sink)
    pumps.append(threading.Thread(target=say, args=(b"%d" % stream, source), daemon=True))
    pumps[-1].start()
threading.Thread(target=feed, args=(write,), daemon=True).start()
code = 143
try:
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child:
            code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
            break
except SystemExit:
    pass
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(500):
    left = below(os.getpid())
    if not left:
        break
    kill(left)
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
    time.sleep(0.005)
for pump in pumps:
    pump.join(60)
os._exit(code)
"""
)

END = (
    _BELOW
    + r"""
def tops(mark):
    for name in os.listdir("/proc"):
        try:
            with open("/proc/%s/cmdline" % name, "rb") as f:
                words = f.read().split(b"\0")
        except OSError:
            continue
        if words[-3:-2] == [b"longshot-run"] and mark in (b"", words[-2]):
            yield int(name)
found = list(tops(sys.argv[2].encode()))
for top in found:
    for _ in range(500):
        left = below(top)
        if not left:
            break
        kill(left)
        time.sleep(0.005)
    kill([top])
sys.exit(0 if found else 3)
"""
)
