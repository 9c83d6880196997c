"""One writer, short transactions, and news for whoever waits: on SQLite or PostgreSQL, by the same code.

What is answered is on disk: SQLite runs with write-ahead log and `synchronous=FULL`, so that a commit is flushed before
it is told. `NORMAL` would be faster and could forget the last answers in a power cut: an agent would hold a claim, or
MInt a job, that the server no longer knows. What the flush costs is shared: calls that arrive while one commit is being
flushed go into the next one together, each in a savepoint of its own.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

import sqlalchemy
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError, IntegrityError

from ..job.errors import BadRequest
from ..job.faults import reach
from ..wire.api import ApiError
from .change_feed import ChangeFeed, PostgresFeed, SqliteFeed
from .notifier import Notifier
from .passfile import find_passfile
from .problems import Refused
from .schema import CHANGES, migrate

T = TypeVar("T")
MAX_BATCH = 64
BUSY_MILLISECONDS = 10_000
TRIES = 3
LOG = logging.getLogger("misrc.api")
# In seconds, and the last one in milliseconds.
_OPTIONS = {
    "client_encoding": "utf8",
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
_TELL = CHANGES.insert()
PAUSED = "the job store cannot be used now; call again"


@dataclass
class Transaction:
    """What one call does to the store: all of it, or nothing. `now` is the server's clock."""

    connection: Connection
    now: float
    topics: list[str] = field(default_factory=list)

    def notify(self, *topics: str) -> None:
        """Tell whoever waits for these, once the change can be seen."""
        self.topics.extend(topic for topic in topics if topic not in self.topics)


@dataclass
class _Item(Generic[T]):
    label: str
    work: Callable[[Transaction], T]
    future: asyncio.Future[T]
    result: T | None = None
    error: BaseException | None = None
    topics: list[str] = field(default_factory=list)


