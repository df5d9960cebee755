"""The transcript of a worker while it works: what its sandbox says, appended as it comes, so that somebody can watch it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from longshot_dagster.core.contract import MAX_TRANSCRIPT_BYTES

if TYPE_CHECKING:
    from upath import UPath


class LiveTranscript:
    """`add` takes whatever an agent's sandbox prints; after `limit` bytes nothing more is kept."""

    def __init__(self, file: IO[bytes] | None, limit: int = MAX_TRANSCRIPT_BYTES) -> None:
        self._file = file
        self._left = limit

    def add(self, data: bytes) -> None:
        if self._file is None or self._left <= 0:
            return
        with contextlib.suppress(OSError):  # a full disk ends the watching, not the work
            self._file.write(data[: self._left])
            self._left -= len(data)


@contextlib.contextmanager
def live_transcript(path: "UPath", earlier: bytes = b"") -> Iterator[LiveTranscript]:
    """Written to `path`, after what `earlier` workers at the same task have said; the file is gone afterwards."""
    if not isinstance(path, Path):  # an object store does not append
        yield LiveTranscript(None)
        return
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
    name = str(path)
    try:
        with open(name, "wb", buffering=0) as file:  # noqa: PTH123 - one for every task
            live = LiveTranscript(file)
            live.add(earlier)
            yield live
    finally:
        path.unlink(missing_ok=True)
