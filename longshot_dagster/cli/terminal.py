"""Everything the command line prints: plain lines, and a live status line where there is a terminal."""

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import click

from longshot_dagster.core.display import display, one_line

if TYPE_CHECKING:
    from rich.live import Live


def say(line: str) -> None:
    """One line on stdout, free of control characters: a text of somebody else's cannot begin a line of its own."""
    click.echo(_one_line(line))


def complain(line: str) -> None:
    """One line on stderr."""
    click.echo(one_line(f"longshot: {line}", 2_000), err=True)


def _one_line(text: str) -> str:
    return display(text, "plain", 2_000).replace("\n", " ")


class Progress(Protocol):
    """Where a running build is shown; a context manager."""

    def line(self, text: str) -> None: ...

    def status(self, text: str) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class PlainProgress:
    """For files, pipes and CI: every line once, no status line."""

    def line(self, text: str) -> None:
        say(text)

    def status(self, text: str) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class LiveProgress:
    """For a terminal: lines scroll above one status line."""

    def __init__(self) -> None:
        self._live: Live | None = None
        self._shown = ""

    def line(self, text: str) -> None:
        from rich.text import Text  # 0.1 s, and only a terminal needs it

        if self._live:  # Text, not str: nothing in it is markup
            self._live.console.print(Text(_one_line(text)), soft_wrap=True)

    def status(self, text: str) -> None:
        from rich.spinner import Spinner
        from rich.text import Text

        if self._live and text != self._shown:
            self._shown = text
            self._live.update(Spinner("dots", Text(display(text, "plain", 300), no_wrap=True, overflow="ellipsis")))

    def __enter__(self) -> Self:
        from rich.live import Live

        self._live = Live(refresh_per_second=4, transient=True)
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.__exit__(kind, error, trace)


def progress() -> Progress:
    return LiveProgress() if sys.stdout.isatty() else PlainProgress()
