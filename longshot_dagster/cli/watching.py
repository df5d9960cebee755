"""What is new in a build's ledger since the last look, as plain lines for a person and as figures."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from longshot_dagster.adapters.ledger import BuildLedger
from longshot_dagster.core.display import one_line
from longshot_dagster.core.ids import IterationKey, parse_iteration_key
from longshot_dagster.core.models import (
    BuildPhase,
    BuildReport,
    BuildState,
    Handoff,
    LandingOutcome,
    LandingState,
    Plan,
    Sweep,
)
from longshot_dagster.core.report import duration


@dataclass
class Tally:
    """How the build stands; `working` counts tasks that wait for a slot too."""

    iteration: str = ""
    planned: set[str] = field(default_factory=set)
    handed_off: set[str] = field(default_factory=set)
    landings: dict[str, LandingState] = field(default_factory=dict)
    tokens: int = 0
    state: BuildState = field(default_factory=BuildState)

    def count(self, *states: LandingState) -> int:
        return sum(s in states for s in self.landings.values())

    @property
    def working(self) -> int:
        return len(self.planned - self.handed_off)

    def line(self, elapsed_s: float) -> str:
        parts = [self.iteration or "planning", f"{self.working} at work", f"{len(self.handed_off)} handed off"]
        parts.append(f"{self.count(LandingState.LANDED)} landed")
        if conflicts := self.count(LandingState.CONFLICT):
            parts.append(f"{conflicts} in conflict")
        if withheld := self.count(LandingState.WITHHELD):
            parts.append(f"{withheld} withheld")
        return ", ".join([*parts, f"{self.tokens:,} tokens", duration(elapsed_s)])


class BuildWatch:
    """Looks at file times first and reads only what has changed: a look at 1,000 tasks costs a few milliseconds."""

    def __init__(self, ledger: BuildLedger) -> None:
        self._ledger = ledger
        self._root = Path(str(ledger.directory))
        self._times: dict[str, int] = {}
        self.tally = Tally()

    def look(self) -> list[str]:
        """Lines about everything that was written since the last look."""
        lines: list[str] = []
        for key in self._iterations():
            lines += self._iteration(key)
        for task in _names(self._root / "tasks"):
            lines += self._task(task)
        new = {int(Path(n).stem) for n in _names(self._root / "sweeps", ".json") if self._changed(f"sweeps/{n}")}
        if new:
            lines += [_sweep_line(s) for s in self._ledger.sweeps() if s.number in new]
        if self._changed("state.json"):
            lines += self._state(self._ledger.state())
        return lines

    def report(self) -> BuildReport | None:
        return self._ledger.report()

    def _iterations(self) -> Iterator[IterationKey]:
        for name in _names(self._root / "iterations"):
            yield parse_iteration_key(f"{self._ledger.build}.{name}")

    def _iteration(self, key: IterationKey) -> list[str]:
        folder = f"iterations/{key.short}"
        lines = []
        if self._times.setdefault(folder, 0) == 0:
            self._times[folder] = 1
            self.tally.iteration = key.short
        if self._changed(f"{folder}/plan.json") and (plan := self._ledger.plan(key)):
            self.tally.planned |= {t.id for t in plan.dispatched}
            lines.append(_plan_line(key, plan))
        if self._changed(f"{folder}/failure.json") and (failure := self._ledger.failure(key)):
            current = self._ledger.state().attempts.get(key.short, 1)
            lines += [_shown(f"{key.short} failed: {failure.reason}")] if failure.attempt >= current else []
        return lines

    def _task(self, task: str) -> list[str]:
        lines = []
        if self._changed(f"tasks/{task}/handoff.json") and (handoff := self._ledger.handoff(task)):
            self.tally.handed_off.add(task)
            lines.append(_handoff_line(handoff))
        if self._changed(f"tasks/{task}/landing.json") and (landing := self._ledger.landing(task)):
            if landing.state is not self.tally.landings.get(task) and landing.state is not LandingState.QUEUED:
                lines.append(_landing_line(landing))
            self.tally.landings[task] = landing.state
        return lines

    def _state(self, state: BuildState) -> list[str]:
        before, self.tally.state = self.tally.state, state
        if state.phase is before.phase:
            return []
        if state.phase is BuildPhase.PAUSED:
            return [_shown(f"paused: {state.reason or 'no reason given'}")]
        return [f"{state.phase.value}"]

    def _changed(self, name: str) -> bool:
        try:
            time = os.stat(self._root / name).st_mtime_ns  # noqa: PTH116 - once per document per look
        except FileNotFoundError:
            return False
        if self._times.get(name) == time:
            return False
        self._times[name] = time
        return True


def _names(folder: Path, suffix: str = "") -> Sequence[str]:
    try:
        return sorted(e.name for e in os.scandir(folder) if not e.name.startswith(".") and e.name.endswith(suffix))
    except FileNotFoundError:
        return ()


def _plan_line(key: IterationKey, plan: Plan) -> str:
    if not plan.tasks:
        return f"{key.short} planned nothing more"
    delegated = sum(t.delegated for t in plan.tasks)
    more = f", {delegated} of them for subplanners" if delegated else ""
    return f"{key.short} planned {len(plan.tasks)} task{'s' if len(plan.tasks) > 1 else ''}{more}"


def _handoff_line(handoff: Handoff) -> str:
    m = handoff.metrics
    files = f"+{m.lines_added} -{m.lines_removed} in {len(handoff.files_changed)} files"
    summary = next((line for line in handoff.summary.splitlines() if line.strip()), "")
    return _shown(f"{handoff.task_id} handed off {handoff.status.value}, {files}: {summary}")


def _landing_line(landing: LandingOutcome) -> str:
    match landing.state:
        case LandingState.LANDED:
            withheld = f", {len(landing.withheld_paths)} withheld" if landing.withheld_paths else ""
            return f"{landing.task} landed {len(landing.landed_paths)} files{withheld}"
        case LandingState.SUPERSEDED:
            return f"{landing.task} superseded by {landing.superseded_by}"
        case LandingState.NOOP:
            return f"{landing.task} had nothing to land"
        case _:
            return _shown(f"{landing.task} {landing.state.value}: {landing.reason}")


def _sweep_line(sweep: Sweep) -> str:
    if sweep.error:
        return _shown(f"sweep {sweep.number} could not run: {sweep.error}")
    if not sweep.checked and not sweep.red:
        return f"sweep {sweep.number}: nothing to check"
    red = [c.name.value for c in sweep.checks if c.red] + (["conflict markers"] if sweep.conflict_markers else [])
    return f"sweep {sweep.number} {'RED: ' + ', '.join(red) if red else 'green'}"


def _shown(text: str) -> str:
    return one_line(text, 200)
