"""The landing bench's own parts: its branches, its account of git processes, and its comparison with git itself."""

import subprocess
from pathlib import Path

from merging import counting, fuzzing, workload
from merging.fuzzing import Outcome, same
from merging.meter import Meter
from restoring.loop import git


def test_random_merges_and_rebases_come_out_as_gits_own(tmp_path: Path) -> None:
    found = fuzzing.figures(tmp_path, range(5))
    assert found["different"] == [] and found["same"] == found["merges"] == 10


def test_another_tree_or_another_file_in_conflict_is_a_difference() -> None:
    files = Outcome(files=frozenset({"a"}))
    assert same(Outcome("1"), Outcome("1")) and same(files, files)
    assert same(Outcome(), files)  # a folder renamed: nothing is unmerged in git's index
    assert not same(Outcome("1"), Outcome("2"))
    assert not same(Outcome("1"), files) and not same(files, Outcome("1"))
    assert not same(files, Outcome(files=frozenset({"b"})))


def test_the_wanted_share_of_branches_writes_a_line_that_an_earlier_one_writes(tmp_path: Path) -> None:
    made = workload.made(tmp_path, 50, 20, 0.1)
    assert len(made.branches) == 20
    git(tmp_path, "clone", "-q", str(made.repository), "work")
    work, conflicts = tmp_path / "work", []
    for name, tip in made.branches.items():
        try:
            git(work, "merge", "-q", "-m", name, tip)
        except subprocess.CalledProcessError:
            git(work, "merge", "--abort")
            conflicts.append(name)
    assert conflicts == ["worker/task-0009", "worker/task-0019"]


def test_every_git_process_is_counted_also_those_that_git_starts(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "--bare", "o.git")
    with counting.processes(tmp_path / "trace") as trace:
        subprocess.run(["git", "-C", str(tmp_path), "ls-remote", "o.git"], check=True, capture_output=True)
    assert trace.by_command() == {"ls-remote": 1, "upload-pack": 1}


def test_a_child_that_lives_on_is_metered(tmp_path: Path) -> None:
    busy = "import sys, time\nwhile time.process_time() < 0.2: pass\nprint(flush=True)\nsys.stdin.read()"
    with subprocess.Popen(["python3", "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        with Meter() as meter:
            assert child.stdout is not None
            child.stdout.read(1)
        assert meter.used.cpu_s > 0.1
        child.communicate()
