"""Whose a sandbox is: the home that had it made, and the process that answers for it, written on it as tags.

A process that has died answers for nothing, whoever has its pid now: a pid only counts with its start time.
"""

import os
from collections.abc import Mapping
from dataclasses import replace

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.host.processes import start_time
from longshot_dagster.adapters.sandboxes.fleet import Member
from longshot_dagster.core.sandbox import Capabilities, Sandbox, SandboxInfo, SandboxProvider, SandboxSpec

HOME = "home"
HOLDER = "holder"


class Held:
    """The same provider; what it creates says whose it is."""

    def __init__(self, provider: SandboxProvider, home: Home) -> None:
        self.provider = provider
        self._home = home

    @property
    def name(self) -> str:
        return self.provider.name

    @property
    def capabilities(self) -> Capabilities:
        return self.provider.capabilities

    def create(self, spec: SandboxSpec) -> Sandbox:
        mine = {HOLDER: f"{os.getpid()}.{start_time(os.getpid()) or ''}"}  # asked each time: runs are forks
        if "build" in spec.tags:  # what a look at a home makes, such as doctor's, leaves nothing there
            mine[HOME] = _identity(self._home)
        return self.provider.create(replace(spec, tags={**spec.tags, **mine}))

    def attach(self, sandbox_id: str) -> Sandbox:
        return self.provider.attach(sandbox_id)

    def list(self, tags: Mapping[str, str]) -> list[SandboxInfo]:
        return self.provider.list(tags)


def bare(provider: SandboxProvider) -> SandboxProvider:
    """The one that somebody has written, for what only some of them can do besides."""
    while isinstance(provider, Held | Member):
        provider = provider.provider
    return provider


def _identity(home: Home) -> str:
    from longshot_dagster.adapters.ledger.orchestrator import (
        identity,  # the repository's modules, which few commands need
    )

    return identity(home)


def is_ours(tags: Mapping[str, str], home: Home, *, local: bool) -> bool:
    """`local`: it lies in this home's own folder, which says it as well as a tag; older versions set none."""
    return tags.get(HOME, _identity(home) if local else "") == _identity(home)


def is_held(tags: Mapping[str, str]) -> bool:
    """Does the process that made it live? Only asked of what is ours: so the process is one of this machine."""
    pid, _, started = tags.get(HOLDER, "").partition(".")
    return pid.isdigit() and bool(started) and start_time(int(pid)) == started
