"""Every provider that the contract is checked against, made the same way in every process that asks for it."""

import contextlib
import importlib.util
import itertools
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from longshot_dagster.adapters.sandboxes.installed_providers import installed_providers, load_provider
from longshot_dagster.adapters.sandboxes.sandbox_local import LocalProvider, LocalSandbox
from longshot_dagster.core.errors import SandboxError
from longshot_dagster.core.sandbox import Capabilities, Sandbox, SandboxProvider, SandboxSpec
from longshot_dagster.core.settings import Isolation, Settings

CHOSEN = "CONTRACT_SANDBOXES"  # names with commas between them; empty: every one that can run here
ISOLATION_OFF = "isolation-off"


def places() -> list[str]:
    """Names of what is checked."""
    if chosen := os.environ.get(CHOSEN):
        return [name.strip() for name in chosen.split(",")]
    return [name for name, why in _known().items() if not why]


def left_out() -> dict[str, str]:
    """Names of what is not checked here, and why in one line."""
    if os.environ.get(CHOSEN):
        return {}
    return {name: why for name, why in _known().items() if why}


def in_short() -> frozenset[str]:
    """Those of which only the core is checked unless they are chosen: they take long, and much of it is checked elsewhere."""
    return frozenset() if os.environ.get(CHOSEN) else frozenset({"e2b-loopback", "docker"})


@cache
def _known() -> dict[str, str]:
    return {
        "local": "",
        "modal-loopback": _lacking(
            "longshot_dagster.testing.loopback_modal", "longshot_dagster.adapters.sandboxes.sandbox_modal"
        ),
        "docker": _lacking("docker", "longshot_dagster.adapters.sandboxes.sandbox_docker") or _no_engine(),
        "e2b-loopback": _lacking(
            "e2b", "longshot_dagster.testing.loopback_e2b", "longshot_dagster.adapters.sandboxes.sandbox_e2b"
        ),
        **dict.fromkeys(installed_providers(), ""),
    }


def _lacking(*modules: str) -> str:
    missing = next((name for name in modules if importlib.util.find_spec(name) is None), None)
    return f"{missing} is not installed" if missing else ""


def _no_engine() -> str:
    from longshot_dagster.adapters.sandboxes.sandbox_docker import engine_trouble

    return engine_trouble()


@contextlib.contextmanager
def service(name: str, folder: Path) -> Iterator[dict[str, str]]:
    """What the provider talks to, running; yields the environment that leads there."""
    if name == "modal-loopback":
        from longshot_dagster.testing.loopback_modal.server import loopback_modal

        with loopback_modal(folder) as environment:
            yield environment
    elif name == "e2b-loopback":
        from longshot_dagster.testing.loopback_e2b import loopback_e2b

        with loopback_e2b(folder) as environment:
            yield environment
    elif name == "docker":
        from engine_image import test_image

        yield {"CONTRACT_IMAGE": test_image()}
    else:
        yield {}


def provider(name: str, folder: Path) -> SandboxProvider:
    """The provider itself, in a process that has the environment of its `service`."""
    settings = Settings(sandbox_image=os.environ.get("CONTRACT_IMAGE", ""), sandbox_creates_per_second=1000)
    if name == "local":
        return LocalProvider(folder, Isolation.AUTO)
    if name == ISOLATION_OFF:
        return IsolationOff(folder)
    if name == "modal-loopback":
        from longshot_dagster.adapters.sandboxes.sandbox_modal import ModalProvider

        return ModalProvider(settings, folder)
    if name == "docker":
        from longshot_dagster.adapters.sandboxes.sandbox_docker import DockerProvider

        return DockerProvider(settings, folder)
    if name == "e2b-loopback":
        from longshot_dagster.adapters.sandboxes.sandbox_e2b import E2BProvider

        return E2BProvider(settings, folder)
    return load_provider(name)(settings, folder)


class IsolationOff(LocalProvider):
    """SANDBOX_ISOLATION=none, but claiming what an isolated provider claims: what the contract is there to find out."""

    def __init__(self, base: Path) -> None:
        super().__init__(base, Isolation.NONE)

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, isolation="namespace", network=frozenset({"none", "allowlist", "open"}))

    def create(self, spec: SandboxSpec) -> LocalSandbox:
        return super().create(replace(spec, network="open", hosts=()))


@dataclass(frozen=True)
class Place:
    """A provider, the folder it was made with, and tags that only this run of the tests uses."""

    name: str
    provider: SandboxProvider
    folder: Path
    tags: dict[str, str]
    numbers: Iterator[int]

    def spec(self, **more: Any) -> SandboxSpec:
        tags = {**self.tags, **more.pop("tags", {})}
        name = f"{self.tags['contract']}-{next(self.numbers)}"
        return SandboxSpec(**{"name": name, "tags": tags, "lifetime_s": 600, **more})

    @contextlib.contextmanager
    def sandbox(self, **more: Any) -> Iterator[Sandbox]:
        made = self.provider.create(self.spec(**more))
        try:
            yield made
        finally:
            made.terminate()

    def living(self, **tags: str) -> set[str]:
        return {info.id for info in self.provider.list({**self.tags, **tags})}


@contextlib.contextmanager
def opened(name: str, folder: Path) -> Iterator[Place]:
    """A provider with the service behind it; nothing may be left in it at the end."""
    with service(name, folder) as environment, pytest.MonkeyPatch.context() as patch:
        for variable, value in environment.items():
            patch.setenv(variable, value)
        made = provider(name, folder)
        tags = {"contract": f"c{os.getpid()}-{uuid.uuid4().hex[:8]}"}
        yield Place(name, made, folder, tags, itertools.count(1))
        left = made.list(tags)
        for info in left:
            with contextlib.suppress(SandboxError):
                made.attach(info.id).terminate()
        if close := getattr(made, "close", None):
            close()
        assert left == [], "sandboxes that the tests have left"
