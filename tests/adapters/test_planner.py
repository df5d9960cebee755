"""Planning rounds against a real repository, a real gateway and a scripted endpoint."""

import contextlib
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from model_double import ModelDouble, Reply, calls, says, serving

from longshot_dagster.adapters.gateway.gateway_client import Gateway
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.ledger import BuildLedger, Ledger
from longshot_dagster.adapters.repository.mirror import Mirror
from longshot_dagster.adapters.workers.planner import Planner
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.endpoints import parse_endpoints
from longshot_dagster.core.errors import BudgetExhausted, BuildPaused, ModelUnavailable, PlanUnreadable
from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.landing_records import ConflictFile, LandingOutcome, LandingState
from longshot_dagster.core.models import (
    BuildRequest,
    CheckName,
    CheckResult,
    CheckStatus,
    Handoff,
    HandoffStatus,
    MetricsSnapshot,
    Plan,
    Sweep,
    Target,
    TargetKind,
    TaskKind,
)
from longshot_dagster.core.settings import Settings

FAST = {"rounds": 2, "backoff_s": 0.01, "max_wait_s": 0.05}


def git(folder: Path, *args: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *args], check=True, capture_output=True, text=True).stdout.strip()


def answer(*scopes: list[str], scratchpad: str = "my goals", **more: Any) -> str:
    tasks = [{"description": f"Make {s[0]}", "scope": s, "acceptance": "make test", **more} for s in scopes]
    return json.dumps({"scratchpad": scratchpad, "tasks": tasks})


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("origin") / "work"
    work.mkdir()
    git(work, "init", "-q", "-b", "main")
    for name, text in {
        "SPEC.md": "It must fly.\n",
        "src/a.py": "def old():\n    pass\n",
        "Makefile": "test:\n",
    }.items():
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).write_text(text, encoding="utf-8")
    git(work, "add", "-A")
    git(work, "-c", "user.name=A", "-c", "user.email=a@example.invalid", "commit", "-q", "-m", "Begin")
    bare = work.parent / "origin.git"
    git(work, "clone", "-q", "--bare", str(work), str(bare))
    return bare


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    found = Home(tmp_path_factory.mktemp("planner") / "home")
    yield found
    Gateway(found).stop()
    shutil.rmtree(found.runtime)


@dataclass
class Room:
    """One build, ready to plan."""

    ledger: BuildLedger
    planner: Planner
    mirror: Mirror
    gateway: Gateway
    model: ModelDouble

    def plan(self, planner: str = "root", number: int = 1) -> Plan:
        key = IterationKey(self.ledger.build, planner, number)
        self.ledger.open_iteration(key)
        state = self.ledger.repo_state(key) or self.mirror.repo_state(self.mirror.fetch())
        self.ledger.save_repo_state(key, state)
        return self.planner.plan(key, state, self.ledger.view())

    def frozen(self, planner: str = "root", number: int = 1) -> Plan:
        key = IterationKey(self.ledger.build, planner, number)
        plan = self.ledger.freeze_plan(key, self.plan(planner, number))
        self.ledger.save_metrics(key, MetricsSnapshot(iteration=key.short))
        return plan

    def finished(self, task: str, landing: LandingState = LandingState.LANDED, **more: Any) -> None:
        self.ledger.save_handoff(Handoff(task_id=task, status=HandoffStatus.COMPLETE, summary=f"{task} is made"))
        self.ledger.save_landing(LandingOutcome(task=task, state=landing, **more))

    def told(self, number: int = -1) -> str:
        return self.model.user_texts(number)[-1]


Script = Callable[[dict[str, Any], int], Reply]


@pytest.fixture
def room(home: Home, origin: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Room]]:
    build = "b-" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:10]
    with contextlib.ExitStack() as stack:

        def make(script: Script, **settings: Any) -> Room:
            model = stack.enter_context(serving(script))
            gateway = Gateway(home)
            gateway.ensure(parse_endpoints("", model.url, "sk-secret-key"), FAST)
            target = Target(
                repository=str(origin), url=str(origin), kind=TargetKind.REMOTE, base_branch="main", branch="main"
            )
            mirror = Mirror(Home(tmp_path / "home"), target)
            asked = BuildRequest(
                build=build,
                request="Build a toy",
                target=target,
                base=mirror.fetch(),
                settings=Settings(**settings),
                created_at=1.0,
            )
            ledger = Ledger(tmp_path / "builds").build(build)
            ledger.save_request(asked)
            return Room(ledger, Planner(ledger, asked, mirror, gateway, SystemClock()), mirror, gateway, model)

        yield make


