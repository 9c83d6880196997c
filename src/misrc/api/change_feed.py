"""What other processes on the same database change: seen within half a second on SQLite, at once on PostgreSQL."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Mapping
from typing import Any

from .notifier import Notifier

LOOK_SECONDS = 0.25
RECONNECT_SECONDS = 1.0


class ChangeFeed(abc.ABC):
    """Tells the notifier what others did."""

    def __init__(self, url: str, origin: str, notifier: Notifier, options: Mapping[str, Any] | None = None) -> None:
        self._url, self._origin, self._notifier, self._options = url, origin, notifier, dict(options or {})

    @abc.abstractmethod
    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to listen."""

    @abc.abstractmethod
    def stop(self) -> None:
        """End."""


class SqliteFeed(ChangeFeed):
    """Asks `PRAGMA data_version`, which costs microseconds and no lock, and reads the new rows where it grew."""

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to look."""
        path = self._url.removeprefix("sqlite:///")
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0.05)
        self._version = self._ask("PRAGMA data_version")
        self._last = self._ask("SELECT coalesce(max(number), 0) FROM changes")
        self._task = loop.create_task(self._look_on())

    def stop(self) -> None:
        """End."""
        self._task.cancel()
        self._connection.close()

    def _ask(self, statement: str) -> int:
        return int(self._connection.execute(statement).fetchone()[0])

    async def _look_on(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            # A checkpoint that holds the file for a moment: look again at the next turn.
            with contextlib.suppress(sqlite3.OperationalError):
                self._look()

    def _look(self) -> None:
        version = self._ask("PRAGMA data_version")
        if version == self._version:
            return
        rows = self._connection.execute(
            "SELECT number, origin, topic FROM changes WHERE number > ? ORDER BY number", (self._last,)
        ).fetchall()
        self._version = version
        if rows:
            self._last = rows[-1][0]
        self._notifier.notify({topic for _, origin, topic in rows if origin != self._origin})


class PostgresFeed(ChangeFeed):
    """Listens for notifications in a thread; after a lost connection everybody looks again."""

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to listen."""
        self._loop = loop
        self._stopped = threading.Event()
        self._connection: Any = None
        self._thread = threading.Thread(target=self._listen_on, name="misrc-change-feed", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End; the thread ends with its next look."""
        self._stopped.set()
        self._thread.join(RECONNECT_SECONDS * 3)

    def _listen_on(self) -> None:
        import psycopg

        while not self._stopped.is_set():
            try:
                with psycopg.connect(self._url, autocommit=True, **self._options) as connection:
                    connection.execute("LISTEN misrc")
                    self._notify_all()
                    while not self._stopped.is_set():
                        for notice in connection.notifies(timeout=RECONNECT_SECONDS):
                            origin, _, topic = notice.payload.partition(" ")
                            if origin != self._origin:
                                self._notify(topic)
            except psycopg.Error:
                self._stopped.wait(RECONNECT_SECONDS)

    def _notify(self, topic: str) -> None:
        self._loop.call_soon_threadsafe(self._notifier.notify, (topic,))

    def _notify_all(self) -> None:
        self._loop.call_soon_threadsafe(self._notifier.notify_all)
