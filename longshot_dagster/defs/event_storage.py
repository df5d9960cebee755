"""SQLite event log that keeps its connections and takes write locks first: 28 times the events, and pools that hold.

The stock class opens a connection per event (28 events/s, against 790 to 1,128 with a kept one), and a pool's slot is
claimed by reading and then writing, guarded by `FOR UPDATE SKIP LOCKED`, which SQLite ignores: 54 of 455 claims from six
processes overran the limit, against 0 of 711 with `BEGIN IMMEDIATE`.

What a power cut may lose: with `synchronous=NORMAL` the last events written before it, never their consistency. What a
SIGKILL of a run may lose: what its steps reported in the last fifth of a second, because our executor has events of steps
and records of assets written together (1.6 CPU ms for each event alone, 10 for each record, with 200 threads); run statuses
and checks are written at once, after what came before them. Neither is relied upon: what a build is owed is in the ledger
and in git, and a run that is repeated records it all again.

Slots of a pool are claimed for all waiting steps of a run at once, in one transaction: highest priority first, then oldest,
across all runs. The tables and what their rows mean are Dagster's, so its UI and its other executors go on working.
"""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from dagster._core.events import (
    ASSET_CHECK_EVENTS,
    ASSET_EVENTS,
    EVENT_TYPE_TO_PIPELINE_RUN_STATUS,
    DagsterEventType,
)
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.event_log.schema import AssetKeyTable, SqlEventLogStorageMetadata
from dagster._core.storage.event_log.sqlite.sqlite_event_log import INDEX_SHARD_NAME
from dagster._core.storage.sql import create_engine
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS
from dagster._serdes import ConfigurableClassData
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import StaticPool

from longshot_dagster.core.apart import preferred
from longshot_dagster.defs import schema
from longshot_dagster.defs.event_text import row_of

_GATHER_S = 0.2
_RECORD = DagsterEventType.ASSET_MATERIALIZATION
_AT_ONCE = {*ASSET_EVENTS, *ASSET_CHECK_EVENTS, *EVENT_TYPE_TO_PIPELINE_RUN_STATUS} - {_RECORD}
_MAX_OPEN = 16  # connections: one per run that this process writes to or shows, and the index
_TURN_S = 3.0  # a waiting step of a run that does not look for so long (it has died, or is full) gives way
_STAMP = "%Y-%m-%d %H:%M:%S.%f"  # what SQLAlchemy reads back as a datetime


@dataclass(frozen=True)
class Claimed:
    """What a look at a pool brought. `limit` is None when nothing limits the pool any more: then all wanted steps have it."""

    steps: tuple[str, ...]
    limit: int | None


