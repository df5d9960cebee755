"""What a task asks of the place it is worked in, as its planner words it, and how far the settings allow that.

A plan narrows the choice among what a person has configured; it never widens it.
"""

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic.alias_generators import to_camel

from longshot_dagster.core.sandbox import NetworkMode
from longshot_dagster.core.settings import HarnessName, Settings

MAX_TOOLS = 20

# Programs that answer to a need's name; any other name is the program's own.
PROGRAMS: dict[str, tuple[str, ...]] = {
    "browser": ("chromium", "chromium-browser", "google-chrome", "chrome", "firefox"),
    "python": ("python3",),
    "typescript": ("tsc",),
    "rust": ("cargo",),
    "java": ("javac",),
    "c": ("cc", "gcc", "clang"),
    "c++": ("c++", "g++", "clang++"),
    "dotnet": ("dotnet",),
}

_REACH: tuple[NetworkMode, ...] = ("none", "allowlist", "open")

Name = Annotated[
    str, StringConstraints(strip_whitespace=True, to_lower=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$")
]
Tool = Annotated[
    str, StringConstraints(strip_whitespace=True, to_lower=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9+._-]{0,39}$")
]
Gpu = Annotated[str, StringConstraints(strip_whitespace=True, pattern=r"^([A-Za-z0-9][A-Za-z0-9:._+-]{0,39})?$")]


class Needs(BaseModel):
    """A word that is not among these is refused: a need that nobody looks at is worse than none."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, serialize_by_alias=True
    )

    network: Literal["none", "allowlist", "open"] = Field(default="none", description="the least it must reach")
    memory_mb: int | None = Field(default=None, ge=64, le=4_194_304, description="MB that it needs at least")
    cpu_cores: float | None = Field(default=None, gt=0, le=256, description="cores that it needs at least")
    minutes: int | None = Field(default=None, ge=1, le=1_440, description="how long it may take")
    gpu: Gpu = Field(default="", description="a GPU, by the provider's own word")
    snapshot: bool = Field(default=False, description="its sandbox can be snapshotted")
    tools: tuple[Tool, ...] = Field(
        default=(), max_length=MAX_TOOLS, description="programs it cannot do without, or browser"
    )
    provider: Name | None = Field(default=None, description="one of SANDBOX_PROVIDER's")
    harness: Name | None = Field(default=None, description="the coding agent that suits it")

    @model_validator(mode="after")
    def _once(self) -> Self:
        if len(set(self.tools)) < len(self.tools):
            raise ValueError("a tool is named twice")
        return self

    @property
    def line(self) -> str:
        """All of them in a few words; empty when there are none."""
        said = [
            f"network {self.network}" if self.network != "none" else "",
            f"{self.memory_mb} MB" if self.memory_mb else "",
            f"{self.cpu_cores:g} cores" if self.cpu_cores else "",
            f"{self.minutes} minutes" if self.minutes else "",
            f"GPU {self.gpu}" if self.gpu else "",
            "a snapshot" if self.snapshot else "",
            *self.tools,
            f"provider {self.provider}" if self.provider else "",
            f"harness {self.harness}" if self.harness else "",
        ]
        return ", ".join(filter(None, said))


NO_NEEDS = Needs()


def beyond(needs: Needs, settings: Settings) -> tuple[str, ...]:
    """What of `needs` the settings do not allow, each in a few words that name the setting; () when all is allowed."""
    found = []
    if _REACH.index(needs.network) > _REACH.index(settings.sandbox_network.value):
        found.append(f"network {needs.network} (SANDBOX_NETWORK={settings.sandbox_network.value})")
    if needs.memory_mb is not None and needs.memory_mb > settings.sandbox_memory_mb:
        found.append(f"{needs.memory_mb} MB (SANDBOX_MEMORY_MB={settings.sandbox_memory_mb})")
    if needs.cpu_cores is not None and needs.cpu_cores > settings.sandbox_cpu_cores:
        found.append(f"{needs.cpu_cores:g} cores (SANDBOX_CPU_CORES={settings.sandbox_cpu_cores:g})")
    if needs.minutes is not None and needs.minutes * 60 > settings.worker_timeout:
        found.append(f"{needs.minutes} minutes (WORKER_TIMEOUT={settings.worker_timeout} s)")
    if needs.gpu and needs.gpu.lower() not in (kind.lower() for kind in settings.gpus):
        found.append(f"GPU {needs.gpu} (SANDBOX_GPU={settings.sandbox_gpu or 'none'})")
    if needs.provider is not None and needs.provider not in settings.providers:
        found.append(f"provider {needs.provider} (SANDBOX_PROVIDER={settings.sandbox_provider})")
    if needs.harness is not None and not may_choose(needs.harness, settings):
        found.append(f"harness {needs.harness} (HARNESS={settings.harness})")
    return tuple(found)


def may_choose(harness: str, settings: Settings) -> bool:
    """May a plan ask for that harness? `auto` leaves the choice open, among what is ready; a command is never meant."""
    if settings.harness == HarnessName.AUTO:
        return harness not in (HarnessName.AUTO, HarnessName.COMMAND)
    return harness == settings.harness


def programs(tool: str) -> tuple[str, ...]:
    """Any one of these is what `tool` means."""
    return PROGRAMS.get(tool, (tool,))


def missing_tools(needs: Needs, there: Iterable[str]) -> tuple[str, ...]:
    """Tools of which none of the programs is among those that are `there`."""
    known = set(there)
    return tuple(tool for tool in needs.tools if not known.intersection(programs(tool)))


def all_programs(needs: Needs) -> tuple[str, ...]:
    """What has to be looked for to know."""
    return tuple(dict.fromkeys(p for tool in needs.tools for p in programs(tool)))
