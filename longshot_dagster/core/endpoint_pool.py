"""Which endpoint is asked next: weighted chance, slower and failing ones less, refused or rate-limited ones later."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from longshot_dagster.core.endpoints import Endpoint

_SMOOTHING = 0.3
_FAILURES_UNTIL_DOWN = 3
_COOLDOWN_S = 30.0
_SLOWEST_SHARE = 0.5  # a slow endpoint keeps at least half of its weight


@dataclass
class _Health:
    latency_s: float = 0.0
    failures: int = 0
    requests: int = 0
    down_until: float = 0.0  # asked after the others
    quiet_until: float = 0.0  # not asked at all


class EndpointPool:
    """Order of attempts over `endpoints`. Not thread-safe: it lives in the gateway's one event loop."""

    def __init__(
        self, endpoints: Sequence[Endpoint], monotonic: Callable[[], float], rng: random.Random | None = None
    ) -> None:
        self.endpoints = tuple(endpoints)
        self._monotonic = monotonic
        self._rng = rng or random.Random()  # noqa: S311 - load spreading, no secret
        self._health = {e.name: _Health() for e in self.endpoints}

    def order(self) -> list[Endpoint]:
        """Every endpoint once: those that are up by weighted chance, then those cooling down, soonest first."""
        now = self._monotonic()
        up = [e for e in self.endpoints if self._health[e.name].down_until <= now]
        down = [e for e in self.endpoints if self._health[e.name].down_until > now]
        # Efraimidis-Spirakis: sorting by u^(1/w) is the same as weighted picks without replacement.
        up.sort(key=lambda e: self._rng.random() ** (1 / self._effective(e)), reverse=True)
        return up + sorted(down, key=lambda e: self._health[e.name].down_until)

    def wait_s(self, endpoint: Endpoint) -> float:
        """Seconds for which `endpoint` has told us to leave it alone."""
        return max(0.0, self._health[endpoint.name].quiet_until - self._monotonic())

    def succeeded(self, endpoint: Endpoint, latency_s: float) -> None:
        h = self._health[endpoint.name]
        h.requests += 1
        h.failures = 0
        h.down_until = h.quiet_until = 0.0
        h.latency_s = latency_s if not h.latency_s else _SMOOTHING * latency_s + (1 - _SMOOTHING) * h.latency_s

    def failed(self, endpoint: Endpoint, *, told_to_wait_s: float = 0.0, lasting: bool = False) -> None:
        """`told_to_wait_s`: its Retry-After. `lasting`: it refused outright; otherwise the third failure cools it."""
        h = self._health[endpoint.name]
        now = self._monotonic()
        h.requests += 1
        h.failures += 1
        h.quiet_until = now + told_to_wait_s
        if lasting or h.failures >= _FAILURES_UNTIL_DOWN:
            h.down_until = now + _COOLDOWN_S
        h.down_until = max(h.down_until, h.quiet_until)

    def _effective(self, endpoint: Endpoint) -> float:
        mine = self._health[endpoint.name].latency_s
        known = [h.latency_s for h in self._health.values() if h.latency_s]
        if not mine or len(known) < 2:
            return endpoint.weight
        return endpoint.weight * max(_SLOWEST_SHARE, min(known) / mine)
