"""Every kind of nothing done with which the reference exits 0, and what this machine says of it instead.

The reference was built and run; each test quotes the line that was written down about it. Three of them are played again
through the whole loop in test_loop.py (`test_a_model_that_gives_nothing_usable_pauses_the_build_and_nothing_says_green`);
here each is played at the lowest level at which it is still the real machine that answers.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "adapters"))
from repositories import World, bare, files_at
from worked import APP, TEST, Build

from longshot_dagster.adapters.ledger.ledger import BuildLedger
from longshot_dagster.adapters.workers.planner import Planner
from longshot_dagster.adapters.workers.sweeper import run_sweep
from longshot_dagster.cli.following import conclude, follow, interruptible
from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import (
    BuildPhase,
    BuildState,
    CheckName,
    CheckResult,
    CheckStatus,
    Handoff,
    HandoffStatus,
    MetricsSnapshot,
    Plan,
    Sweep,
    Task,
)
from longshot_dagster.core.report import exit_code, headline, make_report
from longshot_dagster.core.settings import Settings
from longshot_dagster.defs.finalize import build_report, finalize
from longshot_dagster.defs.pausing import pausing
from longshot_dagster.defs.resources import BuildTools, LongshotResource

FILES = {"README.md": "hello\n"}


@pytest.fixture
def socket() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="ls-"))  # a unix socket's path is short
    yield folder / "model.sock"
    shutil.rmtree(folder)


def waiting(tmp_path: Path, tasks: int, landed: int = 0, **settings: Any) -> World:
    """A build whose planner is done; of its finished branches `landed` have landed and the others wait."""
    origin = bare(tmp_path / "origin.git", FILES)
    world = World(tmp_path, origin, Settings(merge_strategy="rebase", **settings))
    made = [world.task(f"r001-{n:02d}", (f"src/{n}.py",)) for n in range(1, tasks + 1)]
    world.plan(*made)
    for n, task in enumerate(made, 1):
        world.worked(task, {f"src/{n}.py": f"n = {n}\n"})
        if n <= landed:
            world.queue().land(task)
    second = IterationKey(world.build, "root", 2)
    world.ledger.open_iteration(second)
    seen = tuple(t.id for t in made)
    world.ledger.freeze_plan(
        second, Plan(iteration=second.short, tasks=(), base=world.request.base, handoffs_seen=seen)
    )
    for key in world.ledger.iterations():
        world.ledger.save_metrics(key, MetricsSnapshot(iteration=key.short))
    return world


def last_lines(world: World | Build, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """(exit code, what is printed) at the end of `longshot "..."`."""
    return conclude(world.home, world.ledger, stays=False), capsys.readouterr().out


# --- the planner -----------------------------------------------------------------------------------------------------

PLAN = json.dumps({"scratchpad": "s", "tasks": [{"description": "Make it", "scope": ["a.py"], "acceptance": "test"}]})


def answer(text: str, finish: str = "stop") -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        pytest.param(answer("What a lovely idea!"), "without a usable plan", id="prose"),
        pytest.param((500, {"error": {"message": "boom"}}), "until the endpoint is well", id="http-500"),
        pytest.param(answer('{"scratchpad": "", "tasks": []}'), "without a usable plan", id="empty-first-plan"),
        pytest.param(answer(PLAN[:40], "length"), "without a usable plan", id="cut-off"),
    ],
)
def test_a_planner_that_plans_nothing_pauses_the_build(
    tmp_path: Path, socket: Path, capsys: pytest.CaptureFixture[str], reply: Any, said: str
) -> None:
    """The reference: "LLM answers prose: 'Planning complete', finalization PASSED, exit 0, no task, no retry"; "LLM answers
    HTTP 500: same: exit 0, 'all green'"; "unparsable answer = empty plan = run ends with exit 0" (planner.ts, shared.ts).
    """
    build = Build(tmp_path, socket, [reply])
    key = IterationKey(build.ledger.build, "root", 1)
    build.ledger.open_iteration(key)
    state = build.mirror.repo_state(build.mirror.fetch())
    planner = Planner(build.ledger, build.request, build.mirror, build.gateway, build.clock)
    with build.chat, pytest.raises(dg.Failure), pausing(build.ledger, key, 1):
        planner.plan(key, state, build.ledger.view())
    code, printed = last_lines(build, capsys)
    assert code == 5
    assert said in printed
    assert f"longshot resume {build.ledger.build}" in printed
    assert "green" not in printed


# --- finished branches -----------------------------------------------------------------------------------------------


def test_without_finalization_what_is_finished_lands_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reference: "FINALIZATION_ENABLED=false, planner call takes 20 s, 20 tasks: 6 of 20 landed, 14 finished branches
    silently dropped, exit 0" (orchestrator.ts). The queue, the mirror and the target are the real ones.
    """
    world = waiting(tmp_path, 6, landed=2, finalization_enabled=False)
    assert len(files_at(world.origin)) == 1 + 2
    report = finalize(BuildTools(world.home, world.build), 1, lambda: False)
    assert report is not None
    assert (report.landed, report.leftovers, report.health) == (6, (), "unchecked")
    assert set(files_at(world.origin)) == {"README.md", *(f"src/{n}.py" for n in range(1, 7))}
    code, printed = last_lines(world, capsys)
    assert code == 3, "everything landed, and nobody has checked it"
    assert "6 of 6 tasks landed, result unchecked" in printed
    assert "green" not in printed


class NoRuns:
    """A stack in which nothing of the build runs."""

    def active(self) -> list[Any]:
        return []

    def terminate(self, runs: Sequence[str], *, now: bool = False) -> None:
        assert not list(runs)


