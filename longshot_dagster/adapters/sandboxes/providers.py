"""Which sandbox provider a build gets, or several of them, and which of its settings they cannot keep."""

import os
import tempfile
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import cast

from pydantic import ValidationError

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.sandboxes.fleet import Fleet, Healths, Member
from longshot_dagster.adapters.sandboxes.holding import Held
from longshot_dagster.adapters.sandboxes.installed_providers import MakeProvider, load_provider
from longshot_dagster.adapters.sandboxes.modal_sdk import has_credentials
from longshot_dagster.adapters.sandboxes.model_relay import check_reachable
from longshot_dagster.adapters.sandboxes.sandbox_local import LocalProvider
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.errors import SandboxRefused, WrongUse
from longshot_dagster.core.sandbox import SandboxProvider
from longshot_dagster.core.settings import Isolation, Origin, Provider, Settings

# A folder that can be read can be spoken to: a socket in it answers whoever finds it.
_SPEAKING = ("/run", "/sys")

# Of a provider that needs somebody's library: our module, its class, and that library, which an extra of the same name brings.
_WITH_LIBRARY = {
    Provider.MODAL: ("longshot_dagster.adapters.sandboxes.sandbox_modal", "ModalProvider", "modal"),
    Provider.DOCKER: ("longshot_dagster.adapters.sandboxes.sandbox_docker", "DockerProvider", "docker"),
    Provider.E2B: ("longshot_dagster.adapters.sandboxes.sandbox_e2b", "E2BProvider", "e2b"),
}


def make_provider(settings: Settings, origins: Mapping[str, Origin], home: Home) -> tuple[SandboxProvider, str]:
    """The provider, or a fleet of those that share the work, and one line about it for a person.

    Raises WrongUse when one does not exist, does not work on this host, or cannot keep a setting that somebody chose.
    """
    settled = decided(settings)
    found = {name: _made(name, settled, origins, home) for name in settled.providers}
    made = {name: (Held(provider, home), note) for name, (provider, note) in found.items()}
    if len(made) == 1:
        provider, note = next(iter(made.values()))
        return provider, f"auto: {_why_auto(settled)}, using {note}" if settings is not settled else note
    weights = settled.providers
    members = tuple(Member(provider, weights[name]) for name, (provider, _) in made.items())
    notes = [f"{weights[name]:g} of {note}" for name, (_, note) in made.items()]
    return Fleet(members, Healths(SystemClock())), f"several by weight: {', '.join(notes)}"


def decided(settings: Settings) -> Settings:
    """`settings` with a provider for `auto`: Modal for whoever has an account, unless something asks for this host.

    Decided once, when a build starts: every process must look for its sandboxes at the same place.
    """
    if settings.sandbox_provider != Provider.AUTO:
        return settings
    here = settings.sandbox_isolation is Isolation.NONE or settings.readable_folders
    name = Provider.MODAL if has_credentials(os.environ) and not here else Provider.LOCAL
    return settings.model_copy(update={"sandbox_provider": name.value})


def _why_auto(settled: Settings) -> str:
    if settled.sandbox_provider == Provider.MODAL:
        return "there is a Modal account"
    return (
        "the settings ask for this host"
        if has_credentials(os.environ)
        else "no Modal account is set up (MODAL_TOKEN_ID)"
    )


def _made(name: str, settings: Settings, origins: Mapping[str, Origin], home: Home) -> tuple[SandboxProvider, str]:
    """One provider that works here and keeps what was chosen. Raises WrongUse."""
    if name == Provider.LOCAL:
        provider: SandboxProvider = LocalProvider(home.sandboxes, settings.sandbox_isolation)
    elif name in _WITH_LIBRARY:
        provider = _with_library(Provider(name))(settings, home.sandboxes)
    else:
        provider = load_provider(name)(settings, home.sandboxes)
    try:
        able = provider.capabilities
        check_reachable(name, able)
    except SandboxRefused as e:
        raise WrongUse(str(e)) from e
    if settings.readable_folders and not able.layers:
        raise WrongUse(
            f"SANDBOX_READABLE cannot be kept by {name} sandboxes: only local ones share folders of this host"
        )
    not_enforced(settings, origins, provider)
    _check_readable(settings, home)
    if name == Provider.LOCAL:
        isolated = able.isolation != "none"
        return provider, "local sandboxes (bubblewrap)" if isolated else "local, NOT isolated: agents run as you"
    return provider, f"{name} sandboxes" + ("" if name in _WITH_LIBRARY else " (an installed package brings them)")


def _with_library(name: Provider) -> MakeProvider:
    module, maker, library = _WITH_LIBRARY[name]
    if find_spec(library) is None:
        raise WrongUse(
            f"SANDBOX_PROVIDER={name} needs the package {library} beside Longshot: "
            f"pip install {library}, or pipx inject longshot-dagster {library}"
        )
    make = cast(MakeProvider, getattr(import_module(module), maker))

    def made(settings: Settings, folder: Path) -> SandboxProvider:
        try:
            return make(settings, folder)
        except SandboxRefused as e:
            raise WrongUse(str(e)) from e

    return made


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
