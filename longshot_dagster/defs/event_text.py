"""What is stored of an event: letter for letter what Dagster's serialiser writes, for a quarter of its CPU time.

Dagster finds out for every object of every event how one of its class is written; here that is found out once. What is not
plainly known is left to Dagster.

A part of event_storage.py that has a module of its own for its length: see there for what holds its private imports.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from json.encoder import encode_basestring_ascii as _quoted
from math import isfinite
from typing import Any, NamedTuple

from dagster._core.definitions.dependency import NodeHandle
from dagster._core.definitions.metadata import MetadataFieldSerializer
from dagster._core.events.log import EventLogEntry
from dagster._serdes import serialize_value
from dagster_shared.serdes.errors import SerializationError
from dagster_shared.serdes.serdes import _WHITELIST_MAP, EMPTY_VALUES_TO_SKIP, NamedTupleSerializer, ObjectSerializer

_NODES = 256  # a run has a few, and every event names one twice

_Write = Callable[[Any], str]


class _Unknown(Exception):
    """How this is written is Dagster's affair."""


def row_of(entry: EventLogEntry) -> dict[str, Any]:
    """Its row in the table of events, by column."""
    told = entry.dagster_event
    asset = told.asset_key if told else None
    return {
        "run_id": entry.run_id,
        "event": text_of(entry),
        "dagster_event_type": told.event_type_value if told else None,
        "timestamp": datetime.fromtimestamp(entry.timestamp, UTC).replace(tzinfo=None),
        "step_key": told.step_key if told else entry.step_key,
        "asset_key": asset.to_string() if asset else None,
        "partition": (told.partition or None) if told else None,
    }


def text_of(value: Any) -> str:
    """As `serialize_value`; raises what that raises."""
    try:
        return _text(value)
    except (_Unknown, SerializationError):
        return serialize_value(value)


def _text(value: Any) -> str:
    return _writer(type(value), _first)(value)


def _first(value: Any) -> str:
    """The first of its class, from which is learned how those are written."""
    _WRITERS[type(value)] = write = _learned(value)
    return write(value)


def _float(value: float) -> str:
    if not isfinite(value):
        raise _Unknown
    return repr(value)


def _sequence(values: Any) -> str:
    return f"[{', '.join([_writer(type(value), _first)(value) for value in values])}]"


def _mapping(values: Any) -> str:
    if not all(type(key) is str for key in values):
        raise _Unknown
    said = [f"{_quoted(key)}: {_writer(type(value), _first)(value)}" for key, value in sorted(values.items())]
    return f"{{{', '.join(said)}}}"


def _metadata(entries: Mapping[str, Any]) -> str:
    """As MetadataFieldSerializer packs them."""
    start = '{"__class__": "EventMetadataEntry", "description": null, "entry_data": '
    said = [f'{start}{_text(entry)}, "label": {_text(label)}}}' for label, entry in entries.items()]
    return f"[{', '.join(said)}]"


def _learned(sample: Any) -> _Write:
    """For objects of the sample's class. Raises _Unknown unless it is a named tuple that Dagster writes by its plain rule."""
    packer = _WHITELIST_MAP.object_serializers.get(type(sample).__name__)
    if (
        not isinstance(sample, tuple)
        or not isinstance(packer, NamedTupleSerializer)
        or packer.klass is not type(sample)
        or type(packer).pack_items is not ObjectSerializer.pack_items
        or type(packer).before_pack is not ObjectSerializer.before_pack
    ):
        raise _Unknown
    fields = packer.object_as_mapping(sample)
    if [id(field) for field in fields.values()] != [id(field) for field in tuple.__iter__(sample)]:
        raise _Unknown
    write = _by_fields(packer, fields)
    return lru_cache(_NODES)(write) if isinstance(sample, NodeHandle) else write


class _Part(NamedTuple):
    """One entry of an object: `start` is the whole of it where no field fills it."""

    name: str
    start: str
    place: int | None = None
    write: _Write | None = None
    unless: tuple[Any, ...] = ()


def _by_fields(packer: ObjectSerializer[Any], fields: Iterable[str]) -> _Write:
    """`fields`: as they stand in the tuple. They are written in the order of the names they are stored under."""
    fixed = {"__class__": packer.get_storage_name(), **packer.old_fields}
    parts = [_Part(name, f"{_quoted(name)}: {json.dumps(value, sort_keys=True)}") for name, value in fixed.items()]
    parts += [_part(packer, field, place) for place, field in enumerate(fields)]
    parts.sort(key=lambda part: part.name)

    def write(value: Any) -> str:
        found = tuple(tuple.__iter__(value))
        said = []
        for _, start, place, write, unless in parts:
            if place is None:
                said.append(start)
            elif not unless or found[place] not in unless:
                field = found[place]
                said.append(start + (write or _writer(type(field), _first))(field))
        return f"{{{', '.join(said)}}}"

    return write


def _part(packer: ObjectSerializer[Any], field: str, place: int) -> _Part:
    name = packer.storage_field_names.get(field, field)
    unless: tuple[Any, ...] = (None,) if field in packer.skip_when_none_fields else ()
    unless = EMPTY_VALUES_TO_SKIP if field in packer.skip_when_empty_fields else unless
    own = packer.field_serializers.get(field)
    if own is None:
        return _Part(name, f"{_quoted(name)}: ", place, None, unless)
    if type(own) is not MetadataFieldSerializer or unless:
        raise _Unknown
    return _Part(name, f"{_quoted(name)}: ", place, _metadata)


_WRITERS: dict[type, _Write] = {
    str: _quoted,
    int: repr,
    float: _float,
    bool: {True: "true", False: "false"}.__getitem__,
    type(None): {None: "null"}.__getitem__,
    list: _sequence,
    tuple: _sequence,
    dict: _mapping,
}
_writer = _WRITERS.get
