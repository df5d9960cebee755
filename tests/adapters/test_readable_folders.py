"""Folders of the host that agents may read: those, nothing beside them, and nothing through them."""

import os
import sys
from pathlib import Path

import pytest

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.sandboxes.providers import make_provider
from longshot_dagster.adapters.sandboxes.sandbox_local import LocalProvider
from longshot_dagster.adapters.settings import resolve
from longshot_dagster.core.errors import SandboxError, SandboxRefused, WrongUse
from longshot_dagster.core.sandbox import SandboxSpec
from longshot_dagster.core.settings import Isolation, Settings


@pytest.fixture
def confined(tmp_path: Path) -> LocalProvider:
    return LocalProvider(tmp_path / "sandboxes", Isolation.AUTO)


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    folder = tmp_path / "tools"
    folder.mkdir()
    (folder / "told").write_text("here\n", encoding="utf-8")
    (tmp_path / "secret").write_text("not for you", encoding="utf-8")
    return folder


def test_a_named_folder_can_be_read_and_nothing_can_be_written_or_seen_beside_it(
    confined: LocalProvider, tools: Path
) -> None:
    sandbox = confined.create(SandboxSpec(name="t", readable=(str(tools),)))
    script = f"cat {tools}/told; ls {tools.parent}; echo x > {tools}/new || echo kept"
    ran = confined.attach(sandbox.id).exec(["sh", "-c", script], timeout_s=10)
    sandbox.terminate()
    assert ran.stdout.decode().split() == ["here", "tools", "kept"]
    assert [p.name for p in tools.iterdir()] == ["told"]


def test_a_prepared_venv_runs_in_a_sandbox_without_a_network(confined: LocalProvider) -> None:
    sandbox = confined.create(SandboxSpec(name="t", readable=(sys.prefix,)))
    ran = sandbox.exec([f"{sys.prefix}/bin/python", "-m", "pytest", "--version"], timeout_s=30)
    sandbox.terminate()
    assert (ran.exit_code, ran.stdout[:7]) == (0, b"pytest "), ran.stderr


@pytest.mark.parametrize("place", ["etc", "etc/ssl", "usr", "proc"])
def test_a_link_that_an_agent_plants_leads_nobody_out(confined: LocalProvider, tools: Path, place: str) -> None:
    victim = tools.parent / "victim"
    victim.mkdir()
    sandbox = confined.create(SandboxSpec(name="t", readable=(str(tools),)))
    found = sandbox.root / place
    if found.exists():
        found.rename(sandbox.root / "aside")
    found.parent.mkdir(parents=True, exist_ok=True)
    found.symlink_to(f"/oldroot{victim}")
    with pytest.raises(SandboxError, match=f"{place} has become a link"):
        sandbox.exec(["true"], timeout_s=10)
    sandbox.terminate()
    assert list(victim.iterdir()) == []


def test_a_folder_that_is_not_there_is_one_line(confined: LocalProvider, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    with pytest.raises(SandboxRefused, match=f"SANDBOX_READABLE names {missing}, and there is no such folder"):
        confined.create(SandboxSpec(name="t", readable=(missing,)))
    with pytest.raises(WrongUse, match="there is no such folder"):
        make_provider(Settings(sandbox_readable=missing), {}, Home(tmp_path / "home"))


def test_neither_the_persons_home_nor_longshots_own_can_be_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "person"))
    home = Home(tmp_path / "state/longshot")
    (home.builds / "one").mkdir(parents=True)
    (tmp_path / "person/project/.venv").mkdir(parents=True)
    for folder in ("person", "state", "state/longshot", "state/longshot/builds"):
        with pytest.raises(WrongUse, match="would show agents your home folder or Longshot's own"):
            make_provider(Settings(sandbox_readable=str(tmp_path / folder)), {}, home)
    make_provider(Settings(sandbox_readable=str(tmp_path / "person/project/.venv")), {}, home)


@pytest.mark.parametrize("place", ["/etc", "/run", "/proc/self", "{tmp}", "{tmp}/longshot-{uid}-0123456789"])
def test_a_link_to_what_no_setting_may_name_is_refused_as_that_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    temporary = tmp_path / "tmp"
    (temporary / f"longshot-{os.getuid()}-0123456789").mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    (tmp_path / "link").symlink_to(place.format(tmp="/tmp" if place == "{tmp}" else temporary, uid=os.getuid()))
    with pytest.raises(WrongUse, match=f"SANDBOX_READABLE={tmp_path}/link (leads to /|would show agents)") as refused:
        make_provider(Settings(sandbox_readable=str(tmp_path / "link")), {}, Home(tmp_path / "home"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "value",
    ["venv", "~/venv", "/opt/../etc", "/", "//", "/tmp", "/etc/ssl", "/workspace/", "/workspace/repo/x", "/a:/proc"],
)
def test_what_is_no_folder_for_agents_is_refused_in_one_line(value: str) -> None:
    with pytest.raises(WrongUse, match=r"SANDBOX_READABLE=.* (is not a list of absolute|cannot hold)") as refused:
        resolve({}, {}, {"SANDBOX_READABLE": value}, None, None)
    assert "\n" not in str(refused.value)


def test_several_folders_are_named_once_each_and_never_by_a_repository() -> None:
    found = resolve({}, {}, {"SANDBOX_READABLE": "/opt/venv:/srv/app/.venv::/opt/venv"}, None, None)
    assert found.settings.readable_folders == ("/opt/venv", "/srv/app/.venv")
    with pytest.raises(WrongUse, match=r"SANDBOX_READABLE \(\.longshot\.toml\) is not for a repository to decide"):
        resolve({}, {}, {}, None, 'sandbox_readable = "/opt/venv"')