def playing(*replies: Reply) -> Script:
    """The n-th request gets the n-th reply; the last one stays."""
    return lambda request, number: replies[min(number, len(replies)) - 1]


def test_a_first_plan_is_made_from_the_request_the_documents_and_a_look_at_the_code(room) -> None:
    at = room(
        playing(
            calls("read", path="src/a.py"),
            calls("git", args=["log", "--oneline"]),
            calls("read", path="../../etc/passwd"),
            calls("ls", path="src"),
            says("Here you go:\n```json\n" + answer(["src/b.py"], ["src/c.py"]) + "\n```"),
        )
    )
    plan = at.plan()
    assert [(t.id, t.scope) for t in plan.tasks] == [("r001-01", ("src/b.py",)), ("r001-02", ("src/c.py",))]
    assert (plan.iteration, plan.scratchpad, plan.notes) == ("root.001", "my goals", ())
    assert plan.tokens == at.gateway.usage(at.ledger.build, "planner-root").total == 5 * 120
    assert at.model.user_texts(0)[0].splitlines()[0] == "# Planning round root.001"
    assert "It must fly." in at.told()
    results = [m["content"] for m in at.model.requests[-1]["messages"] if m["role"] == "tool"]
    assert "def old()" in results[0]
    assert "Begin" in results[1]
    assert results[2].startswith("error: ")
    assert results[3] == "a.py"


def test_strict_endpoints_get_one_system_message_even_after_a_retry(room) -> None:
    at = room(playing(says("What a lovely task!"), says(answer(["src/b.py"]))))
    at.plan()
    for sent in at.model.requests:
        roles = [m["role"] for m in sent["messages"]]
        assert roles.count("system") == 1
        assert roles[0] == "system"
        assert "response_format" not in sent
        assert sent["max_tokens"] == 65_536
    assert at.model.requests[0]["messages"][0]["content"].startswith("You are Longshot's root planner.")
    assert at.model.requests[0]["model"] == "glm-5"
    assert "There is no plan in the answer" in at.told()


def test_a_saved_round_is_never_asked_again(room) -> None:
    at = room(playing(says(answer(["src/b.py"]))))
    first = at.plan()
    again = at.plan()
    assert again == first
    assert len(at.model.requests) == 1


def test_the_next_round_continues_the_conversation_with_what_changed(room) -> None:
    at = room(playing(says(answer(["src/b.py"], ["src/c.py"])), says(answer(["src/d.py"], scratchpad="second"))))
    at.frozen()
    at.finished("r001-01")
    at.finished("r001-02", LandingState.CONFLICT, conflicts=(ConflictFile(path="src/a.py", kind="contents"),))
    plan = at.plan(number=2)
    assert [t.id for t in plan.tasks] == ["r002-01"]
    assert plan.handoffs_seen == ("r001-01", "r001-02")
    told = at.model.requests[1]["messages"]
    assert [m["role"] for m in told] == ["system", "user", "assistant", "user"]
    text = at.told()
    assert text.splitlines()[0] == "# Planning round root.002"
    for words in ("r001-01 is made", "Conflicts in: src/a.py", "my goals", "Unchanged at"):
        assert words in text
    assert "It must fly." not in text


def test_a_long_conversation_is_sent_compacted_and_saved_whole(room) -> None:
    at = room(
        playing(says(answer(["src/b.py"], scratchpad="pad one")), *[says(answer(["src/c.py"], scratchpad="pad two"))])
    )
    at.frozen()
    at.finished("r001-01")
    key = IterationKey(at.ledger.build, "root", 1)
    turn = json.loads(at.ledger.planner_turn("root", 1) or b"{}")
    turn["messages"][1]["parts"][0]["content"] += " " * 80_000  # the first answer rambled on
    at.ledger.save_planner_turn("root", key.number, json.dumps(turn).encode())
    at.plan(number=2)
    sent = at.model.requests[1]["messages"]
    assert [m["role"] for m in sent] == ["system", "user"]
    text = sent[1]["content"]
    assert text.splitlines()[0] == "# Planning round root.002"
    assert "pad one" in text
    assert "It must fly." in text
    assert len(text) < 60_000
    saved = json.loads(at.ledger.planner_turn("root", 2) or b"{}")
    assert len(saved["messages"]) == 4
    assert len(json.dumps(saved)) > 80_000


