"""How a worker's bundle enters the mirror: read, unpacked, proven harmless, and only then moved in.

A small and plain one is judged here (`core/plain_work.py`); any other is unpacked by git, in a quarantine.
"""

import contextlib
import os
import re
import shutil
import tempfile
import time
from pathlib import Path

from longshot_dagster.adapters.repository.git import LOCAL_TIMEOUT_S, Git, Limits
from longshot_dagster.adapters.repository.object_store import kept, tree_of, write
from longshot_dagster.core.bundles import Bundle, read_bundle
from longshot_dagster.core.contract import MAX_BUNDLE_BYTES, WORK_REF
from longshot_dagster.core.errors import HostileBundle, RepositoryError
from longshot_dagster.core.plain_work import judge
from longshot_dagster.core.small_pack import MOST_OBJECTS, MOST_UNPACKED, NotPlain, Object, unpack

MAX_COMMITS = 10_000
UNPACK_BELOW = 500  # objects: a pack per task would make every lookup search a thousand packs

_LIMITS = Limits(cpu_s=120, memory_bytes=4 << 30, file_bytes=2 << 30)
_STALE_S = 3600
_QUARANTINE = "longshot-quarantine"
_ORDER = {"blob": 0, "tree": 1, "commit": 2}

_next_sweep: dict[Path, float] = {}  # of each mirror's quarantine, by this process (monotonic)


def work_ref(build: str, task: str) -> str:
    """Never below refs/heads: a pushed branch can start CI that holds secrets."""
    return f"refs/longshot/work/{build}/{task}"


def take_in(git: Git, mirror: Path, build: str, task: str, base: str, data: bytes) -> str:
    """Import a worker's bundle into the bare repository `mirror`, which is `git`'s; returns its head, kept under `work_ref`.

    Raises HostileBundle, leaving nothing behind, unless the bundle holds exactly refs/heads/work, builds on `base`,
    stays within the caps and passes git's strict checks (`.git` in a tree, a symlinked .gitmodules, missing objects).
    """
    bundle = read_bundle(data, WORK_REF)
    for commit in bundle.prerequisites:
        if commit != base and git.run("merge-base", "--is-ancestor", commit, base, ok=(0, 1, 128)).code != 0:
            raise HostileBundle(f"the bundle builds on {commit[:12]}, which is not part of its base")
    _sweep_now_and_then(mirror / _QUARANTINE)
    if (plain := _plain_objects(git, bundle, base)) is not None:
        for kind, content in plain:
            write(git, kind, content)
    else:
        _take_in_through_git(git, mirror, bundle, base)
    point(git, work_ref(build, task), bundle.head)
    return bundle.head


def _plain_objects(git: Git, bundle: Bundle, base: str) -> list[Object] | None:
    """What there is to write, what names others after them; None when git is to judge the bundle."""
    if bundle.objects > min(MOST_OBJECTS, MAX_COMMITS) or bundle.unpacked_bytes > MOST_UNPACKED:
        return None

    def there(oid: str) -> Object | None:
        return kept(git, oid, MOST_UNPACKED)

    try:
        objects = unpack(bundle.pack, there)
        judge(bundle.head, base, tree_of(git, base), objects, there)
    except (NotPlain, RepositoryError):  # where the mirror cannot be read, git says so
        return None
    return sorted(objects.values(), key=lambda o: _ORDER[o[0]])


def _take_in_through_git(git: Git, mirror: Path, bundle: Bundle, base: str) -> None:
    room = mirror / _QUARANTINE
    room.mkdir(exist_ok=True)
    quarantine = Path(tempfile.mkdtemp(dir=room))
    try:
        (quarantine / "pack").mkdir()
        _unpack(git, quarantine, bundle)
        _prove(git, quarantine, bundle, base)
        _move_in(mirror, quarantine)
    finally:
        shutil.rmtree(quarantine, ignore_errors=True)


def point(git: Git, ref: str, oid: str) -> None:
    """Make `ref` name a commit that is here, whatever it named before."""
    moved = f"start\nupdate {ref} {oid}\nprepare\ncommit\n".encode()
    git.dialogue("update-ref", "--stdin").ask(moved, b"commit: ok\n", keep=4096, timeout_s=LOCAL_TIMEOUT_S)


