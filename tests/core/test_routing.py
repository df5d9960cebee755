"""Which provider and harness take a task: needs, health, weights and what was tried before, each said in one line."""

import random
from typing import Any

import pytest

from longshot_dagster.core.needs import Needs
from longshot_dagster.core.routing import (
    MAX_REST_S,
    REST_S,
    Agent,
    Health,
    NoRoute,
    Place,
    Route,
    Tried,
    lacking,
    route,
    turn,
    worth_it,
)
from longshot_dagster.core.sandbox import Capabilities
from longshot_dagster.core.settings import Settings

HERE = Capabilities("namespace", frozenset({"none", "open"}), True, True, survives_client=False, sockets=True)
AFAR = Capabilities(
    "vm",
    frozenset({"none", "allowlist", "open"}),
    True,
    True,
    survives_client=True,
    snapshots=True,
    gpus=True,
    max_lifetime_s=3_600,
)
PI, BUILTIN, NO_PI = Agent("pi"), Agent("builtin"), Agent("pi", "is not installed there")
SETTINGS = Settings(
    sandbox_provider="modal:3,local:1", sandbox_gpu="A10", sandbox_network="open", worker_timeout=86_400
)


def modal(**more: Any) -> Place:
    return Place("modal", AFAR, 3, **{"agents": (PI, BUILTIN), **more})


def local(**more: Any) -> Place:
    return Place("local", HERE, 1, **{"agents": (PI, BUILTIN), "tools": frozenset({"go"}), **more})


def routed(needs: Needs, *places: Place, tried: tuple[Tried, ...] = (), task: str = "b.r001-01") -> Route:
    found = route(task, needs, SETTINGS, places, tried)
    assert isinstance(found, Route), found
    return found


@pytest.mark.parametrize(
    ("needs", "places", "pair", "reason"),
    [
        (Needs(), (local(),), ("local", "pi"), "the only provider and harness there are"),
        (Needs(), (local(agents=(NO_PI, BUILTIN)),), ("local", "builtin"), "pi is not installed there"),
        (
            Needs(gpu="A10"),
            (local(), modal()),
            ("modal", "pi"),
            "local has no GPU",
        ),
        (Needs(snapshot=True), (local(), modal()), ("modal", "pi"), "local makes no snapshots"),
        (Needs(network="allowlist"), (local(), modal()), None, ""),
        (Needs(minutes=120), (local(), modal()), ("local", "pi"), "modal ends its sandboxes after 60 minutes"),
        (Needs(provider="local"), (local(), modal()), ("local", "pi"), "modal is not local"),
        (Needs(harness="builtin"), (local(),), ("local", "builtin"), "it has what the task needs: harness builtin"),
        (Needs(tools=("go",)), (local(),), ("local", "pi"), "it has what the task needs: go"),
        (Needs(tools=("browser",)), (local(), modal()), ("modal", "pi"), "local has no browser"),
    ],
)
def test_a_task_goes_where_its_needs_are_met(
    needs: Needs, places: tuple[Place, ...], pair: tuple[str, str] | None, reason: str
) -> None:
    found = routed(needs, *places)
    if pair:
        assert (found.place, found.agent, found.reason) == (*pair, reason)


def test_what_is_known_to_be_there_is_preferred_to_what_nobody_knows() -> None:
    assert {routed(Needs(tools=("go",)), modal(), local(), task=f"b.{n}").place for n in range(50)} == {"local"}


@pytest.mark.parametrize(
    ("needs", "places", "said"),
    [
        (Needs(gpu="A10"), (local(),), "it needs GPU A10, and local has no GPU"),
        (Needs(gpu="H100"), (modal(),), "it needs GPU H100 (SANDBOX_GPU=A10): more than this build's settings allow"),
        (
            Needs(tools=("browser",), minutes=90),
            (local(), modal()),
            "it needs 90 minutes, browser, and local has no browser, modal ends its sandboxes after 60 minutes",
        ),
        (
            Needs(harness="codex"),
            (local(),),
            "it needs harness codex, and local pi is not codex, local builtin is not codex",
        ),
        (Needs(), (local(agents=(NO_PI,)),), "no provider can take it: local pi is not installed there"),
        (Needs(), (), "no provider can take it: no provider is configured"),
    ],
)
def test_what_nobody_can_take_is_one_line(needs: Needs, places: tuple[Place, ...], said: str) -> None:
    assert route("b.r001-01", needs, SETTINGS, places) == NoRoute(said)


