"""A source distribution made ready: unpacked, its tests' libraries in a venv, its modules known; nothing about any one package."""

import configparser
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longshot_dagster.core.errors import WrongUse
from restoring.emptying import Emptied, emptied, text_of

_PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input", "-q")
_PIP_SECONDS = 1_200
_IMPORT_SECONDS = 300
TESTING = ("test", "tests", "testing")
DEVELOPING = ("dev", "develop", "development")
_REQUIREMENT_FILES = (
    "requirements*test*.txt",
    "test*requirements*.txt",
    "requirements/test*.txt",
    "test*/require*.txt",
)
# Runs in the venv. What an installer wrote down is the one list of a package's files that every build tool keeps.
_INSTALLED = """
import importlib.metadata, json, sys, sysconfig
found = importlib.metadata.distribution(sys.argv[1])
pure = "root-is-purelib: true" in (found.read_text("WHEEL") or "").lower()
extras = found.metadata.get_all("Provides-Extra") or []
print(json.dumps({"files": [str(f) for f in found.files or []], "pure": pure, "extras": extras,
                  "name": found.metadata["Name"], "site": sysconfig.get_paths()["purelib"]}))
"""


@dataclass(frozen=True)
class Module:
    """One module whose bodies go: its path in the repository, what it was and what is left."""

    path: str
    source: str
    left: Emptied


@dataclass(frozen=True)
class Package:
    """`requirement` as it was asked for; `source` is a checkout of it, `root` where imports begin in it (`` or `src`).

    `spare` is what its developers have installed: arguments of pip, for a suite that needs more than it says.
    """

    requirement: str
    source: Path
    root: str
    python: Path
    modules: tuple[Module, ...]
    notes: tuple[str, ...]
    spare: tuple[str, ...] = ()

    @property
    def functions(self) -> int:
        return sum(len(m.left.functions) for m in self.modules)

    @property
    def kept(self) -> int:
        return sum(len(m.left.kept) for m in self.modules)

    def install_spare(self) -> None:
        """Raises WrongUse."""
        pip(self.python, "install", *self.spare)

    def empty(self) -> None:
        """Take the bodies out of `source`; raises WrongUse when it no longer imports."""
        for module in self.modules:
            (self.source / module.path).write_text(module.left.source, encoding="utf-8", newline="")
        names = [name for m in self.modules if (name := _module_name(m.path, self.root))]
        failed = imports(self.python, self.source / self.root, names)["failed"]
        before = {note.split(" ", 1)[0] for note in self.notes}
        if broken := {name: why for name, why in failed.items() if name not in before}:
            name, why = next(iter(broken.items()))
            raise WrongUse(f"{self.requirement} does not import without its bodies: {name}: {why}")


def prepared(archive: Path, requirement: str, folder: Path, extra: Sequence[str] = ()) -> Package:
    """Unpack `archive`, install it and what its tests need into `folder/venv`, and find its modules. Raises WrongUse."""
    source, python = folder / "source", folder / "venv/bin/python"
    unpack(archive, source)
    if not python.exists():
        make_venv(folder / "venv")
    pip(python, "install", str(archive))
    name = re.split(r"[=<>!~\[ ]", requirement)[0]
    installed = json.loads(run([str(python), "-c", _INSTALLED, name]))
    if not installed["pure"]:
        raise WrongUse(f"{requirement} is not pure Python: its bodies are not all in its source")
    wanted = [_with_extras(archive, source, installed["extras"], kind) for kind in (TESTING, DEVELOPING)]
    pip(python, "install", "pytest", *wanted[0], *test_files(source), *extra)
    return replace(found(requirement, source, python, installed), spare=tuple(wanted[1]))


