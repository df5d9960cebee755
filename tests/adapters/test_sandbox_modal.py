"""Sandboxes of Modal: the real SDK against the loopback server. What every provider does is in tests/contract."""

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from grpclib import Status
from worked import BUILD, Build

from scripted_chat import calls, done  # isort: skip - found through `worked`

from longshot_dagster.adapters.host.pacing import Pace
from longshot_dagster.adapters.sandboxes.modal_sdk import check_credentials
from longshot_dagster.adapters.sandboxes.sandbox_modal import ModalProvider, sandbox_name
from longshot_dagster.core.errors import Cancelled, FileMissing, SandboxError, SandboxGone, SandboxRefused, TooLarge
from longshot_dagster.core.models import HandoffStatus
from longshot_dagster.core.sandbox import SandboxSpec
from longshot_dagster.core.settings import Settings
from longshot_dagster.testing.loopback_modal.calls import Fault
from longshot_dagster.testing.loopback_modal.server import LoopbackModal

TASK = "r001-01"
SETTINGS = Settings(sandbox_creates_per_second=1000)
RAISE_PRICE = ("edit", {"path": "app.py", "old_text": "return 1", "new_text": "return 2"})
NO_CHECKS = {"check_test": "none", "check_compile": "none"}

WORK = """
import sys
from pathlib import Path
from types import SimpleNamespace
from worked import *
from longshot_dagster.adapters.sandboxes.sandbox_modal import ModalProvider
home = Home(Path(sys.argv[1]))
ledger = Ledger(home.builds).build(BUILD)
request = ledger.request()
gateway = TestGateway(SimpleNamespace(path=sys.argv[2], tokens_in=0, tokens_out=0))
provider = ModalProvider(request.settings, home.sandboxes)
WorkerRunner(ledger, request, provider, Mirror(home, request.target), gateway, TestClock()).run(
    Build.task(None), lambda: False
)
"""


@pytest.fixture(scope="module")
def modal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackModal]:
    with LoopbackModal(tmp_path_factory.mktemp("modal")) as server:
        yield server
    assert (server.record.missing, server.record.broken) == ([], [])


@pytest.fixture
def account(modal: LoopbackModal, monkeypatch: pytest.MonkeyPatch) -> LoopbackModal:
    for name, value in modal.environment().items():
        monkeypatch.setenv(name, value)
    return modal


@pytest.fixture
def provider(account: LoopbackModal, tmp_path: Path) -> Iterator[ModalProvider]:
    made = ModalProvider(SETTINGS, tmp_path / "sandboxes")
    yield made
    for info in made.list({}):
        made.attach(info.id).terminate()


def until(true: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)


# --- before anything starts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({}, "SANDBOX_PROVIDER=modal needs MODAL_TOKEN_ID and MODAL_TOKEN_SECRET"),
        ({"MODAL_TOKEN_ID": "ak-1"}, "one of the two variables is set, the other is not"),
        ({"MODAL_TOKEN_SECRET": "as-1", "MODAL_TOKEN_ID": ""}, "one of the two variables is set, the other is not"),
    ],
)
def test_without_a_token_there_is_one_line_and_the_sdk_is_not_even_loaded(environ: dict[str, str], said: str) -> None:
    with pytest.raises(SandboxRefused) as refused:
        check_credentials({"MODAL_CONFIG_PATH": "/nonexistent", **environ})
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_making_a_provider_loads_no_sdk_and_connects_to_nothing(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; os.environ |= {'MODAL_TOKEN_ID': 'x', 'MODAL_TOKEN_SECRET': 'y'};"
        "from longshot_dagster.adapters.sandboxes.sandbox_modal import ModalProvider; from longshot_dagster.core.settings import Settings;"
        f"ModalProvider(Settings(), Path({str(tmp_path)!r})).capabilities; print('modal' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize(
    "spec",
    [
        {"sockets": {"/x/a.sock": "/y/a.sock"}},
        {"layers": {"/opt/x": "/usr"}},
        {"readable": ("/usr/share",)},
        {"lifetime_s": 86_401},
        {"network": "allowlist"},
    ],
)
def test_what_it_cannot_keep_is_refused_without_asking(tmp_path: Path, monkeypatch: Any, spec: dict[str, Any]) -> None:
    monkeypatch.setenv("MODAL_TOKEN_ID", "ak-1")
    monkeypatch.setenv("MODAL_TOKEN_SECRET", "as-1")
    with pytest.raises(SandboxRefused):
        ModalProvider(SETTINGS, tmp_path).create(SandboxSpec(name="x", **spec))


