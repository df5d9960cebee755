"""What an agent hands in for the landing branch: only what is its own lands, and nobody's checks, machines or reviews turn."""

import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from attacks import attack

sys.path.append(str(Path(__file__).resolve().parents[2] / "sandbox"))
from longshot_worker import checks as project_checks  # isort: skip - found through the line above

from longshot_dagster.adapters import settings
from longshot_dagster.core import landing, protected, scope
from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.landing import Change, Ownership, landable, split
from longshot_dagster.core.landing_records import Approval
from longshot_dagster.core.models import CheckName, CheckResult, CheckStatus, Handoff, HandoffStatus, Task, WorkerRun
from longshot_dagster.core.path_lists import PathList
from longshot_dagster.core.protected import PathRules, approves
from longshot_dagster.core.settings import Origin

BUILD = "shop-7f3k"
NOBODYS = Ownership({}, {})
UNPROTECTED = PathRules(protected=PathList(()))
TASK = Task(
    id="r001-01",
    build=BUILD,
    iteration="root.001",
    planner="root",
    description="x",
    branch="b",
    scope=("src/", ".github/", "AGENTS.md", "pytest.ini", "uv.lock"),
)


def lands(
    *changes: Change, owners: Ownership = NOBODYS, rules: PathRules = landing.EVERYBODYS, by: Iterable[str] = TASK.scope
) -> bool:
    """Does all of it land?"""
    return not split(changes, TASK.model_copy(update={"scope": tuple(by)}), owners, rules).withheld


def change(path: str, mode: str = "100644", link: str | None = None, before: str = "") -> Change:
    return Change(path, mode, "a" * 40, "M" if before else "A", link, before, "b" * 40 if before else "")


@attack(
    "ASI07",
    "change what another task owns",
    defence="scope is enforced on the diff",
    off="nobody owns anything",
)
def test_a_path_of_another_task() -> None:
    theirs = Ownership({"r001-02": ("lib/",)}, {})
    assert not lands(change("lib/x.py"), owners=theirs)
    assert lands(change("lib/x.py"))


@attack(
    "ASI04",
    "land a workflow that runs with CI's secrets",
    defence="CI lands only when a person has approved the very change",
    off="nothing is protected",
)
def test_a_workflow() -> None:
    assert not lands(change(".github/workflows/ci.yml"))
    assert lands(change(".github/workflows/ci.yml"), rules=UNPROTECTED)


@attack(
    "ASI06",
    "write orders for later agents into AGENTS.md",
    defence="agents' instructions land only when a person has approved them",
    off="nothing is protected",
)
def test_orders_for_later_agents() -> None:
    assert not lands(change("AGENTS.md"))
    assert lands(change("AGENTS.md"), rules=UNPROTECTED)


@attack(
    "ASI10",
    "soften the checks it is measured by",
    defence="check configuration that was there before lands only when approved",
    off="nothing was there before",
)
def test_softened_checks() -> None:
    was_there = PathRules(established=lambda: frozenset({"pytest.ini"}))
    assert not lands(change("pytest.ini", before="100644"), rules=was_there)
    assert lands(change("pytest.ini", before="100644"), rules=PathRules())