def download(requirement: str, folder: Path) -> Path:
    """The source distribution of `NAME==VERSION` from the package index pip is set up for."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.!+_-]*", requirement):
        raise WrongUse(f"{requirement[:80]!r} is not NAME==VERSION")
    make_venv(folder / "venv")
    # `--no-binary :all:` would build the build tools from source, too.
    only = ("--no-deps", "--no-binary", requirement.split("==")[0])
    pip(folder / "venv/bin/python", "download", *only, "-d", str(folder / "download"), requirement)
    archives = [f for f in (folder / "download").iterdir() if f.name.endswith((".tar.gz", ".zip"))]
    if len(archives) != 1:
        raise WrongUse(f"{requirement} has no source distribution")
    return archives[0]


def found(requirement: str, source: Path, python: Path, installed: dict[str, Any]) -> Package:
    """The package in `source`, whose own files leave the venv: from now on it is imported from a checkout."""
    site = Path(installed["site"])
    files = [
        f for f in installed["files"] if not f.startswith("..") and ".dist-info/" not in f and "__pycache__" not in f
    ]
    root = _root(source, files)
    for name in files:
        if not (source / root / name).exists() and (site / name).is_file():  # written by the build: a version file, say
            (source / root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(site / name, source / root / name)
    for name in files:
        (site / name).unlink(missing_ok=True)
    paths = sorted(f"{root}/{f}" if root else f for f in files if f.endswith(".py") and not is_test(f))
    names = [name for path in paths if (name := _module_name(path, root))]
    seen = imports(python, source / root, names)
    notes = [f"{name} does not import here ({why})" for name, why in seen["failed"].items()]
    called: dict[str, set[tuple[int, str]]] = {}
    for inside, line, function in seen["called"]:
        called.setdefault(f"{root}/{inside}" if root else inside, set()).add((line, function))
    modules = []
    for path in paths:
        text = text_of((source / path).read_bytes())
        if text is None:
            notes.append(f"{path} is not UTF-8 and stays as it is")
        elif (left := emptied(text, frozenset(called.get(path, ())))).functions:
            modules.append(Module(path, text, left))
    if not modules:
        raise WrongUse(f"{requirement} has no function bodies to restore")
    return Package(requirement, source, root, python, tuple(modules), tuple(notes))


def imports(python: Path, root: Path, modules: Sequence[str]) -> dict[str, Any]:
    """{"called": [[path below `root`, first line, name]], "failed": {module: why}} of importing `modules` in one process."""
    script = Path(__file__).with_name("importing.py")
    answer = run(
        [str(python), "-B", str(script), str(root), *modules], root, {"PYTHONPATH": str(root)}, _IMPORT_SECONDS
    )
    result: dict[str, Any] = json.loads(answer.splitlines()[-1])
    return result


def is_test(path: str) -> bool:
    *folders, name = path.split("/")
    return any(f in ("test", "tests") for f in folders) or name == "conftest.py" or bool(re.match(r"tests?[_.]", name))


def _with_extras(archive: Path, source: Path, extras: Sequence[str], kind: Sequence[str]) -> list[str]:
    named = [name for name in extras if name.lower() in kind]
    return [*([f"{archive}[{','.join(named)}]"] if named else []), *grouped(source, kind)]


def grouped(source: Path, kind: Sequence[str]) -> list[str]:
    """The requirements of the dependency groups that are called one of `kind`."""
    groups = _toml(source / "pyproject.toml").get("dependency-groups", {})
    return [entry for name in groups if name.lower() in kind for entry in _group(groups, name)]


def test_files(source: Path) -> list[str]:
    """What a source distribution says in other files that its tests need, as arguments of `pip install`."""
    wanted: list[str] = []
    tox = configparser.ConfigParser(interpolation=None, strict=False)
    if (source / "tox.ini").is_file():
        with contextlib.suppress(configparser.Error):
            tox.read_string((source / "tox.ini").read_text(encoding="utf-8"))
    lines = [line.strip() for line in tox.get("testenv", "deps", fallback="").splitlines()]
    wanted += [line for line in lines if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._\[\]<>=!~, -]*", line)]
    for pattern in _REQUIREMENT_FILES:
        for file in sorted(source.glob(pattern)):
            wanted += ["-r", str(file)]
    return wanted


def unpack(archive: Path, into: Path) -> None:
    """The one folder inside `archive` becomes `into`."""
    aside = into.with_name(f"{into.name}.unpacked")
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(aside)
    else:
        with tarfile.open(archive) as packed:
            files = [m for m in packed if (m.isfile() or m.isdir()) and _is_inside(m.name)]
            # Python before 3.11.4 knows no filters; without links and ways up there is little left for one to refuse.
            options: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            packed.extractall(aside, members=files, **options)
    folders = [p for p in aside.iterdir() if p.is_dir()]
    if len(folders) != 1:
        raise WrongUse(f"{archive.name} is not a source distribution: it has {len(folders)} folders")
    folders[0].rename(into)
    shutil.rmtree(aside)


def _is_inside(name: str) -> bool:
    return not name.startswith("/") and ".." not in name.split("/")


def make_venv(folder: Path) -> None:
    """A venv on the interpreter that sandboxes have, with pip."""
    run([sys.executable, "-m", "venv", str(folder)], seconds=_PIP_SECONDS)


def pip(python: Path, *arguments: str) -> None:
    run([str(python), *_PIP, *arguments], seconds=_PIP_SECONDS)


def run(argv: Sequence[str], cwd: Path | None = None, more: dict[str, str] | None = None, seconds: float = 120) -> str:
    """Standard output; raises WrongUse with the last line of what it said when it fails."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | (more or {})
    try:
        done = subprocess.run(argv, cwd=cwd, env=environ, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise WrongUse(f"{' '.join(argv[:6])} took longer than {seconds:.0f} s") from None
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise WrongUse(f"{' '.join(argv[:8])[:200]}: {said[-1][:400] if said else f'exit code {done.returncode}'}")
    return done.stdout


def _group(groups: dict[str, Any], name: str, depth: int = 0) -> list[str]:
    wanted: list[str] = []
    for entry in groups.get(name, []) if depth < 10 else []:
        if isinstance(entry, str):
            wanted.append(entry)
        elif isinstance(entry, dict):
            wanted += _group(groups, str(entry.get("include-group", "")), depth + 1)
    return wanted


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _root(source: Path, files: Sequence[str]) -> str:
    """Where imports begin: the folder of `source` below which most of the installed modules lie."""
    modules = [f for f in files if f.endswith(".py")]
    here = [str(p.relative_to(source)) for p in source.rglob("*.py")]
    votes: Counter[str] = Counter()
    for module in modules:
        fitting = [p for p in here if p == module or p.endswith(f"/{module}")]
        if fitting:
            votes[min(fitting, key=len).removesuffix(module).rstrip("/")] += 1
    if not votes:
        raise WrongUse("none of the installed modules is in the source distribution")
    return votes.most_common(1)[0][0]


def _module_name(path: str, root: str) -> str:
    """As it is imported; empty for what runs when it is imported."""
    inside = path.removeprefix(f"{root}/") if root else path
    parts = inside.removesuffix(".py").split("/")
    if parts[-1] == "__main__" or not all(p.isidentifier() for p in parts):
        return ""
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
