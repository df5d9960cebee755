"""The house's walls, checked by really importing: beside import-linter, which reads the source."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("dagster", "modal", "pandas", "pydantic_ai", "openai", "git", "aiohttp")


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _modules(folder: Path) -> list[str]:
    files = (f for f in folder.rglob("*.py") if "_shipped" not in f.parts)
    return sorted(str(f.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__") for f in files)


def test_core_imports_where_nothing_but_pydantic_is_installed():
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in (*HEAVY, "upath", "click", "rich", "starlette"))
    imports = "; ".join(f"import {m}" for m in _modules(ROOT / "longshot_dagster" / "core"))
    _python(f"import sys; {blocked}; {imports}")


def test_adapters_import_without_dagster_and_load_nothing_heavy():
    imports = "; ".join(f"import {m}" for m in _modules(ROOT / "longshot_dagster" / "adapters"))
    heavy = [m for m in HEAVY if m not in ("git", "aiohttp")]
    loaded = _python(
        f"import sys; sys.modules['dagster'] = None; {imports}; print([m for m in {heavy} if sys.modules.get(m)])"
    )
    assert loaded == "[]"


def test_the_command_starts_without_its_heavy_libraries():
    loaded = _python(f"import sys, longshot_dagster.cli.main; print([m for m in {HEAVY} if m in sys.modules])")
    assert loaded == "[]"


def test_package_inits_are_empty():
    inits = [f for f in (ROOT / "longshot_dagster").rglob("__init__.py") if "_shipped" not in f.parts]
    assert [f for f in inits if f.read_text(encoding="utf-8").strip()] == []


def test_what_runs_in_the_sandbox_is_standard_library_and_python_3_9():
    for file in (ROOT / "sandbox").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file), feature_version=(3, 9))
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                top = name.split(".")[0]
                assert top in sys.stdlib_module_names or top == "longshot_worker", f"{file.name} imports {name}"


def test_no_process_of_ours_imports_from_the_folder_it_was_started_in():
    """`python -m` without -P would: in a hostile checkout, with the keys on its standard input.

    What the supervisor starts as `python` has a folder of ours for its own.
    """
    for file in (f for f in (ROOT / "longshot_dagster").rglob("*.py") if "_shipped" not in f.parts):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            words = [ast.unparse(e) for e in node.elts[:3]] if isinstance(node, ast.List | ast.Tuple) else []
            if words[:1] == ["sys.executable"] and "'-m'" in words:
                assert words[1] == "'-P'", f"{file.relative_to(ROOT)}:{node.lineno}"
