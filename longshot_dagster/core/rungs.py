"""The rungs of the conflict ladder that are pure rules: from three versions of a file to the one that both sides meant.

A rung that is not sure says None, and the next one is asked; above the last stands the one fix task.
"""

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol

from longshot_dagster.core import keyed_json, scope
from longshot_dagster.core.settings import RungName

MANIFESTS = frozenset({"package.json", "composer.json", "deno.json", "jsr.json"})
MAX_BYTES = 1 << 20
MAX_LINES = 20_000

_MARKERS = re.compile(rb"^(?:<{7}|\|{7}|>{7})(?: |\r?$)", re.MULTILINE)
_CODE = (".js", ".mjs", ".cjs", ".jsx", ".ts", ".mts", ".cts", ".tsx")
_REEXPORT = re.compile(rb"""export\s+(?:type\s+)?(?:\*(?:\s+as\s+\w+)?|\{[\w\s,$]*\})\s+from\s+(['"])[^'"\\]*\1;?""")


@dataclass(frozen=True)
class Sides:
    """One conflicted file: `base` before both, `ours` as it is on the landing branch, `theirs` as the task left it."""

    path: str
    base: bytes | None
    ours: bytes
    theirs: bytes


class Rung(Protocol):
    @property
    def name(self) -> RungName: ...

    def resolve(self, sides: Sides) -> bytes | None:
        """The file as it is to land, or None: not this rung's."""


@dataclass(frozen=True)
class Union:
    """Both sides' new lines, one after the other, in files that only ever grow.

    `patterns` match a file's name, or its whole path when they hold a slash. Only where neither side took a line away;
    of source files only those that do nothing but re-export; never JSON, never a lock file.
    """

    patterns: tuple[str, ...]
    name: RungName = RungName.UNION

    def resolve(self, sides: Sides) -> bytes | None:
        versions = (sides.base or b"", sides.ours, sides.theirs)
        if not self._allows(sides.path) or any(b"\0" in v for v in versions):
            return None
        if sides.path.endswith(_CODE) and not all(map(_only_reexports, versions)):
            return None
        lines = [_lines(v) for v in versions]
        if max(map(len, lines)) > MAX_LINES:
            return None
        joined = _joined(*lines)
        if joined is None:
            return None
        ends = any(v.endswith(b"\n") for v in versions[1:])
        return b"".join(joined) if ends else b"".join(joined).removesuffix(b"\n")

    def _allows(self, path: str) -> bool:
        name = posixpath.basename(path)
        if name.lower().endswith((".json", ".jsonc", ".json5")) or name in scope.LOCK_FILES:
            return False
        return any(fnmatchcase(path if "/" in p else name, p) for p in self.patterns)


@dataclass(frozen=True)
class KeyedJson:
    """Manifests like package.json, key by key."""

    name: RungName = RungName.JSON

    def resolve(self, sides: Sides) -> bytes | None:
        if posixpath.basename(sides.path) not in MANIFESTS:
            return None
        try:
            base = None if sides.base is None else sides.base.decode()
            merged = keyed_json.merged(base, sides.ours.decode(), sides.theirs.decode())
        except UnicodeDecodeError:
            return None
        return None if merged is None else merged.encode()


@dataclass(frozen=True)
class KeptLockFile:
    """The landing branch's lock file: its own tool makes it anew once the batch is merged."""

    name: RungName = RungName.LOCK_FILES

    def resolve(self, sides: Sides) -> bytes | None:
        return sides.ours if posixpath.basename(sides.path) in scope.LOCK_FILES else None


def pure_rungs(wanted: frozenset[RungName], union_paths: tuple[str, ...]) -> tuple[Rung, ...]:
    """Those that are switched on, in the order in which they are asked."""
    found: tuple[Rung, ...] = (Union(union_paths), KeyedJson(), KeptLockFile())
    return tuple(rung for rung in found if rung.name in wanted)


def has_markers(content: bytes) -> bool:
    """Does it hold a line that git marks conflicts with?"""
    return _MARKERS.search(content) is not None


def _lines(content: bytes) -> list[bytes]:
    lines = content.splitlines(keepends=True) if b"\r" not in content else _on_newlines(content)
    if lines and not lines[-1].endswith(b"\n"):
        lines[-1] += b"\n"
    return lines


def _on_newlines(content: bytes) -> list[bytes]:
    """`splitlines` would also part at a lone carriage return."""
    return [line for line in re.split(rb"(?<=\n)", content) if line]


def _joined(base: Sequence[bytes], ours: Sequence[bytes], theirs: Sequence[bytes]) -> list[bytes] | None:
    mine, other = _added(base, ours), _added(base, theirs)
    if mine is None or other is None:
        return None
    found: list[bytes] = []
    for at in range(len(base) + 1):
        there = set(mine[at])
        found += mine[at]
        found += other[at] if not there else [x for x in other[at] if not x.strip() or x not in there]
        found += base[at : at + 1]
    return found


def _added(base: Sequence[bytes], side: Sequence[bytes]) -> list[list[bytes]] | None:
    """The lines that `side` has before each line of `base`, and after its last; None when it lacks one of them."""
    head = _common(base, side)
    tail = _common(base[head:][::-1], side[head:][::-1])
    added: list[list[bytes]] = [[] for _ in range(len(base) + 1)]
    at, end = head, len(base) - tail
    for line in side[head : len(side) - tail]:
        if at < end and line == base[at]:
            at += 1
        else:
            added[at].append(line)
    return added if at == end else None


def _common(a: Sequence[bytes], b: Sequence[bytes]) -> int:
    """Length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _only_reexports(content: bytes) -> bool:
    lines = (line.strip() for line in content.split(b"\n"))
    return all(not line or line.startswith(b"//") or _REEXPORT.fullmatch(line) for line in lines)