def test_a_cut_off_answer_gives_its_complete_tasks_and_the_planner_is_told(room) -> None:
    cut = says(answer(["src/b.py"], ["src/c.py"])[:-30])
    cut.body["choices"][0]["finish_reason"] = "length"
    at = room(playing(cut, says(answer(["src/d.py"]))))
    plan = at.frozen()
    assert [t.scope for t in plan.tasks] == [("src/b.py",)]
    assert "cut off" in plan.notes[0]
    at.finished("r001-01")
    at.plan(number=2)
    assert "cut off" in at.told()


def test_overlapping_tasks_go_back_once_and_are_then_taken(room) -> None:
    at = room(playing(says(answer(["src/b.py"], ["src/b.py"]))))
    plan = at.plan()
    assert len(plan.tasks) == 2
    assert len(at.model.requests) == 2
    assert "tasks[0] and tasks[1] both change src/b.py" in at.told()


def test_a_first_root_round_without_tasks_is_unreadable_not_done(room) -> None:
    at = room(playing(says(answer())))
    with pytest.raises(PlanUnreadable, match="longshot resume"):
        at.plan()
    assert len(at.model.requests) == 4
    assert at.ledger.planner_turn("root", 1) is None


def test_prose_only_is_unreadable_in_one_line_that_quotes_it_plainly(room) -> None:
    at = room(playing(says("What a lovely [/bold]\x1b[31m\ntask!")))
    with pytest.raises(PlanUnreadable) as e:
        at.plan()
    assert "answered 4 times without a usable plan" in str(e.value)
    assert "What a lovely" in str(e.value)
    assert not any(c in str(e.value) for c in "\n\x1b")


EMPTY = says("")


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (Reply(401, {"error": {"message": "bad sk-secret-key"}}), ModelUnavailable, "refused the key (HTTP 401)"),
        (Reply(429, {}), ModelUnavailable, "is rate-limiting (HTTP 429)"),
        (Reply(500, {"error": {"message": "boom"}}), ModelUnavailable, "failed (HTTP 500: boom)"),
        (
            Reply(400, {"error": {"message": "no such field"}}),
            ModelUnavailable,
            "rejected the request (HTTP 400): no such",
        ),
        (Reply(200, b"<html>"), ModelUnavailable, "not as a model does"),
        (EMPTY, ModelUnavailable, "gave no usable answer"),
    ],
)
def test_a_model_that_does_not_answer_is_one_line_with_what_to_do(room, reply, kind, words) -> None:
    at = room(playing(reply))
    with pytest.raises(kind) as e:
        at.plan()
    line = str(e.value)
    assert words in line
    assert f"longshot resume {at.ledger.build}" in line
    assert "\n" not in line
    assert "sk-secret-key" not in line
    assert e.value.exit_code == 5


def test_an_endpoint_that_cannot_be_reached_or_hangs_is_named(room) -> None:
    at = room(playing(Reply(hang=True)), llm_timeout=1)
    with pytest.raises(ModelUnavailable, match=r"127\.0\.0\.1:\d+ gave no answer in time \(1 s\); raise LLM_TIMEOUT"):
        at.plan()


def test_a_gateway_that_has_gone_says_so(room, home: Home) -> None:
    at = room(playing(says(answer(["a.py"]))))
    at.gateway.stop()
    with pytest.raises(ModelUnavailable, match="longshot up"):
        at.plan()


def test_a_spent_budget_pauses_the_build(room) -> None:
    at = room(playing(calls("ls", path=".")), max_tokens_per_build=300)
    with pytest.raises(BudgetExhausted, match="MAX_TOKENS_PER_BUILD=300 is spent"):
        at.plan()
    assert len(at.model.requests) == 3


def test_a_model_that_looks_for_ever_is_stopped(room) -> None:
    at = room(playing(calls("ls", path=".")))
    at.planner = Planner(at.ledger, at.ledger.request(), at.mirror, at.gateway, SystemClock(), max_requests=4)
    with pytest.raises(BuildPaused, match="without end"):
        at.plan()
    assert len(at.model.requests) == 4


# --- subplanners -----------------------------------------------------------------------------------------------------

LARGE = ["src/p/", "src/q.py", "src/r.py", "tests/test_p.py"]


