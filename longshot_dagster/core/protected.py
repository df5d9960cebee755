"""Protected paths: what steers machines, reviewers or agents lands only once a person has approved that very change.

Two built-in lists. What runs with secrets, decides who must review, or tells agents what to do is protected always. What
configures the checks is protected where the repository had it when the build began: a build may write the first one
itself, but must not soften the ones it is measured by.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from longshot_dagster.core.display import one_line
from longshot_dagster.core.ids import task_partition
from longshot_dagster.core.landing_records import Approval, Concern, ConcernKind, LandingOutcome, LandingState
from longshot_dagster.core.path_lists import PathList, path_list
from longshot_dagster.core.settings import Settings

if TYPE_CHECKING:
    from longshot_dagster.core.landing import Change

WAITS = "waits for approval of"
_NAMED = 3

_CI = (
    *("/.github/", "/.gitlab-ci.yml", "/.gitlab/", "/.circleci/", "/.travis.yml", "/Jenkinsfile", "/.buildkite/"),
    *("/azure-pipelines.yml", "/.azure-pipelines/", "/bitbucket-pipelines.yml", "/appveyor.yml", "/.appveyor.yml"),
    *("/.drone.yml", "/.woodpecker/", "/.woodpecker.yml", "/.woodpecker.yaml", "/.forgejo/", "/.gitea/"),
)
_AGENTS = (
    *("AGENTS.md", "AGENT.md", "CLAUDE.md", "CLAUDE.local.md", "GEMINI.md", ".claude/", ".cursor/", ".cursorrules"),
    *(".windsurf/", ".windsurfrules", ".clinerules", ".roo/", ".kiro/", ".codex/", ".opencode/", "opencode.json"),
    *(".mcp.json", ".aider.conf.yml", ".goosehints"),
)
ALWAYS = PathList((*_CI, "CODEOWNERS", "/.longshot.toml", *_AGENTS))
CHECKS = PathList(
    (
        *(".pre-commit-config.yaml", ".husky/", "lefthook.yml", ".lintstagedrc*", "tox.ini", "noxfile.py"),
        *("pytest.ini", ".pytest.ini", "mypy.ini", ".mypy.ini", "pyrightconfig.json", "ruff.toml", ".ruff.toml"),
        *(".flake8", ".pylintrc", "pylintrc", ".coveragerc", ".importlinter", ".eslintrc*", "eslint.config.*"),
        *(".eslintignore", "biome.json", "biome.jsonc", "jest.config.*", "vitest.config.*", "playwright.config.*"),
        *("cypress.config.*", ".mocharc*", ".nycrc*", "clippy.toml", ".clippy.toml", "rustfmt.toml"),
        *(".golangci.yml", ".golangci.yaml", ".golangci.toml", ".rubocop.yml", "phpunit.xml*", "phpstan.neon*"),
    )
)


@dataclass(frozen=True)
class PathRules:
    """What a build's settings say about paths, whatever a task's scope is.

    `established`: paths under CHECKS that were there when the build began; asked only when it matters. `approved`: paths
    of the one branch at hand whose exact change a person has approved. `sizes`: bytes by blob, as far as they are known.
    """

    protected: PathList = field(default_factory=lambda: PathList(built_in=True))
    generated: PathList = field(default_factory=lambda: PathList(built_in=True))
    max_bytes: int = 0  # 0: no limit
    established: Callable[[], frozenset[str]] = frozenset
    approved: frozenset[str] = frozenset()
    sizes: Mapping[str, int] = field(default_factory=dict)

    def protects(self, path: str) -> bool:
        """Does `path` land with approval only?"""
        if self.protected.covers(path) or (self.protected.built_in and ALWAYS.covers(path)):
            return True
        return self.protected.built_in and CHECKS.covers(path) and path in self.established()

    def too_large(self, oid: str) -> bool:
        return 0 < self.max_bytes < self.sizes.get(oid, 0)


def path_rules(settings: Settings, established: Callable[[], frozenset[str]]) -> PathRules:
    return PathRules(
        protected=path_list(settings.protected_paths),
        generated=path_list(settings.generated_paths),
        max_bytes=settings.max_file_mb << 20,
        established=established,
    )


def digest(changes: Iterable["Change"]) -> str:
    """Of exactly these changes: paths, modes and contents before and after. Whatever else they were made into has another."""
    facts = sorted([c.path, c.mode_before, c.before, c.mode, c.oid] for c in changes)
    return hashlib.sha256(json.dumps(facts, ensure_ascii=True).encode()).hexdigest()


def approves(approval: Approval | None, task: str, changes: Iterable["Change"]) -> bool:
    """Was just this approved, neither more nor less?"""
    return approval is not None and approval.task == task and approval.digest == digest(changes)


# --- what is said about it -------------------------------------------------------------------------------------------


def waiting_reason(build: str, task: str, paths: Iterable[str]) -> str:
    """Why a landing is not the whole of its branch, with what to do; one line, safe to print."""
    paths = tuple(paths)
    named = ", ".join(one_line(p, 120) for p in paths[:_NAMED]) + (
        f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    )
    return f"{WAITS} {named}: longshot approve {task_partition(build, task)}"


def waiting(build: str, task: str, concerns: Iterable[Concern]) -> str:
    """`waiting_reason` of what a landing's concerns say is protected; empty when nothing is."""
    paths = [c.path for c in concerns if c.kind is ConcernKind.PROTECTED]
    return waiting_reason(build, task, paths) if paths else ""


def is_waiting(reason: str) -> bool:
    """Does a landing's reason say that a person is to approve something?"""
    return reason.startswith(WAITS)


def waiting_paths(outcome: LandingOutcome | None) -> tuple[str, ...]:
    """Protected paths of a branch that nobody has approved yet."""
    if outcome is None or outcome.state not in (LandingState.LANDED, LandingState.WITHHELD):
        return ()
    return tuple(c.path for c in outcome.concerns if c.kind is ConcernKind.PROTECTED and c.path)


def why_nothing_to_approve(build: str, task: str, outcome: LandingOutcome | None) -> str:
    """Empty when something of the task waits for a person."""
    name = task_partition(build, task)
    if outcome is None:
        return f"{name} has not tried to land yet; longshot status {build} shows what it waits for"
    if outcome.state is LandingState.QUEUED:
        return f"{name} is about to land; try again once it has, or has not"
    if waiting_paths(outcome):
        return ""
    if outcome.approved is not None:
        return f"{name}: what was approved has landed already"
    return f"nothing of {name} waits for approval ({outcome.state.value}); longshot status {build}"
