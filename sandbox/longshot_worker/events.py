"""The transcript: what happened, one JSON object per line, as it happens; also on a stream that somebody may watch."""

from __future__ import annotations

import json
import time
from typing import TextIO

from longshot_worker.commands import clipped

MAX_BYTES = 30 << 20  # the orchestrator reads at most 32 MB
_MAX_FIELD = 20_000


class Events:
    """Appends to `path`; every line is on disk at once, so that a killed worker leaves its transcript behind.

    The same lines go to `live`, as long as somebody takes them.
    """

    def __init__(self, path: str, live: TextIO | None = None) -> None:
        self._file = open(path, "a", encoding="utf-8", errors="replace", buffering=1)
        self._live = live
        self._began = time.monotonic()
        self._left = MAX_BYTES

    def add(self, kind: str, **fields: object) -> None:
        """Text longer than 20,000 characters loses its middle; after 30 MB nothing more is kept, and that is said."""
        if self._left <= 0:
            return
        bounded = {k: clipped(v, _MAX_FIELD) if isinstance(v, str) else v for k, v in fields.items()}
        line = json.dumps({"at": round(time.monotonic() - self._began, 3), "type": kind, **bounded})
        self._left -= len(line) + 1
        if self._left <= 0:
            line = json.dumps({"type": "note", "text": "transcript full: nothing more is kept"})
        self._file.write(line + "\n")
        self._show(line)

    def _show(self, line: str) -> None:
        try:
            if self._live is not None:
                print(line, file=self._live, flush=True)
        except OSError:  # nobody listens any more
            self._live = None

    def close(self) -> None:
        self._file.close()


def count(path: str, kind: str) -> int:
    """How many events of `kind` the transcript at `path` holds."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return sum(f'"type": "{kind}"' in line for line in file)
    except OSError:
        return 0
