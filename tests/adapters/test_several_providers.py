"""Several providers at once: a task goes where its needs are met and somebody makes a sandbox, and it says where and why."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from worked import BUILD, Build

from scripted_chat import calls, done  # isort: skip - found through `worked`

from longshot_dagster.adapters.sandboxes.fleet import Fleet, Healths, Member, member_of
from longshot_dagster.adapters.sandboxes.sandbox_local import LocalProvider, LocalSandbox
from longshot_dagster.adapters.workers.sweeper import run_sweep
from longshot_dagster.adapters.workers.worker import WorkerRunner
from longshot_dagster.cli.watching import BuildWatch
from longshot_dagster.core import contract
from longshot_dagster.core.errors import SandboxError, SandboxGone, SandboxRefused
from longshot_dagster.core.models import HandoffStatus
from longshot_dagster.core.needs import Needs
from longshot_dagster.core.sandbox import Capabilities, ExecResult, SandboxSpec
from longshot_dagster.core.settings import Isolation

TASK = "r001-01"
RAISE_PRICE = ("edit", {"path": "app.py", "old_text": "return 1", "new_text": "return 2"})


class Site(LocalProvider):
    """A provider of another name; `trouble()` is raised where it is asked for a sandbox."""

    def __init__(
        self, base: Path, name: str, trouble: Callable[[], Exception | None] = lambda: None, **able: Any
    ) -> None:
        super().__init__(base / name, Isolation.NONE)
        self.name = name
        self.trouble = trouble
        self.able = able
        self.asked = 0
        self.gpu = ""  # of the last sandbox
        self.dies = False  # what is started in its sandboxes ends at once
        self.ends = ""  # so does every worker in its sandboxes, at once; empty: they are real ones
        self.silent = False

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, **self.able)

    def create(self, spec: SandboxSpec) -> LocalSandbox:
        self.asked += 1
        if error := self.trouble():
            raise error
        self.gpu = spec.gpu
        made = super().create(replace(spec, gpu=""))
        if self.dies:
            started = made.exec
            made.exec = lambda argv, **options: started(["/bin/sh", "-c", "kill -9 $$"], **options)  # type: ignore[method-assign]
        elif self.ends:
            made.exec = lambda argv, **options: self.worked(made)  # type: ignore[method-assign]
        return made

    def worked(self, sandbox: LocalSandbox) -> ExecResult:
        """As of a worker that has nothing to do and ends with `ends`."""
        order = json.loads(sandbox.read(contract.ORDER))
        result = {"taskId": order["taskId"], "harnessStatus": self.ends, "status": "complete", "said": True}
        sandbox.write(
            contract.RESULT, json.dumps({**result, "summary": f"{order['harness']} was here already"}).encode()
        )
        return ExecResult(0, b"", b"", False, False, 0.0)

    def list(self, tags: Any) -> Any:
        if self.silent:
            raise SandboxError(f"{self.name} does not answer")
        return super().list(tags)


class Clock:
    def __init__(self) -> None:
        self.at = 0.0

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at

    def sleep(self, seconds: float) -> None:
        self.at += seconds


def unchecked(*arguments: Any, **more: Any) -> Build:
    """A build of which no check costs time."""
    return Build(*arguments, check_compile="none", check_test="none", **more)


def fleet(*sites: Site, clock: Clock | None = None) -> Fleet:
    """The first has all the weight: the others are spares."""
    members = tuple(Member(site, 1.0 if site is sites[0] else 0.0) for site in sites)
    return Fleet(members, Healths(clock or Clock()))


def sites(tmp_path: Path, ends: str = "") -> tuple[Site, Site]:
    one, two = Site(tmp_path / "sites", "one"), Site(tmp_path / "sites", "two")
    one.ends = two.ends = ends
    return one, two


@pytest.fixture
def socket() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="ls-"))
    yield folder / "model.sock"
    shutil.rmtree(folder)


def test_a_sandbox_is_found_again_by_the_name_of_its_provider(tmp_path: Path) -> None:
    one, two = sites(tmp_path)
    both = fleet(one, two)
    first, second = (
        both.create(SandboxSpec("a", tags={"t": "1"}, network="open")),
        both.members[1].create(SandboxSpec("a", tags={"t": "1"}, network="open")),
    )
    assert (first.id.partition(":")[0], second.id.partition(":")[0]) == ("one", "two")
    assert sorted(info.id for info in both.list({"t": "1"})) == sorted([first.id, second.id])
    assert both.list({"t": "2"}) == []
    second.write("/workspace/x", b"2")
    again = both.attach(second.id)
    assert (again.id, again.read("/workspace/x", max_bytes=9)) == (second.id, b"2")
    assert member_of(both, second.id).name == "two"
    assert member_of(one, "sb-1") is one and member_of(both, "three:sb-1") is both
    for sandbox in (first, second):
        sandbox.terminate()
    assert both.list({}) == []
    for wrong in ("three:sb-1", "sb-1", "two:sb-000000000000"):
        with pytest.raises(SandboxGone):
            both.attach(wrong).read("/workspace/x")


def test_a_fleet_claims_only_what_each_of_its_providers_keeps_to() -> None:
    strong = Capabilities(
        "vm", frozenset({"none", "open"}), True, True, True, snapshots=True, gpus=True, max_lifetime_s=60
    )
    weak = Capabilities("namespace", frozenset({"none"}), False, True, False, live_stdin=False, max_lifetime_s=90)

    class Named:
        def __init__(self, name: str, capabilities: Capabilities) -> None:
            self.name, self.capabilities = name, capabilities

    members: Any = (Member(Named("a", strong), 1), Member(Named("b", weak), 1))  # type: ignore[arg-type]
    assert Fleet(members, Healths(Clock())).name == "a+b"
    assert Fleet(members, Healths(Clock())).capabilities == Capabilities(
        "namespace", frozenset({"none"}), False, True, False, live_stdin=False, max_lifetime_s=60
    )


def test_one_that_does_not_answer_hides_nobody_elses_sandboxes(tmp_path: Path) -> None:
    one, two = sites(tmp_path)
    both = fleet(one, two)
    left = both.members[1].create(SandboxSpec("a", network="open"))
    one.silent = True
    assert [info.id for info in both.list({})] == [left.id]
    two.silent = True
    with pytest.raises(SandboxError, match="one does not answer"):
        both.list({})
    two.silent = False
    left.terminate()


def test_a_provider_without_room_is_passed_over_until_it_has_rested_and_the_task_says_so(
    tmp_path: Path, socket: Path
) -> None:
    one, two = sites(tmp_path, "completed")
    one.trouble = lambda: SandboxError("quota of 20 sandboxes is reached")
    clock = Clock()
    build = unchecked(tmp_path, socket, [done()], provider=fleet(one, two, clock=clock))
    with build.chat:
        runner = build.runner
        assert runner.run(build.task(), lambda: False).status is HandoffStatus.COMPLETE
        assert runner.run(build.task(id="r001-02"), lambda: False).status is HandoffStatus.COMPLETE
        assert (one.asked, two.asked, build.clock.slept) == (1, 2, [])
        clock.at, one.trouble = 16.0, lambda: None
        assert runner.run(build.task(id="r001-03"), lambda: False).status is HandoffStatus.COMPLETE
    runs = [build.ledger.run(f"r001-0{n}") for n in (1, 2, 3)]
    assert [run.provider for run in runs if run] == ["two", "two", "one"]
    assert [run.sandbox.partition(":")[0] for run in runs if run] == ["two", "two", "one"]
    first, second = runs[0], runs[1]
    assert first is not None and second is not None
    assert first.tried == ("one with builtin: no sandbox: quota of 20 sandboxes is reached",)
    assert first.route.startswith("one with builtin came to nothing")
    assert second.tried == () and second.route.startswith("one rests for 15 s (quota of 20 sandboxes is reached)")
    told = [event.line for event in BuildWatch(build.ledger).events() if event.kind == "moved"]
    assert told == ["r001-01 moved to two with builtin; one with builtin: no sandbox: quota of 20 sandboxes is reached"]
    assert one.list({}) == two.list({}) == []


def test_when_nobody_makes_a_sandbox_each_is_asked_in_every_attempt(tmp_path: Path, socket: Path) -> None:
    one, two = sites(tmp_path)
    one.trouble = lambda: SandboxError("outage")
    two.trouble = lambda: SandboxError("no room")
    build = unchecked(tmp_path, socket, [done()], provider=fleet(one, two))
    handoff = build.work()
    assert (handoff.status, handoff.concerns) == (HandoffStatus.FAILED, ["no room (tried 3 times)"])
    assert (one.asked, two.asked, build.clock.slept) == (3, 3, [2.0, 4.0])
    run = build.ledger.run(TASK)
    assert run is not None and len(run.tried) == 2


def test_a_refusal_by_one_is_no_refusal_by_all(tmp_path: Path, socket: Path) -> None:
    one, two = sites(tmp_path, "completed")
    one.trouble = lambda: SandboxRefused("no such image")
    build = unchecked(tmp_path, socket, [done()], provider=fleet(one, two))
    assert build.work().status is HandoffStatus.COMPLETE
    run = build.ledger.run(TASK)
    assert run is not None and run.provider == "two"


def test_a_worker_that_dies_with_nothing_done_is_tried_again_elsewhere(tmp_path: Path, socket: Path) -> None:
    one, two = sites(tmp_path)
    one.dies = True
    build = unchecked(tmp_path, socket, [calls(RAISE_PRICE), done()], provider=fleet(one, two))
    handoff = build.work()
    run = build.ledger.run(TASK)
    assert run is not None
    assert (handoff.status, handoff.files_changed) == (HandoffStatus.COMPLETE, ["app.py"])
    assert (run.provider, run.attempt, build.clock.slept) == ("two", 2, [2.0])
    assert run.tried[0].startswith("one with builtin: crashed, nothing done: the worker ended with exit code 137")
    assert one.list({}) == two.list({}) == []
    assert build.gateway.closed == [TASK, TASK]


def test_where_there_is_no_elsewhere_a_crash_is_told(tmp_path: Path, socket: Path) -> None:
    one, _ = sites(tmp_path)
    one.dies = True
    build = unchecked(tmp_path, socket, [done()], provider=one)
    assert build.work().status is HandoffStatus.FAILED
    assert (one.asked, build.clock.slept) == (1, [])


def test_a_harness_that_cannot_start_gives_way_to_the_next(tmp_path: Path, socket: Path) -> None:
    one, _ = sites(tmp_path)
    build = unchecked(tmp_path, socket, [done()], provider=one)
    with build.chat:
        parts = (build.ledger, build.request, build.provider, build.mirror, build.gateway, build.clock)
        handoff = WorkerRunner(*parts, missing=lambda harness, provider: "").run(build.task(), lambda: False)
    run = build.ledger.run(TASK)
    assert run is not None
    assert (handoff.status, run.harness, run.attempt) == (HandoffStatus.COMPLETE, "builtin", 2)
    assert run.tried[0].startswith("one with pi: ") and run.route.startswith("one with pi came to nothing")


def test_a_model_that_says_nothing_is_asked_once_more_and_then_the_planner_is_told(
    tmp_path: Path, socket: Path
) -> None:
    one, two = sites(tmp_path, "empty")
    build = unchecked(tmp_path, socket, [], provider=fleet(one, two))
    handoff = build.work()
    run = build.ledger.run(TASK)
    assert run is not None
    assert (handoff.status, run.harness_status, run.attempt) == (HandoffStatus.FAILED, "empty", 3)
    assert [line.partition(":")[0] for line in run.tried] == ["one with builtin", "two with builtin"]


def test_what_nobody_can_take_is_told_without_a_worker(tmp_path: Path, socket: Path) -> None:
    one, two = sites(tmp_path)
    build = unchecked(tmp_path, socket, [done()], provider=fleet(one, two), sandbox_gpu="A10")
    with build.chat:
        handoff = build.runner.run(build.task(needs=Needs(gpu="A10")), lambda: False)
        beyond = build.runner.run(build.task(id="r001-02", needs=Needs(network="open")), lambda: False)
    line = "it needs GPU A10, and one has no GPU, two has no GPU"
    assert (handoff.status, handoff.concerns) == (HandoffStatus.BLOCKED, [line])
    assert beyond.concerns == ["it needs network open (SANDBOX_NETWORK=none): more than this build's settings allow"]
    run = build.ledger.run(TASK)
    assert run is not None and (run.harness_status, run.error, run.sandbox) == ("unplaced", line, "")
    assert (one.asked, two.asked, build.gateway.opened, build.chat.asked) == (0, 0, [], [])


def test_a_need_is_met_by_whoever_can(tmp_path: Path, socket: Path) -> None:
    one, two = sites(tmp_path, "completed")
    two.able = {"gpus": True}
    build = unchecked(tmp_path, socket, [done()], provider=fleet(one, two), sandbox_gpu="A10")
    with build.chat:
        assert build.runner.run(build.task(needs=Needs(gpu="A10")), lambda: False).status is HandoffStatus.COMPLETE
    run = build.ledger.run(TASK)
    assert run is not None and (run.provider, run.route.partition(";")[0]) == ("two", "one has no GPU")
    assert two.gpu == "A10"


def test_what_a_killed_process_left_at_any_of_them_is_ended_first(tmp_path: Path, socket: Path) -> None:
    one, two = sites(tmp_path, "completed")
    both = fleet(one, two)
    both.members[1].create(SandboxSpec("left", tags={"build": BUILD, "task": TASK}, network="open"))
    build = unchecked(tmp_path, socket, [done()], provider=both)
    assert build.work().status is HandoffStatus.COMPLETE
    assert both.list({}) == []


def test_a_sweep_takes_whoever_makes_a_sandbox(tmp_path: Path, socket: Path) -> None:
    one, two = sites(tmp_path)
    one.trouble = lambda: SandboxError("outage")
    build = Build(tmp_path, socket, [], provider=fleet(one, two))
    build.mirror.fetch()
    with build.chat:
        parts = (build.ledger, build.request, build.provider, build.mirror, build.clock)
        sweep = run_sweep(*parts, build.base, 1, "", lambda: False)
    assert (sweep.error, sweep.green, one.asked, two.asked) == ("", True, 1, 1)


def test_a_handoff_that_does_not_fit_what_was_measured_says_so(tmp_path: Path, socket: Path) -> None:
    one, _ = sites(tmp_path)
    files = {"app.py": "A = 1\n", "Makefile": "test:\n\t@grep -q 'A = 1' app.py\n"}
    edit = ("edit", {"path": "app.py", "old_text": "A = 1", "new_text": "A = 2"})
    said = done("complete", "Updated app.py and created docs/price.md. All tests pass.", concerns=["dear"])
    build = Build(tmp_path, socket, [calls(edit), said], files=files, provider=one)
    assert build.work().concerns == [
        "checks-red: it says that tests or checks pass; measured on what it handed in: "
        "test red (exit code 2: make: *** [Makefile:2: test] Error 1)",
        "no-such-file: it says that it changed docs/price.md, and there is no such file",
        "dear",
    ]
