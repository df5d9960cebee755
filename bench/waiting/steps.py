"""When each worker's step could begin, began and ended, from Dagster's events."""

from dataclasses import dataclass

from longshot_dagster.adapters.stack.dagster_api import DagsterApi

_EVENTS = """
query Events($id: ID!, $after: String) {
  logsForRun(runId: $id, afterCursor: $after) {
    ... on EventConnection { cursor hasMore events { __typename ... on MessageEvent { timestamp stepKey } } }
  }
}"""
_PLANNED = "iteration.make_plan"
_WORKER = "iteration.run_worker["


@dataclass(frozen=True)
class WorkerStep:
    """One `run_worker` step; seconds since the epoch."""

    run: str
    ready: float
    began: float
    ended: float


def worker_steps(api: DagsterApi) -> list[WorkerStep]:
    """Of every iteration there is."""
    found = []
    for run in api.every_run():
        if run.job != "planning_iteration":
            continue
        began: dict[str, float] = {}
        ended: dict[str, float] = {}
        for kind, step, at in _events(api, run.id):
            if kind == "ExecutionStepStartEvent":
                began.setdefault(step, at)
            elif kind in ("ExecutionStepSuccessEvent", "ExecutionStepFailureEvent"):
                ended[step] = at
        found += [
            WorkerStep(run.id, ended[_PLANNED], began[step], ended[step])
            for step in began
            if step.startswith(_WORKER) and step in ended and _PLANNED in ended
        ]
    return found


def _events(api: DagsterApi, run_id: str) -> list[tuple[str, str, float]]:
    events: list[tuple[str, str, float]] = []
    after: str | None = None
    while True:
        page = api.ask(_EVENTS, {"id": run_id, "after": after})["logsForRun"]
        events += [
            (e["__typename"], e.get("stepKey") or "", float(e.get("timestamp") or 0) / 1000) for e in page["events"]
        ]
        if not page["hasMore"]:
            return events
        after = page["cursor"]
