"""Real repositories and workers' branches for tests: a target, a ledger, and work that arrives as bundles."""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.landing.queue import LandingQueue
from longshot_dagster.adapters.ledger.ledger import BuildLedger, Ledger
from longshot_dagster.adapters.repository.mirror import Mirror
from longshot_dagster.adapters.repository.targets import prepare_target, resolve_target
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.models import (
    BuildRequest,
    CheckResult,
    Handoff,
    HandoffStatus,
    Plan,
    Task,
    TaskKind,
    WorkerRun,
)
from longshot_dagster.core.settings import Settings

BUILD = "a-build-7f3k"
Edits = Mapping[str, str | bytes | None]  # path -> content; None deletes; "-> target" links

_WHO = {"NAME": "A Worker", "EMAIL": "worker@example.invalid", "DATE": "1700000000 +0000"}
ENV = {
    "PATH": os.environ["PATH"],
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_TEMPLATE_DIR": "",  # a dozen sample hooks a repository are what tests spend their time on
    "HOME": "/nonexistent",
    **{f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in _WHO.items()},
}


def git(where: Path, *args: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        ["git", *args], cwd=where, input=stdin, capture_output=True, env={**ENV, **(env or {})}, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode("utf-8", "replace").strip()


def write(folder: Path, edits: Edits) -> None:
    for name, content in edits.items():
        path = folder / name
        if content is None:
            path.unlink()
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str) and content.startswith("-> "):
            path.unlink(missing_ok=True)
            path.symlink_to(content[3:])
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)


def bare(path: Path, files: Edits | None = None, branch: str = "main") -> Path:
    """A bare repository; with `files`, one commit on `branch`."""
    path.mkdir(parents=True)
    git(path, "init", "-q", "--bare", "-b", branch)
    (path / "hooks").mkdir(exist_ok=True)
    if files:
        git(path, "fast-import", "--quiet", stdin=_first_commit(branch, files))
        work = path.parent / f"{path.name}-stranger"  # where `commit_on` goes on
        git(path.parent, "clone", "-q", "-b", branch, str(path), str(work))
        git(work, "checkout", "-q", "-B", "work")
    return path


def _first_commit(branch: str, files: Edits) -> bytes:
    """What `commit_on` would make, for fewer processes."""
    who = "{NAME} <{EMAIL}> {DATE}".format(**_WHO)
    stream = [f"commit refs/heads/{branch}\nauthor {who}\ncommitter {who}\ndata 8\nby hand\n\n".encode()]
    for name, content in files.items():
        is_link = isinstance(content, str) and content.startswith("-> ")
        data = (content[3:] if is_link else content).encode() if isinstance(content, str) else content or b""
        mode = "120000" if is_link else "100644"
        quoted = json.dumps(name, ensure_ascii=False)
        stream.append(f"M {mode} inline {quoted}\ndata {len(data)}\n".encode() + data + b"\n")
    return b"".join(stream)


def commit_on(repository: Path, branch: str, files: Edits, message: str = "by hand") -> str:
    """One more commit on a branch of a bare repository, as a stranger would push it."""
    work = repository.parent / f"{repository.name}-stranger"
    if not work.exists():
        git(repository.parent, "clone", "-q", str(repository), str(work))
    git(work, "fetch", "-q", "origin")
    there = git(work, "branch", "-r", "--list", f"origin/{branch}")
    git(work, "checkout", "-q", "-B", "work", *([f"origin/{branch}"] if there else []))
    write(work, files)
    git(work, "add", "-A")
    git(work, "commit", "-q", "--allow-empty", "-m", message)
    git(work, "push", "-q", "origin", f"HEAD:{branch}")
    return git(work, "rev-parse", "HEAD")


def files_at(repository: Path, revision: str = "main") -> dict[str, str]:
    names = [n for n in git(repository, "ls-tree", "-r", "-z", "--name-only", revision).split("\0") if n]
    return {n: git(repository, "show", f"{revision}:{n}") for n in names}


