"""Where each task of a build is worked on and by which agent, as things are now; and where it goes when that came to nothing."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field

from longshot_dagster.adapters.sandboxes.fleet import Fleet, Healths, members_of
from longshot_dagster.adapters.workers.order_run import RETRIES, Delivery
from longshot_dagster.core.clock import Clock
from longshot_dagster.core.display import one_line
from longshot_dagster.core.errors import LongshotError
from longshot_dagster.core.models import Task
from longshot_dagster.core.needs import Needs, all_programs
from longshot_dagster.core.routing import Agent, NoRoute, Place, Route, Tried, blamed, route, worth_it
from longshot_dagster.core.sandbox import SandboxProvider
from longshot_dagster.core.settings import HarnessName, Provider, Settings
from longshot_dagster.core.working import MODEL_FAILED

Missing = Callable[[str, SandboxProvider], str]
"""(harness, provider) -> why it cannot run there, in a few words; empty when it can."""

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NO_NEEDS = Needs()
_MAX_NOTES = 10


@dataclass
class Course:
    """How one worker's call has gone so far: what came to nothing, told in `notes`, and what was said meanwhile."""

    began: float
    tried: list[Tried] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    transcript: bytes = b""

    def came_to_nothing(self, taken: Route, blames: str, why: str) -> None:
        self.tried.append(Tried(taken.place, taken.agent, blames))
        line = one_line(f"{taken.place} with {taken.agent}: {why}", 400)
        self.notes = [*(note for note in self.notes if note != line), line][-_MAX_NOTES:]


class Placing:
    """One per process and build; any number of threads may ask it."""

    def __init__(self, provider: SandboxProvider, settings: Settings, clock: Clock, missing: Missing) -> None:
        self._members = {member.name: (member, weight) for member, weight in members_of(provider)}
        self._healths = provider.healths if isinstance(provider, Fleet) else Healths(clock)
        # A fleet that was put together by hand, or is already resolved, is what there is to choose from.
        self._settings = settings.model_copy(update={"sandbox_provider": ",".join(self._members)})
        self._clock = clock
        self._missing = missing

    def find(self, task: Task, tried: list[Tried]) -> Route | NoRoute:
        needs = task.needs or _NO_NEEDS
        places = [
            Place(
                name,
                member.capabilities,
                weight,
                self._healths.rests(name),
                _programs_there(needs, member),
                self._agents(needs, member),
            )
            for name, (member, weight) in self._members.items()
        ]
        return route(f"{task.build}.{task.id}", needs, self._settings, places, tried)

    def provider(self, name: str) -> SandboxProvider:
        return self._members[name][0]

    def failed(self, name: str, error: LongshotError) -> None:
        self._healths.failed(name, error)

    def worked(self, name: str) -> None:
        self._healths.worked(name)

    def elsewhere(self, task: Task, number: int, course: Course, taken: Route, delivery: Delivery, heard: bool) -> str:
        """Why this attempt, of that number, is made again by another agent or at another place; empty: the planner is told.

        Only where nothing was done, and what went wrong need not go wrong there. `heard`: a model has answered; one that
        never did will not elsewhere. Late in a task's time there is none left for another attempt.
        """
        status = delivery.result.harness_status if delivery.result else "crashed"
        blames = blamed(status)
        if delivery.stopped or delivery.bundle or number > RETRIES or blames is None:
            return ""
        if status == MODEL_FAILED and not heard:
            return ""
        if self._clock.monotonic() - course.began > self._settings.worker_timeout / 2:
            return ""
        tried = [*course.tried, Tried(taken.place, taken.agent, blames)]
        if not worth_it(status, self.find(task, tried), tried):
            return ""
        error = delivery.result.error if delivery.result else delivery.problem
        why = f"{status}, nothing done: {error or 'no reason given'}"
        course.came_to_nothing(taken, blames, why)
        return why

    def _agents(self, needs: Needs, member: SandboxProvider) -> tuple[Agent, ...]:
        """Of those that the settings leave open. One that a person chose was found to be there when the build began."""
        if self._settings.harness != HarnessName.AUTO:
            return (Agent(self._settings.harness),)
        names = [HarnessName.PI.value, HarnessName.BUILTIN.value]
        names += [needs.harness] if needs.harness and needs.harness not in names else []
        return tuple(Agent(name, self._missing(name, member)) for name in names)


def only_builtin(harness: str, provider: SandboxProvider) -> str:
    return "" if harness == HarnessName.BUILTIN else "is not installed there"


def _programs_there(needs: Needs, member: SandboxProvider) -> frozenset[str] | None:
    """Of the programs that `needs` asks for, those in that provider's sandboxes; None: nobody knows before one is made."""
    if not needs.tools or member.name != Provider.LOCAL:
        return None
    return frozenset(p for p in all_programs(needs) if shutil.which(p, path=_PATH))
