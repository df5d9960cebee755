"""Which sandbox provider a build gets, and which of its settings that provider cannot keep."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from longshot_dagster.adapters.home import Home
from longshot_dagster.adapters.installed_providers import load_provider
from longshot_dagster.adapters.sandbox_local import LocalProvider
from longshot_dagster.core.errors import SandboxRefused, WrongUse
from longshot_dagster.core.sandbox import SandboxProvider
from longshot_dagster.core.settings import Origin, Provider, Settings

# A folder that can be read can be spoken to: a socket in it answers whoever finds it.
_SPEAKING = ("/run", "/sys")


def make_provider(settings: Settings, origins: Mapping[str, Origin], home: Home) -> tuple[SandboxProvider, str]:
    """The provider and one line about it for a person.

    Raises WrongUse when it does not exist, does not work on this host, or cannot keep a setting that somebody chose.
    """
    name = settings.sandbox_provider
    if name == Provider.MODAL:
        raise WrongUse("SANDBOX_PROVIDER=modal is not built yet; use SANDBOX_PROVIDER=local")
    if name not in tuple(Provider):
        return _installed(name, settings, origins, home)
    provider = LocalProvider(home.sandboxes, settings.sandbox_isolation)
    try:
        isolation = provider.capabilities.isolation
    except SandboxRefused as e:
        raise WrongUse(str(e)) from e
    not_enforced(settings, origins, provider)
    _check_readable(settings, home)
    note = "local sandboxes (bubblewrap)" if isolation == "namespace" else "local, NOT isolated: agents run as you"
    if name == Provider.AUTO:
        note = f"auto: the Modal provider does not exist yet, using {note}"
    return provider, note


def _installed(name: str, settings: Settings, origins: Mapping[str, Origin], home: Home) -> tuple[SandboxProvider, str]:
    """A provider that somebody else's package brings."""
    provider = load_provider(name)(settings, home.sandboxes)
    if settings.readable_folders:
        raise WrongUse(
            f"SANDBOX_READABLE cannot be kept by {name} sandboxes: only local ones share folders of this host"
        )
    not_enforced(settings, origins, provider)
    return provider, f"{name} sandboxes (an installed package brings them)"


def _check_readable(settings: Settings, home: Home) -> None:
    """Raises WrongUse for a folder that is missing, or would show agents keys, sessions or other builds."""
    for name in settings.readable_folders:
        folder = Path(name).resolve()
        if not folder.is_dir():
            raise WrongUse(f"SANDBOX_READABLE names {name}, and there is no such folder")
        ours, person = home.root.resolve(), Path.home().resolve()
        if folder.is_relative_to(ours) or ours.is_relative_to(folder) or person.is_relative_to(folder):
            raise WrongUse(
                f"SANDBOX_READABLE={name} would show agents your home folder or Longshot's own; name the one folder they need"
            )
        if any(folder.is_relative_to(place) for place in _SPEAKING) or _is_shared_or_system(folder):
            raise WrongUse(
                f"SANDBOX_READABLE={name} leads to {folder}, where sockets and devices or the system's own secrets lie; "
                "name the one folder agents need"
            )


def _is_shared_or_system(folder: Path) -> bool:
    """Is it, where its links lead, a folder that no setting may name, or the one of this user's sockets?"""
    temporary = Path(tempfile.gettempdir()).resolve()
    if folder.is_relative_to(temporary) and folder != temporary:
        return folder.relative_to(temporary).parts[0].startswith(f"longshot-{os.getuid()}-")
    try:
        return not Settings(sandbox_readable=str(folder))
    except ValidationError:
        return True


def not_enforced(settings: Settings, origins: Mapping[str, Origin], provider: SandboxProvider) -> tuple[str, ...]:
    """Variables whose default this provider cannot enforce; raises WrongUse for one that somebody set."""
    able = provider.capabilities
    lacking = {
        "sandbox_cpu_cores": not able.enforces_cpu,
        "sandbox_memory_mb": not able.enforces_memory,
        "sandbox_network": settings.sandbox_network.value not in able.network,
    }
    names = tuple(name for name, lacks in lacking.items() if lacks)
    for name in names:
        origin = origins.get(name, Origin.DEFAULT)
        if origin is not Origin.DEFAULT:
            raise WrongUse(
                f"{name.upper()}={getattr(settings, name)} ({origin.value}) cannot be enforced by {provider.name} sandboxes"
                f"{' without isolation' if able.isolation == 'none' else ''}; remove it or choose another provider"
            )
    return tuple(name.upper() for name in names)
