"""The demos' two ends: an almost empty repository to build in, and the finished application's own tests."""

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from longshot_dagster.adapters.host.shipped import shipped
from longshot_dagster.core.errors import RepositoryError
from longshot_dagster.testing import phrasebook

REQUEST = "Build the pocket almanac according to SPEC.md"
_TIMEOUT_S = 120
_SENDER = "longshot demo"
_DATE = "2026-01-01T00:00:00Z"  # the same start gives the same commit


@dataclass(frozen=True)
class Demo:
    repository: Path  # bare, branch main
    request: str
    script: Path  # for the scripted model


def prepare(folder: Path) -> Demo:
    """A bare repository `almanac.git` in `folder` with the example's start; raises RepositoryError."""
    repository = _planted(folder, "almanac", "SPEC.md: a pocket almanac")
    return Demo(repository, REQUEST, shipped("examples/almanac/script.toml"))


def prepare_many(folder: Path) -> Demo:
    """`phrasebook.git`, of which twenty tasks are worked on at the same time; raises RepositoryError."""
    repository = _planted(folder, "phrasebook", "SPEC.md: a phrasebook")
    script = folder / "script.json"
    phrasebook.write_script(script)
    return Demo(repository, "Build the phrasebook according to SPEC.md", script)


def _planted(folder: Path, name: str, message: str) -> Path:
    repository = folder / f"{name}.git"
    start = shipped(f"examples/{name}/start")
    folder.mkdir(parents=True, exist_ok=True)
    _git("init", "--quiet", "--bare", "--initial-branch=main", str(repository))
    with tempfile.TemporaryDirectory(prefix="longshot-demo-") as scratch:
        work = ("--git-dir", str(repository), "--work-tree", str(start))
        index = {"GIT_INDEX_FILE": str(Path(scratch) / "index")}
        _git(*work, "add", "--all", ".", extra=index, cwd=start)
        _git(*work, "commit", "--quiet", "--message", message, extra=index, cwd=start)
    return repository


def verify(repository: Path) -> tuple[bool, str]:
    """Unit and acceptance tests on a clean checkout of main: (all green, what they printed)."""
    with tempfile.TemporaryDirectory(prefix="longshot-demo-") as scratch:
        checkout = Path(scratch) / repository.stem
        _git("clone", "--quiet", "--branch", "main", str(repository), str(checkout))
        return run_tests(checkout, "test", "acceptance")


def run_tests(checkout: Path, *targets: str) -> tuple[bool, str]:
    """`make` these targets in `checkout`: (all green, output)."""
    try:
        done = subprocess.run(
            ["make", "--keep-going", *targets],
            cwd=checkout,
            env={**_quiet_environment(), "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return False, f"make {' '.join(targets)} took longer than {_TIMEOUT_S} s"
    except OSError as missing:
        return False, f"make: {missing.strerror}"
    return done.returncode == 0, done.stdout


def _quiet_environment() -> dict[str, str]:
    """The caller's environment without what would make `make` or `git` behave as part of another run."""
    drop = ("GIT_", "MAKE", "MFLAGS", "PYTHON")
    return {name: value for name, value in os.environ.items() if not name.startswith(drop)}


def _git(*arguments: str, extra: dict[str, str] | None = None, cwd: Path | None = None) -> None:
    identity = {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in _identity().items()}
    settings = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_TERMINAL_PROMPT": "0"}
    done = subprocess.run(
        ["git", *arguments],
        cwd=cwd,
        env={**_quiet_environment(), **settings, **identity, **(extra or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=_TIMEOUT_S,
    )
    if done.returncode:
        raise RepositoryError(f"git {arguments[0]}: {done.stderr.strip().splitlines()[-1:] or ['failed']}")


def _identity() -> dict[str, str]:
    return {"NAME": _SENDER, "EMAIL": "demo@longshot.invalid", "DATE": _DATE}
