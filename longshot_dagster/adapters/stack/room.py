"""Room on the disk of a home: before there is none left, builds under way are paused, while that can still be written down.

$LONGSHOT_HOME/.room    a few megabytes that nobody uses; given back in the moment in which the pauses are written
"""

import contextlib
import os
import shutil
from collections.abc import Callable

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.stack import stack

LEAST_BYTES = 16 << 20  # free; below it no build goes on
_KEPT_BYTES = 4 << 20
_ENOUGH_BYTES = 4 * LEAST_BYTES  # free; from here on there is some to set aside


class Room:
    """Of one home; asked by its supervisor all the time, which costs next to nothing."""

    def __init__(self, home: Home, free: Callable[[], int] | None = None) -> None:
        self._home = home
        self._file = home.root / ".room"
        self._free = free or (lambda: shutil.disk_usage(home.root).free)

    def look(self) -> list[str]:
        """Names of the builds that were paused just now, because next to nothing is free."""
        try:
            free = self._free()
        except OSError:
            return []
        if free < LEAST_BYTES:
            with contextlib.suppress(OSError):
                self._file.unlink()
            return stack.pause_builds(self._home, self.reason)
        if free > _ENOUGH_BYTES and not self._file.exists():
            self._set_aside()
        return []

    @property
    def reason(self) -> str:
        """For a person; without the build, because it stands beside it wherever it is shown."""
        least = LEAST_BYTES >> 20
        return f"the disk is full (less than {least} MiB free at {self._home.root}); make room, then longshot resume"

    def _set_aside(self) -> None:
        with contextlib.suppress(OSError):
            file = os.open(self._file, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(file, 0, _KEPT_BYTES)
            finally:
                os.close(file)
