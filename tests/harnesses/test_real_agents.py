"""Pi, OpenCode, Codex and Claude Code as npm installs them, in local sandboxes without a network: each does a task through
the relay and the gateway against the scripted model, and fails as it should when the model does.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from longshot_dagster.adapters.gateway.gateway_client import Gateway
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.host.shipped import prompt
from longshot_dagster.adapters.sandboxes.sandbox_local import LocalProvider
from longshot_dagster.adapters.workers.harness_layers import HarnessLayers
from longshot_dagster.adapters.workers.order_run import Delivery, carry_out
from longshot_dagster.core import contract
from longshot_dagster.core.contract import WorkOrder
from longshot_dagster.core.endpoints import parse_endpoints
from longshot_dagster.core.models import CheckName, CheckStatus
from longshot_dagster.core.sandbox import SandboxSpec
from longshot_dagster.core.settings import Isolation, Settings
from longshot_dagster.core.usage import Usage
from longshot_dagster.testing.script import Script
from longshot_dagster.testing.scripted_model import ScriptedModel

AGENTS = ("pi", "opencode", "codex", "claude-code")
ANSWER_S = 5
GUIDANCE = "Names are in English; this line is the guidance of the base."
CALC = "def add(a, b):\n    return a + b\n"
TEST = "import unittest\nimport calc\n\n\nclass T(unittest.TestCase):\n    def test_add(self):\n        self.assertEqual(calc.add(2, 3), 5)\n"
SCRIPT = {
    "workers": [
        {
            "match": "^Write a calculator",
            "steps": [
                [{"read": "README.md"}],
                [{"write": {"path": "calc.py", "content": CALC}}],
                [{"write": {"path": "test_calc.py", "content": TEST}}],
                [{"bash": "python3 -m unittest -v"}],
            ],
            "final": {
                "status": "complete",
                "summary": "calc.py adds; its test is green.",
                "concerns": ["only whole numbers were tried"],
            },
        }
    ]
}


# What a repository may hold for people who use the same agents by hand.
OTHERS = {
    "opencode.json": '{"model": "x/y", "enabled_providers": ["nobody"], "plugin": ["./nothing.ts"]}',
    ".claude/settings.json": '{"env": {"ANTHROPIC_BASE_URL": "http://127.0.0.1:9"}, "permissions": {"deny": ["Write", "Bash"]}}',
    ".mcp.json": '{"mcpServers": {"theirs": {"command": "sh", "args": ["-c", "touch /workspace/repo/mcp-was-here"]}}}',
    ".codex/config.toml": 'model_provider = "nobody"\nsandbox_mode = "read-only"\n',
    ".pi/settings.json": '{"defaultProvider": "nobody"}',
}


def git(folder: Path, *arguments: str) -> str:
    argv = ["git", "-c", "user.name=a", "-c", "user.email=a@example.invalid", *arguments]
    return subprocess.run(argv, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@dataclass
class Worked:
    delivery: Delivery
    used: Usage
    took_s: float

    @property
    def result(self) -> contract.WorkResult:
        assert self.delivery.result is not None, self.delivery.problem
        return self.delivery.result

    def events(self, kind: str) -> list[dict[str, object]]:
        found = [json.loads(line) for line in self.delivery.transcript.splitlines()]
        return [event for event in found if event["type"] == kind]


class Bench:
    """One gateway, one scripted model and one repository for all agents of this process."""

    def __init__(self, folder: Path, model: ScriptedModel) -> None:
        self.model = model
        self.home = Home(folder / "home")
        self.layers = HarnessLayers(Home(Path(os.environ["LONGSHOT_HARNESSES"])))
        self.gateway = Gateway(self.home)
        endpoints = parse_endpoints("", model.base_url, "sk-of-the-gateway")
        self.gateway.ensure(endpoints, {"rounds": 1, "backoff_s": 0.0, "timeout_s": float(ANSWER_S)})
        self.provider = LocalProvider(self.home.sandboxes, Isolation.AUTO)
        origin = folder / "origin"
        origin.mkdir()
        git(origin, "init", "--quiet", "--initial-branch=base")
        (origin / "README.md").write_text("A calculator.\n")
        (origin / "AGENTS.md").write_text(GUIDANCE)
        for name, text in OTHERS.items():
            (origin / name).parent.mkdir(exist_ok=True)
            (origin / name).write_text(text)
        git(origin, "add", "--all")
        git(origin, "commit", "--quiet", "--message=begin")
        self.base = git(origin, "rev-parse", "HEAD")
        self.bundle = folder / "base.bundle"
        git(origin, "bundle", "create", "--quiet", str(self.bundle), "refs/heads/base")

    def work(self, agent: str, model: str = "glm-5", package: str = "", **more: object) -> Worked:
        self.layers.install(agent, package)  # nothing to do when it is there
        shown = self.layers.agents(Settings(harness=agent, harness_package=package)).shown(agent)
        key = f"{agent}-{model}"
        socket = self.gateway.open("calc-1", key, 0, ANSWER_S)
        spec = SandboxSpec(name=f"calc-1-{key}", sockets={contract.SOCKET: socket}, layers=shown)
        sandbox = self.provider.create(spec)
        order = WorkOrder(
            **{
                "task_id": "r001-01",
                "base": self.base,
                "system_prompt": prompt("worker"),
                "prompt": "# Task r001-01\n\nKind: plan\n\nWrite a calculator\n\n## Scope\n\n- calc.py\n- test_calc.py\n",
                "harness": agent,
                "model": model,
                "llm_timeout_s": ANSWER_S + 2,
                "idle_timeout_s": 150,
                "deadline_s": 330,
                "checks": {CheckName.TEST: "python3 -m unittest -q"},
                **more,
            }
        )
        began = time.monotonic()
        try:
            delivery = carry_out(sandbox, order, self.bundle, 360, lambda: False)
        finally:
            sandbox.terminate()
            self.gateway.close("calc-1", key)
        return Worked(delivery, self.gateway.usage("calc-1", key), time.monotonic() - began)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with ScriptedModel(Script.model_validate(SCRIPT)) as model:
        bench = Bench(tmp_path_factory.mktemp("agents"), model)
        yield bench
        bench.gateway.stop()


@pytest.mark.parametrize("agent", AGENTS)
def test_an_agent_does_its_task_and_hands_it_in(bench: Bench, agent: str) -> None:
    worked = bench.work(agent)
    result = worked.result
    assert (result.harness_status, result.error, result.status.value) == ("completed", "", "complete")
    assert result.summary == "calc.py adds; its test is green."
    assert result.concerns == ["only whole numbers were tried"]
    assert (result.metrics.files_created, result.metrics.lines_added) == (2, CALC.count("\n") + TEST.count("\n"))
    assert {c.name: c.status for c in result.checks}[CheckName.TEST] is CheckStatus.GREEN
    assert worked.delivery.bundle is not None and result.metrics.tool_call_count == 4
    tested = [event for event in worked.events("tool_end") if "test_add" in str(event["text"])]
    assert len(tested) == 1 and "OK" in str(tested[0]["text"]) and tested[0]["ok"]
    assert worked.used.tokens_in > 0 and worked.used.tokens_out > 0
    said = [entry for entry in bench.model.log if entry["model"] == "glm-5"]
    assert all(entry["authorized"] and entry["role"] == "worker" for entry in said[-5:])


def test_pi_does_its_task_under_its_newer_name_too(bench: Bench) -> None:
    result = bench.work("pi", "glm-newer", "@earendil-works/pi-coding-agent@0.87.1").result
    assert (result.harness_status, result.status.value, result.metrics.files_created) == ("completed", "complete", 2)


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize(
    ("model", "statuses"),
    [
        ("glm-401", {"llm_error"}),
        ("glm-500", {"llm_error"}),
        ("glm-empty", {"empty"}),
        ("glm-hang", {"llm_error"}),
        ("glm-drop", {"empty", "llm_error", "stalled"}),
    ],
)
def test_a_model_that_fails_is_what_it_reports(bench: Bench, agent: str, model: str, statuses: set[str]) -> None:
    result = bench.work(agent, model).result
    assert result.harness_status in statuses and result.error, result
    assert (result.status.value, result.head) == ("failed", None)


@pytest.mark.parametrize("agent", AGENTS)
def test_one_that_never_ends_is_ended(bench: Bench, agent: str) -> None:
    result = bench.work(agent, "glm-loop", max_turns=4).result
    assert (result.harness_status, result.status.value) == ("limit", "failed")


@pytest.mark.parametrize("agent", AGENTS)
def test_one_whose_time_is_up_hands_in_what_there_is(bench: Bench, agent: str) -> None:
    worked = bench.work(agent, "glm-loop", max_turns=200, deadline_s=45)
    assert (worked.result.harness_status, worked.result.error) == ("timeout", "the time for this task is up")
    assert worked.took_s < 60


@pytest.mark.parametrize("agent", AGENTS)
def test_one_that_is_not_there_is_named_in_one_line(bench: Bench, agent: str) -> None:
    result = bench.work(agent, harness="claude-code" if agent == "pi" else "pi").result
    assert result.harness_status == "config_error" and "on PATH; is" in result.error
