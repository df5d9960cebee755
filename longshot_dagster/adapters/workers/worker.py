"""One task worked on, from the ledger's task to the ledger's handoff; a task that has a handoff is never worked on again."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from longshot_dagster.adapters.host.exclusive import claim
from longshot_dagster.adapters.host.shipped import prompt
from longshot_dagster.adapters.ledger.ledger import BuildLedger
from longshot_dagster.adapters.ledger.live_transcript import live_transcript
from longshot_dagster.adapters.sandboxes.fleet import member_of
from longshot_dagster.adapters.workers.handing_in import Attempt, Counts, HandingIn, Intake, Usage
from longshot_dagster.adapters.workers.order_run import BACK_OFF_S, RETRIES, Delivery, carry_out, retried, sandbox_for
from longshot_dagster.adapters.workers.placing import Course, Missing, Placing, only_builtin
from longshot_dagster.adapters.workers.recovery import Begun, Leftovers, take_up
from longshot_dagster.adapters.workers.warm import WarmStart, WarmStarts
from longshot_dagster.core import contract
from longshot_dagster.core.clock import Clock
from longshot_dagster.core.errors import (
    BudgetExhausted,
    BuildPaused,
    Cancelled,
    HostileBundle,
    LongshotError,
    ModelUnavailable,
    RepositoryError,
    SandboxError,
    SandboxRefused,
)
from longshot_dagster.core.models import BuildRequest, Handoff, Task
from longshot_dagster.core.routing import NoRoute, Route
from longshot_dagster.core.sandbox import Sandbox, SandboxInfo, SandboxProvider
from longshot_dagster.core.working import Beginning, cancelled_handoff, harness_named, work_order

_WAIT_S = 0.2
_BASE_AGE_S = 3.0  # workers that start together share one look at main
_LOOK_S = 5.0  # for a worker whose time is over, but who may have finished in it


class Mirror(Intake, Protocol):
    """What a worker needs of the repository."""

    @property
    def path(self) -> Path: ...
    def fetch(self, within_s: float = 0.0) -> str: ...
    def bundle(self, base: str, since: str = "") -> Path: ...
    def has(self, oid: str) -> bool: ...
    def is_ancestor(self, a: str, b: str) -> bool: ...


class Gateway(Counts, Protocol):
    """What a worker needs of the way to the model."""

    def open(self, build: str, key: str, budget: int, timeout_s: float | None = None, model: str = "") -> str: ...
    def begin(
        self, build: str, key: str, budget: int, timeout_s: float | None = None, model: str = ""
    ) -> tuple[str, Usage]: ...
    def close(self, build: str, key: str) -> Usage | None: ...


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
        missing: Missing = only_builtin,
        layers: Callable[[str], Mapping[str, str]] = lambda harness: {},
    ) -> None:
        """`missing`: which harnesses cannot run where, of those that HARNESS=auto may take. `layers`: what a sandbox is shown
        of this host for a harness, path inside -> folder.
        """
        self._layers = layers
        self._ledger = ledger
        self._request = request
        self._provider = provider
        self._mirror = mirror
        self._gateway = gateway
        self._clock = clock
        self._handing_in = HandingIn(ledger, request, provider, mirror, gateway, clock)
        self._leftovers = Leftovers(provider, request.build)
        self._placing = Placing(provider, request.settings, clock, missing)
        self._warm = WarmStarts(request, mirror, clock)

    def run(self, task: Task, cancelled: Callable[[], bool]) -> Handoff:
        """The task's handoff, from the ledger or from a sandbox. Infrastructure trouble becomes a `failed` handoff.

        Raises Cancelled and BuildPaused (model, budget, repository out of reach), and then the task stays unfinished; what
        was done of it is recorded as interrupted, and the next worker goes on from there. A task that a person has
        cancelled is handed in with what there is of it.
        """
        if handoff := self._ledger.handoff(task.id):
            return handoff
        with self._alone(task, cancelled) as waited:
            if handoff := self._ledger.handoff(task.id):  # another process was faster
                return handoff
            began = self._clock.monotonic()
            course = Course(began)

            def stop() -> bool:
                return cancelled() or self._ledger.cancel_heard(task.id)

            try:
                return retried(
                    once=lambda number: (
                        self._recovered(task, waited or number > 1, stop) or self._work(task, number, stop, course)
                    ),
                    failed=lambda why: self._handing_in.failed(task, why, began, course.notes),
                    clock=self._clock,
                    cancelled=stop,
                )
            except Cancelled:
                if not self._ledger.cancel_requested(task.id):
                    raise
                return self._handing_in.save(cancelled_handoff(task, self._ledger.interrupted(task.id)))

    @contextlib.contextmanager
    def _alone(self, task: Task, cancelled: Callable[[], bool]) -> Iterator[bool]:
        """Only one thread of one process works on a task; a person may have started it a second time in the UI.

        True when somebody else was at it a moment ago.
        """
        lock, waited = self._ledger.work_lock(task.id), False
        if lock is None:
            yield waited
            return
        while True:
            with claim(lock) as mine:
                if mine:
                    yield waited
                    return
            waited = True
            if cancelled():
                raise Cancelled(f"cancelled while another process works on {task.id}")
            self._clock.sleep(_WAIT_S)

    def _work(self, task: Task, number: int, cancelled: Callable[[], bool], course: Course) -> Handoff:
        if cancelled():
            raise Cancelled(f"cancelled before {task.id} was worked on")
        if isinstance(nowhere := self._placing.find(task, course.tried), NoRoute):
            return self._handing_in.nowhere(task, nowhere.reason, course.began)
        build, settings = self._request.build, self._request.settings
        started_at, began = self._clock.now(), self._clock.monotonic()
        beginning = self._beginning(task)
        base = beginning.base if beginning else self._fresh_base()
        start = beginning.head if beginning else None
        earlier = self._earlier_transcript(task) if beginning else course.transcript
        # As it is now: `longshot resume --max-tokens` may have raised it while this process lives.
        budget = self._ledger.request().settings.max_tokens_per_build
        socket, spent = self._gateway.begin(build, task.id, budget, settings.llm_timeout, settings.llm_model)
        before = spent.tokens_in + spent.tokens_out
        unkept = threading.Event()  # a full disk, say: the sandbox stays, and the next attempt finds everything done
        with contextlib.ExitStack() as way:
            way.callback(self._closed, task)
            tags, begun = {"build": build, "task": task.id}, Begun(base, start, before)
            with (
                live_transcript(self._ledger.live_transcript(task.id), earlier) as live,
                self._placed(task, course, tags, {contract.SOCKET: socket}, begun, unkept.is_set, cancelled) as found,
            ):
                sandbox, taken, warm = found
                order = work_order(task, self._request, base, prompt("worker"), beginning, taken.agent)
                attempt = Attempt(number, base, sandbox.id, started_at, began, before, budget, start)
                attempt = replace(attempt, harness=taken.agent, route=taken.reason, tried=tuple(course.notes))
                bundle = warm.bundle if warm else self._mirror.bundle(start or base)
                order = order.model_copy(update={"holds": warm.holds if warm else None})
                delivery = carry_out(sandbox, order, bundle, settings.worker_timeout, cancelled, live.add)
                unkept.set()
                way.pop_all()
                used = self._closed(task)
                said = (earlier + delivery.transcript)[-contract.MAX_TRANSCRIPT_BYTES :]
                self._ledger.save_transcript(task.id, said)
                heard = used is None or used.tokens_in + used.tokens_out > before
                if why := self._placing.elsewhere(task, number, course, taken, delivery, heard):
                    course.transcript = said
                    unkept.clear()
                    raise SandboxError(f"{taken.agent} at {taken.place}: {why}")
                # Of a worker that was ended, a request may just be being counted.
                attempt = replace(attempt, used=None if delivery.stopped or delivery.result is None else used)
                try:
                    handoff = self._handing_in.record(task, attempt, delivery)
                except (BuildPaused, Cancelled):  # what there was of it is kept
                    unkept.clear()
                    raise
                unkept.clear()
                return handoff

    @contextlib.contextmanager
    def _placed(
        self,
        task: Task,
        course: Course,
        tags: Mapping[str, str],
        sockets: Mapping[str, str],
        begun: Begun,
        stays: Callable[[], bool],
        cancelled: Callable[[], bool],
    ) -> Iterator[tuple[Sandbox, Route, WarmStart | None]]:
        """A sandbox at the best provider that makes one, the route taken, and what of the repository it holds already.

        Raises SandboxError once each was asked.
        """
        asked = set[str]()
        with contextlib.ExitStack() as made:
            while True:
                taken = self._placing.find(task, course.tried)
                if isinstance(taken, NoRoute):
                    raise SandboxRefused(taken.reason)
                told = {**begun.tags, "harness": taken.agent}
                provider = self._placing.provider(taken.place)
                try:
                    warm = self._warm.find(provider, begun.start or begun.base, cancelled)
                    gpu = task.needs.gpu if task.needs else ""
                    sandbox, warm = self._made(provider, warm, tags, sockets, told, stays, made, gpu)
                except SandboxError as e:
                    self._placing.failed(taken.place, e)
                    course.came_to_nothing(taken, "place", f"no sandbox: {e}")
                    asked.add(taken.place)
                    further = self._placing.find(task, course.tried)
                    if isinstance(further, NoRoute) or further.place in asked:
                        raise
                else:
                    self._placing.worked(taken.place)
                    break
            yield sandbox, taken, warm

    def _made(
        self,
        provider: SandboxProvider,
        warm: WarmStart | None,
        tags: Mapping[str, str],
        sockets: Mapping[str, str],
        notes: Mapping[str, str],
        stays: Callable[[], bool],
        until: contextlib.ExitStack,
        gpu: str,
    ) -> tuple[Sandbox, WarmStart | None]:
        """A sandbox, made of the snapshot if that can be had, and without it otherwise. Raises SandboxError."""
        settings = self._request.settings
        image = warm.image if warm else ""
        try:
            layers = self._layers(notes["harness"])
            within_s = settings.worker_timeout
            context = sandbox_for(provider, settings, tags, within_s, sockets, notes, stays, image, layers, gpu)
            return until.enter_context(context), warm
        except SandboxError:
            if warm is None:
                raise
        self._warm.spoilt(provider, warm)
        return self._made(provider, None, tags, sockets, notes, stays, until, gpu)

    def _closed(self, task: Task) -> Usage | None:
        """What the task has used, once nothing more can come from its sandbox; a gateway that is gone has nothing open."""
        with contextlib.suppress(LongshotError):
            return self._gateway.close(self._request.build, task.id)
        return None

    # --- after a crash -----------------------------------------------------------------------------------------------

    def recover(self, task: Task, cancelled: Callable[[], bool]) -> bool:
        """Keep what a killed process has left of `task`, and end its sandboxes; False while somebody is at work on it.

        A worker that had finished is handed in; of any other what it had done is recorded as interrupted.
        Raises SandboxError, and BuildPaused as `run` does.
        """
        lock = self._ledger.work_lock(task.id)
        with claim(lock) if lock else contextlib.nullcontext(True) as mine:
            if mine:
                self._recovered(task, True, cancelled)
            return mine

    def _recovered(self, task: Task, anew: bool, cancelled: Callable[[], bool]) -> Handoff | None:
        """The handoff of a worker that has come to its end without its orchestrator. What others have left goes with them
        once it is kept. What is spoilt only means that the task is worked on anew.

        Raises RepositoryError and OSError when it cannot be kept now; then it is there for the next attempt.
        """
        found: Handoff | None = None
        for info in self._leftovers.take(task.id, anew=anew):
            holds_work = found is None and self._may_hold_work(task, info)
            provider = member_of(self._provider, info.id)
            lives_on = provider.capabilities.survives_client
            way: dict[str, str] = {}
            if holds_work and lives_on and not cancelled():
                # Its way to the model ended with its orchestrator, or with the gateway. Without one, it is left for later.
                budget, given = self._ledger.request().settings.max_tokens_per_build, self._request.settings
                way[contract.SOCKET] = self._gateway.open(
                    self._request.build, task.id, budget, given.llm_timeout, given.llm_model
                )
            with contextlib.suppress(SandboxError):  # one that has gone meanwhile, or cannot be reached
                sandbox = self._provider.attach(info.id)
                over = True
                try:
                    if holds_work:
                        with contextlib.suppress(SandboxError, HostileBundle):
                            found = self._taken_up(task, info, sandbox, cancelled, way)
                except (ModelUnavailable, BudgetExhausted):  # known, and kept, as when its orchestrator had lived
                    raise
                except (LongshotError, OSError):  # a full disk, say: nothing is wrong with the work
                    self._leftovers.put_back(task.id, info)
                    over = False
                    raise
                finally:
                    if over:
                        with contextlib.suppress(SandboxError):
                            sandbox.terminate()
                    if holds_work and lives_on:
                        with contextlib.suppress(LongshotError):
                            self._gateway.close(self._request.build, task.id)
        return found

    def _may_hold_work(self, task: Task, info: SandboxInfo) -> bool:
        """Not when all of it was taken in before: then its orchestrator died a moment before it could end the sandbox."""
        run = self._ledger.run(task.id)
        kept = run is not None and run.sandbox == info.id and self._ledger.interrupted(task.id) is not None
        aside = any(r is not None and r.sandbox == info.id for _, r, _ in self._ledger.earlier_work(task.id))
        return not kept and not aside and self._ledger.handoff(task.id) is None

    def _taken_up(
        self,
        task: Task,
        info: SandboxInfo,
        sandbox: Sandbox,
        cancelled: Callable[[], bool],
        way: Mapping[str, str],
    ) -> Handoff | None:
        begun = Begun.of(info.tags)
        if begun is None or not self._mirror.has(begun.base) or not self._mirror.has(begun.start or begun.base):
            return None
        budget = self._ledger.request().settings.max_tokens_per_build
        age_s = max(0.0, self._clock.now() - info.created_at)
        began, start = self._clock.monotonic() - age_s, begun.start
        attempt = Attempt(1, begun.base, info.id, info.created_at, began, begun.tokens, budget, start)
        attempt = replace(attempt, harness=harness_named(info.tags.get("harness", "")))
        earlier = self._earlier_transcript(task) if start else b""
        delivery = self._delivered(task, attempt, sandbox, age_s, earlier, cancelled, way)
        if delivery.result is None:
            return None
        bundle = delivery.bundle if delivery.result.head else None
        head = self._mirror.intake(self._request.build, task.id, begun.base, bundle) if bundle else None
        if not earlier.endswith(delivery.transcript):
            self._ledger.save_transcript(task.id, (earlier + delivery.transcript)[-contract.MAX_TRANSCRIPT_BYTES :])
        if not delivery.stopped:
            return self._handing_in.record(task, attempt, delivery)
        self._handing_in.keep(self._handing_in.stopped(task, attempt, "crashed", delivery.result, head))
        return None

    def _delivered(
        self,
        task: Task,
        attempt: Attempt,
        sandbox: Sandbox,
        age_s: float,
        earlier: bytes,
        cancelled: Callable[[], bool],
        way: Mapping[str, str],
    ) -> Delivery:
        """What comes out of the sandbox that another process had made `age_s` ago for this attempt."""
        order = work_order(task, self._request, attempt.base, "").model_copy(update={"start": attempt.start})
        left_s = max(_LOOK_S, self._request.settings.worker_timeout - age_s)
        with live_transcript(self._ledger.live_transcript(task.id), earlier) as live:
            provider = member_of(self._provider, attempt.sandbox)
            return take_up(provider, sandbox, order, left_s, cancelled, live.add, way)

    # --- what a worker begins with -----------------------------------------------------------------------------------

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
                return self._mirror.fetch(_BASE_AGE_S)
            self._clock.sleep(BACK_OFF_S * 2**attempt)
        try:
            return self._mirror.fetch(_BASE_AGE_S)
        except RepositoryError as e:
            raise BuildPaused(f"{e}; longshot resume {self._request.build}") from e
