"""What Dagster finds: it loads without network, keys or heavy libraries, and says what each thing is for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml

from longshot_dagster.adapters.host.shipped import shipped
from longshot_dagster.definitions import defs
from longshot_dagster.defs.building import StartBuildConfig
from longshot_dagster.defs.task_result import TaskResultConfig

_LOAD = """
import json, socket, sys
def refuse(*a, **k): raise AssertionError("definitions reached for the network")
socket.socket.connect = refuse
import dagster as dg
import longshot_dagster.definitions as found
dg.Definitions.validate_loadable(found.defs)
print(json.dumps(sorted(sys.modules)))
"""
_HEAVY = {"pandas", "modal", "pydantic_ai", "openai", "aiohttp", "git", "numpy", "httpx", "starlette"}


def test_definitions_load_without_network_keys_or_heavy_libraries(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LONGSHOT_HOME": str(tmp_path / "home")}
    argv = [sys.executable, "-W", "ignore", "-c", _LOAD]
    out = subprocess.run(argv, env=environment, capture_output=True, check=True, timeout=60).stdout
    assert not _HEAVY & set(json.loads(out))
    assert not (tmp_path / "home").exists()


def test_lineage_runs_from_repo_state_to_the_report() -> None:
    graph = defs.resolve_asset_graph()

    def upstream(name: str) -> set[str]:
        return {key.path[-1] for key in graph.get(dg.AssetKey(name)).parent_keys}

    assert upstream("plan") == {"repo_state"}
    assert "plan" in upstream("handoffs")
    assert "plan" in upstream("landings")
    assert "landings" in upstream("health")
    assert {"plan", "handoffs", "landings", "health"} <= upstream("metrics")
    assert {"plan", "repo_state"} <= upstream("task_result")
    assert "metrics" in upstream("build_report")


def test_every_asset_job_sensor_and_field_is_described() -> None:
    graph = defs.resolve_asset_graph()
    assert [key for key in graph.get_all_asset_keys() if not graph.get(key).description] == []
    assert [
        job.name for job in defs.resolve_all_job_defs() if not job.name.startswith("__") and not job.description
    ] == []
    assert [sensor.name for sensor in defs.sensors or [] if not sensor.description] == []
    for config in (StartBuildConfig, TaskResultConfig):
        assert [name for name, field in config.model_fields.items() if not field.description] == []


def test_sensors_are_running_without_anybody_switching_them_on() -> None:
    assert {s.default_status for s in defs.sensors or []} == {dg.DefaultSensorStatus.RUNNING}


def test_the_command_line_configures_the_job_by_its_own_name() -> None:
    config = {
        "request": "x",
        "build": "toy-0001",
        "settings": {"max_workers": 3},
        "origins": {"max_workers": "default"},
    }
    assert dg.validate_run_config(defs.resolve_job_def("start_build"), {"ops": {"start_build": {"config": config}}})


@dg.op
def saying(context: dg.OpExecutionContext) -> None:
    context.log.info("said by a step")


def test_what_steps_say_is_kept_and_dagsters_events_are_not_printed_too(capfd: pytest.CaptureFixture[str]) -> None:
    settings = yaml.safe_load(shipped("dagster.yaml").read_bytes())["python_logs"]
    with dg.instance_for_test(overrides={"python_logs": settings}) as instance:
        result = dg.GraphDefinition("one", node_defs=[saying]).to_job().execute_in_process(instance=instance)
        kept = [(entry.user_message, entry.is_dagster_event) for entry in instance.all_logs(result.run_id)]
    assert ("said by a step", False) in kept
    assert sum(event for _, event in kept) > 3
    printed = capfd.readouterr().err
    assert "said by a step" in printed
    assert "STEP_SUCCESS" not in printed
