"""Which paths land with approval only, and what an approval is good for."""

import pytest

from longshot_dagster.core.landing import Change, Ownership, split, to_approve
from longshot_dagster.core.landing_records import Approval, Concern, ConcernKind, LandingOutcome, LandingState
from longshot_dagster.core.models import Task, TaskKind
from longshot_dagster.core.path_lists import path_list
from longshot_dagster.core.protected import (
    PathRules,
    approves,
    digest,
    is_waiting,
    waiting,
    waiting_paths,
    why_nothing_to_approve,
)

ZERO, OLD, NEW = "0" * 40, "a" * 40, "b" * 40


def change(path, mode="100644", oid=NEW, mode_before="100644", before=OLD):
    return Change(path, mode, oid, "M", None, mode_before, before)


def task(*scope):
    return Task(
        id="r001-01",
        build="a-build-7f3k",
        scope=scope,
        description="x",
        iteration="root.001",
        planner="root",
        kind=TaskKind.PLAN,
        branch="worker/r001-01",
    )


@pytest.mark.parametrize(
    "path",
    [
        ".github/workflows/ci.yml",
        ".github",
        ".GitHub/workflows/ci.yml",
        ".gitlab-ci.yml",
        "CODEOWNERS",
        "docs/CODEOWNERS",
        ".longshot.toml",
        "AGENTS.md",
        "packages/web/CLAUDE.md",
        ".claude/settings.json",
        ".cursor/rules/a.mdc",
    ],
)
def test_what_steers_machines_reviewers_and_agents_is_protected_even_where_a_scope_names_it(path):
    parts = split([change(path)], task(path), Ownership({}, {}))
    assert parts.withheld == (path,) and parts.concerns[0].kind is ConcernKind.PROTECTED
    assert "longshot approve a-build-7f3k.r001-01" in parts.concerns[0].text


@pytest.mark.parametrize(
    "path", ["pytest.ini", "web/.eslintrc.json", "eslint.config.mjs", "mypy.ini", ".husky/pre-commit"]
)
def test_the_configuration_of_checks_is_protected_where_the_build_found_it(path):
    assert split([change(path)], task(path), Ownership({}, {})).landed == (path,)
    found = PathRules(established=lambda: frozenset([path]))
    assert split([change(path)], task(path), Ownership({}, {}), found).withheld == (path,)


@pytest.mark.parametrize(
    "path", ["package.json", "src/app.py", "Makefile", "docs/agents/notes.md", "templates/.github/ci.yml"]
)
def test_everything_else_is_not(path):
    rules = PathRules(established=lambda: frozenset([path]))
    assert split([change(path)], task(path), Ownership({}, {}), rules).landed == (path,)


def test_the_list_is_a_persons_to_set():
    rules = PathRules(protected=path_list("deploy/"))
    assert rules.protects("deploy/x") and not rules.protects("AGENTS.md")
    rules = PathRules(protected=path_list("default,deploy/"))
    assert rules.protects("deploy/x") and rules.protects("AGENTS.md")
    assert not PathRules(protected=path_list("none")).protects("AGENTS.md")


def test_what_is_approved_lands_whatever_the_scope_says_but_never_what_is_unsafe():
    owners = Ownership({"r001-02": (".github/",)}, {})
    link = Change(".github/x", "120000", NEW, "A", "/etc/passwd", "000000", ZERO)
    rules = PathRules(approved=frozenset([".github/ci.yml", ".github/x"]))
    parts = split([change(".github/ci.yml"), link], task("src/"), owners, rules)
    assert parts.kept == {".github/ci.yml"} and parts.withheld == (".github/x",)
    assert [c.path for c in to_approve([change(".github/ci.yml"), link], rules)] == [".github/ci.yml"]


def test_an_approval_is_good_for_exactly_that_change():
    changes = [change("AGENTS.md"), change(".github/ci.yml", mode_before="000000", before=ZERO)]
    approval = Approval(task="r001-01", digest=digest(changes), by="me@here", at=1.0)
    assert approves(approval, "r001-01", reversed(changes))
    assert not approves(approval, "r001-02", changes)
    assert not approves(None, "r001-01", changes)
    assert not approves(approval, "r001-01", changes[:1])
    assert not approves(approval, "r001-01", [*changes, change("CLAUDE.md")])
    for other in (
        change("AGENTS.md", oid="c" * 40),
        change("AGENTS.md", before="c" * 40),
        change("AGENTS.md", "100755"),
    ):
        assert not approves(approval, "r001-01", [other, changes[1]])


def test_a_landing_says_what_waits_and_what_to_do():
    concerns = tuple(Concern(kind=ConcernKind.PROTECTED, text="x", path=f"p{n}") for n in range(5))
    reason = waiting("a-build-7f3k", "r001-01", concerns)
    assert reason == "waits for approval of p0, p1, p2 and 2 more: longshot approve a-build-7f3k.r001-01"
    assert is_waiting(reason) and not is_waiting("nothing of it is in scope")
    assert waiting("b", "r001-01", ()) == ""
    for state, waits in ((LandingState.LANDED, 5), (LandingState.WITHHELD, 5), (LandingState.UNDONE, 0)):
        assert len(waiting_paths(LandingOutcome(task="r001-01", state=state, concerns=concerns))) == waits


@pytest.mark.parametrize(
    ("outcome", "why"),
    [
        (None, "not tried to land yet"),
        (LandingOutcome(task="r001-01", state=LandingState.QUEUED), "about to land"),
        (LandingOutcome(task="r001-01", state=LandingState.LANDED), "nothing of"),
        (
            LandingOutcome(
                task="r001-01",
                state=LandingState.LANDED,
                approved=Approval(task="r001-01", digest="0" * 64, by="me", at=1.0),
            ),
            "landed already",
        ),
    ],
)
def test_nothing_to_approve_is_said_with_its_reason(outcome, why):
    assert why in why_nothing_to_approve("a-build-7f3k", "r001-01", outcome)


def test_what_may_be_executed_does_not_change_outside_a_scope():
    def becomes(mode_before, mode, *scope):
        parts = split([change("tool.sh", mode, NEW, mode_before)], task(*scope), Ownership({}, {}))
        return parts.concerns[0].kind.value if parts.concerns else "landed"

    assert becomes("100644", "100755", "src/") == becomes("100755", "100644", "src/") == "unsafe-path"
    assert becomes("000000", "100755", "src/") == "unsafe-path"
    assert becomes("100755", "000000", "src/") == becomes("100755", "100755", "src/") == "claimed"
    assert becomes("100644", "100755", "tool.sh") == "landed"


def test_a_file_over_the_limit_and_generated_paths_of_a_persons_own_are_withheld():
    def becomes(path, rules, *scope):
        parts = split([change(path)], task(*scope), Ownership({}, {}), rules)
        return parts.concerns[0].kind.value if parts.concerns else "landed"

    limited = PathRules(max_bytes=1 << 20, sizes={NEW: (1 << 20) + 1})
    assert becomes("a.bin", limited, "a.bin") == "too-large"
    assert becomes("a.bin", PathRules(sizes={NEW: 1 << 40}), "a.bin") == "landed"
    more = PathRules(generated=path_list("default,gen/,*.pb.go"))
    assert becomes("gen/x.py", more, "gen/") == becomes("a/x.pb.go", more, "a/") == "generated"
    assert becomes("a/x.pb.go", more, "a/x.pb.go") == "landed"
    assert becomes("uv.lock", more, "uv.lock") == "generated"
    assert becomes("uv.lock", PathRules(generated=path_list("none")), "uv.lock") == "landed"
