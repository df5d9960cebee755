"""Everything the command line prints: plain lines, and a live status line where there is a terminal."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import click

from longshot_dagster.core.display import display, one_line

if TYPE_CHECKING:
    from rich.live import Live
    from rich.spinner import Spinner


_UNDER = "  "  # before what does not fit on an event's first line
_SINCE_S = 2  # a wait that is over sooner needs no count


def say(line: str) -> None:
    """One line on stdout, free of control characters: a text of somebody else's cannot begin a line of its own."""
    if _above:
        _above[-1].line(line)
    else:
        click.echo(_one_line(line))


def say_under(head: str, text: str) -> None:
    """`head` and `text` as one line; in a terminal that is too narrow, the text is wrapped beside its head."""
    if not sys.stdout.isatty():
        say(head + text)
        return
    import shutil

    width = max(len(head) + 30, shutil.get_terminal_size().columns)
    for line in _wrapped(_one_line(text), width, head=head, under=" " * len(head)):
        say(line)


def _wrapped(text: str, width: int, *, head: str = "", under: str) -> list[str]:
    """Broken between words alone, so that a path or a link can still be copied."""
    import textwrap

    return textwrap.wrap(
        text,
        width,
        initial_indent=head,
        subsequent_indent=under,
        break_on_hyphens=False,
        break_long_words=False,
    )


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
            for line in _wrapped(_one_line(text), self._live.console.width, under=_UNDER):
                self._live.console.print(Text(line), soft_wrap=True)

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


@contextlib.contextmanager
def waiting(text: str) -> Iterator[Callable[[str], None]]:
    """A spinner with `text`, and the seconds so far, while the block takes its time; nothing at all in a pipe.

    Gives a function that changes the text. Inside the block `say` still prints lines of its own, above the spinner.
    """
    if not sys.stdout.isatty():
        yield lambda _: None
        return
    from rich.live import Live

    if _above:  # a wait inside a wait changes its text
        outer = _above[-1].told
        _above[-1].tell(text)
        try:
            yield _above[-1].tell
        finally:
            _above[-1].tell(outer)
        return
    shown = _Spinner(text)
    with Live(shown, refresh_per_second=8, transient=True, redirect_stdout=False, redirect_stderr=False) as live:
        shown.live = live
        _above.append(shown)
        try:
            yield shown.tell
        finally:
            _above.pop()


class _Spinner:
    """Drawn anew by the display's own thread, so that the seconds go on while the caller blocks."""

    def __init__(self, text: str) -> None:
        from rich.spinner import Spinner

        self.told = text
        self.live: Live | None = None
        self._dots = Spinner("dots")
        self._began = time.monotonic()

    def tell(self, text: str) -> None:
        self.told = text

    def line(self, text: str) -> None:
        from rich.text import Text

        if self.live:
            self.live.console.print(Text(_one_line(text)), soft_wrap=True)

    def __rich__(self) -> "Spinner":
        from rich.text import Text

        seconds = int(time.monotonic() - self._began)
        since = f" {seconds} s" if seconds >= _SINCE_S else ""
        self._dots.update(text=Text(f"{_one_line(self.told)}{since}", no_wrap=True, overflow="ellipsis"))
        return self._dots


_above: list[_Spinner] = []  # the spinner on the screen, if there is one


def progress() -> Progress:
    return LiveProgress() if sys.stdout.isatty() else PlainProgress()
