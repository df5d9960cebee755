"""A task worked on in a real sandbox against a scripted model: what every way of ending leaves in the ledger."""

import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from worked import APP, BUILD, TEST, Build, ScriptedChat, git

from scripted_chat import calls, done, says  # isort: skip - found through `worked`

from longshot_dagster.adapters.sandboxes.sandbox_local import LocalProvider, LocalSandbox
from longshot_dagster.adapters.workers import order_run
from longshot_dagster.core import contract
from longshot_dagster.core.display import display
from longshot_dagster.core.errors import (
    BudgetExhausted,
    BuildPaused,
    Cancelled,
    ModelUnavailable,
    SandboxError,
    SandboxGone,
)
from longshot_dagster.core.models import CheckName, CheckStatus, HandoffStatus
from longshot_dagster.core.sandbox import SandboxSpec
from longshot_dagster.core.settings import Isolation

RAISE_PRICE = ("edit", {"path": "app.py", "old_text": "return 1", "new_text": "return 2"})
ADAPT_TEST = ("edit", {"path": "test_app.py", "old_text": "(), 1)", "new_text": "(), 2)"})


@pytest.fixture
def socket() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="ls-"))
    yield folder / "model.sock"
    shutil.rmtree(folder)


@pytest.fixture(params=[Isolation.AUTO, Isolation.NONE], ids=["bubblewrap", "unconfined"])
def isolation(request: pytest.FixtureRequest) -> Isolation:
    return request.param


def test_a_task_becomes_a_branch_and_a_handoff(tmp_path: Path, socket: Path, isolation: Isolation) -> None:
    files = {"app.py": APP, "test_app.py": TEST, "AGENTS.md": "Be brief."}
    replies = [calls(RAISE_PRICE, ADAPT_TEST), done(suggestions=["raise it again"], concerns=["dear"])]
    prices = {"llm_price_in": 1_000.0, "llm_price_out": 2_000.0}
    build = Build(tmp_path, socket, replies, files=files, isolation=isolation, **prices)
    handoff = build.work()

    assert (handoff.status, handoff.summary) == (HandoffStatus.COMPLETE, "did it")
    assert (handoff.files_changed, handoff.concerns) == (["app.py", "test_app.py"], ["dear"])
    assert (handoff.metrics.lines_added, handoff.metrics.lines_removed, handoff.metrics.files_modified) == (2, 2, 2)
    assert (handoff.metrics.tokens_used, handoff.metrics.tool_call_count) == (240, 2)
    assert "+    return 2" in handoff.diff

    run = build.ledger.run("r001-01")
    assert run is not None and run.head is not None
    assert (run.harness_status, run.base, run.commits, run.provider) == ("completed", build.base, 1, "local")
    assert {c.name: c.status for c in run.checks if c.status is not CheckStatus.SKIPPED} == {
        CheckName.COMPILE: CheckStatus.GREEN,
        CheckName.TEST: CheckStatus.GREEN,
    }
    assert (run.tokens_in, run.tokens_out, run.cost_usd) == (200, 40, 0.28)
    assert run.not_enforced == (() if isolation is Isolation.AUTO else ("SANDBOX_NETWORK",))
    assert git(build.mirror.path, "rev-parse", f"refs/longshot/work/{BUILD}/r001-01") == run.head

    first = build.chat.asked[0]["messages"]
    assert first[0]["content"].splitlines()[0] == "You are a Longshot worker."
    assert first[1]["content"].splitlines()[0] == "# Task r001-01"
    assert "Raise the price." in first[1]["content"] and "Be brief." in first[1]["content"]
    assert b'"tool_start"' in build.ledger.transcript("r001-01").read_bytes()
    assert list(build.home.sandboxes.iterdir()) == []
    assert build.gateway.closed == ["r001-01"]


def test_a_finished_task_is_never_worked_on_again(tmp_path: Path, socket: Path) -> None:
    build = Build(tmp_path, socket, [done()])
    with build.chat:
        first = build.runner.run(build.task(), lambda: False)
        asked = len(build.chat.asked)
        assert build.runner.run(build.task(), lambda: False) == first
    assert len(build.chat.asked) == asked


