"""What is on main, read and made again with plain git: the commits that tasks landed, and the same work put on the first
commit in the order in which it landed."""

import subprocess
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from restoring.loop import git

from crashing.judging import Landed

_FIELDS = "%x01".join(
    ("%H", *(f"%(trailers:key=Longshot-{key},valueonly,separator=%x2C)" for key in ("Task", "Source")))
)


def landed_commits(bare: Path, base: str) -> list[Landed]:
    """Of branch main since `base`, oldest first."""
    listed = git(bare, "log", "--first-parent", "--reverse", f"--format={_FIELDS}", f"{base}..main")
    found = [Landed(*line.split("\x01")) for line in listed.splitlines()]
    return [landed for landed in found if landed.task]


def branch_sizes(mirror: Path, sources: dict[str, str]) -> dict[str, int]:
    """Source -> its commits; `sources`: source -> the commit that branch began at."""
    return {
        source: len(git(mirror, "rev-list", f"{start}..{source}").splitlines()) for source, start in sources.items()
    }


def replayed_tree(
    bare: Path, mirror: Path, base: str, landed: Sequence[Landed], sources: dict[str, str], folder: Path
) -> str:
    """The tree that comes out when every landed branch is picked onto `base` in the order of landing, each exactly once.

    Empty when one of them does not apply.
    """
    git(folder.parent, "clone", "-q", "--no-checkout", str(bare), str(folder))
    (folder / ".git/objects/info/alternates").write_text(f"{mirror / 'objects'}\n{bare / 'objects'}\n")
    git(folder, "checkout", "-q", "--detach", base)
    for (_, source), _ in groupby(landed, key=lambda c: (c.task, c.source)):
        try:
            git(folder, "cherry-pick", "--allow-empty", "--keep-redundant-commits", f"{sources[source]}..{source}")
        except subprocess.CalledProcessError:
            return ""
    return git(folder, "rev-parse", "HEAD^{tree}")


def lists_on_main(bare: Path) -> list[str]:
    """Texts of the files that tasks of mode `conflicting` share."""
    names = git(bare, "ls-tree", "-r", "--name-only", "main", "lists/").splitlines()
    return [git(bare, "show", f"main:{name}") for name in names]