def objects_in(repository: Path) -> set[str]:
    return set(git(repository, "cat-file", "--batch-all-objects", "--batch-check").splitlines())


@dataclass
class World:
    """One build on one target."""

    root: Path
    origin: Path
    settings: Settings = field(default_factory=lambda: Settings(merge_strategy="rebase"))
    build: str = BUILD
    repository: str = ""
    land_on: str | None = None

    def __post_init__(self) -> None:
        self.home = Home(self.root / "home")
        target = resolve_target(self.repository or str(self.origin), self.settings, self.build, self.land_on)
        base = prepare_target(target, SystemClock())
        self.request = BuildRequest(
            build=self.build, request="x", target=target, base=base, settings=self.settings, created_at=1.0
        )
        self.ledger.save_request(self.request)
        self.mirror = Mirror(self.home, target)
        self.plans = 0

    @property
    def ledger(self) -> BuildLedger:
        return Ledger(self.home.builds).build(self.build)

    def queue(self) -> LandingQueue:
        return LandingQueue(self.ledger, self.request, Mirror(self.home, self.request.target), SystemClock())

    def task(self, name: str, scope: tuple[str, ...], **more: object) -> Task:
        facts = {"description": f"Do {name}", "iteration": "root.001", "planner": "root", "kind": TaskKind.PLAN}
        return Task(id=name, build=self.build, scope=scope, branch=f"worker/{name}", **{**facts, **more})

    def plan(self, *tasks: Task) -> None:
        self.plans += 1
        key = IterationKey(self.build, "root", self.plans)
        self.ledger.open_iteration(key)
        self.ledger.freeze_plan(key, Plan(iteration=key.short, tasks=tasks, base=self.request.base))

    def bundle(self, base: str, *commits: Edits | tuple[str, Edits]) -> bytes:
        """What a worker's sandbox would hand out after these commits on `base`."""
        folder = self.root / f"sandbox-{os.urandom(4).hex()}"
        git(self.root, "clone", "-q", "-b", "base", str(self.mirror.bundle(base)), str(folder))
        git(folder, "checkout", "-q", "-b", "work")
        for commit in commits:
            message, edits = commit if isinstance(commit, tuple) else ("work", commit)
            write(folder, edits)
            git(folder, "add", "-A", "-f")
            git(folder, "commit", "-q", "--allow-empty", "--cleanup=verbatim", "-m", message)
        git(folder, "bundle", "create", "-q", "out.bundle", f"{base}..work")
        return (folder / "out.bundle").read_bytes()

    def worked(
        self,
        task: Task,
        *commits: Edits | tuple[str, Edits],
        base: str | None = None,
        status: HandoffStatus = HandoffStatus.COMPLETE,
        checks: tuple[CheckResult, ...] = (),
    ) -> str | None:
        """Record that a worker did `task` with these commits; returns its head."""
        base = base or self.mirror.fetch()
        head = None
        if commits:
            head = self.mirror.intake(self.build, task.id, base, self.bundle(base, *commits))
        self.delivered(task, base, head, status, checks)
        return head

    def delivered(
        self,
        task: Task,
        base: str,
        head: str | None,
        status: HandoffStatus = HandoffStatus.COMPLETE,
        checks: tuple[CheckResult, ...] = (),
    ) -> None:
        run = WorkerRun(
            task=task.id,
            provider="local",
            harness="builtin",
            harness_status="completed",
            base=base,
            head=head,
            checks=checks,
            started_at=1,
            ended_at=2,
        )
        self.ledger.save_run(run)
        self.ledger.save_handoff(Handoff(task_id=task.id, status=status, summary=f"{task.id} is done"))

    def main(self) -> str:
        return git(self.origin, "rev-parse", f"refs/heads/{self.request.target.branch}")

    def log(self, *args: str) -> list[str]:
        return git(self.origin, "log", "--format=%s", *args, self.request.target.branch).splitlines()


def trailers(repository: Path, revision: str) -> list[str]:
    return git(repository, "log", "-1", "--format=%(trailers:only,unfold)", revision).splitlines()
