"""What the builds that land on one branch share about it: its newest sweep, and which of them mends it when it is red.

    mirrors/<target>.git/longshot-main-<branch>/sweep.lock           held by whoever sweeps
                                                sweep-<checks>.json  the newest sweep with these checks
                                                mending.json         whose fix iteration has taken a red main up

The rules are in `core/reconciling.py`. Builds of another LONGSHOT_HOME share nothing but the branch itself.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace

from pydantic import ValidationError

from longshot_dagster.adapters.host.documents import locked, write_atomically
from longshot_dagster.adapters.host.exclusive import claim
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.ledger import BuildLedger, Ledger
from longshot_dagster.core.errors import Cancelled, LongshotError
from longshot_dagster.core.ids import IterationKey, parse_iteration_key
from longshot_dagster.core.lifecycle import BuildView, waits_for_mending
from longshot_dagster.core.models import BuildRequest, Record, Sweep
from longshot_dagster.core.reconciling import Mender, checks_of, may_mend

_LOOK_AGAIN_S = 0.5  # a cancelled run must not wait for the end of another build's sweep


class SharedSweep(Record):
    """`sweep-<checks>.json`."""

    build: str
    sweep: Sweep


class Mending(Record):
    """`mending.json`."""

    iteration: str


class SharedMain:
    """One build's part in the branch it lands on."""

    def __init__(self, home: Home, request: BuildRequest) -> None:
        self._builds = Ledger(home.builds)
        self._request = request
        branch = hashlib.sha256(request.target.branch.encode("utf-8", "surrogateescape")).hexdigest()[:12]
        self._folder = home.mirror_of(request.target.url) / f"longshot-main-{branch}"
        self._sweep = self._folder / f"sweep-{checks_of(request.settings)}.json"
        self._mending = self._folder / "mending.json"

    # --- sweeps ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def sweeping(self, cancelled: Callable[[], bool]) -> Iterator[None]:
        """Held by one build at a time. Raises Cancelled while waiting for the others."""
        while True:
            if cancelled():
                raise Cancelled("cancelled while another build swept the same branch")
            with claim(self._folder / "sweep.lock", _LOOK_AGAIN_S) as mine:
                if mine:
                    yield
                    return

    def newest_sweep(self) -> Sweep | None:
        """The newest sweep of the branch with this build's checks that another build has made since this one began."""
        try:
            found = SharedSweep.model_validate_json(self._sweep.read_bytes())
        except (FileNotFoundError, ValidationError):  # of another version: as good as none
            return None
        if found.build == self._request.build or found.sweep.started_at < self._request.created_at:
            return None
        return found.sweep.model_copy(update={"made_by": found.build})

    def publish(self, sweep: Sweep) -> None:
        """Let the others have it; what could not run says nothing about the branch."""
        if not sweep.error:
            shared = SharedSweep(build=self._request.build, sweep=sweep)
            write_atomically(self._sweep, shared.model_dump_json().encode("utf-8", "replace"))

    # --- mending -----------------------------------------------------------------------------------------------------

    def claim_mending(self, ledger: BuildLedger, key: IterationKey) -> str:
        """Open fix iteration `key` for a red main, unless another build is at it: then its name, and nothing is opened."""
        with locked(self._folder / "mending.lock"):
            mender = self._mender()
            if mender is not None and not may_mend(ledger.build, mender):
                return mender.build
            write_atomically(self._mending, Mending(iteration=str(key)).model_dump_json().encode())
            ledger.open_iteration(key)  # a claim whose iteration is not open would not count
            return ""

    def mended_by(self) -> str:
        """The other build that mends the branch at the moment; empty when none does."""
        mender = self._mender()
        return mender.build if mender is not None and not may_mend(self._request.build, mender) else ""

    def _mender(self) -> Mender | None:
        try:
            key = parse_iteration_key(Mending.model_validate_json(self._mending.read_bytes()).iteration)
        except (FileNotFoundError, ValidationError, LongshotError):
            return None
        try:
            ledger = self._builds.existing(key.build)
            return Mender(key.build, ledger.state().phase, ledger.iteration_status(key))
        except LongshotError:
            return Mender(key.build, None, None)


def view_beside_others(home: Home, ledger: BuildLedger) -> BuildView:
    """The fold's input, with what the other builds on the branch have found out and do about a red main.

    A red sweep of this build gives way to a newer one of another that is not: what it waits for has happened. A newer red
    one says nothing new, and a finalization that ended red would lose the sweep that it wants answered.
    """
    view = ledger.view()
    if view.sweep is None or not view.sweep.red:
        return view
    shared = SharedMain(home, ledger.request())
    newer = shared.newest_sweep()
    if newer is not None and not newer.red and newer.started_at > ledger.sweeps()[-1].ended_at:
        ledger.add_sweep(newer)
        view = ledger.view()
    return replace(view, mended_by=shared.mended_by())


def waits_for(home: Home, ledger: BuildLedger) -> str:
    """The build whose fixes of a red main this one waits for; empty when it waits for none. Changes nothing."""
    view = ledger.view()
    if view.sweep is None or not view.sweep.red:
        return ""
    mended_by = SharedMain(home, ledger.request()).mended_by()
    return mended_by if waits_for_mending(replace(view, mended_by=mended_by)) else ""
