"""What a worker's delivery is worth: its run and its handoff, written to the ledger in that order."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from longshot_dagster.adapters.ledger.ledger import BuildLedger
from longshot_dagster.adapters.sandboxes.fleet import member_of
from longshot_dagster.adapters.sandboxes.providers import not_enforced
from longshot_dagster.adapters.workers.order_run import Delivery
from longshot_dagster.core.clock import Clock
from longshot_dagster.core.contract import WorkResult
from longshot_dagster.core.costs import cost_usd
from longshot_dagster.core.errors import BudgetExhausted, Cancelled, HostileBundle, LongshotError, ModelUnavailable
from longshot_dagster.core.evidence import doubts
from longshot_dagster.core.models import (
    MAX_DIFF,
    MAX_LINE,
    MAX_LIST,
    MAX_PATH,
    BuildRequest,
    Handoff,
    HandoffMetrics,
    Task,
    WorkerRun,
)
from longshot_dagster.core.sandbox import SandboxProvider
from longshot_dagster.core.working import (
    CANCELLED,
    MODEL_FAILED,
    OVER_BUDGET,
    UNPLACED,
    cancelled_handoff,
    check_results,
    concerns,
    failed,
    harness_of,
    interrupted_handoff,
    judge,
    unplaced,
)

_MAX_FILES = 5_000


class FileChange(Protocol):
    """One changed path; `status` is git's letter, `added` and `removed` are lines."""

    @property
    def path(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def added(self) -> int: ...
    @property
    def removed(self) -> int: ...


class Diff(Protocol):
    @property
    def text(self) -> str: ...
    @property
    def files(self) -> "tuple[FileChange, ...]": ...


class Intake(Protocol):
    """What handing in needs of the repository."""

    def intake(self, build: str, task: str, base: str, bundle: bytes) -> str: ...
    def diff(self, base: str, head: str) -> Diff: ...
    def find(self, oid: str, glob: str, limit: int = 200) -> list[str]: ...


class Usage(Protocol):
    @property
    def tokens_in(self) -> int: ...
    @property
    def tokens_out(self) -> int: ...


class Counts(Protocol):
    """Tokens, as the gateway counted them."""

    def usage(self, build: str, key: str | None = None) -> Usage: ...


@dataclass(frozen=True)
class Attempt:
    """One attempt at a task, as far as it is known before the sandbox says anything."""

    number: int
    base: str
    sandbox: str
    started_at: float
    began: float
    tokens_before: int
    budget: int = 0  # of the build, in tokens, as the gateway was told; 0 is none
    start: str | None = None  # where an interrupted worker had come to
    used: Usage | None = None  # by the task, when its worker had come to its end; None: the gateway has to be asked
    harness: str = ""  # it was routed to; empty: the settings'
    route: str = ""  # why there
    tried: tuple[str, ...] = ()  # what came to nothing before


class HandingIn:
    """For all tasks of one build; one object may serve any number of threads."""

    def __init__(
        self,
        ledger: BuildLedger,
        request: BuildRequest,
        provider: SandboxProvider,
        mirror: Intake,
        gateway: Counts,
        clock: Clock,
    ) -> None:
        self._ledger = ledger
        self._request = request
        self._provider = provider
        self._mirror = mirror
        self._gateway = gateway
        self._clock = clock

    def record(self, task: Task, attempt: Attempt, delivery: Delivery) -> Handoff:
        """Decide what the delivery is worth, and write run and handoff, in that order. Raises Cancelled and BuildPaused."""
        result, problem, head = delivery.result, delivery.problem, None
        if attempt.used is None:
            attempt = replace(attempt, used=self.usage(task))
        try:
            bundle = delivery.bundle if result and result.head else None
            head = self._mirror.intake(self._request.build, task.id, attempt.base, bundle) if bundle else None
        except HostileBundle as e:
            problem = str(e)
        if delivery.stopped:
            done = self.stopped(task, attempt, CANCELLED, result, head)
            if self._ledger.cancel_requested(task.id):
                return self.save(cancelled_handoff(task, done))
            self.keep(done)
            raise Cancelled(f"{task.id} was interrupted")
        if result is None or problem:
            status = result.harness_status if result else "crashed"
            self._save_run(task, attempt, status, error=problem, result=result)
            return self.save(failed(task, problem, self._tokens(task, attempt), self._ms_since(attempt.began)))
        diff = self._mirror.diff(attempt.base, head) if head else None
        changed = diff is not None and bool(diff.files)
        self._must_have_had_a_model(task, attempt, result, head)
        self._save_run(task, attempt, result.harness_status, error=result.error, result=result, head=head)
        handoff = Handoff(
            task_id=task.id,
            status=judge(result, changed),
            summary=result.summary or result.error or "(the agent gave no summary)",
            diff=_text(diff),
            files_changed=_names(diff),
            concerns=[*self._doubts(attempt, result, head, _names(diff)), *concerns(result)][:MAX_LIST],
            suggestions=result.suggestions,
            metrics=self._metrics(task, attempt, result, diff),
        )
        cancelled = self._ledger.cancel_requested(task.id)  # at the very moment it was done: then it must not land
        return self.save(cancelled_handoff(task, handoff) if cancelled else handoff)

    def _doubts(self, attempt: Attempt, result: WorkResult, head: str | None, changed: list[str]) -> list[str]:
        """Where what the worker says does not fit what was measured."""

        def exists(path: str) -> bool:
            with contextlib.suppress(LongshotError):
                return bool(self._mirror.find(head or attempt.base, path, 1))
            return True

        return doubts(result, changed, check_results(result), exists)

    def stopped(
        self, task: Task, attempt: Attempt, status: str, result: WorkResult | None, head: str | None
    ) -> Handoff | None:
        """What has been done of an unfinished task; when this worker has done nothing, what an earlier one had done."""
        diff = self._mirror.diff(attempt.base, head) if head else None
        if result is None or diff is None or not diff.files:
            earlier = self._ledger.interrupted(task.id)
            if earlier is None:
                self._save_run(task, attempt, status)
            return earlier
        self._save_run(task, attempt, status, result=result, head=head)
        metrics = self._metrics(task, attempt, result, diff)
        return interrupted_handoff(task, _names(diff), _text(diff), metrics)

    def keep(self, done: Handoff | None) -> None:
        if done is not None:
            self._ledger.save_interrupted(done)

    def _metrics(self, task: Task, attempt: Attempt, result: WorkResult, diff: Diff | None) -> HandoffMetrics:
        files = diff.files if diff else ()
        return HandoffMetrics(
            lines_added=sum(f.added for f in files),
            lines_removed=sum(f.removed for f in files),
            files_created=sum(f.status == "A" for f in files),
            files_modified=sum(f.status != "A" for f in files),
            tokens_used=self._tokens(task, attempt),
            tool_call_count=min(result.metrics.tool_call_count, 1_000_000),
            duration_ms=self._ms_since(attempt.began),
        )

    def _must_have_had_a_model(self, task: Task, attempt: Attempt, result: WorkResult, head: str | None) -> None:
        """Raises ModelUnavailable or BudgetExhausted when the gateway confirms what the sandbox claims."""
        budget = attempt.budget
        if result.harness_status == OVER_BUDGET and budget:
            spent = self._gateway.usage(self._request.build)
            if spent.tokens_in + spent.tokens_out >= budget:
                self.keep(self.stopped(task, attempt, OVER_BUDGET, result, head))
                raise BudgetExhausted(f"MAX_TOKENS_PER_BUILD={budget:,} is spent; {task.id} was not finished")
        silent = self._tokens(task, attempt) == attempt.tokens_before
        idle = head in (None, attempt.start)  # it has added nothing to what was there
        if result.harness_status == MODEL_FAILED and silent and idle:
            raise ModelUnavailable(f"no answer from the model for {task.id}: {result.error or 'no reason given'}")

    def nowhere(self, task: Task, why: str, began: float) -> Handoff:
        """No provider or harness that is configured can take it: for the planner to decide, and no model was asked."""
        now = self._clock.now()
        attempt = Attempt(1, self._request.base, "", now, began, 0, used=self.usage(task))
        self._save_run(task, attempt, UNPLACED, error=why)
        return self.save(unplaced(task, why, self._ms_since(began)))

    def failed(self, task: Task, why: str, began: float, tried: Sequence[str] = ()) -> Handoff:
        used = self.usage(task)
        if self._ledger.run(task.id) is None or self._ledger.interrupted(task.id) is not None:
            now = self._clock.now()
            started_at = now - (self._clock.monotonic() - began)
            attempt = Attempt(1, self._request.base, "", started_at, began, 0, used=used, tried=tuple(tried))
            self._save_run(task, attempt, "crashed", error=why)
        return self.save(failed(task, why, used.tokens_in + used.tokens_out, self._ms_since(began)))

    def save(self, handoff: Handoff) -> Handoff:
        self._ledger.save_handoff(handoff)
        return handoff

    def _save_run(
        self,
        task: Task,
        attempt: Attempt,
        harness_status: str,
        error: str = "",
        result: WorkResult | None = None,
        head: str | None = None,
    ) -> None:
        settings = self._request.settings
        used = attempt.used or self.usage(task)
        provider = member_of(self._provider, attempt.sandbox)
        self._ledger.save_run(
            WorkerRun(
                task=task.id,
                attempt=attempt.number,
                provider=provider.name,
                sandbox=attempt.sandbox,
                harness=attempt.harness or harness_of(settings),
                harness_status=harness_status,
                error=error[:2_000],
                base=attempt.base,
                head=head,
                commits=result.commits if result and head else 0,
                checks=check_results(result) if result else (),
                tokens_in=used.tokens_in,
                tokens_out=used.tokens_out,
                cost_usd=cost_usd(used.tokens_in, used.tokens_out, settings),
                not_enforced=not_enforced(settings, self._request.origins, provider),
                route=attempt.route[:MAX_LINE],
                tried=tuple(line[:MAX_LINE] for line in attempt.tried),
                started_at=attempt.started_at,
                ended_at=self._clock.now(),
            )
        )

    def usage(self, task: Task) -> Usage:
        """As the gateway counted it over all attempts."""
        return self._gateway.usage(self._request.build, task.id)

    def _tokens(self, task: Task, attempt: Attempt) -> int:
        used = attempt.used or self.usage(task)
        return used.tokens_in + used.tokens_out

    def _ms_since(self, began: float) -> int:
        return max(0, int((self._clock.monotonic() - began) * 1000))


def _text(diff: Diff | None) -> str:
    return diff.text[: MAX_DIFF + 200] if diff else ""


def _names(diff: Diff | None) -> list[str]:
    return [f.path[:MAX_PATH] for f in diff.files[:_MAX_FILES]] if diff else []
