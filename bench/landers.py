"""The landers bench: several machines land on one origin at the same time, and are killed again and again.

    python bench/landers.py [--landers N] [--branches N] [--kills N] [--people N] [--seed N]

Each lander has a home, a mirror and a build of its own; they meet in the origin alone. Every kill is a SIGKILL: of the lander,
or of it and of every git it has started. People push in between. bench/README.md says what the last line, one JSON object,
means. Exit code 1: something landed twice or not at all, or main is not everybody's work together.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from landing_together.builds import first_commit, planned, queue_of
from landing_together.judging import judged
from replaying.repository import Objects

_LANDER = Path(__file__).resolve().parent / "landing_together/lander.py"
_LIFE_S = (0.0, 1.2)  # from a lander's first word to its end
_HOST_S = 5.0  # after that the origin's host takes away a lock whose owner we have killed


class Lander:
    """A process that is started anew whenever it has been killed."""

    def __init__(self, home: Path, build: str, said: Path) -> None:
        self.home, self.build, self.said = home, build, said
        self.start()

    def start(self) -> None:
        with self.said.open("ab") as said:
            self.process = subprocess.Popen(
                [sys.executable, str(_LANDER), str(self.home), self.build], stdout=said, stderr=said
            )
        self.words = self.said.stat().st_size

    @property
    def at_work(self) -> bool:
        return self.process.poll() is None and self.said.stat().st_size > self.words

    def kill(self, everything: bool) -> None:
        whole = descendants(self.process.pid) if everything else []
        for pid in (self.process.pid, *whole):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def descendants(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            number, _, rest = stat.read_text().partition(" ")
            parents.setdefault(int(rest.rpartition(")")[2].split()[1]), []).append(int(number))
    found, waiting = [], [pid]
    while waiting:
        found += (below := parents.get(waiting.pop(), []))
        waiting += below
    return found


def bench(landers: int, branches: int, kills: int, people: int, seed: int, folder: Path) -> dict[str, Any]:
    chance, began = random.Random(seed), time.monotonic()
    origin = folder / "origin.git"
    base = first_commit(origin, branches)
    all_of = [range(n * branches // landers, (n + 1) * branches // landers) for n in range(landers)]
    running: list[Lander] = []
    for n, numbers in enumerate(all_of):
        planned(folder / f"home{n}", origin, f"landers-{n}abc", base, numbers, branches)
        running.append(Lander(folder / f"home{n}", f"landers-{n}abc", folder / f"said{n}.txt"))
    done = pushed = host = 0
    while any(lander.process.poll() is None for lander in running):
        host += _take_away_old_locks(origin)
        if pushed < people and chance.random() < 0.3:
            pushed += _push_as_a_person(origin, pushed)
        alive = [lander for lander in running if lander.at_work]
        if done < kills and alive:
            time.sleep(chance.uniform(*_LIFE_S) / len(running))
            victim = chance.choice(alive)
            if victim.process.poll() is None:
                victim.kill(everything=chance.random() < 0.5)
                done += 1
                victim.start()
        else:
            time.sleep(0.05)
        for lander in running:
            if lander.process.poll() not in (None, 0):
                raise SystemExit(f"a lander ended by itself:\n{lander.said.read_text()[-2000:]}")
    queues = [queue_of(lander.home, lander.build) for lander in running]
    figures = judged(origin, base, queues, folder)
    said = "".join(lander.said.read_text() for lander in running)
    return {
        "landers": landers,
        "branches": branches,
        "kills": done,
        "people": pushed,
        **figures,
        "lost_races": said.count("moved"),
        "locks_at_host": host,
        "wall_s": round(time.monotonic() - began, 1),
    }


def _take_away_old_locks(origin: Path) -> int:
    lock = origin / "refs/heads/main.lock"
    with contextlib.suppress(OSError):
        if time.time() - lock.stat().st_mtime > _HOST_S:
            lock.unlink()
            return 1
    return 0


def _push_as_a_person(origin: Path, number: int) -> int:
    """1 when it got there before anybody else."""
    objects = Objects.made(origin)
    head = objects.git.run("rev-parse", "refs/heads/main").text
    theirs = objects.commit(head, {f"people/{number}.txt": f"{number}\n"}, "By hand")
    return int(objects.git.run("update-ref", "refs/heads/main", theirs, head, ok=(0, 128)).code == 0)


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("landers", 3), ("branches", 200), ("kills", 40), ("people", 10), ("seed", 1)):
        asked.add_argument(f"--{name}", type=int, default=default)
    given = asked.parse_args()
    with tempfile.TemporaryDirectory(prefix="longshot-landers-") as folder:
        figures = bench(given.landers, given.branches, given.kills, given.people, given.seed, Path(folder))
    print(json.dumps(figures))
    well = figures["landed_once"] == given.branches and figures["fsck_clean"] and figures["tree_equal"]
    return 0 if well and figures["ledger_true"] and figures["kills"] >= given.kills else 1


if __name__ == "__main__":
    sys.exit(main())
