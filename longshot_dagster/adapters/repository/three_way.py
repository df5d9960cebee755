"""git's own three-way merge, asked of one lasting `git merge-tree` where it can be, else of a process for each merge."""

import functools
import shutil
import threading

from longshot_dagster.adapters.repository.branch import commit
from longshot_dagster.adapters.repository.git import KEEP_BYTES, LOCAL_TIMEOUT_S, Git, Line, version
from longshot_dagster.adapters.repository.git_dialogue import Dialogue
from longshot_dagster.adapters.repository.object_store import parents
from longshot_dagster.core.errors import RepositoryError

_COMMAND = ("-c", "merge.conflictStyle=zdiff3", "merge-tree", "--write-tree", "-z")
_FIRST_S = 20.0  # for an answer that takes milliseconds: a git that keeps its answers to itself is not asked again
_LASTING = (2, 39)  # merge-tree --stdin
_LONGEST = 500  # commits that are followed one by one
_KEPT_LINES = 64
_heard, _unheard = threading.Event(), threading.Event()  # in this process: does git answer before its input ends?


def merge_report(git: Git, onto: str, tip: str, base: str, at: float) -> tuple[bool, bytes]:
    """Three-way merge of what `tip` did since `base` into `onto`: was it clean, and what `merge-tree -z` says of it.

    The report begins with the merged tree; of a conflict, `mode oid stage<TAB>path` records, an empty field and messages
    follow. `base` is in the history of `tip`. Raises RepositoryError for what is neither a merge nor a conflict.
    """
    # Gits before 2.40 find the merge base by themselves. A stand-in for `onto` whose only parent is `base` leaves them,
    # and any other, no choice.
    if (told := _told_at_once(git, onto, tip, base, at)) is not None:
        return told
    ours, options = onto, [f"--merge-base={base}"]
    if version() < (2, 40):
        ours, options = _stand_in(git, onto, tip, base, at), []
    ran = git.run(*_COMMAND, "--messages", *options, ours, tip, ok=(0, 1))
    return ran.code == 0, ran.out


def _part(git: Git, onto: str, tip: str, base: str) -> bool:
    """Do two straight lines of commits lead from `base` to the two? Then it is their only merge base, for any git."""
    theirs = _line(git, tip, base, (base, frozenset()))
    # Each landing goes on from the last one, and hundreds of branches begin at the same base.
    ours = _line(git, onto, base, git.lines.pop(base, (base, frozenset())))
    if theirs is None or ours is None:
        return False
    git.lines[base] = ours
    while len(git.lines) > _KEPT_LINES:
        git.lines.pop(next(iter(git.lines)))
    return ours[1].isdisjoint(theirs[1])


def _line(git: Git, tip: str, base: str, known: Line) -> Line | None:
    """The commits after `base` up to `tip`, where each has but one parent and they are not too many; `known` may be its start."""
    found, at = set[str](), tip
    while at not in (base, known[0]):
        above = git.parents.get(at) or parents(git, at)
        if len(above) != 1 or len(found) >= _LONGEST:
            return None
        found.add(at)
        at = above[0]
    whole = found | known[1] if at == known[0] else found
    return (tip, frozenset(whole)) if len(whole) <= _LONGEST else None


def _stand_in(git: Git, onto: str, tip: str, base: str, at: float) -> str:
    """A commit with the tree of `onto` whose only merge base with `tip` is `base`; nearly always `onto` itself."""
    if _part(git, onto, tip, base):
        return onto
    return commit(git, f"{onto}^{{tree}}", (base,), "stand-in", at)


def _told_at_once(git: Git, onto: str, tip: str, base: str, at: float) -> tuple[bool, bytes] | None:
    """None where only a process of its own can tell, or say what is wrong."""
    through = _unbuffered()
    if not through or _unheard.is_set() or version() < _LASTING:
        return None
    dialogue = git.dialogue(*_COMMAND, "--stdin", through=through)
    ours = _stand_in(git, onto, tip, base, at)
    if not _heard.is_set() and not _answers(dialogue, base):
        return None
    try:
        said = dialogue.ask(f"{ours} {tip}\n".encode(), _Report, keep=KEEP_BYTES, timeout_s=LOCAL_TIMEOUT_S)
    except (RepositoryError, ValueError):
        return None
    return None if said is None else (said[:2] == b"1\0", said[2:])


def _answers(dialogue: Dialogue, base: str) -> bool:
    try:
        dialogue.ask(f"{base} {base}\n".encode(), _Report, keep=KEEP_BYTES, timeout_s=_FIRST_S)
    except (RepositoryError, ValueError):
        _unheard.set()
        return False
    _heard.set()
    return True


@functools.cache
def _unbuffered() -> tuple[str, ...]:
    """The command that makes git say at once what it has to say; empty when there is none here.

    On its own `merge-tree --stdin` keeps its answers until its input ends.
    """
    found = shutil.which("stdbuf")
    return (found, "-o0") if found else ()


class _Report:
    """Finds the end of one report: `0|1`, tree, for a conflict its records, an empty field and its messages, an empty field.

    Every field ends with NUL, and none but the two that end a list is empty. A message is its number of paths, they, its
    kind and its text: read field by field no path or text, whatever it holds, passes for an end.
    """

    def __init__(self) -> None:
        self._at = 0
        self._next = self._clean
        self._left = 0  # fields of the message that is being read

    def __call__(self, said: bytearray) -> int:
        while (end := said.find(b"\0", self._at)) >= 0:
            field = bytes(said[self._at : end])
            self._at = end + 1
            if self._next(field):
                return end
        return -1

    def _clean(self, field: bytes) -> bool:
        self._next = self._tree if field == b"0" else self._merged_tree
        return False

    def _merged_tree(self, field: bytes) -> bool:
        self._next = self._count
        return False

    def _tree(self, field: bytes) -> bool:
        self._next = self._record
        return False

    def _record(self, field: bytes) -> bool:
        if not field:
            self._next = self._count
        return False

    def _count(self, field: bytes) -> bool:
        if field:
            self._left = int(field) + 2
            self._next = self._part
        return not field

    def _part(self, field: bytes) -> bool:
        self._left -= 1
        if not self._left:
            self._next = self._count
        return False
