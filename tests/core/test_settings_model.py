"""The settings model itself: the specification's names and defaults, and what is out of range."""

import pytest
from pydantic import ValidationError

from longshot_dagster.core.settings import Settings

SPECIFIED = {
    "max_workers": 50,
    "worker_timeout": 1800,
    "llm_model": "glm-5",
    "llm_max_tokens": 65_536,
    "llm_temperature": 0.7,
    "sandbox_cpu_cores": 4,
    "sandbox_memory_mb": 8192,
    "sandbox_idle_timeout": 300,
    "git_main_branch": "main",
    "git_branch_prefix": "worker/",
    "health_check_interval": 10,
    "merge_strategy": "rebase",
    "finalization_enabled": True,
    "finalization_max_attempts": 3,
    "max_iterations": 100,
    "max_tokens_per_build": 20_000_000,
    "sandbox_provider": "auto",
    "sandbox_network": "none",
    "harness": "auto",
    "checkpoint": "remote",
}


def test_the_specified_defaults_are_the_defaults() -> None:
    found = Settings().model_dump(mode="json")
    assert {name: found[name] for name in SPECIFIED} == SPECIFIED


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_workers", -1),
        ("max_workers", 1001),
        ("worker_timeout", 0),
        ("sandbox_cpu_cores", 0),
        ("llm_temperature", 2.1),
        ("max_iterations", 0),
        ("git_main_branch", "a..b"),
        ("git_branch_prefix", "/x"),
        ("no_such_setting", 1),
    ],
)
def test_what_is_out_of_range_is_no_setting(name: str, value: object) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate({name: value})


@pytest.mark.parametrize("name", ["max_workers", "finalization_max_attempts", "max_tokens_per_build"])
def test_zero_means_zero(name: str) -> None:
    assert getattr(Settings.model_validate({name: 0}), name) == 0
