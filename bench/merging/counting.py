"""How many git processes a stretch of work starts, on both sides of a push, by git's own account."""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path


class Trace:
    """The folder that every git process writes its account to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def by_command(self) -> Counter[str]:
        """git's own subcommand -> processes."""
        found: Counter[str] = Counter()
        for file in self.folder.iterdir():
            events = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            found[next((e["name"] for e in events if e["event"] == "cmd_name"), "?")] += 1
        return found

    def count(self) -> int:
        return self.by_command().total()


@contextlib.contextmanager
def processes(folder: Path) -> Iterator[Trace]:
    """`folder` is made. Whatever inherits this process's environment is counted, and what that starts."""
    folder.mkdir()
    os.environ["GIT_TRACE2_EVENT"] = str(folder)
    try:
        yield Trace(folder)
    finally:
        del os.environ["GIT_TRACE2_EVENT"]


@contextlib.contextmanager
def nothing() -> Iterator[Trace]:
    yield Trace(Path("/nonexistent"))
