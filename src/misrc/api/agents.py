"""v2 as a site's agent sees it: every call of `docs/api.md`, "The site's side"."""

from __future__ import annotations

import asyncio
import os

from ..job.states import JobState
from ..wire import api
from ..wire.api import ApiError
from . import claims, records
from .access import Who
from .call import Answer, Call, answer_value, parse_number
from .claims import Asker
from .database import Transaction
from .notifier import site_topic
from .problems import Refused, malformed, unknown
from .records import INPUT, Record
from .service import Service
from .spool import LOG, storage
from .tokens import AGENT
from .transfers import send_file
from .unclaimed_jobs import UNCLAIMED

MAX_TOLD = 20_000
HURRY_SECONDS = 0.05


def asker(service: Service, who: Who) -> Asker:
    """Whose agent this is."""
    who.require(AGENT)
    return Asker(who.user, who.sites, service.times.lease)


async def poll_site(service: Service, who: Who, call: Call, site: str) -> Answer:
    """Work for this agent, as soon as there is any."""
    who.require_site(site)
    poll = await call.value(api.Poll, api.MAX_BODY_BYTES)
    service.housekeeper.note_agent(site, who.user, poll)
    loop = asyncio.get_running_loop()
    end, first = loop.time() + poll.wait, True
    while True:
        with service.notifier.subscribe((site_topic(site),)) as notified:
            work = await (_look if first else _look_again)(service, asker(service, who), site, poll)
            first = False
            left = end - loop.time()
            if _is_news(service, poll.agent, work) or left <= 0 or service.notifier.stopping:
                return answer_value(work)
            await call.wait_for(notified, min(left, service.times.lease / 2))
        who = await service.access.find(call)  # a token that was revoked meanwhile
        who.require_site(site)


async def _look(service: Service, who: Asker, site: str, poll: api.Poll) -> api.Work:
    """First without taking anything: most polls find nothing, and then nothing is written."""
    found = await service.database.read(lambda c: claims.look(c, who, site, poll, service.clock()))
    if not found.acts:
        return api.Work((), *found.orders)
    return await service.database.write("claim", lambda tx: claims.take(tx, who, site, poll))


async def _look_again(service: Service, who: Asker, site: str, poll: api.Poll) -> api.Work:
    """After a notification. Without jobs in hand only a new one is news, and one look serves all agents of the site."""
    if poll.holding:
        return await _look(service, who, site, poll)
    if not await UNCLAIMED.reserve(service, who.user, site, poll.room):
        return api.Work()
    work = await service.database.write("claim", lambda tx: claims.take(tx, who, site, poll))
    if not work.claims:  # whoever was quicker had not reserved it; let the others look again
        await asyncio.sleep(HURRY_SECONDS)
        service.notifier.notify((site_topic(site),))
    return work


def _is_news(service: Service, agent: str, work: api.Work) -> bool:
    """Whether to answer at once. Orders that this agent was told already are repeated, but not in a hurry."""
    told = service.housekeeper.told
    orders = (work.cancel, work.close, work.lost)
    news = told.get(agent, ((), (), ())) != orders
    if news:
        if len(told) > MAX_TOLD:
            told.clear()
        told[agent] = orders
    return bool(work.claims) or (news and any(orders))


async def report_claim(service: Service, who: Who, call: Call, job: str) -> Answer:
    """How the job goes on."""
    said = await call.value(api.Report, api.MAX_BODY_BYTES)
    whose = asker(service, who)
    return answer_value(await service.database.write("report", lambda tx: claims.report(tx, whose, job, said)))


async def end_claim(service: Service, who: Who, call: Call, job: str) -> Answer:
    """The job has ended at the site."""
    said = await call.value(api.End, api.MAX_DOCUMENT_BODY_BYTES)
    ending = await asyncio.to_thread(claims.prepare_end, said)
    whose = asker(service, who)
    told = await service.database.write("end", lambda tx: claims.end(tx, whose, job, ending, service.returnable))
    return answer_value(told)


def fence_of(call: Call) -> int:
    """The claim's fence, out of its header."""
    fence = call.number_header(api.FENCE)
    if fence is None:
        raise malformed(f"the header {api.FENCE} is missing")
    return fence


async def held(service: Service, who: Who, call: Call, job: str) -> Record:
    """The job, if this agent holds it under the fence that it names."""
    whose, fence = asker(service, who), fence_of(call)
    return await service.database.read(lambda c: claims.held_claim(c, whose, job, fence))


async def get_input(service: Service, who: Who, call: Call, job: str, name: str) -> Answer:
    """One input of a claimed job."""
    record = await held(service, who, call, job)
    file = await service.database.read(lambda c: records.find_file(c, record.job, INPUT, name))
    if file is None or not file.whole:
        raise unknown()
    return send_file(service.transfers, call, file, service.spool.path(record.job, INPUT, file.number))


async def post_log(service: Service, who: Who, call: Call, job: str) -> Answer:
    """The next bytes of a log; what is here already is not added again."""
    if b"content-type" in call.headers:
        call.require_media(b"application/octet-stream")
    offset = call.query(offset=parse_number).get("offset", 0)
    record = await held(service, who, call, job)
    if record.purged or record.state is JobState.CLOSED:
        raise Refused(ApiError.GONE, "the job was closed")
    data = await call.body(api.MAX_LOG_PIECE)
    path = service.spool.path(record.job, LOG)
    async with service.transfers.hold(path) as descriptor:
        # What the store counts is what counts: bytes behind it are the rest of a call that was never answered.
        here = (await held(service, who, call, job)).log_bytes
        if offset > here:
            raise Refused(ApiError.OFFSET, "bytes in between are missing", here)
        new = data[here - offset :]
        if here + len(new) > service.log_bytes:
            raise Refused(ApiError.TOO_LARGE, "the log is longer than this server takes", here)
        if new:
            await service.transfers.in_thread(_append, service, descriptor, new, here)
            whose, fence = asker(service, who), fence_of(call)
            await service.database.write("log", lambda tx: _grow(tx, whose, job, fence, here + len(new)))
    return answer_value(api.LogOffset(max(here, here + len(new))))


def _append(service: Service, descriptor: int, data: bytes, offset: int) -> None:
    service.spool.check_room(len(data))
    try:
        os.pwrite(descriptor, data, offset)
        os.fdatasync(descriptor)
    except OSError as error:
        raise storage(error) from None


def _grow(tx: Transaction, whose: Asker, job: str, fence: int, size: int) -> None:
    record = claims.held_claim(tx.connection, whose, job, fence, lock=True)
    records.change(tx, record, log_bytes=size)
