"""SQLite storages of runs and of schedules that keep their connections, and what they know of the schema.

The stock classes build an engine and open a connection for every question, often to ask first which tables there are; a
sensor's tick asks a dozen. What is stored, and how durably, is Dagster's own.

Nothing is opened before the first question: a process that forks others asks none.

One of the few modules that import private ones of Dagster, whose version is pinned; tests/defs/test_kept_storages.py is the
contract.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dagster._core.scheduler.instigation import InstigatorState
from dagster._core.storage.runs.sqlite.sqlite_run_storage import SqliteRunStorage
from dagster._core.storage.schedules.schema import InstigatorsTable, JobTable
from dagster._core.storage.schedules.sqlite.sqlite_schedule_storage import SqliteScheduleStorage
from dagster._core.storage.sql import create_engine
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS, create_db_conn_string
from dagster._serdes import ConfigurableClassData, serialize_value
from dagster._time import get_current_datetime
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.pool import NullPool, QueuePool

from longshot_dagster.defs import schema

_KEPT = 4  # connections; a question may be asked while another is being answered


class _Kept:
    """The kept connections of one database, and what was found there and stays so: tables and indexes only get more."""

    def __init__(self, url: str) -> None:
        self._found: set[str] = set()
        self._opened_by: int | None = None  # pid
        self._engine = _engine(url)

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """Raises RuntimeError in a fork of the process that has opened the database."""
        if self._opened_by not in (None, os.getpid()):
            # It would believe that it holds its parent's locks, and could lose what others write.
            raise RuntimeError("SQLite databases cannot be used across a fork: open the instance in the child")
        self._opened_by = os.getpid()
        with self._engine.connect() as connection, connection.begin():
            yield connection

    def close(self) -> None:
        self._engine.dispose(close=self._opened_by in (None, os.getpid()))

    def there(self, what: str, look: Callable[[], bool]) -> bool:
        """`look`, until it has found it."""
        if what in self._found or look():
            self._found.add(what)
            return True
        return False


class KeptSqliteRunStorage(SqliteRunStorage):
    """Made by `from_config_value`, as an instance does."""

    def __init__(self, conn_string: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._kept = _Kept(conn_string)
        super().__init__(conn_string, inst_data)

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> "KeptSqliteRunStorage":
        base_dir = config_value["base_dir"]
        if not _is_current(base_dir, "runs"):
            SqliteRunStorage.from_local(base_dir, inst_data)  # makes or mends the database, and keeps nothing open
        return cls(create_db_conn_string(base_dir, "runs"), inst_data)

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        with self._kept.connect() as connection:
            yield connection

    def dispose(self) -> None:
        self._kept.close()
        super().dispose()

    def has_built_index(self, migration_name: str) -> bool:
        look = super().has_built_index
        return self._kept.there(migration_name, lambda: look(migration_name))

    def has_run_stats_index_cols(self) -> bool:
        return self._kept.there("run stats", super().has_run_stats_index_cols)

    def has_bulk_actions_selector_cols(self) -> bool:
        return self._kept.there("selectors of bulk actions", super().has_bulk_actions_selector_cols)

    def has_backfill_id_column(self) -> bool:
        return self._kept.there("backfills of runs", super().has_backfill_id_column)

    def has_bulk_action_job_name_column(self) -> bool:
        return self._kept.there("jobs of bulk actions", super().has_bulk_action_job_name_column)

    def has_backfill_tags_table(self) -> bool:
        return self._kept.there("tags of backfills", super().has_backfill_tags_table)


class KeptSqliteScheduleStorage(SqliteScheduleStorage):
    """Made by `from_config_value`, as an instance does."""

    def __init__(self, conn_string: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._kept = _Kept(conn_string)
        super().__init__(conn_string, inst_data)

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> "KeptSqliteScheduleStorage":
        base_dir = config_value["base_dir"]
        if not _is_current(base_dir, "schedules"):
            SqliteScheduleStorage.from_local(base_dir, inst_data)  # makes or mends the database, and keeps nothing open
        return cls(create_db_conn_string(base_dir, "schedules"), inst_data)

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        with self._kept.connect() as connection:
            yield connection

    def dispose(self) -> None:
        self._kept.close()
        super().dispose()

    def has_built_index(self, migration_name: str) -> bool:
        look = super().has_built_index
        return self._kept.there(migration_name, lambda: look(migration_name))

    def update_instigator_state(self, state: InstigatorState) -> InstigatorState:
        """As stock, which looks first, inserts and is refused before it updates: 4 ms, twice in each tick of a sensor."""
        body, now = serialize_value(state), get_current_datetime()
        values = {"status": state.status.value, "update_timestamp": now}
        job = JobTable.update().where(JobTable.c.job_origin_id == state.instigator_origin_id)
        instigator = InstigatorsTable.update().where(InstigatorsTable.c.selector_id == state.selector_id)
        kind = state.instigator_type.value
        with self.connect() as conn:
            jobs = conn.execute(job.values(**values, job_body=body, selector_id=state.selector_id))
            if jobs.rowcount and self._has_instigators_table(conn):
                known = conn.execute(instigator.values(**values, instigator_type=kind, instigator_body=body))
                if known.rowcount:
                    return state
        return super().update_instigator_state(state)

    def has_secondary_index_table(self) -> bool:
        return self._kept.there("secondary indexes", super().has_secondary_index_table)

    def _has_instigators_table(self, conn: Connection) -> bool:
        look = super()._has_instigators_table
        return self._kept.there("instigators", lambda: look(conn))

    def _has_asset_daemon_asset_evaluations_table(self, conn: Connection) -> bool:
        look = super()._has_asset_daemon_asset_evaluations_table
        return self._kept.there("asset evaluations", lambda: look(conn))


def _engine(url: str) -> Engine:
    """Opens nothing yet. More connections than are kept are closed after use."""
    return create_engine(
        url,
        poolclass=QueuePool,
        pool_size=_KEPT,
        max_overflow=-1,
        connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS, "check_same_thread": False},
    )


def _is_current(base_dir: str, name: str) -> bool:
    if not (Path(base_dir) / f"{name}.db").exists():
        return False
    engine = create_engine(create_db_conn_string(base_dir, name), poolclass=NullPool)
    with engine.connect() as connection:
        return schema.is_current(connection)
