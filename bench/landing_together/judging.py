"""What several landers have made of one origin, read with plain git and held against what each of them wrote down."""

import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from restoring.loop import git

from longshot_dagster.adapters.landing.queue import LandingQueue
from longshot_dagster.core.landing_records import LandingState

_FIELDS = "%x01".join(("%H", "%(trailers:key=Longshot-Source,valueonly,separator=%x2C)"))


def judged(origin: Path, base: str, queues: Sequence[LandingQueue], folder: Path) -> dict[str, Any]:
    listed = git(origin, "log", "--first-parent", "--reverse", f"--format={_FIELDS}", f"{base}..main")
    steps = [line.split("\x01") for line in listed.splitlines()]
    times = Counter(source for _, source in steps if source)
    wanted, said_landed, on_main = [], 0, {oid for oid, _ in steps}
    ledger_true = True
    for queue in queues:
        for task in queue.ledger.task_ids():
            outcome, run = queue.ledger.landing(task), queue.ledger.run(task)
            wanted.append(run.head if run else None)
            if outcome is not None and outcome.state is LandingState.LANDED:
                said_landed += 1
                ledger_true &= bool(outcome.commits) and set(outcome.commits) <= on_main
    return {
        "landed_once": sum(times[source or ""] == 1 for source in wanted),
        "landed_twice": sum(n > 1 for n in times.values()),
        "ledger_true": ledger_true and said_landed == len(wanted),
        "fsck_clean": _fsck(origin),
        "tree_equal": _replayed(origin, base, steps, [q.mirror.path for q in queues], folder / "replay")
        == git(origin, "rev-parse", "main^{tree}"),
    }


def _fsck(origin: Path) -> bool:
    ran = subprocess.run(["git", "-C", str(origin), "fsck", "--full", "--strict"], capture_output=True, check=False)
    return ran.returncode == 0


def _replayed(origin: Path, base: str, steps: Sequence[Sequence[str]], mirrors: Sequence[Path], folder: Path) -> str:
    """The tree of every branch, and what people pushed, picked onto `base` in the order of main; "" when one does not apply."""
    git(folder.parent, "clone", "-q", "--no-checkout", str(origin), str(folder))
    (folder / ".git/objects/info/alternates").write_text("".join(f"{m / 'objects'}\n" for m in (origin, *mirrors)))
    git(folder, "checkout", "-q", "--detach", base)
    for oid, source in steps:
        try:
            git(folder, "cherry-pick", "--allow-empty", "--keep-redundant-commits", source or oid)
        except subprocess.CalledProcessError:
            return ""
    return git(folder, "rev-parse", "HEAD^{tree}")
