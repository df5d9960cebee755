"""Runs every ready step of one run in a thread of its own: our steps wait for sandboxes, models and git.

Measured: 13 ms CPU per trivial step, against 2,223 ms for a process per step; 1,000 steps at once in 204 MB.

One thread, the run's own, drives Dagster's state machine and writes every event; step threads only produce events into
a queue. A step that takes no notice of a cancellation is left behind after a while (core/ending.py); it is a daemon
thread, and dies with the run's process.

This module with its parts ready_steps.py and run_context.py, event_storage.py with event_text.py, and launcher.py are the
only ones that import private modules of Dagster, whose version is pinned; tests/defs/test_executor.py is the contract.
"""

import asyncio
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.events import DagsterEvent, EngineEventData
from dagster._core.execution.api import ExecuteRunWithPlanIterable
from dagster._core.execution.compute_logs import create_compute_log_file_key
from dagster._core.execution.context.system import PlanExecutionContext, PlanOrchestrationContext
from dagster._core.execution.context_creation_job import PlanExecutionContextManager
from dagster._core.execution.plan.execute_plan import (
    _handle_compute_log_setup_error,
    _handle_compute_log_teardown_error,
    _trigger_hook,
    dagster_event_sequence_for_step,
)
from dagster._core.execution.plan.objects import step_failure_event_from_exc_info
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._core.execution.plan.step import ExecutionStep
from dagster._core.execution.retries import RetryMode, get_retries_config
from dagster._core.execution.step_dependency_config import (
    StepDependencyConfig,
    get_step_dependency_config_field,
)
from dagster._core.execution.tags import get_tag_concurrency_limits_config
from dagster._core.executor.base import Executor

from longshot_dagster.adapters.host import leases
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.core.ending import grace_s
from longshot_dagster.defs.event_storage import KeptSqliteEventLogStorage
from longshot_dagster.defs.ready_steps import PromptClaims, ReadySteps, keep_apart, prioritise
from longshot_dagster.defs.run_context import share

__all__ = ["cancellation", "keep_apart", "prioritise", "threaded_executor"]

_POLL_S = 0.25
_MAX_CONCURRENT = 2_048  # a thousand workers, and as many branches that wait to land

_cancellations: dict[str, threading.Event] = {}
_cancellations_guard = threading.Lock()


def cancellation(run_id: str) -> threading.Event:
    """Set once somebody has asked the run to stop; whatever waits in a step looks at it and raises Cancelled."""
    with _cancellations_guard:
        return _cancellations.setdefault(run_id, threading.Event())


@dataclass(frozen=True)
class _Produced:
    """One event of a step's thread."""

    step: str
    event: DagsterEvent


@dataclass(frozen=True)
class _Ended:
    """A step's thread has nothing more to say; `error` is to be raised in the run's own thread."""

    step: str
    error: BaseException | None


