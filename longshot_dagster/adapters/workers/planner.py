"""A planner's rounds: one persistent conversation each, read-only tools on a pinned commit, and an answer that is checked."""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from longshot_dagster.adapters.gateway.gateway_client import Gateway
from longshot_dagster.adapters.host.shipped import prompt
from longshot_dagster.adapters.ledger.ledger import BuildLedger
from longshot_dagster.adapters.repository.mirror import Mirror
from longshot_dagster.adapters.repository.reading_tools import reading_tools
from longshot_dagster.adapters.workers.llm import converse, silent
from longshot_dagster.core.clock import Clock
from longshot_dagster.core.display import display, one_line
from longshot_dagster.core.errors import LedgerError, LongshotError, PlanUnreadable
from longshot_dagster.core.ids import FIX, ROOT, IterationKey
from longshot_dagster.core.landing_records import LandingState
from longshot_dagster.core.lifecycle import BuildView, fixable_conflicts, fixable_sweep, unseen_handoffs
from longshot_dagster.core.models import (
    MAX_LINE,
    BuildRequest,
    Plan,
    PlanReply,
    RepoState,
    Task,
)
from longshot_dagster.core.plan_reply import SHAPE, read_reply
from longshot_dagster.core.planner_messages import RoundFacts, first_message, follow_up
from longshot_dagster.core.planning import (
    MAX_CONFLICT_FIXES,
    Rules,
    TaskReport,
    atomic_plan,
    conflict_fix,
    objections,
    outside_of,
    plan_tasks,
)
from longshot_dagster.core.reconciling import check_fix_tasks, reconciler_message

VALIDATION_RETRIES = 3
MAX_REQUESTS = 80  # to the model in one round; each may be a look at the repository
_CUT_OFF = "The answer was cut off; only its complete tasks were taken. Plan again what is missing."
_NOT_LANDED = (LandingState.CONFLICT, LandingState.WITHHELD, LandingState.UNDONE)


