"""Which steps of a run may start now, at a cost in proportion to what has changed, and first come the most urgent.

Dagster's own state machine looks at every step of a run at every event, and asks the database about every step that waits
for a slot of a pool. With 1,000 tasks and 200 slots that was three quarters of a run's CPU time.

A part of executor.py that has a module of its own for its length: see there for what holds its private imports.
"""

import heapq
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import dagster as dg
from dagster._core.execution.plan.active import ActiveExecution
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._core.execution.plan.step import ExecutionStep
from dagster._core.execution.retries import RetryMode
from dagster._core.execution.step_dependency_config import StepDependencyConfig
from dagster._core.instance.config import PoolGranularity
from dagster._core.storage.tags import GLOBAL_CONCURRENCY_TAG

from longshot_dagster.core.apart import HeldBack, Start
from longshot_dagster.defs.event_storage import KeptSqliteEventLogStorage

CLAIM_CHECK_S = 0.5  # Dagster's own back-off between claims grows to 15 s, in which a free slot stays idle
_TOLD_AGAIN_S = 300.0
_MOST_TOLD = 50  # of the steps that are held back

_priorities: dict[str, dict[str, int]] = {}
_apart: dict[str, "Starting"] = {}
_guard = threading.Lock()


def prioritise(run_id: str, priorities: Mapping[str, int]) -> None:
    """Mapped steps of a run, by mapping key, wait for slots in this order, across all runs; the highest number is first.

    A step's tags are the same for everything it is mapped over, so they cannot say it.
    """
    with _guard:
        _priorities.setdefault(run_id, {}).update(priorities)


class Starting(Protocol):
    """Who decides which waiting tasks may start beside those at work: `adapters/ledger/apart.py`."""

    def starting(self, waiting: Sequence[str]) -> AbstractContextManager[Start]: ...
    def begun(self, tasks: Iterable[str]) -> None: ...


def keep_apart(run_id: str, who: Starting) -> None:
    """Mapped steps of a run are its tasks; those that `who` holds back are in no line for a slot, so that others get it."""
    with _guard:
        _apart[run_id] = who


