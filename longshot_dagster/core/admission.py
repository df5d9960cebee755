"""Whose request goes to the model next once the endpoints have said that they get too many: a planner's before workers'.

While nobody is refused, everybody goes at once. After a refusal (HTTP 429) half as many go together, and one more for every
full round that went well, so that the number settles where the endpoints are: the rest waits here, in order, instead of
being refused and asking again in no order at all. A plan starts many workers; a planner behind them all keeps them idle.
"""

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)
_WELL_AT_LEAST = 10  # answers before one more goes: where the number is small, one refused is a large share


class Admission(Generic[T]):
    """`T` stands for a waiting request. Not thread-safe: it lives in the gateway's one event loop."""

    def __init__(self) -> None:
        self.limit: int | None = None
        self.busy = 0
        self._line: list[tuple[bool, int, T]] = []
        self._gone: set[T] = set()
        self._came = 0
        self._well = 0
        self._began_before_cut = 0

    @property
    def waiting(self) -> int:
        return len(self._line) - len(self._gone)

    def enter(self, who: T, *, planner: bool) -> bool:
        """True when `who` may go now; else it is in line until `admitted` names it or it leaves."""
        if self._has_room and not self.waiting:
            self.busy += 1
            return True
        heapq.heappush(self._line, (not planner, self._came, who))
        self._came += 1
        return False

    def leave_line(self, who: T) -> None:
        """`who`, which is in line, gave up waiting."""
        self._gone.add(who)

    def ended(self, *, refused: bool) -> list[T]:
        """One that was let in has its answer; who may go now in its place."""
        self.busy -= 1
        if refused:
            self._refused()
        else:
            self._answered()
        return self._admitted()

    @property
    def _has_room(self) -> bool:
        return self.limit is None or self.busy < self.limit

    def _refused(self) -> None:
        """All that were under way together are refused together, which is one piece of news."""
        if self._began_before_cut > 0:
            self._began_before_cut -= 1
            return
        together = self.busy + 1
        self.limit = max(1, min(together, self.limit or together) // 2)
        self._began_before_cut, self._well = self.busy, 0

    def _answered(self) -> None:
        self._began_before_cut = max(0, self._began_before_cut - 1)
        self._well += 1
        if self.limit is not None and self._well >= max(self.limit, _WELL_AT_LEAST):
            self.limit, self._well = self.limit + 1, 0

    def _admitted(self) -> list[T]:
        found: list[T] = []
        while self._line and self._has_room:
            who = heapq.heappop(self._line)[2]
            if who in self._gone:
                self._gone.discard(who)
                continue
            self.busy += 1
            found.append(who)
        return found
