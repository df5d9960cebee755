"""How fast the machine is while a bench runs: CPU time differs by half when others share the cores."""

import statistics
import threading
import time
from typing import Self

_EVERY_S = 2.0
_ROUNDS = 100_000  # a few milliseconds of plain Python


class Yardstick:
    """Measures the same piece of work again and again, in a thread of the bench itself, for half a percent of a core."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._measure, name="yardstick", daemon=True)
        self._found: list[float] = []  # CPU ms

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def ms(self) -> float:
        """CPU time of the piece of work, the median."""
        return round(statistics.median(self._found), 2)

    @property
    def least_ms(self) -> float:
        """When the machine was at its fastest."""
        return round(min(self._found), 2)

    def _measure(self) -> None:
        while True:
            began = time.thread_time()
            total = 0
            for number in range(_ROUNDS):
                total += number * number % 7
            self._found.append((time.thread_time() - began) * 1000)
            if self._over.wait(_EVERY_S):
                return
