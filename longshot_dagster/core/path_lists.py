"""Lists of repository paths as a setting writes them: `default` for the built-in ones, then names, folders and globs.

`AGENTS.md` is a file or folder of that name anywhere, `/ci/` or `deploy/prod` lies at the root, `*` and `?` stay within
one name. An entry covers everything below it. Letters count in no case: a file system may see none.
"""

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass

from longshot_dagster.core.errors import WrongUse

BUILT_IN = "default"
NOTHING = "none"

_MAX_ENTRIES = 200
_MAX_ENTRY = 500


@dataclass(frozen=True)
class PathList:
    """`built_in`: the list stands for what is built in, too."""

    entries: tuple[str, ...] = ()
    built_in: bool = False

    def covers(self, path: str) -> bool:
        return bool(self.entries) and self._compiled.fullmatch(path) is not None

    @functools.cached_property
    def _compiled(self) -> re.Pattern[str]:
        return _pattern(self.entries)


def path_list(text: str) -> PathList:
    """What a setting says, `,` between the entries; nothing is the same as `none`. Raises WrongUse."""
    entries = tuple(dict.fromkeys(e.strip() for e in text.split(",") if e.strip() and e.strip() != NOTHING))
    if len(entries) > _MAX_ENTRIES:
        raise WrongUse(f"cannot hold more than {_MAX_ENTRIES} paths")
    for entry in entries:
        if not _is_entry(entry):
            raise WrongUse(f"cannot hold {entry[:80]!r}: name paths as the repository has them, `,` between them")
    return PathList(tuple(e for e in entries if e != BUILT_IN), BUILT_IN in entries)


def _is_entry(entry: str) -> bool:
    parts = entry.strip("/").split("/")
    odd = len(entry) > _MAX_ENTRY or "\\" in entry or any(ord(c) < 32 or ord(c) == 127 for c in entry)
    return not odd and not any(p in ("", ".", "..", "**") for p in parts) and any(set(p) - {"*", "?"} for p in parts)


@functools.lru_cache(64)
def _pattern(entries: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(_expression, entries)), re.IGNORECASE | re.DOTALL)


def _expression(entry: str) -> str:
    inner = entry.strip("/")
    anchored = entry.startswith("/") or "/" in inner
    globs = {"*": "[^/]*", "?": "[^/]"}
    named = "".join(globs.get(letter) or re.escape(letter) for letter in inner)
    return f"{'' if anchored else '(?:.*/)?'}{named}(?:/.*)?"
