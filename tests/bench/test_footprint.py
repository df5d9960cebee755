"""CPU and memory of a tree of processes, by kind; measured in a process of its own, because orphans come to it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from restoring.footprint import Footprint, Process

BENCH = Path(__file__).resolve().parent.parent.parent / "bench"
_PROGRAM = """
import json, subprocess, sys
sys.path.insert(0, sys.argv[1])
from restoring.footprint import Footprint
with Footprint() as used:
    subprocess.run(["bash", "-c", sys.argv[2]], check=True)
print(json.dumps({"cpu": used.cpu_s, "total": used.total_s, "rss": used.peak_rss_mb}))
"""
ABSENT = 1 << 23  # more than a pid can be
BURN = "for ((i=0;i<{0};i++)); do :; done"


def measured(script: str) -> dict[str, Any]:
    argv = [sys.executable, "-c", _PROGRAM, str(BENCH), script]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert sum(found["cpu"].values()) == pytest.approx(found["total"], abs=0.1, rel=0.1)
    return found


def process(own: float = 0.0, waited: float = 0.0) -> Process:
    return Process(parent=os.getpid(), started="1", name="sh", own=own, waited=waited, rss_mb=1.0)


def test_each_kind_of_process_has_its_own_account(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    for name in ("bwrap", "git-work"):
        (tmp_path / name).symlink_to(bash)
    inner = f"{bash} -c '{BURN.format(180_000)}'"
    script = (
        f"{BURN.format(90_000)}; {tmp_path}/bwrap -c \"{inner}; :\"; {tmp_path}/git-work -c '{BURN.format(45_000)}'"
    )
    cpu = measured(script)["cpu"]
    assert cpu["agents"] > cpu["orchestrator"] > 0 < cpu["git"] < cpu["agents"]


def test_commands_too_short_to_be_seen_are_gits() -> None:
    found = measured("for i in $(seq 300); do git --version >/dev/null; done")
    assert found["cpu"]["git"] > found["cpu"]["agents"] == 0
    assert found["rss"] > 1


def test_what_leaves_its_parent_is_still_counted() -> None:
    found = measured(f"setsid -f bash -c '{BURN.format(180_000)}' >/dev/null 2>&1")
    assert found["cpu"]["orchestrator"] > 0.1


def test_a_child_that_ended_while_its_parent_was_being_read_is_counted_once() -> None:
    """The parent's line was read before it waited, the child's not at all; the next look finds what was waited for."""
    used = Footprint()
    used.count({os.getpid(): process(), ABSENT: process(own=0.5)})
    for waited in (0.0, 0.5, 0.75):
        used.count({os.getpid(): process(waited=waited)})
    assert sum(used.cpu_s.values()) == 0.75
