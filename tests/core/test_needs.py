"""What a plan may ask of the place a task is worked in, and what of it is refused."""

from typing import Any

import pytest

from longshot_dagster.core.models import PlannedTask
from longshot_dagster.core.needs import Needs, beyond, may_choose, missing_tools
from longshot_dagster.core.plan_reply import read_reply
from longshot_dagster.core.settings import Settings


def task(needs: object) -> str:
    import json

    return json.dumps({"scratchpad": "", "tasks": [{"description": "d", "scope": ["a.py"], "needs": needs}]})


def test_a_plan_says_what_a_task_needs_and_usually_nothing() -> None:
    read = read_reply(task({"tools": ["Browser", "go"], "memoryMb": 4096, "minutes": 20, "harness": "pi"}))
    assert read.reply is not None and read.problems == ()
    needs = read.reply.tasks[0].needs
    assert needs == Needs(tools=("browser", "go"), memory_mb=4096, minutes=20, harness="pi")
    assert needs is not None and needs.line == "4096 MB, 20 minutes, browser, go, harness pi"
    for nothing in (None, {}, {"network": "none"}):
        read = read_reply(task(nothing))
        assert read.reply is not None and read.reply.tasks[0].needs is None


@pytest.mark.parametrize(
    ("needs", "where"),
    [
        ({"ram": "16 GB"}, "tasks[0].needs.ram"),
        ({"network": "internet"}, "tasks[0].needs.network"),
        ({"memoryMb": "a lot"}, "tasks[0].needs.memoryMb"),
        ({"memoryMb": -1}, "tasks[0].needs.memoryMb"),
        ({"minutes": 10**30}, "tasks[0].needs.minutes"),
        ({"cpuCores": float("nan")}, "tasks[0].needs.cpuCores"),
        ({"gpu": "\x1b[31m"}, "tasks[0].needs.gpu"),
        ({"gpu": {"a": 1}}, "tasks[0].needs.gpu"),
        ({"tools": ["go", "GO"]}, "tasks[0].needs: a tool is named twice"),
        ({"tools": ["../../bin/sh"]}, "tasks[0].needs.tools"),
        ({"tools": [f"t{n}" for n in range(50)]}, "tasks[0].needs.tools"),
        ({"tools": "browser"}, "tasks[0].needs.tools"),
        ({"provider": "a b"}, "tasks[0].needs.provider"),
        ("a browser", "tasks[0].needs"),
        ([{}], "tasks[0].needs"),
    ],
)
def test_needs_that_cannot_be_understood_are_said_to_the_planner_in_one_short_line(needs: object, where: str) -> None:
    read = read_reply(task(needs))
    assert read.reply is not None and read.reply.tasks == []
    assert read.problems[0].startswith(where)
    assert all(len(p) < 400 and "\n" not in p and "\x1b" not in p for p in read.problems)


@pytest.mark.parametrize(
    ("needs", "settings", "said"),
    [
        ({"network": "open"}, {}, "network open (SANDBOX_NETWORK=none)"),
        ({"network": "open"}, {"sandbox_network": "allowlist"}, "network open (SANDBOX_NETWORK=allowlist)"),
        ({"network": "allowlist"}, {"sandbox_network": "open"}, ""),
        ({"memory_mb": 9000}, {}, "9000 MB (SANDBOX_MEMORY_MB=8192)"),
        ({"memory_mb": 8192, "cpu_cores": 4}, {}, ""),
        ({"cpu_cores": 8}, {}, "8 cores (SANDBOX_CPU_CORES=4)"),
        ({"minutes": 31}, {}, "31 minutes (WORKER_TIMEOUT=1800 s)"),
        ({"minutes": 30}, {}, ""),
        ({"gpu": "H100"}, {}, "GPU H100 (SANDBOX_GPU=none)"),
        ({"gpu": "h100"}, {"sandbox_gpu": "A10, H100"}, ""),
        ({"provider": "modal"}, {"sandbox_provider": "local"}, "provider modal (SANDBOX_PROVIDER=local)"),
        ({"provider": "modal"}, {"sandbox_provider": "modal:3,local:1"}, ""),
        ({"harness": "codex"}, {}, ""),
        ({"harness": "codex"}, {"harness": "pi"}, "harness codex (HARNESS=pi)"),
        ({"harness": "command"}, {}, "harness command (HARNESS=auto)"),
    ],
)
def test_a_plan_never_widens_what_the_settings_allow(needs: Any, settings: Any, said: str) -> None:
    assert beyond(Needs(**needs), Settings(**settings)) == ((said,) if said else ())


def test_a_harness_may_be_chosen_only_where_the_choice_is_open() -> None:
    assert may_choose("pi", Settings()) and not may_choose("auto", Settings())
    assert may_choose("codex", Settings(harness="codex")) and not may_choose("builtin", Settings(harness="codex"))


def test_a_tool_is_there_when_any_of_its_programs_is() -> None:
    needs = Needs(tools=("browser", "python", "go"))
    assert missing_tools(needs, {"firefox", "python3", "go"}) == ()
    assert missing_tools(needs, {"python3"}) == ("browser", "go")


def test_what_a_task_needs_is_kept_as_it_was_planned() -> None:
    planned = PlannedTask.model_validate({"description": "d", "scope": ["a"], "needs": {"memoryMb": 128}})
    again = PlannedTask.model_validate(planned.model_dump(mode="json"))
    assert again.needs == planned.needs == Needs(memory_mb=128)
