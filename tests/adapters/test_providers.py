"""Which provider a build gets, and what it says about settings it cannot keep."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.sandboxes import providers
from longshot_dagster.adapters.sandboxes.fleet import Fleet
from longshot_dagster.adapters.sandboxes.providers import decided, make_provider, not_enforced
from longshot_dagster.adapters.sandboxes.sandbox_local import LocalProvider
from longshot_dagster.core.errors import SandboxRefused, WrongUse
from longshot_dagster.core.sandbox import Capabilities
from longshot_dagster.core.settings import Isolation, Network, Origin, Provider, Settings


def test_auto_says_that_it_uses_local(tmp_path: Path) -> None:
    provider, note = make_provider(Settings(), {}, Home(tmp_path))
    assert provider.name == "local"
    assert note == "auto: no Modal account is set up (MODAL_TOKEN_ID), using local sandboxes (bubblewrap)"


@pytest.mark.parametrize(
    ("asked", "account", "chosen"),
    [
        ({}, "", "local"),
        ({}, "variables", "modal"),
        ({}, "file", "modal"),
        ({"sandbox_isolation": "none"}, "file", "local"),
        ({"sandbox_readable": "/opt/venv"}, "file", "local"),
        ({"sandbox_provider": "docker"}, "file", "docker"),
        ({"sandbox_provider": "modal:3,local:1"}, "", "modal:3,local:1"),
    ],
)
def test_auto_is_modal_for_whoever_has_an_account_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, str], account: str, chosen: str
) -> None:
    if account == "variables":
        monkeypatch.setenv("MODAL_TOKEN_ID", "ak-x")
        monkeypatch.setenv("MODAL_TOKEN_SECRET", "as-x")
    if account == "file":
        (tmp_path / "modal.toml").write_text('[default]\ntoken_id = "ak-x"\n', encoding="utf-8")
        monkeypatch.setenv("MODAL_CONFIG_PATH", str(tmp_path / "modal.toml"))
    assert decided(Settings(**asked)).sandbox_provider == chosen


def test_modal_without_an_account_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        WrongUse, match=r"SANDBOX_PROVIDER=modal needs MODAL_TOKEN_ID and MODAL_TOKEN_SECRET"
    ) as refused:
        make_provider(Settings(sandbox_provider=Provider.MODAL), {}, Home(tmp_path))
    assert "\n" not in str(refused.value)


def test_a_provider_whose_library_is_missing_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers, "find_spec", lambda name: None)
    with pytest.raises(WrongUse, match=r"needs the package e2b beside Longshot: pip install e2b"):
        make_provider(Settings(sandbox_provider=Provider.E2B), {}, Home(tmp_path))


def test_several_share_the_work_and_each_keeps_what_was_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cloud(LocalProvider):
        name = "cloud"

        @property
        def capabilities(self) -> Capabilities:
            return replace(super().capabilities, enforces_memory=False, layers=False)

    monkeypatch.setattr(providers, "load_provider", lambda name: lambda settings, folder: Cloud(folder, Isolation.AUTO))
    both = Settings(sandbox_provider="cloud:3,local")
    fleet, note = make_provider(both, {}, Home(tmp_path))
    assert isinstance(fleet, Fleet) and [(m.name, m.weight) for m in fleet.members] == [("cloud", 3.0), ("local", 1.0)]
    assert note.startswith("several by weight: 3 of cloud sandboxes (an installed package brings them), 1 of local")
    with pytest.raises(WrongUse, match="cannot be enforced by cloud sandboxes"):
        make_provider(
            both.model_copy(update={"sandbox_memory_mb": 512}), {"sandbox_memory_mb": Origin.FLAG}, Home(tmp_path)
        )
    with pytest.raises(WrongUse, match="SANDBOX_READABLE cannot be kept by cloud sandboxes"):
        make_provider(both.model_copy(update={"sandbox_readable": "/opt"}), {}, Home(tmp_path))


def test_without_isolation_the_note_says_what_it_means(tmp_path: Path) -> None:
    settings = Settings(sandbox_provider=Provider.LOCAL, sandbox_isolation=Isolation.NONE)
    provider, note = make_provider(settings, {"sandbox_isolation": Origin.FLAG}, Home(tmp_path))
    assert note == "local, NOT isolated: agents run as you"
    assert "SANDBOX_NETWORK" in not_enforced(settings, {}, provider)


class Lax:
    """A provider that limits nothing."""

    name = "lax"
    capabilities = Capabilities("vm", frozenset({"none", "open"}), False, False, survives_client=False)


def test_defaults_are_listed_and_chosen_values_refused() -> None:
    provider: Any = Lax()
    assert not_enforced(Settings(), {}, provider) == ("SANDBOX_CPU_CORES", "SANDBOX_MEMORY_MB")
    with pytest.raises(WrongUse, match=r"SANDBOX_MEMORY_MB=512 \(environment\) cannot be enforced by lax sandboxes"):
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
