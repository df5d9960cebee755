"""Which builds `longshot clean` removes, and which names on a target and in a mirror are theirs."""

from collections.abc import Iterable

from pydantic import Field

from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.models import BuildPhase, BuildReport, BuildRequest, Record, Target

DAY_S = 86_400


class Leaving(Record):
    """`leaving/<build>.json`: a build that is being removed, with what is needed to finish that after a crash."""

    build: str
    created_at: float = Field(description="of the build: another one may get its name")
    target: Target
    iterations: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()


def parse_days(text: str) -> float:
    """Raises WrongUse unless `text` is a number of days, from 0."""
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 <= days < 100_000:
        raise WrongUse(
            f"--older-than {text[:40]!r} is not a number of days; 30 is the default, 0 means all finished builds"
        )
    return days


def ended_at(request: BuildRequest, report: BuildReport | None) -> float:
    """When a finished build ended, in seconds since the epoch."""
    return request.created_at + (report.wall_s if report else 0.0)


def is_due(phase: BuildPhase, ended: float, now: float, older_than_days: float) -> bool:
    """Only what has finished goes: a paused build is somebody's unfinished work, however old."""
    return phase is BuildPhase.FINISHED and now - ended >= older_than_days * DAY_S


def refs_of(build: str, refs: Iterable[str]) -> tuple[str, ...]:
    """Those of `refs` that record the build beside its branch. Its result, `longshot/<build>` in a checkout, is none."""
    own = {f"refs/longshot/{build}", f"refs/longshot/checkpoint/{build}", f"refs/heads/longshot/checkpoint-{build}"}
    below = (f"refs/longshot/landed/{build}/", f"refs/longshot/work/{build}/")
    return tuple(sorted(r for r in refs if r in own or r.startswith(below)))


def mirrored_refs_of(build: str, refs: Iterable[str]) -> tuple[str, ...]:
    """The same in a mirror, which also keeps what it has fetched below refs/longshot/fetched."""
    fetched = "refs/longshot/fetched/"
    own = [r for r in refs if not r.startswith(fetched)]
    seen = {"refs/" + r.removeprefix(fetched): r for r in refs if r.startswith(fetched)}
    result = f"refs/heads/longshot/{build}"
    theirs = [seen[name] for name in (*refs_of(build, seen), *((result,) if result in seen else ()))]
    return (*refs_of(build, own), *theirs)
