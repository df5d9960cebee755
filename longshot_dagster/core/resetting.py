"""What setting a branch back to its first commit takes away, and the command that brings it back."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from longshot_dagster.core.display import display, one_line
from longshot_dagster.core.models import Target

BACKUP = "refs/longshot/backup/"


@dataclass(frozen=True)
class Loss:
    """Everything on a branch after its first commit. `newest` and `authors` are lines of git's own."""

    target: Target
    head: str
    first: str
    commits: int
    newest: tuple[str, ...]
    authors: tuple[str, ...]
    paused: tuple[str, ...] = ()  # builds that have not finished and land there


def backup_ref(branch: str, at: float) -> str:
    """`at`: seconds since the epoch."""
    return f"{BACKUP}{branch}/{_stamp(at)}"


def backup_branch(branch: str, at: float) -> str:
    """The same as a branch, for a forge that takes no other refs."""
    return f"refs/heads/longshot/backup-{branch.replace('/', '-')}-{_stamp(at)}"


def _stamp(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y%m%dT%H%M%SZ")


def loss_lines(loss: Loss) -> list[str]:
    """For a person who is to agree: plain text, one fact a line."""
    count = f"{loss.commits:,} commit{'s' if loss.commits != 1 else ''}"
    lines = [f"{loss.target.branch} of {loss.target.repository} would go back to its first commit {loss.first[:12]}"]
    lines.append(f"that takes {count} from it, by {_named(loss.authors)}; the newest:")
    lines += [f"  {one_line(line, 110)}" for line in loss.newest]
    if loss.paused:
        lines.append(f"unfinished builds stand on it: {_named(loss.paused)}; what they have landed goes, too")
    return [display(line, "plain", 1_000) for line in lines]


def restoring(target: Target, first: str, backup: str) -> str:
    """A shell command that sets the branch to the backup again, unless it has moved since."""
    branch, url = f"refs/heads/{target.branch}", shlex.quote(target.url)
    if target.url.startswith("/"):
        return f"git --git-dir={url} update-ref {shlex.quote(branch)} {shlex.quote(backup)} {first}"
    lease = shlex.quote(f"--force-with-lease={branch}:{first}")
    new = shlex.quote(f"FETCH_HEAD:{branch}")
    return f"git fetch {url} {shlex.quote(backup)} && git push {lease} {url} {new}"


def _named(names: Sequence[str], limit: int = 5) -> str:
    shown = [one_line(n, 60) for n in names[:limit]]
    return ", ".join(shown) + (f" and {len(names) - limit} more" if len(names) > limit else "")
