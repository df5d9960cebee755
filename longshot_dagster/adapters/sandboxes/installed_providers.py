"""Sandbox providers that other packages bring, by an entry point of the group `longshot_dagster.sandboxes`.

    [project.entry-points."longshot_dagster.sandboxes"]
    mine = "my_package:make_provider"        # SANDBOX_PROVIDER=mine

It names a `MakeProvider`. Whoever installs such a package trusts it: it runs in the processes of the stack, which hold no
key, and it is what keeps agents apart from the host.
"""

import functools
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path

from longshot_dagster.adapters.host.documents import Stamp, stamp_at
from longshot_dagster.core.display import one_line
from longshot_dagster.core.errors import SandboxRefused, WrongUse
from longshot_dagster.core.sandbox import SandboxProvider
from longshot_dagster.core.settings import Settings

GROUP = "longshot_dagster.sandboxes"

MakeProvider = Callable[[Settings, Path], SandboxProvider]
"""(settings of the build, a folder of this installation that the provider may keep files in) -> the provider.

Called once per process and build; connects to nothing. Raises SandboxRefused, in one line, when it cannot work here.
"""


def installed_providers() -> list[str]:
    """Names that SANDBOX_PROVIDER may have beside the ones that are built in."""
    return sorted({point.name.lower() for point in _points()})


def _points() -> EntryPoints:
    """Of every installed package; looked for again once one has come or gone, which changes the time of a folder."""
    return _points_in(tuple(stamp_at(folder or ".") for folder in sys.path))


@functools.lru_cache(maxsize=1)
def _points_in(_folders: tuple[Stamp | None, ...]) -> EntryPoints:
    return entry_points(group=GROUP)


def load_provider(name: str) -> MakeProvider:
    """Raises WrongUse when no installed package brings it, or what it brings does not load."""
    found = [point for point in _points() if point.name.lower() == name]
    if not found:
        raise WrongUse(
            f"SANDBOX_PROVIDER={one_line(name, 80)} is neither built in nor brought by an installed package; use auto or local"
        )
    if len({point.value for point in found}) > 1:
        raise WrongUse(f"SANDBOX_PROVIDER={name} is brought by two packages; uninstall one of them")
    return _checked(name, _load(name, found[0]))


def _load(name: str, point: EntryPoint) -> object:
    try:
        return point.load()
    except Exception as e:  # whatever somebody else's module raises as it is imported
        raise WrongUse(
            f"SANDBOX_PROVIDER={name} does not load: {type(e).__name__}: {one_line(e, 200)}; see to the package that brings it"
        ) from e


def _checked(name: str, make: object) -> MakeProvider:
    if not callable(make):
        raise WrongUse(f"SANDBOX_PROVIDER={name} does not load: {GROUP} names something that cannot be called")

    def made(settings: Settings, folder: Path) -> SandboxProvider:
        try:
            provider: SandboxProvider = make(settings, folder)
        except SandboxRefused as e:
            raise WrongUse(str(e)) from e
        return provider

    return made
