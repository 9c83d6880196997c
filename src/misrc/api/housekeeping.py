"""What time alone decides: leases, expiry, silence, and files that nobody needs any more. By the server's clock."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from sqlalchemy import Select, delete, func, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.elements import ColumnElement

from ..declare.server import Server
from ..job.codec import dump_json, encode
from ..job.states import JobState, Outcome
from ..wire import api
from ..wire.legacy_progress import Delivery
from . import records
from .database import Database, Transaction
from .jobs import CANCELLED_HERE
from .legacy import jobs as legacy_jobs
from .notifier import site_topic
from .problems import Refused
from .schema import CHANGES, JOBS, SEEN
from .sites import GIVE_UP_SECONDS, Sites
from .spool import Spool
from .times import Times
from .transfers import Transfers

TURN_SECONDS = 2.0
SEEN_SECONDS = 20.0
BURY_SECONDS = 60.0
DAY = 86400.0
KEPT_CHANGES = 10_000
BATCH = 200
LOG = logging.getLogger("misrc.api")

EXPIRED_UNRELEASED = "expired: it was never released"
EXPIRED_UNTAKEN = "expired: no site took it"
EXPIRED_UNFETCHED = "expired: nobody fetched the results"
SILENT = "lost: the site has not been heard for as long as its declaration allows"


class Service(Protocol):
    """The running service, as far as it is looked after."""

    server: Server
    times: Times
    clock: Callable[[], float]
    database: Database
    spool: Spool
    transfers: Transfers
    sites: Sites

    def returnable(self, record: records.Record) -> Callable[[str], bool]:
        """Which results of this job count."""


class Housekeeper:
    """Looks after the store every few seconds. Several servers may do so at once: each step is a transition."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._task: asyncio.Task[None] | None = None
        self._written = 0.0
        self._bury_at = 0.0
        self._seen: dict[tuple[str, str, str], tuple[float, str | None]] = {}
        # What each agent was told last of the jobs that it holds.
        self.told: dict[str, tuple[tuple[str, ...], ...]] = {}

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin."""
        self._task = loop.create_task(self._go_on())

    async def stop(self) -> None:
        """End, after the turn that is under way."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def note_agent(self, site: str, user: str, poll: api.Poll) -> None:
        """An agent was heard; written with the next turn."""
        hello = None if poll.hello is None else dump_json(encode(poll.hello)).decode()
        self._seen[(site, user, poll.agent)] = (self._service.clock(), hello)

    async def _go_on(self) -> None:
        while True:
            await asyncio.sleep(TURN_SECONDS)
            try:
                await self.turn()
            except Refused as refused:
                LOG.warning("the store cannot be tended now: %s", refused.message)
            except Exception:
                LOG.exception("the store cannot be tended now")

    async def turn(self) -> None:
        """One look at everything."""
        database = self._service.database
        if await database.read(lambda c: c.execute(_due(self._service)).first() is not None):
            await database.write("rules", lambda tx: apply_rules(tx, self._service))
        await self._purge()
        if time.monotonic() >= self._bury_at:
            await self._bury()
        if self._seen and time.monotonic() - self._written > SEEN_SECONDS:
            self._written = time.monotonic()
            seen, self._seen = self._seen, {}
            await database.write("seen", lambda tx: _write_seen(tx, seen))

    async def _purge(self) -> None:
        """Delete the files of closed jobs, and only then forget that they were there."""
        database = self._service.database
        wanted = select(JOBS.c.job).where(JOBS.c.state == JobState.CLOSED.value, JOBS.c.purged == 0).limit(BATCH)
        closed = await database.read(lambda c: c.execute(wanted).scalars().all())
        for job in closed:
            await self._service.transfers.in_thread(self._service.spool.remove, job)
        if closed:
            await database.write("purge", lambda tx: records.purge(tx, closed))

    async def _bury(self) -> None:
        """Delete the records of jobs that have been closed for `keep_days`; their files are gone already."""
        now, job = self._service.clock(), JOBS.c
        before = now - self._service.server.keep_days * DAY
        past = select(job.job).where(job.state == JobState.CLOSED.value, job.purged == 1, job.since < before)
        found = await self._service.database.read(lambda c: c.execute(past.limit(BATCH)).scalars().all())
        if found:
            await self._service.database.write("bury", lambda tx: _bury_all(tx, found))
        # There may be more than one transaction should hold up.
        self._bury_at = time.monotonic() + (0 if len(found) == BATCH else BURY_SECONDS)


def _bury_all(tx: Transaction, found: Sequence[str]) -> None:
    for job in found:
        record = records.find(tx.connection, job, lock=True)
        if record is not None and record.state is JobState.CLOSED and record.purged:
            records.bury(tx, record)


