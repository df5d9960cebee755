"""Before spending: the first build on a repository that holds something is shown and asked about, no other."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

from longshot_dagster.adapters.gateway.gateway_client import Gateway
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.ledger import Ledger
from longshot_dagster.adapters.repository.targets import resolve_target
from longshot_dagster.adapters.settings import resolve
from longshot_dagster.cli import main
from longshot_dagster.cli.asking import before_spending
from longshot_dagster.core.endpoints import Endpoint
from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.models import BuildRequest

ENDPOINT = Endpoint(name="llm", url="http://127.0.0.1:9/v1")


class Terminal(io.StringIO):
    """A person's keyboard."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LONGSHOT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LLM_BASE_URL", ENDPOINT.url)
    return Home(tmp_path / "home")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A bare repository with one file, and a setting of its own."""
    work = tmp_path / "work"
    subprocess.run(["git", "init", "-q", "-b", "main", str(work)], check=True)
    (work / ".longshot.toml").write_text("max_workers = 7\n")
    for command in (["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(work), *command], check=True)
    subprocess.run(["git", "clone", "-q", "--bare", str(work), str(tmp_path / "r.git")], check=True)
    return tmp_path / "r.git"


def ask(home: Home, repository: Path, *, assumed: bool = False, yes: bool = False) -> None:
    resolved = resolve({}, {}, {}, None, None)
    before_spending(
        home,
        resolve_target(str(repository), resolved.settings, "b-1"),
        resolved,
        build="b-1",
        request="do it",
        repository=str(repository),
        land_on=None,
        endpoints=(ENDPOINT,),
        sandboxes="local sandboxes",
        assumed=assumed,
        yes=yes,
    )


def built_there_before(home: Home, repository: Path) -> None:
    resolved = resolve({}, {}, {}, None, None)
    target = resolve_target(str(repository), resolved.settings, "b-0")
    request = BuildRequest(
        build="b-0", request="x", target=target, base="a" * 40, settings=resolved.settings, created_at=1.0
    )
    Ledger(home.builds).build("b-0").save_request(request)


@pytest.mark.parametrize(("key", "code"), [("n\n", 2), ("", 130)], ids=["no", "end of input"])
def test_a_no_starts_nothing(
    key: str,
    code: int,
    home: Home,
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(key))
    assert main.run(["do it", "--repo", str(repository)]) == code
    shown = capsys.readouterr()
    assert "the first build on this repository:" in shown.out
    assert "branch main, from main" in shown.out
    assert "7 at once" in shown.out  # the repository's own setting counts
    assert not list(home.builds.iterdir())
    assert not (home.root / "stack.json").exists()
    assert not Gateway(home).alive()


def test_a_yes_goes_on(home: Home, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal("\n"))
    ask(home, repository)


def test_without_a_terminal_it_is_printed_and_goes_on(
    home: Home, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(home, repository)
    shown = capsys.readouterr().out
    assert "glm-5 at llm (127.0.0.1:9)" in shown
    assert "unknown until LLM_PRICE_IN and LLM_PRICE_OUT are set" in shown


def test_yes_asks_and_prints_nothing(home: Home, repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask(home, repository, yes=True)
    assert capsys.readouterr().out == ""


def test_an_empty_repository_is_nothing_to_ask_about(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["git", "init", "-q", "--bare", str(tmp_path / "empty.git")], check=True)
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    ask(home, tmp_path / "empty.git")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("assumed", [False, True])
def test_the_second_build_there_asks_only_when_nobody_named_the_repository(
    assumed: bool, home: Home, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built_there_before(home, repository)
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    if assumed:
        with pytest.raises(WrongUse, match="nothing was started"):
            ask(home, repository, assumed=True)
        assert (
            f"this checkout's origin is {repository}; finished work lands on its branch main" in capsys.readouterr().out
        )
    else:
        ask(home, repository)
        assert capsys.readouterr().out == ""
