"""The last look at what a landing makes of the landing branch, before anything is published: what it must not do, it says.

Merges go wrong silently: a wrong base, a rung of the ladder that resolves too much, a bug of ours. Here nothing is asked
of the merge. Each path that the landing changes must be one that its branch changed; where nobody else changed it, the
result must be the branch's own; where others did, their lines must still be there.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from longshot_dagster.adapters.repository.branch import Branch, commit, raw_changes
from longshot_dagster.adapters.repository.git import Git
from longshot_dagster.adapters.repository.merger import Clean, Merger
from longshot_dagster.adapters.repository.object_store import GONE, Entry, graft, read_up_to
from longshot_dagster.core import landing as policy
from longshot_dagster.core.guards import has_conflict_markers, keeps_others_keys, keeps_others_lines
from longshot_dagster.core.landing import Change
from longshot_dagster.core.landing_records import Concern, ConcernKind

_READ_BYTES = 4 << 20  # of a file that is looked at line by line
_NAMED = 5

Blob = tuple[str, str]  # mode, id; GONE for none


@dataclass(frozen=True)
class _Sides:
    """One file in four places, and what it is called there."""

    path: str
    base: Blob
    theirs: Blob
    ours: Blob
    merged: Blob


def objection(
    merger: Merger, branch: Branch, kept: frozenset[str], onto: str, merged: str, exact: frozenset[str] = frozenset()
) -> Concern | None:
    """Why `merged` must not follow `onto` as the landing of `branch`'s changes to `kept`; None when nothing is wrong.

    `exact`: paths of which a person has approved just the branch's change, and no merge of it.
    """
    landed = raw_changes(merger.git, onto, merged)
    if strayed := _strayed(merger, branch, kept, onto, landed):
        text = f"landing it would also change {_named(strayed)}, which its branch never touched"
        return Concern(kind=ConcernKind.REVERTS, text=text)
    own = {c.path: c for c in branch.changes if c.path in kept}
    if moved := tuple(c.path for c in landed if c.path in exact and not _is_its_own(c, own[c.path])):
        text = f"approved, but {_named(moved)} has changed on the landing branch since; ask for it in a task of its own"
        return Concern(kind=ConcernKind.CONFLICT, text=text)
    if reverted := _reverted(merger, branch, own, onto, landed):
        text = f"landing it would take back what others did in {_named(reverted)}"
        return Concern(kind=ConcernKind.REVERTS, text=text)
    if marked := tuple(_marked(merger.git, landed)):
        return Concern(kind=ConcernKind.MARKERS, text=f"conflict markers are in {_named(marked)}")
    return None


def _strayed(
    merger: Merger, branch: Branch, kept: frozenset[str], onto: str, landed: Iterable[Change]
) -> tuple[str, ...]:
    strayed = policy.guard((c.path for c in landed), kept, {})
    return policy.guard(strayed, kept, merger.renamed(branch.base, onto)) if strayed else ()


# --- nothing is taken back -------------------------------------------------------------------------------------------


def _reverted(
    merger: Merger, branch: Branch, own: Mapping[str, Change], onto: str, landed: Sequence[Change]
) -> tuple[str, ...]:
    """Paths whose content is neither the branch's own nor what a merge of it may make of others' changes."""
    # Where nobody else has changed a path, the branch's own is the only right result: nearly always, and nothing to read.
    odd = [c for c in landed if (mine := own.get(c.path)) is None or not _is_its_own(c, mine)]
    if not odd:
        return ()
    doubtful = [s for s in _told_apart(merger, branch, own, onto, landed, odd) if not _keeps_others(merger.git, s)]
    return tuple(s.path for s in doubtful if not _git_agrees(merger, s))


def _is_its_own(landed: Change, mine: Change) -> bool:
    return (_before(landed), _after(landed)) == (_before(mine), _after(mine))


def _told_apart(
    merger: Merger,
    branch: Branch,
    own: Mapping[str, Change],
    onto: str,
    landed: Sequence[Change],
    odd: Sequence[Change],
) -> Iterator[_Sides]:
    """The four sides of each odd path, which a rename on either side may have moved."""
    by_others = by_branch = dict[str, str]()  # new name -> old name
    if any(c.path not in own or GONE in (c.mode, c.mode_before) for c in odd):
        by_others, by_branch = merger.renamed(branch.base, onto), merger.renamed(branch.base, branch.tip)
    there, gone = {c.path: c for c in landed}, {old: new for new, old in by_branch.items()}
    odd_paths = {c.path for c in odd}
    for change in odd:
        mine = own.get(change.path) or own.get(by_others.get(change.path, ""))
        old, new = by_branch.get(change.path, ""), gone.get(change.path, "")
        if mine is None:
            continue  # it would have strayed
        if change.mode == GONE and new in own and new in there:
            yield _Sides(change.path, _before(mine), _after(own[new]), _before(change), _after(there[new]))
        elif old in own and old in there:
            if old not in odd_paths:
                yield _Sides(change.path, _before(own[old]), _after(mine), _before(there[old]), _after(change))
        else:
            yield _Sides(change.path, _before(mine), _after(mine), _before(change), _after(change))


def _before(change: Change) -> Blob:
    return change.mode_before, change.before


def _after(change: Change) -> Blob:
    return change.mode, change.oid


def _keeps_others(git: Git, sides: _Sides) -> bool:
    base, theirs, ours, merged = _four(sides)
    if ours == base:
        return merged == theirs
    if theirs[0] == GONE or ours[0] == GONE or merged[0] == GONE:
        return merged == ours
    if merged[0] != (theirs[0] if theirs[0] != base[0] else ours[0]):
        return False
    if not all(mode == GONE or mode.startswith("100") for mode, _ in (base, theirs, ours)):
        return False
    found = _contents(git, [oid if mode != GONE else "" for mode, oid in (base, theirs, ours, merged)])
    if found is None:
        return False
    if keeps_others_lines(*found):
        return True
    return sides.path.endswith(".json") and keeps_others_keys(*found)


def _four(sides: _Sides) -> tuple[Blob, Blob, Blob, Blob]:
    return sides.base, sides.theirs, sides.ours, sides.merged


def _contents(git: Git, oids: Sequence[str]) -> tuple[bytes, bytes, bytes, bytes] | None:
    """Nothing for a file that was not there ("" for an id); None when one of them is large or binary."""
    base, theirs, ours, merged = (read_up_to(git, o, _READ_BYTES) if o else b"" for o in oids)
    if base is None or theirs is None or ours is None or merged is None:
        return None
    return None if any(b"\0" in data for data in (base, theirs, ours, merged)) else (base, theirs, ours, merged)


def _git_agrees(merger: Merger, sides: _Sides) -> bool:
    """Does git, asked about this one file and the branch's own base alone, come to the same?

    Two ways to tell lines apart may differ where lines repeat, and git's is the one that counts.
    """
    if GONE in (sides.base[0], sides.theirs[0], sides.ours[0], sides.merged[0]):
        return False
    base = commit(merger.git, _alone(merger.git, sides.base), (), "stand-in", merger.at)
    theirs, ours = (
        commit(merger.git, _alone(merger.git, side), (base,), "stand-in", merger.at)
        for side in (sides.theirs, sides.ours)
    )
    merged = merger.merge(ours, theirs, base)
    return isinstance(merged, Clean) and not merger.changed(merged.tree, _alone(merger.git, sides.merged))


def _alone(git: Git, blob: Blob) -> str:
    return graft(git, "", [Entry(b"file", *blob)])


# --- what no landed file may hold ------------------------------------------------------------------------------------


def _marked(git: Git, landed: Sequence[Change]) -> Iterator[str]:
    """Landed files with conflict markers that had none before."""
    for change in landed:
        content = read_up_to(git, change.oid, _READ_BYTES) if change.mode.startswith("100") else None
        if content is not None and has_conflict_markers(content) and not _had_markers(git, change):
            yield change.path


def _had_markers(git: Git, change: Change) -> bool:
    if not change.mode_before.startswith("100"):
        return False
    content = read_up_to(git, change.before, _READ_BYTES)
    return content is not None and has_conflict_markers(content)


def _named(paths: Sequence[str]) -> str:
    shown = [p.encode("utf-8", "surrogateescape").decode("utf-8", "replace")[:200] for p in paths[:_NAMED]]
    return ", ".join(shown) + (f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else "")
