"""The agents' calls on the store: who works on what, under which fence, and how a job ends.

A claim belongs to one agent under a fence that grows with each claim. A claim that was never confirmed returns to the
queue when its lease runs out; one that was stays with its agent, because its program may be running.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, select

from ..job.codec import CodecError
from ..job.manifest import Manifest, parse_manifest
from ..job.names import NameRefused, check_result_name, is_job_id
from ..job.states import JobState, Outcome
from ..wire import api
from ..wire.api import ApiError
from ..wire.replies import Progress
from . import records
from .database import Transaction
from .jobs import MAX_FILES
from .notifier import job_topic
from .problems import Refused, fenced, malformed, unknown
from .records import INPUT, RESULT, FileRecord, Record
from .schema import JOBS

MAX_ANSWER_BYTES = 32 << 20
MAX_TEXT = 1000
_REPORTED = (JobState.QUEUED, JobState.RUNNING, JobState.HELD)


@dataclass(frozen=True)
class Asker:
    """Whose agent asks, for which sites its token is, and how long a lease lasts."""

    user: str
    sites: tuple[str, ...]
    lease: float


@dataclass(frozen=True)
class Look:
    """What a poll finds. `again` and `fresh` are jobs to be claimed, `renew` leases that run short."""

    again: tuple[str, ...]
    fresh: tuple[str, ...]
    renew: tuple[Record, ...]
    cancel: tuple[str, ...]
    close: tuple[str, ...]
    lost: tuple[str, ...]

    @property
    def acts(self) -> bool:
        """Whether the store has to change."""
        return bool(self.again or self.fresh or self.renew)

    @property
    def orders(self) -> tuple[tuple[str, ...], ...]:
        """What the agent is told of jobs that it holds."""
        return (self.cancel, self.close, self.lost)


_OF_SITE = (JOBS.c.site == bindparam("of_site"), JOBS.c.owner == bindparam("of_owner"))
_HELD = select(JOBS).where(JOBS.c.job.in_(bindparam("names", expanding=True)), *_OF_SITE)
_STAGED = select(JOBS.c.job).where(*_OF_SITE, JOBS.c.state == JobState.STAGED.value).order_by(JOBS.c.number)
_STAGED = _STAGED.limit(bindparam("most"))
_KEPT = _STAGED.where(JOBS.c.agent == bindparam("of_agent"), JOBS.c.confirmed == 0)
_FREE = _STAGED.where(JOBS.c.agent.is_(None), JOBS.c.cancel == 0, JOBS.c.spec != "")
_FREE_AND_LOCK = _FREE.with_for_update(skip_locked=True)


def look(connection: Connection, asker: Asker, site: str, poll: api.Poll, now: float, lock: bool = False) -> Look:
    """What there is for this agent, without taking it; `lock` for those who will take it."""
    held = {holding.job: holding.fence for holding in poll.holding}
    rows = _held(connection, asker, site, held)
    mine = {row.job: row for row in rows if row.agent == poll.agent and row.fence == held[row.job]}
    short = now + asker.lease * 0.75
    again: list[str] = []
    fresh: list[str] = []
    if poll.room:
        whose = {"of_site": site, "of_owner": asker.user}
        kept = {**whose, "of_agent": poll.agent, "most": poll.room + len(held)}
        again = [job for job in connection.execute(_KEPT, kept).scalars() if job not in held][: poll.room]
        free = {**whose, "most": poll.room - len(again)}
        if free["most"]:
            fresh = list(connection.execute(_FREE_AND_LOCK if lock else _FREE, free).scalars())
    return Look(
        tuple(again),
        tuple(fresh),
        tuple(row for row in mine.values() if not row.state.final and (row.lease or 0) < short),
        tuple(job for job, row in mine.items() if row.cancel and row.ending is None and row.state != JobState.CLOSED),
        tuple(job for job, row in mine.items() if row.state is JobState.CLOSED),
        tuple(job for job in held if job not in mine),
    )


def _held(connection: Connection, asker: Asker, site: str, held: Iterable[str]) -> list[Record]:
    names = list(held)
    if not names:
        return []
    return records.find_all(connection, _HELD, {"names": names, "of_site": site, "of_owner": asker.user})


def take(tx: Transaction, asker: Asker, site: str, poll: api.Poll) -> api.Work:
    """What a poll brings; claims are made, leases renewed."""
    found = look(tx.connection, asker, site, poll, tx.now, lock=True)
    lease = tx.now + asker.lease
    for record in found.renew:
        records.change(tx, record, quiet=record.silent_since(tx.now) is None, lease=lease)
    claims: list[api.Claim] = []
    size = 0
    for job in (*found.again, *found.fresh):
        waiting = records.find(tx.connection, job, lock=True)
        if waiting is None or size > MAX_ANSWER_BYTES:
            continue
        claim = _claim(tx, waiting, poll.agent, lease, asker.lease)
        size += len(claim.manifest) + len(claim.spec) + sum(map(len, (claim.small or {}).values()))
        claims.append(claim)
    return api.Work(tuple(claims), *found.orders)


def _claim(tx: Transaction, record: Record, agent: str, lease: float, seconds: float) -> api.Claim:
    # Nothing of this can be seen by whoever waits for the job.
    new = {} if record.agent == agent else {"agent": agent, "fence": record.fence + 1}
    record = records.change(tx, record, quiet=True, lease=lease, **new)
    files = records.list_files(tx.connection, record.job, INPUT, content=True)
    small = {file.name: api.encode_bytes(file.content) for file in files if file.content is not None}
    return api.Claim(
        record.job, record.fence, seconds, record.spec, record.manifest or "", record.signature, small or None
    )


def held_claim(connection: Connection, asker: Asker, job: str, fence: int, lock: bool = False) -> Record:
    """The job that this agent holds under this fence; Refused otherwise."""
    record = records.find(connection, job, lock) if is_job_id(job) else None
    if record is None or record.owner != asker.user or record.site not in asker.sites:
        raise unknown()
    if record.agent is None or fence != record.fence:
        raise fenced()
    return record


def report(tx: Transaction, asker: Asker, job: str, said: api.Report) -> api.Orders:
    """How the job goes on at the site. An older word than the last one changes nothing."""
    record = held_claim(tx.connection, asker, job, said.fence, lock=True)
    if said.state not in _REPORTED:
        raise malformed("an agent reports queued, running or held")
    if not record.state.final:
        record = _reported(tx, asker, record, said)
    return orders(record)


def _reported(tx: Transaction, asker: Asker, record: Record, said: api.Report) -> Record:
    lease = tx.now + asker.lease
    if said.state.order < record.state.order:
        return records.change(tx, record, quiet=True, lease=lease, confirmed=True)
    progress = clip_progress(said.progress)
    reason = None if said.reason is None else said.reason[: records.MAX_REASON]
    if said.state is not record.state:
        return records.move(
            tx, record, said.state, reason=reason, progress=progress or record.progress, lease=lease, confirmed=True
        )
    news = (reason, progress or record.progress) != (record.reason, record.progress)
    quiet = not news and record.silent_since(tx.now) is None
    return records.change(
        tx, record, quiet=quiet, reason=reason, progress=progress or record.progress, lease=lease, confirmed=True
    )


def clip_progress(progress: Progress | None) -> Progress | None:
    """A program's own words, bounded."""
    if progress is None:
        return None
    return Progress(progress.done, progress.total, progress.unit[:MAX_TEXT], progress.text[:MAX_TEXT])


