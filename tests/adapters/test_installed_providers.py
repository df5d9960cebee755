"""Sandbox providers that other packages bring: found by their entry point, refused in one line when they cannot be used."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from longshot_dagster.adapters import settings
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.sandboxes.holding import bare
from longshot_dagster.adapters.sandboxes.installed_providers import installed_providers
from longshot_dagster.adapters.sandboxes.providers import make_provider
from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.settings import Origin, Settings

_MODULE = """
from longshot_dagster.core.errors import SandboxRefused
from longshot_dagster.core.sandbox import Capabilities

class Cloud:
    name = "cloud"
    capabilities = Capabilities("vm", frozenset({"none"}), enforces_cpu=True, enforces_memory=False, survives_client=True)
    def __init__(self, settings, folder):
        self.folder = folder

def unable(settings, folder):
    raise SandboxRefused("no account here")

nothing = 1
"""


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package `sandboxes_of_theirs` that brings four providers, installed as pip would leave it."""
    site = tmp_path / "site"
    metadata = site / "theirs-1.dist-info"
    metadata.mkdir(parents=True)
    (site / "sandboxes_of_theirs.py").write_text(_MODULE, encoding="utf-8")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n", encoding="utf-8")
    points = [f"{name} = sandboxes_of_theirs:{name}" for name in ("unable", "nothing", "missing")]
    text = "\n".join(["[longshot_dagster.sandboxes]", "Cloud = sandboxes_of_theirs:Cloud", *points]) + "\n"
    (metadata / "entry_points.txt").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(site))
    yield
    sys.modules.pop("sandboxes_of_theirs", None)


def test_a_provider_of_an_installed_package_is_chosen_by_its_name_in_any_case(tmp_path: Path) -> None:
    resolved = settings.resolve({}, {"sandbox_provider": "cloud"}, {}, None, None)
    provider, note = make_provider(resolved.settings, resolved.origins, Home(tmp_path))
    assert (provider.name, note) == ("cloud", "cloud sandboxes (an installed package brings them)")
    assert bare(provider).folder == Home(tmp_path).sandboxes  # type: ignore[attr-defined]


def test_what_is_installed_later_is_found_and_what_has_gone_is_not(tmp_path: Path) -> None:
    assert "later" not in installed_providers()
    metadata = tmp_path / "site" / "later-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: later\nVersion: 1\n", encoding="utf-8")
    points = "[longshot_dagster.sandboxes]\nlater = sandboxes_of_theirs:Cloud\n"
    (metadata / "entry_points.txt").write_text(points, encoding="utf-8")
    assert "later" in installed_providers()
    shutil.rmtree(metadata)
    assert "later" not in installed_providers()


def test_what_nobody_brings_is_refused_with_the_names_there_are() -> None:
    known = r"SANDBOX_PROVIDER=clout \(environment\) is not one of auto, local, modal, docker, e2b, cloud, missing, nothing, unable"
    with pytest.raises(WrongUse, match=f"{known}; did you mean cloud"):
        settings.resolve({}, {}, {"SANDBOX_PROVIDER": "clout"}, None, None)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("gone", "SANDBOX_PROVIDER=gone is neither built in nor brought by an installed package; use auto or local"),
        ("missing", "SANDBOX_PROVIDER=missing does not load: AttributeError: module 'sandboxes_of_theirs' has no"),
        ("nothing", "SANDBOX_PROVIDER=nothing does not load: .* cannot be called"),
        ("unable", "no account here"),
    ],
)
def test_a_provider_that_cannot_be_used_is_one_line(tmp_path: Path, name: str, line: str) -> None:
    with pytest.raises(WrongUse, match=line):
        make_provider(Settings(sandbox_provider=name), {}, Home(tmp_path))


def test_what_it_cannot_enforce_is_refused_as_of_any_provider(tmp_path: Path) -> None:
    asked = Settings(sandbox_provider="cloud", sandbox_memory_mb=512)
    with pytest.raises(WrongUse, match=r"SANDBOX_MEMORY_MB=512 .* cannot be enforced by cloud sandboxes"):
        make_provider(asked, {"sandbox_memory_mb": Origin.FLAG}, Home(tmp_path))
    shared = Settings(sandbox_provider="cloud", sandbox_readable=str(tmp_path))
    with pytest.raises(WrongUse, match="SANDBOX_READABLE cannot be kept by cloud sandboxes"):
        make_provider(shared, {}, Home(tmp_path))
