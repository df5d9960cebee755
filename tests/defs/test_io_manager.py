"""An asset's value and its ledger document are the same bytes, and come back as they went in."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster_doubles import BUILD, Script, ScriptedTools, begin, fresh

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.models import MetricsSnapshot
from longshot_dagster.defs.io_manager import JsonIOManager, LedgerIOManager

FIRST = IterationKey(BUILD, "root", 1)


@pytest.fixture
def documents(home: Home) -> dict[str, Any]:
    """Every document of one iteration, made but, save for the tasks' own, not saved."""
    begin(home, Script(plans={"root.001": ["a.py", "b.py"]}))
    tools = ScriptedTools(home, BUILD)
    state = tools.repo_state(tools.fetch())
    plan = tools.plan(FIRST, state, tools.ledger.view())
    return {
        "repo_state": state,
        "plan": plan,
        "handoffs": [tools.run(t, lambda: False) for t in plan.dispatched],
        "landings": [tools.land(t) for t in plan.dispatched],
        "health": tools.sweep(tools.fetch(), 1, "root.001", lambda: False),
        "metrics": MetricsSnapshot(iteration="root.001", tasks=2),
    }


def output(name: str) -> dg.OutputContext:
    return dg.build_output_context(asset_key=dg.AssetKey(name), partition_key=str(FIRST))


def test_every_asset_comes_back_as_it_went_in(home: Home, documents: dict[str, Any]) -> None:
    manager = LedgerIOManager(home=str(home.root))
    for name, value in documents.items():
        manager.handle_output(output(name), value)
    for name, value in documents.items():
        context = dg.build_input_context(
            asset_key=dg.AssetKey(name), partition_key=str(FIRST), upstream_output=output(name)
        )
        assert manager.load_input(context) == value, name
    assert fresh(home).repo_state(FIRST) == documents["repo_state"]
    assert fresh(home).plan(FIRST) == documents["plan"]
    assert fresh(home).sweeps() == [documents["health"]]
    assert fresh(home).metrics(FIRST) == documents["metrics"]


def test_what_is_in_the_ledger_is_not_written_again(home: Home, documents: dict[str, Any]) -> None:
    manager = LedgerIOManager(home=str(home.root))
    manager.handle_output(output("metrics"), documents["metrics"])
    manager.handle_output(output("metrics"), MetricsSnapshot(iteration="root.001", tasks=99))
    assert fresh(home).metrics(FIRST) == documents["metrics"]


def test_a_value_between_steps_is_json_below_its_build(home: Home) -> None:
    manager = JsonIOManager(home=str(home.root))
    written = dg.build_output_context(step_key="s", name="tasks", run_id="r", mapping_key="m", partition_key=str(FIRST))
    manager.handle_output(written, "r001-01")
    read = dg.build_input_context(upstream_output=written, partition_key=str(FIRST))
    assert manager.load_input(read) == "r001-01"
    (file,) = (Path(home.builds) / BUILD / "io" / "r").iterdir()
    assert file.read_bytes() == b'"r001-01"'
