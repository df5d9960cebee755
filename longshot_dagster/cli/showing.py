"""One loop that looks at a build and shows what is new, until the build ends or stands still, or the person leaves."""

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from types import TracebackType
from typing import Protocol, Self

import click

from longshot_dagster.adapters.gateway.gateway_client import Gateway
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.host.supervisor_lock import supervisor_pid
from longshot_dagster.adapters.ledger.ledger import BuildLedger
from longshot_dagster.cli.terminal import progress
from longshot_dagster.cli.watching import BuildWatch, Tally
from longshot_dagster.core.errors import LedgerError, LongshotError
from longshot_dagster.core.events import Event
from longshot_dagster.core.models import BuildPhase

LOOK_SECONDS = 0.4
_SLOWEST_LOOK = 3.0
_SHARE = 50  # a large build is looked at less often: one part work, so many parts rest
_STACK_EVERY = 5.0
_TOKENS_EVERY = 1.0


class End(StrEnum):
    """Why nothing more is shown."""

    ENDED = "ended"  # finished or paused
    LEFT = "left"  # the person has seen enough
    DESERTED = "deserted"  # nothing drives it any more


class Shown(Protocol):
    """Where a running build is shown; a context manager."""

    def events(self, new: Sequence[Event]) -> None: ...

    def stands(self, tally: Tally, elapsed_s: float) -> None: ...

    def wait(self, seconds: float) -> bool:
        """False when the person wants to leave."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def show(
    home: Home, ledger: BuildLedger, shown: Shown, *, watch: BuildWatch | None = None, deserted: Callable[[], bool]
) -> End:
    """Show `ledger`'s build. `deserted` is asked when no stack runs, and says whether to stop looking because of it.

    Raises LedgerError when somebody has removed the build meanwhile.
    """
    watch, gateway = watch or BuildWatch(ledger), Gateway(home)
    started = ledger.request().created_at
    due_tokens = due_stack = 0.0
    while True:
        began = time.thread_time()
        if not ledger.directory.exists():
            raise LedgerError(f"build {ledger.build} is gone: there is no {ledger.directory} any more")
        shown.events(watch.events())
        now = time.monotonic()
        if now >= due_tokens:
            due_tokens = now + _TOKENS_EVERY
            with contextlib.suppress(LongshotError):
                usage = gateway.usage(ledger.build)
                watch.tally.tokens = usage.tokens_in + usage.tokens_out
                watch.tally.tokens_in = usage.tokens_in
        shown.stands(watch.tally, time.time() - started)
        if watch.tally.state.phase in (BuildPhase.PAUSED, BuildPhase.FINISHED):
            return End.ENDED
        if now >= due_stack:
            due_stack = now + _STACK_EVERY
            if supervisor_pid(home) is None and deserted():
                return End.DESERTED
        spent = time.thread_time() - began
        if not shown.wait(max(LOOK_SECONDS, min(_SLOWEST_LOOK, spent * _SHARE))):
            return End.LEFT


class Lines:
    """A line per event, above a status line where there is a terminal.

    Of what was before it begins, at most `past` lines; `rest` is the command that shows them all.
    """

    def __init__(self, past: int | None = None, rest: str = "") -> None:
        self._progress = progress()
        self._past = past
        self._rest = rest

    def events(self, new: Sequence[Event]) -> None:
        lines = [e.line for e in new if not e.detail]
        if self._past is not None and len(lines) > self._past:
            self._progress.line(f"({len(lines) - self._past} earlier lines: `{self._rest}` shows them all)")
            lines = lines[len(lines) - self._past :]
        self._past = None
        for line in lines:
            self._progress.line(line)

    def stands(self, tally: Tally, elapsed_s: float) -> None:
        self._progress.status(tally.line(elapsed_s))

    def wait(self, seconds: float) -> bool:
        time.sleep(seconds)
        return True

    def __enter__(self) -> Self:
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)


class Stream:
    """A way of telling events as they come that shows nothing in between; a context manager."""

    def stands(self, tally: Tally, elapsed_s: float) -> None:
        pass

    def wait(self, seconds: float) -> bool:
        time.sleep(seconds)
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class Objects(Stream):
    """One JSON object a line, for programs."""

    def events(self, new: Sequence[Event]) -> None:
        for event in new:
            echo_json(event.document())


def echo_json(document: dict[str, object]) -> None:
    """One line of ASCII, at once: whoever reads it should not wait for the next one."""
    click.echo(json.dumps(document))
