"""`longshot cancel`, `retry` and `continue` as a person meets them: what they say, change and return."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from told import OID, a_build, own_home

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.ledger import BuildLedger
from longshot_dagster.adapters.stack.dagster_api import ActiveRun, DagsterApi
from longshot_dagster.cli import following, resuming, steering
from longshot_dagster.cli.main import run
from longshot_dagster.core.errors import LongshotError
from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import (
    BuildPhase,
    Handoff,
    HandoffStatus,
    MetricsSnapshot,
    Plan,
    Task,
)

BUILD = "todo-0001"
ONE, TWO, THREE, PART = "r001-01", "r001-02", "r001-03", "r001-03-001-01"


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BuildLedger:
    """A build with a landed task, one that nobody has handed in, and one that a subplanner has made a part of."""
    made = a_build(own_home(tmp_path, monkeypatch), BUILD)
    plan(made, IterationKey(BUILD, "root", 1), task(ONE), task(TWO), task(THREE, delegated=True))
    plan(made, IterationKey(BUILD, THREE, 1), task(PART, planner=THREE))
    hand_in(made, ONE, HandoffStatus.COMPLETE, LandingState.LANDED)
    return made


def plan(ledger: BuildLedger, key: IterationKey, *tasks: Task) -> None:
    ledger.open_iteration(key)
    ledger.freeze_plan(key, Plan(iteration=key.short, base=OID, tasks=tasks))


def task(name: str, planner: str = "root", delegated: bool = False) -> Task:
    return Task(
        id=name,
        build=BUILD,
        iteration="root.001",
        planner=planner,
        description="Do it",
        scope=("a.py",),
        branch=f"worker/{BUILD}/{name}",
        delegated=delegated,
    )


def hand_in(ledger: BuildLedger, name: str, status: HandoffStatus, state: LandingState, reason: str = "") -> None:
    ledger.save_handoff(
        Handoff(task_id=name, status=status, summary=f"{name} is done \x1b[31m", files_changed=["a.py"])
    )
    ledger.save_landing(LandingOutcome(task=name, state=state, reason=reason))


def finished(ledger: BuildLedger) -> None:
    ledger.update_state(lambda s: s.moved(BuildPhase.FINALIZING).moved(BuildPhase.FINISHED))


# --- cancel ----------------------------------------------------------------------------------------------------------


def test_a_paused_build_that_is_cancelled_waits_for_nothing_any_more(ledger, capsys):
    ledger.update_state(lambda s: s.paused("no endpoint answers"))
    assert run(["cancel", BUILD]) == 0
    assert (ledger.state().phase, ledger.state().reason) == (BuildPhase.PAUSED, "cancelled by hand")


def test_a_build_is_cancelled_without_a_stack_and_as_often_as_one_likes(ledger, capsys):
    ledger.save_interrupted(Handoff(task_id=TWO, status=HandoffStatus.PARTIAL, summary="half"))
    assert run(["cancel", BUILD]) == 0
    how = f"the work of 1 task so far is kept; to go on: longshot resume {BUILD}"
    assert capsys.readouterr().out.splitlines() == [f"{BUILD} is cancelled", how]
    assert (ledger.state().phase, ledger.state().reason) == (BuildPhase.PAUSED, "cancelled by hand")
    assert run(["cancel", BUILD]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{BUILD} was paused already", how]
    assert run(["cancel", BUILD, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"build": BUILD, "phase": "paused", "reason": "cancelled by hand", "kept": [TWO]}


def test_a_task_is_marked_and_handed_in_by_whoever_comes_to_it(ledger, capsys):
    assert run(["cancel", TWO]) == 0  # bare: one build alone has it
    assert capsys.readouterr().out == (
        f"{TWO} is cancelled, and handed in as soon as a slot is free; nothing of it lands\n"
    )
    assert ledger.cancel_requested(TWO)
    run(["status", BUILD, "--json"])
    tasks = {t["task"]: t["handoff"] for t in json.loads(capsys.readouterr().out)["task_list"]}
    assert tasks[TWO] == "(cancelled)"
    ledger.update_state(lambda s: s.paused("lunch"))
    assert run(["cancel", f"{BUILD}.{TWO}"]) == 0
    assert capsys.readouterr().out == f"{TWO} is cancelled; longshot resume {BUILD} hands it in without working on it\n"


def test_a_task_that_is_handed_in_while_it_is_being_cancelled_is_not_said_to_be_cancelled(ledger, capsys, monkeypatch):
    request = BuildLedger.request_cancel

    def too_late(self: BuildLedger, name: str, at: float) -> None:
        hand_in(ledger, name, HandoffStatus.COMPLETE, LandingState.LANDED)
        request(self, name, at)

    monkeypatch.setattr(BuildLedger, "request_cancel", too_late)
    assert run(["cancel", TWO]) == 0
    assert capsys.readouterr().out.startswith(f"{TWO} was handed in as complete at that very moment")


def test_a_subplanners_task_is_cancelled_in_its_parts(ledger, capsys):
    assert run(["cancel", THREE, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"build": BUILD, "tasks": [{"task": PART, "handoff": None, "files_changed": []}]}
    assert ledger.cancel_requested(PART) and not ledger.cancel_requested(THREE)
    hand_in(ledger, PART, HandoffStatus.PARTIAL, LandingState.WITHHELD)
    assert run(["cancel", THREE]) == 2


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("nope", "no build 'nope' here"),
        (f"{BUILD}.r009-09", f"build {BUILD} has no task 'r009-09'"),
        ("r009-09", "no build here has a task 'r009-09'"),
        (ONE, f"{BUILD}.{ONE} has landed; longshot undo {BUILD}.{ONE} takes it back"),
    ],
)
def test_what_cannot_be_cancelled_is_one_line(ledger, capsys, name, line):
    assert run(["cancel", name]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(f"longshot: {line}") and said.err.count("\n") == 1
    assert ledger.state().phase is BuildPhase.RUNNING


def test_a_finished_build_has_nothing_to_cancel(ledger, capsys):
    finished(ledger)
    for name in (BUILD, TWO):
        assert run(["cancel", name]) == 2
        assert capsys.readouterr().err.startswith(f"longshot: {BUILD} has finished; there is nothing to cancel")
    assert not ledger.cancel_requested(TWO)


class Runs(DagsterApi):
    """A stack in which runs end when they are told to, or only when they are told to at once."""

    def __init__(self, *partitions: str, deaf: bool = False) -> None:
        self.left, self.deaf = list(partitions), deaf
        self.told: list[tuple[Sequence[str], bool]] = []

    def active(self) -> list[ActiveRun]:
        return [ActiveRun(p, "STARTED", "j", {"dagster/partition": p}) for p in self.left]

    def terminate(self, run_ids: Sequence[str], *, now: bool = False) -> None:
        self.told.append((run_ids, now))
        if now or not self.deaf:
            self.left = [p for p in self.left if p not in run_ids]


def test_only_the_builds_own_runs_are_ended_politely_first(monkeypatch):
    api = Runs("b.root.001", "b.r001-02", "b", "other.root.001", "b2.root.001")
    following.end_runs("b", api)
    assert api.told[0] == (["b.root.001", "b.r001-02", "b"], False)
    assert api.left == ["other.root.001", "b2.root.001"]
    monkeypatch.setattr(following, "runs_end_s", lambda workers: 0.0)
    deaf = Runs("b.root.001", deaf=True)
    following.end_runs("b", deaf)
    assert deaf.told == [(["b.root.001"], False), (["b.root.001"], True)] and deaf.left == []


# --- retry -----------------------------------------------------------------------------------------------------------


class Stack(DagsterApi):
    """A stack that does to the task what `work` says as soon as it is asked to."""

    def __init__(self, work: Callable[[], None], ends: str = "SUCCESS", failure: str = "") -> None:
        self.work, self.ends, self.why = work, ends, failure
        self.asked: list[tuple[str, bool, Mapping[str, str]]] = []
        self.ended: list[str] = []

    def materialize_task(self, partition: str, *, again: bool, tags: Mapping[str, str]) -> str:
        self.asked.append((partition, again, tags))
        self.work()
        return "run-1"

    def status(self, run_id: str) -> str:
        if self.ends == "interrupted" and not self.ended:
            raise KeyboardInterrupt
        return "CANCELED" if self.ended else self.ends

    def failure(self, run_id: str) -> tuple[str, str]:
        return "ModelUnavailable", self.why

    def terminate(self, run_ids: Sequence[str], *, now: bool = False) -> None:
        self.ended += run_ids


@pytest.mark.parametrize(
    ("status", "state", "code", "line"),
    [
        (HandoffStatus.COMPLETE, LandingState.LANDED, 0, f"{TWO} landed: because"),
        (HandoffStatus.COMPLETE, LandingState.NOOP, 0, f"{TWO} had nothing to land: because"),
        (HandoffStatus.COMPLETE, LandingState.CONFLICT, 3, f"{TWO} conflict: because"),
        (HandoffStatus.BLOCKED, LandingState.WITHHELD, 3, f"{TWO} withheld: because"),
    ],
)
def test_the_exit_code_of_a_retry_says_whether_it_landed(ledger, capsys, status, state, code, line):
    finished(ledger)
    stack = Stack(lambda: hand_in(ledger, TWO, status, state, "because"))
    assert steering.retry_in(stack, ledger, TWO, detach=False, as_json=False) == code
    assert stack.asked == [(f"{BUILD}.{TWO}", True, {"longshot/build": BUILD})]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{TWO} goes to a new worker"
    assert lines[1].startswith(f"{TWO} handed in {status.value}: {TWO} is done") and "\x1b" not in lines[1]
    assert lines[2] == line
    assert lines[3].endswith(f"is finalized anew; to see how: longshot watch {BUILD}")


def test_a_retry_for_a_program_is_one_document(ledger, capsys):
    stack = Stack(lambda: hand_in(ledger, TWO, HandoffStatus.COMPLETE, LandingState.LANDED))
    assert steering.retry_in(stack, ledger, TWO, detach=False, as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["task"], found["run"], found["handoff"], found["landing"]) == (TWO, "run-1", "complete", "landed")
    assert steering.retry_in(stack, ledger, TWO, detach=True, as_json=True) == 0
    assert json.loads(capsys.readouterr().out) == {"build": BUILD, "task": TWO, "run": "run-1"}


def test_a_retry_that_fails_or_is_interrupted_says_that_the_task_is_as_it_was(ledger, capsys):
    hand_in(ledger, TWO, HandoffStatus.FAILED, LandingState.WITHHELD, "the handoff is failed")
    broken = Stack(lambda: None, ends="FAILURE", failure="no endpoint answers")
    assert steering.retry_in(broken, ledger, TWO, detach=False, as_json=False) == 3
    assert capsys.readouterr().out.splitlines()[1] == (
        f"{TWO} was not worked on to its end, and is as it was: no endpoint answers"
    )
    stopped = Stack(lambda: None, ends="interrupted")
    assert steering.retry_in(stopped, ledger, TWO, detach=False, as_json=False) == 130
    assert stopped.ended == ["run-1"]
    assert capsys.readouterr().out.splitlines()[1] == (
        f"interrupted; {TWO} is as it was; to try again: longshot retry {BUILD}.{TWO}"
    )


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (BUILD, f"{BUILD!r} is a build; name one of its tasks"),
        (ONE, f"{BUILD}.{ONE} has landed; what has landed is not worked on again"),
        (TWO, f"{BUILD}.{TWO} was not handed in yet; a worker takes it up by itself"),
        (THREE, f"{THREE} is its subplanner's, no worker's; parts that did not land: {PART}"),
    ],
)
def test_what_cannot_be_tried_again_is_one_line_before_anything_starts(ledger, tmp_path, capsys, name, line):
    assert run(["retry", name]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(f"longshot: {line}") and said.err.count("\n") == 1
    assert not (tmp_path / "home" / "stack.json").exists()


def test_a_task_that_is_being_redone_is_not_tried_again_beside_it(ledger, capsys):
    hand_in(ledger, TWO, HandoffStatus.COMPLETE, LandingState.CONFLICT)
    fix = task("f001-01", planner="fix").model_copy(update={"replaces": (TWO,)})
    plan(ledger, IterationKey(BUILD, "fix", 1), fix)
    assert run(["retry", TWO]) == 2
    assert f"{BUILD}.{TWO} is being redone as task f001-01" in capsys.readouterr().err


def test_a_task_whose_iteration_ended_without_it_may_be_tried_again(ledger, capsys):
    """Its retry was killed with its machine: nobody else would ever hand it in."""
    ledger.save_metrics(IterationKey(BUILD, "root", 1), MetricsSnapshot(iteration="root.001"))
    assert run(["retry", TWO]) == 2
    assert "no model endpoint is configured" in capsys.readouterr().err


# --- continue --------------------------------------------------------------------------------------------------------


def test_a_task_whose_retry_was_killed_is_taken_up_again_with_its_build(ledger, tmp_path):
    class Resumed(Runs):
        def materialize_task(self, partition: str, *, again: bool, tags: Mapping[str, str]) -> str:
            asked.append((partition, again, tags))
            return "run-1"

    asked: list[tuple[str, bool, Mapping[str, str]]] = []
    ledger.update_state(lambda s: s.paused("lunch"))
    resuming.wake(Home(tmp_path / "home"), ledger, Resumed())
    assert asked == [] and ledger.state().attempts["root.001"] == 2  # its iteration does it
    ledger.save_metrics(IterationKey(BUILD, "root", 1), MetricsSnapshot(iteration="root.001"))
    for runs in (Resumed(f"{BUILD}.{TWO}"), Resumed()):
        ledger.update_state(lambda s: s.paused("lunch"))
        resuming.wake(Home(tmp_path / "home"), ledger, runs)
    assert asked == [(f"{BUILD}.{TWO}", False, {"longshot/build": BUILD})]


def test_a_finished_build_is_shown_and_nothing_goes_on(ledger, tmp_path, capsys):
    finished(ledger)
    assert run(["continue", BUILD]) == run(["resume", BUILD]) != 0
    assert f"{BUILD} has finished already" in capsys.readouterr().out
    assert not (tmp_path / "home" / "stack.json").exists()


def test_continuing_needs_an_endpoint_and_changes_nothing_without_one(ledger, capsys):
    ledger.update_state(lambda s: s.paused("lunch"))
    assert run(["continue", BUILD]) == 2
    assert "no model endpoint is configured" in capsys.readouterr().err
    assert ledger.state().reason == "lunch"


def test_an_api_that_is_gone_keeps_no_build_from_being_paused():
    class Gone(Runs):
        def active(self) -> list[ActiveRun]:
            raise LongshotError("nothing answers")

    following.end_runs("b", Gone())