def test_a_subplanner_splits_its_task_inside_its_scope(room) -> None:
    at = room(
        playing(
            says(answer(LARGE)),
            says(answer(["src/p/x.py"], ["setup.py"])),
            says(answer(["src/p/x.py"], ["src/q.py"])),
            says(answer(scratchpad="all parts landed")),
        )
    )
    assert at.frozen().tasks[0].delegated
    plan = at.frozen("r001-01")
    assert [t.id for t in plan.tasks] == ["r001-01-001-01", "r001-01-001-02"]
    assert at.model.requests[1]["messages"][0]["content"].startswith("You are a Longshot subplanner.")
    assert "setup.py is outside your own scope" in at.told(2)
    assert "Your task r001-01" in at.model.user_texts(1)[0]
    for child in plan.tasks:
        at.finished(child.id)
    done = at.plan("r001-01", 2)
    assert (done.tasks, done.handoffs_seen) == ((), ("r001-01-001-01", "r001-01-001-02"))


def test_a_subplanner_that_sees_nothing_to_split_leaves_the_task_whole(room) -> None:
    at = room(playing(says(answer(LARGE)), says(answer())))
    at.frozen()
    plan = at.frozen("r001-01")
    assert [(t.id, t.delegated) for t in plan.dispatched] == [("r001-01", False)]


def test_a_subplanner_that_insists_on_foreign_files_loses_those_tasks_or_all(room) -> None:
    at = room(lambda request, number: says(answer(LARGE) if number == 1 else answer(["src/q.py"], ["setup.py"])))
    at.frozen()
    plan = at.plan("r001-01")
    assert [t.scope for t in plan.tasks] == [("src/q.py",)]
    assert "setup.py is outside" in plan.notes[0]
    assert len(at.model.requests) == 5


def test_a_subplanner_with_nothing_but_foreign_files_is_unreadable(room) -> None:
    at = room(lambda request, number: says(answer(LARGE) if number == 1 else answer(["setup.py"])))
    at.frozen()
    with pytest.raises(PlanUnreadable, match="outside your own scope"):
        at.plan("r001-01")


# --- fix rounds ------------------------------------------------------------------------------------------------------


def red(number: int, at: Room) -> Sweep:
    check = CheckResult(
        name=CheckName.TEST, command="make test", status=CheckStatus.RED, exit_code=1, output="TypeError: y"
    )
    return Sweep(number=number, head=at.mirror.fetch(), checks=(check,), started_at=1, ended_at=2)


def green(number: int, at: Room) -> Sweep:
    check = CheckResult(name=CheckName.TEST, command="make test", status=CheckStatus.GREEN, exit_code=0)
    return Sweep(number=number, head=at.mirror.fetch(), checks=(check,), started_at=1, ended_at=2)


def test_a_conflict_becomes_a_fix_task_without_asking_a_model(room) -> None:
    at = room(playing(says(answer(["src/b.py"], ["src/c.py"]))))
    at.frozen()
    at.finished("r001-01")
    at.finished(
        "r001-02",
        LandingState.CONFLICT,
        conflicts=(ConflictFile(path="src/b.py", kind="contents", merged="<<<<<<< x"),),
        conflict_with=("r001-01",),
    )
    plan = at.plan("fix")
    (fix,) = plan.tasks
    assert (fix.id, fix.kind, fix.replaces, fix.scope) == (
        "f001-01",
        TaskKind.CONFLICT_FIX,
        ("r001-02",),
        ("src/b.py", "src/c.py"),
    )
    assert "Make src/b.py" in fix.description
    assert (plan.sweep, plan.tokens) == (None, 0)
    assert len(at.model.requests) == 1


def test_a_red_sweep_is_answered_by_the_reconciler_once(room) -> None:
    many = answer(*[[f"src/f{n}.py"] for n in range(7)])
    at = room(playing(says(answer(["src/b.py"])), says(many)))
    at.frozen()
    at.ledger.save_sweep(green(1, at))
    at.ledger.save_sweep(red(2, at))
    plan = at.plan("fix")
    assert [t.id for t in plan.tasks] == [f"f001-0{n}" for n in range(1, 6)]
    assert {t.kind for t in plan.tasks} == {TaskKind.CHECK_FIX}
    assert plan.sweep == 2
    assert at.model.requests[1]["messages"][0]["content"].startswith("You are Longshot's reconciler.")
    assert at.told().splitlines()[0] == "# Fix round fix.001"
    assert "TypeError: y" in at.told()
    assert at.plan("fix") == plan
    assert len(at.model.requests) == 2


def test_a_sweep_counts_as_answered_when_the_reconciler_has_no_task(room) -> None:
    at = room(playing(says(answer(["src/b.py"])), says('{"tasks": []}')))
    at.frozen()
    at.ledger.save_sweep(green(1, at))
    at.ledger.save_sweep(red(2, at))
    plan = at.plan("fix")
    assert (plan.tasks, plan.sweep) == ((), 2)