def orders(record: Record, missing: tuple[str, ...] = ()) -> api.Orders:
    """What the workflow wishes for this job."""
    return api.Orders(record.cancel and record.ending is None, record.state is JobState.CLOSED, missing)


@dataclass(frozen=True)
class Ending:
    """An `End`, read and checked as far as that is possible without the store."""

    said: api.End
    manifest: Manifest
    small: dict[str, bytes]


def prepare_end(said: api.End) -> Ending:
    """Read an `End`; raises Refused."""
    for text in (said.receipt, said.signature):
        if text is not None and len(text) > 64 << 10:
            raise Refused(ApiError.TOO_LARGE, "a receipt or its signature is longer than 64 KiB")
    if said.outcome is Outcome.SUCCEEDED and said.manifest is None:
        raise malformed("a job that succeeded has a manifest")
    try:
        manifest = parse_manifest((said.manifest or "").encode("utf-8"), check_result_name, MAX_FILES)
        small = dict(api.decode_small(said.small or {}, results=True))
    except (CodecError, NameRefused, UnicodeEncodeError):
        raise malformed("the manifest, or what came along, is not well formed") from None
    entries = {entry.name: entry for entry in manifest}
    for name, data in small.items():
        entry = entries.get(name)
        if entry is None or entry.size != len(data) or entry.sha256 != hashlib.sha256(data).hexdigest():
            raise Refused(ApiError.REFUSED, "what came along is not what the manifest says")
    return Ending(said, manifest, small)


def end(
    tx: Transaction, asker: Asker, job: str, ending: Ending, returnable: Callable[[Record], Callable[[str], bool]]
) -> api.Orders:
    """The job's end at the site; it counts once every result that is declared is here."""
    said = ending.said
    record = held_claim(tx.connection, asker, job, said.fence, lock=True)
    if record.state.final:
        return orders(record)
    may_return = returnable(record)
    wanted = {entry.name: entry for entry in ending.manifest if may_return(entry.name)}
    here = records.list_files(tx.connection, job, RESULT)
    stale = {f.name for f in here if f.name not in wanted or wanted[f.name].sha256 != f.sha256}
    whole = {file.name for file in here if file.whole and file.name not in stale}
    new = {name: data for name, data in ending.small.items() if name in wanted and name not in whole}
    # An unfinished upload of a file that came along goes too.
    dropped = [file.name for file in here if file.name in stale or file.name in new]
    if dropped:
        records.drop_files(tx, job, RESULT, dropped)
    _keep_small(tx, job, new)
    missing = tuple(name for name in wanted if name not in whole and name not in new)
    documents: dict[str, Any] = {
        "ending": said.outcome,
        "ending_reason": said.reason[: records.MAX_REASON],
        "ending_since": record.ending_since or tx.now,
        "out_manifest": said.manifest,
        "receipt": said.receipt,
        "receipt_signature": said.signature,
        "lease": tx.now + asker.lease,
        "confirmed": True,
    }
    if missing:
        return orders(records.change(tx, record, **documents), missing)
    return orders(records.end(tx, record, said.outcome, said.reason, **documents))


def _keep_small(tx: Transaction, job: str, new: dict[str, bytes]) -> None:
    """Results that came along, in the store itself."""
    if not new:
        return
    rows = [
        FileRecord(
            job, RESULT, records.new_number(), name, len(data), hashlib.sha256(data).hexdigest(), True, data, None
        )
        for name, data in new.items()
    ]
    records.add_files(tx, rows)
    tx.notify(job_topic(job))
