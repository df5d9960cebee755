"""A run process is killed while its workers are at work: what they have done is waited for, collected or salvaged."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from afar import Afar, Died
from worked import BUILD, Build, git

from scripted_chat import calls, done  # isort: skip - found through `worked`

from longshot_dagster.adapters.builds.leftovers import Leftovers
from longshot_dagster.adapters.host.exclusive import claim
from longshot_dagster.adapters.sandboxes.sandbox_local import LocalProvider
from longshot_dagster.adapters.workers import order_run
from longshot_dagster.adapters.workers.recovery import Begun
from longshot_dagster.core import contract
from longshot_dagster.core.errors import Cancelled, RepositoryError, SandboxError
from longshot_dagster.core.models import HandoffStatus
from longshot_dagster.core.sandbox import SandboxSpec
from longshot_dagster.core.settings import Isolation
from longshot_dagster.core.working import BY_A_PERSON

TASK = "r001-01"
RAISE_PRICE = ("edit", {"path": "app.py", "old_text": "return 1", "new_text": "return 2"})
NO_CHECKS = {"check_test": "none", "check_compile": "none"}
NOTES = ("write", {"path": "notes.txt", "content": "all of it\n"})

WORK = """
import sys
from pathlib import Path
from types import SimpleNamespace
from worked import *
home = Home(Path(sys.argv[1]))
ledger = Ledger(home.builds).build(BUILD)
request = ledger.request()
gateway = TestGateway(SimpleNamespace(path=sys.argv[2], tokens_in=0, tokens_out=0))
provider = LocalProvider(home.sandboxes, request.settings.sandbox_isolation)
runner = WorkerRunner(ledger, request, provider, Mirror(home, request.target), gateway, TestClock())
runner.run(Build.task(None), lambda: False)
"""


@pytest.fixture
def socket() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="ls-"))
    yield folder / "model.sock"
    shutil.rmtree(folder)


def until(true: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)


def working_process(build: Build) -> "subprocess.Popen[bytes]":
    """A process of its own that works on the task, as a run's does."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    return subprocess.Popen([sys.executable, "-c", WORK, str(build.home.root), build.chat.path], env=environ)


def pausing(folder: Path, mark: str = "") -> tuple[str, dict[str, str]]:
    """A call that says it is there, and waits until it may go on."""
    return "bash", {"command": f"touch {folder}/there{mark}; until [ -e {folder}/go{mark} ]; do sleep 0.05; done"}


def asked(build: Build) -> int:
    return len(build.chat.asked)


def first_messages(build: Build) -> list[str]:
    """What each worker was told first."""
    return [str(a["messages"][1]["content"]) for a in build.chat.asked if len(a["messages"]) == 2]


def dies_at_work(build: Build, survives: bool, dies: Callable[[], bool]) -> Afar:
    """The build's first client works on the task until it is killed; returned is the next one."""
    build.provider = Afar(build.home.sandboxes, dies, survives)
    with pytest.raises(Died):
        build.runner.run(build.task(), lambda: False)
    assert build.ledger.handoff(TASK) is None
    build.provider = Afar(build.home.sandboxes, survives=survives)
    return build.provider


# --- sandboxes that die with their client ----------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", [Isolation.AUTO, Isolation.NONE], ids=["bubblewrap", "unconfined"])
def test_what_a_killed_process_left_is_kept_and_the_next_one_goes_on_from_there(
    tmp_path: Path, socket: Path, isolation: Isolation
) -> None:
    replies = [calls(RAISE_PRICE), calls(("bash", {"command": "sleep 67.01"})), calls(NOTES), done()]
    build = Build(tmp_path, socket, replies, isolation=isolation, **NO_CHECKS)
    with build.chat:
        process = working_process(build)
        asleep = ["pgrep", "-fx", "sleep 67.01"]
        until(lambda: subprocess.run(asleep, capture_output=True).stdout)
        process.kill()
        process.wait()
        (left,) = build.home.sandboxes.iterdir()
        handoff = build.runner.run(build.task(), lambda: False)
    assert (handoff.status, handoff.files_changed) == (HandoffStatus.COMPLETE, ["app.py", "notes.txt"])
    first, second = first_messages(build)
    assert "What was done so far" not in first and "it changed app.py" in second
    assert subprocess.run(asleep, capture_output=True).stdout == b""
    assert not left.exists() and list(build.home.sandboxes.iterdir()) == []
    run = build.ledger.run(TASK)
    assert run is not None and (run.base, run.commits) == (build.base, 2)
    assert asked(build) == 4, "nothing was asked twice"


