"""What the steps of one run share, put together once: resources, what the job says of them, and a log without detours.

Dagster makes a class of resources eight times a task, walks through the graph to the same few ops 60 times, reads their
signatures and docstrings six times, and sends each of its own events through Python's logging, twice, past locks that 200
threads share, though nobody but the event log hears them: half of what an event cost.

A part of executor.py that has a module of its own for its length: see there for what holds its private imports.
"""

import logging
import time
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from copy import copy
from functools import lru_cache
from inspect import Parameter
from typing import Any

import dagster as dg
from dagster._core.definitions.decorators.op_decorator import DecoratedOpFunction
from dagster._core.definitions.dependency import Node, OpNode
from dagster._core.definitions.scoped_resources_builder import Resources, ScopedResourcesBuilder
from dagster._core.events import DagsterEvent
from dagster._core.events.log import EventLogEntry
from dagster._core.execution.context.system import PlanExecutionContext
from dagster._core.instance.types import _EventListenerLogHandler
from dagster._core.log_manager import DagsterLogHandler, DagsterLogManager

_KEPT = 1_000  # answers to each question


def share(context: PlanExecutionContext) -> None:
    """Have every step of the run take its resources, its job and its log from here."""
    own = context._execution_data
    shared = SharedResources(*own.scoped_resources_builder)
    context._execution_data = own._replace(scoped_resources_builder=shared, job_def=known(own.job_def))
    context._log_manager = EventLog.like(context.log, context.instance)


def known(job: dg.JobDefinition) -> dg.JobDefinition:
    """The same job, which finds its nodes, and the assets they make, once."""
    layer = copy(job.asset_layer)
    vars(layer).update(vars(job.asset_layer))
    for question in ("get_entity_key_for_node_output", "downstream_dep_assets_and_checks"):
        vars(layer)[question] = lru_cache(_KEPT)(getattr(job.asset_layer, question))
    found = copy(job)
    vars(found).update(_asset_layer=layer, get_node=lru_cache(_KEPT)(lambda handle: _known_node(job.get_node(handle))))
    return found


def _known_node(node: Node) -> Node:
    """The same node, whose function is inspected once."""
    if not isinstance(node, OpNode) or type(node.definition.compute_fn) is not DecoratedOpFunction:
        return node
    found, found.definition = copy(node), copy(node.definition)
    found.definition._compute_fn = KnownFunction(node.definition.compute_fn.decorated_fn)
    return found


class KnownFunction(DecoratedOpFunction):
    """Dagster keeps one answer for all functions together; this one an answer to each."""

    @lru_cache(_KEPT)  # noqa: B019 - lives as long as the op
    def has_context_arg(self) -> bool:
        return super().has_context_arg()

    @lru_cache(_KEPT)  # noqa: B019
    def get_context_arg(self) -> Parameter:
        return super().get_context_arg()

    @lru_cache(_KEPT)  # noqa: B019
    def has_config_arg(self) -> bool:
        return super().has_config_arg()

    @lru_cache(_KEPT)  # noqa: B019
    def get_resource_args(self) -> Sequence[Parameter]:
        return super().get_resource_args()

    @lru_cache(_KEPT)  # noqa: B019
    def get_output_annotation(self) -> Any:
        return super().get_output_annotation()


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
