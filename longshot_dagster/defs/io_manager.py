"""Values between steps: an asset's value is its ledger document, everything else a small JSON file. Never a pickle.

repo_state, plan, metrics    iterations/<key>/*.json
handoffs, landings           tasks/<id>/*.json of the tasks in the manifest
health                       sweeps/<n>.json; io/health/<key>.json says which
anything else                io/<run>/<step>.<output>.json
"""

import json
from functools import lru_cache
from typing import Any

import dagster as dg
from pydantic import Field
from upath import UPath

from longshot_dagster.adapters.host.documents import write_atomically
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.ledger import BuildLedger, Ledger
from longshot_dagster.core.errors import IncompleteIteration, LedgerError
from longshot_dagster.core.ids import IterationKey, parse_iteration_key
from longshot_dagster.core.landing_records import LandingOutcome
from longshot_dagster.core.models import (
    Handoff,
    MetricsSnapshot,
    Plan,
    RepoState,
    Sweep,
)
from longshot_dagster.defs.resources import installation


class LedgerIOManager(dg.ConfigurableIOManager):
    """Writes an asset's value into the build's ledger, unless it is there already, and reads it from there."""

    home: str = Field(default="", description="folder of the installation; empty: LONGSHOT_HOME, else ~/.longshot")

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        ledger, key = self._place(context.partition_key)
        match obj:
            case RepoState():
                if ledger.repo_state(key) is None:
                    ledger.save_repo_state(key, obj)
            case Plan():
                ledger.freeze_plan(key, obj)
            case MetricsSnapshot():
                if ledger.metrics(key) is None:
                    ledger.save_metrics(key, obj)
            case Sweep():
                if all(s.number != obj.number for s in ledger.sweeps()):
                    ledger.save_sweep(obj)
                write_json(_health_pointer(ledger, key), {"sweep": obj.number})
            case list():
                for document in obj:
                    _save_task_document(ledger, document)
            case _:
                raise TypeError(f"{context.asset_key.to_user_string()} is no document of the ledger: {type(obj)}")

    def load_input(self, context: dg.InputContext) -> Any:
        ledger, key = self._place(context.partition_key)
        name = context.asset_key.path[-1]
        found: object
        match name:
            case "repo_state":
                found = ledger.repo_state(key)
            case "plan":
                found = ledger.plan(key)
            case "metrics":
                found = ledger.metrics(key)
            case "health":
                number = read_json(_health_pointer(ledger, key))["sweep"]
                found = next((s for s in ledger.sweeps() if s.number == number), None)
            case "handoffs":
                found = [_present(ledger.handoff(t.id), t.id) for t in _manifest(ledger, key).dispatched]
            case "landings":
                found = [_present(ledger.landing(t.id), t.id) for t in _manifest(ledger, key).dispatched]
            case _:
                found = None
        if found is None:
            raise LedgerError(f"the ledger has no {name} of {key}")
        return found

    def _place(self, partition: str) -> tuple[BuildLedger, IterationKey]:
        key = parse_iteration_key(partition)
        return _ledger(str(installation(self.home).builds), key.build), key


@lru_cache(maxsize=8)
def _ledger(builds: str, build: str) -> BuildLedger:
    """One per process: an iteration's handoffs and landings are asked for three times."""
    return Ledger(builds).build(build)


class JsonIOManager(dg.ConfigurableIOManager):
    """What one step hands to the next inside a run: names and small facts, as JSON below the build's folder."""

    home: str = Field(default="", description="folder of the installation; empty: LONGSHOT_HOME, else ~/.longshot")

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        path = _value_path(installation(self.home), _build(context), context)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Neither synced nor renamed: only later steps of this very run read it, and a run that is repeated writes its own.
        path.write_bytes(json.dumps(obj, ensure_ascii=False).encode())

    def load_input(self, context: dg.InputContext) -> Any:
        assert context.upstream_output is not None
        return read_json(_value_path(installation(self.home), _build(context), context.upstream_output))


def write_json(path: UPath, value: object) -> None:
    write_atomically(path, json.dumps(value, ensure_ascii=False).encode())


def read_json(path: UPath) -> Any:
    return json.loads(path.read_bytes())


def _build(context: dg.OutputContext | dg.InputContext) -> str:
    """The build a run is about, which every partition key begins with; empty for `start_build`."""
    return context.partition_key.partition(".")[0] if context.has_partition_key else ""


def _value_path(home: Home, build: str, written: dg.OutputContext) -> UPath:
    run, *rest = written.get_identifier()
    root = UPath(home.builds) / build if build else UPath(home.dagster)
    return root / "io" / run / (".".join(rest) + ".json")


def _health_pointer(ledger: BuildLedger, key: IterationKey) -> UPath:
    return ledger.directory / "io" / "health" / f"{key.short}.json"


def _manifest(ledger: BuildLedger, key: IterationKey) -> Plan:
    plan = ledger.plan(key)
    if plan is None:
        raise LedgerError(f"the ledger has no plan of {key}")
    return plan


def _present(document: Handoff | LandingOutcome | None, task: str) -> Handoff | LandingOutcome:
    if document is None:
        raise IncompleteIteration(f"task {task} has no handoff or landing in the ledger")
    return document


def _save_task_document(ledger: BuildLedger, document: object) -> None:
    match document:
        case Handoff() if ledger.handoff(document.task_id) is None:
            ledger.save_handoff(document)
        case LandingOutcome() if ledger.landing(document.task) is None:
            ledger.save_landing(document)
