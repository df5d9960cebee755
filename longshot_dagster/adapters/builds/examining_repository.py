"""A real look at the repository that would be built in: can it be read and pushed to, and what of it no sandbox has."""

import contextlib
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from longshot_dagster.adapters.builds.starting import TARGET_SETTINGS
from longshot_dagster.adapters.repository.git import Git
from longshot_dagster.adapters.repository.repository_reader import RepositoryReader
from longshot_dagster.adapters.repository.targets import look_at, resolve_target
from longshot_dagster.adapters.settings import Resolved
from longshot_dagster.core.errors import RepositoryError, WrongUse
from longshot_dagster.core.findings import Finding, fine, left_out, to_do
from longshot_dagster.core.models import Target, TargetKind

_SMALL = 100_000  # bytes of a file that is worth a look
_FETCH_S = 120.0
_NO_BUILD = "doctor"  # stands for the build in branch names


class Reader(Protocol):
    """Reads text files of a commit; the mirror can, and whatever holds its objects."""

    def read_file(self, oid: str, path: str, max_bytes: int = ..., /) -> str:
        """Raises WrongUse when there is none."""


@dataclass(frozen=True)
class Looked:
    """What a look at a repository found, and its `.longshot.toml` if it has one."""

    findings: list[Finding]
    target_toml: str | None = None


def examine_repository(repository: str, resolved: Resolved, land_on: str | None) -> Looked:
    """`repository` is what a build would be given; a push is only tried, with a branch that is never made."""
    if not repository:
        why = "none named: give --repo PATH_OR_URL, set GIT_REPO_URL, or start inside a checkout"
        return Looked([left_out("repository", why)])
    try:
        target = resolve_target(repository, resolved.settings, _NO_BUILD, land_on)
        head = look_at(target)
    except (WrongUse, RepositoryError) as e:
        return Looked([to_do("repository", str(e))])
    where = f"{target.repository}, readable and pushable; finished work lands on {_landing_place(target)}"
    if head is None:
        return Looked([fine("repository", f"{where}; it is empty and gets a first commit")])
    with tempfile.TemporaryDirectory(prefix="longshot-doctor-") as folder:
        try:
            reader = _newest_commit(Path(folder), target, head)
        except RepositoryError as e:
            return Looked([to_do("repository", f"{target.repository} cannot be fetched: {e}")])
        notes = [left_out("repository", note) for note in repository_notes(reader, head)]
        toml = _text(reader, head, TARGET_SETTINGS)
    return Looked([fine("repository", where), *notes], toml or None)


def repository_notes(reader: Reader, head: str) -> tuple[str, ...]:
    """What people expect to be in a checkout and sandboxes do not have, one line each."""
    notes = []
    if re.search(r"^\s*\[submodule", _text(reader, head, ".gitmodules"), re.MULTILINE):
        notes.append("it has submodules: their folders are empty in sandboxes, and what needs them cannot be checked")
    if re.search(r"\bfilter=lfs\b", _text(reader, head, ".gitattributes")):
        notes.append("it keeps files in Git LFS: sandboxes see the pointers, not the contents")
    return tuple(notes)


def _landing_place(target: Target) -> str:
    if target.kind is TargetKind.CHECKOUT:
        return "its branch longshot/<build>"
    return target.branch if target.repository == target.url else f"{target.branch} of its origin {target.url}"


def _newest_commit(folder: Path, target: Target, head: str) -> RepositoryReader:
    """`head` alone, without its history and, where the server can, without what is large."""
    Git().run("init", "-q", "--bare", str(folder))
    git = Git(folder, network=True)
    for name, value in (("url", target.url), ("promisor", "true"), ("partialclonefilter", f"blob:limit={_SMALL}")):
        git.run("config", f"remote.target.{name}", value)
    options = ("--quiet", "--no-tags", "--depth=1", f"--filter=blob:limit={_SMALL}", "--no-recurse-submodules")
    branches = (target.branch, target.base_branch)
    listed = git.run("ls-remote", "--heads", "target", *(f"refs/heads/{b}" for b in branches), timeout_s=_FETCH_S).text
    ref = next((line.split("\t")[1] for line in listed.splitlines() if line.startswith(head)), None)
    git.run("fetch", *options, "target", ref or head, timeout_s=_FETCH_S)
    return RepositoryReader(folder)


def _text(reader: Reader, head: str, path: str) -> str:
    with contextlib.suppress(WrongUse, RepositoryError):
        return reader.read_file(head, path, _SMALL)
    return ""
