"""What is written of an event: the letters of Dagster's own serialiser, whatever the event says."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.events import DagsterEvent, DagsterEventType, StepMaterializationData
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log import SqlEventLogStorage
from dagster._serdes import serialize_value
from dagster_shared.serdes.serdes import SerializableNonScalarKeyMapping
from hypothesis import given, settings
from hypothesis import strategies as st

from longshot_dagster.defs import event_text
from longshot_dagster.defs.event_storage import KeptSqliteEventLogStorage
from longshot_dagster.defs.event_text import text_of

_HOSTILE = 'a "quoted" \\ line\n\x00\x7f\ud800 é 漢 \u2028 </script> \U0001f600'

_METADATA = {
    "text": dg.MetadataValue.text(_HOSTILE),
    _HOSTILE: dg.MetadataValue.md("# heading"),
    "number": dg.MetadataValue.int(2**70),
    "part": dg.MetadataValue.float(0.1 + 0.2),
    "yes": dg.MetadataValue.bool(True),
    "nothing": dg.MetadataValue.null(),
    "path": dg.MetadataValue.path("/a/b"),
    "url": dg.MetadataValue.url("https://example.invalid"),
    "notebook": dg.MetadataValue.notebook("/a.ipynb"),
    "since": dg.MetadataValue.timestamp(1_700_000_000.5),
    "asset": dg.MetadataValue.asset(dg.AssetKey(["a", "b"])),
    "run": dg.MetadataValue.dagster_run("00000000-0000-4000-8000-000000000000"),
    "table": dg.MetadataValue.table(
        [dg.TableRecord({"check": "build", "seconds": 1.5, "exit": 0, "ok": True})],
        dg.TableSchema(
            columns=[
                dg.TableColumn("check", "string", tags={"unit": "s"}),
                dg.TableColumn("seconds", "float", constraints=dg.TableColumnConstraints(nullable=False)),
            ]
        ),
    ),
}
_LEFT_TO_DAGSTER = {
    "not a number": dg.MetadataValue.float(float("nan")),
    "endless": dg.MetadataValue.float(float("-inf")),
    "json": dg.MetadataValue.json({"b": [1, None, {"c": 0.5}], "a": "x"}),
    "lineage": dg.MetadataValue.column_lineage(
        dg.TableColumnLineage({"x": [dg.TableColumnDep(asset_key=dg.AssetKey("a"), column_name="y")]})
    ),
}


def record(metadata: dict[str, Any]) -> EventLogEntry:
    materialization = dg.AssetMaterialization(
        ["task", "result"], _HOSTILE, metadata, partition=_HOSTILE, tags={"dagster/data_version": "a"}
    )
    event = DagsterEvent(
        DagsterEventType.ASSET_MATERIALIZATION.value,
        "job",
        event_specific_data=StepMaterializationData(materialization),
    )
    return EventLogEntry(None, 10, _HOSTILE, "run", 1_700_000_000.25, "step[a]", "job", event)


@pytest.mark.parametrize("name", [*_METADATA, *_LEFT_TO_DAGSTER])
def test_a_record_is_written_as_dagster_writes_it(name: str) -> None:
    entry = record({name: {**_METADATA, **_LEFT_TO_DAGSTER}[name]})
    assert text_of(entry) == serialize_value(entry)


@pytest.fixture
def nobody_else_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(value: object) -> str:
        raise AssertionError(f"left to Dagster: {value}")

    monkeypatch.setattr(event_text, "serialize_value", asked)


def test_all_that_a_task_s_record_holds_is_written_without_dagster(nobody_else_writes: None) -> None:
    assert text_of(record(_METADATA)) == serialize_value(record(_METADATA))


def test_whatever_the_steps_of_jobs_report_is_written_as_dagster_writes_it(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row for row, and the events that each task has without Dagster."""
    storage = instance.event_log_storage
    assert isinstance(storage, KeptSqliteEventLogStorage)
    said: dict[str, EventLogEntry] = {}
    for shape in ("fan_out", "skipped", "crashed", "retried"):
        job = dg.build_reconstructable_job(
            "dagster_jobs", "build", (shape, "threaded"), reconstructor_working_directory=str(Path(__file__).parent)
        )
        with dg.execute_job(job, instance=instance) as result:
            entries = instance.all_logs(result.run_id)
        assert [storage._event_to_row(e) for e in entries] == [
            SqlEventLogStorage._event_to_row(storage, e) for e in entries
        ]
        said.update({e.dagster_event.event_type_value: e for e in entries if e.dagster_event})
    assert len(said) > 12
    monkeypatch.setattr(event_text, "serialize_value", None)
    for kind in ("STEP_START", "STEP_OUTPUT", "STEP_SUCCESS", "STEP_INPUT", "HANDLED_OUTPUT", "LOADED_INPUT"):
        assert text_of(said[kind])


_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(st.characters(exclude_categories=())), inner)
        | st.lists(inner).map(tuple)
        | st.sets(st.text())
        | st.dictionaries(st.integers(), inner).map(SerializableNonScalarKeyMapping)
    ),
)


@settings(max_examples=60, deadline=None)
@given(_PLAIN)
def test_any_plain_value_is_written_as_dagster_writes_it(value: Any) -> None:
    assert text_of(value) == serialize_value(value)


@pytest.mark.parametrize("value", [{1: "a"}, {1: "a", "b": 2}, [object()], {"a": b"b"}, {"a": type}])
def test_what_dagster_refuses_or_turns_into_something_else_is_left_to_it(value: Any) -> None:
    assert _outcome(text_of, value) == _outcome(serialize_value, value)


def _outcome(write: Any, value: Any) -> str:
    try:
        return str(write(value))
    except Exception as e:
        return f"{type(e).__name__}: {e}"
