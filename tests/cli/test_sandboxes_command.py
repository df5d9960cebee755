"""`longshot sandboxes`: what is alive, whose it is, and what one sweep makes of it."""

import json
from pathlib import Path

import pytest
from told import a_build, own_home, plan

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.sandboxes.sandbox_local import LocalProvider
from longshot_dagster.cli import main
from longshot_dagster.core.ids import ROOT
from longshot_dagster.core.sandbox import SandboxSpec
from longshot_dagster.core.settings import Isolation


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return own_home(tmp_path, monkeypatch)


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert main.run(["sandboxes", *words]) == code
    return capsys.readouterr().out


def test_without_any_that_is_said(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys) == "no sandbox is alive\n"
    assert said(capsys, "--reap") == "no sandbox is alive\nnothing to end\n"


def test_what_nobody_answers_for_is_shown_ended_and_not_there_any_more(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = a_build(home)
    (task,) = plan(ledger, ROOT, 1, 1)
    base = Home(home).sandboxes
    tags = {"build": ledger.build, "holder": "1.1", "sweep": "1"}
    sweep = LocalProvider(base, Isolation.AUTO).create(SandboxSpec(name="sweep", tags=tags))
    worker = SandboxSpec(name="worker", tags={"build": ledger.build, "holder": "1.1", "task": task.id})
    holding = LocalProvider(base, Isolation.AUTO).create(worker)
    shown = said(capsys)
    assert f"{sweep.id}  local  {ledger.build}  " in shown and "orphan: who made it is gone" in shown
    assert f"{holding.id}  local  {ledger.build}.{task.id}  " in shown and "holds work" in shown
    assert shown.endswith("longshot sandboxes --reap keeps what they hold and ends them\n")
    ended = json.loads(said(capsys, "--reap", "--json"))
    assert (ended["ended"], ended["left"], ended["unreachable"]) == (2, [], [])
    assert {s["id"]: s["fate"] for s in ended["sandboxes"]} == {sweep.id: "orphan", holding.id: "holds work"}
    assert list(base.glob("sb-*")) == []
