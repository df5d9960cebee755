"""What a landing must not do to a file that others have changed meanwhile, and what no landed file may hold.

A merge that was made from the wrong base looks like any other commit, and takes back what others did. So its result is
held against the branch itself: lines that the branch neither added nor removed must be, in the same order, just what the
landing branch had. Nothing of that knows how the result came about.
"""

import difflib
import json
import re
from collections.abc import Iterator, Sequence

MAX_COMPARED = 4_000_000  # lines of one side times lines of the other: what a comparison may cost
_MISSING = object()
_BEGINS, _ENDS = re.compile(rb"^<<<<<<< \S", re.MULTILINE), re.compile(rb"^>>>>>>> \S", re.MULTILINE)
_PARTS = re.compile(rb"^=======\r?$", re.MULTILINE)


def has_conflict_markers(content: bytes) -> bool:
    """Does a line begin a conflict, another part its sides, and another end it, in this order?"""
    begun = _BEGINS.search(content)
    parted = _PARTS.search(content, begun.end()) if begun else None
    return parted is not None and _ENDS.search(content, parted.end()) is not None


def keeps_others_lines(base: bytes, theirs: bytes, ours: bytes, merged: bytes) -> bool | None:
    """Is in `merged` everything that others made of `base` (that is `ours`), but for lines that the branch (`theirs`) touched?

    None when the files are too different to be compared line by line.
    """
    touched = _touched(_lines(base), _lines(theirs))
    if touched is None:
        return None
    return _untouched(ours, touched) == _untouched(merged, touched)


def keeps_others_keys(base: bytes, theirs: bytes, ours: bytes, merged: bytes) -> bool:
    """The same of JSON objects, key by key: what only others changed must be as they left it. False for anything else."""
    try:
        before, branch, others, result = (dict(_leaves(_object(c))) for c in (base, theirs, ours, merged))
    except (ValueError, RecursionError):
        return False
    for key in before.keys() | branch.keys() | others.keys() | result.keys():
        was, by_branch, by_others, now = (side.get(key, _MISSING) for side in (before, branch, others, result))
        if by_branch == was and now != by_others:
            return False
        if by_branch != was and now not in (by_branch, by_others):
            return False
    return True


def _lines(content: bytes) -> list[bytes]:
    return content.split(b"\n")


def _untouched(content: bytes, touched: set[bytes]) -> list[bytes]:
    return [line for line in _lines(content) if line not in touched]


def _touched(base: Sequence[bytes], theirs: Sequence[bytes]) -> set[bytes] | None:
    """Every line that is added or removed on the way from one to the other."""
    first, shorter = 0, min(len(base), len(theirs))
    while first < shorter and base[first] == theirs[first]:
        first += 1
    last = 0
    while last < shorter - first and base[-1 - last] == theirs[-1 - last]:
        last += 1
    old, new = base[first : len(base) - last], theirs[first : len(theirs) - last]
    if len(old) * len(new) > MAX_COMPARED:
        return None
    found: set[bytes] = set()
    for kind, i, j, k, m in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind != "equal":
            found.update(old[i:j], new[k:m])
    return found


def _object(content: bytes) -> dict[str, object]:
    found = json.loads(content)
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found


def _leaves(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Everything below that is no object with keys, by where it is; numbers and truth values are told apart."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    else:
        yield path, json.dumps(value, sort_keys=True)
