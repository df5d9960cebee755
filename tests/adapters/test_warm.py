"""Workers that begin with the repository in their sandbox: the same work comes out, and no trouble with it fails a task."""

import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from worked import APP, BUILD, TEST, Build, git

from longshot_dagster.adapters.host.exclusive import claim
from longshot_dagster.adapters.sandboxes.confinement import Bubblewrap, bubblewrap
from longshot_dagster.adapters.sandboxes.sandbox_local import LocalProvider, LocalSandbox
from longshot_dagster.adapters.workers import warm
from longshot_dagster.adapters.workers.order_run import carry_out
from longshot_dagster.adapters.workers.warm import WarmStart, WarmStarts
from longshot_dagster.core.contract import Mode, WorkOrder
from longshot_dagster.core.errors import FileMissing, SandboxError
from longshot_dagster.core.models import CheckName, CheckStatus, HandoffStatus
from longshot_dagster.core.sandbox import SandboxSpec
from longshot_dagster.core.settings import Isolation

from scripted_chat import calls, done  # isort: skip - found through `worked`

RAISE_PRICE = ("edit", {"path": "app.py", "old_text": "return 1", "new_text": "return 2"})
ADAPT_TEST = ("edit", {"path": "test_app.py", "old_text": "(), 1)", "new_text": "(), 2)"})
NO_CHECKS = {"check_test": "none", "check_compile": "none"}
FILES = {"app.py": APP, "test_app.py": TEST, "docs/a.md": "a\n", "docs/b.md": "b\n"}


@pytest.fixture
def socket() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="ls-"))
    yield folder / "model.sock"
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "PAYS_FROM_BYTES", 0)


def never() -> bool:
    return False


def quiet(tmp_path: Path, socket: Path) -> Build:
    """A build of which no worker asks a model."""
    build = Build(tmp_path, socket, [], files=FILES)
    with build.chat:
        build.mirror.fetch()
    return build


def starts(build: Build) -> WarmStarts:
    return WarmStarts(build.request, build.mirror, build.clock)


def moved_on(build: Build, tmp_path: Path, name: str) -> str:
    """A commit on main by somebody else."""
    work = tmp_path / f"other-{name}"
    git(tmp_path, "clone", "-q", build.request.target.url, str(work))
    (work / name).write_text("new\n")
    (work / "docs/a.md").unlink(missing_ok=True)
    git(work, "add", "-A")
    git(work, "commit", "-q", "-m", name)
    git(work, "push", "-q", "origin", "main")
    return build.mirror.fetch()


def images(build: Build) -> list[str]:
    assert isinstance(build.provider, LocalProvider)
    return [info.image for info in build.provider.snapshots()]


def checked_out(build: Build, start: WarmStart, base: str) -> LocalSandbox:
    """A sandbox that began with `start` and was brought to `base`."""
    sandbox = build.provider.create(SandboxSpec(name=f"c{base[:9]}{start.holds[:9]}", image=start.image))
    assert isinstance(sandbox, LocalSandbox)
    order = WorkOrder(task_id="x", mode=Mode.WARM, base=base, holds=start.holds, deadline_s=60)
    delivery = carry_out(sandbox, order, start.bundle, 60, never)
    assert delivery.result is not None and delivery.result.harness_status == "completed", delivery
    return sandbox


