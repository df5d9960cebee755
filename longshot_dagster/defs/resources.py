"""What the ops of one build work with, made from the build's frozen request when first asked for."""

import os
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import dagster as dg
from pydantic import Field, PrivateAttr

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.host.waking import Lookout
from longshot_dagster.adapters.ledger.ledger import BuildLedger, Ledger
from longshot_dagster.core.clock import Clock, SystemClock
from longshot_dagster.core.landing_records import LandingState
from longshot_dagster.core.models import BuildRequest, Sweep

if TYPE_CHECKING:
    from longshot_dagster.adapters.gateway.gateway_client import Gateway
    from longshot_dagster.adapters.landing.queue import LandingQueue
    from longshot_dagster.adapters.landing.shared_main import SharedMain
    from longshot_dagster.adapters.repository.mirror import Mirror
    from longshot_dagster.adapters.workers.planner import Planner
    from longshot_dagster.adapters.workers.worker import WorkerRunner
    from longshot_dagster.core.sandbox import SandboxProvider

T = TypeVar("T")


def installation(root: str = "") -> Home:
    """The home at `root`, or the environment's: LONGSHOT_HOME, else `~/.longshot`."""
    if root:
        return Home(Path(root).expanduser())
    from longshot_dagster.adapters.settings import home  # knows every setting, which a step's start need not

    return home(os.environ)


@cache
def _ledger(root: str) -> Ledger:
    return Ledger(root)


class BuildTools:
    """One build's ledger, mirror, gateway, sandboxes, planner, worker and landing queue; one of each per process.

    Imports are inside: a sensor tick or a definitions load needs none of these libraries.
    """

    def __init__(self, home: Home, build: str, clock: Clock | None = None) -> None:
        self.home = home
        self.clock: Clock = clock or SystemClock()
        self.ledger: BuildLedger = Ledger(home.builds).existing(build)
        self._made: dict[str, object] = {}
        self._lock = threading.RLock()

    @property
    def request(self) -> BuildRequest:
        return self._once("request", self.ledger.request)

    @property
    def mirror(self) -> "Mirror":
        from longshot_dagster.adapters.repository.mirror import Mirror

        return self._once("mirror", lambda: Mirror(self.home, self.request.target))

    @property
    def gateway(self) -> "Gateway":
        """The host's gateway, running. This process holds no key, so it cannot start one: WrongUse when there is none."""

        def make() -> "Gateway":
            from longshot_dagster.adapters.gateway.gateway_client import Gateway

            gateway = Gateway(self.home)
            gateway.ensure(None)
            return gateway

        return self._once("gateway", make)

    @property
    def provider(self) -> "SandboxProvider":
        def make() -> "SandboxProvider":
            from longshot_dagster.adapters.sandboxes.providers import make_provider

            return make_provider(self.request.settings, self.request.origins, self.home)[0]

        return self._once("provider", make)

    @property
    def planner(self) -> "Planner":
        from longshot_dagster.adapters.workers.planner import Planner

        return self._once("planner", lambda: Planner(self.ledger, self.request, self.mirror, self.gateway, self.clock))

    @property
    def worker(self) -> "WorkerRunner":
        from longshot_dagster.adapters.workers.harness_layers import HarnessLayers
        from longshot_dagster.adapters.workers.worker import WorkerRunner

        def make() -> "WorkerRunner":
            agents = HarnessLayers(self.home).agents(self.request.settings)
            build = (self.ledger, self.request, self.provider, self.mirror, self.gateway, self.clock)
            return WorkerRunner(*build, missing=agents.missing, layers=agents.shown)

        return self._once("worker", make)

    @property
    def landing(self) -> "LandingQueue":
        from longshot_dagster.adapters.landing.lock_files import LockFiles
        from longshot_dagster.adapters.landing.queue import LandingQueue
        from longshot_dagster.core.landing import gathering_s

        def make() -> "LandingQueue":
            locks = LockFiles(lambda: self.provider, self.request)
            return LandingQueue(self.ledger, self.request, self.mirror, self.clock, gathering_s, locks)

        return self._once("landing", make)

    @property
    def shared_main(self) -> "SharedMain":
        from longshot_dagster.adapters.landing.shared_main import SharedMain

        return self._once("shared_main", lambda: SharedMain(self.home, self.request))

    @property
    def lookout(self) -> Lookout:
        """To be told of every change that may make something due."""
        return self._once("lookout", lambda: Lookout(self.home, self.ledger.view))

    def sweep(self, head: str, number: int, iteration: str, cancelled: Callable[[], bool]) -> Sweep:
        """Build and test `head` in a clean checkout inside a sandbox; the result is not saved yet."""
        from longshot_dagster.adapters.workers.sweeper import run_sweep

        return run_sweep(
            self.ledger, self.request, self.provider, self.mirror, self.clock, head, number, iteration, cancelled
        )

    def end_sandboxes(self) -> None:
        """What killed processes have left of a build that is over. Raises SandboxError."""
        from longshot_dagster.adapters.workers.recovery import end_all

        end_all(self.provider, self.ledger)

    def forget_landed_work(self) -> None:
        """What has landed is on the branch: the mirror need not keep the workers' own branches of it."""
        landings = {t: self.ledger.landing(t) for t in self.ledger.task_ids()}
        landed = [t for t, o in landings.items() if o is not None and o.state is LandingState.LANDED]
        self.mirror.forget_work(self.ledger.build, landed)

    def _once(self, name: str, make: Callable[[], T]) -> T:
        with self._lock:
            if name not in self._made:
                self._made[name] = make()
            return cast(T, self._made[name])


class LongshotResource(dg.ConfigurableResource):
    """The installation that builds live in: ledgers, mirrors, the gateway, sandboxes."""

    home: str = Field(default="", description="folder of the installation; empty: LONGSHOT_HOME, else ~/.longshot")

    _tools: dict[str, BuildTools] = PrivateAttr(default_factory=dict)
    _lock: threading.Lock = PrivateAttr(default_factory=threading.Lock)

    def installation(self) -> Home:
        return installation(self.home)

    def ledger(self) -> Ledger:
        """All builds; one object per process, so that what never changes is read once."""
        return _ledger(str(self.installation().builds))

    def tools(self, build: str) -> BuildTools:
        """Raises WrongUse when there is no such build."""
        with self._lock:
            if build not in self._tools:
                self._tools[build] = self.make_tools(build)
            return self._tools[build]

    def make_tools(self, build: str) -> BuildTools:
        """The one seam for tests: doubles that behave are made here."""
        return BuildTools(self.installation(), build)
