"""The same work under the policy of the fleet that was recorded: every branch on the first commit, and all of it merged."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from replaying.contents import edits
from replaying.record import Job
from replaying.repository import Objects


def control_landed(jobs: Sequence[Job], seed: int, folder: Path, files: dict[str, str]) -> set[str]:
    """Names of those that merge, in the order of the record, with plain git; one that conflicts is left out."""
    objects = Objects.made(folder)
    base = head = objects.commit(None, files, "scaffold")
    landed = set()
    for job in jobs:
        tip = objects.commit(base, edits(job, jobs, seed, files.get), job.id)
        merged = _git(folder, "merge-tree", "--write-tree", "--name-only", head, tip)
        if merged.returncode == 0:
            tree = merged.stdout.decode().split("\n", 1)[0]
            head = _git(folder, "commit-tree", tree, "-p", head, "-p", tip, "-m", job.id).stdout.decode().strip()
            landed.add(job.id)
    return landed


def _git(folder: Path, *args: str) -> "subprocess.CompletedProcess[bytes]":
    who = {f"GIT_{who}_{what}": "x@y" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", **who}
    return subprocess.run(["git", *args], cwd=folder, capture_output=True, env=env, check=False)