def test_a_worker_that_had_finished_is_collected_without_a_model(tmp_path: Path, socket: Path) -> None:
    build = Build(tmp_path, socket, [calls(RAISE_PRICE), done()], isolation=Isolation.NONE, **NO_CHECKS)
    result = contract.RESULT.lstrip("/")
    finished = lambda: any(build.home.sandboxes.glob(f"sb-*/root/{result}"))  # noqa: E731
    with build.chat:
        client = dies_at_work(build, survives=False, dies=finished)
        before = asked(build)
        handoff = build.runner.run(build.task(), lambda: False)
        assert asked(build) == before
    assert (handoff.status, handoff.summary, handoff.files_changed) == (HandoffStatus.COMPLETE, "did it", ["app.py"])
    assert len(client.ended) == 1 and list(build.home.sandboxes.iterdir()) == []
    run = build.ledger.run(TASK)
    assert run is not None and (run.harness_status, run.sandbox) == ("completed", client.ended[0])
    assert build.ledger.transcript(TASK).read_bytes().count(b'"type": "start"') == 1


def test_work_that_cannot_be_kept_at_first_is_kept_at_the_next_attempt(tmp_path: Path, socket: Path) -> None:
    build = Build(tmp_path, socket, [calls(RAISE_PRICE), done()], isolation=Isolation.NONE, **NO_CHECKS)
    result = contract.RESULT.lstrip("/")
    with build.chat:
        client = dies_at_work(build, False, lambda: any(build.home.sandboxes.glob(f"sb-*/root/{result}")))
        before, honest, tried = asked(build), build.mirror.intake, []

        def intake(*arguments: Any) -> str:
            tried.append(len(client.ended))
            if len(tried) == 1:
                raise RepositoryError("no space left on the device")
            return honest(*arguments)

        build.mirror.intake = intake  # type: ignore[method-assign]
        assert build.runner.run(build.task(), lambda: False).status is HandoffStatus.COMPLETE
        assert asked(build) == before
    assert tried[:2] == [0, 0] and len(client.ended) == 1, "it was not ended before it was kept"


def test_a_result_of_a_salvage_that_nobody_fetched_is_no_finished_work(tmp_path: Path, socket: Path) -> None:
    replies = [calls(RAISE_PRICE), calls(pausing(tmp_path)), done()]
    build = Build(tmp_path, socket, replies, isolation=Isolation.NONE, **NO_CHECKS)
    result = contract.RESULT.lstrip("/")
    salvaged = lambda: any(build.home.sandboxes.glob(f"sb-*/root/{result}"))  # noqa: E731
    build.provider = Afar(build.home.sandboxes, salvaged, survives=False)
    with build.chat:
        with pytest.raises(Died):  # between its salvage and the reading of what that brought
            build.runner.run(build.task(), lambda: (tmp_path / "there").exists())
        build.provider = Afar(build.home.sandboxes, survives=False)
        handoff = build.runner.run(build.task(), lambda: False)
    assert (handoff.status, handoff.files_changed) == (HandoffStatus.COMPLETE, ["app.py"])
    assert "What was done so far" in first_messages(build)[-1]


