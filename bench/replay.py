"""The replay bench: a real fleet's recorded run through the landing queue, and beside it under that fleet's own policy.

    python bench/replay.py [--seed N] [--record FILE]

Arrivals, durations, scopes, lock files and how far each task strayed are the record's (91 finished tasks of 50 workers); the
contents are drawn. Time is simulated. bench/README.md says what the last line, one JSON object, means.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from replaying.contents import scaffold
from replaying.control import control_landed
from replaying.queue import Replay
from replaying.record import RECORD, Record, read_record


def bench(record: Record, seed: int, folder: Path) -> dict[str, Any]:
    """The figures of one seed, in `folder`, an empty one."""
    files = scaffold()
    control = control_landed(record.jobs, seed, folder / "control.git", files)
    found = Replay(record, seed, folder, files).run()
    for line in found.dropped:
        print(f"dropped: {line}")
    print(f"conflicts: {' '.join(found.conflicts) or 'none'}")
    tasks = len(record.jobs)
    return {
        "tasks": tasks,
        "landed": len(found.landed),
        "landed_share": round(len(found.landed) / tasks, 3),
        "control_landed_share": round(len(control) / tasks, 3),
        "fix_worker_seconds_share": round(found.fix_worker_s / found.worker_s, 3),
        "silent_drops": len(found.dropped),
        "land_s_p50": _decile(found.land_s, 5),
        "land_s_p90": _decile(found.land_s, 9),
        "seed": seed,
    }


def _decile(numbers: list[float], n: int) -> float:
    found = sorted(numbers)
    return round(found[min(len(found) - 1, len(found) * n // 10)], 3)


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--seed", type=int, default=1)
    asked.add_argument("--record", type=Path, default=RECORD)
    given = asked.parse_args()
    with tempfile.TemporaryDirectory(prefix="longshot-replay-") as folder:
        print(json.dumps(bench(read_record(given.record), given.seed, Path(folder))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
