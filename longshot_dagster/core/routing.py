"""Where a task is worked on and by which agent: its needs held against what providers and harnesses can do and how they are.

The same facts always give the same pair. Each task has its own order of providers, drawn from its name so that in the
long run they share the work by weight; needs, health and what was tried before only take away from it. So several
processes need not agree on anything, and a task that is begun again goes where it went.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from longshot_dagster.core.display import one_line
from longshot_dagster.core.needs import Needs, beyond, missing_tools
from longshot_dagster.core.sandbox import Capabilities
from longshot_dagster.core.settings import Settings

REST_S = 15.0  # after the first failure, twice as long after each further one
MAX_REST_S = 600.0
REFUSALS = 3  # in a row: one task's refusal may be that task's fault

_BEFORE_AND_AFTER_S = 600  # of a sandbox's lifetime: what comes before and after the work


@dataclass(frozen=True)
class Agent:
    """A harness at one provider; `missing` says in a few words why it cannot run there."""

    name: str
    missing: str = ""


@dataclass(frozen=True)
class Place:
    """A provider. `tools`: programs in its sandboxes, as far as was asked; None: nobody knows. `agents`: the best first.

    `weight` 0 is a spare: it gets what no other can take. `rests`: why it is not asked now, in a few words.
    """

    name: str
    able: Capabilities
    weight: float = 1.0
    rests: str = ""
    tools: frozenset[str] | None = None
    agents: tuple[Agent, ...] = (Agent("builtin"),)


@dataclass(frozen=True)
class Tried:
    """An attempt that came to nothing. `blames`: which of the two is to be another one next time, if that can be."""

    place: str
    agent: str
    blames: str = ""  # place, agent, or empty: either


@dataclass(frozen=True)
class Route:
    """`reason` is one line for a person. `again`: this very pair was tried before."""

    place: str
    agent: str
    reason: str
    again: bool = False


@dataclass(frozen=True)
class NoRoute:
    """Nothing that is configured can take the task; `reason` is one line."""

    reason: str


def route(
    task: str, needs: Needs, settings: Settings, places: Sequence[Place], tried: Sequence[Tried] = ()
) -> Route | NoRoute:
    """The best pair for `task`. A provider that rests, or a pair that was tried, is taken only where there is no other."""
    if too_much := beyond(needs, settings):
        return NoRoute(_line(f"it needs {', '.join(too_much)}: more than this build's settings allow"))
    against = [(place, agent, lacking(needs, place, agent)) for place in places for agent in place.agents]
    fit = [(place, agent) for place, agent, lacks in against if not lacks]
    if not fit:
        return NoRoute(_line(_nobody(needs, against)))
    draw = {name: n for n, name in enumerate(turn(task, places))}

    def rank(pair: tuple[Place, Agent]) -> tuple[int | bool, ...]:
        place, agent = pair
        return (
            sum((t.place, t.agent) == (place.name, agent.name) for t in tried),
            sum(t.place == place.name for t in tried if t.blames == "place"),
            sum(t.agent == agent.name for t in tried if t.blames == "agent"),
            bool(place.rests),
            place.tools is None and bool(needs.tools),
            draw[place.name],
            place.agents.index(agent),
        )

    place, agent = min(fit, key=rank)
    again = any((t.place, t.agent) == (place.name, agent.name) for t in tried)
    reason = _line("; ".join(_reasons(needs, places, place, agent, against, draw, tried, again)))
    return Route(place.name, agent.name, reason, again)


def turn(task: str, places: Iterable[Place]) -> list[str]:
    """Names in the order in which `task` would have them: each is first as often as its weight says."""

    def draw(place: Place) -> tuple[bool, float, str]:
        digest = hashlib.sha256(f"{task}\0{place.name}".encode()).digest()
        uniform = (int.from_bytes(digest[:7], "big") + 1) / (2**56 + 1)
        spare = place.weight <= 0
        return spare, -math.log(uniform) / (1.0 if spare else place.weight), place.name

    return [place.name for place in sorted(places, key=draw)]


def lacking(needs: Needs, place: Place, agent: Agent) -> str:
    """Why that pair cannot take a task with those needs, in a few words; empty when it can."""
    able = place.able
    if needs.provider not in (None, place.name):
        return f"is not {needs.provider}"
    if needs.harness not in (None, agent.name):
        return f"{agent.name} is not {needs.harness}"
    if needs.gpu and not able.gpus:
        return "has no GPU"
    if needs.snapshot and not able.snapshots:
        return "makes no snapshots"
    if needs.network != "none" and not able.network & _at_least(needs.network):
        return f"has no network {needs.network}"
    longest_s = (needs.minutes * 60 if needs.minutes else 0) + _BEFORE_AND_AFTER_S
    if needs.minutes and able.max_lifetime_s is not None and longest_s > able.max_lifetime_s:
        return f"ends its sandboxes after {able.max_lifetime_s // 60} minutes"
    if place.tools is not None and (missing := missing_tools(needs, place.tools)):
        return f"has no {', '.join(missing)}"
    return agent.missing and f"{agent.name} {agent.missing}"


def _at_least(network: str) -> frozenset[str]:
    return frozenset({"open"} if network == "open" else {"allowlist", "open"})


def _nobody(needs: Needs, against: Sequence[tuple[Place, Agent, str]]) -> str:
    told = dict.fromkeys(f"{place.name} {lacks}" for place, _, lacks in against)
    wanted = needs.line
    return (f"it needs {wanted}, and " if wanted else "no provider can take it: ") + (
        ", ".join(list(told)[:6]) or "no provider is configured"
    )


def _reasons(
    needs: Needs,
    places: Sequence[Place],
    chosen: Place,
    agent: Agent,
    against: Sequence[tuple[Place, Agent, str]],
    draw: dict[str, int],
    tried: Sequence[Tried],
    again: bool,
) -> list[str]:
    """Why this pair, the strongest reason first: never empty."""
    lacks = {p.name: why for p, _, why in reversed(against) if why}
    fit = {p.name for p, _, why in against if not why}
    unfit = [name for name in lacks if name not in fit]
    said = []
    if again:
        said.append("nothing else is left to try")
    elif tried:
        said.append(f"{' and '.join(dict.fromkeys(f'{t.place} with {t.agent}' for t in tried))} came to nothing")
    if unfit:
        said.append(", ".join(f"{name} {lacks[name]}" for name in unfit[:4]))
    asked = {t.place for t in tried}
    passed = [p for p in places if p.rests and p is not chosen and p.name not in unfit and p.name not in asked]
    passed = [p for p in passed if draw[p.name] < draw[chosen.name]]
    said += [f"{p.name} {p.rests}" for p in passed[:4]]
    if chosen.rests and not again:
        said.append(f"it {chosen.rests}, and so does everything else that could take it")
    if needs.line and not unfit:
        said.append(f"it has what the task needs: {needs.line}")
    if not said and len(places) > 1:
        total = sum(p.weight for p in places)
        said.append(f"its turn: {chosen.weight:g} of {total:g} by weight" if total > 0 else "its turn")
    said += [f"{a.name} {a.missing}" for a in chosen.agents[: chosen.agents.index(agent)] if a.missing]
    return said or ["the only provider and harness there are"]


def _line(text: str) -> str:
    return one_line(text, 500)


# --- health ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Health:
    """How a provider has been, as one process knows it; times are monotonic seconds."""

    failures: int = 0
    refusals: int = 0
    until: float = 0.0
    why: str = ""

    def failed(self, why: str, now: float, *, refused: bool = False) -> "Health":
        """It would not make a sandbox. Those that failed together, before the rest was over, count once."""
        shown = one_line(why, 160)
        if refused and self.refusals + 1 < REFUSALS:
            return Health(self.failures, self.refusals + 1, self.until, shown)
        if now < self.until:
            return Health(self.failures, self.refusals, self.until, shown)
        failures = self.failures + 1
        return Health(failures, self.refusals + refused, now + min(MAX_REST_S, REST_S * 2.0 ** (failures - 1)), shown)

    def rests(self, now: float) -> str:
        """Why it is not asked now, in a few words; empty when it is."""
        left = self.until - now
        return f"rests for {max(1, round(left))} s ({self.why})" if left > 0 else ""


# --- what comes after an attempt --------------------------------------------------------------------------------------

_MODEL_OR_AGENT = ("llm_error", "stalled", "empty")
_CRASHED = ("crashed", "config_error")


def blamed(harness_status: str) -> str | None:
    """Of an attempt that ended so with nothing done, what should be another one next time; None: the planner must hear of it.

    A limit, a time that is over, a budget, and whatever the agent says itself would end the same way elsewhere.
    """
    if harness_status in _MODEL_OR_AGENT:
        return "agent"
    return "place" if harness_status == "crashed" else "agent" if harness_status in _CRASHED else None


def worth_it(harness_status: str, found: Route | NoRoute, tried: Sequence[Tried]) -> bool:
    """Is another attempt in order? On the same pair only once, and only for what another answer of a model may change."""
    if isinstance(found, NoRoute) or blamed(harness_status) is None:
        return False
    if not found.again:
        return True
    same = sum((t.place, t.agent) == (found.place, found.agent) for t in tried)
    return harness_status in _MODEL_OR_AGENT and same < 2
