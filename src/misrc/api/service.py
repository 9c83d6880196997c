"""The running service: what every handler works with."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from ..declare.server import Server
from .access import Access
from .call import BodyRate
from .database import Database
from .housekeeping import Housekeeper
from .jobs import returnable
from .notifier import Notifier
from .records import FileRecord, Record
from .sites import Sites
from .spool import Spool
from .times import Times
from .tokens import TokenBook
from .transfers import Transfers

LOG = logging.getLogger("misrc.api")


class Service:
    """One server process: its declaration, its store, and what it knows of sites and tokens."""

    def __init__(self, server: Server) -> None:
        self.server = server
        limits = server.limits
        self.job_bytes, self.log_bytes = int(limits.job_bytes), int(limits.log_bytes)
        self.quota = int(limits.quota)
        self.times = Times(**{name: float(value) for name, value in server.times.model_dump().items()})
        self.pace = BodyRate(limits.body_rate, limits.body_seconds)
        self.clock: Callable[[], float] = time.time
        self.notifier = Notifier()
        self.database = Database(server.database, self.notifier)
        self.spool = Spool(Path(server.spool), int(limits.reserve))
        self.transfers = Transfers(self.spool)
        self.sites = Sites(server.inventory, server.ini)
        self.access = Access(server, TokenBook(self.database, self.clock), self.sites)
        self.housekeeper = Housekeeper(self)
        self._loop: asyncio.AbstractEventLoop | None = None

    def prepare(self) -> None:
        """Everything that can be wrong before the first call; BadRequest says what it is."""
        self.sites.load()
        self.spool.prepare()
        self.database.prepare()

    async def start(self) -> None:
        """Begin to work."""
        self._loop = asyncio.get_running_loop()
        self.database.start()
        self.housekeeper.start(self._loop)

    def leave(self) -> None:
        """From a signal: whoever waits is answered at once."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.notifier.stop)

    async def stop(self) -> None:
        """End: what was begun is finished first."""
        await self.housekeeper.stop()
        self.database.close()
        self.transfers.close()

    def returnable(self, record: Record) -> Callable[[str], bool]:
        """Which results of this job count."""
        site = self.sites.by_id(record.site)
        return returnable(record, None if site is None else site.programs.get(record.program))

    def offset_of(self, file: FileRecord) -> int:
        """How much of a file that is not whole is here."""
        return self.spool.size(self.spool.path(file.job, file.side, file.number))