def test_the_work_is_shared_by_weight_and_a_spare_gets_nothing() -> None:
    places = [modal(), local(), Place("spare", AFAR, 0)]
    firsts = [turn(f"shop.r{n:03}-01", places)[0] for n in range(2_000)]
    assert "spare" not in firsts
    assert 0.72 < firsts.count("modal") / len(firsts) < 0.78
    assert turn("shop.r001-01", places)[-1] == "spare"


def test_where_nothing_else_decides_it_is_the_turn_of_one() -> None:
    first = routed(Needs(), modal(agents=(NO_PI, BUILTIN)), local(agents=(NO_PI, BUILTIN)))
    weight = {"modal": 3, "local": 1}[first.place]
    assert first.reason == f"its turn: {weight} of 4 by weight; pi is not installed there"


def test_a_provider_that_rests_is_passed_over_unless_all_others_do() -> None:
    resting = modal(rests="rests for 12 s (quota)")
    for n in range(20):
        found = routed(Needs(), resting, local(), task=f"b.{n}")
        assert found.place == "local"
    first = next(n for n in range(20) if turn(f"b.{n}", [modal(), local()])[0] == "modal")
    assert routed(Needs(), resting, local(), task=f"b.{first}").reason == "modal rests for 12 s (quota)"
    alone = routed(Needs(gpu="A10"), resting, local())
    assert alone.place == "modal"
    assert "it rests for 12 s (quota), and so does everything else that could take it" in alone.reason


def test_what_came_to_nothing_is_tried_again_elsewhere() -> None:
    start = routed(Needs(), modal(), local())
    other = "local" if start.place == "modal" else "modal"
    crashed = routed(Needs(), modal(), local(), tried=(Tried(start.place, "pi", "place"),))
    assert (crashed.place, crashed.agent, crashed.again) == (other, "pi", False)
    assert crashed.reason == f"{start.place} with pi came to nothing"
    stalled = routed(Needs(), modal(), local(), tried=(Tried(start.place, "pi", "agent"),))
    assert (stalled.place, stalled.agent) == (start.place, "builtin")
    only = routed(Needs(provider="local", harness="pi"), modal(), local(), tried=(Tried("local", "pi", "agent"),))
    assert (only.again, only.reason.split(";")[0]) == (True, "nothing else is left to try")


@pytest.mark.parametrize(
    ("status", "again", "worth"),
    [
        ("stalled", False, True),
        ("stalled", True, True),
        ("empty", True, True),
        ("llm_error", True, True),
        ("crashed", False, True),
        ("crashed", True, False),
        ("config_error", False, True),
        ("config_error", True, False),
        ("limit", False, False),
        ("timeout", False, False),
        ("budget", False, False),
        ("completed", False, False),
        ("whatever a sandbox says", False, False),
    ],
)
def test_only_what_may_end_otherwise_elsewhere_is_tried_again(status: str, again: bool, worth: bool) -> None:
    found = Route("local", "pi", "", again)
    assert worth_it(status, found, [Tried("local", "pi")]) is worth
    assert not worth_it(status, NoRoute("nowhere"), [])
    assert not worth_it(status, Route("local", "pi", "", True), [Tried("local", "pi")] * 2)


def test_a_provider_that_fails_rests_ever_longer_and_is_well_after_one_success() -> None:
    health, now = Health(), 100.0
    for n in range(12):
        health = health.failed("quota\x1b[31m", now)
        rest = min(MAX_REST_S, REST_S * 2.0**n)
        assert health.rests(now) == f"rests for {rest:.0f} s (quota�[31m)"
        assert health.failed("quota", now + rest / 2).until == health.until  # they were asked before it was known
        assert health.rests(now + rest + 1) == ""
        now += rest + 1
    assert Health().rests(now) == ""