def test_workers_begin_with_the_repository_and_their_work_is_the_same(
    tmp_path: Path, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[WorkOrder] = []
    real = carry_out

    def seen(sandbox: Any, order: WorkOrder, *more: Any) -> Any:
        given.append(order)
        return real(sandbox, order, *more)

    monkeypatch.setattr("longshot_dagster.adapters.workers.worker.carry_out", seen)
    replies = [calls(RAISE_PRICE, ADAPT_TEST), done(), calls(RAISE_PRICE), done()]
    cheap = {"check_compile": "none", "check_test": "test -e test_app.py && ! grep -q 'return 2' app.py"}
    build = Build(tmp_path, socket, replies, files=FILES, **cheap)
    with build.chat:
        first = build.runner.run(build.task(), never)
        head = moved_on(build, tmp_path, "more.py")
        second = build.runner.run(build.task(id="r001-02", branch=f"worker/{BUILD}/r001-02"), never)
    assert [(order.base, order.holds) for order in given] == [(build.base, build.base), (head, build.base)]
    assert (first.status, first.files_changed) == (HandoffStatus.COMPLETE, ["app.py", "test_app.py"])
    assert second.files_changed == ["app.py"]
    run = build.ledger.run("r001-02")
    assert run is not None and run.base == head
    # Red by its own doing, which was found out at a second copy of the base.
    assert next(c.status for c in run.checks if c.name is CheckName.TEST) is CheckStatus.RED
    assert build.provider.list({}) == [] and len(images(build)) == 1


def test_a_snapshot_holds_the_repository_and_nothing_of_who_made_it(tmp_path: Path, socket: Path) -> None:
    build = quiet(tmp_path, socket)
    start = starts(build).find(build.provider, build.base, never)
    assert start == WarmStart(images(build)[0], build.base, None)
    sandbox = build.provider.create(SandboxSpec(name="look", image=start.image))
    for path in ("/longshot/out/result.json", "/longshot/order.json", "/longshot/in.bundle", "/longshot/worker.pyz"):
        with pytest.raises(FileMissing):
            sandbox.read(path)
    assert sandbox.read("/workspace/repo/docs/a.md") == b"a\n"
    said = sandbox.exec(["git", "status", "--short", "--branch"], timeout_s=20, cwd="/workspace/repo")
    assert said.stdout == b"## work\n", said.stderr
    sandbox.terminate()


@pytest.mark.parametrize("overlays", [True, False], ids=["layers", "copies"])
def test_what_is_newer_comes_as_a_small_bundle(
    tmp_path: Path, socket: Path, monkeypatch: pytest.MonkeyPatch, overlays: bool
) -> None:
    found = Bubblewrap(bubblewrap().binary, bubblewrap().denies_namespaces, overlays)
    monkeypatch.setattr("longshot_dagster.adapters.sandboxes.sandbox_local.bubblewrap", lambda: found)
    build = quiet(tmp_path, socket)
    finding = starts(build)
    assert finding.find(build.provider, build.base, never) is not None
    head = moved_on(build, tmp_path, "more.py")
    start = finding.find(build.provider, head, never)
    assert start is not None and start.holds == build.base and start.bundle is not None
    assert start.bundle.stat().st_size < build.mirror.bundle(head).stat().st_size
    sandbox = checked_out(build, start, head)
    said = sandbox.exec(
        ["sh", "-c", "git rev-parse HEAD; git status --short; ls . docs"], timeout_s=20, cwd="/workspace/repo"
    )
    assert said.stdout.decode() == f"{head}\n.:\napp.py\ndocs\nmore.py\ntest_app.py\n\ndocs:\nb.md\n", said.stderr
    sandbox.terminate()


def test_another_history_needs_another_snapshot_and_old_ones_go(tmp_path: Path, socket: Path) -> None:
    build = quiet(tmp_path, socket)
    finding = starts(build)
    heads = [build.base]
    for name in ("one", "two"):
        work = tmp_path / name
        git(tmp_path, "clone", "-q", build.request.target.url, str(work))
        git(work, "commit", "-q", "--amend", "-m", name)
        git(work, "push", "-q", "--force", "origin", "main")
        heads.append(build.mirror.fetch())
    held = [finding.find(build.provider, head, never) for head in heads]
    assert [start and start.holds for start in held] == heads
    assert images(build) == [start.image for start in held[1:] if start], "only the newest are kept"
    assert finding.find(build.provider, heads[1], never) == held[1]


def test_only_one_makes_a_snapshot_and_nobody_waits_for_it(tmp_path: Path, socket: Path) -> None:
    build = quiet(tmp_path, socket)
    with claim(build.mirror.path / "longshot-warm" / "local.lock") as mine:
        assert mine
        assert starts(build).find(build.provider, build.base, never) is None
    together, found = threading.Barrier(6), list[WarmStart | None]()

    def find() -> None:
        together.wait()
        found.append(starts(build).find(build.provider, build.base, never))

    threads = [threading.Thread(target=find) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(images(build)) == 1
    assert {start.image for start in found if start} == set(images(build))
    assert build.provider.list({}) == []


def test_a_small_repository_is_not_worth_it(tmp_path: Path, socket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "PAYS_FROM_BYTES", 1 << 20)
    build = quiet(tmp_path, socket)
    assert starts(build).find(build.provider, build.base, never) is None
    assert images(build) == []


def test_a_provider_without_snapshots_is_asked_for_none(tmp_path: Path, socket: Path) -> None:
    replies = [calls(RAISE_PRICE, ADAPT_TEST), done()]
    build = Build(tmp_path, socket, replies, files=FILES, isolation=Isolation.NONE, **NO_CHECKS)
    assert build.work().status is HandoffStatus.COMPLETE
    assert not (build.mirror.path / "longshot-warm").exists()


def a_lost_snapshot(build: Build) -> None:
    assert isinstance(build.provider, LocalProvider)
    assert all(build.provider.remove_snapshot(image) for image in images(build))


def a_strange_note(build: Build) -> None:
    (build.mirror.path / "longshot-warm/local.json").write_text('[{"image": 3}]')


def a_note_of_another_image(build: Build) -> None:
    note = build.mirror.path / "longshot-warm/local.json"
    (entry,) = json.loads(note.read_bytes())
    note.write_text(json.dumps([{**entry, "image": "local:sn-/../../x"}]))


@pytest.mark.parametrize("spoil", [a_lost_snapshot, a_strange_note, a_note_of_another_image])
def test_trouble_with_a_snapshot_is_no_trouble_for_a_task(
    tmp_path: Path, socket: Path, spoil: Callable[[Build], None]
) -> None:
    build = Build(tmp_path, socket, [calls(RAISE_PRICE, ADAPT_TEST), done()], files=FILES, **NO_CHECKS)
    build.mirror.fetch()
    assert starts(build).find(build.provider, build.base, never) is not None
    spoil(build)
    assert build.work().status is HandoffStatus.COMPLETE
    assert build.provider.list({}) == []


def test_after_trouble_with_making_one_it_is_left_alone_for_a_while(
    tmp_path: Path, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def fails(self: LocalSandbox) -> str:
        asked.append(self.id)
        raise SandboxError("no space left on the device")

    monkeypatch.setattr(LocalSandbox, "snapshot", fails)
    build = quiet(tmp_path, socket)
    finding = starts(build)
    assert finding.find(build.provider, build.base, never) is None
    assert finding.find(build.provider, build.base, never) is None
    assert len(asked) == 1 and build.provider.list({}) == []
