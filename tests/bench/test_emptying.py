"""Bodies go, everything else stays: names, signatures, decorators, docstrings, comments, and whatever runs at import."""

import ast
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from restoring.emptying import RAISE, emptied, text_of

from longshot_dagster.core.errors import WrongUse

CASES = {
    "a body goes, its docstring and what surrounds it stay": (
        'LIMIT = 3\n\ndef f(x: int = LIMIT) -> int:\n    """Doubles."""\n    # how\n    y = x\n    return 2 * y\n\nlast = 1\n',
        f'LIMIT = 3\n\ndef f(x: int = LIMIT) -> int:\n    """Doubles."""\n    # how\n    {RAISE}\n\nlast = 1\n',
    ),
    "on one line": ("def f(): return 1\n", f"def f(): {RAISE}\n"),
    "several statements on one line": ("def f(): a = 1; return a  # why\n", f"def f(): {RAISE}  # why\n"),
    "nothing but a docstring": ('def f():\n    """Says."""\n', f'def f():\n    """Says."""\n    {RAISE}\n'),
    "nothing but a docstring, on one line": ('def f(): "Says."\n', f'def f(): "Says."; {RAISE}\n'),
    "a body that begins with a decorator": (
        "def f():\n    @wraps\n    def g():\n        return 1\n    return g\n",
        f"def f():\n    {RAISE}\n",
    ),
    "methods, properties and what is async": (
        "class A:\n    n = 1\n    @property\n    def p(self): return 1\n    async def q(self):\n        await x\n",
        f"class A:\n    n = 1\n    @property\n    def p(self): {RAISE}\n    async def q(self):\n        {RAISE}\n",
    ),
    "columns are counted in bytes": ('def f(): "ü"; return "ß" + "🙂"  # é\n', f'def f(): "ü"; {RAISE}  # é\n'),
    "foreign line ends": (
        "def f():\r\n    a\r\n    b\r\ndef g():\r\n    c\r\n",
        f"def f():\r\n    {RAISE}\r\ndef g():\r\n    {RAISE}\r\n",
    ),
    "no line end at all": ("def f():\n\treturn (\n1)", f"def f():\n\t{RAISE}"),
    "a lambda is no function": ("f = lambda: 1\n", "f = lambda: 1\n"),
}


@pytest.mark.parametrize(("source", "expected"), CASES.values(), ids=CASES)
def test_what_is_left(source: str, expected: str) -> None:
    assert emptied(source).source == expected


def test_what_runs_at_import_is_kept_and_said_but_not_what_it_only_returns() -> None:
    source = "@first\ndef decorate(f):\n    def wrapped():\n        return f()\n    return wrapped\n\ndef g():\n    return 1\n"
    left = emptied(source, frozenset({(1, "decorate")}))
    assert left.source == source.replace("return f()", RAISE).replace("return 1", RAISE)
    assert (left.functions, left.kept) == (("wrapped:3", "g:7"), ("decorate:2",))


def by_tree(source: str) -> ast.Module:
    """The same, done to the tree instead of the text."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            documented = ast.get_docstring(node, clean=False) is not None
            node.body = [*node.body[: int(documented)], *ast.parse(RAISE).body]
    return tree


@pytest.mark.parametrize("name", ["argparse", "asyncio/tasks", "dataclasses", "functools", "heapq"])
def test_only_bodies_have_changed_in_real_modules(name: str) -> None:
    source = (Path(sysconfig.get_paths()["stdlib"]) / f"{name}.py").read_text(encoding="utf-8")
    left = emptied(source)
    assert ast.dump(ast.parse(left.source)) == ast.dump(by_tree(source))
    assert len(left.functions) > 5
    assert left.kept == ()


def test_what_is_no_python_is_one_line() -> None:
    with pytest.raises(WrongUse, match="this is not Python 3"):
        emptied("print 'hello'\n")


def test_only_what_a_model_can_write_again_byte_for_byte_is_taken() -> None:
    assert text_of("a = 'ü'\r\n".encode()) == "a = 'ü'\r\n"
    assert text_of("# coding: latin-1\na = 'ü'\n".encode("latin-1")) is None
    assert text_of(b"# coding: latin-1\na = 1\n") is None
    assert text_of(b"\xef\xbb\xbfa = 1\n") is None
    assert text_of(b"a = '\xff'\n") is None


def test_what_an_import_calls_is_found_in_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(
        "print('noise')\ndef used(): return 1\ndef unused(): return 2\nVALUE = used()\n", encoding="utf-8"
    )
    (tmp_path / "two.py").write_text("raise SystemExit('not here')\n", encoding="utf-8")
    script = Path(__file__).resolve().parent.parent.parent / "bench/restoring/importing.py"
    argv = [sys.executable, "-B", str(script), str(tmp_path), "one", "two"]
    done = subprocess.run(argv, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True)
    assert done.stdout == (
        '{"called": [["one.py", 1, "<module>"], ["one.py", 2, "used"], ["two.py", 1, "<module>"]], '
        '"failed": {"two": "SystemExit: not here"}}\n'
    )
