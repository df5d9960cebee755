"""What the steps of one run share, put together once: resources, and a log that writes their events without detours.

Dagster makes a class of resources eight times a task, and sends each of its own events through Python's logging, twice,
past locks that 200 threads share, though nobody but the event log hears them: half of what an event cost.

A part of executor.py that has a module of its own for its length: see there for what holds its private imports.
"""

import logging
import time
from collections.abc import Set as AbstractSet
from typing import Any

import dagster as dg
from dagster._core.definitions.scoped_resources_builder import Resources, ScopedResourcesBuilder
from dagster._core.events import DagsterEvent
from dagster._core.events.log import EventLogEntry
from dagster._core.execution.context.system import PlanExecutionContext
from dagster._core.instance.types import _EventListenerLogHandler
from dagster._core.log_manager import DagsterLogHandler, DagsterLogManager


def share(context: PlanExecutionContext) -> None:
    """Have every step of the run take its resources and its log from here."""
    shared = SharedResources(*context._execution_data.scoped_resources_builder)
    context._execution_data = context._execution_data._replace(scoped_resources_builder=shared)
    context._log_manager = EventLog.like(context.log, context.instance)


class SharedResources(ScopedResourcesBuilder):
    """Makes the same resources for the same keys once; the objects in them are the run's own anyway."""

    def __init__(self, *_: Any) -> None:
        self._built: dict[frozenset[str], Resources] = {}

    def build(self, required_resource_keys: AbstractSet[str] | None) -> Resources:
        keys = frozenset(required_resource_keys or ())
        found = self._built.get(keys)
        if found is None:
            found = self._built[keys] = super().build(keys)
        return found


class EventLog(DagsterLogManager):
    """Gives the instance its events itself, unless somebody else listens; all else goes the usual way."""

    _instance: dg.DagsterInstance

    @classmethod
    def like(cls, other: DagsterLogManager, instance: dg.DagsterInstance) -> "EventLog":
        return cls(other._dagster_handler, other.level, other._managed_loggers)._of(instance)

    def _of(self, instance: dg.DagsterInstance) -> "EventLog":
        self._instance = instance
        self._heard_from = _heard_from(self._dagster_handler)
        return self

    def with_tags(self, **new_tags: str) -> "EventLog":
        tagged = EventLog(self._dagster_handler.with_tags(**new_tags), self.level, self._managed_loggers)
        tagged._instance, tagged._heard_from = self._instance, self._heard_from
        return tagged

    def log_dagster_event(
        self, level: str | int, msg: str, dagster_event: DagsterEvent, batch_metadata: Any = None
    ) -> None:
        if batch_metadata is not None or not isinstance(level, int) or level >= self._heard_from:
            super().log_dagster_event(level, msg, dagster_event, batch_metadata)
            return
        place = self.metadata
        self._instance.handle_new_event(
            EventLogEntry(  # type: ignore[no-untyped-call]
                level=level,
                user_message=msg,
                run_id=place["run_id"] or "",
                timestamp=time.time(),
                step_key=place["step_key"] or dagster_event.step_key,
                job_name=place["job_name"],
                dagster_event=dagster_event,
                error_info=None,
            )
        )


def _heard_from(handler: DagsterLogHandler) -> int:
    """The lowest level at which anybody but the instance's event log listens."""
    listeners = [h for h in handler._handlers if type(h) is not _EventListenerLogHandler]
    if len(listeners) == len(handler._handlers):
        return logging.NOTSET  # no event log at all
    levels = [logger.getEffectiveLevel() for logger in handler._loggers] + [h.level for h in listeners]
    return min(levels, default=logging.CRITICAL + 1)