def test_a_task_that_a_person_cancelled_meanwhile_is_handed_in_with_what_there_was(
    tmp_path: Path, socket: Path
) -> None:
    build = Build(
        tmp_path, socket, [calls(RAISE_PRICE), calls(pausing(tmp_path))], isolation=Isolation.NONE, **NO_CHECKS
    )
    with build.chat:
        dies_at_work(build, survives=False, dies=(tmp_path / "there").exists)
        build.ledger.request_cancel(TASK, 7.0)
        handoff = build.runner.run(build.task(), lambda: False)
    assert (handoff.status, handoff.files_changed) == (HandoffStatus.PARTIAL, ["app.py"])
    assert handoff.concerns[0] == BY_A_PERSON
    assert list(build.home.sandboxes.iterdir()) == []


# --- sandboxes that outlive their client -----------------------------------------------------------------------------


def test_a_worker_that_lives_on_is_joined_again_and_pays_for_nothing_twice(tmp_path: Path, socket: Path) -> None:
    replies = [calls(RAISE_PRICE), calls(pausing(tmp_path)), calls(NOTES), done()]
    build = Build(tmp_path, socket, replies, isolation=Isolation.NONE, **NO_CHECKS)
    seen: list[bytes] = []

    def look() -> bool:
        path = build.ledger.live_transcript(TASK)
        text = path.read_bytes() if path.exists() else b""
        if b"there" in text and not seen:  # told from its beginning, to whoever joins late
            seen.append(text)
            (tmp_path / "go").touch()
        return False

    with build.chat:
        client = dies_at_work(build, survives=True, dies=(tmp_path / "there").exists)
        handoff = build.runner.run(build.task(), look)
    assert (handoff.status, handoff.files_changed) == (HandoffStatus.COMPLETE, ["app.py", "notes.txt"])
    assert asked(build) == 4 and len(first_messages(build)) == 1
    assert b'"type": "start"' in seen[0]
    assert build.gateway.opened == [TASK, TASK], "the way to the model is open again"
    assert len(client.ended) == 1 and list(build.home.sandboxes.iterdir()) == []
    run = build.ledger.run(TASK)
    assert run is not None and run.sandbox == client.ended[0]


def test_one_that_is_joined_again_can_still_be_cancelled(tmp_path: Path, socket: Path) -> None:
    replies = [calls(RAISE_PRICE), calls(pausing(tmp_path))]
    build = Build(tmp_path, socket, replies, isolation=Isolation.NONE, **NO_CHECKS)
    with build.chat:
        client = dies_at_work(build, survives=True, dies=(tmp_path / "there").exists)
        stop = threading.Event()
        with pytest.raises(Cancelled):
            build.runner.run(
                build.task(), lambda: stop.is_set() or (build.ledger.live_transcript(TASK).exists() and not stop.set())
            )
    kept = build.ledger.interrupted(TASK)
    assert kept is not None and kept.files_changed == ["app.py"]
    assert len(client.ended) == 1 and list(build.home.sandboxes.iterdir()) == []


def test_one_that_died_while_nobody_was_there_is_salvaged(tmp_path: Path, socket: Path) -> None:
    replies = [calls(RAISE_PRICE), calls(pausing(tmp_path)), done()]
    build = Build(tmp_path, socket, replies, isolation=Isolation.NONE, **NO_CHECKS)
    with build.chat:
        client = dies_at_work(build, survives=True, dies=(tmp_path / "there").exists)
        (info,) = client.list({})
        client.attach(info.id).end_commands()
        handoff = build.runner.run(build.task(), lambda: False)
    assert (handoff.status, handoff.files_changed) == (HandoffStatus.COMPLETE, ["app.py"])
    assert "What was done so far" in first_messages(build)[-1]
    assert client.ended[0] == info.id and len(set(client.ended)) == len(client.ended) == 2


