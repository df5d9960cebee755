"""The way to the model for a sandbox that this host's sockets do not reach: over one of its commands, in frames.

In the sandbox the command listens where the gateway's socket would lie (sandbox/longshot_worker/mux.py). Every connection
to it becomes a stream (core/relay_frames.py), which ends here in a connection to the task's own socket of the gateway. So
no key and no address of the model enters the sandbox, and whoever speaks in there is that task, whatever it says.

A stream that nobody reads stops at its window and holds up no other. A command that dies, or is not heard any more, is
started again; connections open at that moment are closed, as by any server that is started again. A sandbox that breaks
the rules has no way to the model any more.
"""

import contextlib
import selectors
import socket
import threading
from collections.abc import Callable, Iterator, Mapping

from longshot_dagster.adapters.sandboxes.worker_archive import worker_archive
from longshot_dagster.core import contract
from longshot_dagster.core.clock import Clock, SystemClock
from longshot_dagster.core.display import one_line
from longshot_dagster.core.errors import Cancelled, LongshotError, SandboxError, SandboxGone, SandboxRefused
from longshot_dagster.core.relay_frames import ALIVE, MAX_PAYLOAD, MAX_STREAMS, WINDOW, Frame, Frames, Kind, credit
from longshot_dagster.core.sandbox import Capabilities, Sandbox, SandboxProvider, Stream

READY_S = 60.0
_ALIVE_S = 10.0
_SILENCE_S = 45.0
_CONNECT_AGAIN_S = 0.05
_AT_ONCE = 256 << 10  # bytes handed to the command in one piece
_END_S = 5.0
_WAITS_S = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # before it is started again; then it is not any more
_MAX_REFUSED = 1_000


def check_reachable(name: str, able: Capabilities) -> None:
    """Raises SandboxRefused, in one line, when workers in such sandboxes would have no way to their model."""
    if not able.sockets and not able.live_stdin:
        raise SandboxRefused(
            f"workers in {name} sandboxes would have no way to their model: this provider neither shows them a socket nor "
            "feeds a running command, and a key inside the sandbox is not built"
        )


@contextlib.contextmanager
def way_to_model(
    provider: SandboxProvider,
    sandbox: Sandbox,
    sockets: Mapping[str, str],
    within_s: float,
    *,
    needed: bool = True,
) -> Iterator[None]:
    """`sockets` (path inside -> socket of this host) can be reached in `sandbox` for as long as this lasts.

    Nothing happens where the provider shows sockets itself. Raises SandboxError when they cannot be reached and are `needed`.
    """
    if provider.capabilities.sockets or not sockets:
        yield
        return
    check_reachable(provider.name, provider.capabilities)
    with contextlib.ExitStack() as relays:
        with contextlib.nullcontext() if needed else contextlib.suppress(SandboxError):
            sandbox.write(contract.RELAY, worker_archive())
            for inside, outside in sockets.items():
                relays.enter_context(ModelRelay(sandbox, inside, outside, within_s))
        yield


class ModelRelay:
    """One socket of this host at the path `inside` of a sandbox; the archive lies at contract.RELAY already."""

    def __init__(
        self, sandbox: Sandbox, inside: str, outside: str, within_s: float, clock: Clock | None = None
    ) -> None:
        self._sandbox = sandbox
        self._inside = inside
        self._outside = outside
        self._clock = clock or SystemClock()
        self._until = self._clock.monotonic() + within_s
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._link: _Link | None = None
        self._thread = threading.Thread(target=self._keep, name="model-relay", daemon=True)
        self.problem = ""

    def __enter__(self) -> "ModelRelay":
        """Raises SandboxError when nothing listens in the sandbox in time."""
        self._thread.start()
        if not self._ready.wait(READY_S) or self.problem:
            self.__exit__()
            raise SandboxError(f"the way to the model does not open: {self.problem or 'nothing listens in time'}")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        link = self._link
        if link is not None:
            link.close()
        self._thread.join(_END_S)

    def _keep(self) -> None:
        failed = 0
        while not self._stop.is_set() and self._clock.monotonic() < self._until:
            self._link = link = _Link(self._outside, self._ready.set, self._clock)
            try:
                why, over = self._carried(link)
            finally:
                link.close()
            if self._stop.is_set():
                return
            failed = 0 if link.served else failed + 1
            if over or failed > len(_WAITS_S) - 1:
                self.problem = why
                self._ready.set()
                return
            self._stop.wait(_WAITS_S[failed])

    def _carried(self, link: "_Link") -> tuple[str, bool]:
        """Why the command ended, and whether that was for good."""
        name = contract.RELAY.rpartition("/")[2]
        try:
            ran = self._sandbox.exec(
                ["python3", "-I", name, "relay", self._inside],
                cwd=contract.DIRECTORY,
                timeout_s=max(1.0, self._until - self._clock.monotonic()),
                stdin=link.said(),
                on_output=link.hear,
                cancelled=link.is_over,
                keep_bytes=4_000,
            )
        except Cancelled:
            return link.broken or "nobody was heard", bool(link.broken)
        except SandboxGone as e:
            return str(e), True
        except (LongshotError, OSError) as e:
            return str(e), False
        words = one_line(ran.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2], 300)
        return link.broken or f"it ended with exit code {ran.exit_code}: {words or 'it said nothing'}", bool(
            link.broken
        )


