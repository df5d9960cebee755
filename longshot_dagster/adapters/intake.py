"""How a worker's bundle enters the mirror: read, unpacked in a quarantine, proven harmless, and only then moved in."""

import shutil
import tempfile
from pathlib import Path

from longshot_dagster.adapters.git import Git, Limits
from longshot_dagster.core.bundles import Bundle, read_bundle
from longshot_dagster.core.contract import MAX_BUNDLE_BYTES, WORK_REF
from longshot_dagster.core.errors import HostileBundle, RepositoryError

MAX_COMMITS = 10_000
UNPACK_BELOW = 500  # objects: a pack per task would make every lookup search a thousand packs

_LIMITS = Limits(cpu_s=120, memory_bytes=4 << 30, file_bytes=2 << 30)
_STALE_S = 3600


def work_ref(build: str, task: str) -> str:
    """Never below refs/heads: a pushed branch can start CI that holds secrets."""
    return f"refs/longshot/work/{build}/{task}"


def take_in(mirror: Path, build: str, task: str, base: str, data: bytes) -> str:
    """Import a worker's bundle into the bare repository `mirror`; returns its head, kept under `work_ref`.

    Raises HostileBundle, leaving nothing behind, unless the bundle holds exactly refs/heads/work, builds on `base`,
    stays within the caps and passes git's strict checks (`.git` in a tree, a symlinked .gitmodules, missing objects).
    """
    git = Git(mirror)
    bundle = read_bundle(data, WORK_REF)
    for commit in bundle.prerequisites:
        if commit != base and git.run("merge-base", "--is-ancestor", commit, base, ok=(0, 1, 128)).code != 0:
            raise HostileBundle(f"the bundle builds on {commit[:12]}, which is not part of its base")
    room = mirror / "longshot-quarantine"
    room.mkdir(exist_ok=True)
    _sweep(room)
    with tempfile.TemporaryDirectory(dir=room) as folder:
        quarantine = Path(folder) / "objects"
        (quarantine / "pack").mkdir(parents=True)
        _unpack(git, quarantine, bundle)
        _prove(git, quarantine, bundle, base)
        _move_in(git, mirror, quarantine, bundle)
    git.run("update-ref", work_ref(build, task), bundle.head)
    return bundle.head


def _surroundings(git: Git, quarantine: Path) -> dict[str, str]:
    return {
        "GIT_OBJECT_DIRECTORY": str(quarantine),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": f"{git.directory}/objects",
    }


def _unpack(git: Git, quarantine: Path, bundle: Bundle) -> None:
    if not bundle.objects:
        return
    try:
        git.run(
            *("-c", "core.bigFileThreshold=8m", "-c", "core.packedGitLimit=256m"),
            *("index-pack", "--strict", "--stdin", "--fix-thin", "--threads=1"),
            f"--max-input-size={MAX_BUNDLE_BYTES}",
            stdin=bytes(bundle.pack),
            env=_surroundings(git, quarantine),
            limits=_LIMITS,
            timeout_s=180,
        )
    except RepositoryError as e:
        raise HostileBundle(f"the bundle was refused: {e}") from e


def _prove(git: Git, quarantine: Path, bundle: Bundle, base: str) -> None:
    """The head is a commit on top of `base`, and everything it needs is here."""
    env = _surroundings(git, quarantine)
    kind = git.run("cat-file", "-t", bundle.head, env=env, ok=(0, 128))
    if kind.text != "commit":
        raise HostileBundle("the bundle's ref is not a commit")
    if git.run("merge-base", "--is-ancestor", base, bundle.head, env=env, ok=(0, 1, 128)).code != 0:
        raise HostileBundle("the bundle's branch does not build on its base")
    try:
        git.run("rev-list", "--objects", "--quiet", bundle.head, f"^{base}", env=env, limits=_LIMITS)
        commits = git.run("rev-list", "--count", bundle.head, f"^{base}", env=env, limits=_LIMITS)
    except RepositoryError as e:
        raise HostileBundle(f"the bundle was refused: {e}") from e
    if int(commits.text) > MAX_COMMITS:
        raise HostileBundle(f"the branch has more than {MAX_COMMITS} commits")


def _move_in(git: Git, mirror: Path, quarantine: Path, bundle: Bundle) -> None:
    if not bundle.objects:
        return
    if bundle.objects < UNPACK_BELOW:
        git.run("unpack-objects", "-q", stdin=bytes(bundle.pack), limits=_LIMITS)
        return
    # The index last: a pack without one does not exist for git.
    files = sorted((quarantine / "pack").iterdir(), key=lambda f: f.suffix == ".idx")
    for file in files:
        if file.suffix in (".pack", ".rev", ".idx"):
            file.rename(mirror / "objects" / "pack" / file.name)


def _sweep(room: Path) -> None:
    """Remove what a killed process left, judged by the file system's own clock."""
    probe = room / ".now"
    probe.touch()
    now = probe.stat().st_mtime
    for folder in room.iterdir():
        if folder.is_dir() and now - folder.stat().st_mtime > _STALE_S:
            shutil.rmtree(folder, ignore_errors=True)
