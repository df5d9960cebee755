"""One lander as a process: `python lander.py HOME BUILD` lands what is left, a few at a time, and says when it begins."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from landing_together.builds import queue_of
from longshot_dagster.core.errors import RepositoryError

_AT_ONCE = 3


def main(home: Path, build: str) -> None:
    queue = queue_of(home, build)
    plans = [p for key in queue.ledger.iterations() if (p := queue.ledger.plan(key))]
    print("ready", flush=True)
    while left := [t for p in plans for t in p.tasks if not _settled(queue.ledger.landing(t.id))]:
        for few in (left[at : at + _AT_ONCE] for at in range(0, len(left), _AT_ONCE)):
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                for landing in [pool.submit(queue.land, task) for task in few]:
                    try:
                        landing.result()
                    except RepositoryError as e:
                        print(f"again: {e}", flush=True)


def _settled(outcome: object) -> bool:
    return outcome is not None and bool(getattr(outcome, "settled", False))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