def test_names_are_the_services_and_stay_apart() -> None:
    assert sandbox_name("shop-7f3k-r001-01") == "shop-7f3k-r001-01"
    odd = [sandbox_name(name) for name in ("a b", "a/b", "ä", "x" * 64, "x" * 65, "")]
    assert len(set(odd)) == len(odd)
    assert all(0 < len(name) <= 63 and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for name in odd)


class Hands:
    """A clock whose hands move when somebody sleeps."""

    def __init__(self) -> None:
        self.at = 0.0

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at

    def sleep(self, seconds: float) -> None:
        self.at += seconds


@pytest.mark.parametrize(("per_second", "asked", "took"), [(5.0, 5, 0.0), (5.0, 15, 2.0), (0.5, 3, 4.0)])
def test_creates_keep_their_pace_after_one_seconds_worth(per_second: float, asked: int, took: float) -> None:
    clock = Hands()
    pace = Pace(per_second, clock)
    for _ in range(asked):
        pace.wait()
    assert clock.at == pytest.approx(took)


# --- the service and its troubles ------------------------------------------------------------------------------------


def test_a_throttled_create_waits_as_long_as_the_service_says(provider: ModalProvider, account: LoopbackModal) -> None:
    account.record.plan("SandboxCreateV2", Fault(Status.RESOURCE_EXHAUSTED, times=2, retry_after_s=0.1))
    assert provider.create(SandboxSpec(name="throttled")).id


def test_a_create_over_the_quota_is_an_error_that_may_pass(provider: ModalProvider, account: LoopbackModal) -> None:
    account.record.plan("SandboxCreateV2", Fault(Status.RESOURCE_EXHAUSTED))
    with pytest.raises(SandboxError) as raised:
        provider.create(SandboxSpec(name="quota"))
    assert not isinstance(raised.value, SandboxRefused) and str(raised.value).startswith(
        "Modal cannot make a sandbox: "
    )


def test_a_create_whose_answer_is_lost_makes_one_sandbox(provider: ModalProvider, account: LoopbackModal) -> None:
    account.record.plan("SandboxCreateV2", Fault(Status.UNAVAILABLE, after_work=True))
    made = provider.create(SandboxSpec(name="lost", tags={"build": "lost-1"}))
    assert [info.id for info in provider.list({"build": "lost-1"})] == [made.id]


def test_an_unknown_image_is_refused_by_name(provider: ModalProvider) -> None:
    with pytest.raises(SandboxRefused, match="is there such an image"):
        provider.create(SandboxSpec(name="x", image="nobodys-image"))


def test_output_goes_on_after_its_stream_was_lost_and_no_byte_is_missing(
    provider: ModalProvider, account: LoopbackModal
) -> None:
    sandbox = provider.create(SandboxSpec(name="streams"))
    account.record.plan("TaskExecStdioRead", Fault(Status.UNAVAILABLE, times=3, after_bytes=70_000))
    ran = sandbox.exec(["seq", "1", "60000"], timeout_s=60)
    assert ran.stdout == "".join(f"{n}\n" for n in range(1, 60_001)).encode() and not ran.truncated