class Interrupting(io.StringIO):
    """A terminal at which somebody loses patience with the first line."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number: int | None = number

    def write(self, text: str) -> int:
        written = super().write(text)
        number, self.number = self.number, None
        if number is not None:
            os.kill(os.getpid(), number)
        return written


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_whoever_ends_it_is_told_how_to_go_on_and_no_finished_branch_is_lost(
    tmp_path: Path, number: signal.Signals
) -> None:
    """The reference: "SIGTERM with 30 branches waiting: exit 0 after final summary, nothing resumable"; "Ctrl-C prints
    summary and exits 0" (main.ts, main.py).
    """
    world = waiting(tmp_path, 3)
    terminal = Interrupting(number)
    with interruptible(), contextlib.redirect_stdout(terminal):
        code = follow(world.home, world.build, NoRuns())  # type: ignore[arg-type]
    assert code == 130
    last = terminal.getvalue().splitlines()[-1]
    assert f"longshot resume {world.build}" in last
    assert "green" not in terminal.getvalue()
    assert world.ledger.state().phase is BuildPhase.PAUSED
    world.ledger.update_state(lambda s: s.moved(BuildPhase.RUNNING))  # what `longshot resume` does
    assert [o.state for o in world.queue().drain()] == [LandingState.LANDED] * 3
    assert len(files_at(world.origin)) == 1 + 3


def test_a_target_that_refuses_main_pauses_the_build_and_nothing_counts_as_landed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reference: "push failure only logged (branch counted merged)" (merge-queue.ts), in its recorded run "main was
    never pushed to origin".
    """
    world = waiting(tmp_path, 2)
    refuse = world.origin / "hooks" / "pre-receive"
    refuse.parent.mkdir(exist_ok=True)
    refuse.write_text("#!/bin/sh\necho main is protected >&2\nexit 1\n")
    refuse.chmod(0o755)
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("builds", [world.build])
        done = dg.materialize(
            [build_report],
            instance=instance,
            partition_key=world.build,
            resources={"longshot": LongshotResource(home=str(world.home.root))},
            raise_on_error=False,
        )
    assert not done.success
    assert {world.ledger.landing(t).state for t in world.ledger.task_ids()} == {LandingState.QUEUED}  # type: ignore[union-attr]
    code, printed = last_lines(world, capsys)
    assert code == 5
    assert "main is protected" in printed
    assert set(files_at(world.origin)) == set(FILES)


# --- checks ----------------------------------------------------------------------------------------------------------


def ended(ledger: BuildLedger, sweep: Sweep) -> tuple[int, str]:
    """(exit code, headline) of a build whose one task has landed, and whose last sweep is this one."""
    done = Task(
        id="r001-01",
        build=ledger.build,
        iteration="root.001",
        planner="root",
        description="d",
        scope=("app.py",),
        branch="w",
    )
    report = make_report(
        ledger.request(),
        tasks=(done,),
        handoffs={done.id: Handoff(task_id=done.id, status=HandoffStatus.COMPLETE, summary="done")},
        landings={done.id: LandingOutcome(task=done.id, state=LandingState.LANDED)},
        runs=(),
        plans=(Plan(iteration="root.001", tasks=(done,), base=sweep.head),),
        sweep=sweep,
        head=sweep.head,
        finalization_attempts=3,
        now=2.0,
    )
    return exit_code(BuildState(phase=BuildPhase.FINISHED, verdict=report.verdict), report), headline(report)


@pytest.mark.parametrize(
    "command", ["echo npm ERR! missing script: build >&2; exit 1", "no-such-tool-anywhere --check"]
)
def test_a_check_that_fails_in_its_own_words_is_red(tmp_path: Path, socket: Path, command: str) -> None:
    """The reference: "any npm error without 'error TS' counts as 'not configured' = green" (reconciler.ts)."""
    files = {"app.py": APP, "test_app.py": TEST}
    build = Build(tmp_path, socket, [], files=files, check_compile=command, check_test="none")
    head = build.mirror.fetch()
    with build.chat:
        sweep = run_sweep(
            build.ledger, build.request, build.provider, build.mirror, build.clock, head, 1, "", lambda: False
        )
    assert [c.status for c in sweep.checks if c.name is CheckName.COMPILE] == [CheckStatus.RED]
    code, said = ended(build.ledger, sweep)
    assert code == 4
    assert "checks RED (compile is red" in said


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"conflict_markers": ("app.py",)}, 4, "checks RED (conflict markers in app.py)"),
        ({"checks": ()}, 3, "result unchecked (the repository offers no check to run)"),
    ],
)
def test_markers_on_main_or_no_check_at_all_are_never_green(
    tmp_path: Path, change: dict[str, Any], code: int, said: str
) -> None:
    """The reference: "conflict markers do not affect `passed`" (orchestrator.ts); no test script counts as passed."""
    world = World(tmp_path, bare(tmp_path / "origin.git", FILES))
    green = CheckResult(name=CheckName.TEST, command="make test", status=CheckStatus.GREEN)
    sweep = Sweep(number=1, head=world.main(), checks=(green,), started_at=1, ended_at=2)
    assert ended(world.ledger, sweep) == (0, "1 of 1 tasks landed, checks green")
    found = ended(world.ledger, sweep.model_copy(update=change))
    assert found == (code, f"1 of 1 tasks landed, {said}")


def test_a_build_without_a_report_never_exits_0() -> None:
    assert {p.value: exit_code(BuildState(phase=p), None) for p in BuildPhase} == {
        "running": 130,
        "paused": 5,
        "finalizing": 130,
        "finished": 130,
    }
