"""The landing bench: branches through the product's merge queue, beside the reference's own command sequence.

    python bench/landing.py --files 100|2000|20000 --branches 200 --conflict 0.1 [--strategy squash|rebase]
    python bench/landing.py --fuzz 300
    python bench/landing.py --workload lockfiles

bench/README.md says what happens and what the last line, one JSON object, means. Exit code 0: every branch that can land has
landed, and the two agree; 1: not so.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from merging import counting, fuzzing, workload
from merging.meter import Meter, Used
from merging.queueing import Ours
from merging.reference import Reference
from merging.workload import Workload

from longshot_dagster.adapters.repository.branch import Branch
from longshot_dagster.adapters.repository.merger import Conflicted, Merged, Merger, Names
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.settings import MergeStrategy

BATCH = 20  # branches landed with one push
_MERGED = 100  # branches merged without any queue, for the mean


def main(arguments: list[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="longshot-landing-"))
    try:
        if given.workload == "lockfiles":
            from merging import lockfiles  # only there with its own needs

            return int(lockfiles.main(folder))
        figures = _fuzzed(given, folder) if given.fuzz else bench(given, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(figures))
    return 0 if figures["well"] else 1


def bench(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The figures of one workload in `folder`, an empty one."""
    say(f"{given.files} files, {given.branches} branches")
    made = workload.made(folder, given.files, given.branches, given.conflict, given.seed)
    ours, reference = Ours(folder, made, given.strategy), Reference(folder, made)
    names = list(made.branches)
    used, theirs, mine_beside, intake = Used(), Used(), Used(), Used()
    outcomes: dict[str, LandingOutcome] = {}
    trees_equal, processes = True, 0.0
    for begin in range(0, len(names), BATCH):
        batch = names[begin : begin + BATCH]
        ours.planned(batch)
        bundles = ours.bundles(batch)
        compared = begin < given.reference
        # Counted apart from what is timed: writing the account down is work, too.
        counted = not compared and not processes
        with counting.processes(folder / f"trace-{begin}") if counted else counting.nothing() as trace:
            with Meter() as meter:
                ours.handed_in(bundles)
            intake += meter.used
            with Meter() as landing:
                outcomes |= ours.land(batch)
        processes = trace.count() / len(batch) if counted else processes
        used += landing.used
        if compared:
            mine_beside += landing.used
            with Meter() as meter:
                for name in ours.order(batch):
                    reference.land(name)
            theirs += meter.used
            trees_equal &= ours.tree() == reference.tree()
            say(f"  {begin + len(batch)} landed by both, the same tree: {trees_equal}")
    merges = merged_alone(ours, made, names[:_MERGED], given.strategy)
    states = [outcome.state for outcome in outcomes.values()]
    landed = states.count(LandingState.LANDED)
    same = set(reference.landed) == {n for n in names[: given.reference] if outcomes[n].state is LandingState.LANDED}
    conflicts = [o for o in outcomes.values() if o.state is LandingState.CONFLICT]
    return {
        "files": given.files,
        "branches": given.branches,
        "conflict": given.conflict,
        "strategy": given.strategy,
        "landed": landed,
        "conflicts": len(conflicts),
        "branches_per_s": _rate(given.branches, used),
        "reference_branches_per_s": _rate(given.reference, theirs),
        "ratio_wall": _ratio(theirs.wall_s, mine_beside.wall_s),
        "ratio_cpu": _ratio(theirs.cpu_s, mine_beside.cpu_s),
        "cpu_ms_per_branch": round(used.cpu_s / given.branches * 1000, 2),
        "reference_cpu_ms_per_branch": round(theirs.cpu_s / given.reference * 1000, 1),
        "intake_cpu_ms_per_branch": round(intake.cpu_s / given.branches * 1000, 2),
        "git_processes_per_branch": round(processes, 2),
        "merge_ms": merges["merge_ms"],
        "conflict_report_ms": merges["conflict_report_ms"],
        "trees_equal": trees_equal,
        "same_landed": same,
        "well": trees_equal
        and same
        and landed + len(conflicts) == given.branches
        and all(o.conflicts for o in conflicts),
    }


def merged_alone(ours: Ours, made: Workload, names: list[str], strategy: str) -> dict[str, float | None]:
    """Milliseconds of a merge with its commit, the mean; and of one that ends in a conflict report, the longest."""
    merger, onto = Merger(ours.mirror.git, 1.0), made.base
    merging: list[float] = []
    reporting: list[float] = []
    for name in names:
        branch = Branch(ours.mirror.git, made.base, made.branches[name])
        written = Names("b-1", "r001-01", branch.tip, name)
        with Meter() as meter:
            if strategy == MergeStrategy.REBASE:
                result = merger.rebase(onto, branch, written)
            else:
                result = merger.squash(onto, branch, branch.tip, written)
        (reporting if isinstance(result, Conflicted) else merging).append(meter.used.wall_s * 1000)
        onto = result.commits[-1] if isinstance(result, Merged) else onto
    return {
        "merge_ms": round(sum(merging) / len(merging), 2),
        "conflict_report_ms": round(max(reporting), 1) if reporting else None,
    }


def _fuzzed(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    say(f"{given.fuzz} random histories, each merged and rebased by git itself, too")
    return fuzzing.figures(folder, range(given.seed, given.seed + given.fuzz))


def _rate(branches: int, used: Used) -> float:
    return round(branches / used.wall_s, 2)


def _ratio(theirs: float, ours: float) -> float | None:
    return round(theirs / ours, 1) if ours else None


def say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2_000, help="files in the repository")
    parser.add_argument("--branches", type=int, default=200)
    parser.add_argument(
        "--conflict", type=float, default=0.1, help="share of the branches that cannot land, below a half"
    )
    parser.add_argument("--strategy", choices=("squash", "rebase", "merge-commit"), default="squash")
    parser.add_argument("--reference", type=int, default=2 * BATCH, help="branches that the reference lands, too")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--fuzz", type=int, default=0, metavar="N", help="instead: compare N random merges with git's own"
    )
    parser.add_argument("--workload", choices=("branches", "lockfiles"), default="branches")
    return parser


if __name__ == "__main__":
    sys.exit(main())
