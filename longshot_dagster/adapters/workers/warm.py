"""Sandboxes that begin with the repository in them: checked out once, in a seed of which every further one is a snapshot.

    <mirror>/longshot-warm/<provider>.json   the snapshots there are, and which commit each holds
                           <provider>.lock   held by whoever makes one

A worker takes the newest snapshot whose commit is an ancestor of its own, and gets only what is newer. Where there is none,
one worker makes it while the others begin in the ordinary way; so does everybody when anything goes wrong with it, for it
is only a saving.
"""

import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from longshot_dagster.adapters.host.documents import write_atomically
from longshot_dagster.adapters.host.exclusive import claim
from longshot_dagster.adapters.sandboxes.holding import bare
from longshot_dagster.adapters.workers.order_run import carry_out, sandbox_for
from longshot_dagster.core import contract
from longshot_dagster.core.clock import Clock
from longshot_dagster.core.contract import Mode, WorkOrder
from longshot_dagster.core.errors import Cancelled, LongshotError, SandboxError
from longshot_dagster.core.models import BuildRequest
from longshot_dagster.core.sandbox import SandboxProvider

PAYS_FROM_BYTES = 512 << 10  # of the bundle with the whole history: bench/sandboxes.py shows what is saved
_MAX_AGE_S = 20 * 3600.0  # providers keep snapshots for a day
_KEPT = 2  # workers of other builds may just be going to begin with the last but one
_NEWER_SHARE = 4  # what is newer than a snapshot may be a quarter of all there is, then there is a new one
_NEWER_BYTES = 1 << 20  # or this much
_SEED_S = 1_800.0
_AFTER_TROUBLE_S = 600.0


class Mirror(Protocol):
    """What is needed of the repository."""

    @property
    def path(self) -> Path: ...
    def bundle(self, base: str, since: str = "") -> Path: ...
    def has(self, oid: str) -> bool: ...
    def is_ancestor(self, a: str, b: str) -> bool: ...


@runtime_checkable
class ForgetsSnapshots(Protocol):
    """A provider whose snapshots stay until somebody removes them."""

    def remove_snapshot(self, image: str) -> bool:
        """False while something is put on it."""


@dataclass(frozen=True)
class Snapshot:
    """`image` is the provider's, with `holds` checked out; `bytes` is the size of the bundle it was made from."""

    image: str
    holds: str
    made_at: float
    bytes: int


@dataclass(frozen=True)
class WarmStart:
    """What a sandbox begins with, and the file with what is newer; None when nothing is."""

    image: str
    holds: str
    bundle: Path | None