class _Way:
    """One stream: a connection to the gateway, and what is on its way there."""

    def __init__(self) -> None:
        self.connection: socket.socket | None = None  # None: to be connected
        self.to_write = bytearray()
        self.may_come = WINDOW  # bytes of DATA that the sandbox may still send
        self.may_send = WINDOW
        self.to_grant = 0
        self.read_all = False  # the gateway has said everything, and the sandbox was told so
        self.written_all = False  # the sandbox has
        self.told_all = False  # and the gateway was told


class _Link:
    """Both ends of one command. `hear` is called by whoever listens to it, `said` runs in the thread that feeds it, and does
    everything with the gateway's connections."""

    def __init__(self, outside: str, ready: Callable[[], None], clock: Clock) -> None:
        self.broken = ""  # what rule the sandbox broke
        self.served = False  # it has listened
        self._outside = outside
        self._told_ready = ready
        self._clock = clock
        self._frames = Frames()
        self._lock = threading.Lock()
        self._ways: dict[int, _Way] = {}
        self._gone: list[_Way] = []  # to be closed by the thread that uses them
        self._refused: list[int] = []
        self._last = 0
        self._over = False
        self._ends_at: float | None = None
        self._heard_at = clock.monotonic()
        self._feeding = False  # somebody runs `said`, and closes everything when that ends
        self._waken, self._wake = socket.socketpair()
        self._wake.setblocking(False)

    # --- from the sandbox --------------------------------------------------------------------------------------------

    def hear(self, stream: Stream, data: bytes) -> None:
        if stream != "stdout" or self._over:
            return
        with self._lock:
            try:
                for frame in self._frames.of(data):
                    self._take(frame)
            except ValueError as e:
                self.broken = f"the sandbox broke the relay's rules: {e}"
                self._over = True
            self._heard_at = self._clock.monotonic()
        self._nudge()

    def is_over(self) -> bool:
        """Is the command to be ended? One whose input has ended may do that by itself."""
        now = self._clock.monotonic()
        if self.broken or (self._ends_at is not None and now > self._ends_at):
            return True
        if now - self._heard_at > _SILENCE_S and not self._over:
            self._over = True
            self._nudge()
        return self._over and self._ends_at is None

    def close(self) -> None:
        with self._lock:
            self._over = True
            self._ends_at = self._ends_at or self._clock.monotonic() + _END_S / 2
            if not self._feeding:
                self._let_go()
        self._nudge()

    def _let_go(self) -> None:
        for end in (self._waken, self._wake):
            end.close()
        for way in (*self._ways.values(), *self._gone):
            if way.connection is not None:
                way.connection.close()
        self._ways.clear()
        self._gone.clear()

    def _take(self, frame: Frame) -> None:
        """Raises ValueError."""
        if frame.kind is Kind.ALIVE:
            if not self.served:
                self.served = True
                self._told_ready()
            return
        if frame.kind is Kind.OPEN:
            if frame.stream <= self._last:
                raise ValueError("a stream was opened twice")
            self._last = frame.stream
            if len(self._ways) < MAX_STREAMS:
                self._ways[frame.stream] = _Way()
            elif len(self._refused) < _MAX_REFUSED:
                self._refused.append(frame.stream)
            else:
                raise ValueError("too many streams")
            return
        way = self._ways.get(frame.stream)
        if way is None:
            if frame.stream > self._last:
                raise ValueError("a stream that was never opened")
            return  # it was reset here a moment ago
        if frame.kind is Kind.DATA:
            way.may_come -= len(frame.payload)
            if way.may_come < 0 or way.written_all:
                raise ValueError("more bytes than were granted")
            way.to_write += frame.payload
        elif frame.kind is Kind.EOF:
            way.written_all = True
        elif frame.kind is Kind.CREDIT:
            way.may_send += frame.credit
            if way.may_send > WINDOW:
                raise ValueError("more was granted than there is")
        else:
            self._gone.append(self._ways.pop(frame.stream))

    def _nudge(self) -> None:
        with contextlib.suppress(OSError):
            self._wake.send(b".")

    # --- to the sandbox ----------------------------------------------------------------------------------------------

    def said(self) -> Iterator[bytes]:
        """What the command is fed, as it comes, until `close`."""
        with self._lock:
            if self._over:
                return
            self._feeding = True
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._waken, selectors.EVENT_READ)
                alive_at = self._clock.monotonic()
                while not self._over:
                    frames = []
                    if self._clock.monotonic() >= alive_at:
                        alive_at = self._clock.monotonic() + _ALIVE_S
                        frames.append(ALIVE)
                    with self._lock:
                        frames += self._owed(selector)
                        waiting = any(way.connection is None for way in self._ways.values())
                    if not frames:
                        left = alive_at - self._clock.monotonic()
                        ready = selector.select(max(0.0, min(left, _CONNECT_AGAIN_S) if waiting else left))
                        with self._lock:
                            frames = self._moved(selector, ready)
                    if frames:
                        yield b"".join(frame.encoded for frame in frames)
        finally:
            with self._lock:
                self._feeding = False
                self._over = True
                self._let_go()

    def _owed(self, selector: selectors.BaseSelector) -> list[Frame]:
        """Connect what was opened, close what was reset, and ask `selector` for just what can be done now."""
        frames = [Frame(number, Kind.RESET) for number in self._refused]
        self._refused.clear()
        while self._gone:
            self._drop(selector, self._gone.pop())
        for number, way in list(self._ways.items()):
            if way.connection is None and not self._connect(way):
                frames.append(self._reset(selector, number))
            elif way.connection is not None:
                self._ask(selector, number, way)
        return frames

    def _connect(self, way: _Way) -> bool:
        """False when there is no gateway; one whose queue is full is asked again."""
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.setblocking(False)
        try:
            made.connect(self._outside)
        except BlockingIOError:
            made.close()
            return True
        except OSError:
            made.close()
            return False
        way.connection = made
        return True

    def _ask(self, selector: selectors.BaseSelector, number: int, way: _Way) -> None:
        assert way.connection is not None
        events = selectors.EVENT_READ if way.may_send > 0 and not way.read_all else 0
        if way.to_write or (way.written_all and not way.told_all):
            events |= selectors.EVENT_WRITE
        known = selector.get_map().get(way.connection)
        if known is None:
            if events:
                selector.register(way.connection, events, number)
        elif not events:
            selector.unregister(way.connection)
        elif known.events != events:
            selector.modify(way.connection, events, number)

    def _moved(self, selector: selectors.BaseSelector, ready: list[tuple[selectors.SelectorKey, int]]) -> list[Frame]:
        """Write to and read from every connection that is ready, a piece each."""
        frames: list[Frame] = []
        for key, events in ready:
            if key.data is None:
                self._waken.recv(1 << 12)
                continue
            way = self._ways.get(key.data)
            if way is None or way.connection is not key.fileobj:
                continue
            try:
                if events & selectors.EVENT_WRITE:
                    frames += self._written(key.data, way, key.fileobj)
                if events & selectors.EVENT_READ and len(frames) * MAX_PAYLOAD < _AT_ONCE:
                    frames += self._read(key.data, way, key.fileobj)
            except BlockingIOError:
                continue
            except OSError:
                frames.append(self._reset(selector, key.data))
                continue
            if way.read_all and way.told_all:
                self._drop(selector, self._ways.pop(key.data))
        return frames

    def _written(self, number: int, way: _Way, connection: socket.socket) -> list[Frame]:
        if way.to_write:
            count = connection.send(way.to_write)
            del way.to_write[:count]
            way.to_grant += count
        if way.written_all and not way.to_write:
            connection.shutdown(socket.SHUT_WR)
            way.told_all = True
            return []
        if way.to_grant < WINDOW // 4 and way.to_write:
            return []
        way.may_come += way.to_grant
        granted, way.to_grant = way.to_grant, 0
        return [credit(number, granted)] if granted else []

    def _read(self, number: int, way: _Way, connection: socket.socket) -> list[Frame]:
        if way.may_send <= 0 or way.read_all:
            return []
        data = connection.recv(min(MAX_PAYLOAD, way.may_send))
        way.may_send -= len(data)
        way.read_all = not data
        return [Frame(number, Kind.DATA, data) if data else Frame(number, Kind.EOF)]

    def _reset(self, selector: selectors.BaseSelector, number: int) -> Frame:
        self._drop(selector, self._ways.pop(number))
        return Frame(number, Kind.RESET)

    def _drop(self, selector: selectors.BaseSelector, way: _Way) -> None:
        if way.connection is not None:
            with contextlib.suppress(KeyError):
                selector.unregister(way.connection)
            way.connection.close()
