"""E2B as far as its own SDK leads to a server of this machine; the contract itself is in tests/contract."""

import importlib.util
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from longshot_dagster.adapters.sandboxes.sandbox_e2b import E2BProvider
from longshot_dagster.core.errors import SandboxGone, SandboxRefused, WrongUse
from longshot_dagster.core.sandbox import SandboxSpec
from longshot_dagster.core.settings import Settings
from longshot_dagster.testing.loopback_e2b import loopback_e2b


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with loopback_e2b(tmp_path_factory.mktemp("e2b")) as served:
        yield served


@pytest.fixture
def provider(environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> E2BProvider:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return E2BProvider(Settings(sandbox_creates_per_second=100), tmp_path)


def test_without_a_key_or_the_sdk_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("E2B_API_KEY", raising=False)
    with pytest.raises(SandboxRefused, match=r"^SANDBOX_PROVIDER=e2b needs E2B_API_KEY; .*local$"):
        E2BProvider(Settings(), tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SandboxRefused, match=r"pip install e2b, or pipx inject longshot-dagster e2b$"):
        E2BProvider(Settings(), tmp_path)


def test_a_wrong_key_is_refused_and_not_tried_again(provider: E2BProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("E2B_API_KEY", "e2b_" + "0" * 40)
    with pytest.raises(SandboxRefused) as refused:
        provider.create(SandboxSpec(name="t"))
    assert "0" * 40 not in str(refused.value)


def test_of_two_that_are_made_at_once_under_one_name_at_most_one_stays(provider: E2BProvider) -> None:
    outcomes: list[object] = []

    def make() -> None:
        try:
            outcomes.append(provider.create(SandboxSpec(name="same", tags={"build": "b"})))
        except SandboxRefused as e:
            outcomes.append(e)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = [one for one in outcomes if not isinstance(one, SandboxRefused)]
    assert len(made) == 1
    assert [info.id for info in provider.list({"build": "b"})] == [made[0].id]  # type: ignore[attr-defined]
    made[0].terminate()  # type: ignore[attr-defined]


def test_another_installation_sees_builds_by_name_and_nothing_else(provider: E2BProvider, tmp_path: Path) -> None:
    sandbox = provider.create(SandboxSpec(name="one", tags={"build": "b", "task": "t"}))
    other = E2BProvider(Settings(), tmp_path / "other")
    assert [info.id for info in other.list({"build": "b"})] == [sandbox.id]
    assert other.list({"task": "t"}) == other.list({}) == []
    assert [info.id for info in provider.list({"task": "t"})] == [sandbox.id]
    sandbox.terminate()
    with pytest.raises(SandboxGone):
        other.attach(sandbox.id)


def test_a_call_that_the_rehearsal_does_not_know_fails_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import e2b

    with pytest.raises(WrongUse, match="GET /sandboxes/x/metrics"), loopback_e2b(tmp_path) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(e2b.SandboxException):
            e2b.Sandbox.get_metrics("x")
