"""Which provider a build gets, and what it says about settings it cannot keep."""

from pathlib import Path

import pytest

from longshot_dagster.adapters import providers
from longshot_dagster.adapters.home import Home
from longshot_dagster.adapters.providers import make_provider, not_enforced
from longshot_dagster.adapters.sandbox_local import LocalProvider
from longshot_dagster.core.errors import SandboxRefused, WrongUse
from longshot_dagster.core.settings import Isolation, Network, Origin, Provider, Settings


def test_auto_says_that_it_uses_local(tmp_path: Path) -> None:
    provider, note = make_provider(Settings(), {}, Home(tmp_path))
    assert provider.name == "local"
    assert note == "auto: the Modal provider does not exist yet, using local sandboxes (bubblewrap)"


def test_modal_is_not_built_yet(tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match="SANDBOX_PROVIDER=modal is not built yet; use SANDBOX_PROVIDER=local"):
        make_provider(Settings(sandbox_provider=Provider.MODAL), {}, Home(tmp_path))


def test_without_isolation_the_note_says_what_it_means(tmp_path: Path) -> None:
    settings = Settings(sandbox_provider=Provider.LOCAL, sandbox_isolation=Isolation.NONE)
    provider, note = make_provider(settings, {"sandbox_isolation": Origin.FLAG}, Home(tmp_path))
    assert note == "local, NOT isolated: agents run as you"
    assert not_enforced(settings, {}, provider) == ("SANDBOX_CPU_CORES", "SANDBOX_MEMORY_MB", "SANDBOX_NETWORK")


def test_defaults_are_listed_and_chosen_values_refused(tmp_path: Path) -> None:
    provider = LocalProvider(tmp_path, Isolation.AUTO)
    assert not_enforced(Settings(), {}, provider) == ("SANDBOX_CPU_CORES", "SANDBOX_MEMORY_MB")
    with pytest.raises(WrongUse, match=r"SANDBOX_MEMORY_MB=512 \(environment\) cannot be enforced by local sandboxes"):
        not_enforced(Settings(sandbox_memory_mb=512), {"sandbox_memory_mb": Origin.ENVIRONMENT}, provider)
    open_network = Settings(sandbox_network=Network.OPEN)
    assert not_enforced(open_network, {"sandbox_network": Origin.FLAG}, provider) == (
        "SANDBOX_CPU_CORES",
        "SANDBOX_MEMORY_MB",
    )


def test_a_host_that_cannot_isolate_is_wrong_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unable(LocalProvider):
        @property
        def capabilities(self) -> object:  # type: ignore[override]
            raise SandboxRefused("no namespaces; set SANDBOX_ISOLATION=none")

    monkeypatch.setattr(providers, "LocalProvider", Unable)
    with pytest.raises(WrongUse, match="SANDBOX_ISOLATION=none"):
        make_provider(Settings(), {}, Home(tmp_path))
