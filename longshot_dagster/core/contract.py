"""The JSON contract with `sandbox/longshot_worker`: what goes in, what comes out. Shared as a format, not as code.

    in    ORDER      work order (this module's WorkOrder, camelCase)
          BUNDLE_IN  git bundle with one ref, refs/heads/base: the commit to start from with its history
          WORKER     the worker itself, a zipapp
          ATTENDANT  the same zipapp; `attend` follows a worker that has outlived its orchestrator until it has ended
          RELAY      the same zipapp; `relay SOCKET` is the way to the model where no socket of the host can be reached
    out   RESULT     WorkResult; hostile: read with a size limit, validated here
          BUNDLE_OUT git bundle base..head with one ref, refs/heads/work; absent when nothing was committed
          TRANSCRIPT JSON lines of the harness's events; the worker's standard output has the same lines as they happen

RESULT is written last and in one piece: where it is, BUNDLE_OUT and TRANSCRIPT are whole.

Modes: `work` does a task; `sweep` only runs the checks on the base; `salvage` commits and bundles what a killed worker
left behind; `warm` only checks the base out, for a snapshot that other sandboxes begin with.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from longshot_dagster.core.models import (
    MAX_COUNT,
    MAX_LIST,
    CheckName,
    CheckStatus,
    HandoffMetrics,
    HandoffStatus,
    Line,
    Oid,
    Text,
    Wire,
)

VERSION = 1
DIRECTORY = "/longshot"
ORDER = "/longshot/order.json"
BUNDLE_IN = "/longshot/in.bundle"
WORKER = "/longshot/worker.pyz"
ATTENDANT = "/longshot/attendant.pyz"
RELAY = "/longshot/relay.pyz"
SOCKET = "/longshot/gateway/model.sock"
OUT = "/longshot/out"
RESULT = "/longshot/out/result.json"
BUNDLE_OUT = "/longshot/out/work.bundle"
TRANSCRIPT = "/longshot/out/transcript.jsonl"
REPO = "/workspace/repo"

BASE_REF = "refs/heads/base"
WORK_REF = "refs/heads/work"

MAX_RESULT_BYTES = 4 << 20
MAX_BUNDLE_BYTES = 256 << 20
MAX_TRANSCRIPT_BYTES = 32 << 20


class Mode(StrEnum):
    WORK = "work"
    SWEEP = "sweep"
    SALVAGE = "salvage"
    WARM = "warm"


class WorkOrder(Wire):
    version: int = VERSION
    mode: Mode = Mode.WORK
    task_id: str
    branch: str = ""
    title: str = Field(default="", description="subject of the commit that collects what the agent left uncommitted")
    base: Oid = Field(description="what the work is compared with, and what a handed-over bundle builds on")
    start: Oid | None = Field(default=None, description="commit to go on from, a descendant of `base`; None: `base`")
    holds: Oid | None = Field(
        default=None,
        description="commit whose history REPO holds already; BUNDLE_IN then builds on it, or is not there",
    )
    scope: list[str] = Field(default_factory=list)
    system_prompt: str = ""
    prompt: str = ""
    harness: str = "builtin"
    harness_bin: list[str] = Field(default_factory=list, description="folders that come first on the agent's PATH")
    harness_command: str = Field(default="", description="HARNESS_COMMAND, of the harness `command`")
    model: str = ""
    max_tokens: int = 65_536
    temperature: float = 0.7
    llm_timeout_s: int = 600
    context_tokens: int = Field(default=131_072, description="conversation is compacted well before this")
    max_turns: int = 200
    deadline_s: float = Field(
        description="seconds for everything; the worker keeps the last 30 s for commit and bundle"
    )
    idle_timeout_s: float = 300
    checks: dict[CheckName, str] = Field(default_factory=dict, description="command; empty: detect; `none`: skip")
    check_timeout_s: float = 600
    author_name: str = "longshot worker"
    author_email: str = "worker@longshot.invalid"


class WireCheck(Wire):
    name: CheckName
    command: Line
    status: CheckStatus
    exit_code: int | None = Field(default=None, ge=-(1 << 31), lt=1 << 31)
    output: Annotated[str, StringConstraints(max_length=40_000)] = ""
    duration_ms: int = Field(default=0, ge=-MAX_COUNT, le=MAX_COUNT)


class WorkResult(Wire):
    version: int = VERSION
    task_id: str
    harness_status: Annotated[str, StringConstraints(max_length=40)]
    error: Line = ""
    status: HandoffStatus = Field(description="what the worker makes of it, judged by what happened")
    said: bool | None = Field(
        default=None, description="did the agent give a handoff of its own? None: it was not asked"
    )
    summary: Text = ""
    concerns: list[Line] = Field(default_factory=list, max_length=MAX_LIST)
    suggestions: list[Line] = Field(default_factory=list, max_length=MAX_LIST)
    head: Oid | None = None
    commits: int = Field(default=0, ge=0, le=100_000)
    checks: list[WireCheck] = Field(default_factory=list, max_length=20)
    conflict_markers: list[str] = Field(default_factory=list, max_length=1_000)
    metrics: HandoffMetrics = Field(
        default_factory=HandoffMetrics, description="the worker's own count; git's replaces it"
    )
    tokens_in: int = Field(default=0, ge=0)
    tokens_out: int = Field(default=0, ge=0)
