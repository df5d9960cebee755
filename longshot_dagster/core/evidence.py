"""What a worker says of its own work, held against what was measured; each contradiction is a concern that begins with its kind.

Nothing here changes what lands: red checks and unfinished work do not land anyway. It tells the planner what to doubt.
"""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from enum import StrEnum

from longshot_dagster.core.contract import WorkResult
from longshot_dagster.core.display import one_line
from longshot_dagster.core.models import CheckResult, HandoffStatus

MAX_DOUBTS = 8
_MAX_SUMMARY = 8_000  # characters of it that are read for claims
_MAX_PATHS = 40


class Doubt(StrEnum):
    """What does not fit what the worker says."""

    NOTHING_CHANGED = "nothing-changed"
    CHECKS_RED = "checks-red"
    NO_SUCH_FILE = "no-such-file"
    UNTOUCHED = "untouched"
    NO_HANDOFF = "no-handoff"


_EXTENSIONS = (
    "py|pyi|js|jsx|mjs|cjs|ts|tsx|vue|svelte|go|rs|java|kt|kts|scala|rb|php|cs|fs|swift|c|h|cc|cpp|cxx|hpp|m|mm|zig|lua|"
    "ex|exs|erl|hs|ml|clj|dart|r|jl|pl|sh|bash|ps1|sql|proto|graphql|md|rst|txt|toml|yaml|yml|json|xml|html|css|scss|"
    "ini|cfg|conf|env|lock|gradle|tf|ipynb|csv"
)
# With a folder before it, or between backticks: `node.js` in prose is no file.
_PATH = re.compile(
    rf"(?<![\w:/.-])(?:`([\w@+.-]+(?:/[\w@+.-]+)*\.(?:{_EXTENSIONS}))`|((?:/?[\w@+.-]+/)+[\w@+.-]*\.(?:{_EXTENSIONS})))(?![\w/-])"
)
_SENTENCE = re.compile(r"(?:[.!?;]\s+|\n+)")
_CHANGES = re.compile(
    r"\b(?:add|creat|writ|wrote|chang|updat|implement|fix|modif|edit|extend|refactor|rewr|introduc|generat)\w*\b", re.I
)
_DENIES = re.compile(
    r"\b(?:not|no|never|without|nothing|cannot|fail\w*|red|except|unless|should|would|could|needs?|must|later|todo|\w+n't)\b",
    re.I,
)
_GREEN = re.compile(
    r"\b(?:tests?|checks?|suite|builds?|lint\w*|types?|mypy|pytest|everything|all)\b[^.\n]{0,80}?"
    r"\b(?:pass(?:es|ed|ing)?|green|succeed(?:s|ed)?|clean)\b",
    re.I,
)
_ALREADY = re.compile(
    r"\balready\b|\bnothing (?:\w+ )?(?:to|needed|had)\b|\bno (?:\w+ )?changes? (?:\w+ )?(?:needed|necessary|required)",
    re.I,
)
_INSIDE = ("/workspace/repo/", "/workspace/", "./")


def doubts(
    result: WorkResult,
    changed: Collection[str],
    checks: Sequence[CheckResult],
    exists: Callable[[str], bool] = lambda path: True,
) -> list[str]:
    """Lines for the handoff's concerns, at most MAX_DOUBTS. `changed`: paths that git found; `exists` in what was handed in.

    Only of a run that ended well: what is said of any other is doubted as it is.
    """
    if result.harness_status != "completed" or result.error:
        return []
    found = [*_of_the_checks(result, checks), *_of_the_files(result, changed, exists)]
    if result.status is HandoffStatus.COMPLETE and not changed and not _ALREADY.search(result.summary[:_MAX_SUMMARY]):
        found.insert(0, _line(Doubt.NOTHING_CHANGED, "it says that the task is complete, and no file was changed"))
    if result.said is False:
        found.append(_line(Doubt.NO_HANDOFF, "it ended without a handoff; its last words stand as the summary"))
    return found[:MAX_DOUBTS]


def _of_the_checks(result: WorkResult, checks: Sequence[CheckResult]) -> Iterator[str]:
    red = [check for check in checks if check.red]
    if not red:
        return
    measured = ", ".join(_red(check) for check in red[:4])
    if claims_green(result.summary):
        yield _line(Doubt.CHECKS_RED, f"it says that tests or checks pass; measured on what it handed in: {measured}")
    elif result.status is HandoffStatus.COMPLETE:
        yield _line(Doubt.CHECKS_RED, f"it says that the task is complete; measured on what it handed in: {measured}")


def _red(check: CheckResult) -> str:
    said = next((line for line in reversed(check.output.splitlines()) if line.strip()), "")
    code = "timed out" if check.exit_code is None or check.status == "timeout" else f"exit code {check.exit_code}"
    return f"{check.name.value} red ({code}{f': {one_line(said, 120)}' if said else ''})"


def _of_the_files(result: WorkResult, changed: Collection[str], exists: Callable[[str], bool]) -> Iterator[str]:
    for path in claimed_paths(result.summary):
        if any(path == real or real.endswith(f"/{path}") for real in changed):
            continue
        if "/" not in path or exists(path):
            yield _line(Doubt.UNTOUCHED, f"it says that it changed {path}, which is not among the changed files")
        else:
            yield _line(Doubt.NO_SUCH_FILE, f"it says that it changed {path}, and there is no such file")


def claims_green(summary: str) -> bool:
    """Does some sentence say that tests or checks pass, without a but?"""
    return any(_GREEN.search(s) and not _DENIES.search(s) for s in _SENTENCE.split(summary[:_MAX_SUMMARY]))


def claimed_paths(summary: str) -> list[str]:
    """Files that it says it wrote or changed, from the repository's root where it says so; each once."""
    found: dict[str, None] = {}
    for sentence in _SENTENCE.split(summary[:_MAX_SUMMARY]):
        verb = _CHANGES.search(sentence)
        if verb is None or _DENIES.search(sentence):
            continue
        for match in _PATH.finditer(sentence, verb.end()):
            path = match.group(1) or match.group(2)
            for prefix in _INSIDE:
                path = path.removeprefix(prefix)
            if not path.startswith(("/", "..", "-")) and len(path) <= 300:
                found[path] = None
    return list(found)[:_MAX_PATHS]


def _line(kind: Doubt, text: str) -> str:
    return f"{kind.value}: {one_line(text, 700)}"
