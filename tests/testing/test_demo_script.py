"""The demo's script, played against real git in several orders, without the rest of the machine."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from longshot_dagster.core import scope
from longshot_dagster.core.models import PlanReply, TaskKind
from longshot_dagster.testing import demo
from longshot_dagster.testing.answers import answer, understand
from longshot_dagster.testing.script import Script, load

TOOLS = ["read", "write", "edit", "bash", "grep", "find", "ls"]
FIRST, SECOND, THIRD = "root.001", "root.002", "root.003"
PAGE = "The page of the day"


@dataclass(frozen=True)
class Work:
    id: str
    title: str
    description: str
    scope: tuple[str, ...]
    kind: TaskKind = TaskKind.PLAN


@dataclass(frozen=True)
class Branch:
    work: Work
    base: str
    head: str
    green: bool
    status: str


class Rehearsal:
    """A target repository, and just enough planner, worker, queue and sweep to play the script against it."""

    def __init__(self, folder: Path) -> None:
        started = demo.prepare(folder)
        self.script: Script = load(started.script)
        self.main = folder / "main"
        git(folder, "clone", "-q", str(started.repository), str(self.main))
        self.folder = folder
        self.owners: dict[str, str] = {}
        self.conflicts: list[str] = []
        self.withheld: list[str] = []
        self.claimed: list[str] = []
        self.tasks = 0
        self.failure = ""

    @property
    def head(self) -> str:
        return git(self.main, "rev-parse", "HEAD")

    def plan(self, key: str, about: str = "") -> list[Work]:
        system = "You are a Longshot subplanner." if about else "You are Longshot's root planner."
        return self._tasks(ask(self.script, system, f"# Planning round {key}\n\n{about}"), key.replace("root.", "r"))

    def fixes(self, number: int, failure: str) -> list[Work]:
        reply = ask(self.script, "You are Longshot's reconciler.", f"# Fix round fix.{number:03d}\n\n{failure}")
        return self._tasks(reply, f"f{number:03d}", TaskKind.CHECK_FIX)

    def _tasks(self, reply: str, prefix: str, kind: TaskKind = TaskKind.PLAN) -> list[Work]:
        planned = PlanReply.model_validate_json(reply).tasks
        self.tasks += len(planned)
        works = [
            Work(f"{prefix}-{n:02d}", t.description.partition("\n")[0], t.description, tuple(t.scope), kind)
            for n, t in enumerate(planned, 1)
        ]
        self.owners |= {path: work.id for work in works for path in work.scope}
        return works

    def work(self, work: Work) -> Branch:
        """Play the worker on a branch from main as it is now."""
        base, tree = self.head, self.folder / work.id
        git(self.main, "worktree", "add", "-q", "-b", f"worker/{work.id}", str(tree), base)
        message = f"# Task {work.id}\n\nKind: {work.kind}\n\n{work.description}\n\nScope: {', '.join(work.scope)}"
        messages = [{"role": "system", "content": "You are a Longshot worker.\n"}, {"role": "user", "content": message}]
        while (reply := answer(self.script, understand({"messages": messages, "tools": offered(TOOLS)}))).calls:
            messages.append({"role": "assistant", "content": ""})
            for call in reply.calls:
                use_tool(tree, call.tool, json.loads(call.arguments))
        git(tree, "add", "--all")
        git(tree, "commit", "-q", "--allow-empty", "-m", work.title)
        green = demo.run_tests(tree, "test")[0] or not self.sweep()[0]  # as red on its base: does not count
        return Branch(work, base, git(tree, "rev-parse", "HEAD"), green, json.loads(reply.content)["status"])

    def land(self, branch: Branch) -> bool:
        """False when the branch conflicts with main; what is out of its scope is kept out."""
        assert branch.green, f"{branch.work.title} is red in its own branch"
        assert branch.status == "complete"
        tree = self.folder / branch.work.id
        for path in git(tree, "diff", "--name-only", branch.base, branch.head).splitlines():
            if scope.covers(branch.work.scope, path):
                continue
            if path not in self.owners:
                self.claimed.append(path)
                continue
            self.withheld.append(path)
            git(tree, "rm", "-q", "-f", path)
            if git(tree, "ls-tree", branch.base, path):
                git(tree, "checkout", "-q", branch.base, "--", path)
        git(tree, "commit", "-q", "--allow-empty", "-m", "in scope")
        try:
            git(self.main, "merge", "-q", "--no-ff", "-m", branch.work.title, f"worker/{branch.work.id}")
        except subprocess.CalledProcessError:
            assert git(self.main, "diff", "--name-only", "--diff-filter=U") == "almanac/commands.py"
            git(self.main, "merge", "--abort")
            self.conflicts.append(branch.work.title)
            return False
        return True

    def settle(self, branches: list[Branch]) -> None:
        """Land in this order; a conflict's fix task starts when all are through."""
        for lost in [b for b in branches if not self.land(b)]:
            number = len(self.conflicts)
            text = f"A conflict in almanac/commands.py between these two:\n\n{lost.work.description}\n\nMeteor showers\n..."
            fix = Work(f"f10{number}-01", "fix", text, lost.work.scope, TaskKind.CONFLICT_FIX)
            assert self.land(self.work(fix)), "a fix conflicts again"

    def sweep(self) -> tuple[bool, str]:
        return demo.run_tests(self.main, "test")


