"""Three versions of one JSON manifest merged key by key, each value in the very text some version holds it in."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

MAX_CHARACTERS = 512_000
_MAX_DEPTH = 40
_MAX_MEMBERS = 5_000
_AS_SETS = frozenset({"files", "keywords", "workspaces"})  # lists whose order means nothing

_SCALAR = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null')
_SPACE = re.compile(r"[ \t\r\n]*")


class _Unfit(Exception):
    """Not plain JSON, or a key twice: what a merge of it would mean is anybody's guess."""


class _Clash(Exception):
    """Both sides gave the same key something different."""


@dataclass(frozen=True)
class _Value:
    """`meaning` compares equal for the same JSON value; `text` is how it is written."""

    text: str
    meaning: object
    members: "Mapping[str, _Member] | None" = None  # of an object
    items: "tuple[_Value, ...] | None" = None  # of a list


@dataclass(frozen=True)
class _Member:
    written: str  # the key with its quotes and what stands before the value
    value: _Value


_NOTHING = _Value("{}", frozenset(), {})


@dataclass(frozen=True)
class _Layout:
    indent: str
    newline: str


@dataclass
class _Reader:
    text: str
    at: int = field(default=0)

    def value(self, depth: int = 0) -> _Value:
        if depth > _MAX_DEPTH:
            raise _Unfit
        start = self.at
        if self.text.startswith("{", start):
            members = self._members(depth)
            meaning = frozenset((key, m.value.meaning) for key, m in members.items())
            return _Value(self.text[start : self.at], meaning, members)
        if self.text.startswith("[", start):
            items = self._items(depth)
            return _Value(self.text[start : self.at], tuple(i.meaning for i in items), items=items)
        return self._scalar()

    def space(self) -> None:
        found = _SPACE.match(self.text, self.at)
        self.at = found.end() if found else self.at

    def _scalar(self) -> _Value:
        found = _SCALAR.match(self.text, self.at)
        if found is None:
            raise _Unfit
        self.at = found.end()
        text = found[0]
        try:
            return _Value(text, (json.loads(text),) if text.startswith('"') else text)
        except ValueError as e:
            raise _Unfit from e

    def _members(self, depth: int) -> dict[str, _Member]:
        found: dict[str, _Member] = {}
        self._take("{")
        while not self._closes("}", found):
            start = self.at
            if not self.text.startswith('"', start):
                raise _Unfit
            key = self._scalar()
            self._take(":")
            name = json.loads(key.text)
            if name in found or len(found) == _MAX_MEMBERS:
                raise _Unfit
            written = self.text[start : self.at]
            found[name] = _Member(written, self.value(depth + 1))
        return found

    def _items(self, depth: int) -> tuple[_Value, ...]:
        found: list[_Value] = []
        self._take("[")
        while not self._closes("]", found):
            found.append(self.value(depth + 1))
        return tuple(found)

    def _closes(self, end: str, found: object) -> bool:
        """Past the closing bracket, or, behind a comma unless it is the first, at the next element."""
        self.space()
        if self.text.startswith(end, self.at):
            self.at += 1
            return True
        if found:
            self._take(",")
        return False

    def _take(self, letter: str) -> None:
        self.space()
        if not self.text.startswith(letter, self.at):
            raise _Unfit
        self.at += 1
        self.space()


def merged(base: str | None, ours: str, theirs: str) -> str | None:
    """What both sides did to the object that `base` holds (None: it is new on both), laid out as `ours` is.

    None when a key was given two different values, or one of the three is no plain JSON object.
    """
    try:
        sides = [_whole(text) for text in (base, ours, theirs) if text is not None]
        first = sides[0] if base is not None else _NOTHING
        mine, other = sides[-2:]
        root = _merged("", first, mine, other, _layout(ours), 0)
        start = len(ours) - len(ours.lstrip(" \t\r\n"))
        whole = ours[:start] + root + ours[start + len(mine.text) :]
        _whole(whole)
    except (_Unfit, _Clash, RecursionError):
        return None
    return whole


