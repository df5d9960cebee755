"""Is a worker's small pack plain: harmless by every rule that git has, and whole together with what its base holds?

What is called plain here is less than what git's strict checks and its walk over all objects let through, never more.
Nearly all honest work is plain, and two git processes cost more than everything else that is done with it. One thing that
git knows is not looked for, the marks of a forged SHA-1: what is in the mirror first stays there, and a target that looks
for them refuses the push.
"""

import re
from collections.abc import Iterable

from longshot_dagster.core.small_pack import NotPlain, Object, There

# Names that no version of git on any file system takes for `.git`, `.gitmodules` and the like, or for a path: plain ASCII
# without \ / : ~ and the like, no dot or space at the end, and of what begins as `.git` only what is known to be harmless.
_NAME = (
    rb"\.git(?:hub|ignore|keep|attributes|lab-ci\.yml)"
    rb"|(?!(?i:\.git)|[ -])[\w.@+=,#$%&!'()\[\]{} -]{1,200}(?<![. ])"
)
_ENTRY = re.compile(rb"(100644|100755|40000) (" + _NAME + rb")\0(.{20})", re.DOTALL)
_ANY_ENTRY = re.compile(rb"([0-7]{5,6}) ([^\0]+)\0(.{20})", re.DOTALL)  # of a tree that is in the mirror already
_TREE, _ANY_TREE = (re.compile(b"(?:%s)*+" % e.pattern, re.DOTALL) for e in (_ENTRY, _ANY_ENTRY))
_KINDS = {b"40000": "tree", b"100644": "blob", b"100755": "blob", b"100664": "blob", b"120000": "blob"}

_WHO = rb"[^\0\n<>]*[^\0\n<> ] <[^\0\n<>]*> (?:0|[1-9][0-9]{0,9}) [+-][0-9]{4}\n"
_COMMIT = re.compile(
    rb"tree ([0-9a-f]{40})\n((?:parent [0-9a-f]{40}\n)+)author " + _WHO + rb"committer " + _WHO + rb"\n[^\0]*"
)
_FOLDER, _ATTRIBUTES = b"40000", b".gitattributes"
_MOST_ATTRIBUTES = 2048  # bytes: git minds longer lines
_MOST_PLACES = 256  # at which trees of the pack may stand

_Entry = tuple[bytes, bytes, bytes]  # mode, name, id as git keeps it


def judge(head: str, base: str, base_tree: str, objects: dict[str, Object], there: There) -> None:
    """Raises NotPlain unless `head` is a commit on top of `base`, and all it needs is among `objects` or in the base.

    The base is a commit that the mirror has whole, and `base_tree` its tree. Every object is looked at, and needed by the
    head: an honest pack has no others, and so none is taken in unseen.
    """
    roots = _commits(head, base, objects)
    reached = _trees(roots.values(), base_tree, objects, there)
    if len(roots) + len(reached) != len(objects):
        raise NotPlain("it holds more than its head needs")


def _commits(head: str, base: str, objects: dict[str, Object]) -> dict[str, str]:
    """The tree of each commit from `head` down to `base`, where every line of history ends."""
    found: dict[str, str] = {}
    pending = [head]
    while pending:
        if (commit := pending.pop()) in found:
            continue
        kind, content = objects.get(commit, ("", b""))
        match = _COMMIT.fullmatch(content)
        if kind != "commit" or match is None:
            raise NotPlain("it holds a commit with an odd header, or a line of history that does not end at its base")
        found[commit] = match[1].decode()
        pending += [parent for line in match[2].splitlines() if (parent := line[7:].decode()) != base]
    return found


def _trees(roots: Iterable[str], base_tree: str, objects: dict[str, Object], there: There) -> set[bytes]:
    """Which of `objects` the trees of the commits lead to; nothing else is missing then.

    What is not among them must be named, as the same kind, by the base's own tree at a place where the work has one.
    """
    kinds = {bytes.fromhex(oid): kind for oid, (kind, _) in objects.items()}
    reached: set[bytes] = set()
    needed: set[tuple[str, bytes]] = set()
    told: list[Iterable[_Entry]] = [[(_FOLDER, b"", bytes.fromhex(base_tree))]]
    attributes: set[bytes] = set()

    def here(mode: bytes, oid: bytes) -> bool:
        if oid not in kinds:
            needed.add((_KINDS[mode], oid))
            return False
        if kinds[oid] != _KINDS[mode]:
            raise NotPlain("it takes an object for one of another kind")
        reached.add(oid)
        return True

    pending = [(root, base_tree) for root in roots if here(_FOLDER, bytes.fromhex(root))]
    places = set(pending)
    while pending:
        tree, before = pending.pop()
        was = set(_entries(there(before), _ANY_TREE, _ANY_ENTRY)) if before else set()
        told.append(was)
        folders = {name: oid.hex() for mode, name, oid in was if mode == _FOLDER}
        for entry in _strict_entries(objects[tree]):
            mode, name, oid = entry
            if name == _ATTRIBUTES:
                attributes.add(oid)
            if entry in was:
                continue
            if here(mode, oid) and mode == _FOLDER and (place := (oid.hex(), folders.get(name, ""))) not in places:
                places.add(place)
                pending.append(place)
        if len(places) > _MOST_PLACES:
            raise NotPlain("its trees stand at too many places")
    if needed - {(_KINDS[mode], oid) for entries in told for mode, _, oid in entries if needed and mode in _KINDS}:
        raise NotPlain("it needs what neither it nor the folders of the base that it changes hold")
    if not all(_are_short(objects.get(oid.hex()) or there(oid.hex())) for oid in attributes):
        raise NotPlain("git looks into .gitattributes")
    return reached


def _are_short(attributes: Object | None) -> bool:
    return attributes is not None and attributes[0] == "blob" and len(attributes[1]) < _MOST_ATTRIBUTES


def _strict_entries(tree: Object) -> list[_Entry]:
    """In git's order, in which a folder is sorted as if its name ended in a slash, and no name twice."""
    found = _entries(tree, _TREE, _ENTRY)
    keys = [name + b"/" if mode == _FOLDER else name for mode, name, _ in found]
    if keys != sorted(keys) or len({name for _, name, _ in found}) != len(found):
        raise NotPlain("it holds a tree in which names are not sorted")
    return found


def _entries(tree: Object | None, whole: re.Pattern[bytes], entry: re.Pattern[bytes]) -> list[_Entry]:
    if tree is None or tree[0] != "tree":
        raise NotPlain("a tree of its base is large, or not here")
    if not whole.fullmatch(tree[1]):
        raise NotPlain("it holds a tree with an odd name or mode")
    return entry.findall(tree[1])
