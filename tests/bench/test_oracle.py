"""The oracle plans one task for each module, writes it back, and plans again what came to nothing."""

import json
from typing import Any

import pytest
from restoring.oracle import ROUND, Oracle, to_redo

from longshot_dagster.adapters.host.shipped import prompt
from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import (
    Handoff,
    HandoffStatus,
    RepoState,
    Task,
    TaskKind,
)
from longshot_dagster.core.plan_reply import read_reply
from longshot_dagster.core.planner_messages import RoundFacts, first_message, follow_up
from longshot_dagster.core.planning import TaskReport
from longshot_dagster.core.working import user_message
from longshot_dagster.testing.answers import Answer, understand

SOURCES = {f"src/toy/m{n:02}.py": f"def f{n}():\n    return {n}\n" for n in range(ROUND + 3)}
STATE = RepoState(head="1" * 40, branch="main", files=1, tree=("a.py",), log=())


def key(number: int) -> IterationKey:
    return IterationKey("b", "root", number)


def ask(oracle: Oracle, role: str, *messages: str, answers: int = 0) -> Answer:
    said = [{"role": "system", "content": prompt(role)}, *({"role": "user", "content": m} for m in messages)]
    names = ("read", "write", "bash", "ls")
    body: dict[str, Any] = {
        "messages": [*said, *[{"role": "assistant", "content": "..."}] * answers],
        "tools": [{"type": "function", "function": {"name": n}} for n in names],
    }
    return oracle.reply(understand(body))


def planned(oracle: Oracle, message: str) -> list[Any]:
    reply = read_reply(ask(oracle, "root-planner", message, answers=1).content)
    assert reply.reply is not None and reply.problems == ()
    return list(reply.reply.tasks)


def task(name: str, path: str) -> Task:
    return Task(
        id=name,
        build="b",
        iteration="root.001",
        planner="root",
        kind=TaskKind.PLAN,
        description=f"Restore `{path}`\n\nAll of it.",
        scope=(path,),
        branch=f"worker/b/{name}",
    )


def report(name: str, path: str, status: HandoffStatus, landing: LandingState) -> TaskReport:
    outcome = LandingOutcome(task=name, state=landing, reason="the handoff is not complete")
    return TaskReport(task(name, path), Handoff(task_id=name, status=status, summary="s"), outcome)


def test_every_module_is_one_task_of_one_round() -> None:
    oracle = Oracle(SOURCES)
    assert [c.tool for c in ask(oracle, "root-planner", first_message(RoundFacts(key(1), "r", STATE))).calls] == ["ls"]
    rounds = [planned(oracle, first_message(RoundFacts(key(n), "r", STATE))) for n in (1, 2, 3)]
    assert [len(tasks) for tasks in rounds] == [ROUND, 3, 0]
    assert sorted(path for tasks in rounds for t in tasks for path in t.scope) == sorted(SOURCES)


def test_a_worker_reads_writes_and_looks_with_ordinary_tool_calls() -> None:
    oracle, path = Oracle(SOURCES), "src/toy/m07.py"
    message = user_message(task("r001-08", path))
    answers = [ask(oracle, "worker", message, answers=n) for n in range(4)]
    assert [[c.tool for c in a.calls] for a in answers] == [["read"], ["write"], ["bash"], []]
    assert json.loads(answers[1].calls[0].arguments) == {"path": path, "content": SOURCES[path]}
    assert json.loads(answers[3].content)["status"] == "complete"
    strange = json.loads(ask(oracle, "worker", user_message(task("r001-09", "setup.py"))).content)
    assert strange["status"] == "blocked"


def test_what_came_to_nothing_is_planned_again_and_what_is_under_way_is_not() -> None:
    paths = sorted(SOURCES)
    fresh = (
        report("r001-01", paths[0], HandoffStatus.PARTIAL, LandingState.WITHHELD),
        report("r001-02", paths[1], HandoffStatus.COMPLETE, LandingState.LANDED),
        report("r001-03", paths[2], HandoffStatus.COMPLETE, LandingState.CONFLICT),
        TaskReport(task("r001-09", paths[8]), Handoff(task_id="r001-09", status=HandoffStatus.FAILED, summary="s")),
    )
    older = (
        report("r001-04", paths[3], HandoffStatus.COMPLETE, LandingState.WITHHELD),
        report("r001-05", paths[4], HandoffStatus.FAILED, LandingState.NOOP),
        report("r001-06", paths[5], HandoffStatus.BLOCKED, LandingState.WITHHELD),
    )
    facts = RoundFacts(
        key(3), "r", STATE, previous=STATE, reports=fresh, unlanded=older, active=(task("r002-01", paths[5]),)
    )
    assert to_redo(follow_up(facts), SOURCES) == {
        paths[0]: ["r001-01"],
        paths[3]: ["r001-04"],
        paths[4]: ["r001-05"],
        paths[8]: ["r001-09"],
    }
    again = planned(Oracle(SOURCES), follow_up(facts))
    assert {(t.scope[0], *t.replaces) for t in again} == {
        (paths[0], "r001-01"),
        (paths[3], "r001-04"),
        (paths[4], "r001-05"),
        (paths[8], "r001-09"),
    }


@pytest.mark.parametrize("seed", range(4))
def test_as_many_workers_are_killed_as_was_asked_each_once_and_in_the_middle_of_its_work(seed: int) -> None:
    struck: list[str] = []

    def kill(name: str) -> bool:
        struck.append(name)
        return True

    oracle = Oracle(SOURCES, kill, victims=3, seed=seed)
    for _ in range(2):  # whoever redoes the module lives
        for n, path in enumerate(sorted(SOURCES)):
            for step in range(4):
                before = len(struck)
                ask(oracle, "worker", user_message(task(f"r001-{n:02}", path)), answers=step)
                assert len(struck) == before or step in (1, 2)
    assert len(struck) == len(set(struck)) == 3
    assert oracle.killed == struck


def test_a_worker_that_cannot_be_found_is_struck_at_its_next_answer() -> None:
    tries = iter([False, True])
    oracle = Oracle({"a.py": "a = 1\n"}, lambda _: next(tries), victims=1)
    message = user_message(task("r001-01", "a.py"))
    for step in (1, 2, 1, 2):
        ask(oracle, "worker", message, answers=step)
    assert oracle.killed == ["r001-01"]