def _whole(text: str) -> _Value:
    """Raises _Unfit for anything but one object."""
    if len(text) > MAX_CHARACTERS:
        raise _Unfit
    reader = _Reader(text)
    reader.space()
    found = reader.value()
    reader.space()
    if reader.at != len(text) or found.members is None:
        raise _Unfit
    return found


def _layout(text: str) -> _Layout:
    indent = re.search(r"\n([ \t]+)\S", text)
    return _Layout(indent[1] if indent else "  ", "\r\n" if "\r\n" in text else "\n")


def _merged(key: str, base: _Value | None, ours: _Value, theirs: _Value, layout: _Layout, depth: int) -> str:
    if ours.meaning == theirs.meaning or (base is not None and theirs.meaning == base.meaning):
        return ours.text
    if base is not None and ours.meaning == base.meaning:
        return theirs.text
    if ours.members is not None and theirs.members is not None and (base is None or base.members is not None):
        return _object(base or _NOTHING, ours, theirs, layout, depth)
    if key in _AS_SETS and depth == 1:
        return _list(base, ours, theirs, layout, depth)
    raise _Clash


def _object(base: _Value, ours: _Value, theirs: _Value, layout: _Layout, depth: int) -> str:
    before, mine, other = base.members or {}, ours.members or {}, theirs.members or {}
    written: dict[str, str] = {}
    for key in _order(mine, other):
        was, here, there = (side[key].value if key in side else None for side in (before, mine, other))
        if here is not None and there is not None:
            written[key] = mine[key].written + _merged(key, was, here, there, layout, depth + 1)
        elif here is not None and _alone(was, here):
            written[key] = mine[key].written + here.text
        elif there is not None and _alone(was, there):
            written[key] = other[key].written + there.text
    return _laid_out(written.values(), ours, theirs, layout, depth, "{}")


def _alone(was: _Value | None, kept: _Value) -> bool:
    """Of a key that one side lacks: was it added by the other? Raises _Clash when one removed what the other changed."""
    if was is not None and was.meaning != kept.meaning:
        raise _Clash
    return was is None


def _list(base: _Value | None, ours: _Value, theirs: _Value, layout: _Layout, depth: int) -> str:
    """What each side added and removed, as sets."""
    sides = [side.items for side in (base or _Value("[]", (), items=()), ours, theirs)]
    texts: list[dict[object, str]] = []
    for items in sides:
        if items is None or any(not isinstance(i.meaning, tuple) or i.items is not None for i in items):
            raise _Clash  # not a list of strings
        texts.append({i.meaning: i.text for i in items})
        if len(texts[-1]) != len(items):
            raise _Clash
    was, mine, other = texts
    kept = {m: t for m, t in mine.items() if m in other or m not in was}
    kept |= {m: t for m, t in other.items() if m not in mine and m not in was}
    return _laid_out(kept.values(), ours, theirs, layout, depth, "[]")


def _order(mine: Mapping[str, object], other: Mapping[str, object]) -> list[str]:
    """Our order; what is theirs alone comes after what it follows there, or in its place where both sides sort their keys."""
    keys = list(mine)
    for before, key in pairwise((None, *other)):
        if key not in mine and key is not None:
            keys.insert(keys.index(before) + 1 if before is not None else 0, key)
    for order in (str, str.lower):
        if all(_is_sorted([order(k) for k in side]) for side in (mine, other)):
            return sorted(keys, key=order)
    return keys


def _is_sorted(keys: list[str]) -> bool:
    return all(a <= b for a, b in pairwise(keys))


def _laid_out(written: Iterable[str], ours: _Value, theirs: _Value, layout: _Layout, depth: int, brackets: str) -> str:
    """One element a line where either side has it so."""
    parts = list(written)
    if not parts:
        return brackets
    opening, closing = brackets[0], brackets[1]
    if "\n" not in ours.text and "\n" not in theirs.text:
        room = " " if ours.text.startswith(f"{opening} ") else ""
        return f"{opening}{room}{', '.join(parts)}{room}{closing}"
    step = layout.newline + layout.indent * (depth + 1)
    return f"{opening}{step}{f',{step}'.join(parts)}{layout.newline}{layout.indent * depth}{closing}"
