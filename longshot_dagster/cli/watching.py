"""What is new in a build's ledger since the last look, as events, and how the build stands, as figures."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from longshot_dagster.adapters.ledger.ledger import BuildLedger
from longshot_dagster.adapters.ledger.task_gists import settles_ns
from longshot_dagster.core import events
from longshot_dagster.core.events import Event
from longshot_dagster.core.ids import IterationKey, parse_iteration_key
from longshot_dagster.core.landing_records import LandingState
from longshot_dagster.core.models import (
    BuildPhase,
    BuildReport,
    BuildState,
    HandoffStatus,
    Plan,
    Sweep,
    Task,
)
from longshot_dagster.core.report import duration

_ALL_EVERY_S = 30.0


@dataclass
class Tally:
    """How the build stands; `working` counts tasks that wait for a slot too."""

    iteration: str = ""
    planned: set[str] = field(default_factory=set)
    handed_off: set[str] = field(default_factory=set)
    landings: dict[str, LandingState] = field(default_factory=dict)
    tokens: int = 0
    tokens_in: int = 0  # of these, what was sent
    state: BuildState = field(default_factory=BuildState)
    tasks: dict[str, Task] = field(default_factory=dict)
    statuses: dict[str, HandoffStatus] = field(default_factory=dict)
    interrupted: set[str] = field(default_factory=set)
    rounds: dict[str, tuple[int, bool]] = field(default_factory=dict)  # planner -> its newest round, and is it planned?
    sweep: Sweep | None = None

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
        self._seen: dict[str, tuple[int, int]] = {}
        self._settled: dict[str, int] = {}
        self._open: set[str] = set()
        self._all_at = (0, 0.0)  # the folder's own time (ns), and when every task was looked at
        self._met: set[str] = set()
        self._ended: dict[str, float] = {}
        self._phase = BuildPhase.RUNNING
        self._noted = 0
        self._mended = 0
        self.tally = Tally()

    def look(self) -> list[str]:
        """Lines about everything that was written since the last look."""
        return [e.line for e in self.events() if not e.detail]

    def events(self) -> list[Event]:
        """Everything that was written since the last look, in the order in which it happened."""
        found: list[Event] = []
        if self._first("request") and self._ledger.exists():
            found.append(events.started(self._ledger.request()))
        for key in self._iterations():
            found += self._iteration(key)
        for task in self._touched():
            found += self._task(task)
        new = {int(Path(n).stem) for n in _names(self._root / "sweeps", ".json") if self._changed(f"sweeps/{n}")}
        if new:
            sweeps = self._ledger.sweeps()
            found += [events.swept(s) for s in sweeps if s.number in new]
            self.tally.sweep = sweeps[-1]
        if self._changed("quarantine/notes.jsonl"):
            notes = self._ledger.mended()
            found += [events.mended(n.document, n.line, n.at) for n in notes[self._mended :]]
            self._mended = len(notes)
        if self._changed("state.json"):
            found += self._state(self._ledger.state())
        return sorted(found, key=lambda e: e.at)

    def report(self) -> BuildReport | None:
        return self._ledger.report()

    def _iterations(self) -> Iterator[IterationKey]:
        for name in _names(self._root / "iterations"):
            yield parse_iteration_key(f"{self._ledger.build}.{name}")

    def _iteration(self, key: IterationKey) -> list[Event]:
        folder = f"iterations/{key.short}"
        found = []
        if self._first(folder):
            self.tally.iteration = key.short
            if key.number >= self.tally.rounds.get(key.planner, (0, False))[0]:
                self.tally.rounds[key.planner] = (key.number, False)
        if self._changed(f"{folder}/plan.json") and (plan := self._ledger.plan(key)):
            self._planned(key, plan)
            at = plan.planned_at or self._at(f"{folder}/plan.json")
            found.append(events.planned(key, plan, at))
        if self._changed(f"{folder}/failure.json") and (failure := self._ledger.failure(key)):
            current = self._ledger.state().attempts.get(key.short, 1)
            if failure.attempt >= current:
                found.append(events.iteration_failed(key, failure, self._at(f"{folder}/failure.json")))
        return found

    def _planned(self, key: IterationKey, plan: Plan) -> None:
        dispatched = plan.dispatched
        self.tally.planned |= {t.id for t in dispatched}
        # One that proved atomic is planned twice: delegated by its parent, and then for a worker by its own planner.
        atomic = {name for name, task in self.tally.tasks.items() if not task.delegated}
        self.tally.tasks |= {t.id: t for t in plan.tasks if t.id not in atomic}
        if key.number >= self.tally.rounds.get(key.planner, (0, False))[0]:
            self.tally.rounds[key.planner] = (key.number, True)

    def _task(self, task: str) -> list[Event]:
        folder = f"tasks/{task}"
        found: list[Event] = []
        if self._changed(f"{folder}/interrupted.json") and (kept := self._reader().interrupted(task)):
            self.tally.interrupted.add(task)
            found.append(events.interrupted(kept, self._at(f"{folder}/interrupted.json")))
        if self._changed(f"{folder}/cancel.json"):
            found.append(events.cancel_asked(task, self._at(f"{folder}/cancel.json")))
        if self._changed(f"{folder}/run.json") and (run := self._ledger.run(task)):
            self._ended[task] = run.ended_at
            found += [*events.moved(run), events.begun(run)]
        if self._changed(f"{folder}/handoff.json") and (handoff := self._reader().handoff(task)):
            self.tally.handed_off.add(task)
            self.tally.interrupted.discard(task)
            self.tally.statuses[task] = handoff.status
            at = self._ended.get(task) or self._at(f"{folder}/handoff.json")
            found.append(events.handed_off(handoff, at))
        elif task in self.tally.handed_off and f"{folder}/handoff.json" not in self._seen:
            self._forget(task)
        found += self._earlier(task)
        if self._changed(f"{folder}/landing.json"):
            found += self._landing(task)
        return found

    def _landing(self, task: str) -> list[Event]:
        outcome = self._ledger.landing(task)
        if outcome is None:
            return []
        before = self.tally.landings.get(task)
        self.tally.landings[task] = outcome.state
        if outcome.state is before:
            return []
        at = outcome.history[-1][1] if outcome.history else self._at(f"tasks/{task}/landing.json")
        told = [] if before is not None else events.earlier_landings(outcome)
        return [*told, events.landing(outcome, at)]

    def _earlier(self, task: str) -> list[Event]:
        """What was set aside when the task was given to another worker."""
        if not os.path.exists(f"{self._root}/tasks/{task}/earlier-1"):  # noqa: PTH110 - once per changed task
            return []
        found = []
        for folder, run, handoff in self._reader().earlier_work(task):
            if self._first(f"{task}/{folder.name}"):
                found += [replace(e, detail=True) for e in events.moved(run)] + [events.begun(run)] if run else []
                done = events.handed_off(handoff, run.ended_at if run else folder.stat().st_mtime) if handoff else None
                found += [replace(done, detail=True)] if done else []
                found.append(events.set_aside(task, folder.stat().st_mtime))
        return found

    def _forget(self, task: str) -> None:
        self.tally.handed_off.discard(task)
        self.tally.statuses.pop(task, None)
        self.tally.landings.pop(task, None)
        self._ended.pop(task, None)

    def _reader(self) -> BuildLedger:
        """A ledger that is dropped at once: handoffs carry their diff, and a ledger keeps what it has read."""
        return BuildLedger(self._ledger.directory, self._ledger.build)

    def _state(self, state: BuildState) -> list[Event]:
        self.tally.state = state
        noted = self._ledger.phases()
        new, self._noted = noted[self._noted :], len(noted)
        found = []
        # The state itself comes last: its note is written a moment later, and older versions wrote none.
        for at, phase in [*new, (self._at("state.json"), state)]:
            if phase.phase is not self._phase:
                found.append(events.phase_changed(phase, at))
                self._phase = phase.phase
        return found

    def _touched(self) -> list[str]:
        """Tasks whose folder has changed, or may have; a rename into it changes its time.

        Of those that have landed not even that is looked at, until somebody takes one up again (`task_gists.touch`).
        """
        now, found = time.time_ns(), []
        for name in self._looked_at(now):
            try:
                changed = os.stat(f"{self._root}/tasks/{name}").st_mtime_ns  # noqa: PTH116 - once per task per look
            except FileNotFoundError:
                continue
            if self._settled.get(name) != changed:
                if now - changed > settles_ns(changed):
                    self._settled[name] = changed
                found.append(name)
            elif self.tally.landings.get(name) is LandingState.LANDED:
                self._open.discard(name)
        return sorted(found)

    def _looked_at(self, now: int) -> list[str]:
        try:
            changed = os.stat(f"{self._root}/tasks").st_mtime_ns  # noqa: PTH116
        except FileNotFoundError:
            return []
        before, at = self._all_at
        if changed != before or now - changed <= settles_ns(changed) or not 0 <= time.monotonic() - at < _ALL_EVERY_S:
            self._all_at = changed, time.monotonic()
            self._open = set(_names(self._root / "tasks"))
        return list(self._open)

    def _first(self, name: str) -> bool:
        """Is this the first time that `name` is met?"""
        new = name not in self._met
        self._met.add(name)
        return new

    def _changed(self, name: str) -> bool:
        try:
            found = os.stat(f"{self._root}/{name}")  # noqa: PTH116 - once per document per look
        except FileNotFoundError:
            self._seen.pop(name, None)
            return False
        stamp = (found.st_mtime_ns, found.st_ino)
        if self._seen.get(name) == stamp:
            return False
        self._seen[name] = stamp
        return True

    def _at(self, name: str) -> float:
        """When a document was written, in seconds since the epoch."""
        try:
            return (self._root / name).stat().st_mtime
        except FileNotFoundError:
            return time.time()


def _names(folder: Path, suffix: str = "") -> Sequence[str]:
    try:
        return sorted(e.name for e in os.scandir(folder) if not e.name.startswith(".") and e.name.endswith(suffix))
    except FileNotFoundError:
        return ()
