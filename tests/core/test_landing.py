"""The landing policy's rules, as tables."""

import pytest

from longshot_dagster.core import landing
from longshot_dagster.core.landing import Change, Ownership, commit_message, guard, is_fit, link_leaves, person, split
from longshot_dagster.core.landing_records import Concern, ConcernKind, LandingOutcome, LandingState
from longshot_dagster.core.models import (
    CheckName,
    CheckResult,
    CheckStatus,
    Handoff,
    HandoffStatus,
    Task,
    WorkerRun,
)

BUILD = "a-build-7f3k"
NOBODY = Ownership({}, {})


def task(name: str = "r001-01", scope: tuple[str, ...] = ("src/",), **more: object) -> Task:
    facts = {"iteration": "root.001", "planner": "root", "description": "x", "branch": "b"}
    return Task(id=name, build=BUILD, scope=scope, **{**facts, **more})


def change(path: str, mode: str = "100644", link: str | None = None) -> Change:
    return Change(path, mode, "0" * 40, "A", link)


def kept(path: str, scope: tuple[str, ...] = ("src/",), owners: Ownership = NOBODY) -> str:
    parts = split([change(path)], task(scope=scope), owners)
    if parts.landed:
        return "landed"
    return "claimed" if parts.claimed else parts.concerns[0].kind.value


def test_the_more_are_at_work_the_more_a_batch_waits_for():
    assert [landing.gathering_s(n) for n in (0, 1, 25, 50, 100, 200, 1_000)] == [1.0, 1.0, 1.0, 2.0, 4.0, 8.0, 8.0]


@pytest.mark.parametrize(
    ("path", "scope", "becomes"),
    [
        ("src/a.py", ("src/",), "landed"),
        ("src/a.py", ("src",), "landed"),
        ("src/a.py", ("src/a.py",), "landed"),
        ("srcs/a.py", ("src",), "claimed"),
        ("other.py", ("src/",), "claimed"),
        ("owned/x", ("src/",), "out-of-scope"),
        ("claimed.py", ("src/",), "out-of-scope"),
        ("owned/x", ("owned/x",), "landed"),
        ("package-lock.json", ("package-lock.json",), "generated"),
        ("src/node_modules/x.js", ("src/",), "generated"),
        ("build/make.py", ("src/",), "generated"),
        ("build/make.py", ("build/",), "landed"),
        ("app/dist/x.js", ("app/dist/x.js",), "landed"),
        ("build/x.pyc", ("build/",), "generated"),
        (".github/workflows/ci.yml", ("src/",), "protected"),
        (".github/workflows/ci.yml", (".github/workflows/ci.yml",), "protected"),
        (".longshot.toml", ("src/",), "protected"),
        (".vscode/tasks.json", ("src/",), "out-of-scope"),
        (".vscode/tasks.json", (".vscode/",), "landed"),
        ("a\\b", ("src/", "a\\b"), "unsafe-path"),
        ("src/ x ", ("src/ x ",), "landed"),
        (" x", ("src/",), "unsafe-path"),
        ("src/\x1b[31m", ("src/",), "unsafe-path"),
        ("src/.GIT/hooks/x", ("src/",), "unsafe-path"),
        ("src/../x", ("src/",), "unsafe-path"),
        ("src/\udcff", ("src/",), "unsafe-path"),
    ],
)
def test_what_becomes_of_a_path(path, scope, becomes):
    if path == "src/ x ":
        becomes = "unsafe-path"  # normalised away on other file systems
    owners = Ownership({"r001-02": ("owned/",)}, {"claimed.py": "r001-03"})
    assert kept(path, scope, owners) == becomes


@pytest.mark.parametrize("mode", ["160000", "040000", "100664"])
def test_only_files_and_links_land(mode):
    parts = split([change("src/a", mode)], task(), NOBODY)
    assert parts.withheld == ("src/a",) and parts.concerns[0].kind is ConcernKind.UNSAFE_PATH