class _OwnLoop:
    """An event loop for an async op, made when it is used: it costs three descriptors, and almost no op is async.

    Threads must not share the run's one loop.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def __getattr__(self, name: str) -> Any:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        return getattr(self._loop, name)

    def close(self) -> None:
        if self._loop is not None:
            self._loop.close()


class ThreadedExecutor(Executor):
    """See the module; built by `threaded_executor`."""

    def __init__(
        self,
        retries: RetryMode,
        max_concurrent: int | None,
        tag_concurrency_limits: list[dict[str, Any]] | None,
        step_dependency_config: StepDependencyConfig,
        grace_s: Callable[[int], float] = grace_s,
    ) -> None:
        self._retries = retries
        self._max_concurrent = max_concurrent
        self._tag_concurrency_limits = tag_concurrency_limits
        self._step_dependency_config = step_dependency_config
        self._grace_s = grace_s

    @property
    def retries(self) -> RetryMode:
        return self._retries

    @property
    def step_dependency_config(self) -> StepDependencyConfig:
        return self._step_dependency_config

    def execute(self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan) -> Iterator[DagsterEvent]:
        _hold_lease(plan_context.run_id)
        steps = EngineEventData(metadata={"steps": dg.MetadataValue.int(len(execution_plan.step_keys_to_execute))})
        yield DagsterEvent.engine_event(plan_context, "Executing steps in threads of this process", steps)
        started = time.monotonic()
        yield from ExecuteRunWithPlanIterable(
            execution_plan=execution_plan,
            iterator=self._steps,
            execution_context_manager=PlanExecutionContextManager(
                job=plan_context.job,
                retry_mode=plan_context.retry_mode,
                execution_plan=execution_plan,
                run_config=plan_context.run_config,
                dagster_run=plan_context.dagster_run,
                instance=plan_context.instance,
                raise_on_error=plan_context.raise_on_error,
                output_capture=plan_context.output_capture,
                step_dependency_config=self._step_dependency_config,
            ),
        )
        took = time.monotonic() - started
        yield DagsterEvent.engine_event(plan_context, f"Finished steps in threads in {took:.1f} s", steps)

    def _steps(self, job_context: PlanExecutionContext, execution_plan: ExecutionPlan) -> Iterator[DagsterEvent]:
        share(job_context)
        with ExitStack() as stack:
            if isinstance(storage := job_context.instance.event_log_storage, KeptSqliteEventLogStorage):
                stack.enter_context(storage.gathering())
            claims = stack.enter_context(PromptClaims(job_context.instance, job_context.dagster_run))
            active = stack.enter_context(
                ReadySteps(
                    execution_plan,
                    self.retries,
                    claims=claims,
                    max_concurrent=self._max_concurrent,
                    tag_concurrency_limits=self._tag_concurrency_limits,
                    step_dependency_config=self._step_dependency_config,
                )
            )
            captured = stack.enter_context(ExitStack())
            yield from _capture_output(job_context, execution_plan, captured)
            yield from _Run(job_context, active, claims, self._grace_s).events()
            try:
                captured.close()
            except Exception:
                yield from _handle_compute_log_teardown_error(job_context, sys.exc_info())


class _Run:
    """One run's threads, from the first step to the last event."""

    def __init__(
        self,
        job_context: PlanExecutionContext,
        active: ReadySteps,
        claims: PromptClaims,
        grace_s: Callable[[int], float],
    ) -> None:
        self._context = job_context
        self._active = active
        self._claims = claims
        self._grace_s = grace_s
        self._queue: queue.SimpleQueue[_Produced | _Ended] = queue.SimpleQueue()
        self._live: dict[str, threading.Thread] = {}
        self._cancel = cancellation(job_context.run_id)
        self._give_up_at: float | None = None  # set as soon as nothing new may start
        self._error: BaseException | None = None

    def events(self) -> Iterator[DagsterEvent]:
        try:
            changed = True
            if self._was_cancelled_before():
                self._active.mark_interrupted()
                self._stop()
            while self._going_on():
                yield from self._notice_interrupts()
                if self._give_up_at is None and (changed or self._is_waiting()):
                    yield from self._start_ready_steps()
                changed = yield from self._next_events()
                if changed and self._give_up_at is None:
                    yield from self._active.plan_events_iterator(self._context)
            if self._error is not None:
                raise self._error
            if self._give_up_at is not None:
                raise DagsterExecutionInterruptedError
        finally:
            for step in self._live:  # left behind: its slot is not
                self._claims.free_step(step)
            with _cancellations_guard:
                _cancellations.pop(self._context.run_id, None)

    def _was_cancelled_before(self) -> bool:
        """Who cancels a run sets its status first; an interrupt that came before this loop may have been lost."""
        run = self._context.instance.get_run_by_id(self._context.run_id)
        return run is not None and run.status is dg.DagsterRunStatus.CANCELING

    def _is_waiting(self) -> bool:
        """For a slot of a pool, or until a retry is due."""
        retries = self._active.sleep_interval()  # type: ignore[no-untyped-call]
        return bool(retries) or self._claims.has_pending_claims()

    def _going_on(self) -> bool:
        if self._give_up_at is None:
            return bool(self._live) or not self._active.is_complete
        return bool(self._live) and time.monotonic() < self._give_up_at

    def _stop(self) -> None:
        self._give_up_at = time.monotonic() + self._grace_s(len(self._live))
        self._cancel.set()
        self._claims.withdraw()  # at once, for the slots may be others' while the workers here are being ended

    def _notice_interrupts(self) -> Iterator[DagsterEvent]:
        if not self._active.check_for_interrupts():
            return
        self._active.mark_interrupted()
        if self._give_up_at is None:
            self._stop()
        yield DagsterEvent.engine_event(
            self._context,
            f"Asked to stop: cancelling {len(self._live)} running steps",
            EngineEventData.interrupted(list(self._live)),
        )

    def _start_ready_steps(self) -> Iterator[DagsterEvent]:
        steps = self._active.get_steps_to_execute()
        for line in self._claims.news():
            yield DagsterEvent.engine_event(self._context, line, EngineEventData())
        if not steps:
            return
        known = self._active.get_known_state()
        for step in steps:
            thread = threading.Thread(target=self._run_step, args=(step, known), name=f"step:{step.key}", daemon=True)
            self._live[step.key] = thread
            thread.start()

    def _next_events(self) -> Generator[DagsterEvent, None, bool]:
        """Wait for a message, then take all there are: planning costs time in proportion to the pending steps."""
        ended = False
        for message in self._batch():
            if isinstance(message, _Produced):
                yield message.event
                self._active.handle_event(message.event)
                continue
            ended = True
            self._live.pop(message.step).join()
            if self._give_up_at is None:
                self._active.verify_complete(self._context, message.step)
            if message.error is not None and self._error is None:
                self._error = message.error
                self._stop()
        return ended

    def _batch(self) -> list[_Produced | _Ended]:
        batch: list[_Produced | _Ended] = []
        try:
            batch.append(self._queue.get(timeout=_POLL_S))
            while True:
                batch.append(self._queue.get_nowait())
        except queue.Empty:
            return batch

    def _run_step(self, step: ExecutionStep, known: KnownExecutionState) -> None:
        """In the step's own thread: run it, its hooks, and always end with `_Ended`."""
        error: BaseException | None = None
        seen: list[DagsterEvent] = []
        loop = _OwnLoop()
        try:
            context = self._context.for_step(step, known)
            context._event_loop = loop  # type: ignore[assignment]
            for event in dagster_event_sequence_for_step(context):
                seen.append(event)
                self._queue.put(_Produced(step.key, event))
            for event in _trigger_hook(context, seen):
                self._queue.put(_Produced(step.key, event))
        except DagsterExecutionInterruptedError:
            pass  # Dagster has made it a failure event already
        except BaseException as e:
            if self._context.raise_on_error:
                error = e
            elif not any(event.is_step_failure for event in seen):
                failed = step_failure_event_from_exc_info(self._context.for_step(step), sys.exc_info())
                self._queue.put(_Produced(step.key, failed))
        finally:
            loop.close()
            self._queue.put(_Ended(step.key, error))


