"""The restore bench: a real library loses every function body, and the whole loop brings them back.

    python bench/restore.py --package NAME==VERSION [--workers N] [--kill-workers K] [--keep]

bench/README.md says what happens and what the last line, one JSON object, means. Exit code 0: every test that passed with
the package's own source passes again, and every task has landed. 1: not so. 2: this package, or this host, cannot do it.
"""

import argparse
import json
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from restoring import loop, package, suite
from restoring.footprint import Footprint
from restoring.loop import Installation, Result
from restoring.oracle import REQUEST, Oracle
from restoring.package import Package
from restoring.suite import Outcome

from longshot_dagster.core.errors import LongshotError, WrongUse

_SUITE_SECONDS = 1_800
_CHECK_SECONDS = (60, 1_800)  # at least, at most; between them thirty times what the whole suite takes


def main(arguments: list[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="longshot-restore-"))
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
    return 0 if restored(figures) else 1


def restored(figures: dict[str, Any]) -> bool:
    return bool(
        figures["exit_code"] == 0
        and figures["tests_passed"] == figures["tests_expected"] > 0
        and figures["landed"] == figures["tasks"] > 0
    )


def bench(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The figures of one restoration in `folder`, an empty one. Raises LongshotError when it cannot even begin."""
    say(f"{given.package}: its source distribution, and what its tests need")
    archive = package.download(given.package, folder)
    made = package.prepared(archive, given.package, folder, given.extra)
    for note in made.notes:
        say(f"  {note}")
    whole, emptied = folder / "whole.git", folder / "repository.git"
    whole_tree = loop.make_repository(whole, made.source, given.package)
    # The check names the venv's own interpreter: whatever runs in a sandbox can read it, and nothing is installed there.
    check, venv = suite.command(made.python, made.root, shlex.split(given.pytest)), made.python.parent.parent
    provider = Installation(folder, {}).provider
    expected = suite.run(provider, whole, check, [str(venv)], _SUITE_SECONDS)
    if expected.exit_code and made.spare:
        say("  its suite needs more than it says; what its developers have is installed")
        made.install_spare()
        expected = suite.run(provider, whole, check, [str(venv)], _SUITE_SECONDS)
    _must_be_green(given.package, expected)
    made.empty()
    loop.make_repository(emptied, made.source, f"{given.package} without its bodies")
    check_seconds = int(min(max(30 * expected.seconds, _CHECK_SECONDS[0]), _CHECK_SECONDS[1]))
    before = suite.run(provider, emptied, check, [str(venv)], check_seconds)
    red = len(expected.passed - before.passed)
    say(f"  {made.functions} bodies taken out of {len(made.modules)} modules ({made.kept} run at import and stay)")
    say(
        f"  {len(expected.passed)} tests pass with them, {len(expected.passed) - red} without; the suite is red: {bool(before.exit_code)}"
    )
    if not before.exit_code:
        raise WrongUse(f"the suite of {given.package} is green without its bodies: there is nothing to restore")
    result, oracle, used = _through_the_loop(given, folder, made, emptied, check, check_seconds)
    after = suite.run(provider, emptied, check, [str(venv)], _SUITE_SECONDS)
    _explain(result, expected, after)
    return {
        "package": given.package,
        "tasks": result.tasks,
        "landed": result.landed,
        "conflicts": result.conflicts,
        "iterations": result.iterations,
        "tests_red_before": red,
        "tests_passed": len(after.passed & expected.passed),
        "tests_expected": len(expected.passed),
        "wall_s": round(result.wall_s, 1),
        "cpu_s": {kind: round(seconds, 1) for kind, seconds in used.cpu_s.items()},
        "peak_rss_mb": round(used.peak_rss_mb),
        "modules": len(made.modules),
        "functions": made.functions,
        "functions_kept": made.kept,
        "files_different": loop.changed_files(whole, whole_tree, emptied),
        "workers": given.workers,
        "killed": len(oracle.killed),
        "superseded": result.superseded,
        "seed": given.seed,
        "exit_code": result.exit_code,
    }


def _through_the_loop(
    given: argparse.Namespace, folder: Path, made: Package, repository: Path, check: str, check_seconds: int
) -> tuple[Result, Oracle, Footprint]:
    sources = {module.path: module.source for module in made.modules}
    killer = Installation(folder, {})
    with Oracle(sources, killer.kill_worker, given.kill_workers, given.seed) as oracle, Footprint() as used:
        settings = loop.settings(oracle.base_url, check, made.python.parent.parent, given.workers, check_seconds)
        installation = Installation(folder, settings)
        try:
            result = installation.build(REQUEST, repository)
        finally:
            installation.down()
    return result, oracle, used


def _must_be_green(requirement: str, whole: Outcome) -> None:
    if whole.exit_code == 0 and whole.passed:
        return
    for line in whole.said.splitlines()[-30:]:
        say(f"  {line}")
    named = f"{len(whole.red)} tests are red, {sorted(whole.red)[0]} for one" if whole.red else "it does not run"
    raise WrongUse(
        f"the suite of {requirement} is not green with its own source in a sandbox: {named}; --pytest can leave tests "
        "out, --with brings what they need"
    )


def _explain(result: Result, expected: Outcome, after: Outcome) -> None:
    for left in result.leftovers[:20]:
        say(f"  left over: {left}")
    for missing in sorted(expected.passed - after.passed)[:20]:
        say(f"  still red: {missing}")


def say(line: str) -> None:
    print(line, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--package",
        required=True,
        metavar="NAME==VERSION",
        help="pure Python, with its tests in its source distribution",
    )
    parser.add_argument("--workers", type=int, default=8, metavar="N", help="MAX_WORKERS (default 8)")
    parser.add_argument(
        "--kill-workers",
        type=int,
        default=0,
        metavar="K",
        help="kill the agents of K random tasks in the middle of their work",
    )
    parser.add_argument("--seed", type=int, default=0, help="which tasks are killed, and when")
    parser.add_argument(
        "--pytest", default="", metavar="ARGS", help="more arguments for pytest, such as \"-k 'not network'\""
    )
    parser.add_argument(
        "--with",
        dest="extra",
        action="append",
        default=[],
        metavar="REQUIREMENT",
        help="install this for the tests, too",
    )
    parser.add_argument("--keep", action="store_true", help="keep the folder with everything in it")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
