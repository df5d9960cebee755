"""Which tool makes which lock file, which of them are due once manifests have landed, and what is said about it."""

import posixpath
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from longshot_dagster.core import scope
from longshot_dagster.core.display import display, one_line
from longshot_dagster.core.landing_records import LandingOutcome

BUILD_TRAILER = "Longshot-Build"
LOCK_TRAILER = "Longshot-Lock-File"


@dataclass(frozen=True)
class LockTool:
    """`command` is a shell's, run in the lock file's folder; `offline` is put behind it where a sandbox has no network.

    `reads`: patterns of the names of all files it needs; empty: the whole tree.
    """

    program: str
    locks: tuple[str, ...]
    manifests: tuple[str, ...]
    command: str
    offline: str = ""
    reads: tuple[str, ...] = ()

    def line(self, has_network: bool) -> str:
        words = self.command if has_network or not self.offline else f"{self.command} {self.offline}"
        return f"command -v {self.program} >/dev/null 2>&1 || exit 127; {words}"


_NODE = ("package.json", ".npmrc", "*.tgz")
# No script of a package is run where the tool can be told so; the sandbox holds what it runs all the same.
TOOLS = (
    LockTool(
        "npm",
        ("package-lock.json", "npm-shrinkwrap.json"),
        ("package.json",),
        "npm install --package-lock-only --ignore-scripts --no-audit --no-fund --no-update-notifier",
        "--offline",
        ("package-lock.json", "npm-shrinkwrap.json", *_NODE),
    ),
    LockTool(
        "pnpm",
        ("pnpm-lock.yaml",),
        ("package.json", "pnpm-workspace.yaml"),
        "pnpm install --lockfile-only --ignore-scripts",
        "--offline",
        ("pnpm-lock.yaml", "pnpm-workspace.yaml", ".pnpmfile.cjs", *_NODE),
    ),
    LockTool("yarn", ("yarn.lock",), ("package.json",), "yarn install --mode=update-lockfile"),
    LockTool("bun", ("bun.lock", "bun.lockb"), ("package.json",), "bun install --lockfile-only --ignore-scripts"),
    LockTool("uv", ("uv.lock",), ("pyproject.toml",), "uv lock", "--offline"),
    LockTool("poetry", ("poetry.lock",), ("pyproject.toml",), "poetry lock --no-interaction"),
    LockTool("pdm", ("pdm.lock",), ("pyproject.toml",), "pdm lock --update-reuse"),
    LockTool("pipenv", ("Pipfile.lock",), ("Pipfile",), "pipenv lock"),
    LockTool("go", ("go.sum",), ("go.mod",), "go mod tidy"),  # it reads every import; what it makes of go.mod is left
    LockTool(
        "composer",
        ("composer.lock",),
        ("composer.json",),
        "composer update --minimal-changes --no-install --no-scripts --no-plugins --no-interaction",
    ),
    LockTool("nix", ("flake.lock",), ("flake.nix",), "nix flake lock"),
    LockTool("cargo", ("Cargo.lock",), ("Cargo.toml",), "cargo update --workspace", "--offline"),
    LockTool("bundle", ("Gemfile.lock",), ("Gemfile", "*.gemspec"), "bundle lock", "--local"),
)


@dataclass(frozen=True)
class LockJob:
    """`folder` is "" for the repository's root."""

    tool: LockTool
    folder: str
    path: str


def asked_about(landed: Iterable[str], withheld: Iterable[str]) -> tuple[str, ...]:
    """Paths of which `due` has to know whether they exist; none where no lock file can be due."""
    found: dict[str, None] = {}
    for path in (*_manifests(landed), *_locks(withheld)):
        for folder in _folders(path):
            found |= {posixpath.join(folder, n): None for t in TOOLS for n in (*t.locks, *t.manifests) if "*" not in n}
    return tuple(found)


def due(landed: Iterable[str], withheld: Iterable[str], there: Collection[str]) -> tuple[LockJob, ...]:
    """Lock files to be made anew: the nearest one above each landed manifest, and new ones that tasks had with them.

    A lock file is new in the project only beside a manifest that no lock file governs yet. `there`: what exists.
    """
    jobs: dict[str, LockJob] = {}
    for path in _manifests(landed):
        jobs |= {job.path: job for job in _governing(path, there)}
    taken = {manifest for job in jobs.values() for manifest in _beside(job, there)}
    for path in _locks(withheld):
        folder, name = posixpath.split(path)
        for job in (LockJob(t, folder, path) for t in TOOLS if name in t.locks):
            manifests = _beside(job, there)
            if manifests and not manifests & taken and not any(_governing(m, there) for m in manifests):
                jobs[job.path] = job
                taken |= manifests
    return tuple(jobs.values())


def concerns_of(outcome: LandingOutcome, job: LockJob) -> bool:
    """Has this task a part in the job's being due?"""
    below = f"{job.folder}/" if job.folder else ""
    return any(p.startswith(below) for p in _manifests(outcome.landed_paths)) or job.path in outcome.withheld_paths


def needed(job: LockJob, path: str) -> bool:
    """Must a file of the tree be in the sandbox?"""
    folder, name = posixpath.split(path)
    if not job.tool.reads:
        return True
    return "node_modules" not in folder.split("/") and any(fnmatchcase(name, p) for p in job.tool.reads)


def problem(job: LockJob, code: int, said: str) -> str:
    """Why a tool has not made its lock file, in one line."""
    if code == 127:
        return f"{job.tool.program} is not in the sandbox"
    if code == 124:
        return f"{job.tool.program} did not end in time"
    lines = [line.strip() for line in display(said, "plain", 4_000).splitlines() if line.strip()]
    wrong = [line for line in lines if "err" in line.lower()] or lines
    return f"{job.tool.program} ended with exit code {code}: {one_line(' '.join(wrong[:3]) or 'it said nothing', 300)}"


def message(build: str, paths: Iterable[str]) -> str:
    """Of the commit that holds lock files made anew; no trailer names a task, because it is nobody's landing."""
    shown = [one_line(path, 200) for path in paths]
    subject = f"Make {posixpath.basename(shown[0])} anew" if len(shown) == 1 else f"Make {len(shown)} lock files anew"
    return "\n".join([subject, "", f"{BUILD_TRAILER}: {build}", *(f"{LOCK_TRAILER}: {path}" for path in shown)]) + "\n"


def _manifests(paths: Iterable[str]) -> list[str]:
    patterns = {m for tool in TOOLS for m in tool.manifests}
    return [p for p in paths if any(fnmatchcase(posixpath.basename(p), m) for m in patterns)]


def _locks(paths: Iterable[str]) -> list[str]:
    return [p for p in paths if posixpath.basename(p) in scope.LOCK_FILES]


def _governing(manifest: str, there: Collection[str]) -> list[LockJob]:
    """The lock files of the nearest folder, from the manifest's own upwards, that has both one and its manifest."""
    name = posixpath.basename(manifest)
    for folder in _folders(manifest):
        jobs = [
            LockJob(tool, folder, path)
            for tool in TOOLS
            if any(fnmatchcase(name, m) for m in tool.manifests)
            for path in (posixpath.join(folder, lock) for lock in tool.locks)
            if path in there
        ]
        if found := [job for job in jobs if _beside(job, there)]:
            return found
    return []


def _beside(job: LockJob, there: Collection[str]) -> set[str]:
    return {path for m in job.tool.manifests if (path := posixpath.join(job.folder, m)) in there}


def _folders(path: str) -> Iterator[str]:
    """The folder that holds `path`, and every one above it; "" last."""
    while path:
        path = posixpath.dirname(path)
        yield path
