"""Iterations run under the threaded executor unless this installation names another."""

import dagster as dg
import pytest

from longshot_dagster.adapters import settings
from longshot_dagster.core.errors import WrongUse
from longshot_dagster.defs.executor import threaded_executor
from longshot_dagster.defs.executors import chosen_executor


@pytest.mark.parametrize(
    ("named", "executor"),
    [("", threaded_executor), ("threaded", threaded_executor), ("multiprocess", dg.multiprocess_executor)],
)
def test_the_executor_is_the_one_that_is_named(
    named: str, executor: dg.ExecutorDefinition, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGSHOT_EXECUTOR", named)
    assert chosen_executor() is executor


def test_an_unknown_one_is_refused_by_the_command_and_does_not_keep_definitions_from_loading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LONGSHOT_EXECUTOR", "celery")
    with pytest.raises(WrongUse, match="LONGSHOT_EXECUTOR=celery is not one of threaded, multiprocess"):
        settings.executor({"LONGSHOT_EXECUTOR": "celery"})
    assert chosen_executor() is threaded_executor