def test_one_sandbox_from_beginning_to_end(provider: ModalProvider, tmp_path: Path) -> None:
    """In one sandbox, because each takes its time: what is peculiar to how this provider does things."""
    spec = SandboxSpec(name="whole", tags={"build": "whole-1", "start": ""}, lifetime_s=600, cpu=1, memory_mb=512)
    sandbox = provider.create(spec)

    # a cancelled command takes what it daemonised along, and nothing else
    stop, escaping = threading.Event(), "setsid -f sleep 71.03; nohup sleep 71.04 & sleep 71.05"

    def heard(_: str, data: bytes) -> None:
        stop.set()

    with pytest.raises(Cancelled):
        sandbox.exec(
            ["sh", "-c", f"{escaping.replace('&', '& echo;')}"], timeout_s=60, on_output=heard, cancelled=stop.is_set
        )
    assert sandbox.exec(["pgrep", "-x", "sleep"], timeout_s=30).stdout == b""
    ran = sandbox.exec(["sh", "-c", escaping], timeout_s=0.5)
    assert (ran.timed_out, ran.exit_code) == (True, 124)
    assert sandbox.exec(["pgrep", "-x", "sleep"], timeout_s=30).stdout == b""

    # what an agent puts where files are expected holds nobody up and is not followed
    sandbox.write("/longshot/out/kept", b"kept")
    trap = "cd /longshot/out && mkfifo pipe && ln -s /dev/zero zero && ln -s kept link && ln -s /tmp/planted planted"
    assert sandbox.exec(["sh", "-c", trap], timeout_s=30).exit_code == 0
    for name in ("pipe", "zero", "link", "nothing", "."):
        with pytest.raises((FileMissing, SandboxError)):
            sandbox.read(f"/longshot/out/{name}")
    for name in ("pipe", "zero", "planted"):
        sandbox.write(f"/longshot/out/{name}", b"ours")
        assert sandbox.read(f"/longshot/out/{name}") == b"ours"
    assert sandbox.exec(["test", "-e", "/tmp/planted"], timeout_s=30).exit_code == 1
    with pytest.raises(TooLarge):
        sandbox.read("/longshot/out/kept", max_bytes=3)
    with pytest.raises(SandboxRefused, match="characters of arguments"):
        sandbox.exec(["echo", "x" * 70_000], timeout_s=5)

    # a failure of whoever listens ends the command and is his
    def fails(_: str, data: bytes) -> None:
        raise OSError("no space left on the device")

    with pytest.raises(OSError, match="no space left"):
        sandbox.exec(["sh", "-c", "echo one; sleep 60"], timeout_s=60, on_output=fails)

    # another client finds it by its tags, and ends what the first one runs
    other = ModalProvider(SETTINGS, tmp_path / "elsewhere")
    (info,) = other.list({"build": "whole-1"})
    assert info.id == sandbox.id and abs(info.created_at - time.time()) < 120 and "start" not in info.tags
    attached, results = other.attach(info.id), []
    waiting = threading.Thread(target=lambda: results.append(sandbox.exec(["sleep", "60"], timeout_s=60)))
    waiting.start()
    until(lambda: attached.exec(["pgrep", "-x", "sleep"], timeout_s=30).exit_code == 0)
    attached.end_commands()
    waiting.join()
    assert (results[0].exit_code, results[0].timed_out) == (137, False)
    with pytest.raises(SandboxRefused, match="Modal cannot make a sandbox"):
        other.create(spec)

    # once ended it is gone at once, and its name is free for whoever ended it
    sandbox.terminate()
    sandbox.terminate()
    with pytest.raises(SandboxGone):
        sandbox.exec(["true"], timeout_s=5)
    assert provider.list({"build": "whole-1"}) == []
    assert provider.create(spec).id != sandbox.id


# --- work ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def socket() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ls-") as folder:
        yield Path(folder) / "model.sock"


def test_a_worker_there_reaches_its_model_and_its_work_comes_back(
    account: LoopbackModal, tmp_path: Path, socket: Path
) -> None:
    provider = ModalProvider(SETTINGS, tmp_path / "home" / "sandboxes")
    build = Build(tmp_path, socket, [calls(RAISE_PRICE), done()], provider=provider, **NO_CHECKS)
    handoff = build.work()
    assert (handoff.status, handoff.files_changed) == (HandoffStatus.COMPLETE, ["app.py"])
    assert provider.list({"build": BUILD}) == []


def test_a_worker_that_outlives_its_orchestrator_is_joined_and_no_model_is_asked_twice(
    account: LoopbackModal, tmp_path: Path, socket: Path
) -> None:
    """It works on without a way to its model, gets one again, and is handed in by the second process."""
    sleeping = ("bash", {"command": "touch /tmp/there; until [ -e /tmp/go ]; do sleep 0.05; done"})
    provider = ModalProvider(SETTINGS, tmp_path / "home" / "sandboxes")
    build = Build(tmp_path, socket, [calls(sleeping), calls(RAISE_PRICE), done()], provider=provider, **NO_CHECKS)
    with build.chat:
        folder = str(Path(__file__).parent)
        argv = [
            sys.executable,
            "-c",
            f"import sys; sys.path.append({folder!r})\n" + WORK,
            str(build.home.root),
            str(socket),
        ]
        first = subprocess.Popen(argv)
        until(lambda: provider.list({"build": BUILD}))
        (info,) = provider.list({"build": BUILD})
        sandbox = provider.attach(info.id)
        until(lambda: sandbox.exec(["test", "-e", "/tmp/there"], timeout_s=30).exit_code == 0)
        first.kill()
        first.wait()
        sandbox.exec(["touch", "/tmp/go"], timeout_s=30)
        handoff = build.runner.run(build.task(), lambda: False)
    assert (handoff.status, handoff.files_changed) == (HandoffStatus.COMPLETE, ["app.py"])
    assert len(build.chat.asked) == 3, "nothing was asked twice"
    assert provider.list({"build": BUILD}) == []
    run = build.ledger.run(TASK)
    assert run is not None and run.sandbox == info.id