@pytest.mark.parametrize(
    ("path", "target", "leaves"),
    [
        ("a", "b", False),
        ("d/a", "../b", False),
        ("d/e/a", "../../b", False),
        ("d/e/a", "../..", False),
        ("d/a", ".", False),
        ("a", "../b", True),
        ("d/a", "../../b", True),
        ("a", "/etc/passwd", True),
        ("a", "~/x", True),
        ("a", "C:/x", True),
        ("a", "\\\\host\\x", True),
        ("a", ".git/config", True),
        ("d/a", "../.git/hooks", True),
        ("a", "d/../../x", True),
        ("a", "link/../x", True),  # through a link, `..` goes up from somewhere else
        ("a", "", True),
    ],
)
def test_a_link_stays_inside_the_repository(path, target, leaves):
    assert link_leaves(path, target) is leaves


def test_owners_are_the_other_tasks_and_the_first_who_claimed():
    tasks = [
        task("r001-01", ("a/",)),
        task("r001-02", ("b/",)),
        task("r001-03", ("c/",)),
        task("r001-04", ("d/",)),
        task("r001-05", ("e/",), delegated=True),
    ]
    claim = Concern(kind=ConcernKind.CLAIMED, text="x", path="f.py")
    landings = {
        "r001-02": LandingOutcome(task="r001-02", state=LandingState.LANDED, concerns=(claim,)),
        "r001-03": LandingOutcome(task="r001-03", state=LandingState.SUPERSEDED),
    }
    child = task("r001-05-001-01", ("e/x",), replaces=("r001-04",))
    owners = landing.ownership(child, tasks, landings)
    found = {p: owners.owner(p) for p in ("a/x", "b/x", "c/x", "d/x", "e/y", "f.py", "g")}
    assert found == {
        "a/x": "r001-01",
        "b/x": "r001-02",
        "c/x": None,
        "d/x": None,
        "e/y": None,
        "f.py": "r001-02",
        "g": None,
    }


@pytest.mark.parametrize(
    ("status", "check", "kind"),
    [
        (HandoffStatus.COMPLETE, None, None),
        (HandoffStatus.COMPLETE, CheckStatus.GREEN, None),
        (HandoffStatus.COMPLETE, CheckStatus.SKIPPED, None),
        (HandoffStatus.COMPLETE, CheckStatus.RED_BEFORE, None),
        (HandoffStatus.COMPLETE, CheckStatus.RED, ConcernKind.CHECK_RED),
        (HandoffStatus.COMPLETE, CheckStatus.TIMEOUT, ConcernKind.CHECK_RED),
        (HandoffStatus.PARTIAL, None, ConcernKind.NOT_COMPLETE),
        (HandoffStatus.BLOCKED, CheckStatus.GREEN, ConcernKind.NOT_COMPLETE),
        (HandoffStatus.FAILED, CheckStatus.RED, ConcernKind.NOT_COMPLETE),
    ],
)
def test_what_may_land_at_all(status, check, kind):
    checks = (CheckResult(name=CheckName.TEST, command="t", status=check),) if check else ()
    run = WorkerRun(
        task="r001-01",
        provider="local",
        harness="builtin",
        harness_status="completed",
        base="0" * 40,
        checks=checks,
        started_at=0,
        ended_at=0,
    )
    handoff = Handoff(task_id="r001-01", status=status, summary="")
    refusal = landing.landable(handoff, run)
    assert (refusal.kind if refusal else None) is kind
    assert landing.landable(handoff, None).kind is ConcernKind.NOT_COMPLETE


@pytest.mark.parametrize(
    ("landed", "own", "renamed", "strayed"),
    [
        ({"a"}, {"a", "b"}, {}, ()),
        ({"a", "c"}, {"a"}, {}, ("c",)),
        ({"new"}, {"old"}, {"new": "old"}, ()),
        ({"new"}, {"a"}, {"new": "old"}, ("new",)),
    ],
)
def test_a_landing_changes_only_what_its_branch_changed(landed, own, renamed, strayed):
    assert guard(landed, frozenset(own), renamed) == strayed