def test_two_that_start_the_same_task_share_one_run(tmp_path: Path, socket: Path) -> None:
    build = Build(tmp_path, socket, [calls(RAISE_PRICE), done()])
    found = []
    with build.chat:
        threads = [
            threading.Thread(target=lambda: found.append(build.runner.run(build.task(), lambda: False)))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found[0] == found[1]
    assert build.gateway.opened == ["r001-01"]


def test_red_checks_are_told_from_those_that_were_red_before(tmp_path: Path, socket: Path) -> None:
    files = {
        "app.py": APP,
        "test_app.py": TEST,
        "Makefile": "lint:\n\t@echo untidy; false\ntest:\n\t@python3 -m unittest\n",
    }
    build = Build(tmp_path, socket, [calls(RAISE_PRICE), done()], files=files)
    assert build.work().status is HandoffStatus.COMPLETE
    run = build.ledger.run("r001-01")
    assert run is not None
    found = {c.name: (c.status, c.command) for c in run.checks}
    assert found[CheckName.LINT] == (CheckStatus.RED_BEFORE, "make lint")
    assert found[CheckName.TEST] == (CheckStatus.RED, "make test")
    assert "AssertionError: 2 != 1" in next(c.output for c in run.checks if c.name is CheckName.TEST)


@pytest.mark.parametrize(
    ("replies", "status", "harness_status"),
    [
        ([says("")], HandoffStatus.FAILED, "empty"),
        ([says("I am not sure.")], HandoffStatus.PARTIAL, "completed"),
        ([done("blocked", "no way")], HandoffStatus.BLOCKED, "completed"),
        ([done()], HandoffStatus.COMPLETE, "completed"),
        ([calls(RAISE_PRICE), (404, b"")], HandoffStatus.PARTIAL, "llm_error"),
        ([calls(("bash", {"command": "rm -rf .git"})), done()], HandoffStatus.FAILED, "crashed"),
    ],
    ids=["empty", "prose", "blocked", "noop", "dies-with-work", "git-removed"],
)
def test_the_status_is_judged_by_what_happened(
    tmp_path: Path, socket: Path, replies: list[Any], status: HandoffStatus, harness_status: str
) -> None:
    build = Build(tmp_path, socket, replies)
    assert build.work().status is status
    run = build.ledger.run("r001-01")
    assert run is not None and run.harness_status == harness_status


def test_a_model_that_never_answers_pauses_and_leaves_the_task_unfinished(tmp_path: Path, socket: Path) -> None:
    build = Build(tmp_path, socket, [(401, {"error": {"message": "bad key"}})])
    with pytest.raises(ModelUnavailable, match="bad key"):
        build.work()
    assert build.ledger.handoff("r001-01") is None
    assert list(build.home.sandboxes.iterdir()) == []


def test_a_model_that_falls_silent_before_anything_was_done_is_asked_once_more_and_then_pauses(
    tmp_path: Path, socket: Path
) -> None:
    build = Build(tmp_path, socket, [calls(("ls", {})), (401, b"")])
    with pytest.raises(ModelUnavailable, match="401"):
        build.work()
    assert build.ledger.handoff("r001-01") is None and build.clock.slept == [2.0]


def test_a_spent_budget_pauses_only_when_the_gateway_says_so(tmp_path: Path, socket: Path) -> None:
    spent = (403, {"error": {"type": "budget_exhausted", "message": "spent"}})
    build = Build(tmp_path, socket, [calls(("ls", {})), spent], max_tokens_per_build=100)
    with pytest.raises(BudgetExhausted, match="MAX_TOKENS_PER_BUILD=100 is spent"):
        build.work()
    assert build.ledger.handoff("r001-01") is None
    # Raised by a resume; the runner, of a process that lived through it, was made with the old one.
    more = build.request.settings.model_copy(update={"max_tokens_per_build": 10**6})
    build.ledger.save_request(build.request.model_copy(update={"settings": more}))
    with ScriptedChat(str(socket) + "2", [calls(("ls", {})), spent]) as other:
        shutil.move(other.path, socket)
        assert build.runner.run(build.task(), lambda: False).status is HandoffStatus.FAILED


def test_a_cancelled_task_leaves_no_handoff_and_no_sandbox(tmp_path: Path, socket: Path) -> None:
    build = Build(tmp_path, socket, [calls(("bash", {"command": "sleep 62.01"}))])
    with pytest.raises(Cancelled):
        build.work(cancelled=lambda: bool(subprocess.run(["pgrep", "-fx", "sleep 62.01"], capture_output=True).stdout))
    assert build.ledger.handoff("r001-01") is None
    assert list(build.home.sandboxes.iterdir()) == []
    assert subprocess.run(["pgrep", "-fx", "sleep 62.01"], capture_output=True).stdout == b""


def test_a_worker_that_hangs_is_salvaged(tmp_path: Path, socket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = Build(tmp_path, socket, [calls(RAISE_PRICE), done()], check_test="sleep 63.01", check_compile="none")
    carry_out = order_run.carry_out
    monkeypatch.setattr(
        "longshot_dagster.adapters.workers.worker.carry_out",
        lambda sandbox, order, bundle, timeout_s, *more: carry_out(sandbox, order, bundle, 3.0, *more),
    )
    handoff = build.work()
    assert (handoff.status, handoff.files_changed) == (HandoffStatus.PARTIAL, ["app.py"])
    run = build.ledger.run("r001-01")
    assert run is not None and (run.harness_status, run.head is not None) == ("timeout", True)
    assert handoff.metrics.tool_call_count == 1


def test_a_worker_killed_from_inside_is_salvaged_as_crashed(tmp_path: Path, socket: Path) -> None:
    build = Build(tmp_path, socket, [calls(RAISE_PRICE), calls(("bash", {"command": "kill -9 $PPID"}))])
    handoff = build.work()
    run = build.ledger.run("r001-01")
    assert run is not None
    assert (handoff.status, run.harness_status) == (HandoffStatus.PARTIAL, "crashed")
    assert "exit code 137" in run.error


class Failing(LocalProvider):
    """A provider whose first `failures` sandboxes cannot be made."""

    failures = 0

    def create(self, spec: SandboxSpec) -> LocalSandbox:
        self.failures -= 1
        if self.failures >= 0:
            raise SandboxGone("lost it")
        return super().create(spec)


def test_infrastructure_trouble_is_retried_and_then_failed(tmp_path: Path, socket: Path) -> None:
    provider = Failing(tmp_path / "sb", Isolation.AUTO)
    provider.failures = 2
    build = Build(tmp_path, socket, [done()], provider=provider)
    assert build.work().status is HandoffStatus.COMPLETE
    run = build.ledger.run("r001-01")
    assert run is not None and run.attempt == 3
    assert build.clock.slept == [2.0, 4.0]

    (tmp_path / "again").mkdir()
    provider.failures = 3
    build = Build(tmp_path / "again", socket.with_name("again"), [done()], provider=provider)
    handoff = build.work()
    assert (handoff.status, handoff.concerns) == (HandoffStatus.FAILED, ["lost it (tried 3 times)"])
    assert build.ledger.run("r001-01") is not None


def test_what_a_killed_orchestrator_left_is_ended_first(tmp_path: Path, socket: Path) -> None:
    build = Build(tmp_path, socket, [done()])
    build.provider.create(SandboxSpec(name="left", tags={"build": BUILD, "task": "r001-01"}))
    other = build.provider.create(SandboxSpec(name="other", tags={"build": BUILD, "task": "r001-02"}))
    build.work()
    assert [i.id for i in build.provider.list({})] == [other.id]
    other.terminate()


def test_no_key_of_the_host_is_inside(tmp_path: Path, socket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_API_KEY", "sk-very-secret")
    look = "env; cat /proc/*/environ | tr '\\0' '\\n'; grep -rs 'sk-very-secr[e]t' /longshot /workspace /etc /home /tmp; git remote | wc -l"
    build = Build(tmp_path, socket, [calls(("bash", {"command": look})), done()])
    build.work()
    seen = next(m["content"] for m in build.chat.asked[1]["messages"] if m["role"] == "tool")
    assert "LONGSHOT_NETWORK=none" in seen
    assert "sk-very-secret" not in seen and seen.endswith("0\n\n[exit 0]")


NASTY = "[/bold] \x1b[31mred\x1b[0m <img src=x onerror=alert(1)> \u202e"
GOOD: dict[str, Any] = {"taskId": "r001-01", "harnessStatus": "completed", "status": "complete", "summary": "s"}


class Forging(LocalProvider):
    """Sandboxes whose agent writes the results itself, after the worker has ended."""

    def __init__(self, base: Path, forge: Callable[[Path], None]) -> None:
        super().__init__(base, Isolation.AUTO)
        self.forge = forge

    def create(self, spec: SandboxSpec) -> LocalSandbox:
        made = super().create(spec)
        honest = made.exec

        def exec_(*arguments: Any, **options: Any) -> Any:
            ran = honest(*arguments, **options)
            self.forge(made.root)
            return ran

        made.exec = exec_  # type: ignore[method-assign]
        return made


def forged(text: str | bytes) -> Callable[[Path], None]:
    data = text.encode() if isinstance(text, str) else text
    return lambda root: (root / contract.RESULT.lstrip("/")).write_bytes(data) and None


def sparse(root: Path) -> None:
    os.truncate(root / contract.RESULT.lstrip("/"), 200 << 20)


def linked(root: Path) -> None:
    result = root / contract.RESULT.lstrip("/")
    result.unlink()
    result.symlink_to("/etc/passwd")


@pytest.mark.parametrize(
    ("forge", "why"),
    [
        (sparse, "larger than 4,194,304 bytes"),
        (linked, "without a result"),
        (forged("[" * 100_000), "not readable"),
        (forged(json.dumps({**GOOD, "concerns": "x"})), "not readable: concerns"),
    ],
    ids=["200MB", "link", "nested", "types"],
)
def test_a_hostile_result_becomes_a_failed_handoff(
    tmp_path: Path, socket: Path, forge: Callable[[Path], None], why: str
) -> None:
    provider = Forging(tmp_path / "sb", forge)
    build = Build(tmp_path, socket, [calls(RAISE_PRICE), done()], provider=provider, check_test="none")
    handoff = build.work()
    assert handoff.status is HandoffStatus.FAILED
    assert why in handoff.concerns[0]
    assert len(handoff.model_dump_json()) < 10_000
    assert build.ledger.handoff("r001-01") == handoff


def test_nasty_text_is_kept_as_data_and_shown_harmless(tmp_path: Path, socket: Path) -> None:
    text = {"summary": NASTY, "concerns": [NASTY], "suggestions": [NASTY]}
    provider = Forging(tmp_path / "sb", forged(json.dumps({**GOOD, **text})))
    handoff = Build(tmp_path, socket, [done()], provider=provider).work()
    assert (handoff.status, handoff.summary) == (HandoffStatus.COMPLETE, NASTY)
    for where in ("terminal", "markdown", "html", "plain"):
        shown = display(handoff.summary, where)  # type: ignore[arg-type]
        assert "\x1b" not in shown and "\u202e" not in shown
    assert "<img" not in display(handoff.summary, "html")


@pytest.mark.parametrize("size", [10, 300 << 20], ids=["garbage", "too-large"])
def test_a_hostile_bundle_becomes_a_failed_handoff(tmp_path: Path, socket: Path, size: int) -> None:
    def forge(root: Path) -> None:
        bundle = root / contract.BUNDLE_OUT.lstrip("/")
        if bundle.exists():
            bundle.write_bytes(b"garbage")
            os.truncate(bundle, size)

    build = Build(tmp_path, socket, [calls(RAISE_PRICE), done()], provider=Forging(tmp_path / "sb", forge))
    handoff = build.work()
    assert (handoff.status, handoff.diff) == (HandoffStatus.FAILED, "")
    run = build.ledger.run("r001-01")
    assert run is not None and run.head is None


def test_a_transcript_that_is_too_large_is_left_behind(tmp_path: Path, socket: Path) -> None:
    def forge(root: Path) -> None:
        os.truncate(root / contract.TRANSCRIPT.lstrip("/"), 100 << 20)

    build = Build(tmp_path, socket, [done()], provider=Forging(tmp_path / "sb", forge))
    assert build.work().status is HandoffStatus.COMPLETE
    assert b"no transcript is kept" in build.ledger.transcript("r001-01").read_bytes()


def test_conflict_markers_make_a_complete_task_partial(tmp_path: Path, socket: Path) -> None:
    content = "<<<<<<< ours\na = 1\n=======\na = 2\n>>>>>>> theirs\n"
    build = Build(tmp_path, socket, [calls(("write", {"path": "notes.txt", "content": content})), done()])
    handoff = build.work()
    assert handoff.status is HandoffStatus.PARTIAL
    assert handoff.concerns == ["conflict markers were left in notes.txt"]


def test_a_gateway_that_is_gone_pauses(tmp_path: Path, socket: Path) -> None:
    build = Build(tmp_path, socket, [done()])
    build.gateway.gone = True
    with pytest.raises(ModelUnavailable):
        build.work()


def test_a_repository_out_of_reach_pauses_the_build_and_fails_no_task(tmp_path: Path, socket: Path) -> None:
    build = Build(tmp_path, socket, [done()])
    Path(build.request.target.url).rename(tmp_path / "elsewhere.git")
    with pytest.raises(BuildPaused, match=f"longshot resume {BUILD}"):
        build.work()
    assert build.clock.slept == [2.0, 4.0]
    assert build.ledger.handoff("r001-01") is None


def test_retries_know_what_may_pass() -> None:
    class Clock:
        def sleep(self, seconds: float) -> None: ...

    def broken(attempt: int) -> str:
        raise SandboxError("down")

    clock: Any = Clock()
    assert order_run.retried(broken, lambda why: why, clock, lambda: False) == "down (tried 3 times)"
    with pytest.raises(Cancelled):
        order_run.retried(broken, lambda why: why, clock, lambda: True)