def _surroundings(git: Git, quarantine: Path) -> dict[str, str]:
    return {
        "GIT_OBJECT_DIRECTORY": str(quarantine),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": f"{git.directory}/objects",
    }


_NO_ROOM = re.compile(r": (No space left on device|Disk quota exceeded|Read-only file system)(;|$)")


def _unpack(git: Git, quarantine: Path, bundle: Bundle) -> None:
    """Every object is checked strictly, and that what it names is here, before the first of them exists for git."""
    if not bundle.objects:
        return
    few = ("unpack-objects", "--strict", "-q")
    many = ("index-pack", "--strict", "--stdin", "--fix-thin", "--threads=1")
    try:
        git.run(
            *("-c", "core.bigFileThreshold=8m", "-c", "core.packedGitLimit=256m"),
            *(few if bundle.objects < UNPACK_BELOW else many),
            f"--max-input-size={MAX_BUNDLE_BYTES}",
            stdin=bytes(bundle.pack),
            env=_surroundings(git, quarantine),
            limits=_LIMITS,
            timeout_s=180,
        )
    except RepositoryError as e:
        if _NO_ROOM.search(str(e)):
            raise  # says nothing about the bundle, which is taken in once there is room
        raise HostileBundle(f"the bundle was refused: {e}") from e


def _prove(git: Git, quarantine: Path, bundle: Bundle, base: str) -> None:
    """The head is a commit on top of `base`, and everything it needs is here.

    One walk over all that the head has and the base has not tells it: it fails where anything is missing; a commit's
    line holds its date and its parents, any other object's its id and no name, so that neither can pass for the other.
    """
    options = ("--objects", "--no-object-names", "--timestamp", "--parents")
    env = _surroundings(git, quarantine)
    try:
        ran = git.run("rev-list", *options, bundle.head, f"^{base}", env=env, limits=_LIMITS)
    except RepositoryError as e:
        raise HostileBundle(f"the bundle was refused: {e}") from e
    if ran.truncated:
        raise HostileBundle("the branch holds more objects than can be counted")
    listed = [line.split(" ") for line in ran.out.decode("ascii", "replace").splitlines()]
    commits = {fields[1]: fields[2:] for fields in listed if len(fields) > 1}
    if [bundle.head] in listed:
        raise HostileBundle("the bundle's ref is not a commit")
    if len(commits) > MAX_COMMITS:
        raise HostileBundle(f"the branch has more than {MAX_COMMITS} commits")
    if bundle.head != base and not any(base in parents for parents in commits.values()):
        raise HostileBundle("the bundle's branch does not build on its base")


def _move_in(mirror: Path, quarantine: Path) -> None:
    """What is there already stays; of a pack the index comes last, because without one it does not exist for git."""
    for folder in os.listdir(quarantine):  # noqa: PTH208 - names, because paths cost more than the moves
        found, place = f"{quarantine}/{folder}", f"{mirror}/objects/{folder}"
        for name in sorted(os.listdir(found), key=lambda n: n.endswith(".idx")):  # noqa: PTH208
            if folder == "pack" and not name.endswith((".pack", ".rev", ".idx")):
                continue
            if os.path.exists(f"{place}/{name}"):  # noqa: PTH110
                continue
            try:
                os.rename(f"{found}/{name}", f"{place}/{name}")  # noqa: PTH104
            except FileNotFoundError:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(place)  # noqa: PTH102
                os.rename(f"{found}/{name}", f"{place}/{name}")  # noqa: PTH104
        with contextlib.suppress(OSError):  # what is left is removed at the end
            os.rmdir(found)  # noqa: PTH106


def _sweep_now_and_then(room: Path) -> None:
    """What is stale only after an hour need not be looked for at every bundle."""
    if time.monotonic() < _next_sweep.get(room, 0.0):
        return
    _next_sweep[room] = time.monotonic() + _STALE_S
    with contextlib.suppress(FileNotFoundError):  # nothing has ever come in through it
        _sweep(room)


def _sweep(room: Path) -> None:
    """Remove what a killed process left, judged by the file system's own clock."""
    probe = room / ".now"
    probe.touch()
    now = probe.stat().st_mtime
    for folder in room.iterdir():
        if folder.is_dir() and now - folder.stat().st_mtime > _STALE_S:
            shutil.rmtree(folder, ignore_errors=True)