def test_one_whose_time_is_over_is_handed_in_with_what_it_has(tmp_path: Path, socket: Path) -> None:
    replies = [calls(RAISE_PRICE), calls(pausing(tmp_path))]
    build = Build(tmp_path, socket, replies, isolation=Isolation.NONE, **NO_CHECKS)
    with build.chat:
        dies_at_work(build, survives=True, dies=(tmp_path / "there").exists)
        build.clock.at = time.time() + 55.0  # of sixty seconds
        handoff = build.runner.run(build.task(), lambda: False)
    assert (handoff.status, handoff.files_changed) == (HandoffStatus.PARTIAL, ["app.py"])
    assert handoff.metrics.duration_ms >= 55_000
    assert list(build.home.sandboxes.iterdir()) == []


# --- what is not taken up --------------------------------------------------------------------------------------------


def a_link(root: Path) -> None:
    shutil.rmtree(root / "longshot")
    (root / "longshot").symlink_to(root.parents[3] / "outside")


def a_pipe(root: Path) -> None:
    for name in ("at-work", "transcript.jsonl"):
        (root / "longshot/out" / name).unlink()
        os.mkfifo(root / "longshot/out" / name)


def no_repository(root: Path) -> None:
    shutil.rmtree(root / "workspace/repo/.git")


def a_strange_result(root: Path) -> None:
    (root / "longshot/out/result.json").write_bytes(b"[" * 100_000)


def a_strange_bundle(root: Path) -> None:
    good = '{"taskId": "r001-01", "harnessStatus": "completed", "status": "complete", "head": "' + "0" * 40 + '"}'
    (root / "longshot/out/result.json").write_text(good)
    (root / "longshot/out/work.bundle").write_bytes(b"garbage")


