"""What an installation outside a checkout gets: a real wheel and sdist, built from a tree with everything lying around."""

import ast
import email
import hashlib
import importlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from longshot_dagster.adapters.sandboxes.worker_archive import worker_archive
from longshot_dagster.version import __version__

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SHIPPED = ("prompts", "sandbox", "examples", "dagster.yaml", "workspace.yaml")
LEFT_LYING = (
    ".env",
    "longshot_dagster/.env",
    "examples/.env",
    "examples/almanac/start/.env",
    "examples/almanac/start/.pytest_cache/README.md",
    "examples/.hypothesis/unicode_data",
    "prompts/worker.md~",
    "sandbox/longshot_worker/__pycache__/relay.cpython-311.pyc",
)


@dataclass(frozen=True)
class Built:
    wheel: Path
    sdist: Path
    unpacked: Path  # as in a site-packages folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    tree = tmp_path_factory.mktemp("tree") / "longshot"
    tree.mkdir()
    for name in ("longshot_dagster", *SHIPPED, "pyproject.toml", ".gitignore", "README.md", "LICENSE"):
        _copy(ROOT / name, tree / name)
    for name in LEFT_LYING:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("LLM_API_KEY=sk-of-a-person", encoding="utf-8")
    argv = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", str(tree.parent / "dist")]
    done = subprocess.run(argv, cwd=tree, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tree.parent / "dist").glob("*.whl")
    (sdist,) = (tree.parent / "dist").glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tree.parent / "site")
    return Built(wheel, sdist, tree.parent / "site")


def test_the_wheel_holds_every_file_and_nothing_that_lay_around(built: Built) -> None:
    expected = {f"longshot_dagster/{name}" for name in _files(ROOT / "longshot_dagster")}
    for name in SHIPPED:
        path = ROOT / name
        expected |= {f"longshot_dagster/_shipped/{name}/{file}" for file in _files(path)} if path.is_dir() else set()
        expected |= {f"longshot_dagster/_shipped/{name}"} if path.is_file() else set()
    with zipfile.ZipFile(built.wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert found == expected
    assert "longshot_dagster/_shipped/examples/almanac/start/.gitignore" in found


def test_no_key_of_a_person_is_in_what_is_published(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        contents = [archive.extractfile(member).read() for member in archive if member.isfile()]  # type: ignore[union-attr]
    contents += [path.read_bytes() for path in built.unpacked.rglob("*") if path.is_file()]
    assert len(contents) > 200
    assert [text for text in contents if b"sk-of-a-person" in text] == []


def test_outside_a_checkout_the_package_finds_all_it_needs(built: Built, tmp_path: Path) -> None:
    code = """
import sys, hashlib, pathlib
sys.path.insert(0, sys.argv[1])
from longshot_dagster.adapters.host.shipped import prompt, shipped
from longshot_dagster.adapters.sandboxes.worker_archive import worker_archive
from longshot_dagster.testing.demo import prepare
from longshot_dagster.testing.script import load
for name in sys.argv[2:]:
    assert shipped(name).is_relative_to(pathlib.Path(sys.argv[1], "longshot_dagster/_shipped")), shipped(name)
for role in ("root-planner", "subplanner", "worker", "reconciler"):
    assert prompt(role).startswith("You are ")
demo = prepare(pathlib.Path("example").resolve())
load(demo.script)
print(demo.repository, hashlib.sha256(worker_archive()).hexdigest())
"""
    argv = [sys.executable, "-P", "-c", code, str(built.unpacked), *SHIPPED]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    repository, worker = done.stdout.split()
    assert worker == hashlib.sha256(worker_archive()).hexdigest()
    argv = ["git", "--git-dir", repository, "ls-tree", "-r", "--name-only", "main"]
    tree = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True).stdout.split()
    assert sorted(tree) == sorted(_files(ROOT / "examples/almanac/start"))


def test_the_package_says_its_version_and_its_command(built: Built) -> None:
    (info,) = built.unpacked.glob("*.dist-info")
    metadata = email.message_from_string((info / "METADATA").read_text(encoding="utf-8"))
    assert (metadata["Name"], metadata["Version"]) == ("longshot-dagster", __version__)
    assert f"\n## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "longshot = longshot_dagster.cli.main:main" in (info / "entry_points.txt").read_text(encoding="utf-8")
    module, _, function = PROJECT["scripts"]["longshot"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_every_library_that_is_imported_is_a_declared_dependency() -> None:
    extras = [r for name, extra in PROJECT["optional-dependencies"].items() if name != "dev" for r in extra]
    declared = {_bare_name(requirement) for requirement in [*PROJECT["dependencies"], *extras]}
    providers = packages_distributions()
    undeclared = {}
    for file in (ROOT / "longshot_dagster").rglob("*.py"):
        for module in _imported(file):
            if module in sys.stdlib_module_names or module == "longshot_dagster":
                continue
            if not declared & {name.lower().replace("_", "-") for name in providers.get(module, [module])}:
                undeclared[module] = file.name
    assert undeclared == {}


@pytest.mark.parametrize("python", ["no-such-python", "false"])
def test_make_without_a_fitting_python_says_so_in_one_line(tmp_path: Path, python: str) -> None:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    argv = ["make", "demo", f"PYTHON={python}"]
    done = subprocess.run(argv, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False)
    said = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert said == [f"longshot needs Python 3.11 to 3.13 and finds none as {python}; make PYTHON=/path/to/python3.12"]
    assert done.returncode == 2
    assert not (tmp_path / ".venv").exists()


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def _files(folder: Path) -> list[str]:
    """Paths below `folder`, without what a run of Python leaves there."""
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return [path.relative_to(folder).as_posix() for path in files]


def _imported(file: Path) -> set[str]:
    """Top-level names of everything `file` imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def _bare_name(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    assert found is not None, requirement
    return found.group().lower().replace("_", "-")


def test_the_newest_entry_of_the_changelog_is_this_version() -> None:
    headings = re.findall(r"^## (\S+) — (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0][0] == __version__
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", date) for _, date in headings[1:]), "what came before is released"