class KeptSqliteEventLogStorage(SqliteEventLogStorage):
    """One kept connection per database, used by one thread at a time."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._engines: dict[str, Engine] = {}  # least recently used first
        self._opened_by: int | None = None  # pid
        self._gathering = 0
        self._gathered: dict[str, list[dict[str, Any]]] = {}  # run -> rows that wait to be written together
        self._records: list[
            tuple[EventLogEntry, dict[str, Any]]
        ] = []  # those of them that the index is to have as well
        self._gathered_guard = threading.Lock()
        self._tables: set[str] = set()
        self._asset_columns: set[str] = set()
        self._migrated: set[str] = set()
        self._partitions: set[tuple[str, str]] = set()  # that are there, while a run's steps are at work
        super().__init__(base_dir, inst_data)

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Any
    ) -> "KeptSqliteEventLogStorage":
        return cls(inst_data=inst_data, **config_value)

    @contextmanager
    def _connect(self, shard: str) -> Iterator[Connection]:
        with self._db_lock:
            self._write_gathered(shard)
            if shard == INDEX_SHARD_NAME:
                self._write_records()
            with self._engine(shard).connect() as connection, connection.begin():
                yield connection

    @contextmanager
    def _slots(self) -> Iterator[sqlite3.Connection]:
        """The index, for what has nothing to do with records: those may go on waiting."""
        with self._db_lock, self._straight(INDEX_SHARD_NAME) as connection:
            yield connection

    @contextmanager
    def _straight(self, shard: str) -> Iterator[sqlite3.Connection]:
        """With the lock held: a transaction past SQLAlchemy, which asks several times what a few statements cost."""
        with closing(self._engine(shard).raw_connection()) as kept:
            connection: Any = kept.driver_connection
            connection.execute(_BEGIN)
            try:
                yield connection
            except BaseException:
                connection.rollback()
                raise
            connection.commit()

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Meanwhile events of steps are written together, `_GATHER_S` seconds late at most; all of them are at its end."""
        done = threading.Event()
        writer = threading.Thread(target=self._keep_writing, args=(done,), name="event writer", daemon=True)
        self._gathering += 1
        writer.start()
        try:
            yield
        finally:
            self._gathering -= 1
            self._partitions.clear()
            done.set()
            writer.join()
            self._write_all_gathered()

    def store_event(self, event: EventLogEntry) -> None:
        noted = event.dagster_event.event_type if event.dagster_event else None
        if not self._gathering or noted in _AT_ONCE:
            super().store_event(event)
            return
        row = self._event_to_row(event)
        row["timestamp"] = row["timestamp"].strftime(_STAMP)
        with self._gathered_guard:
            self._gathered.setdefault(event.run_id, []).append(row)
            if noted is _RECORD:
                self._records.append((event, row))

    def _event_to_row(self, event: EventLogEntry) -> dict[str, Any]:
        return row_of(event)

    def _keep_writing(self, done: threading.Event) -> None:
        while not done.wait(_GATHER_S):
            # A full disk is told to whoever writes next; the rows wait.
            with contextlib.suppress(DatabaseError, sqlite3.DatabaseError):
                self._write_all_gathered()

    def _write_all_gathered(self) -> None:
        for run_id in list(self._gathered):
            with self._db_lock:
                self._write_gathered(run_id)
        with self._db_lock:
            self._write_records()

    def _write_gathered(self, shard: str) -> None:
        """With the lock held. Rows that cannot be written stay."""
        with self._gathered_guard:
            rows = self._gathered.pop(shard, [])
        if not rows:
            return
        try:
            with self._straight(shard) as connection:
                connection.executemany(_LOG, rows)
        except BaseException:
            with self._gathered_guard:
                self._gathered[shard] = rows + self._gathered.get(shard, [])
            raise

    def _write_records(self) -> None:
        """With the lock held: what Dagster writes into the index for each, but what only the newest of an asset leaves
        behind is written for that one. Records that cannot be written stay.
        """
        with self._gathered_guard:
            records, self._records = self._records, []
        if not records:
            return
        events = [event for event, _ in records]
        try:
            with self._engine(INDEX_SHARD_NAME).connect() as connection, connection.begin():
                connection.exec_driver_sql(_LOG, [row for _, row in records])
                last: int = connection.exec_driver_sql("SELECT last_insert_rowid()").scalar_one()
                ids = range(last - len(events) + 1, last + 1)  # nobody else writes meanwhile
                self._store_asset_event_tags(connection, events, list(ids))
                newest = {event.dagster_event.asset_key: n for n, event in enumerate(events) if event.dagster_event}
                for n in newest.values():
                    self._store_asset_event(connection, events[n], ids[n])
        except BaseException:
            with self._gathered_guard:
                self._records = records + self._records
            raise

    def has_table(self, table_name: str) -> bool:
        """Of a table that is there Dagster asks again for every record, over a connection made for that."""
        if table_name not in self._tables and super().has_table(table_name):
            self._tables.add(table_name)
        return table_name in self._tables

    def has_asset_key_col(self, column_name: str) -> bool:
        """Asked before every look at an asset, and Dagster takes a connection first."""
        return column_name in self._asset_columns or bool(super().has_asset_key_col(column_name))

    def _has_asset_key_col_on_connection(self, conn: Connection, column_name: str) -> bool:
        if column_name not in self._asset_columns and super()._has_asset_key_col_on_connection(conn, column_name):
            self._asset_columns.add(column_name)
        return column_name in self._asset_columns

    def has_secondary_index(self, name: str) -> bool:
        """An index once made is never unmade; Dagster asks for two at every look at an asset."""
        if name not in self._migrated and super().has_secondary_index(name):
            self._migrated.add(name)
        return name in self._migrated

    def has_dynamic_partition(self, partitions_def_name: str, partition_key: str) -> bool:
        """Dagster asks twice for every output; a partition that a run works on stays until it has ended."""
        partition = partitions_def_name, partition_key
        if partition in self._partitions:
            return True
        found = super().has_dynamic_partition(partitions_def_name, partition_key)
        if found and self._gathering:
            self._partitions.add(partition)
        return found

    def delete_dynamic_partition(self, partitions_def_name: str, partition_key: str) -> None:
        self._partitions.discard((partitions_def_name, partition_key))
        super().delete_dynamic_partition(partitions_def_name, partition_key)

    def _engine(self, shard: str) -> Engine:
        """Raises RuntimeError in a fork of the process that has opened a database."""
        if self._opened_by not in (None, os.getpid()):
            # It would believe that it holds its parent's locks, and could lose what others write.
            raise RuntimeError("SQLite databases cannot be used across a fork: open the instance in the child")
        self._opened_by = os.getpid()
        engine = self._engines.pop(shard, None)
        if engine is None:
            engine = self._open(shard)
            while len(self._engines) >= _MAX_OPEN:
                self._engines.pop(next(name for name in self._engines if name != INDEX_SHARD_NAME)).dispose()
        self._engines[shard] = engine
        return engine

    def _open(self, shard: str) -> Engine:
        engine = create_engine(
            self.conn_string_for_shard(shard),
            poolclass=StaticPool,
            connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS, "check_same_thread": False},
        )
        if shard not in self._initialized_dbs:
            self._initdb(engine, for_index_shard=shard == INDEX_SHARD_NAME)
            self._initialized_dbs.add(shard)
            engine.dispose()  # what follows is for connections made after the schema is there
        event.listen(engine, "connect", _prepare)
        event.listen(engine, "begin", _begin)
        return engine

    def _initdb(self, engine: Engine, for_index_shard: bool = False) -> None:
        """The log of a new run is made in one transaction; whatever is not plainly new or current is Dagster's affair."""
        with contextlib.suppress(DatabaseError), engine.connect() as connection:
            if schema.is_current(connection):
                if for_index_shard:  # with all that Dagster asks for again and again
                    self._tables.update(SqlEventLogStorageMetadata.tables)
                    self._asset_columns.update(AssetKeyTable.columns.keys())
                return
            if not for_index_shard:
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                if schema.is_empty(connection):
                    schema.create(connection, SqlEventLogStorageMetadata)
                    connection.commit()
                    return
                connection.rollback()  # somebody has made it meanwhile
        super()._initdb(engine, for_index_shard)

    def claim_slots(
        self, pool: str, run_id: str, wanted: Mapping[str, int], holding: int, at_most: int | None
    ) -> Claimed:
        """Take slots for up to `at_most` of the steps in `wanted` (each with its priority) whose turn it is.

        Steps that are not in line yet are put there; of one priority the first in `wanted` take the run's slots, whichever
        came first. `holding`: slots of the pool that the run has already.
        """
        with self._slots() as connection:
            limited = connection.execute(_LIMIT, (pool,)).fetchone()
            limit: int | None = limited[0] if limited else None
            if limit is None:
                connection.execute(_LEAVE_POOL, (run_id, pool))
                return Claimed(tuple(wanted), None)
            now = datetime.now(UTC)
            if connection.execute(_IN_LINE, (pool, run_id)).fetchone() != (len(wanted) + holding,):
                rows = [(pool, run_id, step, priority, now.strftime(_STAMP)) for step, priority in wanted.items()]
                connection.executemany(_GET_IN_LINE, rows)
            slots = [slot for (slot,) in connection.execute(_FREE_SLOTS, (pool,))]
            if not slots:
                return Claimed((), limit)
            since = (now - timedelta(seconds=_TURN_S)).strftime(_STAMP)
            turn = {"pool": pool, "run": run_id, "since": since, "now": now.strftime(_STAMP), "slots": len(slots)}
            first = connection.execute(_FIRST_IN_LINE, turn).fetchall()
            entitled = [step for _, run, step, _ in first if run == run_id and step in wanted][:at_most]
            mine = preferred(entitled, wanted)
            connection.executemany(_TAKE, [(run_id, step, slot) for slot, step in zip(slots, mine, strict=False)])
            begun = [row for row, run, step, assigned in first if assigned is None and (run != run_id or step in mine)]
            connection.executemany(_TURN_BEGINS, [(turn["now"], row) for row in begun])
            instead = set(mine).difference(entitled)
            connection.executemany(_TURN_TAKEN, [(turn["now"], pool, run_id, step) for step in instead])
            return Claimed(tuple(mine), limit)

    def withdraw_steps(self, run_id: str) -> None:
        """The run's waiting steps leave every line; the slots it holds stay its own."""
        with self._slots() as connection:
            connection.execute(_LEAVE, (run_id,))

    def free_concurrency_slot_for_step(self, run_id: str, step_key: str) -> None:
        step = (run_id, step_key)
        with self._slots() as connection:
            dropped = connection.execute(_DROP_SLOT, step).rowcount
            connection.execute(_FREE_SLOT, step)
            pools = connection.execute(_ASSIGNED_IN, step).fetchall()
            connection.execute(_LEAVE_STEP, step)
            if not dropped:  # Dagster's own executors expect to be told whose turn it is
                connection.executemany(_ASSIGN_NEXT, pools)

    def _allocate_concurrency_slots(self, conn: Connection, concurrency_key: str, num: int) -> list[str]:
        """A limit that is raised again first takes back slots that were dropped while in use.

        Dagster adds new ones beside them: pausing a pool of 4 busy slots and going on at 4 would run 8.
        """
        kept = conn.exec_driver_sql(_SLOTS, (concurrency_key,)).scalar() or 0
        if num > kept:
            conn.exec_driver_sql(_TAKE_BACK, (concurrency_key, num - kept))
        found: list[str] = super()._allocate_concurrency_slots(conn, concurrency_key, num)
        return found

    def wipe(self) -> None:
        self._close()  # the files under the connections go away
        self._tables.clear()
        self._asset_columns.clear()
        self._migrated.clear()
        super().wipe()

    def dispose(self) -> None:
        self._close()
        super().dispose()

    def _close(self) -> None:
        with self._db_lock:
            while self._engines:
                self._engines.popitem()[1].dispose(close=self._opened_by in (None, os.getpid()))


