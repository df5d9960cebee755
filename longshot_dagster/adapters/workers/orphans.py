"""Sandboxes that nobody answers for, at whatever provider: found, kept from what is still to be had of them, and ended."""

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from longshot_dagster.adapters.gateway.gateway_client import Gateway
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.ledger import BuildLedger, Ledger
from longshot_dagster.adapters.repository.mirror import Mirror
from longshot_dagster.adapters.sandboxes.fleet import member_of
from longshot_dagster.adapters.sandboxes.holding import HOLDER, is_held, is_ours
from longshot_dagster.adapters.sandboxes.providers import make_provider
from longshot_dagster.adapters.workers.worker import WorkerRunner
from longshot_dagster.core.clock import Clock
from longshot_dagster.core.display import one_line
from longshot_dagster.core.errors import LongshotError, SandboxGone
from longshot_dagster.core.ids import task_partition
from longshot_dagster.core.models import BuildPhase, BuildRequest
from longshot_dagster.core.orphans import Facts, Fate, fate
from longshot_dagster.core.sandbox import SandboxInfo, SandboxProvider
from longshot_dagster.core.settings import Provider

_AT_ONCE = 4  # each commits and bundles a work tree
_OLDEST_S = 2 * 86_400  # nothing lives longer in any sandbox: of a build that ended before, none is left


@dataclass(frozen=True)
class Found:
    """One living sandbox; `why` says in a few words what its fate follows from."""

    provider: SandboxProvider
    info: SandboxInfo
    fate: Fate
    why: str

    @property
    def build(self) -> str:
        return self.info.tags.get("build", "")

    @property
    def task(self) -> str:
        return self.info.tags.get("task", "")


@dataclass
class Reaped:
    """`kept`: tasks of which something was kept. `left`: why a sandbox could not be ended, one line each."""

    ended: int = 0
    kept: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


class Orphanage:
    """The sandboxes of one home, at every provider that its builds of these days use."""

    def __init__(self, home: Home, clock: Clock) -> None:
        self._home = home
        self._clock = clock
        self._builds = Ledger(home.builds)
        self.unreachable: list[str] = []  # providers that could not be asked, one line each

    def found(self) -> list[Found]:
        """Every living sandbox, the oldest first."""
        self.unreachable = []
        found: dict[tuple[str, str], Found] = {}
        for provider in self._providers():
            try:
                for info in provider.list({}):
                    found[(provider.name, info.id)] = self._judged(provider, info)
            except (LongshotError, OSError) as e:
                self.unreachable.append(one_line(f"{provider.name} sandboxes cannot be listed: {e}", 300))
        return sorted(found.values(), key=lambda f: (f.info.created_at, f.info.id))

    def reap(self, found: Sequence[Found], *, keep: bool = True) -> Reaped:
        """End orphans, and, with `keep`, what holds work, once that is kept. Each is judged again just before it ends."""
        outcome = Reaped()
        holding = [f for f in found if f.fate is Fate.HOLDS_WORK] if keep else []
        for build, name in sorted({(f.build, f.provider.name) for f in holding}):
            with contextlib.suppress(LongshotError):  # then all of them are found to be there still
                theirs = [f for f in holding if (f.build, f.provider.name) == (build, name)]
                self._keep(self._builds.existing(build), theirs, outcome)
        for one in holding:
            self._see_gone(one, outcome)
        for one in found:
            if one.fate is Fate.ORPHAN and self._judged(one.provider, one.info).fate is Fate.ORPHAN:
                self._end(one, outcome)
        return outcome

    def _end(self, one: Found, outcome: Reaped) -> None:
        try:
            one.provider.attach(one.info.id).terminate()
        except SandboxGone:
            return
        except (LongshotError, OSError) as e:
            outcome.left.append(one_line(f"{one.info.id} could not be ended: {e}", 300))
            return
        outcome.ended += 1

    def _see_gone(self, one: Found, outcome: Reaped) -> None:
        """Keeping its work has ended it; where that was not possible, it stays for the next time."""
        try:
            one.provider.attach(one.info.id)
        except SandboxGone:
            outcome.ended += 1
            return
        except (LongshotError, OSError) as e:
            outcome.left.append(one_line(f"{one.info.id} cannot be reached: {e}", 300))
            return
        if self._judged(one.provider, one.info).fate is Fate.HOLDS_WORK:
            outcome.left.append(f"{one.info.id} stays: what {one.build}.{one.task} did in it could not be kept now")

    def _keep(self, ledger: BuildLedger, found: Sequence[Found], outcome: Reaped) -> None:
        request = ledger.request()
        names = sorted({f.task for f in found if f.fate is Fate.HOLDS_WORK} & set(ledger.task_ids()))
        before = {name: (ledger.interrupted(name), ledger.handoff(name)) for name in names}
        provider = found[0].provider  # of all of them
        live_on = any(member_of(provider, f.info.id).capabilities.survives_client for f in found)
        mirror = Mirror(self._home, request.target)
        runner = WorkerRunner(ledger, request, provider, mirror, Gateway(self._home), self._clock)

        def recover(name: str) -> None:
            with contextlib.suppress(LongshotError):
                # Nobody waits for workers that live on: whoever asked for this wants them ended.
                runner.recover(ledger.existing_task(name), lambda: live_on)

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(recover, names))
        after = {name: (ledger.interrupted(name), ledger.handoff(name)) for name in names}
        outcome.kept += [task_partition(ledger.build, name) for name in names if after[name] != before[name]]

    # --- what is known ------------------------------------------------------------------------------------------------

    def _providers(self) -> Iterator[SandboxProvider]:
        made = set()
        for request in self._requests():
            key = (request.settings.sandbox_provider, request.settings.sandbox_isolation)
            if key in made:
                continue
            made.add(key)
            try:
                yield make_provider(request.settings, request.origins, self._home)[0]
            except LongshotError as e:
                self.unreachable.append(one_line(f"sandboxes of {request.build} cannot be looked at: {e}", 300))

    def _requests(self) -> Iterator[BuildRequest]:
        for name in self._builds.builds():
            with contextlib.suppress(LongshotError, OSError):
                ledger = self._builds.build(name)
                if ledger.state().phase is not BuildPhase.FINISHED or self._ended_lately(ledger):
                    yield ledger.request()

    def _ended_lately(self, ledger: BuildLedger) -> bool:
        return self._clock.now() - (ledger.directory / "state.json").stat().st_mtime < _OLDEST_S

    def _judged(self, provider: SandboxProvider, info: SandboxInfo) -> Found:
        tags, phase, handed_in = info.tags, None, False
        build, task = tags.get("build", ""), tags.get("task", "")
        held = is_held(tags) or not (build or HOLDER in tags)  # nothing on it says that it is not a person's own
        ledger = self._builds.build(build) if build else None
        if ledger is not None and ledger.exists():
            try:
                phase = ledger.state().phase
                handed_in = bool(task) and ledger.handoff(task) is not None
                held = held or (bool(task) and ledger.at_work(task))
            except LongshotError:  # a ledger that cannot be read says nothing against its sandboxes
                held = True
        ours = is_ours(tags, self._home, local=provider.name == Provider.LOCAL)
        verdict, why = fate(Facts(ours, held, build, task, phase, handed_in))
        return Found(provider, info, verdict, why)