class PromptClaims(InstanceConcurrencyContext):
    """Slots of pools for the waiting steps of one run, all asked for at once, again every `CLAIM_CHECK_S` seconds."""

    def __init__(self, instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
        super().__init__(instance, run)
        self._waiting: dict[str, dict[str, int]] = {}  # pool -> step -> priority, in the order they came
        self._held: dict[str, str] = {}  # step -> pool
        self._won: set[str] = set()  # for `claim` alone: hold a slot, and have not been told so
        self._next_look: dict[str, float] = {}
        self._limits: dict[str, int | None] = {}
        self._told_at: dict[str, float] = {}
        self._tasks: dict[str, str] = {}  # waiting step -> its task
        self._in_line: set[str] = set()
        self._held_back: dict[str, HeldBack] = {}  # by step
        self._told_behind: dict[str, str] = {}  # step -> what it was said to wait for

    def __exit__(self, *raised: Any) -> None:
        self.withdraw()
        with _guard:
            _priorities.pop(self._run_id, None)
            _apart.pop(self._run_id, None)
        super().__exit__(*raised)

    def wait_for(self, pool: str, step_key: str, mapping_key: str | None, step_priority: int) -> None:
        """Get in line. A task's own priority counts for its slot; else that of run and step, as Dagster adds them."""
        with _guard:
            own = _priorities.get(self._run_id, {}).get(mapping_key or "")
        if mapping_key:
            self._tasks[step_key] = mapping_key.replace("_", "-")
        self._waiting.setdefault(pool, {})[step_key] = self._run_priority + step_priority if own is None else own
        self._pending_claims.add(step_key)
        self._next_look[pool] = 0.0

    def granted(self, room: int | None) -> list[str]:
        """Steps that may start with their slots, at most `room` of them; they wait no more."""
        now = time.monotonic()
        steps: list[str] = []
        for pool, waiting in self._waiting.items():
            left = None if room is None else room - len(steps)
            if not waiting or left == 0 or now < self._next_look[pool]:
                continue
            self._next_look[pool] = now + CLAIM_CHECK_S
            for step in self._started(pool, waiting, left):
                del waiting[step]
                self._pending_claims.discard(step)
                self._tasks.pop(step, None)
                self._in_line.discard(step)
                self._told_behind.pop(step, None)
                steps.append(step)
        return steps

    def _started(self, pool: str, waiting: Mapping[str, int], at_most: int | None) -> Sequence[str]:
        """Those that get a slot, of those that may start beside what is at work; the others are in nobody's way."""
        with _guard:
            apart = _apart.get(self._run_id)
        steps = {self._tasks[step]: step for step in waiting if step in self._tasks}
        if apart is None or not steps:
            return self._claimed(pool, waiting, at_most)
        with apart.starting(list(steps)) as start:
            free = [steps[task] for task in start.order]
            self._hold_back(free, {steps[task]: behind for task, behind in start.held.items()})
            others = [step for step in waiting if step not in self._tasks]
            claimed = self._claimed(pool, {step: waiting[step] for step in (*free, *others)}, at_most)
            apart.begun(self._tasks[step] for step in claimed if step in self._tasks)
        return claimed

    def _hold_back(self, free: Iterable[str], held: Mapping[str, HeldBack]) -> None:
        """A place in line that is not used would keep a slot from others."""
        for step in self._in_line & held.keys():
            self._instance.event_log_storage.free_concurrency_slot_for_step(self._run_id, step)
        self._in_line.difference_update(held)
        self._in_line.update(free)
        for step in free:
            self._held_back.pop(step, None)
        self._held_back.update(held)

    def claim(self, concurrency_key: str, step_key: str, step_priority: int = 0) -> bool:
        """As Dagster asks where tag limits are set: for one step at a time."""
        if step_key not in self._pending_claims and step_key not in self._won:
            mapping_key = step_key.partition("[")[2].rstrip("]") or None
            self.wait_for(concurrency_key, step_key, mapping_key, step_priority)
        self._won.update(self.granted(None))
        won = step_key in self._won
        self._won.discard(step_key)
        return won

    def free_step(self, step_key: str) -> None:
        super().free_step(step_key)
        if pool := self._held.pop(step_key, None):
            self._next_look[pool] = 0.0  # the next in line may be one of ours

    def withdraw(self) -> None:
        """Nothing of this run waits any more."""
        if self._pending_claims:
            storage = self._instance.event_log_storage
            if isinstance(storage, KeptSqliteEventLogStorage):
                storage.withdraw_steps(self._run_id)
            else:
                for step in self._pending_claims:
                    storage.free_concurrency_slot_for_step(self._run_id, step)
        self._pending_claims.clear()
        self._waiting.clear()

    def news(self) -> Iterator[str]:
        """Why steps do not start, a line per pool, now and then; Dagster writes an event per step."""
        now = time.monotonic()
        for step, held in list(self._held_back.items())[:_MOST_TOLD]:
            if step in self._tasks and self._told_behind.get(step) != held.why:
                self._told_behind[step] = held.why
                yield f"{held.task} {held.why}"
        for pool, all_waiting in self._waiting.items():
            waiting = all_waiting.keys() - self._held_back.keys()
            if not waiting:
                self._told_at.pop(pool, None)
            elif now - self._told_at.get(pool, -_TOLD_AGAIN_S) >= _TOLD_AGAIN_S:
                self._told_at[pool] = now
                limit = self._limits.get(pool)
                slots = (
                    "which is paused: its limit is 0" if limit == 0 else f"whose limit is {limit} in all runs together"
                )
                yield f"{len(waiting)} steps wait for a slot of the pool {pool}, {slots}"

    def _claimed(self, pool: str, waiting: Mapping[str, int], at_most: int | None) -> Sequence[str]:
        storage = self._instance.event_log_storage
        if not storage.supports_global_concurrency_limits or self._pool_config.pool_granularity == PoolGranularity.RUN:
            return list(waiting)[:at_most]
        if pool not in self._limits:
            self._begin_with_default(pool)
        if not isinstance(storage, KeptSqliteEventLogStorage):
            return self._claimed_singly(pool, waiting, at_most)
        holding = sum(held == pool for held in self._held.values())
        found = storage.claim_slots(pool, self._run_id, waiting, holding, at_most)
        self._limits[pool] = found.limit
        if found.limit is not None:
            self._claims.update(found.steps)
            self._held.update(dict.fromkeys(found.steps, pool))
        return found.steps[:at_most]

    def _begin_with_default(self, pool: str) -> None:
        default, info = self._pool_config.default_pool_limit, self.get_pool_info(pool)
        if (info is None and default is not None) or (info is not None and info.from_default and info.limit != default):
            self._instance.event_log_storage.initialize_concurrency_limit_to_default(pool)

    def _claimed_singly(self, pool: str, waiting: Mapping[str, int], at_most: int | None) -> list[str]:
        """With Dagster's other storages: one query says whose turn it is, and they are asked for one after another."""
        info = self._instance.event_log_storage.get_concurrency_info(pool)
        self._limits[pool] = info.limit
        in_line = {p.step_key: p.assigned_timestamp for p in info.pending_steps if p.run_id == self._run_id}
        turn = [s for s in waiting if info.limit is None or s not in in_line or in_line[s] is not None]
        found: list[str] = []
        for step in turn:
            if at_most is not None and len(found) >= at_most:
                break
            self._pending_timeouts[step] = 0.0
            if super().claim(pool, step, waiting[step] - self._run_priority):
                found.append(step)
            self._pending_claims.add(step)
        self._held.update({step: pool for step in found if step in self._claims})
        return found


class ReadySteps(ActiveExecution):
    """Dagster's state machine, which is shown only those of the steps behind something whose turn may have come."""

    def __init__(
        self,
        plan: ExecutionPlan,
        retries: RetryMode,
        *,
        claims: PromptClaims,
        max_concurrent: int | None,
        tag_concurrency_limits: list[dict[str, Any]] | None,
        step_dependency_config: StepDependencyConfig,
    ) -> None:
        self._behind: dict[str, set[str]] = {}  # steps that wait for others, and for which
        self._followers: dict[str, list[str]] = {}
        self._indexed: set[str] = set()
        self._line: list[tuple[float, int, str]] = []  # ready, by urgency, then age: a heap
        self._came = 0
        self._for_slots: dict[str, ExecutionStep] = {}
        self._pool_claims = claims
        super().__init__(
            plan,
            retries,
            max_concurrent=max_concurrent,
            tag_concurrency_limits=tag_concurrency_limits,
            instance_concurrency_context=claims,
            step_dependency_config=step_dependency_config,
        )

    @property
    def is_complete(self) -> bool:
        return not self._behind and not self._line and not self._for_slots and super().is_complete

    def _update(self) -> None:
        """Steps in `_pending` are looked at; those that must wait go to `_behind`, until one they wait for has ended."""
        if not self._pending and not self._new_dynamic_mappings and not self._waiting_to_retry:
            return
        super()._update()
        if not self._step_dependency_config.require_upstream_step_success:
            return  # an output may let a step start before the step that made it has ended: all are looked at
        for step, others in self._pending.items():
            self._behind[step] = others
            if step not in self._indexed:
                self._indexed.add(step)
                for other in others:
                    self._followers.setdefault(other, []).append(step)
        self._pending.clear()

    def _mark_complete(self, step_key: str) -> None:
        super()._mark_complete(step_key)
        for follower in self._followers.get(step_key, ()):
            if follower in self._behind:
                self._pending[follower] = self._behind.pop(follower)

    def get_known_state(self) -> KnownExecutionState:
        """With a copy of the outputs, which grow while step threads read them; Dagster would look at each of them anew."""
        return self._plan.known_state._replace(
            previous_retry_attempts=self._retry_state.snapshot_attempts(),
            dynamic_mappings=dict(self._completed_dynamic_outputs),
            ready_outputs=set(self._step_outputs),
        )

    def get_steps_to_execute(self, limit: int | None = None) -> Sequence[ExecutionStep]:
        if self._tag_concurrency_limits or limit is not None:
            return super().get_steps_to_execute(limit)
        self._update()
        for key in self._executable:
            heapq.heappush(self._line, (self._sort_key_fn(self.get_step_by_key(key)), self._came, key))
            self._came += 1
        self._executable.clear()
        room = None if self._max_concurrent is None else self._max_concurrent - len(self._in_flight)
        batch = self._without_slots(room)
        left = None if room is None else room - len(batch)
        batch += [self._for_slots.pop(key) for key in self._pool_claims.granted(left)]
        for step in batch:
            self._in_flight.add(step.key)
            self._prep_for_dynamic_outputs(step)
        return batch

    def _without_slots(self, room: int | None) -> list[ExecutionStep]:
        """Ready steps that need no slot; the others get in line for one."""
        batch: list[ExecutionStep] = []
        while self._line and (room is None or len(batch) < room):
            step = self.get_step_by_key(heapq.heappop(self._line)[2])
            if pool := step.pool or step.tags.get(GLOBAL_CONCURRENCY_TAG):
                self._for_slots[step.key] = step
                urgency = -int(self._sort_key_fn(step))
                self._pool_claims.wait_for(pool, step.key, step.get_mapping_key(), urgency)
            else:
                batch.append(step)
        return batch
