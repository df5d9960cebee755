"""The crash bench: a build whose processes are killed, one after the other, at the worst moments, loses nothing.

    python bench/crash.py [--tasks 100] [--kills 20] [--mode disjoint|conflicting] [--seed S] [--keep]

bench/README.md says what happens and what the last line, one JSON object, means. Exit code 0: all is well. 1: not so.
2: this host cannot do it.
"""

import argparse
import json
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from crashing import judging, replaying
from crashing.assignment import Mode, items
from crashing.endpoint import Endpoint
from crashing.installation import Installation, Repository, Runs, settings, wait_for
from crashing.killing import Kill, Killing, order
from crashing.moments import Moments

from longshot_dagster.adapters.ledger.ledger import BuildLedger
from longshot_dagster.core.errors import LongshotError

FLIGHT = 10  # tasks at work at every kill
_FIRST, _MORE = 24, 4  # items of the first planning round, and of each later one
_WORKERS = 48  # more than are ever at work: a slot is not what anybody waits for
_BEGIN_S, _END_S = 180.0, 900.0


def main(arguments: list[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends the bench ends its stack, too
    folder = Path(tempfile.mkdtemp(prefix="longshot-crash-"))
    try:
        figures = bench(given, folder)
    except LongshotError as wrong:
        sys.stderr.write(f"{wrong}\n")
        return 2
    finally:
        if given.keep:
            say(f"everything is kept in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(figures))
    return 0 if judging.is_well(figures, given.mode, FLIGHT) else 1


def bench(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The figures of one build in `folder`, an empty one. Raises LongshotError when it cannot even begin."""
    began = time.monotonic()
    wanted_tree = ""
    if given.mode == "disjoint":
        say(f"{given.tasks} tasks without a kill, to compare with")
        wanted_tree, took = _uninterrupted(given, folder / "calm")
        say(f"  done in {took:.0f} s")
    say(f"{given.tasks} tasks, {given.kills} kills, {given.mode}, seed {given.seed}")
    return {**_killed(given, folder / "killed", wanted_tree), "wall_s": round(time.monotonic() - began, 1)}


def _uninterrupted(given: argparse.Namespace, folder: Path) -> tuple[str, float]:
    began = time.monotonic()
    installation, endpoint = _made(given, folder, paced=False)
    with endpoint:
        try:
            _ends(_begun(installation, endpoint))
        finally:
            installation.down()
    if installation.exit_code != 0:
        raise LongshotError(f"without a kill the build ended with {installation.exit_code}; --keep keeps its logs")
    return installation.repository.tree(), time.monotonic() - began


def _killed(given: argparse.Namespace, folder: Path, wanted_tree: str) -> dict[str, Any]:
    installation, endpoint = _made(given, folder, paced=True)
    kills: list[Kill] = []
    with endpoint:
        try:
            person = _begun(installation, endpoint)
            ledger = wait_for("the build", lambda: installation.ledger, _BEGIN_S)
            with Runs(installation) as runs:
                wait_for("the first round", lambda: len(endpoint.in_flight()) >= min(given.tasks, FLIGHT), _BEGIN_S)
                moments = Moments(installation, installation.repository, endpoint, ledger, runs, FLIGHT)
                targets = given.targets.split(",") if given.targets else installation.targets()
                wanted = order(given.kills, targets, given.seed)
                kills = Killing(installation, endpoint, moments, ledger, say).all(wanted)
            endpoint.paced = False
            _ends(person)
            for reason in installation.resumed:
                say(f"  a person had to resume it: {reason}")
        finally:
            left = installation.down()
    for line in left:
        say(f"  left running: {line}")
    return _figures(given, installation, endpoint, ledger, kills, wanted_tree, len(left))


def _figures(
    given: argparse.Namespace,
    installation: Installation,
    endpoint: Endpoint,
    ledger: BuildLedger,
    kills: list[Kill],
    wanted_tree: str,
    left: int,
) -> dict[str, Any]:
    mode: Mode = given.mode
    names = ledger.task_ids()
    handoffs = {t: h for t in names if (h := ledger.handoff(t))}
    landings = {t: o for t in names if (o := ledger.landing(t))}
    done = judging.accounted(items(given.tasks, mode), map(ledger.existing_task, names), handoffs, landings)
    bare, request = installation.repository.bare, ledger.request()
    mirror = installation.home.mirror_of(request.target.url)
    landed = replaying.landed_commits(bare, request.base)
    sources = {r.head: r.base for r in map(ledger.run, names) if r and r.head}
    known = {c.source: sources[c.source] for c in landed if c.source in sources}
    twice = judging.landed_twice(landed, replaying.branch_sizes(mirror, known))
    if mode == "conflicting":
        twice += judging.repeated_lines(replaying.lists_on_main(bare))
        whole = len(known) == len({c.source for c in landed})
        replay = installation.folder / "replay"
        wanted_tree = replaying.replayed_tree(bare, mirror, request.base, landed, known, replay) if whole else ""
    sandboxes = sorted(p.name for p in installation.home.sandboxes.glob("sb-*"))
    for line in (*endpoint.asked_twice, *twice, *sandboxes):
        say(f"  not well: {line}")
    return {
        "tasks": given.tasks,
        "kills": len(kills),
        "kills_by_phase": judging.by_phase(kills),
        "accounted": len(done),
        "asked_twice": len(endpoint.asked_twice),
        "landed_twice": len(twice),
        "tree_equal": bool(wanted_tree) and installation.repository.tree() == wanted_tree,
        "resume_s_max": judging.slowest(kills),
        "mode": mode,
        "seed": given.seed,
        "kills_wanted": given.kills,
        "kills_by_target": {t: sum(k.target == t for k in kills) for t in sorted({k.target for k in kills})},
        "in_flight_min": min((k.in_flight for k in kills), default=None),
        "resumed_by_hand": len(installation.resumed),
        "answered_again": endpoint.answered_again(),
        "landed": len({c.task for c in landed}),
        "conflicts": sum(any(s.value == "conflict" for s, _ in o.history) for o in landings.values()),
        "requests": len(endpoint.log),
        "left_over": left + len(sandboxes),
        "exit_code": installation.exit_code,
    }


def _made(given: argparse.Namespace, folder: Path, *, paced: bool) -> tuple[Installation, Endpoint]:
    folder.mkdir()
    repository = Repository.made(folder, given.mode)
    installation = Installation(folder, {}, repository)
    endpoint = Endpoint(items(given.tasks, given.mode), _FIRST, _MORE, installation.home.builds, paced)
    return installation, endpoint


def _begun(installation: Installation, endpoint: Endpoint) -> threading.Thread:
    installation.settings = settings(endpoint.base_url, _WORKERS)
    return installation.begin()


def _ends(person: threading.Thread) -> None:
    person.join(_END_S)
    if person.is_alive():
        raise LongshotError(f"the build did not end within {_END_S:.0f} s; --keep keeps its logs")


def say(line: str) -> None:
    print(line, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", type=int, default=100, metavar="N", help="items to be written (default 100)")
    parser.add_argument("--kills", type=int, default=20, metavar="K", help="processes to kill (default 20)")
    parser.add_argument("--mode", choices=("disjoint", "conflicting"), default="disjoint")
    parser.add_argument("--seed", type=int, default=0, help="in which order the processes are killed")
    parser.add_argument("--targets", default="", metavar="A,B", help="kill only these, such as `run,gateway`")
    parser.add_argument("--keep", action="store_true", help="keep the folder with everything in it")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
