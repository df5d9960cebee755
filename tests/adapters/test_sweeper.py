"""A sweep of main in a clean checkout: green, red, or unable to run, and it says which."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from worked import APP, TEST, Build, git

from longshot_dagster.adapters.sandboxes.sandbox_local import LocalProvider
from longshot_dagster.adapters.workers.sweeper import run_sweep
from longshot_dagster.core.errors import Cancelled, SandboxError
from longshot_dagster.core.models import CheckName, CheckStatus, Sweep
from longshot_dagster.core.settings import Isolation


@pytest.fixture
def socket() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="ls-"))
    yield folder / "model.sock"
    shutil.rmtree(folder)


def sweep(build: Build, cancelled: Any = lambda: False) -> Sweep:
    build.chat.__enter__()
    try:
        head = build.mirror.fetch()
        return run_sweep(
            build.ledger, build.request, build.provider, build.mirror, build.clock, head, 4, "root.002", cancelled
        )
    finally:
        build.chat.__exit__()


def test_a_green_main(tmp_path: Path, socket: Path) -> None:
    build = Build(tmp_path, socket, [])
    found = sweep(build)
    assert (found.number, found.head, found.iteration, found.error) == (4, build.base, "root.002", "")
    assert found.green and found.checked
    assert build.ledger.sweeps() == []
    assert list(build.home.sandboxes.iterdir()) == []


def test_a_red_main_shows_what_failed(tmp_path: Path, socket: Path) -> None:
    build = Build(tmp_path, socket, [], files={"app.py": APP.replace("1", "3"), "test_app.py": TEST})
    found = sweep(build)
    assert found.red and not found.green
    test = next(c for c in found.checks if c.name is CheckName.TEST)
    assert (test.status, "3 != 1" in test.output) == (CheckStatus.RED, True)


def test_conflict_markers_on_main_are_red(tmp_path: Path, socket: Path) -> None:
    marked = "<<<<<<< ours\na = 1\n=======\na = 2\n>>>>>>> theirs\n"
    build = Build(tmp_path, socket, [], files={"app.py": APP, "test_app.py": TEST, "notes.txt": marked})
    assert sweep(build).conflict_markers == ("notes.txt",)


def test_a_repository_without_checks_is_neither_green_nor_red(tmp_path: Path, socket: Path) -> None:
    found = sweep(Build(tmp_path, socket, [], files={"README.md": "x"}))
    assert (found.green, found.red, found.checked) == (False, False, False)


def test_a_command_from_the_settings_runs_and_a_hanging_one_ends(tmp_path: Path, socket: Path) -> None:
    build = Build(tmp_path, socket, [], check_compile="echo mine", check_test="sleep 64.01", check_timeout=1)
    found = {c.name: (c.status, c.output) for c in sweep(build).checks}
    assert found[CheckName.COMPILE] == (CheckStatus.GREEN, "mine")
    assert found[CheckName.TEST] == (CheckStatus.TIMEOUT, "\n[ended after 1 s]")


def test_a_sweep_that_cannot_run_is_not_green_and_says_why(tmp_path: Path, socket: Path) -> None:
    class Broken(LocalProvider):
        def create(self, spec: Any) -> Any:
            raise SandboxError("no space")

    build = Build(tmp_path, socket, [], provider=Broken(tmp_path / "sb", Isolation.AUTO))
    found = sweep(build)
    assert (found.error, found.green, found.red) == ("the sweep could not run: no space (tried 3 times)", False, True)


def test_a_cancelled_sweep_raises(tmp_path: Path, socket: Path) -> None:
    with pytest.raises(Cancelled):
        sweep(Build(tmp_path, socket, []), cancelled=lambda: True)


def test_a_sweep_sees_the_commit_it_is_given_and_nothing_else(tmp_path: Path, socket: Path) -> None:
    build = Build(tmp_path, socket, [], check_test="git log --format=%s; ls -A")
    test = next(c for c in sweep(build).checks if c.name is CheckName.TEST)
    assert test.output.split() == ["first", ".git", "__pycache__", "app.py", "test_app.py"]
    assert git(build.mirror.path, "rev-parse", build.base) == build.base
