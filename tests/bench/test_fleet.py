"""The fleet bench's own parts: its trivial workers, how busy they were, and whose the CPU time was."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleeting.bundles import Objects, one_file_bundle
from fleeting.endpoint import path_of, planned
from fleeting.occupancy import Span, busy_share, first_full
from fleeting.sandboxes import FleetProvider
from restoring.loop import git, make_repository

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.repository.mirror import Mirror
from longshot_dagster.core import contract
from longshot_dagster.core.errors import FileMissing, SandboxGone
from longshot_dagster.core.models import Target, TargetKind
from longshot_dagster.core.sandbox import Sandbox, SandboxSpec

BENCH = Path(__file__).resolve().parent.parent.parent / "bench"
_PROGRAM = """
import json, subprocess, sys
sys.path.insert(0, sys.argv[1])
from fleeting.account import Account
with Account() as used:
    subprocess.run(["bash", "-c", sys.argv[2]], check=True)
print(json.dumps({"cpu": used.cpu_s, "total": used.total_s, "stack": used.stack_peak_mb}))
"""


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "parts" / "01").mkdir(parents=True)
    (tree / "parts-list").write_text("sorts before parts/ and after parts\n", encoding="utf-8")
    (tree / "parts" / "01" / "first.txt").write_text("1\n", encoding="utf-8")
    make_repository(tmp_path / "bare.git", tree, "The beginning")
    return tmp_path / "bare.git"


def taken_in(bare: Path, base: str, bundle: bytes) -> str:
    """The head that the product makes of it, with every guard it has."""
    url = str(bare)
    target = Target(repository=url, url=url, kind=TargetKind.REMOTE, base_branch="main", branch="main")
    mirror = Mirror(Home(bare.parent / "home"), target)
    assert mirror.fetch() == base
    return mirror.intake("b-1", "r001-01", base, bundle)


def test_a_trivial_workers_bundle_is_taken_in_like_any_other(bare: Path) -> None:
    base = git(bare, "rev-parse", "main")
    objects = Objects(bare)
    head, bundle = one_file_bundle(objects, base, "parts/02/second.txt", b"2\n", "Add it", 1)
    objects.close()
    assert taken_in(bare, base, bundle) == head
    [mirror] = (bare.parent / "home" / "mirrors").glob("*.git")
    there = git(mirror, "ls-tree", "-r", "--name-only", head).splitlines()
    assert there == ["parts-list", "parts/01/first.txt", "parts/02/second.txt"]
    git(mirror, "fsck", "--strict")


def test_every_task_of_the_plan_has_a_file_of_its_own() -> None:
    assert len({planned(n).scope[0] for n in range(1, 1001)} & {path_of(n) for n in range(1, 1001)}) == 1000


def test_a_fleet_is_busy_in_proportion_to_its_workers_time_between_first_full_and_last_dispatch() -> None:
    spans = [Span(0, 4), Span(1, 3), Span(4, 6), Span(5, 9)]
    assert first_full(spans, 2) == 1
    assert busy_share(spans, 2) == pytest.approx((3 + 2 + 1) / (2 * 4))
    assert busy_share(spans, 3) is None
    assert busy_share(spans[:2], 2) is None


def test_the_accounts_add_up_to_the_kernels_own() -> None:
    burn = "for ((i=0;i<60000;i++)); do :; done"
    script = f"for i in $(seq 50); do git --version >/dev/null; done; setsid -f bash -c '{burn}'; {sys.executable} -c 'sum(range(30_000_000))'"
    argv = [sys.executable, "-c", _PROGRAM, str(BENCH), script]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    assert sum(found["cpu"].values()) == pytest.approx(found["total"])
    assert found["total"] > 0.1
    assert found["stack"] > 1


@pytest.fixture
def provider(tmp_path: Path, bare: Path) -> Iterator[FleetProvider]:
    listens = tmp_path / "fleet.sock"
    argv = [sys.executable, "-m", "fleeting.host", "--socket", str(listens), "--repository", str(bare)]
    argv += ["--task-seconds", "0", "--requests", "0", "--log", str(tmp_path / "log.json")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=BENCH) as host:
        assert host.stdout is not None
        assert host.stdout.readline() == b"ready\n"
        yield FleetProvider(str(listens))
        host.terminate()
    [worked] = json.loads((tmp_path / "log.json").read_text(encoding="utf-8"))
    assert worked["task"] == "r001-01"


def test_a_sandbox_of_the_fleet_hands_over_what_a_worker_does(provider: FleetProvider, bare: Path) -> None:
    sandbox = provider.create(SandboxSpec(name="one", tags={"build": "b-1", "task": "r001-01"}))
    assert [found.id for found in provider.list({"task": "r001-01"})] == [sandbox.id]
    base, said = git(bare, "rev-parse", "main"), []
    order = {"taskId": "r001-01", "mode": "work", "base": base, "scope": ["a.txt"], "title": "Add `a.txt`"}
    sandbox.write(contract.ORDER, json.dumps(order).encode())
    with pytest.raises(FileMissing):
        sandbox.read(contract.RESULT, max_bytes=1_000)
    ran = sandbox.exec(["worker"], timeout_s=30, on_output=lambda stream, data: said.append((stream, data)))
    assert (ran.exit_code, [stream for stream, _ in said]) == (0, ["stdout"])
    result = json.loads(sandbox.read(contract.RESULT, max_bytes=10_000))
    bundle = sandbox.read(contract.BUNDLE_OUT, max_bytes=100_000)
    assert taken_in(bare, base, bundle) == result["head"]
    _gone_once_it_is_ended(provider, sandbox)


def _gone_once_it_is_ended(provider: FleetProvider, sandbox: Sandbox) -> None:
    sandbox.terminate()
    sandbox.terminate()
    assert provider.list({}) == []
    with pytest.raises(SandboxGone):
        provider.attach(sandbox.id)