@pytest.mark.parametrize(
    "line",
    [
        "Longshot-Task: r009-09",
        "longshot-task: x",
        "LONGSHOT-BUILD : x",
        "  Longshot-Source: x",
        "> Longshot-Source: x",
        "Long\u200bshot-Task: x",
        "Longshot_Task=x",
    ],
)
def test_forged_trailers_are_cut_in_any_spelling(line):
    message = commit_message(f"Subject\n\nBody\n{line}\nMore\n\n{line}", BUILD, "r001-01", "abc")
    assert message == (
        f"Subject\n\nBody\nMore\n\nLongshot-Build: {BUILD}\nLongshot-Task: r001-01\nLongshot-Source: abc\n"
    )
    assert not is_fit(f"Subject\n\n{line}\n")


@pytest.mark.parametrize(
    ("line", "becomes"),
    [
        ("Signed-off-by: A Person <person@example.com>", None),
        ("co-authored-by: x", None),
        ("skip-checks: true", None),
        ("Done [skip ci]", "Done (ci)"),
        ("[[skip ci]] [CI SKIP] [no-ci] [skip netlify] ***NO_CI***", "[(ci)] (ci) (ci) (ci) (ci)"),
        ("Fixes #12, and closes: octo/cat#3", "Fixes  no. 12, and closes: octo/cat no. 3"),
        ("resolves GH-7 https://example.com/issues/9", "resolves  no. 7 https://example.com/issues no. 9"),
        ("Raises the price to 12 (see #3) [array of ints]", "Raises the price to 12 (see #3) [array of ints]"),
    ],
)
def test_what_a_forge_would_act_on_is_not_said(line, becomes):
    message = commit_message(f"Subject\n\n{line}", BUILD, "r001-01", "abc")
    assert message.split("\n\n")[1:-1] == ([becomes] if becomes else [])
    assert is_fit(f"Subject\n\n{line}\n") is (line == becomes)


@pytest.mark.parametrize("text", ["", "\n\n", "Longshot-Task: x", "\x1b\x00"])
def test_a_message_always_has_a_subject(text):
    assert commit_message(text, BUILD, "r001-01", "abc").split("\n\n")[-1].startswith("Longshot-Build")
    assert commit_message(text, BUILD, "r001-01", "abc").splitlines()[0].strip()


def test_messages_are_plain_and_bounded():
    message = commit_message("\x1b[31m" + "s" * 5_000 + "\n\n" + "b" * 100_000, BUILD, "r001-01", "abc")
    assert "\x1b" not in message and len(message.splitlines()[0]) <= 100 and len(message) < 5_000
    assert is_fit("A subject\n\nand a body\n") and not is_fit("\x1b[31mred") and not is_fit("x" * 9_999)


@pytest.mark.parametrize(
    ("name", "email", "becomes"),
    [
        ("A Worker", "a@b.invalid", ("A Worker", "a@b.invalid")),
        ("x\n<y>", "a>\nb.invalid", ("xy", "ab.invalid")),
        ("", "a@b.invalid", ("longshot worker", "a@b.invalid")),
        ("A Person", "person@example.com", ("longshot worker", "worker@longshot.invalid")),
        ("", "", ("longshot worker", "worker@longshot.invalid")),
        (" .,;", "<>", ("longshot worker", "worker@longshot.invalid")),
    ],
)
def test_an_author_fits_into_a_commit_header(name, email, becomes):
    assert person(name, email) == becomes


def test_what_a_task_replaces_is_followed_to_the_end():
    tasks = {t.id: t for t in (task("r001-01"), task("f001-01", replaces=("r001-01",)))}
    last = task("f002-01", replaces=("f001-01", "f002-01", "r009-09"))
    assert landing.replaced_by(last, tasks) == ("f001-01", "r009-09", "r001-01")


def test_claims_and_concerns_are_bounded():
    changes = [change(f"x{n}.py") for n in range(500)] + [change(f"{n}.pyc") for n in range(500)]
    parts = split(changes, task(), NOBODY)
    assert len(parts.claimed) == 200 and len(parts.withheld) == 800
    assert len(parts.concerns) == 401 and "600 more" in parts.concerns[-1].text