def _capture_output(
    job_context: PlanExecutionContext, execution_plan: ExecutionPlan, captured: ExitStack
) -> Iterator[DagsterEvent]:
    """What the run's process prints goes to the compute log, of all steps together."""
    manager = job_context.instance.compute_log_manager
    steps = [step.key for step in execution_plan.get_steps_to_execute_in_topo_order()]
    try:
        log_key = manager.build_log_key_for_run(job_context.run_id, create_compute_log_file_key())  # type: ignore[no-untyped-call]
        log_context = captured.enter_context(manager.capture_logs(log_key))
        yield DagsterEvent.capture_logs(job_context, steps, log_key, log_context)
    except Exception:
        yield from _handle_compute_log_setup_error(job_context, sys.exc_info())


def _hold_lease(run_id: str) -> None:
    """Only where the run belongs to an installation: a run in a test or notebook has nobody who would miss it."""
    if root := os.environ.get("LONGSHOT_HOME"):
        leases.hold(Home(Path(root).expanduser()), run_id)


@dg.executor(
    name="threaded",
    config_schema=dg.Field(
        {
            "max_concurrent": dg.Field(
                dg.Noneable(int), default_value=_MAX_CONCURRENT, description="steps of one run at once; null: no limit"
            ),
            "tag_concurrency_limits": get_tag_concurrency_limits_config(),  # type: ignore[no-untyped-call]
            "retries": get_retries_config(),  # type: ignore[no-untyped-call]
            "step_dependency_config": get_step_dependency_config_field(),  # type: ignore[no-untyped-call]
        },
        description="Runs every step in a thread of the run's process.",
    ),
)
def threaded_executor(init_context: dg.InitExecutorContext) -> Executor:
    """Runs every step in a thread of the run's process: steps that wait for sandboxes and models cost next to nothing."""
    config: dict[str, Any] = dict(init_context.executor_config)
    return ThreadedExecutor(
        retries=RetryMode.from_config(config["retries"]) or RetryMode.ENABLED,
        max_concurrent=config["max_concurrent"],
        tag_concurrency_limits=config.get("tag_concurrency_limits"),
        step_dependency_config=StepDependencyConfig.from_config(config.get("step_dependency_config")),
    )
