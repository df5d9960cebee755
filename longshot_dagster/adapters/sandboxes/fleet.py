"""Several sandbox providers as one: each sandbox's id begins with its provider's name, and one that fails is passed over.

members_of(provider)   the providers a task may be routed to; of a single provider itself
member_of(...)         the one that holds a sandbox
in_turn(...)           for whoever only wants a sandbox somewhere: those that are well first
"""

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from longshot_dagster.core.clock import Clock
from longshot_dagster.core.errors import LongshotError, SandboxError, SandboxGone, SandboxRefused
from longshot_dagster.core.routing import Health, Place, turn
from longshot_dagster.core.sandbox import Capabilities, Isolation, Sandbox, SandboxInfo, SandboxProvider, SandboxSpec

_PARTS = ":"  # between a provider's name and its own id of a sandbox
_WEAKEST: tuple[Isolation, ...] = ("none", "namespace", "container", "vm")


class Healths:
    """How the providers of one process have been; any number of threads may tell and ask."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._by_name: dict[str, Health] = {}

    def failed(self, name: str, error: LongshotError) -> None:
        with self._lock:
            before = self._by_name.get(name, Health())
            refused = isinstance(error, SandboxRefused)
            self._by_name[name] = before.failed(str(error), self._clock.monotonic(), refused=refused)

    def worked(self, name: str) -> None:
        with self._lock:
            self._by_name.pop(name, None)

    def rests(self, name: str) -> str:
        """Why it is not asked now; empty when it is."""
        with self._lock:
            return self._by_name.get(name, Health()).rests(self._clock.monotonic())


@dataclass(frozen=True)
class Member:
    """One provider of a fleet, with ids that say so."""

    provider: SandboxProvider
    weight: float = 1.0

    @property
    def name(self) -> str:
        return self.provider.name

    @property
    def capabilities(self) -> Capabilities:
        return self.provider.capabilities

    def create(self, spec: SandboxSpec) -> Sandbox:
        return _Named(self.name, self.provider.create(spec))

    def attach(self, sandbox_id: str) -> Sandbox:
        return _Named(self.name, self.provider.attach(_own_id(self.name, sandbox_id)))

    def list(self, tags: Mapping[str, str]) -> list[SandboxInfo]:
        return [replace(info, id=f"{self.name}{_PARTS}{info.id}") for info in self.provider.list(tags)]


class _Named:
    """A sandbox whose id begins with its provider's name; everything else is its own."""

    def __init__(self, provider: str, sandbox: Sandbox) -> None:
        self.id = f"{provider}{_PARTS}{sandbox.id}"
        self.exec = sandbox.exec
        self.write = sandbox.write
        self.read = sandbox.read
        self.snapshot = sandbox.snapshot
        self.cost = sandbox.cost
        self.end_commands = sandbox.end_commands
        self.terminate = sandbox.terminate


@dataclass(frozen=True)
class Fleet:
    """Of several providers; what it claims is what every one of them keeps to."""

    members: tuple[Member, ...]
    healths: Healths = field(compare=False)

    @property
    def name(self) -> str:
        return "+".join(member.name for member in self.members)

    @property
    def capabilities(self) -> Capabilities:
        able = [member.capabilities for member in self.members]
        lives = [a.max_lifetime_s for a in able if a.max_lifetime_s is not None]
        return Capabilities(
            isolation=min((a.isolation for a in able), key=_WEAKEST.index),
            network=frozenset.intersection(*(a.network for a in able)),
            enforces_cpu=all(a.enforces_cpu for a in able),
            enforces_memory=all(a.enforces_memory for a in able),
            survives_client=all(a.survives_client for a in able),
            enforces_idle=all(a.enforces_idle for a in able),
            sockets=all(a.sockets for a in able),
            layers=all(a.layers for a in able),
            live_stdin=all(a.live_stdin for a in able),
            snapshots=all(a.snapshots for a in able),
            gpus=all(a.gpus for a in able),
            cost=all(a.cost for a in able),
            max_lifetime_s=min(lives, default=None),
        )

    def create(self, spec: SandboxSpec) -> Sandbox:
        """At the first that will. An image is one provider's: its `snapshot()` is not for the others."""
        return created(self, spec.name, lambda able: spec)

    def attach(self, sandbox_id: str) -> Sandbox:
        return self.member(sandbox_id).attach(sandbox_id)

    def member(self, sandbox_id: str) -> Member:
        """Raises SandboxGone for an id of a provider that is not among these."""
        for member in self.members:
            if sandbox_id.startswith(f"{member.name}{_PARTS}"):
                return member
        raise SandboxGone(f"{sandbox_id[:80]!r} is of no provider of this build")

    def list(self, tags: Mapping[str, str]) -> list[SandboxInfo]:
        """Those of whoever answers: one provider's outage must not stop the others. Raises SandboxError when none does."""
        found, silent = [], []
        for member in self.members:
            try:
                found += member.list(tags)
            except SandboxError as e:
                self.healths.failed(member.name, e)
                silent.append(e)
        if len(silent) == len(self.members):
            raise silent[0]
        return found


def members_of(provider: SandboxProvider) -> tuple[tuple[SandboxProvider, float], ...]:
    """(provider, its weight); one that is no fleet is its own only member."""
    if isinstance(provider, Fleet):
        return tuple((member, member.weight) for member in provider.members)
    return ((provider, 1.0),)


def member_of(provider: SandboxProvider, sandbox_id: str) -> SandboxProvider:
    """Whoever holds that sandbox, to be asked what it can do."""
    if isinstance(provider, Fleet):
        with contextlib.suppress(SandboxGone):
            return provider.member(sandbox_id)
    return provider


def in_turn(provider: SandboxProvider, what: str) -> Sequence[SandboxProvider]:
    """The members in the order in which `what` should be tried at them, those that rest last."""
    if not isinstance(provider, Fleet):
        return (provider,)
    by_name = {member.name: member for member in provider.members}
    names = turn(what, [Place(m.name, m.capabilities, m.weight) for m in provider.members])
    return [by_name[name] for name in sorted(names, key=lambda name: bool(provider.healths.rests(name)))]


def created(provider: SandboxProvider, what: str, spec_at: Callable[[Capabilities], SandboxSpec]) -> Sandbox:
    """A sandbox at the first provider that makes one, each asked for what it can keep. Raises SandboxError of the last."""
    if not isinstance(provider, Fleet):
        return provider.create(spec_at(provider.capabilities))
    refused: SandboxError = SandboxRefused("no sandbox provider is configured")
    for member in in_turn(provider, what):
        try:
            made = member.create(spec_at(member.capabilities))
        except SandboxError as e:
            provider.healths.failed(member.name, e)
            refused = e
            continue
        provider.healths.worked(member.name)
        return made
    raise refused


def _own_id(name: str, sandbox_id: str) -> str:
    return sandbox_id.removeprefix(f"{name}{_PARTS}")
