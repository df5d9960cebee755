"""Asking somebody else's service for something no more often than it can bear."""

import threading

from longshot_dagster.core.clock import Clock


class Pace:
    """A bucket of tokens that fills at `per_second`, and holds one second's worth, at least one. Any number of threads."""

    def __init__(self, per_second: float, clock: Clock) -> None:
        self._per_second = per_second
        self._most = max(1.0, per_second)
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens = self._most
        self._at = clock.monotonic()

    def wait(self) -> None:
        """Take a token, in order of asking, once there is one."""
        with self._lock:
            now = self._clock.monotonic()
            self._tokens = min(self._most, self._tokens + (now - self._at) * self._per_second) - 1.0
            self._at = now
            wait_s = -self._tokens / self._per_second
        if wait_s > 0:
            self._clock.sleep(wait_s)