class Database:
    """The job store's database, for one event loop."""

    def __init__(self, url: str, notifier: Notifier) -> None:
        self.origin = uuid.uuid4().hex[:12]
        self.notifier = notifier
        self._postgres = url.startswith("postgresql://")
        self._writer, self._reader = make_engine(url, True), make_engine(url, False)
        self._queue: queue.SimpleQueue[_Item[Any] | None] = queue.SimpleQueue()
        self._readers = ThreadPoolExecutor(2 if self._postgres else 1, "misrc-read")
        self._thread = threading.Thread(target=self._write_all, name="misrc-write", daemon=True)
        self._url = url
        self._feed: ChangeFeed | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def prepare(self) -> None:
        """Bring the schema to this release; BadRequest where the database cannot be used."""
        try:
            with self._writer.begin() as connection:
                if self._postgres and connection.execute(sqlalchemy.text("SHOW server_encoding")).scalar() != "UTF8":
                    raise BadRequest("the database must be in UTF8: createdb --encoding=UTF8 --template=template0")
                migrate(connection)
        except DBAPIError as error:
            raise BadRequest(f"the database cannot be used: {type(error.orig).__name__}") from None

    def start(self) -> None:
        """Begin to write, and to hear what other processes change."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        self._feed = (
            PostgresFeed(self._url, self.origin, self.notifier, connect_options(self._url))
            if self._postgres
            else SqliteFeed(self._url, self.origin, self.notifier)
        )
        self._feed.start(self._loop)

    def close(self) -> None:
        """End; what was asked before is still written."""
        if self._feed is not None:
            self._feed.stop()
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        self._readers.shutdown()
        self._writer.dispose()
        self._reader.dispose()

    async def read(self, work: Callable[[Connection], T]) -> T:
        """What `work` sees in one consistent view."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self.read_now, work)

    def read_now(self, work: Callable[[Connection], T]) -> T:
        """The same, in the caller's thread."""
        try:
            with self._reader.connect() as connection:
                return work(connection)
        except DBAPIError as error:
            LOG.error("the job store: %s", type(error.orig).__name__, exc_info=error)
            raise Refused(ApiError.PAUSED, PAUSED) from None

    async def write(self, label: str, work: Callable[[Transaction], T]) -> T:
        """Do `work` in a transaction; it is on disk when this returns. It may run twice, and touches only the store.

        `label` names its fault points: `api.LABEL.written` before the commit, `api.LABEL.committed` after it.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.put(_Item(label, work, future))
        return await future

    def write_now(self, work: Callable[[Transaction], T]) -> T:
        """For commands without an event loop."""
        with self._writer.begin() as connection:
            transaction = Transaction(connection, time.time())
            result = work(transaction)
            self._publish(connection, transaction.topics)
            return result

    def _write_all(self) -> None:
        while True:
            first = self._queue.get()
            if first is None:
                return
            batch = [first]
            last = False
            while len(batch) < (1 if self._postgres else MAX_BATCH):
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
                if item is None:
                    last = True
                    break
                batch.append(item)
            self._commit(batch)
            cast(asyncio.AbstractEventLoop, self._loop).call_soon_threadsafe(self._tell, batch)
            if last:
                return

    def _commit(self, batch: list[_Item[Any]]) -> None:
        """One transaction for all of them; a conflict with another process is tried again."""
        for attempt in range(1, TRIES + 1):
            try:
                with self._writer.begin() as connection:
                    for item in batch:
                        self._do(connection, item)
                for item in batch:
                    reach(f"api.{item.label}.committed")
                return
            except DBAPIError as error:
                if attempt == TRIES:
                    LOG.error("the job store: %s", type(error.orig).__name__, exc_info=error)
                    for item in batch:
                        item.error = Refused(ApiError.PAUSED, PAUSED)
            except Exception as error:
                for item in batch:
                    item.error = error
                return

    def _do(self, connection: Connection, item: _Item[Any]) -> None:
        transaction = Transaction(connection, time.time())
        item.error = None
        try:
            with connection.begin_nested():
                item.result = item.work(transaction)
                self._publish(connection, transaction.topics)
            item.topics = transaction.topics
            reach(f"api.{item.label}.written")
        except IntegrityError:
            item.error = Refused(ApiError.BUSY, "the same thing is being made right now; call again")
        except DBAPIError:
            raise
        except Exception as error:
            item.error = error

    def _publish(self, connection: Connection, topics: list[str]) -> None:
        """For the other processes on the same database."""
        if self._postgres:
            for topic in topics:
                connection.execute(
                    sqlalchemy.text("SELECT pg_notify('misrc', :payload)"), {"payload": f"{self.origin} {topic}"}
                )
        elif topics:
            connection.execute(_TELL, [{"origin": self.origin, "topic": topic} for topic in topics])

    def _tell(self, batch: list[_Item[Any]]) -> None:
        for item in batch:
            if item.error is None:
                self.notifier.notify(item.topics)
            if item.future.done():
                continue
            if item.error is None:
                item.future.set_result(item.result)
            else:
                item.future.set_exception(item.error)


def connect_options(url: str) -> dict[str, Any]:
    """For libpq: text as UTF-8, and how soon a connection counts as dead; what the address itself says comes first.

    Without the second a host that vanished holds a call for minutes, and news of revoked tokens for hours.
    """
    options: dict[str, Any] = {**_OPTIONS, "passfile": find_passfile()}
    return {name: value for name, value in options.items() if value is not None and f"{name}=" not in url}


def make_engine(url: str, writes: bool) -> Engine:
    """An engine of one connection (PostgreSQL readers: two)."""
    if url.startswith("postgresql://"):
        return sqlalchemy.create_engine(
            url.replace("postgresql://", "postgresql+psycopg://", 1),
            pool_size=1 if writes else 2,
            max_overflow=0,
            pool_pre_ping=True,
            hide_parameters=True,
            connect_args=connect_options(url),
        )
    engine = sqlalchemy.create_engine(
        url,
        poolclass=sqlalchemy.pool.QueuePool,
        pool_size=1,
        max_overflow=0,
        hide_parameters=True,
        connect_args={"check_same_thread": False, "isolation_level": None, "timeout": BUSY_MILLISECONDS / 1000},
    )

    @event.listens_for(engine, "connect")
    def _connect(connection: sqlite3.Connection, _record: object) -> None:
        set_pragmas(connection)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def set_pragmas(connection: sqlite3.Connection) -> None:
    """The journal settings; `misrc serve` prints them at its start."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(f"PRAGMA busy_timeout={BUSY_MILLISECONDS}")
    connection.execute("PRAGMA cache_size=-8192")
