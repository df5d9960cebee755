"""What a build has left on its target and in the mirror beside the work itself, and how that is taken away."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from longshot_dagster.adapters.host.documents import locked
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.repository.git import Git
from longshot_dagster.adapters.repository.mirror import Mirror, Update
from longshot_dagster.core.cleaning import mirrored_refs_of, refs_of
from longshot_dagster.core.errors import RepositoryError
from longshot_dagster.core.models import Target, TargetKind

_PRUNE_BEFORE = "2.days.ago"  # longer than any worker or landing takes: what is under way keeps its unnamed objects
_MANY_OBJECTS = 2_000


@dataclass(frozen=True)
class OnTarget:
    """What of a build is on its target. `why`: it could not be asked; nothing is known then."""

    refs: Mapping[str, str]
    result: str = ""  # the branch with a checkout's work, when it is there
    merged: bool = False  # that work is on another branch of the person's too
    why: str = ""


def listed_on(target: Target) -> dict[str, str] | str:
    """Every ref that builds have made there, in one round trip; why it could not be asked.

    A repository on this host that is gone holds nothing.
    """
    local = Path(target.url)
    if local.is_absolute() and not local.exists():
        return {}
    patterns = ("refs/longshot/*", "refs/heads/longshot/*")
    try:
        listed = Git(network=True).run("ls-remote", "--refs", "--", target.url, *patterns, timeout_s=60)
    except RepositoryError as e:
        return str(e)
    lines = (line.partition("\t") for line in listed.out.decode("utf-8", "surrogateescape").splitlines())
    return {ref: oid for oid, _, ref in lines}


def on_target(target: Target, build: str, listed: dict[str, str] | str) -> OnTarget:
    """What of it is the build's."""
    if isinstance(listed, str):
        return OnTarget({}, why=listed)
    result = f"refs/heads/longshot/{build}" if target.kind is TargetKind.CHECKOUT else ""
    theirs = {ref: listed[ref] for ref in refs_of(build, listed)}
    if result not in listed:
        return OnTarget(theirs)
    return OnTarget(theirs, result, _is_merged(Path(target.url), listed[result]))


def take_from_target(home: Home, target: Target, there: OnTarget) -> list[str]:
    """Remove the refs, and the result where it is merged; what the target refused, one line each."""
    if not there.refs and not (there.result and there.merged):
        return []
    mirror, refused = Mirror(home, target), []
    _ = mirror.git  # made, where it was removed already: a push needs a repository to be started from
    if there.refs and (why := _removed(mirror, there.refs)):
        refused.append(f"{len(there.refs)} refs stay on {target.repository}: {why}")
    if there.result and there.merged:
        head = Git(Path(target.url)).run("rev-parse", "-q", "--verify", there.result, ok=(0, 1)).text
        # Somebody may have committed to it while a person was asked.
        why = "" if not head or _is_merged(Path(target.url), head) else "it has got work that is merged nowhere"
        if head and (why := why or _removed(mirror, {there.result: head}) or ""):
            refused.append(f"branch {there.result.removeprefix('refs/heads/')} stays in {target.repository}: {why}")
    return refused


def _removed(mirror: Mirror, refs: Mapping[str, str]) -> str | None:
    try:
        return mirror.push([Update(ref, oid, None) for ref, oid in refs.items()])
    except RepositoryError as e:
        return str(e)


def _is_merged(repository: Path, oid: str) -> bool:
    """Is the commit on a branch that no build made?"""
    try:
        listed = Git(repository).run("for-each-ref", f"--contains={oid}", "--format=%(refname)", "refs/heads").text
    except RepositoryError:
        return False
    return any(not ref.startswith("refs/heads/longshot/") for ref in listed.splitlines())


# --- mirrors ---------------------------------------------------------------------------------------------------------


def in_mirror(mirror: Path, build: str) -> tuple[str, ...]:
    """Refs of the build in a mirror, which may be gone."""
    if not (mirror / "longshot-target").exists():
        return ()
    listed = Git(mirror).run("for-each-ref", "--format=%(refname)", "refs/longshot").out
    return mirrored_refs_of(build, listed.decode("utf-8", "surrogateescape").splitlines())


def take_from_mirror(mirror: Path, build: str) -> None:
    """Remove a build's refs; no lander is at work meanwhile."""
    if not (mirror / "longshot-target").exists():
        return
    with locked(mirror / "longshot-landing.lock"):
        lines = "".join(f"delete {ref}\n" for ref in in_mirror(mirror, build))
        Git(mirror).run("update-ref", "--stdin", stdin=lines.encode("utf-8", "surrogateescape"))
        for kind in ("checkpoint", "beat"):
            (mirror / f"longshot-{kind}-{build}.json").unlink(missing_ok=True)


def is_worn(mirror: Path) -> bool:
    """Has so much come in piece by piece that packing it is worth while?"""
    counted = Git(mirror).run("count-objects", "-v").text.splitlines()
    counts = {name: int(value) for name, _, value in (line.partition(": ") for line in counted) if value.isdigit()}
    return counts.get("count", 0) > _MANY_OBJECTS or counts.get("packs", 0) > 20


def pack(home: Home, targets: Sequence[Target], *, prune: bool) -> None:
    """Pack the one mirror of `targets`, its branches named first; `prune` drops what nothing names any more."""
    first = Mirror(home, targets[0])
    with locked(first.landing_lock):
        for target in targets:
            _name_head(Mirror(home, target))
        options = (f"--prune={_PRUNE_BEFORE}",) if prune else ("--no-prune",)
        Git(first.path).run("gc", "--quiet", *options, timeout_s=3_600)


def _name_head(mirror: Mirror) -> None:
    """What landed was made here and never fetched, so no ref of the mirror need hold it."""
    branch = mirror.target.branch
    head = mirror.fetch()
    mirror.git.run("update-ref", f"refs/longshot/fetched/heads/{branch}", head)