def _write_seen(tx: Transaction, seen: dict[tuple[str, str, str], tuple[float, str | None]]) -> None:
    dialect = postgresql if tx.connection.dialect.name == "postgresql" else sqlite
    new = dialect.insert(SEEN)
    later = {"seen": new.excluded.seen, "hello": func.coalesce(new.excluded.hello, SEEN.c.hello)}
    statement = new.on_conflict_do_update(index_elements=["site", "owner", "agent"], set_=later)
    rows = [
        {"site": site, "owner": user, "agent": agent, "seen": when, "hello": hello}
        for (site, user, agent), (when, hello) in seen.items()
    ]
    tx.connection.execute(statement, rows)
    highest = tx.connection.execute(select(func.max(CHANGES.c.number))).scalar() or 0
    tx.connection.execute(delete(CHANGES).where(CHANGES.c.number < highest - KEPT_CHANGES))


def _conditions(service: Service, now: float) -> dict[str, ColumnElement[bool]]:
    """Which jobs each rule is about."""
    times, job = service.times, JOBS.c
    created, staged = job.state == JobState.CREATED.value, job.state == JobState.STAGED.value
    old, new = job.old.is_not(None), job.old.is_(None)
    free = staged & job.agent.is_(None)
    of_old = job.agent.like(records.OLD_AGENT + "%")
    # After an abnormal end the predecessor's client may say nothing more.
    stopped = (
        (job.ending == Outcome.FAILED.value)
        & job.delivery.is_distinct_from(Delivery.RESULTS_ARRIVING.value)
        & (job.ending_since < now - times.legacy_abnormal)
    )
    active = job.state.in_([s.value for s in (JobState.QUEUED, JobState.RUNNING, JobState.HELD)])
    return {
        "lapsed": staged & job.agent.is_not(None) & (job.confirmed == 0) & (job.lease < now),
        "unreleased": created
        & ((new & (job.created < now - times.unreleased)) | (old & (job.created < now - times.legacy))),
        "untaken": free & ((new & (job.released < now - times.untaken)) | (old & (job.released < now - times.legacy))),
        "silent": active & (job.confirmed == 1) & (job.lease < now - service.sites.least_patience()),
        "resultless": active & of_old & (stopped | (job.ending_since < now - times.legacy_results)),
        "fetched": (job.state == JobState.RETRIEVED.value) & (job.since < now - times.fetched),
        "forgotten": (job.state == JobState.ENDED.value) & old & (job.cancel == 1),
        "unfetched": (job.state == JobState.ENDED.value) & (job.since < now - times.ended),
    }


def _due(service: Service) -> Select[Any]:
    """Whether any rule has a job."""
    return select(JOBS.c.number).where(or_(*_conditions(service, service.clock()).values())).limit(1)


def apply_rules(tx: Transaction, service: Service) -> None:
    """Apply every rule, each to a bounded number of jobs."""
    for name, condition in _conditions(service, tx.now).items():
        statement = select(JOBS).where(condition).order_by(JOBS.c.number).limit(BATCH)
        for record in records.find_all(tx.connection, statement.with_for_update(skip_locked=True)):
            _RULES[name](tx, service, record)


def _lapsed(tx: Transaction, _service: Service, record: records.Record) -> None:
    """Back to the queue; the fence stays, so that the next claim's is higher."""
    if record.cancel:
        records.end(tx, record, Outcome.CANCELLED, CANCELLED_HERE, agent=None, lease=None)
        return
    records.change(tx, record, agent=None, lease=None, delivery=None)
    tx.notify(site_topic(record.site))


Rule = Callable[[Transaction, Service, records.Record], None]


def _expire(reason: str) -> Rule:
    def rule(tx: Transaction, _service: Service, record: records.Record) -> None:
        records.end(tx, record, Outcome.EXPIRED, reason)

    return rule


def _silent(tx: Transaction, service: Service, record: records.Record) -> None:
    """Only the declared patience ends a job whose site is silent."""
    site = service.sites.by_id(record.site)
    patience = GIVE_UP_SECONDS if site is None else site.give_up_after
    if record.lease is not None and record.lease < tx.now - patience:
        records.end(tx, record, Outcome.LOST, SILENT, cancel=True)


def _resultless(tx: Transaction, service: Service, record: records.Record) -> None:
    """A client of the predecessor may stop after an abnormal end, or before its last word."""
    legacy_jobs.end(tx, record, service.returnable(record))


def _fetched(tx: Transaction, _service: Service, record: records.Record) -> None:
    records.move(tx, record, JobState.CLOSED)


_RULES: dict[str, Rule] = {
    "lapsed": _lapsed,
    "unreleased": _expire(EXPIRED_UNRELEASED),
    "untaken": _expire(EXPIRED_UNTAKEN),
    "silent": _silent,
    "resultless": _resultless,
    "fetched": _fetched,
    "forgotten": _fetched,
    "unfetched": _fetched,
}