def ask(script: Script, system: str, message: str) -> str:
    messages = [{"role": "system", "content": f"{system}\n..."}, {"role": "user", "content": message}]
    return answer(script, understand({"messages": messages})).content


def offered(names: list[str]) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": name, "parameters": {}}} for name in names]


def use_tool(tree: Path, tool: str, arguments: dict[str, str]) -> None:
    """What the builtin harness's tools do, without their limits."""
    if tool == "write":
        target = tree / arguments["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(arguments["content"], encoding="utf-8")
    elif tool == "edit":
        target = tree / arguments["path"]
        text = target.read_text(encoding="utf-8")
        if text.count(arguments["old_text"]) == 1:
            target.write_text(text.replace(arguments["old_text"], arguments["new_text"]), encoding="utf-8")
    elif tool == "bash" and (command := arguments["command"]) != "make test":  # that is run anyway, as the check
        subprocess.run(["bash", "-c", command], cwd=tree, capture_output=True, check=False)


def git(where: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=rehearsal", "-c", "user.email=r@longshot.invalid", "-c", "gc.auto=0"]
    done = subprocess.run(["git", *identity, *arguments], cwd=where, check=True, capture_output=True, encoding="utf-8")
    return done.stdout.strip()


@pytest.fixture
def rehearsal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rehearsal:
    # `python3` may be a version switcher's shim that costs as much as a whole run of the almanac's tests.
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").symlink_to(Path(sys.base_prefix) / "bin" / "python3")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.delenv("PYTHON", raising=False)  # the example's Makefile would run that one
    return Rehearsal(tmp_path)


def play(r: Rehearsal, key: str, about: str = "", last_first: bool = False) -> None:
    """One round: everybody starts from the same main, and they land in the order of the plan or the other way round."""
    branches = [r.work(work) for work in r.plan(key, about) if len(work.scope) < 4]
    r.settle(branches[::-1] if last_first else branches)


def heal(r: Rehearsal, again: bool = False) -> None:
    """Answer the red sweep; `again`: a second sweep of the same red main was answered, too."""
    if not again:
        green, r.failure = r.sweep()
        assert not green
    fixes = r.fixes(1 + again, r.failure)
    assert [fix.title for fix in fixes] == ["Coordinates have a clock, too"]
    r.settle([r.work(fix) for fix in fixes])
    assert r.sweep()[0]


def finished(r: Rehearsal) -> None:
    green, output = demo.run_tests(r.main, "lint", "test", "acceptance")
    assert green, output
    assert sorted(p.name for p in (r.main / "docs").iterdir()) == ["reading-the-calendar.md"]


def test_round_after_round_everything_goes_wrong_that_should_and_is_healed(rehearsal: Rehearsal) -> None:
    play(rehearsal, FIRST)
    play(rehearsal, SECOND)
    assert rehearsal.sweep()[0]
    for number in (1, 2):
        play(rehearsal, f"r002-05.{number:03d}", PAGE)
    play(rehearsal, THIRD)
    heal(rehearsal)
    finished(rehearsal)
    assert rehearsal.conflicts == ["Meteor showers"]
    assert rehearsal.withheld == ["README.md"]
    assert rehearsal.claimed == ["docs/reading-the-calendar.md"]
    assert rehearsal.tasks == 3 + 5 + 2 + 2 + 1
    assert rehearsal.plan("root.004") == rehearsal.plan("r002-05.003", PAGE) == []


def test_rounds_that_overlap_end_the_same_in_the_other_order(rehearsal: Rehearsal) -> None:
    play(rehearsal, FIRST, last_first=True)
    works = [*rehearsal.plan(SECOND), *rehearsal.plan("r002-05.001", PAGE), *rehearsal.plan(THIRD)]
    branches = [rehearsal.work(work) for work in works if len(work.scope) < 4][::-1]
    rehearsal.settle(branches[:3])
    rehearsal.settle(branches[3:])
    play(rehearsal, "r002-05.002", PAGE)
    heal(rehearsal)
    heal(rehearsal, again=True)
    finished(rehearsal)
    assert rehearsal.conflicts == ["Seasons"]


def test_one_worker_at_a_time_finds_what_the_others_left(rehearsal: Rehearsal) -> None:
    play(rehearsal, FIRST)
    for key in (SECOND, THIRD):
        for work in rehearsal.plan(key):
            if len(work.scope) < 4:
                rehearsal.settle([rehearsal.work(work)])
    assert rehearsal.sweep()[0]
    assert rehearsal.conflicts == []


def test_the_golden_hours_may_be_first(rehearsal: Rehearsal) -> None:
    play(rehearsal, FIRST)
    for work in reversed(rehearsal.plan(THIRD)):
        rehearsal.settle([rehearsal.work(work)])
    assert rehearsal.withheld == ["almanac/golden.py"]
    heal(rehearsal)
