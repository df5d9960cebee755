"""One task worked on, from the ledger's task to the ledger's handoff; a task that has a handoff is never worked on again."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from longshot_dagster.adapters.exclusive import claim
from longshot_dagster.adapters.ledger import BuildLedger
from longshot_dagster.adapters.live_transcript import live_transcript
from longshot_dagster.adapters.order_run import BACK_OFF_S, RETRIES, Delivery, carry_out, retried, sandbox_for
from longshot_dagster.adapters.providers import not_enforced
from longshot_dagster.adapters.shipped import prompt
from longshot_dagster.core import contract
from longshot_dagster.core.clock import Clock
from longshot_dagster.core.contract import WorkResult
from longshot_dagster.core.costs import cost_usd
from longshot_dagster.core.errors import (
    BudgetExhausted,
    BuildPaused,
    Cancelled,
    HostileBundle,
    LongshotError,
    ModelUnavailable,
    RepositoryError,
)
from longshot_dagster.core.models import MAX_DIFF, MAX_PATH, BuildRequest, Handoff, HandoffMetrics, Task, WorkerRun
from longshot_dagster.core.sandbox import SandboxProvider
from longshot_dagster.core.working import (
    CANCELLED,
    MODEL_FAILED,
    OVER_BUDGET,
    Beginning,
    cancelled_handoff,
    check_results,
    concerns,
    failed,
    harness_of,
    interrupted_handoff,
    judge,
    work_order,
)

_WAIT_S = 0.2
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


class Mirror(Protocol):
    """What a worker needs of the repository."""

    def fetch(self) -> str: ...
    def bundle(self, base: str) -> Path: ...
    def intake(self, build: str, task: str, base: str, bundle: bytes) -> str: ...
    def diff(self, base: str, head: str) -> Diff: ...
    def has(self, oid: str) -> bool: ...
    def is_ancestor(self, a: str, b: str) -> bool: ...


class Usage(Protocol):
    @property
    def tokens_in(self) -> int: ...
    @property
    def tokens_out(self) -> int: ...


class Gateway(Protocol):
    """What a worker needs of the way to the model."""

    def open(self, build: str, key: str, budget: int, timeout_s: float | None = None) -> str: ...
    def close(self, build: str, key: str) -> None: ...
    def usage(self, build: str, key: str | None = None) -> Usage: ...


@dataclass(frozen=True)
class _Attempt:
    """One attempt at a task, as far as it is known before the sandbox says anything."""

    number: int
    base: str
    sandbox: str
    started_at: float
    began: float
    tokens_before: int
    budget: int = 0  # of the build, in tokens, as the gateway was told; 0 is none
    start: str | None = None  # where an interrupted worker had come to


class WorkerRunner:
    """Works on tasks of one build; one object may serve any number of threads."""

    def __init__(
        self,
        ledger: BuildLedger,
        request: BuildRequest,
        provider: SandboxProvider,
        mirror: Mirror,
        gateway: Gateway,
        clock: Clock,
    ) -> None:
        self._ledger = ledger
        self._request = request
        self._provider = provider
        self._mirror = mirror
        self._gateway = gateway
        self._clock = clock

    def run(self, task: Task, cancelled: Callable[[], bool]) -> Handoff:
        """The task's handoff, from the ledger or from a sandbox. Infrastructure trouble becomes a `failed` handoff.

        Raises Cancelled and BuildPaused (model, budget, repository out of reach), and then the task stays unfinished; what
        was done of it is recorded as interrupted, and the next worker goes on from there. A task that a person has
        cancelled is handed in with what there is of it.
        """
        if handoff := self._ledger.handoff(task.id):
            return handoff
        with self._alone(task, cancelled):
            if handoff := self._ledger.handoff(task.id):  # another process was faster
                return handoff
            began = self._clock.monotonic()

            def stop() -> bool:
                return cancelled() or self._ledger.cancel_requested(task.id)

            try:
                return retried(
                    once=lambda number: self._work(task, number, stop),
                    failed=lambda why: self._failed(task, why, began),
                    clock=self._clock,
                    cancelled=stop,
                )
            except Cancelled:
                if not self._ledger.cancel_requested(task.id):
                    raise
                return self._save(cancelled_handoff(task, self._ledger.interrupted(task.id)))

    @contextlib.contextmanager
    def _alone(self, task: Task, cancelled: Callable[[], bool]) -> Iterator[None]:
        """Only one thread of one process works on a task; a person may have started it a second time in the UI."""
        lock = self._ledger.work_lock(task.id)
        if lock is None:
            yield
            return
        while True:
            with claim(lock) as mine:
                if mine:
                    yield
                    return
            if cancelled():
                raise Cancelled(f"cancelled while another process works on {task.id}")
            self._clock.sleep(_WAIT_S)

    def _work(self, task: Task, number: int, cancelled: Callable[[], bool]) -> Handoff:
        if cancelled():
            raise Cancelled(f"cancelled before {task.id} was worked on")
        build, settings = self._request.build, self._request.settings
        started_at, began = self._clock.now(), self._clock.monotonic()
        beginning = self._beginning(task)
        base = beginning.base if beginning else self._fresh_base()
        start = beginning.head if beginning else None
        order = work_order(task, self._request, base, prompt("worker"), beginning)
        earlier = self._earlier_transcript(task) if beginning else b""
        # As it is now: `longshot resume --max-tokens` may have raised it while this process lives.
        budget = self._ledger.request().settings.max_tokens_per_build
        socket = self._gateway.open(build, task.id, budget, settings.llm_timeout)
        try:
            before = self._tokens(task)
            tags = {"build": build, "task": task.id}
            with (
                live_transcript(self._ledger.live_transcript(task.id), earlier) as live,
                sandbox_for(
                    self._provider, settings, tags, settings.worker_timeout, {contract.SOCKET: socket}
                ) as sandbox,
            ):
                attempt = _Attempt(number, base, sandbox.id, started_at, began, sum(before), budget, start)
                bundle = self._mirror.bundle(start or base)
                delivery = carry_out(sandbox, order, bundle, settings.worker_timeout, cancelled, live.add)
                said = (earlier + delivery.transcript)[-contract.MAX_TRANSCRIPT_BYTES :]
                self._ledger.save_transcript(task.id, said)
        finally:
            with contextlib.suppress(LongshotError):  # a gateway that is gone has nothing open
                self._gateway.close(build, task.id)
        return self._record(task, attempt, delivery)

    def _beginning(self, task: Task) -> Beginning | None:
        """Where an interrupted worker had come to, if that is still in the mirror."""
        done, run = self._ledger.interrupted(task.id), self._ledger.run(task.id)
        if done is None or run is None or run.head is None:
            return None
        here = self._mirror.has(run.base) and self._mirror.has(run.head)
        if not here or not self._mirror.is_ancestor(run.base, run.head):
            return None
        return Beginning(run.base, run.head, done)

    def _earlier_transcript(self, task: Task) -> bytes:
        path = self._ledger.transcript(task.id)
        return path.read_bytes() if path.exists() else b""

    def _fresh_base(self) -> str:
        """Main as it is now. A repository that cannot be reached is nobody's failed task: the build waits for it."""
        for attempt in range(RETRIES):
            with contextlib.suppress(RepositoryError):
                return self._mirror.fetch()
            self._clock.sleep(BACK_OFF_S * 2**attempt)
        try:
            return self._mirror.fetch()
        except RepositoryError as e:
            raise BuildPaused(f"{e}; longshot resume {self._request.build}") from e

    def _record(self, task: Task, attempt: _Attempt, delivery: Delivery) -> Handoff:
        """Decide what the delivery is worth, and write run and handoff, in that order. Raises Cancelled and BuildPaused."""
        result, problem, head = delivery.result, delivery.problem, None
        try:
            bundle = delivery.bundle if result and result.head else None
            head = self._mirror.intake(self._request.build, task.id, attempt.base, bundle) if bundle else None
        except HostileBundle as e:
            problem = str(e)
        if delivery.stopped:
            done = self._stopped(task, attempt, CANCELLED, result, head)
            if self._ledger.cancel_requested(task.id):
                return self._save(cancelled_handoff(task, done))
            self._keep(done)
            raise Cancelled(f"{task.id} was interrupted")
        if result is None or problem:
            status = result.harness_status if result else "crashed"
            self._save_run(task, attempt, status, error=problem, result=result)
            return self._save(failed(task, problem, sum(self._tokens(task)), self._ms_since(attempt.began)))
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
            concerns=concerns(result),
            suggestions=result.suggestions,
            metrics=self._metrics(task, attempt, result, diff),
        )
        cancelled = self._ledger.cancel_requested(task.id)  # at the very moment it was done: then it must not land
        return self._save(cancelled_handoff(task, handoff) if cancelled else handoff)

    def _stopped(
        self, task: Task, attempt: _Attempt, status: str, result: WorkResult | None, head: str | None
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

    def _keep(self, done: Handoff | None) -> None:
        if done is not None:
            self._ledger.save_interrupted(done)

    def _metrics(self, task: Task, attempt: _Attempt, result: WorkResult, diff: Diff | None) -> HandoffMetrics:
        files = diff.files if diff else ()
        return HandoffMetrics(
            lines_added=sum(f.added for f in files),
            lines_removed=sum(f.removed for f in files),
            files_created=sum(f.status == "A" for f in files),
            files_modified=sum(f.status != "A" for f in files),
            tokens_used=sum(self._tokens(task)),
            tool_call_count=min(result.metrics.tool_call_count, 1_000_000),
            duration_ms=self._ms_since(attempt.began),
        )

    def _must_have_had_a_model(self, task: Task, attempt: _Attempt, result: WorkResult, head: str | None) -> None:
        """Raises ModelUnavailable or BudgetExhausted when the gateway confirms what the sandbox claims."""
        budget = attempt.budget
        if result.harness_status == OVER_BUDGET and budget:
            spent = self._gateway.usage(self._request.build)
            if spent.tokens_in + spent.tokens_out >= budget:
                self._keep(self._stopped(task, attempt, OVER_BUDGET, result, head))
                raise BudgetExhausted(f"MAX_TOKENS_PER_BUILD={budget:,} is spent; {task.id} was not finished")
        silent = sum(self._tokens(task)) == attempt.tokens_before
        idle = head in (None, attempt.start)  # it has added nothing to what was there
        if result.harness_status == MODEL_FAILED and silent and idle:
            raise ModelUnavailable(f"no answer from the model for {task.id}: {result.error or 'no reason given'}")

    def _failed(self, task: Task, why: str, began: float) -> Handoff:
        if self._ledger.run(task.id) is None or self._ledger.interrupted(task.id) is not None:
            now = self._clock.now()
            started_at = now - (self._clock.monotonic() - began)
            self._save_run(task, _Attempt(1, self._request.base, "", started_at, began, 0), "crashed", error=why)
        return self._save(failed(task, why, sum(self._tokens(task)), self._ms_since(began)))

    def _save(self, handoff: Handoff) -> Handoff:
        self._ledger.save_handoff(handoff)
        return handoff

    def _save_run(
        self,
        task: Task,
        attempt: _Attempt,
        harness_status: str,
        error: str = "",
        result: WorkResult | None = None,
        head: str | None = None,
    ) -> None:
        settings = self._request.settings
        tokens_in, tokens_out = self._tokens(task)
        self._ledger.save_run(
            WorkerRun(
                task=task.id,
                attempt=attempt.number,
                provider=self._provider.name,
                sandbox=attempt.sandbox,
                harness=harness_of(settings),
                harness_status=harness_status,
                error=error[:2_000],
                base=attempt.base,
                head=head,
                commits=result.commits if result and head else 0,
                checks=check_results(result) if result else (),
                tokens_in=tokens_in,
                tokens_out=tokens_out,
                cost_usd=cost_usd(tokens_in, tokens_out, settings),
                not_enforced=not_enforced(settings, self._request.origins, self._provider),
                started_at=attempt.started_at,
                ended_at=self._clock.now(),
            )
        )

    def _tokens(self, task: Task) -> tuple[int, int]:
        """In and out, as the gateway counted them over all attempts."""
        usage = self._gateway.usage(self._request.build, task.id)
        return usage.tokens_in, usage.tokens_out

    def _ms_since(self, began: float) -> int:
        return max(0, int((self._clock.monotonic() - began) * 1000))


def _text(diff: Diff | None) -> str:
    return diff.text[: MAX_DIFF + 200] if diff else ""


def _names(diff: Diff | None) -> list[str]:
    return [f.path[:MAX_PATH] for f in diff.files[:_MAX_FILES]] if diff else []
