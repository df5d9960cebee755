"""A made-up repository and branches on it, of which a known share collides; the same again for the same seed."""

import random
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from restoring.loop import git

_LINES = 70
_FREE = (5, 15, 25, 35, 45)  # lines of each file that a branch may have to itself
_SHARED = 65  # the line that two branches of a pair both write
_HISTORY = 20  # commits before the branches begin
_BEGAN = 1_700_000_000


@dataclass(frozen=True)
class Workload:
    """`branches`: name -> tip, in the order in which they are handed in; all begin at `base`, the head of main."""

    repository: Path
    base: str
    branches: dict[str, str]


def made(folder: Path, files: int, branches: int, conflict: float, seed: int = 1) -> Workload:
    """A bare repository in `folder`: main with `files` files, and branches of one to three commits.

    Every commit changes a line of a file and adds a file. Of `conflict` (a share, below a half) of the branches each
    writes a line that one earlier branch also writes: those, and no others, cannot land.
    """
    repository = folder / "made.git"
    git(folder, "init", "-q", "--bare", "-b", "main", str(repository))
    stream = Stream()
    tips = _written(stream, files, branches, conflict, random.Random(seed))
    subprocess.run(["git", "-C", str(repository), "fast-import", "--quiet"], input=b"".join(stream.parts), check=True)
    git(repository, "repack", "-adq")
    listed = git(repository, "for-each-ref", "--format=%(refname:lstrip=2) %(objectname)", "refs/heads")
    oids = dict(line.split() for line in listed.splitlines())
    return Workload(repository, oids["main"], {name: oids[name] for name in tips})


def _written(stream: "Stream", files: int, branches: int, conflict: float, rng: random.Random) -> list[str]:
    texts = [_text(n) for n in range(files)]

    def path(n: int) -> str:
        return f"src/m{n // 800:03d}/p{n // 40:04d}/f{n:06d}.py"

    first = [(path(n), _joined(lines)) for n, lines in enumerate(texts)]
    at = _commit(stream, "main", "The beginning", None, [*first, (".gitignore", "dist/\n")])
    for n in range(_HISTORY):
        changed = rng.randrange(files)
        texts[changed][_LINES - 10] = f"    before_{n} = 1"
        at = _commit(stream, "main", f"Before {n}", at, [(path(changed), _joined(texts[changed]))])
    free = [(n, line) for n in range(files) for line in _FREE]
    rng.shuffle(free)
    names = []
    collides = _pairs(branches, conflict)
    for branch in range(branches):
        names.append(f"worker/task-{branch:04d}")
        _branch(stream, names[-1], at, branch, rng.choice((1, 2, 3)), free, texts, path, collides.get(branch))
    return names


def _branch(
    stream: "Stream",
    name: str,
    base: int,
    branch: int,
    commits: int,
    free: list[tuple[int, int]],
    texts: list[list[str]],
    path: Callable[[int], str],
    pair: int | None,
) -> None:
    mine: dict[int, list[str]] = {}
    at = base
    for commit in range(commits):
        file, line = free.pop()
        touched = {file}
        mine.setdefault(file, list(texts[file]))[line] = f"    changed_{branch}_{commit} = x + {branch}"
        if pair is not None and commit == commits - 1:
            both = pair % len(texts)
            mine.setdefault(both, list(texts[both]))[_SHARED] = f"    shared_{branch} = {branch}"
            touched.add(both)
        whole = {path(n): _joined(mine[n]) for n in sorted(touched)}
        new = "".join(f"v{n} = {n * branch}\n" for n in range(30))
        whole[f"src/new/t{branch:04d}/n{commit}.py"] = f"# task {branch}\n{new}"
        at = _commit(stream, name, f"Task {branch}, commit {commit}", at, list(whole.items()))


def _commit(stream: "Stream", branch: str, message: str, parent: int | None, files: list[tuple[str, str]]) -> int:
    mark = stream.begin(branch, message, parent)
    for path, text in files:
        stream.put(path, text)
    return mark


def _pairs(branches: int, conflict: float) -> dict[int, int]:
    """Branch -> the number of its pair, for those that are in one; neighbours, so that both are in one batch or two."""
    wanted = round(branches * conflict)
    every = branches // wanted if wanted else 0
    return {every * n + every - 2 + m: n for n in range(wanted) for m in (0, 1)} if every > 1 else {}


def _text(number: int) -> list[str]:
    return [
        f"def f_{number}_{n}(x):  # {(number * 2654435761 + n * 40503) % 99991}"
        if n % 10 == 0
        else f"    y{n} = x * {(number * 31 + n * 17) % 997} + {n}"
        for n in range(_LINES)
    ]


def _joined(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"


class Stream:
    """What `git fast-import` reads."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.mark = 0

    def commit(self, branch: str, message: str, parent: int | None, files: Mapping[str, tuple[str, str]]) -> int:
        """A commit with exactly `files`, path -> (mode, text); returns its mark, which names a parent."""
        mark = self.begin(branch, message, parent)
        self.parts.append(b"deleteall\n")
        for path, (mode, text) in files.items():
            self.put(path, text, mode)
        self.parts.append(b"\n")
        return mark

    def begin(self, branch: str, message: str, parent: int | None) -> int:
        self.mark += 1
        who = f"a worker <worker@longshot.invalid> {_BEGAN + self.mark} +0000"
        head = f"commit refs/heads/{branch}\nmark :{self.mark}\nauthor {who}\ncommitter {who}\n"
        self.parts += [head.encode(), _data(message), f"from :{parent}\n".encode() if parent else b""]
        return self.mark

    def put(self, path: str, text: str, mode: str = "100644") -> None:
        self.parts += [f"M {mode} inline {path}\n".encode(), _data(text)]


def _data(text: str) -> bytes:
    data = text.encode()
    return b"data %d\n%s\n" % (len(data), data)
