"""After a home's last process: what killed workers had done is kept for builds that go on, and no sandbox is left."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from afar import Afar, Died
from worked import BUILD, Build

from scripted_chat import calls  # isort: skip - found through `worked`

from longshot_dagster.adapters.builds.tidying import tidy
from longshot_dagster.adapters.host.exclusive import claim
from longshot_dagster.adapters.sandboxes.sandbox_local import LocalProvider
from longshot_dagster.adapters.workers.recovery import Begun, end_all
from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.models import BuildPhase, Plan
from longshot_dagster.core.sandbox import SandboxSpec
from longshot_dagster.core.settings import Isolation

RAISE_PRICE = ("edit", {"path": "app.py", "old_text": "return 1", "new_text": "return 2"})
TASK = "r001-01"


@pytest.fixture
def socket() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="ls-"))
    yield folder / "model.sock"
    shutil.rmtree(folder)


def planned(build: Build) -> None:
    key = IterationKey(BUILD, "root", 1)
    build.ledger.open_iteration(key)
    build.ledger.freeze_plan(key, Plan(iteration=key.short, tasks=(build.task(),), base=build.base))


def killed_at_work(tmp_path: Path, socket: Path) -> Build:
    """A build whose worker had raised the price when its process died."""
    wait = ("bash", {"command": f"touch {tmp_path}/there; sleep 60"})
    build = Build(tmp_path, socket, [calls(RAISE_PRICE), calls(wait)], isolation=Isolation.NONE)
    planned(build)
    build.provider = client = Afar(build.home.sandboxes, (tmp_path / "there").exists, survives=False)
    with build.chat, pytest.raises(Died):
        build.runner.run(build.task(), lambda: False)
    (left,) = LocalProvider(build.home.sandboxes, Isolation.NONE).list({})
    LocalProvider(build.home.sandboxes, Isolation.NONE).attach(left.id).end_commands()
    assert client.dead
    return build


def test_what_killed_workers_had_done_is_kept_and_no_sandbox_stays(tmp_path: Path, socket: Path) -> None:
    build = killed_at_work(tmp_path, socket)
    provider = LocalProvider(build.home.sandboxes, Isolation.NONE)
    provider.create(SandboxSpec(name="sweep", tags={"build": BUILD, "sweep": "1"}, network="open"))
    provider.create(
        SandboxSpec(name="of a build that is gone", tags={"build": "gone-0001", "task": TASK}, network="open")
    )
    mine = provider.create(SandboxSpec(name="of a person's doctor", tags={"doctor": "1"}, network="open"))
    half_ended = build.home.sandboxes / "sb-000000000000"
    half_ended.mkdir()
    os.utime(half_ended, (1, 1))
    assert tidy(build.home) == [f"{BUILD}.{TASK}"]
    kept = build.ledger.interrupted(TASK)
    assert kept is not None and kept.files_changed == ["app.py"] and build.ledger.handoff(TASK) is None
    assert [p.name for p in build.home.sandboxes.iterdir()] == [mine.id]
    assert tidy(build.home) == []
    mine.terminate()


def test_what_somebody_is_at_work_on_is_left_alone(tmp_path: Path, socket: Path) -> None:
    build = killed_at_work(tmp_path, socket)
    provider = LocalProvider(build.home.sandboxes, Isolation.NONE)
    lock = build.ledger.work_lock(TASK)
    assert lock is not None
    with claim(lock):
        assert tidy(build.home) == []
        end_all(provider, build.ledger)
        assert len(provider.list({})) == 1
    end_all(provider, build.ledger)
    assert list(build.home.sandboxes.iterdir()) == []


def test_nothing_is_kept_of_a_finished_build(tmp_path: Path, socket: Path) -> None:
    build = Build(tmp_path, socket, [])
    planned(build)
    for phase in (BuildPhase.FINALIZING, BuildPhase.FINISHED):
        build.ledger.update_state(lambda s, to=phase: s.moved(to))
    tags = {"build": BUILD, "task": TASK, **Begun(build.base, None, 0).tags}
    LocalProvider(build.home.sandboxes, Isolation.NONE).create(SandboxSpec(name="left", tags=tags, network="open"))
    with build.chat:
        assert tidy(build.home) == []
    assert list(build.home.sandboxes.iterdir()) == []
