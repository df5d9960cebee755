"""Which repository paths a task may change, and which paths nobody's agent may ever land."""

import posixpath
import re
from collections.abc import Iterable

from longshot_dagster.core.errors import WrongUse

# Written by tools, never by hand: regenerated in one place, never landed from a worker (facts: 92 % of branches with
# a lock file conflicted).
LOCK_FILES = frozenset(
    [
        "package-lock.json",
        "npm-shrinkwrap.json",
        "yarn.lock",
        "pnpm-lock.yaml",
        "bun.lockb",
        "bun.lock",
        "uv.lock",
        "poetry.lock",
        "pdm.lock",
        "Pipfile.lock",
        "Cargo.lock",
        "go.sum",
        "Gemfile.lock",
        "composer.lock",
        "flake.lock",
    ]
)
BUILD_OUTPUT = frozenset(
    [
        "node_modules",
        "__pycache__",
        ".venv",
        "venv",
        "dist",
        "build",
        "target",
        ".next",
        ".turbo",
        ".cache",
        ".pytest_cache",
        ".mypy_cache",
        ".ruff_cache",
        ".tox",
        "coverage",
        ".coverage",
        "htmlcov",
        ".eggs",
        ".DS_Store",
    ]
)
_MAX_PATH = 4096
# Nothing in it can mean anything else anywhere: no part begins or ends with a dot.
_PLAIN = re.compile(r"(?:[\w-]+(?:\.[\w-]+)*/)*[\w-]+(?:\.[\w-]+)*/?", re.ASCII)


def normalise(path: str) -> str:
    """One repository path, relative and with forward slashes; a trailing slash (a directory) is kept.

    Raises WrongUse for what can never be a path in a repository: absolute, `..`, `.git` in any spelling git or a
    case-blind file system would take for it, control characters, empty, longer than 4,096 characters.
    """
    if len(path) <= _MAX_PATH and _PLAIN.fullmatch(path):
        return path
    text = path.strip().replace("\\", "/")
    if not text or len(text) > _MAX_PATH or any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise WrongUse(f"{text[:80]!r} is not a repository path")
    if text.startswith(("/", "~")) or re.match(r"[A-Za-z]:", text):
        raise WrongUse(f"{text[:80]!r} is absolute; paths are relative to the repository's root")
    directory = text.endswith("/")
    parts = [p for p in text.split("/") if p not in ("", ".")]
    if ".." in parts:
        raise WrongUse(f"{text[:80]!r} leaves the repository")
    if any(_is_git_directory(p) for p in parts):
        raise WrongUse(f"{text[:80]!r} lies inside .git")
    if not parts:
        raise WrongUse(f"{text[:80]!r} names the whole repository; name its files or directories")
    return posixpath.join(*parts) + ("/" if directory else "")


def _is_git_directory(part: str) -> bool:
    """git's own protections: .git, case-folded, NTFS short name and trailing dots/spaces, HFS ignorable characters."""
    plain = "".join(c for c in part if c not in "\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\ufeff").lower()
    plain = plain.split(":")[0].rstrip(". ")
    return plain in (".git", "git~1")


def normalise_all(paths: Iterable[str]) -> tuple[str, ...]:
    """`paths` normalised, without duplicates, in their first order."""
    return tuple(dict.fromkeys(normalise(p) for p in paths))


def covers(scope: Iterable[str], path: str) -> bool:
    """Is `path` one of the scope's files, or below one of its entries taken as a directory?"""
    return any(path == entry.rstrip("/") or path.startswith(entry.rstrip("/") + "/") for entry in scope)


def within(inner: Iterable[str], outer: Iterable[str]) -> bool:
    """Is every entry of `inner` covered by `outer`? (A subplanner's tasks stay inside its own scope.)"""
    outer = tuple(outer)
    return all(covers(outer, entry.rstrip("/")) for entry in inner)


def overlap(a: Iterable[str], b: Iterable[str]) -> tuple[str, ...]:
    """Entries of `a` that lie below, above or at an entry of `b`."""
    b = tuple(b)
    return tuple(x for x in a if covers(b, x.rstrip("/")) or any(covers((x,), y.rstrip("/")) for y in b))


class Neighbours:
    """Which of many scopes overlap with one, without comparing it with each: a plan may have a thousand tasks."""

    def __init__(self) -> None:
        self._at: dict[str, list[int]] = {}
        self._above: dict[str, list[int]] = {}  # a directory -> scopes with an entry below it

    def add(self, number: int, scope: Iterable[str]) -> None:
        for entry in {path.rstrip("/") for path in scope}:
            self._at.setdefault(entry, []).append(number)
            for directory in _directories(entry):
                self._above.setdefault(directory, []).append(number)

    def of(self, scope: Iterable[str]) -> list[int]:
        """Numbers of the scopes added so far that `overlap` with this one, ascending."""
        found: set[int] = set()
        for entry in {path.rstrip("/") for path in scope}:
            found.update(self._at.get(entry, ()), self._above.get(entry, ()))
            for directory in _directories(entry):
                found.update(self._at.get(directory, ()))
        return sorted(found)


def _directories(path: str) -> Iterable[str]:
    """Every directory above `path`."""
    return (path[:at] for at, letter in enumerate(path) if letter == "/")


def is_generated(path: str) -> bool:
    """Lock files and build output: no worker lands them."""
    parts = path.split("/")
    return parts[-1] in LOCK_FILES or any(p in BUILD_OUTPUT for p in parts) or parts[-1].endswith((".pyc", ".pyo"))