def _prepare(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # sqlite3 would begin a transaction of its own, and not an immediate one
    connection.execute("PRAGMA synchronous=NORMAL")


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(_BEGIN)


_BEGIN = "BEGIN IMMEDIATE"
_LOG = (
    "INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, step_key, asset_key, partition)"
    " VALUES (:run_id, :event, :dagster_event_type, :timestamp, :step_key, :asset_key, :partition)"
)
_LIMIT = 'SELECT "limit" FROM concurrency_limits WHERE concurrency_key = ?'
_IN_LINE = "SELECT count(*) FROM pending_steps WHERE concurrency_key = ? AND run_id = ?"
_GET_IN_LINE = (
    "INSERT OR IGNORE INTO pending_steps (concurrency_key, run_id, step_key, priority, create_timestamp)"
    " VALUES (?, ?, ?, ?, ?)"
)
_SLOTS = "SELECT count(*) FROM concurrency_slots WHERE concurrency_key = ? AND NOT deleted"
_FREE_SLOTS = "SELECT id FROM concurrency_slots WHERE concurrency_key = ? AND step_key IS NULL AND NOT deleted"
# By their ids, found from the slots: of three columns that may be NULL, NOT IN compares every waiting step with every slot.
_WITHOUT_SLOT = (
    "id NOT IN (SELECT p.id FROM concurrency_slots s CROSS JOIN pending_steps p"
    " ON p.concurrency_key = s.concurrency_key AND p.run_id = s.run_id AND p.step_key = s.step_key)"
)
_FIRST_IN_LINE = (
    f"SELECT id, run_id, step_key, assigned_timestamp FROM pending_steps WHERE concurrency_key = :pool AND {_WITHOUT_SLOT}"  # noqa: S608 - constants
    " AND (run_id = :run OR assigned_timestamp IS NULL OR assigned_timestamp BETWEEN :since AND :now)"
    " ORDER BY priority DESC, create_timestamp, id LIMIT :slots"
)
_TAKE = "UPDATE concurrency_slots SET run_id = ?, step_key = ? WHERE id = ?"
_TURN_BEGINS = "UPDATE pending_steps SET assigned_timestamp = ? WHERE id = ?"
_TURN_TAKEN = (
    "UPDATE pending_steps SET assigned_timestamp = ? WHERE concurrency_key = ? AND run_id = ? AND step_key = ?"
)
_LEAVE = f"DELETE FROM pending_steps WHERE run_id = ? AND {_WITHOUT_SLOT}"  # noqa: S608
_LEAVE_POOL = f"DELETE FROM pending_steps WHERE run_id = ? AND concurrency_key = ? AND {_WITHOUT_SLOT}"  # noqa: S608
_DROP_SLOT = "DELETE FROM concurrency_slots WHERE run_id = ? AND step_key = ? AND deleted"
_FREE_SLOT = "UPDATE concurrency_slots SET run_id = NULL, step_key = NULL WHERE run_id = ? AND step_key = ?"
_ASSIGNED_IN = (
    "SELECT concurrency_key FROM pending_steps WHERE run_id = ? AND step_key = ? AND assigned_timestamp IS NOT NULL"
)
_LEAVE_STEP = "DELETE FROM pending_steps WHERE run_id = ? AND step_key = ?"
_ASSIGN_NEXT = (
    "UPDATE pending_steps SET assigned_timestamp = CURRENT_TIMESTAMP WHERE id = (SELECT id FROM pending_steps"
    " WHERE concurrency_key = ? AND assigned_timestamp IS NULL ORDER BY priority DESC, create_timestamp, id LIMIT 1)"
)
_TAKE_BACK = (
    "UPDATE concurrency_slots SET deleted = 0 WHERE id IN (SELECT id FROM concurrency_slots"
    " WHERE concurrency_key = ? AND deleted LIMIT ?)"
)
