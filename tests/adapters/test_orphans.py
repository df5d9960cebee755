"""Sandboxes that nobody answers for: told from those that somebody does, kept from, and ended."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from worked import BUILD, Build

from longshot_dagster.adapters.host.processes import start_time
from longshot_dagster.adapters.sandboxes.holding import HOLDER, HOME, Held
from longshot_dagster.adapters.sandboxes.sandbox_local import LocalProvider
from longshot_dagster.adapters.workers.orphans import Orphanage
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.models import BuildPhase, Plan
from longshot_dagster.core.orphans import Fate
from longshot_dagster.core.sandbox import SandboxSpec
from longshot_dagster.core.settings import Isolation

TASK = "r001-01"


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    with tempfile.TemporaryDirectory(prefix="ls-") as folder:
        build = Build(tmp_path, Path(folder) / "model.sock", [], isolation=Isolation.NONE)
        key = IterationKey(BUILD, "root", 1)
        build.ledger.open_iteration(key)
        build.ledger.freeze_plan(key, Plan(iteration=key.short, tasks=(build.task(),), base=build.base))
        with build.chat:
            yield build
        for info in local(build).list({}):
            local(build).attach(info.id).terminate()


def local(build: Build) -> LocalProvider:
    return LocalProvider(build.home.sandboxes, Isolation.NONE)


def made(build: Build, /, **tags: str) -> str:
    """A sandbox of this living process, with `tags` over what is written on it."""
    spec = SandboxSpec(name="-".join(tags.values())[:60] or "x", tags={"build": BUILD}, network="open")
    sandbox = Held(local(build), build.home).create(spec)
    meta = sandbox.meta()  # type: ignore[attr-defined]
    sandbox.terminate()
    merged = {**meta["tags"], **tags}
    return local(build).create(replace(spec, tags={k: v for k, v in merged.items() if v})).id


def dead() -> str:
    """A holder that was there a moment ago."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    holder = f"{process.pid}.{start_time(process.pid)}"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdin.close()  # type: ignore[union-attr]
    return holder


def fates(build: Build) -> dict[str, Fate]:
    return {f.info.id: f.fate for f in Orphanage(build.home, SystemClock()).found()}


def test_each_sandbox_is_judged_by_who_answers_for_it(build: Build) -> None:
    gone = dead()
    reused = f"{os.getpid()}.1"
    mine = made(build, task=TASK)
    killed = made(build, task=TASK, holder=gone)
    recycled = made(build, task=TASK, holder=reused)
    sweep = made(build, sweep="1", holder=gone)
    unknown = made(build, build="gone-0001", task=TASK, holder=gone)
    doctors = made(build, build="", doctor="1", holder=gone)
    another = made(build, task=TASK, holder=gone, home="f" * 32)
    assert fates(build) == {
        mine: Fate.AT_WORK,
        killed: Fate.HOLDS_WORK,
        recycled: Fate.HOLDS_WORK,
        sweep: Fate.ORPHAN,
        unknown: Fate.ORPHAN,
        doctors: Fate.ORPHAN,
        another: Fate.ANOTHERS,
    }


def test_one_sweep_leaves_only_what_somebody_answers_for_and_what_is_anothers(build: Build) -> None:
    gone = dead()
    mine, another = made(build, task="r001-02"), made(build, task="r001-03", holder=gone, home="f" * 32)
    for tags in ({"task": TASK}, {"sweep": "1"}, {"build": "gone-0001", "task": TASK}):
        made(build, holder=gone, **tags)
    orphanage = Orphanage(build.home, SystemClock())
    reaped = orphanage.reap(orphanage.found())
    assert (reaped.ended, reaped.left, orphanage.unreachable) == (3, [], [])
    assert {info.id for info in local(build).list({})} == {mine, another}


def test_what_holds_work_stays_when_nothing_is_to_be_kept(build: Build) -> None:
    killed, sweep = made(build, task=TASK, holder=dead()), made(build, sweep="1", holder=dead())
    orphanage = Orphanage(build.home, SystemClock())
    assert orphanage.reap(orphanage.found(), keep=False).ended == 1
    assert list(fates(build)) == [killed] and sweep not in fates(build)


def test_somebody_who_takes_a_sandbox_up_between_look_and_end_keeps_it(build: Build) -> None:
    made(build, task=TASK, holder=dead())
    build.ledger.update_state(lambda s: s.moved(BuildPhase.FINALIZING))
    build.ledger.update_state(lambda s: s.moved(BuildPhase.FINISHED))
    orphanage = Orphanage(build.home, SystemClock())
    found = orphanage.found()
    assert [f.fate for f in found] == [Fate.ORPHAN]
    build.ledger.update_state(lambda s: s.reopened("finalize.001"))
    assert orphanage.reap(found, keep=False).ended == 0 and len(fates(build)) == 1


def test_what_it_creates_says_whose_it_is(build: Build) -> None:
    made(build, task=TASK)
    (info,) = local(build).list({"build": BUILD})
    assert info.tags[HOLDER] == f"{os.getpid()}.{start_time(os.getpid())}" and len(info.tags[HOME]) == 32
