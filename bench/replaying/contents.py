"""What each task of the record might have written: drawn, the same for the same seed, on whatever it finds there.

A module is created where there is none, else edited as agents do it: an import, a few places in the middle, something at
the end. Strays go mostly to package.json, where many want the same test runner, and to modules that belong to other tasks; some are a
test that nobody asked for. Lock files come out of the tool that writes
them, and so differ between branches more often than not.
"""

import json
from collections.abc import Callable, Sequence
from random import Random

from replaying.record import Job

MANIFEST = "package.json"
LOCK_FILE = "package-lock.json"
IGNORE_FILE = ".gitignore"
SCAFFOLD_MODULES = ("src/index.ts", "index.html", "tsconfig.json", "README.md")

_IGNORED = "".join(f"{name}\n" for name in ("node_modules/", "dist/", "build/", ".env", "*.log", ".DS_Store"))
_LOCKS = 3  # so many different ones does installing give, by the hour
_IMPORTS_TOO = 0.5  # of edits, as are those with something at the end
_LINES = (20, 160)  # of a new file
_SAME_TOOL = 0.6  # of those that add a dependency
_OWN_TEST = 0.25  # of strays beside package.json

Reading = Callable[[str], str | None]  # a path -> its text where the worker begins


def scaffold() -> dict[str, str]:
    """The first commit of every target."""
    manifest = {"name": "voxels", "type": "module", "scripts": {"dev": "vite", "build": "vite build"}}
    files = {path: _module(path, Random(path), 30) for path in SCAFFOLD_MODULES}
    return files | {MANIFEST: _json({**manifest, "devDependencies": {"typescript": "5.4.0", "vite": "5.2.0"}})}


def edits(job: Job, jobs: Sequence[Job], seed: int, reading: Reading, attempt: int = 0) -> dict[str, str]:
    """Path -> text of everything that the worker of `job` changes."""
    chance = Random(f"{seed}/{job.id}/{attempt}")
    paths = [*job.scope, *_strays(job, jobs, Random(f"{seed}/{job.id}/strays"))]
    found: dict[str, str] = {}
    for path in paths:
        there = reading(path)
        if path == MANIFEST:
            found[path] = _depends_on(there or "{}\n", job, chance)
        elif there is None:
            each = max(_LINES[0], min(_LINES[1], job.lines // len(paths)))
            found[path] = _module(f"{path} by {job.id}", chance, each)
        else:
            found[path] = _edited(there, job, chance)
    if job.brings_ignore_file and reading(IGNORE_FILE) is None:
        found[IGNORE_FILE] = _IGNORED
    if job.brings_lock_file:
        found[LOCK_FILE] = _lock(chance.randrange(_LOCKS))
    return {path: text for path, text in found.items() if text != reading(path)}


def _strays(job: Job, jobs: Sequence[Job], chance: Random) -> tuple[str, ...]:
    """`job.strays` paths that are not its own, package.json first of all, older modules sooner than younger ones."""
    others = sorted({(other.began_s, path) for other in jobs for path in other.scope if path not in job.scope})
    modules = list(dict.fromkeys(path for _, path in others if path != MANIFEST))
    wanted: list[str] = []
    if job.strays and MANIFEST not in job.scope and chance.random() < 0.5:
        wanted.append(MANIFEST)
    tests = [f"{path.rpartition('.')[0]}.test.ts" for path in job.scope if path.endswith(".ts")]
    while len(wanted) < job.strays and modules:
        own = tests and chance.random() < _OWN_TEST
        wanted.append(tests.pop() if own else modules.pop(int(len(modules) * chance.random() ** 2)))
    return tuple(wanted)


def _module(name: str, chance: Random, lines: int) -> str:
    body = [f"export const v{n} = {chance.randrange(10**9)};" for n in range(lines)]
    return "\n".join([f"// {name}", 'import { base } from "./base";', "", *body, ""])


def _edited(text: str, job: Job, chance: Random) -> str:
    lines = text.rstrip("\n").split("\n")
    for _ in range(chance.randrange(2, 5)):
        at = chance.randrange(len(lines))
        lines[at] = f"{lines[at].split(' // ')[0]} // {job.id}: {chance.randrange(10**6)}"
    middle = chance.randrange(len(lines))
    lines[middle:middle] = [
        f"export const {job.id.replace('-', '_')}_{n} = {chance.randrange(10**9)};" for n in range(5)
    ]
    if chance.random() < _IMPORTS_TOO:
        lines[2:2] = [f'import {{ used }} from "./{job.id}";']
    if chance.random() < _IMPORTS_TOO:
        lines += [f"export function {job.id.replace('-', '_')}() {{ return {chance.randrange(10**9)}; }}"]
    return "\n".join(lines) + "\n"


def _depends_on(text: str, job: Job, chance: Random) -> str:
    """One dependency more, sorted in, as the package manager leaves it."""
    try:
        manifest = json.loads(text)
    except ValueError:
        manifest = {}
    tool, version = (
        ("vitest", "1.4.0") if chance.random() < _SAME_TOOL else (f"lib-{chance.randrange(400):03d}", "2.0.0")
    )
    needed = {**manifest.get("devDependencies", {}), tool: version}
    return _json({**manifest, "devDependencies": dict(sorted(needed.items()))})


def _lock(hour: int) -> str:
    chance = Random(hour)
    return _json({"lockfileVersion": 3, "packages": {f"node_modules/p{n}": chance.randrange(10**9) for n in range(60)}})


def _json(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"
