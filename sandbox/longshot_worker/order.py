"""What the worker is asked to do, and where things lie in its sandbox. The format is longshot_dagster/core/contract.py."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field, fields


@dataclass(frozen=True)
class Order:
    """One work order; times in seconds."""

    task_id: str
    base: str
    deadline_s: float
    version: int = 1
    mode: str = "work"
    holds: str | None = None
    start: str | None = None  # commit to go on from instead of the base
    branch: str = "work"
    title: str = ""
    scope: list[str] = field(default_factory=list)
    system_prompt: str = ""
    prompt: str = ""
    harness: str = "builtin"
    harness_bin: list[str] = field(default_factory=list)  # folders that come first on PATH
    harness_command: str = ""
    model: str = ""
    max_tokens: int = 65_536
    temperature: float = 0.7
    llm_timeout_s: float = 600
    context_tokens: int = 131_072
    max_turns: int = 200
    idle_timeout_s: float = 300
    checks: dict[str, str] = field(default_factory=dict)
    check_timeout_s: float = 600
    author_name: str = "longshot worker"
    author_email: str = "worker@longshot.invalid"


def read_order(path: str) -> Order:
    with open(path, encoding="utf-8") as file:
        wire = {_snake(name): value for name, value in json.load(file).items()}
    known = {f.name for f in fields(Order)}
    return Order(**{name: value for name, value in wire.items() if name in known})


def _snake(name: str) -> str:
    return re.sub(r"([A-Z])", r"_\1", name).lower()


@dataclass(frozen=True)
class Places:
    """Absolute paths. Without isolation they lie below LONGSHOT_SANDBOX_ROOT instead of `/`."""

    root: str = ""

    @classmethod
    def of_this_sandbox(cls) -> Places:
        return cls(os.environ.get("LONGSHOT_SANDBOX_ROOT", ""))

    @property
    def order(self) -> str:
        return self.root + "/longshot/order.json"

    @property
    def bundle_in(self) -> str:
        return self.root + "/longshot/in.bundle"

    @property
    def socket(self) -> str:
        """Resolved, because a unix socket's path has at most 107 bytes and the resolved one is short."""
        return os.path.realpath(self.root + "/longshot/gateway/model.sock")

    @property
    def out(self) -> str:
        return self.root + "/longshot/out"

    @property
    def result(self) -> str:
        return self.out + "/result.json"

    @property
    def bundle_out(self) -> str:
        return self.out + "/work.bundle"

    @property
    def transcript(self) -> str:
        return self.out + "/transcript.jsonl"

    @property
    def at_work(self) -> str:
        """Locked while a worker is at work."""
        return self.out + "/at-work"

    @property
    def repo(self) -> str:
        return self.root + "/workspace/repo"

    @property
    def agent(self) -> str:
        """Configuration and session of the coding agent."""
        return self.root + "/workspace/agent"

    @property
    def base_repo(self) -> str:
        return self.root + "/workspace/base"
