"""The demo of twenty workers at once: its script, played without the rest of the machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from longshot_dagster.core.models import PlanReply, TaskKind
from longshot_dagster.testing import demo
from longshot_dagster.testing.phrasebook import GOOD_MORNING
from longshot_dagster.testing.script import Role, load


@pytest.fixture(autouse=True)
def _plain_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python3` may be a version switcher's shim that costs as much as the whole of a run."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").symlink_to(Path(sys.base_prefix) / "bin" / "python3")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.delenv("PYTHON", raising=False)  # the example's Makefile would run that one


def test_twenty_tasks_that_share_no_file_make_the_book_whole(tmp_path: Path) -> None:
    example = demo.prepare_many(tmp_path)
    script = load(example.script)
    tasks = PlanReply.model_validate_json(script.planner(Role.ROOT, "").round(1).reply).tasks
    assert len(tasks) == len(GOOD_MORNING) == 20
    assert len({path for task in tasks for path in task.scope}) == 40
    assert script.planner(Role.ROOT, "").round(2).tasks == ()
    checkout = tmp_path / "checkout"
    subprocess.run(["git", "clone", "--quiet", str(example.repository), str(checkout)], check=True)
    for task in tasks:
        worker = script.worker(TaskKind.PLAN, f"# Task t1\n\n{task.description}")
        written = {action.arguments["path"]: action.arguments["content"] for action in worker.steps[0]}
        assert sorted(written) == sorted(task.scope)
        for path, content in written.items():
            (checkout / path).write_text(content, encoding="utf-8")
    green, said = demo.run_tests(checkout, "lint", "test", "acceptance")
    assert green, said
    assert "Ran 20 tests" in said


def test_the_book_is_not_accepted_while_a_language_is_missing(tmp_path: Path) -> None:
    green, said = demo.verify(demo.prepare_many(tmp_path).repository)
    assert (green, "test_it_lists_twenty_languages" in said) == (False, True)