def test_a_refusal_counts_only_when_it_is_everybodys() -> None:
    health = Health()
    for _ in range(2):
        health = health.failed("no such GPU", 0.0, refused=True)
        assert health.rests(0.0) == ""
    assert health.failed("no account", 0.0, refused=True).rests(0.0) == "rests for 15 s (no account)"


def _any_needs(rng: random.Random) -> Needs:
    return Needs(
        network=rng.choice(("none", "none", "allowlist", "open")),
        memory_mb=rng.choice((None, None, 64, 8_192, 9_000)),
        minutes=rng.choice((None, 1, 45, 120)),
        gpu=rng.choice(("", "", "", "", "A10", "H100")),
        snapshot=rng.random() < 0.2,
        tools=tuple(rng.sample(("go", "browser", "rust"), rng.choice((0, 0, 1, 2)))),
        provider=rng.choice((*[None] * 9, "modal", "local", "p2", "elsewhere")),
        harness=rng.choice((*[None] * 7, "pi", "builtin", "codex")),
    )


def _any_place(rng: random.Random, name: str) -> Place:
    able = Capabilities(
        "vm",
        frozenset(rng.sample(("none", "allowlist", "open"), rng.randrange(1, 4))),
        rng.random() < 0.5,
        rng.random() < 0.5,
        survives_client=rng.random() < 0.5,
        snapshots=rng.random() < 0.5,
        gpus=rng.random() < 0.5,
        max_lifetime_s=rng.choice((None, 900, 86_400)),
    )
    agents = tuple(
        Agent(n, rng.choice(("", "", "is not installed there")))
        for n in rng.sample(("pi", "builtin", "codex"), rng.randrange(4))
    )
    tools = rng.choice((None, frozenset(), frozenset({"go", "chromium"})))
    return Place(name, able, rng.choice((0, 0.5, 1, 20)), rng.choice(("", "", "rests for 3 s (x)")), tools, agents)


def test_any_needs_at_any_providers() -> None:
    """Always the same answer; never a pair that lacks something or that the settings forbid; in one bounded line; and
    no route only where no pair fits."""
    rng = random.Random(6)
    routes = 0
    for n in range(3_000):
        needs = _any_needs(rng)
        places = [_any_place(rng, name) for name in rng.sample(("modal", "local", "p2"), rng.randrange(4))]
        pairs = [(p, a) for p in places for a in p.agents]
        tried = [
            Tried(p.name, a.name, rng.choice(("", "place", "agent")))
            for p, a in rng.sample(pairs, min(len(pairs), rng.randrange(3)))
        ]
        found = route(f"b.{n}", needs, SETTINGS, places, tried)
        assert found == route(f"b.{n}", needs, SETTINGS, list(places), tried)
        shuffled = rng.sample(places, len(places))
        again = route(f"b.{n}", needs, SETTINGS, shuffled, tried)
        assert 0 < len(found.reason) <= 500 and "\n" not in found.reason
        fit = [(p, a) for p, a in pairs if not lacking(needs, p, a)]
        if isinstance(found, NoRoute):
            assert isinstance(again, NoRoute)
            assert (
                not fit
                or needs.memory_mb == 9_000
                or needs.gpu == "H100"
                or needs.provider not in (None, "modal", "local")
            )
            continue
        routes += 1
        assert isinstance(again, Route) and (again.place, again.agent) == (found.place, found.agent)
        assert (found.place, found.agent) in [(p.name, a.name) for p, a in fit]
        assert needs.memory_mb != 9_000 and needs.gpu != "H100"
        untried = [(p, a) for p, a in fit if not any((t.place, t.agent) == (p.name, a.name) for t in tried)]
        assert found.again == (not untried)
        blames_nobody = not tried
        taken = next(p for p in places if p.name == found.place)
        if blames_nobody and taken.rests:
            assert all(p.rests for p, _ in fit)
    assert routes > 400
