"""Random histories, merged and rebased by the product in memory and by git itself in a work tree: is it the same?"""

import random
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restoring.loop import git

from longshot_dagster.adapters.repository.branch import Branch
from longshot_dagster.adapters.repository.git import Git
from longshot_dagster.adapters.repository.merger import Conflicted, Merged, Merger, Names, Unchanged
from merging.workload import Stream

_NAMES = Names("b-1", "r001-01", "0" * 40, "subject")
_FILES = 14
_COMMITS = 2  # on each side

Tree = dict[str, tuple[str, str]]  # path -> (mode, text)


@dataclass(frozen=True)
class Outcome:
    """`tree`, or the `files` in conflict: none where git names no file in its index either."""

    tree: str = ""
    files: frozenset[str] = frozenset()


def figures(folder: Path, seeds: Iterable[int]) -> dict[str, Any]:
    """How many of the histories come out the same, both ways; in `folder`, an empty one."""
    began = time.monotonic()
    wanted = list(seeds)
    differ: list[str] = []
    conflicts = 0
    bare, work = histories(folder, wanted)
    store = Git(bare)
    for seed in wanted:
        for way in ("merge", "rebase"):
            expected, found = by_git(work, seed, way), by_product(store, bare, seed, way)
            conflicts += not expected.tree
            if not same(expected, found):
                differ.append(f"{way} of seed {seed}: git {expected}, here {found}")
    total = 2 * len(wanted)
    return {
        "merges": total,
        "same": total - len(differ),
        "conflicts": conflicts,
        "different": differ[:10],
        "wall_s": round(time.monotonic() - began, 1),
        "well": not differ,
    }


def same(one: Outcome, other: Outcome) -> bool:
    """Where git leaves nothing unmerged in its index, which file is to blame is a matter of words."""
    return one.tree == other.tree and (bool(one.tree) or not one.files or one.files == other.files)


def histories(folder: Path, seeds: Iterable[int]) -> tuple[Path, Path]:
    """A bare repository with branches base-N, onto-N and tip-N of each seed, and a clone of it with a work tree."""
    bare, work = folder / "histories.git", folder / "work"
    git(folder, "init", "-q", "--bare", str(bare))
    stream = Stream()
    for seed in seeds:
        rng = random.Random(seed)
        tree: Tree = {f"d{n % 3}/f{n}.txt": ("100644", _text(f"{n}", 30)) for n in range(_FILES)}
        base = stream.commit(f"base-{seed}", "base", None, tree)
        for side in ("onto", "tip"):
            at, grown = base, dict(tree)
            for n in range(_COMMITS):
                _grow(rng, grown, side)
                at = stream.commit(f"{side}-{seed}", f"{side} {n}", at, grown)
    subprocess.run(["git", "-C", str(bare), "fast-import", "--quiet"], input=b"".join(stream.parts), check=True)
    git(folder, "clone", "-q", "--no-checkout", str(bare), str(work))
    return bare, work


def _grow(rng: random.Random, tree: Tree, side: str) -> None:
    for path in rng.sample(sorted(tree), 2):
        mode, text = tree[path]
        lines = text.splitlines()
        lines[rng.randrange(len(lines))] = f"changed {rng.random()}"
        tree[path] = (mode, "".join(f"{line}\n" for line in lines))
    if rng.random() < 0.4:
        path = rng.choice(sorted(tree))
        folder, _, name = path.rpartition("/")
        tree[f"{rng.choice((folder or 'd0', 'd1', 'moved'))}/{rng.randrange(9)}{name}"] = tree.pop(path)
    if rng.random() < 0.15:
        folder = rng.choice(("d0", "d1", "d2"))
        for path in [p for p in tree if p.startswith(f"{folder}/")]:
            tree[f"{folder}-{side}/{path.rpartition('/')[2]}"] = tree.pop(path)
    if rng.random() < 0.35 and len(tree) > 4:
        del tree[rng.choice(sorted(tree))]
    if rng.random() < 0.3:
        path = rng.choice(sorted(tree))
        tree[path] = ("100755" if tree[path][0] == "100644" else "100644", tree[path][1])
    tree[f"new{rng.randrange(30)}.txt"] = ("100644", _text(f"{rng.random()}", 8))


def _text(of: str, lines: int) -> str:
    return "".join(f"line {n} of {of}\n" for n in range(lines))


def by_git(work: Path, seed: int, way: str) -> Outcome:
    git(work, "checkout", "-q", "-f", "--detach", f"origin/{'onto' if way == 'merge' else 'tip'}-{seed}")
    command = (
        ("merge", "-q", "-m", "x", f"origin/tip-{seed}") if way == "merge" else ("rebase", "-q", f"origin/onto-{seed}")
    )
    try:
        git(work, *command)
    except subprocess.CalledProcessError:
        unmerged = git(work, "diff", "--name-only", "-z", "--diff-filter=U").split("\0")
        git(work, way, "--abort")
        return Outcome(files=frozenset(p for p in unmerged if p))
    return Outcome(tree=git(work, "rev-parse", "HEAD^{tree}"))


def by_product(store: Git, bare: Path, seed: int, way: str) -> Outcome:
    asked = (f"{side}-{seed}" for side in ("base", "onto", "tip"))
    base, onto, tip = git(bare, "rev-parse", *asked).split()
    merger, branch = Merger(store, 1.0), Branch(store, base, tip)
    result: Merged | Unchanged | Conflicted
    result = merger.squash(onto, branch, tip, _NAMES) if way == "merge" else merger.rebase(onto, branch, _NAMES)
    if isinstance(result, Conflicted):
        return Outcome(files=frozenset(file.path for file in result.files))
    made = result.commits[-1] if isinstance(result, Merged) else onto
    return Outcome(tree=git(bare, "rev-parse", f"{made}^{{tree}}"))
