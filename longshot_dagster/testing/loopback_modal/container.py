"""A local sandbox with one process in it that starts all its commands, and each of these commands, seen from the server."""

import asyncio
import contextlib
import inspect
import itertools
import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from longshot_dagster.core.errors import LongshotError, SandboxRefused
from longshot_dagster.core.sandbox import Sandbox, Stream
from longshot_dagster.testing.loopback_modal import inside
from longshot_dagster.testing.loopback_modal.spoken import Bell, Spoken

_log = logging.getLogger(__name__)
KILLED = -9
_MAX_UNTAKEN = 1 << 20  # bytes of input that a command has not read yet
_MAX_UNSORTED = 16 << 20
_KEPT_COMMANDS = 64  # that have ended; what older ones said is forgotten


class Command:
    """What it says, what it is given, how it ended (`code`; negative: the signal); used on the server's loop only."""

    def __init__(self, send: Callable[[bytes, bytes], None], kept: tuple[bool, bool]) -> None:
        self._send = send
        self.stdout = Spoken(kept[0], inside.WINDOW, lambda upto: send(inside.ALLOW, inside.OUT + str(upto).encode()))
        self.stderr = Spoken(kept[1], inside.WINDOW, lambda upto: send(inside.ALLOW, inside.ERR + str(upto).encode()))
        self.code: int | None = None
        self.given = 0  # bytes of input so far
        self.finished = False  # no more input
        self._closed = False
        self._untaken = 0
        self._bell = Bell()
        self._turn = asyncio.Lock()
        self.deadline: asyncio.TimerHandle | None = None

    async def feed(self, data: bytes, offset: int, last: bool) -> None:
        """The bytes from `offset` of its input on; what it has been given already is skipped. Raises BrokenPipeError."""
        async with self._turn:
            if offset > self.given:
                raise ValueError(f"input goes on at byte {self.given}, not {offset}")
            data = data[self.given - offset :]
            for at in range(0, len(data), inside.MAX_PAYLOAD):
                piece = data[at : at + inside.MAX_PAYLOAD]
                await self._bell.until(lambda: self._deaf or self._untaken < _MAX_UNTAKEN)
                if self._deaf:
                    raise BrokenPipeError("it reads no more input")
                self._send(inside.INPUT, piece)
                self._untaken += len(piece)
                self.given += len(piece)
            if last and not self.finished:
                self.finished = True
                self._send(inside.FINISH, b"")

    async def ended(self) -> int:
        await self._bell.until(lambda: self.code is not None)
        assert self.code is not None
        return self.code

    def kill(self) -> None:
        if self.code is None:
            self._send(inside.KILL, b"")

    def hear(self, kind: bytes, payload: bytes) -> None:
        if kind in (inside.OUT, inside.ERR):
            stream = self.stdout if kind == inside.OUT else self.stderr
            if payload:
                stream.add(payload)
            else:
                stream.end()
        elif kind == inside.TAKEN:
            self._untaken -= int(payload)
        elif kind == inside.CLOSED:
            self._closed = True
        elif kind == inside.GONE:
            self.end(int(payload))
        self._bell.ring()

    def end(self, code: int) -> None:
        if self.code is None:
            self.code = code
            if self.deadline is not None:
                self.deadline.cancel()
            self._bell.ring()

    @property
    def over(self) -> bool:
        """It has ended, and everything it said is here."""
        return self.code is not None and self.stdout.ended and self.stderr.ended

    @property
    def _deaf(self) -> bool:
        return self._closed or self.code is not None


