"""Whether a SQLite database of Dagster has the schema of the installed version, known without a look at every migration.

Stock, each storage loads all of Dagster's migrations to learn the newest one's name, whenever it is opened: 40 ms of CPU,
twice per instance and once per run's event log in every process that reads it. Here a process asks once.

One of the few modules that import private ones of Dagster, whose version is pinned; tests/defs/test_kept_storages.py is the
contract.
"""

import functools

from alembic.script import ScriptDirectory
from dagster._core.storage.runs.sqlite import sqlite_run_storage
from dagster._core.storage.sql import get_alembic_config
from sqlalchemy import MetaData, create_mock_engine
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import Connection

_TABLES = "SELECT count(*) FROM sqlite_master WHERE type = 'table'"
_MARKED = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'"
_REVISION = "SELECT version_num FROM alembic_version"
_MARK_TABLE = (
    "CREATE TABLE alembic_version (\n\tversion_num VARCHAR(32) NOT NULL, \n"
    "\tCONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)\n)"
)
_MARK = "INSERT INTO alembic_version (version_num) VALUES (?)"


@functools.cache
def newest_revision() -> str:
    """The migration that a database of this version of Dagster has last; all its storages share one series. Reads files only."""
    config = get_alembic_config(sqlite_run_storage.__file__)
    found = ScriptDirectory.from_config(config).as_revision_number("head")
    if not isinstance(found, str):
        raise TypeError(f"Dagster's migrations have no single newest one: {found}")
    return found


def is_current(connection: Connection) -> bool:
    """False also for an empty database, and for one of an older version."""
    if not connection.exec_driver_sql(_MARKED).scalar():
        return False
    return connection.exec_driver_sql(_REVISION).scalar() == newest_revision()


def is_empty(connection: Connection) -> bool:
    return not connection.exec_driver_sql(_TABLES).scalar()


@functools.cache
def statements(tables: MetaData) -> tuple[str, ...]:
    """What makes the tables and their indexes: to work that out costs more than to do it."""
    found: list[str] = []
    dialect = sqlite.dialect()
    noting = create_mock_engine("sqlite://", lambda ddl, *_, **__: found.append(str(ddl.compile(dialect=dialect))))
    tables.create_all(noting, checkfirst=False)
    return tuple(found)


def create(connection: Connection, tables: MetaData) -> None:
    """All tables in an empty database, marked as current; inside the transaction of `connection`."""
    for statement in statements(tables):
        connection.exec_driver_sql(statement)
    connection.exec_driver_sql(_MARK_TABLE)
    connection.exec_driver_sql(_MARK, (newest_revision(),))
