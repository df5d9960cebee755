"""A disk that runs full: builds are paused while that can still be written down, and what was paid for is kept."""

import errno
import resource
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from afar import Afar
from worked import BUILD, Build

from scripted_chat import calls, done  # isort: skip - found through `worked`

from longshot_dagster.adapters.host import documents
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.ledger import Ledger
from longshot_dagster.adapters.stack.room import LEAST_BYTES, Room
from longshot_dagster.core.errors import LedgerError
from longshot_dagster.core.models import BuildPhase, HandoffStatus

RAISE_PRICE = ("edit", {"path": "app.py", "old_text": "return 1", "new_text": "return 2"})
NO_CHECKS: dict[str, str] = {f"check_{name}": "none" for name in ("compile", "test")}


@pytest.fixture
def socket() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="ls-"))
    yield folder / "model.sock"
    shutil.rmtree(folder)


def test_builds_under_way_are_paused_with_one_line_before_there_is_no_room_left(tmp_path: Path, socket: Path) -> None:
    build = Build(tmp_path, socket, [])
    with build.chat:
        pass
    build.ledger.update_state(lambda s: s.moved(BuildPhase.RUNNING))
    free = [1 << 30]
    room = Room(build.home, lambda: free[0])
    assert room.look() == [] and (build.home.root / ".room").stat().st_size > 0
    free[0] = LEAST_BYTES - 1
    assert room.look() == [BUILD]
    state = build.ledger.state()
    assert (state.phase, state.reason) == (BuildPhase.PAUSED, room.reason)
    assert state.reason.startswith("the disk is full (less than 16 MiB free at ")
    assert not (build.home.root / ".room").exists(), "it was given back, so that the pause could be written"
    assert room.look() == [], "once"


def test_what_was_set_aside_comes_back_with_the_room_and_not_before(tmp_path: Path) -> None:
    home, free = Home(tmp_path / "home"), [LEAST_BYTES + 1]
    home.root.mkdir()
    room = Room(home, lambda: free[0])
    room.look()
    assert not (home.root / ".room").exists()
    free[0] = 1 << 30
    room.look()
    assert (home.root / ".room").exists()


@pytest.mark.parametrize("document", ["transcript.jsonl", "run.json", "handoff.json"])
def test_work_that_a_full_disk_cannot_take_in_is_not_paid_for_again(
    tmp_path: Path, socket: Path, monkeypatch: pytest.MonkeyPatch, document: str
) -> None:
    build = Build(tmp_path, socket, [calls(RAISE_PRICE), done()], **NO_CHECKS)
    build.provider = Afar(build.home.sandboxes, survives=False)

    honest = documents._write_file

    def full(path: str, data: bytes) -> None:
        if path.endswith(document):
            raise OSError(errno.ENOSPC, "No space left on device")
        honest(path, data)

    with build.chat:
        with monkeypatch.context() as patched:
            patched.setattr(documents, "_write_file", full)
            with pytest.raises(LedgerError, match=f"{document} cannot be written: No space left on device"):
                build.runner.run(build.task(), lambda: False)
        asked = len(build.chat.asked)
        assert len(list(build.home.sandboxes.iterdir())) == 1
        handoff = build.runner.run(build.task(), lambda: False)  # there is room again
        assert len(build.chat.asked) == asked
    assert (handoff.status, handoff.files_changed) == (HandoffStatus.COMPLETE, ["app.py"])
    assert list(build.home.sandboxes.iterdir()) == []
    assert build.ledger.transcript("r001-01").exists()


@pytest.mark.parametrize("where", ["state.json", "tasks/r001-01/handoff.json", "iterations/root.001/plan.json"])
def test_a_document_that_finds_no_room_leaves_the_one_before_it_whole(tmp_path: Path, where: str) -> None:
    ledger = Ledger(tmp_path).build("toy-0001")
    ledger._write_bytes(where, b'{"whole": 1}')
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler: Any = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        with pytest.raises(LedgerError, match="cannot be written"):
            ledger._write_bytes(where, b"x" * 5_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    path = Path(str(ledger.directory / where))
    assert path.read_bytes() == b'{"whole": 1}'
    assert [p.name for p in path.parent.iterdir() if not p.name.endswith(".lock")] == [path.name]
