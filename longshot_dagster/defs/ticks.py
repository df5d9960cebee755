"""What a sensor's tick works with, kept from tick to tick.

A sensor that asks for a resource, or for its context's instance, has Dagster open all its storages anew at every tick,
with a look at the schema of each: measured, nine tenths of what a tick costs, several times a second.
"""

import functools
import threading
from typing import cast

import dagster as dg

from longshot_dagster.defs.resources import LongshotResource

_opening = threading.Lock()
_opened: list[dg.DagsterInstance] = []


def longshot_of(context: dg.SensorEvaluationContext) -> LongshotResource:
    """This process's installation, or the one that a test gives its context."""
    if context.resource_defs:
        return cast(LongshotResource, context.resources.longshot)
    return _longshot()


def instance_of(context: dg.SensorEvaluationContext) -> dg.DagsterInstance:
    """The instance whose daemon asks; a code server has only one, and its threads share it as the webserver's do.

    From now on the context has it, too: Dagster asks it for the partitions of the runs that a tick requests.
    """
    if context.instance_ref is None:
        return context.instance
    with _opening:
        if not _opened:
            _opened.append(dg.DagsterInstance.from_ref(context.instance_ref))
    context._instance = _opened[0]  # private: should it be called otherwise one day, Dagster opens one as before
    return _opened[0]


@functools.cache
def _longshot() -> LongshotResource:
    return LongshotResource()