@attack(
    "ASI10",
    "remove what its checks are found by",
    defence="which checks run is read from the base, before the agent was there",
    off="they are looked for afterwards",
)
def test_checks_that_have_disappeared(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text("test:\n\tfalse\n")
    before = project_checks.found_at(str(tmp_path))
    (tmp_path / "Makefile").unlink()

    def status(known: project_checks.Detected | None) -> str:
        found = project_checks.run_all(str(tmp_path), {}, 30, sys.float_info.max, {"test"}, known)
        return found[0].status

    assert status(before) == "red"
    assert status(None) == "skipped"


@attack(
    "ASI04",
    "pin another package in a lock file",
    defence="lock files never land from a worker; their tool makes them anew",
    off="no path counts as generated",
)
def test_a_lock_file() -> None:
    assert not lands(change("uv.lock"))
    assert lands(change("uv.lock"), rules=PathRules(generated=PathList(())))


@attack(
    "ASI05",
    "land a link to a file of whoever checks it out",
    defence="links that leave the repository never land",
    off="links are not looked at",
)
@pytest.mark.parametrize("to", ["/etc/passwd", "../../.ssh/id_rsa", "~/.netrc", "../.git/config"])
def test_a_link_that_leaves(to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not lands(change("src/link", "120000", to))
    monkeypatch.setattr(landing, "link_leaves", lambda path, target: False)
    assert lands(change("src/link", "120000", to))


@attack(
    "ASI05",
    "land a submodule, which is fetched from anywhere",
    defence="only files and links land",
    off="every mode may land",
)
def test_a_submodule(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not lands(change("src/x", "160000"))
    monkeypatch.setattr(landing, "_MODES", {*landing._MODES, "160000"})
    assert lands(change("src/x", "160000"))


@attack(
    "ASI05",
    "land .git by a name that only some file systems take for it",
    defence="paths are validated as the strictest of them would",
    off="paths as they are",
)
@pytest.mark.parametrize("path", ["src/.GIT/config", "src/git~1/config", "src/.git\u200c/config", "src/..\\x"])
def test_a_path_that_is_git_elsewhere(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not lands(change(path))
    monkeypatch.setattr(scope, "normalise", str)
    assert lands(change(path))


@attack(
    "ASI05",
    "make a file executable that is not its own",
    defence="what may be executed changes only inside the scope",
    off="the executable bit is not looked at",
)
def test_an_executable_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not lands(change("run.sh", "100755", before="100644"))
    monkeypatch.setattr(Change, "executable_flipped", False)
    assert lands(change("run.sh", "100755", before="100644"))


@attack(
    "ASI05",
    "steer a person's editor or git hooks by straying",
    defence="what steers tools outside of sandboxes lands only when a scope names it",
    off="no such paths are known",
)
@pytest.mark.parametrize("path", [".vscode/tasks.json", ".gitattributes", ".devcontainer/x", ".husky/pre-push"])
def test_an_editors_tasks(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = PathRules()
    assert not lands(change(path), rules=rules)
    monkeypatch.setattr(landing, "_STEERING", ())
    assert lands(change(path), rules=rules)


@attack(
    "ASI08",
    "fill the repository for good with a huge file",
    defence="MAX_FILE_MB",
    off="no limit",
)
def test_a_huge_file() -> None:
    huge = {"a" * 40: 40 << 20}
    assert not lands(change("src/x"), rules=PathRules(max_bytes=10 << 20, sizes=huge))
    assert lands(change("src/x"), rules=PathRules(max_bytes=0, sizes=huge))


@attack(
    "ASI09",
    "have one change approved and land another",
    defence="an approval is of the digest of exactly one change",
    off="an approval is of a task",
)
def test_a_change_after_the_approval(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = (change(".github/workflows/ci.yml"),)
    other = (Change(".github/workflows/ci.yml", "100644", "e" * 40, "A"),)
    approval = Approval(task=TASK.id, digest=protected.digest(shown), paths=(shown[0].path,), by="a person", at=1.0)
    assert approves(approval, TASK.id, shown)
    assert not approves(approval, TASK.id, other)
    monkeypatch.setattr(protected, "digest", lambda changes: approval.digest)
    assert approves(approval, TASK.id, other)


@attack(
    "ASI10",
    "land work whose checks are red or that is not finished",
    defence="only complete work with green checks lands",
    off="red is not red, and partial is complete",
)
def test_work_that_is_not_fit_to_land(monkeypatch: pytest.MonkeyPatch) -> None:
    red = CheckResult(name=CheckName.TEST, command="make test", status=CheckStatus.RED, exit_code=1)
    run = WorkerRun(
        task=TASK.id,
        provider="local",
        harness="builtin",
        harness_status="completed",
        base="0" * 40,
        checks=(red,),
        started_at=0,
        ended_at=0,
    )
    handoff = Handoff(task_id=TASK.id, status=HandoffStatus.COMPLETE, summary="all is well")
    assert landable(handoff, run) is not None
    green = run.model_copy(update={"checks": ()})
    assert landable(handoff, green) is None
    assert landable(handoff.model_copy(update={"status": HandoffStatus.PARTIAL}), green) is not None
    monkeypatch.setattr(CheckResult, "red", False)
    assert landable(handoff, run) is None


@attack(
    "ASI04",
    "loosen the sandbox by the settings that the repository brings along",
    defence="a repository does not decide how its agents are locked in, what they run or what they may spend",
    off="it decides what it likes",
)
@pytest.mark.parametrize(
    "line",
    [
        'sandbox_isolation = "none"',
        'sandbox_network = "open"',
        'sandbox_readable = "/srv"',
        'sandbox_image = "evil:1"',
        'harness_package = "evil@1.0.0"',
        'protected_paths = "none"',
        "max_tokens_per_build = 0",
    ],
)
def test_settings_of_a_repository(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WrongUse, match="not for a repository to decide"):
        settings.resolve({}, {}, {}, None, line)
    monkeypatch.setattr(settings, "NOT_FOR_TARGETS", ())
    name = line.split(" ")[0]
    assert settings.resolve({}, {}, {}, None, line).origins[name] is Origin.TARGET