class Turn(BaseModel):
    """`planners/<planner>/<nnn>.json`: one round's answer and the whole conversation up to it.

    A plan is derived from its turn, so a crash between the two asks no model again.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int = 1
    iteration: str
    head: str = Field(description="the commit the planner read")
    handoffs_seen: tuple[str, ...] = ()
    sweep: int | None = None
    reply: PlanReply
    notes: tuple[str, ...] = ()
    tokens: int = 0
    duration_ms: int = 0
    messages: list[Any] = Field(default_factory=list, description="never compacted")


class Planner:
    """Root planner, subplanners and reconciler of one build."""

    def __init__(
        self,
        ledger: BuildLedger,
        request: BuildRequest,
        mirror: Mirror,
        gateway: Gateway,
        clock: Clock,
        max_requests: int = MAX_REQUESTS,
    ) -> None:
        self._ledger = ledger
        self._request = request
        self._mirror = mirror
        self._gateway = gateway
        self._clock = clock
        self._max_requests = max_requests

    def plan(self, key: IterationKey, state: RepoState, view: BuildView) -> Plan:
        """The round's plan, which the caller freezes.

        Raises ModelUnavailable, PlanUnreadable, BudgetExhausted: nothing is lost, and the round can be asked again.
        """
        if key.planner == FIX:
            return self._fixes(key, state, view)
        parent = None if key.planner == ROOT else self._ledger.existing_task(key.planner)
        turn = self._saved_turn(key) or self._planning_turn(key, state, view, parent)
        if parent is not None and key.number == 1 and not turn.reply.tasks:
            tasks = atomic_plan(parent, key, state).tasks
        else:
            tasks = plan_tasks(turn.reply, key, self._request, parent, self._unlanded_ids(view))
        return self._plan(key, turn, tasks)

    # --- rounds ------------------------------------------------------------------------------------------------------

    def _planning_turn(self, key: IterationKey, state: RepoState, view: BuildView, parent: Task | None) -> Turn:
        earlier = self._earlier_turn(key)
        seen = unseen_handoffs(view, key.planner)
        active = self._active(view, key)
        facts = RoundFacts(
            key=key,
            request=self._request.request,
            state=state,
            previous=self._ledger.repo_state(key._replace(number=key.number - 1)) if earlier else None,
            parent=parent,
            reports=tuple(self._reports(seen)),
            active=active,
            unlanded=tuple(self._reports(t.id for t in view.tasks if t.landing in _NOT_LANDED and t.id not in seen)),
            landings=_counted(view),
            sweep=self._newest_sweep(view),
            scratchpad=earlier.reply.scratchpad if earlier else "",
            notes=earlier.notes if earlier else (),
        )
        return self._ask(
            key,
            role="root-planner" if key.planner == ROOT else "subplanner",
            message=follow_up(facts) if earlier else first_message(facts),
            earlier=earlier,
            rules=Rules(key, parent, active, self._request.settings),
            turn={"head": state.head, "handoffs_seen": seen},
        )

    def _fixes(self, key: IterationKey, state: RepoState, view: BuildView) -> Plan:
        """Conflicts become tasks without a model; the reconciler's model answers a red sweep."""
        conflicts = [
            conflict_fix(report, self._collided(report), key, self._request, position)
            for position, report in enumerate(self._reports(fixable_conflicts(view)[:MAX_CONFLICT_FIXES]), 1)
        ]
        turn = self._saved_turn(key)
        sweep = fixable_sweep(view)
        if turn is None and sweep is not None:
            turn = self._reconciling_turn(key, state, view, sweep)
        if turn is None:
            return Plan(iteration=key.short, tasks=tuple(conflicts), base=state.head)
        mending = check_fix_tasks(turn.reply, key, self._request, len(conflicts) + 1, self._unlanded_ids(view))
        return self._plan(key, turn, (*conflicts, *mending))

    def _reconciling_turn(self, key: IterationKey, state: RepoState, view: BuildView, number: int) -> Turn:
        sweep = next(s for s in self._ledger.sweeps() if s.number == number)
        active = self._active(view, key)
        return self._ask(
            key,
            role="reconciler",
            message=reconciler_message(key, self._request.request, state, sweep, active),
            earlier=None,
            rules=Rules(key, None, active, self._request.settings),
            turn={"head": state.head, "sweep": number},
        )

    def _plan(self, key: IterationKey, turn: Turn, tasks: tuple[Task, ...]) -> Plan:
        return Plan(
            iteration=key.short,
            tasks=tasks,
            handoffs_seen=turn.handoffs_seen,
            sweep=turn.sweep,
            base=turn.head,
            scratchpad=turn.reply.scratchpad,
            tokens=turn.tokens,
            duration_ms=turn.duration_ms,
            notes=turn.notes,
        )

    # --- asking the model --------------------------------------------------------------------------------------------

    def _ask(
        self, key: IterationKey, role: str, message: str, earlier: Turn | None, rules: Rules, turn: dict[str, Any]
    ) -> Turn:
        """Ask, check and save; `turn` holds the fields that are known before."""
        build, settings, account = key.build, self._request.settings, f"planner-{key.planner}"
        began = self._clock.monotonic()
        check = _Check(rules)
        budget = settings.max_tokens_per_build
        socket = self._gateway.open(build, account, budget, settings.llm_timeout, settings.llm_model)
        try:
            before = self._gateway.usage(build, account).total
            said = converse(
                socket,
                settings,
                build,
                system=prompt(role),
                message=message,
                history=earlier.messages if earlier else [],
                tools=reading_tools(self._mirror, turn["head"]),
                accept=check.complaint,
                retries=VALIDATION_RETRIES,
                max_requests=self._max_requests,
                comes_back=self._gateway.comes_back,
            )
            tokens = self._gateway.usage(build, account).total - before
        finally:
            with contextlib.suppress(LongshotError):
                self._gateway.close(build, account)
        if said.messages is None or check.reply is None:
            if check.answers:
                raise check.unreadable(build, settings.llm_model)
            raise silent(build, settings, said.problem)
        answered = Turn(
            iteration=key.short,
            reply=check.reply,
            notes=tuple(check.notes),
            tokens=tokens,
            duration_ms=int((self._clock.monotonic() - began) * 1000),
            messages=said.messages,
            **turn,
        )
        self._ledger.save_planner_turn(key.planner, key.number, answered.model_dump_json().encode())
        return answered

    # --- the ledger --------------------------------------------------------------------------------------------------

    def _saved_turn(self, key: IterationKey) -> Turn | None:
        data = self._ledger.planner_turn(key.planner, key.number)
        if data is None:
            return None
        try:
            return Turn.model_validate_json(data)
        except ValidationError as e:
            raise LedgerError(f"planning round {key.short} of build {key.build} cannot be read from the ledger") from e

    def _earlier_turn(self, key: IterationKey) -> Turn | None:
        numbers = range(key.number - 1, 0, -1)
        return next((t for n in numbers if (t := self._saved_turn(key._replace(number=n))) is not None), None)

    def _reports(self, tasks: Iterable[str]) -> list[TaskReport]:
        ledger = self._ledger
        return [TaskReport(ledger.existing_task(t), ledger.handoff(t), ledger.landing(t)) for t in tasks]

    def _collided(self, report: TaskReport) -> dict[str, Task]:
        others = report.landing.conflict_with if report.landing else ()
        return {name: task for name in others if (task := self._ledger.task(name)) is not None}

    def _active(self, view: BuildView, key: IterationKey) -> tuple[Task, ...]:
        ours = (t for t in view.tasks if not t.settled and t.id != key.planner)
        return tuple(self._ledger.existing_task(t.id) for t in ours)

    def _newest_sweep(self, view: BuildView) -> Any:
        return self._ledger.sweeps()[-1] if view.sweep else None

    def _unlanded_ids(self, view: BuildView) -> frozenset[str]:
        landed = (LandingState.LANDED, LandingState.SUPERSEDED)
        return frozenset(t.id for t in view.tasks if not t.delegated and t.landing not in landed)


