"""Takes the bodies out of Python source: what is left imports, has every name and signature, and does nothing."""

import ast
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

from longshot_dagster.core.errors import WrongUse

RAISE = "raise NotImplementedError"
_LINE_END = re.compile(r"\r\n|\r|\n")

Definition = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Emptied:
    """One module without its bodies; `functions` and `kept` are `name:line` in the order of the file."""

    source: str
    functions: tuple[str, ...]
    kept: tuple[str, ...]


def text_of(data: bytes) -> str | None:
    """The source as a model could write it again, byte for byte; None for another encoding than UTF-8 without a mark."""
    try:
        encoding, _ = tokenize.detect_encoding(BytesIO(data).readline)
        text = data.decode("utf-8")
    except (SyntaxError, UnicodeDecodeError):
        return None
    return text if encoding == "utf-8" else None


def emptied(source: str, called: frozenset[tuple[int, str]] = frozenset()) -> Emptied:
    """`source` with every function body but its docstring replaced, except those `called` (first line, name).

    The first line of a decorated function is that of its first decorator, as in its code object. Functions within one
    that is kept are emptied like any other. Raises WrongUse for what is not Python.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as wrong:
        raise WrongUse(f"this is not Python {_version()}: {wrong}") from None
    taken: list[Definition] = []
    kept: list[Definition] = []
    for function in _functions(tree, called):
        (kept if (_first_line(function), function.name) in called else taken).append(function)
    text = _Text(source)
    for function in reversed(taken):
        _empty(text, function)
    result = text.joined()
    compile(result, "<emptied>", "exec", dont_inherit=True)
    return Emptied(result, tuple(map(_shown, taken)), tuple(map(_shown, kept)))


class _Text:
    """Source as lines of UTF-8, which is how the parser counts columns."""

    def __init__(self, source: str) -> None:
        ends = [found.end() for found in _LINE_END.finditer(source)]
        starts = [0, *ends]
        self._lines = [source[a:b].encode() for a, b in zip(starts, [*ends, len(source)], strict=True)]

    def replace(self, start: tuple[int, int], end: tuple[int, int], new: str) -> None:
        """(line from 1, column in bytes) each."""
        (first, left), (last, right) = start, end
        head, tail = self._lines[first - 1][:left], self._lines[last - 1][right:]
        self._lines[first - 1 : last] = [head + new.encode() + tail, *[b""] * (last - first)]

    def before(self, line: int, column: int) -> str:
        return self._lines[line - 1][:column].decode()

    def joined(self) -> str:
        return b"".join(self._lines).decode()


def _functions(node: ast.AST, called: frozenset[tuple[int, str]]) -> Iterator[Definition]:
    """Every function in order, without those inside a body that goes."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
            if (_first_line(child), child.name) not in called:
                continue
        yield from _functions(child, called)


def _empty(text: _Text, function: Definition) -> None:
    first, last = function.body[0], function.body[-1]
    if ast.get_docstring(function, clean=False) is not None:
        if first is last:
            end = _end(first)
            indent = text.before(first.lineno, first.col_offset)
            text.replace(end, end, f"; {RAISE}" if indent.strip() else f"\n{indent}{RAISE}")
            return
        first = function.body[1]
    text.replace(_start(first), _end(last), RAISE)


def _start(statement: ast.stmt) -> tuple[int, int]:
    decorators = getattr(statement, "decorator_list", [])
    return (decorators[0].lineno if decorators else statement.lineno), statement.col_offset


def _end(statement: ast.stmt) -> tuple[int, int]:
    assert statement.end_lineno is not None and statement.end_col_offset is not None
    return statement.end_lineno, statement.end_col_offset


def _first_line(function: Definition) -> int:
    return _start(function)[0]


def _shown(function: Definition) -> str:
    return f"{function.name}:{function.lineno}"


def _version() -> str:
    import sys

    return ".".join(map(str, sys.version_info[:2]))
