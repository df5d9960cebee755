"""A whole order in a sandbox, with an agent that softens what it is measured by: the base's checks and instructions count."""

import json
import subprocess
from pathlib import Path

import pytest
from longshot_worker import work
from longshot_worker.handoff import HarnessResult
from longshot_worker.order import Order, Places

RED, GREEN = "import unittest\n\n\nclass T(unittest.TestCase):\n    def test(self):\n        self.fail()\n", "x = 1\n"
SOFT = "test:\n\ttrue\nlint:\n\ttrue\n"


def git(cwd: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=cwd, check=True, capture_output=True, text=True).stdout.strip()


def commit(folder: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (folder / name).write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "--allow-empty", "-m", "x")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def carried_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Work on these files of a base, begun by an interrupted worker with those: the prompt it got, and each check."""

    def carry_out(base: dict[str, str], agent: dict[str, str], begun: dict[str, str] | None = None):
        origin, places = tmp_path / "origin", Places(str(tmp_path / "sandbox"))
        Path(places.root, "longshot").mkdir(parents=True)
        origin.mkdir()
        git(origin, "init", "-q", "-b", "base")
        first = commit(origin, base)
        start = commit(origin, begun) if begun is not None else None
        git(origin, "bundle", "create", "-q", places.bundle_in, "refs/heads/base")
        prompts = []

        def scripted(order: Order, places: Places, task: str, *_: object) -> HarnessResult:
            prompts.append(task)
            for name, text in agent.items():
                Path(places.repo, name).write_text(text)
            return HarnessResult("completed", final='{"status": "complete", "summary": "done"}')

        monkeypatch.setattr(work, "work_with", scripted)
        checks = {"compile": "none"}
        work.carry_out(Order("r001-01", first, 120, start=start, prompt="Do it.", checks=checks), places)
        result = json.loads(Path(places.result).read_text())
        return prompts[0], {c["name"]: c for c in result["checks"]}

    return carry_out


def test_a_makefile_of_the_branch_does_not_take_the_place_of_the_bases_tests(carried_out) -> None:
    _, checks = carried_out({"test_a.py": GREEN}, {"Makefile": SOFT, "test_a.py": RED})
    assert checks["test"]["command"].startswith("python3 -m ") and checks["test"]["status"] == "red"
    assert "branch's own" not in checks["test"]["output"]
    assert (checks["lint"]["command"], checks["lint"]["status"]) == ("make lint", "green")
    assert checks["lint"]["output"].startswith("[the base has no such check: this one is the branch's own]")


def test_nor_does_one_that_an_interrupted_worker_left_or_what_it_told_agents(carried_out) -> None:
    base, begun = {"test_a.py": GREEN, "AGENTS.md": "Be kind."}, {"Makefile": SOFT, "AGENTS.md": "Be quick."}
    prompt, checks = carried_out(base, {"test_a.py": RED}, begun)
    assert "Be kind." in prompt and "Be quick." not in prompt
    assert checks["test"]["command"].startswith("python3 -m ") and checks["test"]["status"] == "red"


def test_what_the_base_tested_with_is_run_although_the_branch_has_removed_it(carried_out) -> None:
    _, checks = carried_out({"Makefile": "test:\n\ttrue\n"}, {"Makefile": "all:\n\ttrue\n", "test_a.py": GREEN})
    assert (checks["test"]["command"], checks["test"]["status"]) == ("make test", "red")


def test_a_new_projects_checks_are_the_branchs_and_say_so(carried_out) -> None:
    _, checks = carried_out({"README.md": "x\n"}, {"Makefile": SOFT})
    assert (checks["test"]["command"], checks["test"]["status"]) == ("make test", "green")
    assert checks["test"]["output"].startswith("[the base has no such check: this one is the branch's own]")
    assert checks["types"]["output"] == "nothing to run was found"


def test_within_its_kind_a_check_follows_the_project(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text(GREEN)
    before = work.project_checks.found_at(str(tmp_path))
    (tmp_path / "requirements.txt").write_text("a\n")
    (tmp_path / "Makefile").write_text(SOFT)
    assert work.project_checks._commands(str(tmp_path), before)["test"] == ".venv/bin/python -m pytest -q"
