"""The harnesses this worker has, by name: those that are built in, and the one an installed package brought along."""

from __future__ import annotations

import importlib

from longshot_worker.events import Events
from longshot_worker.handoff import HarnessResult
from longshot_worker.harness import runner
from longshot_worker.harness.builtin import agent
from longshot_worker.harness.claude_code import ClaudeCode
from longshot_worker.harness.codex import Codex
from longshot_worker.harness.command import Command
from longshot_worker.harness.interface import Harness
from longshot_worker.harness.opencode import OpenCode
from longshot_worker.harness.pi import Pi
from longshot_worker.order import Order, Places
from longshot_worker.relay import Relay

BUILTIN = "builtin"
_KNOWN = {harness.name: harness for harness in (Pi, OpenCode, Codex, ClaudeCode, Command)}


def work_with(order: Order, places: Places, task: str, relay: Relay, events: Events, until: float) -> HarnessResult:
    """Have the harness that `order` names work on `task`, `until` (monotonic seconds) at the longest."""
    if order.harness == BUILTIN:  # no process of its own: it is part of this one
        return agent.run(order, places.repo, task, relay.url, events, until)
    try:
        harness = harness_named(order.harness)
    except Exception as e:  # somebody else's module may raise anything
        return HarnessResult("config_error", f"the harness {order.harness} does not load: {type(e).__name__}: {e}")
    if harness is None:
        return HarnessResult("config_error", f"there is no harness {order.harness!r} in this sandbox")
    return runner.run(harness, order, places, task, relay, events, until)


def harness_named(name: str) -> Harness | None:
    if name in _KNOWN:
        return _KNOWN[name]()
    try:
        brought = importlib.import_module(
            "longshot_worker.harness.brought"
        )  # written into the archive, see worker_archive.py
    except ModuleNotFoundError:
        return None
    return brought.HARNESS() if brought.NAME == name else None