class Container:
    """All commands of one sandbox share its processes, its network and its files, as in a container, and end with it."""

    def __init__(self, box: Sandbox, lifetime_s: float, over: Callable[[], None]) -> None:
        self.box = box
        self.commands: dict[str, Command] = {}
        self.last_ended_at = 0.0  # of its commands; monotonic
        self._lifetime_s = lifetime_s
        self._over = over
        self._loop = asyncio.get_running_loop()
        self._orders: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._numbers = itertools.count(1)
        self._numbered: dict[int, Command] = {}  # of which news may still come
        self._frames = inside.Frames()
        self._thread: threading.Thread | None = None
        self._stopping = False  # somebody ended it
        self._broken = False  # it talks nonsense
        self._heard_bytes = 0  # of news, counted by the thread
        self._sorted_bytes = 0  # likewise by the loop: the difference is on its way

    def start(
        self,
        key: str,
        argv: Sequence[str],
        *,
        cwd: str,
        env: Mapping[str, str],
        timeout_s: float | None,
        kept: tuple[bool, bool] = (True, True),
    ) -> Command:
        """A command under `key`; `env` besides that of the sandbox. Raises SandboxRefused."""
        return self._started(key, {"argv": list(argv), "cwd": cwd, "env": dict(env)}, timeout_s, kept)

    def start_files(self, key: str, asked: str, timeout_s: float | None) -> Command:
        """What the SDK asks of its own program for files, as a command."""
        return self._started(key, {"files": asked}, timeout_s, (True, True))

    def forget(self) -> None:
        """What its commands have said; how they ended stays."""
        for command in self.commands.values():
            command.stdout.forget()
            command.stderr.forget()

    def running(self) -> bool:
        return any(command.code is None for command in self.commands.values())

    async def end(self) -> None:
        """Nothing of it is left afterwards; whoever waits for a command hears that it was killed."""
        self._stopping = True
        self._orders.put(None)
        await asyncio.to_thread(self.box.terminate)
        self._ended()

    def _started(self, key: str, order: Mapping[str, Any], timeout_s: float | None, kept: tuple[bool, bool]) -> Command:
        told = json.dumps(order).encode()
        if len(told) > inside.MAX_PAYLOAD:
            raise SandboxRefused("a command with its variables is too long")
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"loopback {self.box.id}", daemon=True)
            self._thread.start()
        number = next(self._numbers)
        command = Command(lambda kind, payload: self._orders.put(inside.frame(kind, number, payload)), kept)
        self._numbered[number] = self.commands[key] = command
        self._orders.put(inside.frame(inside.START, number, told))
        if timeout_s:
            command.deadline = self._loop.call_later(timeout_s, command.kill)
        self._forget_old()
        return command

    def _forget_old(self) -> None:
        ended = [key for key, command in self.commands.items() if command.code is not None]
        for key in ended[:-_KEPT_COMMANDS]:
            del self.commands[key]

    def _run(self) -> None:
        """In a thread of its own, as long as the sandbox lives."""
        argv = ["python3", "-I", "-S", "-c", inspect.getsource(inside)]
        try:
            ran = self.box.exec(
                argv,
                timeout_s=self._lifetime_s,
                cwd="/",
                stdin=self._given(),
                on_output=self._heard,
                cancelled=lambda: self._stopping or self._broken,
                keep_bytes=1 << 12,
            )
            if not self._stopping:
                _log.warning("the first process of %s has ended: %s", self.box.id, ran.stderr.decode(errors="replace"))
        except LongshotError as e:
            _log.debug("%s: %s", self.box.id, e)
        self._orders.put(None)
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._ended)

    def _given(self) -> Iterator[bytes]:
        while (order := self._orders.get()) is not None:
            yield order

    def _heard(self, stream: Stream, data: bytes) -> None:
        if stream == "stdout":
            while self._heard_bytes - self._sorted_bytes > _MAX_UNSORTED and not self._stopping:
                time.sleep(0.005)
            self._heard_bytes += len(data)
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._sort, data)

    def _sort(self, data: bytes) -> None:
        """News of the commands. One of them may have written here itself: nonsense ends the sandbox."""
        try:
            for kind, number, payload in () if self._broken else self._frames.add(data):
                if command := self._numbered.get(number):
                    command.hear(kind, payload)
                    if kind == inside.GONE:
                        self.last_ended_at = time.monotonic()
                    if command.over:
                        del self._numbered[number]
        except ValueError as e:
            _log.warning("%s talks nonsense, and is ended: %s", self.box.id, e)
            self._broken = True
        finally:
            self._sorted_bytes += len(data)

    def _ended(self) -> None:
        for command in self._numbered.values():
            command.end(KILLED)
            command.stdout.end()
            command.stderr.end()
        if not self._stopping:
            self._over()
