"""All rows of a job store, from one database to another: how a backup of PostgreSQL is taken and brought back.

The copy is a SQLite file with the tables of this release, so that a backup is the same thing whatever the store was on,
and can be restored on either. One view of one moment is read; nothing that a running server does is held up by it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy
from sqlalchemy import Connection, func, select, text
from sqlalchemy.exc import DBAPIError

from ..job.errors import BadRequest
from ..job.records import PRIVATE_FILE
from .database import make_engine
from .schema import FILES, JOBS, MIGRATIONS, SEEN, TOKENS, migrate

# A row may carry a small file of up to 1 MiB.
_AT_A_TIME = 32
# What other processes were told of is news for those that run, not for those that come.
_TABLES = (JOBS, FILES, TOKENS, SEEN)


def copy_out(url: str, target: Path) -> None:
    """The rows of a PostgreSQL database as a new SQLite file, closed and without companions."""
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE))
    with _opened(url, False) as source, _opened_file(target) as copy:
        source.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        _check_version(source)
        migrate(copy)
        _copy(source, copy)


def copy_in(store: Path, url: str) -> None:
    """The rows of such a file into a PostgreSQL database that has none, in one transaction."""
    with _opened_file(store) as source, _opened(url, True) as target:
        # Also what an earlier release wrote; the file is a copy for this purpose.
        migrate(source)
        migrate(target)
        _refuse_rows(target)
        _copy(source, target)
        for table in (JOBS, TOKENS):
            # Numbers that come after the restored ones.
            highest = target.execute(select(func.max(table.c.number))).scalar()
            if highest is not None:
                target.execute(
                    text(f"SELECT setval(pg_get_serial_sequence('{table.name}', 'number'), :highest)"),
                    {"highest": highest},
                )


def check_empty(url: str) -> None:
    """BadRequest where a PostgreSQL database holds a job store's rows."""
    with _opened(url, False) as connection:
        if sqlalchemy.inspect(connection).has_table(JOBS.name):
            _refuse_rows(connection)


def _copy(source: Connection, target: Connection) -> None:
    for table in _TABLES:
        rows = source.execute(select(table).execution_options(yield_per=_AT_A_TIME)).mappings()
        for part in rows.partitions():
            target.execute(table.insert(), [dict(row) for row in part])


def _check_version(source: Connection) -> None:
    if not sqlalchemy.inspect(source).has_table("schema_version"):
        raise BadRequest("the database holds no job store")
    version = source.execute(text("SELECT max(version) FROM schema_version")).scalar() or 0
    if version != len(MIGRATIONS):
        raise BadRequest("the database is of another release of misrc: start this release's server first")


def _refuse_rows(connection: Connection) -> None:
    for table in _TABLES:
        if connection.execute(select(table).limit(1)).first() is not None:
            raise BadRequest("the database holds a job store: stop the servers, and give an empty database")


@contextmanager
def _opened(url: str, writes: bool) -> Iterator[Connection]:
    """A transaction; BadRequest where the database cannot be used, with nothing of its address in it."""
    engine = make_engine(url, writes)
    try:
        with engine.begin() as connection:
            yield connection
    except DBAPIError as error:
        raise BadRequest(f"the database cannot be used: {type(error.orig).__name__}") from None
    finally:
        engine.dispose()


@contextmanager
def _opened_file(path: Path) -> Iterator[Connection]:
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    try:
        with engine.begin() as connection:
            yield connection
    except DBAPIError as error:
        raise BadRequest(f"the copy of the database cannot be used: {error.orig}") from None
    finally:
        engine.dispose()


__all__ = ["check_empty", "copy_in", "copy_out"]