class WarmStarts:
    """Of one build; any number of threads may ask."""

    def __init__(self, request: BuildRequest, mirror: Mirror, clock: Clock, pays_from_bytes: int | None = None) -> None:
        self._request = request
        self._pays_from = PAYS_FROM_BYTES if pays_from_bytes is None else pays_from_bytes
        self._mirror = mirror
        self._clock = clock
        self._not_before: dict[str, float] = {}  # by provider, after trouble (monotonic)
        self._ancestors: dict[tuple[str, str], bool] = {}

    def find(self, provider: SandboxProvider, commit: str, cancelled: Callable[[], bool]) -> WarmStart | None:
        """What a sandbox of `provider` that is to have `commit` can begin with; None: begin in the ordinary way."""
        name = provider.name
        if not provider.capabilities.snapshots or self._clock.monotonic() < self._not_before.get(name, 0.0):
            return None
        try:
            return self._found(provider, commit) or self._seeded(provider, commit, cancelled)
        except Cancelled:
            raise
        except (LongshotError, OSError, ValueError, KeyError, TypeError):
            self._not_before[name] = self._clock.monotonic() + _AFTER_TROUBLE_S
            return None

    def spoilt(self, provider: SandboxProvider, start: WarmStart) -> None:
        """No sandbox can be made of it: the provider has lost it, say."""
        with contextlib.suppress(OSError, ValueError):
            self._write(provider, [s for s in self._known(provider) if s.image != start.image])
        self._not_before[provider.name] = self._clock.monotonic() + _AFTER_TROUBLE_S

    def _found(self, provider: SandboxProvider, commit: str) -> WarmStart | None:
        for snapshot in reversed(self._known(provider)):
            if self._clock.now() - snapshot.made_at > _MAX_AGE_S or not self._is_ancestor(snapshot.holds, commit):
                continue
            if snapshot.holds == commit:
                return WarmStart(snapshot.image, commit, None)
            newer = self._mirror.bundle(commit, snapshot.holds)
            if newer.stat().st_size <= max(_NEWER_BYTES, snapshot.bytes // _NEWER_SHARE):
                return WarmStart(snapshot.image, snapshot.holds, newer)
            return None
        return None

    def _is_ancestor(self, a: str, b: str) -> bool:
        if (a, b) not in self._ancestors:
            self._ancestors[a, b] = self._mirror.has(a) and self._mirror.is_ancestor(a, b)
        return self._ancestors[a, b]

    def _seeded(self, provider: SandboxProvider, commit: str, cancelled: Callable[[], bool]) -> WarmStart | None:
        """Make a snapshot, unless somebody else does at this moment or it would not pay."""
        bundle = self._mirror.bundle(commit)
        if bundle.stat().st_size < self._pays_from:
            return None
        with claim(self._folder / f"{provider.name}.lock") as mine:
            if not mine:
                return None
            if found := self._found(provider, commit):  # somebody was faster
                return found
            image = self._seed(provider, commit, bundle, cancelled)
            made = Snapshot(image, commit, self._clock.now(), bundle.stat().st_size)
            known = [*self._known(provider), made]
            self._write(provider, known[-_KEPT:])
            self._forget(provider, known[:-_KEPT])
        return WarmStart(image, commit, None)

    def _seed(self, provider: SandboxProvider, commit: str, bundle: Path, cancelled: Callable[[], bool]) -> str:
        build, settings = self._request.build, self._request.settings
        order = WorkOrder(task_id="seed", mode=Mode.WARM, base=commit, deadline_s=_SEED_S)
        with sandbox_for(provider, settings, {"build": build, "seed": commit[:16]}, _SEED_S) as sandbox:
            delivery = carry_out(sandbox, order, bundle, _SEED_S, cancelled)
            if delivery.result is None or delivery.result.harness_status != "completed":
                said = delivery.problem if delivery.result is None else delivery.result.error
                raise SandboxError(f"no repository could be checked out for a snapshot: {said}")
            # Nothing of the seed's own work may be taken for a worker's.
            left = [contract.OUT, contract.ORDER, contract.BUNDLE_IN, contract.WORKER]
            ran = sandbox.exec(["rm", "-rf", "--", *left], timeout_s=60, cwd="/")
            if ran.exit_code:
                raise SandboxError("a seed could not be cleared for a snapshot")
            return sandbox.snapshot()

    @property
    def _folder(self) -> Path:
        return self._mirror.path / "longshot-warm"

    def _known(self, provider: SandboxProvider) -> list[Snapshot]:
        """Oldest first."""
        try:
            found = json.loads((self._folder / f"{provider.name}.json").read_bytes())
        except FileNotFoundError:
            return []
        return [Snapshot(str(s["image"]), str(s["holds"]), float(s["made_at"]), int(s["bytes"])) for s in found]

    def _write(self, provider: SandboxProvider, known: list[Snapshot]) -> None:
        data = json.dumps([asdict(s) for s in known], indent=1).encode()
        write_atomically(self._folder / f"{provider.name}.json", data)

    def _forget(self, provider: SandboxProvider, old: list[Snapshot]) -> None:
        forgetting = bare(provider)
        if isinstance(forgetting, ForgetsSnapshots):
            for snapshot in old:
                with contextlib.suppress(SandboxError, OSError):
                    forgetting.remove_snapshot(snapshot.image)
