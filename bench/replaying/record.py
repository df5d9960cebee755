"""A real fleet's run as it was recorded: when each task began and ended, what it was to change, and where it strayed."""

import json
from dataclasses import dataclass
from pathlib import Path

RECORD = Path(__file__).resolve().parent.parent / "data/recorded_run.jsonl"


@dataclass(frozen=True)
class Job:
    """One finished task of the record. Times are seconds since the run began."""

    id: str
    scope: tuple[str, ...]
    priority: int
    began_s: float
    ended_s: float
    worker_s: float
    merged_s: float
    lines: int  # added
    strays: int  # files outside the scope
    brings_lock_file: bool
    brings_ignore_file: bool


@dataclass(frozen=True)
class Record:
    jobs: tuple[Job, ...]  # in the order in which their branches came to be merged
    fix_s: tuple[float, ...]  # what workers spent on a branch that did not merge
    landed_share: float  # of the branches that were tried, then


def read_record(path: Path = RECORD) -> Record:
    """Only what was finished: a task that was cut off has handed nothing in."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    worked = [r for r in rows if r["kind"] != "conflict-fix"]
    tried = [r for r in worked if r["merged_s"] is not None]
    return Record(
        tuple(sorted(map(_job, worked), key=lambda j: (j.merged_s, j.id))),
        tuple(r["agent_duration_s"] for r in rows if r["kind"] == "conflict-fix"),
        sum(r["landed"] for r in tried) / len(tried),
    )


def _job(row: dict[str, object]) -> Job:
    ended = float(str(row["ended_s"]))
    return Job(
        id=str(row["id"]),
        scope=tuple(row["scope"]),  # type: ignore[arg-type]
        priority=int(str(row["priority"])),
        began_s=float(str(row["cloned_s"])),
        ended_s=ended,
        worker_s=float(str(row["agent_duration_s"])),
        merged_s=float(str(row["merged_s"])) if row["merged_s"] is not None else ended,
        lines=int(str(row["lines_added"])),
        strays=max(0, int(str(row["out_of_scope_files_inferred"]))),
        brings_lock_file=bool(row["lock_file_inferred"]),
        brings_ignore_file=bool(row["harness_created_gitignore"]),
    )
