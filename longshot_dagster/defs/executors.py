"""Which executor an iteration's steps run under: the threaded one, unless LONGSHOT_EXECUTOR names another."""

import os

import dagster as dg

from longshot_dagster.core.errors import WrongUse
from longshot_dagster.defs.executor import threaded_executor

THREADED = "threaded"


def chosen_executor() -> dg.ExecutorDefinition:
    """Read once, as the definitions load: `longshot up` passes its environment on to whatever loads them."""
    if os.environ.get("LONGSHOT_EXECUTOR", THREADED) in ("", THREADED):
        return threaded_executor
    from longshot_dagster.adapters.settings import executor  # knows every setting, which most loads need not

    try:
        return dg.multiprocess_executor if executor(os.environ) != THREADED else threaded_executor
    except WrongUse:  # `longshot up` says so; definitions that do not load would hide it
        return threaded_executor