@pytest.mark.parametrize(
    ("spoil", "survives"),
    [(a_link, False), (a_pipe, True), (no_repository, False), (a_strange_result, False), (a_strange_bundle, True)],
)
def test_what_an_agent_has_spoilt_is_worked_on_anew(
    tmp_path: Path, socket: Path, spoil: Callable[[Path], None], survives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outside").mkdir()
    monkeypatch.setattr(order_run, "_SALVAGE_S", 2.0)
    replies = [calls(RAISE_PRICE), calls(pausing(tmp_path)), calls(RAISE_PRICE), done()]
    build = Build(tmp_path, socket, replies, isolation=Isolation.NONE, **NO_CHECKS)
    with build.chat:
        client = dies_at_work(build, survives, dies=(tmp_path / "there").exists)
        (info,) = client.list({})
        client.attach(info.id).end_commands()
        spoil(build.home.sandboxes / info.id / "root")
        handoff = build.runner.run(build.task(), lambda: False)
    assert (handoff.status, handoff.files_changed) == (HandoffStatus.COMPLETE, ["app.py"])
    assert client.ended[0] == info.id and list(build.home.sandboxes.iterdir()) == []
    assert list((tmp_path / "outside").iterdir()) == []


def test_sandboxes_of_another_version_or_repository_or_past_their_lifetime_are_only_ended(
    tmp_path: Path, socket: Path
) -> None:
    build = Build(tmp_path, socket, [done()], **NO_CHECKS)
    begun = Begun(build.base, None, 0).tags
    left = LocalProvider(build.home.sandboxes, Isolation.AUTO)
    mine = {"build": BUILD, "task": TASK}
    for tags in ({"contract": "0"}, {"base": "main"}, {"base": "f" * 40}, {"start": "e" * 40}, {"tokens": "-1"}):
        left.create(SandboxSpec(name=f"left {tags}", tags={**mine, **begun, **tags}))
    left.create(SandboxSpec(name="without", tags=mine))
    left.create(SandboxSpec(name="old", tags={**mine, **begun}, lifetime_s=-1))
    other = left.create(SandboxSpec(name="other", tags={"build": BUILD, "task": "r001-02", **begun}))
    handoff = build.work()
    assert handoff.status is HandoffStatus.COMPLETE
    assert [i.id for i in left.list({})] == [other.id]
    other.terminate()


def test_work_in_a_sandbox_whose_lifetime_was_over_before_anybody_came_back_is_kept(
    tmp_path: Path, socket: Path
) -> None:
    build = Build(tmp_path, socket, [calls(RAISE_PRICE), done()], isolation=Isolation.NONE, **NO_CHECKS)
    result = contract.RESULT.lstrip("/")
    with build.chat:
        dies_at_work(build, False, lambda: any(build.home.sandboxes.glob(f"sb-*/root/{result}")))
        (meta,) = build.home.sandboxes.glob("sb-*/meta.json")
        meta.write_text(json.dumps(json.loads(meta.read_text()) | {"ends_at": 1.0}))
        assert Leftovers(build.home, None).found() == [], "`longshot clean` leaves it to whoever goes on"
        before = asked(build)
        assert build.runner.run(build.task(), lambda: False).files_changed == ["app.py"]
        assert asked(build) == before
    assert list(build.home.sandboxes.iterdir()) == []


def test_work_that_a_person_has_set_aside_is_not_collected_again(tmp_path: Path, socket: Path) -> None:
    """The process died between the handoff and the end of the sandbox, and then the task was to be done anew."""
    build = Build(tmp_path, socket, [calls(RAISE_PRICE), done(), done("blocked", "no way")], **NO_CHECKS)
    kept: list[str] = []
    with build.chat:
        first = Afar(build.home.sandboxes, survives=False)
        build.provider = first
        honest = first.create

        def create(spec: SandboxSpec) -> Any:
            made = honest(spec)
            made.terminate = lambda: kept.append(made.id)  # type: ignore[method-assign]
            return made

        first.create = create  # type: ignore[method-assign]
        assert build.runner.run(build.task(), lambda: False).status is HandoffStatus.COMPLETE
        build.ledger.forget_work(TASK)
        build.provider = Afar(build.home.sandboxes, survives=False)
        assert build.runner.run(build.task(), lambda: False).status is HandoffStatus.BLOCKED
    assert kept and list(build.home.sandboxes.iterdir()) == []


def test_a_sandbox_that_cannot_be_ended_costs_no_second_worker(tmp_path: Path, socket: Path) -> None:
    build = Build(tmp_path, socket, [calls(RAISE_PRICE), done()], isolation=Isolation.NONE, **NO_CHECKS)
    build.provider = client = Afar(build.home.sandboxes)
    honest = client.create

    def create(spec: SandboxSpec) -> Any:
        made = honest(spec)

        def out_of_reach() -> None:
            raise SandboxError("the service does not answer")

        made.terminate = out_of_reach  # type: ignore[method-assign]
        return made

    client.create = create  # type: ignore[method-assign]
    assert build.work().status is HandoffStatus.COMPLETE
    assert len(first_messages(build)) == 1


def test_what_is_recovered_without_a_worker_waits_for_the_next_one(tmp_path: Path, socket: Path) -> None:
    """As when the stack is stopped, or a build's sandboxes are tidied up."""
    replies = [calls(RAISE_PRICE), calls(pausing(tmp_path))]
    build = Build(tmp_path, socket, replies, isolation=Isolation.NONE, **NO_CHECKS)
    with build.chat:
        dies_at_work(build, survives=False, dies=(tmp_path / "there").exists)
        lock = build.ledger.work_lock(TASK)
        assert lock is not None
        with claim(lock):
            assert not build.runner.recover(build.task(), lambda: False), "somebody is at work on it"
        assert len(list(build.home.sandboxes.iterdir())) == 1
        assert build.runner.recover(build.task(), lambda: True)
    kept, run = build.ledger.interrupted(TASK), build.ledger.run(TASK)
    assert kept is not None and kept.files_changed == ["app.py"] and build.ledger.handoff(TASK) is None
    assert run is not None and run.harness_status == "crashed"
    assert git(build.mirror.path, "show", f"{run.head}:app.py").endswith("return 2")
    assert list(build.home.sandboxes.iterdir()) == []
