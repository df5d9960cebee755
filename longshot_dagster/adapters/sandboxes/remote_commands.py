"""Commands for sandboxes whose provider can start one and read what it says, and little more: small Python programs in argv.

What a provider of that kind lacks is done inside: ending the whole tree of one command, and reading and writing files that
an agent may have swapped for a link, a pipe or a device. Nothing they print is believed; whoever runs them bounds it.

    wrapped()   runs a command; nothing of its tree is left when it ends, its time is over, or `ending()` is run
    ending()    ends one wrapped command, or all of them
    reading()   a file's bytes on stdout; exit code 3: no such file, 4: too large
    writing()   stdin into a file, in one piece; exit code 3: it cannot be written
"""

from collections.abc import Sequence

MISSING = 3
TOO_LARGE = 4
MARK = "LONGSHOT_EXEC"  # variable of every process of a wrapped command; its value is the command's mark
WORKDIR = "LONGSHOT_WORKDIR"

_PLACE = "/longshot/.commands/"
_PYTHON = ("python3", "-I", "-S", "-c")


def wrapped(argv: Sequence[str], mark: str, seconds: float, cwd: str) -> list[str]:
    """`argv` in `cwd` for at most `seconds`; it exits as `argv` does, with 128 + n after signal n and 124 at the end of its
    time. An empty `cwd` is what the variable WORKDIR says, and is made. The caller sets the variable MARK to `mark`.
    """
    return [*_PYTHON, _WRAPPER, _PLACE, mark, repr(seconds), cwd, WORKDIR, *argv]


def ending(mark: str = "") -> list[str]:
    """End the command of that mark; every one without it."""
    return [*_PYTHON, _ENDER, _PLACE, MARK, mark]


def reading(path: str, max_bytes: int) -> list[str]:
    return [*_PYTHON, _READER, path, str(max_bytes)]


def writing(path: str) -> list[str]:
    return [*_PYTHON, _WRITER, path]


# It adopts the orphans below it, so that what daemonises is found. The pipe with a name is how another command reaches it,
# which may live in another process namespace.
_WRAPPER = r"""
import ctypes, os, select, signal, sys, time
place, mark, seconds, cwd, variable, *argv = sys.argv[1:]
until = time.monotonic() + float(seconds)
try:
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
except Exception:
    pass
asked = -1
try:
    os.makedirs(place, exist_ok=True)
    os.mkfifo(place + mark, 0o600)
    asked = os.open(place + mark, os.O_RDWR | os.O_NONBLOCK)
except OSError:
    pass
heard, tell = os.pipe()
os.set_blocking(tell, False)
os.set_blocking(heard, False)
signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
signal.signal(signal.SIGCHLD, lambda *_: None)
signal.signal(signal.SIGTERM, lambda *_: None)
def fail(why, code):
    os.write(2, (str(why) + "\n").encode("utf-8", "replace"))
    os._exit(code)
child = os.fork()
if child == 0:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    os.setsid()
    for used in (heard, tell, asked):
        if used >= 0:
            os.close(used)
    try:
        if not cwd:
            cwd = os.environ.get(variable) or "/"
            os.makedirs(cwd, exist_ok=True)
        os.chdir(cwd)
    except OSError as e:
        fail(f"cannot work in {cwd}: {e.strerror}", 126)
    try:
        os.execvp(argv[0], argv)
    except OSError as e:
        fail(f"{argv[0]}: {e.strerror}", 127 if isinstance(e, FileNotFoundError) else 126)
os.close(0)
code = None
def reap():
    global code
    try:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return True
            if pid == child:
                code = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    except ChildProcessError:
        return False
def below():
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    rest = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            if rest[0] != b"Z":
                parents[int(name)] = int(rest[1])
    found, edge = set(), {os.getpid()}
    while edge:
        edge = {p for p, above in parents.items() if above in edge} - found
        found |= edge
    return found
ended = None
while code is None and ended is None:
    left = until - time.monotonic()
    ready = select.select([heard] + ([asked] if asked >= 0 else []), [], [], max(0.0, left))[0] if left > 0 else None
    if ready is None or not ready:
        ended = 124
    elif asked in ready:
        ended = 137
    elif signal.SIGTERM in os.read(heard, 512):
        ended = 137
    reap()
end = time.monotonic() + 5
while reap() and time.monotonic() < end:
    try:
        os.killpg(child, signal.SIGKILL)
    except OSError:
        pass
    left = below()
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass
    if not left and code is not None:
        reap()
        break
    time.sleep(0.005)
try:
    os.unlink(place + mark)
except OSError:
    pass
os._exit(code if ended is None and code is not None else ended or 1)
"""

# First those that listen, which know their trees; then whatever carries the mark although its wrapper is gone.
_ENDER = r"""
import errno, os, signal, sys, time
place, variable, mark = sys.argv[1:]
wanted = (variable + "=" + mark).encode()
names = [mark] if mark else (os.listdir(place) if os.path.isdir(place) else [])
for name in names:
    try:
        pipe = os.open(place + name, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as e:
        if e.errno == errno.ENXIO:
            os.unlink(place + name)
        continue
    try:
        os.write(pipe, b".")
    except OSError:
        pass
    os.close(pipe)
end = time.monotonic() + 5
while any(os.path.lexists(place + name) for name in names) and time.monotonic() < end:
    time.sleep(0.01)
def carrying():
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in (1, os.getpid()):
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    entries = file.read().split(b"\0")
            except OSError:
                continue
            if any(e == wanted if mark else e.startswith(wanted) for e in entries):
                yield int(name)
for _ in range(50):
    left = list(carrying())
    if not left:
        break
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass
    time.sleep(0.01)
"""

_READER = r"""
import os, stat, sys
path, most = sys.argv[1], int(sys.argv[2])
try:
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        raise OSError(0, "it is not a regular file")
    left = most + 1
    while left > 0:
        data = os.read(file, min(left, 1 << 18))
        if not data:
            sys.exit(0)
        left -= len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(1, view):]
except OSError as e:
    os.write(2, str(e.strerror).encode("utf-8", "replace"))
    sys.exit(3)
sys.exit(4)
"""

_WRITER = r"""
import os, sys
path = sys.argv[1]
folder, name = os.path.split(path)
part = os.path.join(folder, "." + name[:100] + ".longshot-part")
try:
    os.makedirs(folder, exist_ok=True)
    try:
        os.unlink(part)
    except FileNotFoundError:
        pass
    file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    while True:
        data = os.read(0, 1 << 18)
        if not data:
            break
        view = memoryview(data)
        while view:
            view = view[os.write(file, view):]
    os.close(file)
    os.rename(part, path)
except OSError as e:
    os.write(2, str(e.strerror).encode("utf-8", "replace"))
    sys.exit(3)
"""
