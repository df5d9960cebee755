"""Which sandbox provider a build gets, and which of its settings that provider cannot keep."""

from collections.abc import Mapping
from pathlib import Path

from longshot_dagster.adapters.home import Home
from longshot_dagster.adapters.sandbox_local import LocalProvider
from longshot_dagster.core.errors import SandboxRefused, WrongUse
from longshot_dagster.core.sandbox import SandboxProvider
from longshot_dagster.core.settings import Origin, Provider, Settings


def make_provider(settings: Settings, origins: Mapping[str, Origin], home: Home) -> tuple[SandboxProvider, str]:
    """The provider and one line about it for a person.

    Raises WrongUse when it does not exist, does not work on this host, or cannot keep a setting that somebody chose.
    """
    if settings.sandbox_provider is Provider.MODAL:
        raise WrongUse("SANDBOX_PROVIDER=modal is not built yet; use SANDBOX_PROVIDER=local")
    provider = LocalProvider(home.sandboxes, settings.sandbox_isolation)
    try:
        isolation = provider.capabilities.isolation
    except SandboxRefused as e:
        raise WrongUse(str(e)) from e
    not_enforced(settings, origins, provider)
    _check_readable(settings, home)
    note = "local sandboxes (bubblewrap)" if isolation == "namespace" else "local, NOT isolated: agents run as you"
    if settings.sandbox_provider is Provider.AUTO:
        note = f"auto: the Modal provider does not exist yet, using {note}"
    return provider, note


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
