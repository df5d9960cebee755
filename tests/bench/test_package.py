"""A source distribution made ready: where its imports begin, which modules lose their bodies, what its tests need."""

import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from restoring import package, suite
from restoring.emptying import RAISE
from restoring.package import Package

from longshot_dagster.adapters.sandboxes.sandbox_local import LocalProvider
from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.settings import Isolation

FILES = {
    "pyproject.toml": '[project]\nname = "toy"\n[dependency-groups]\ntest = ["pytest", {include-group = "more"}]\nmore = ["hypothesis>=6"]\nDev = ["sphinx"]\n',
    "tox.ini": "[testenv]\ndeps =\n    attrs\n    py27: mock\n    -e .\n    {envdir}/x\n",
    "requirements-test.txt": "iniconfig\n",
    "src/toy/__init__.py": "from toy._version import VERSION\nfrom toy.sums import add\n__all__ = ['VERSION', 'add']\n",
    "src/toy/sums.py": (
        "def registered(f):\n    TABLE[f.__name__] = f\n    return f\n\nTABLE = {}\n\n"
        '@registered\ndef add(a, b):\n    """The sum."""\n    return a + b\n\ndef twice(a):\n    return add(a, a)\n'
    ),
    "src/toy/odd.py": "import not_installed_anywhere\ndef f(): return 1\n",
    "src/toy/__main__.py": "def main():\n    print('hello')\n\nmain()\n",
    "src/toy/tests/test_inside.py": "def test_nothing():\n    pass\n",
    "tests/test_sums.py": (
        "from toy.sums import TABLE, add, twice\n\n\ndef test_add():\n    assert add(1, 2) == 3\n\n\n"
        "def test_twice():\n    assert twice(4) == 8\n\n\ndef test_table():\n    assert 'add' in TABLE\n"
    ),
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """As it is unpacked; `archive` beside it is what it came from."""
    for name, text in FILES.items():
        path = tmp_path / "toy-1.0" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    with tarfile.open(tmp_path / "toy-1.0.tar.gz", "w:gz") as packed:
        packed.add(tmp_path / "toy-1.0", "toy-1.0")
    package.unpack(tmp_path / "toy-1.0.tar.gz", tmp_path / "source")
    return tmp_path / "source"


def installed(source: Path) -> dict[str, Any]:
    """What an installer would have made of it: its modules, and one that only the build writes."""
    site = source.parent / "site"
    shutil.copytree(source / "src/toy", site / "toy")
    (site / "toy/_version.py").write_text("VERSION = '1.0'\n", encoding="utf-8")
    names = [str(p.relative_to(site)) for p in site.rglob("*.py")]
    return {"files": [*names, "toy-1.0.dist-info/RECORD", "../../../bin/toy"], "site": str(site)}


def toy(source: Path) -> Package:
    return package.found("toy==1.0", source, Path(sys.executable), installed(source))


def test_modules_lose_their_bodies_and_tests_and_what_runs_at_import_do_not(source: Path) -> None:
    made = toy(source)
    assert made.root == "src"
    assert [m.path for m in made.modules] == ["src/toy/__main__.py", "src/toy/odd.py", "src/toy/sums.py"]
    assert {m.path: (m.left.functions, m.left.kept) for m in made.modules}["src/toy/sums.py"] == (
        ("add:8", "twice:12"),
        ("registered:1",),
    )
    assert made.notes == (
        "toy.odd does not import here (ModuleNotFoundError: No module named 'not_installed_anywhere')",
    )
    assert (source / "src/toy/_version.py").read_text(encoding="utf-8") == "VERSION = '1.0'\n", "what a build writes"
    assert [p for p in (source.parent / "site").rglob("*") if p.is_file()] == [], "it is imported from a checkout"
    made.empty()
    assert (source / "src/toy/sums.py").read_text(encoding="utf-8").count(RAISE) == 2
    assert (source / "src/toy/tests/test_inside.py").read_text(encoding="utf-8") == FILES[
        "src/toy/tests/test_inside.py"
    ]


def test_a_package_that_does_not_import_without_its_bodies_is_refused(source: Path) -> None:
    # Nothing calls `f` at import, but something looks at what it is.
    trick = "import inspect\ndef f():\n    yield 1\nassert inspect.isgeneratorfunction(f), 'f yields'\n"
    (source / "src/toy/sums.py").write_text(trick, encoding="utf-8")
    (source / "src/toy/__init__.py").write_text("", encoding="utf-8")
    with pytest.raises(
        WrongUse, match=r"toy==1\.0 does not import without its bodies: toy\.sums: AssertionError: f yields"
    ):
        toy(source).empty()


def test_what_the_tests_need_is_read_wherever_packages_say_it(source: Path) -> None:
    assert package.grouped(source, package.TESTING) == ["pytest", "hypothesis>=6"]
    assert package.grouped(source, package.DEVELOPING) == ["sphinx"]
    assert package.test_files(source) == ["attrs", "-r", str(source / "requirements-test.txt")]
    (source / "pyproject.toml").write_text("not [toml", encoding="utf-8")
    (source / "tox.ini").write_text("no ini", encoding="utf-8")
    assert package.grouped(source, package.TESTING) == []
    assert package.test_files(source)[0] == "-r"


@pytest.mark.parametrize("name", ["toy", "toy>=1", "toy==1 --index-url x", "-r==1", "../toy==1"])
def test_anything_but_a_name_and_a_version_is_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match="is not NAME==VERSION"):
        package.download(name, tmp_path)


def test_an_archive_without_its_one_folder_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "flat-1.tar.gz", "w:gz") as packed:
        packed.add(__file__, "setup.py")
    with pytest.raises(WrongUse, match=r"flat-1\.tar\.gz is not a source distribution: it has 0 folders"):
        package.unpack(tmp_path / "flat-1.tar.gz", tmp_path / "into")


def test_the_suite_is_green_with_its_bodies_and_red_without(source: Path) -> None:
    from restoring.loop import changed_files, make_repository

    made, folder = toy(source), source.parent
    shutil.rmtree(source / "src/toy/tests")
    tree = make_repository(folder / "whole.git", source, "whole")
    made.empty()
    make_repository(folder / "emptied.git", source, "emptied")
    assert changed_files(folder / "whole.git", tree, folder / "emptied.git") == 3
    provider = LocalProvider(folder / "sandboxes", Isolation.AUTO)
    check = suite.command(Path(sys.prefix) / "bin/python", made.root, ["-o", "addopts="])
    whole, emptied = (
        suite.run(provider, folder / name, check, [sys.prefix], 60) for name in ("whole.git", "emptied.git")
    )
    assert (len(whole.passed), len(whole.red), whole.exit_code) == (3, 0, 0), whole.said
    assert ({t.split("::")[1] for t in emptied.passed}, len(emptied.red), emptied.exit_code) == ({"test_table#1"}, 2, 1)