@dataclass
class _Check:
    """Reads each answer of one round; sends it back while it may, and takes what is usable at the end."""

    rules: Rules
    reply: PlanReply | None = None
    notes: list[str] = field(default_factory=list)
    answers: int = 0
    problem: str = ""
    beginning: str = ""
    _said_soft: bool = False

    def complaint(self, text: str) -> str:
        """What the model must do better; "" when the answer is taken."""
        self.answers += 1
        self.beginning = one_line(text, 120)
        last = self.answers > VALIDATION_RETRIES
        found = read_reply(text)
        if found.reply is None:
            return self._back(found.problems)
        wrong = objections(found.reply, self.rules)
        hard = [*found.problems, *wrong.hard]
        soft = () if self._said_soft else wrong.soft
        if (hard or soft) and not last:
            self._said_soft = self._said_soft or bool(soft)
            return self._back([*hard, *soft])
        if hard and not self._usable(found.reply):
            return self._back(hard)
        notes = [_CUT_OFF] if found.cut_off else []
        self.notes = [n[:MAX_LINE] for n in [*notes, *(f"Not taken: {h}" for h in hard)]]
        self.reply = found.reply
        return ""

    def unreadable(self, build: str, model: str) -> PlanUnreadable:
        """Why the round has no plan."""
        return PlanUnreadable(
            f"model {model} answered {self.answers} times without a usable plan ({self.problem}; its last answer began "
            f"{self.beginning!r}); check LLM_MODEL and LLM_MAX_TOKENS, then `longshot resume {build}`"
        )

    def _usable(self, reply: PlanReply) -> bool:
        parent = self.rules.parent
        return any(parent is None or not outside_of(t, parent) for t in reply.tasks)

    def _back(self, problems: Iterable[str]) -> str:
        lines = list(problems)
        self.problem = " ".join(display(lines[0], "plain", 160).partition(SHAPE[:20])[0].split()).rstrip(".")
        told = "\n".join(f"- {line}" for line in lines)
        return f"Your answer cannot be taken as it is:\n{told}\nAnswer again, whole."


def _counted(view: BuildView) -> dict[LandingState, int]:
    counts: dict[LandingState, int] = {}
    for task in view.tasks:
        if task.landing is not None:
            counts[task.landing] = counts.get(task.landing, 0) + 1
    return counts
