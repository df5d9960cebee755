"""Starting a build: refused before anything is written, paused when no model answers, the same build when asked twice."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from longshot_dagster.adapters.builds.starting import new_build_name, start_build
from longshot_dagster.adapters.gateway.gateway_client import Gateway
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.ledger import Ledger
from longshot_dagster.adapters.settings import Resolved, resolve
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.endpoints import Endpoint
from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.model_apis import Api
from longshot_dagster.core.models import BuildPhase, BuildRequest
from longshot_dagster.core.settings import Origin
from longshot_dagster.core.usage import REHEARSAL_MODEL as MODEL
from longshot_dagster.testing.script import Script
from longshot_dagster.testing.scripted_model import ScriptedModel


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A home whose gateway reaches the scripted model."""
    found = Home(tmp_path_factory.mktemp("starting") / "home")
    found.root.mkdir(parents=True)
    with ScriptedModel(Script(), 0) as model:
        Gateway(found).ensure((Endpoint(name="scripted", url=f"http://127.0.0.1:{model.port}/v1"),))
        try:
            yield found
        finally:
            Gateway(found).stop()


def repository(folder: Path, **files: str) -> Path:
    """A bare repository whose main holds `files` (`DOT` in a name stands for a leading dot, `_` for any other)."""
    work, bare = folder / "work", folder / "r.git"
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(bare)], check=True)
    subprocess.run(["git", "init", "-q", "-b", "main", str(work)], check=True)
    for name, text in {"README": "hi\n", **files}.items():
        (work / name.replace("DOT", ".").replace("_", ".")).write_text(text, encoding="utf-8")
    for command in (["add", "-A"], ["commit", "-qm", "first"], ["push", "-q", str(bare), "main"]):
        subprocess.run(["git", "-C", str(work), *command], check=True)
    return bare


def settings(**launch: Any) -> Resolved:
    return resolve({"llm_model": MODEL, "sandbox_isolation": "none", **launch}, {}, {}, None, None)


def started(home: Home, where: Path, resolved: Resolved, build: str = "b-1", request: str = "do it") -> BuildRequest:
    return start_build(
        home,
        request=request,
        repository=str(where),
        resolved=resolved,
        build=build,
        gateway=Gateway(home),
        clock=SystemClock(),
    )


def test_the_request_is_frozen_with_the_targets_own_settings_below(home: Home, tmp_path: Path) -> None:
    where = repository(tmp_path, DOTlongshot_toml="max_workers = 9\nworker_timeout = 60\n")
    made = started(home, where, settings(max_workers=2), "frozen")
    assert (made.settings.max_workers, made.settings.worker_timeout) == (2, 60)
    assert made.origins["worker_timeout"] is Origin.TARGET
    assert made.rehearsal
    assert Ledger(home.builds).existing("frozen").request() == made
    assert Ledger(home.builds).build("frozen").state().phase is BuildPhase.RUNNING


def test_started_again_it_is_the_same_build(home: Home, tmp_path: Path) -> None:
    where = repository(tmp_path)
    assert started(home, where, settings(), "twice") == started(home, where, settings(), "twice")
    with pytest.raises(WrongUse, match="already a build 'twice' with another request"):
        started(home, where, settings(), "twice", "something else")


@pytest.mark.parametrize(
    ("request_", "more", "says"),
    [
        ("  ", {}, "the request is empty"),
        ("x" * 100_001, {}, "100,001 characters, at most 100,000"),
        ("do it", {"sandbox_provider": "modal"}, "SANDBOX_PROVIDER=modal needs MODAL_TOKEN_ID"),
        (
            "do it",
            {"sandbox_isolation": "none", "sandbox_network": "none"},
            r"SANDBOX_NETWORK=none \(launch field\) cannot be enforced",
        ),
        ("do it", {"git_main_branch": "trunk"}, "no branch 'trunk'"),
    ],
)
def test_what_cannot_be_built_leaves_no_build(
    home: Home, tmp_path: Path, request_: str, more: dict[str, Any], says: str
) -> None:
    where = repository(tmp_path)
    with pytest.raises(WrongUse, match=says):
        started(home, where, settings(**more), "refused", request_)
    assert not Ledger(home.builds).build("refused").exists()


def test_a_target_with_a_secret_in_its_settings_is_refused(home: Home, tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match="looks like a secret"):
        started(home, repository(tmp_path, DOTlongshot_toml="llm_api_key = 'x'\n"), settings(), "secret")
    assert not Ledger(home.builds).build("secret").exists()


def test_without_a_gateway_there_is_no_model_to_start_with(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    with pytest.raises(WrongUse, match="no model endpoint is configured"):
        started(home, repository(tmp_path), settings())
    assert not Ledger(home.builds).build("b-1").exists()


def test_a_model_that_does_not_answer_pauses_the_build_from_its_first_moment(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.root.mkdir()
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, and listening to nobody
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"
        Gateway(home).ensure((Endpoint(name="dead", url=url),))
        try:
            started(home, repository(tmp_path), settings(), "silent")
        finally:
            Gateway(home).stop()
    state = Ledger(home.builds).existing("silent").state()
    assert state.phase is BuildPhase.PAUSED
    assert "dead" in state.reason


def test_names_of_builds_come_from_the_request_and_differ() -> None:
    one, two = new_build_name("Build a REST API!"), new_build_name("Build a REST API!")
    assert one.startswith("build-a-rest-api-")
    assert one != two


def test_a_harness_whose_language_no_endpoint_speaks_is_refused_before_anything_is_written(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, command = repository(tmp_path), tmp_path / "bin" / "codex"
    command.parent.mkdir()
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent), prepend=":")
    before = Gateway(home).status()["endpoints"][0]["host"]
    try:
        with ScriptedModel(Script()) as model:
            Gateway(home).ensure((Endpoint(name="plain", url=model.base_url, apis=(Api.CHAT,)),))
            with pytest.raises(WrongUse) as refused:
                started(home, where, settings(harness="codex"), "b-codex")
            assert model.log == []
    finally:
        Gateway(home).ensure((Endpoint(name="scripted", url=f"http://{before}/v1"),))
    line = str(refused.value)
    assert line.startswith("endpoint plain (127.0.0.1:")
    assert "does not speak OpenAI responses, and HARNESS=codex speaks nothing else: choose another HARNESS" in line
    assert "\n" not in line
    assert not Ledger(home.builds).build("b-codex").exists()
    assert started(home, where, settings(harness="codex"), "b-codex").settings.harness == "codex"


def test_a_harness_that_is_not_there_is_refused_before_anything_is_written(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = repository(tmp_path)
    git = shutil.which("git")
    assert git
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "git").symlink_to(git)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(WrongUse, match=r"`longshot harnesses install claude-code`, or set HARNESS=auto$"):
        started(home, where, settings(harness="claude-code"), "b-claude")
    assert not Ledger(home.builds).build("b-claude").exists()
