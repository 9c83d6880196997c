"""v2 as the workflow sees it: every call of `docs/api.md`, "The workflow's side"."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from sqlalchemy import Connection

from ..job.states import JobState
from ..wire import api
from ..wire.api import ApiError
from . import jobs, records
from .access import Who
from .call import Answer, Call, answer_value, parse_number
from .database import Transaction
from .notifier import job_topic
from .problems import Refused, gone, malformed, unknown
from .records import RESULT, Record
from .service import Service
from .spool import LOG
from .transfers import send_file

MAX_LIST = 200


async def put_job(service: Service, who: Who, call: Call, job: str) -> Answer:
    """Register a job."""
    submission = await call.value(api.Submission, api.MAX_BODY_BYTES)
    prepared = jobs.prepare(job, submission)
    site, limit = service.sites.by_id(prepared.spec.site), service.server.limits.jobs

    def register(tx: Transaction) -> tuple[api.Job, bool]:
        check = partial(jobs.check_declared, prepared.spec, site, who.user, tx.now, service.job_bytes)
        record, new = jobs.register(tx, who.user, prepared, limit, check)
        return jobs.view(tx.connection, record, tx.now, service.offset_of), new

    shown, new = await service.database.write("register", register)
    return answer_value(shown, 201 if new else 200)


async def check_job(service: Service, who: Who, call: Call, job: str) -> Answer:
    """Whether this job could be registered, as far as the site's declaration says; nothing is kept."""
    prepared = jobs.prepare(job, await call.value(api.Submission, api.MAX_BODY_BYTES))
    site = service.sites.by_id(prepared.spec.site)
    jobs.check_declared(prepared.spec, site, who.user, service.clock(), service.job_bytes)
    return answer_value(api.Nothing())


def _shown(service: Service, change: Callable[[Transaction], Record]) -> Callable[[Transaction], api.Job]:
    """The change, and the job as it is then."""
    return lambda tx: jobs.view(tx.connection, change(tx), tx.now, service.offset_of)


async def get_job(service: Service, who: Who, call: Call, job: str) -> Answer:
    """How the job stands; with `wait` not before its version is above the one given."""
    query = call.query(version=parse_number, wait=parse_number)
    version, wait = query.get("version", -1), query.get("wait", 0)
    if wait > api.MAX_WAIT_SECONDS:
        raise malformed("the wait is out of bounds")
    loop = asyncio.get_running_loop()
    end = loop.time() + wait
    while True:
        with service.notifier.subscribe((job_topic(job),)) as notified:
            left = end - loop.time()
            above = -1 if left <= 0 or service.notifier.stopping else version
            shown = await service.database.read(partial(_look, service, who.user, job, above))
            if shown is not None:
                return answer_value(shown)
            await call.wait_for(notified, left)
        await service.access.find(call)  # a token that was revoked meanwhile


def _look(service: Service, user: str, job: str, above: int, connection: Connection) -> api.Job | None:
    """The job, where its version is above this one."""
    record = jobs.own(connection, user, job)
    if record.version <= above:
        return None
    return jobs.view(connection, record, service.clock(), service.offset_of, small=True)


async def list_jobs(service: Service, who: Who, call: Call) -> Answer:
    """The user's own jobs."""
    query = call.query(after=lambda value, _: value, limit=lambda value, name: str(parse_number(value, name)))
    limit = min(MAX_LIST, int(query.get("limit", MAX_LIST)))
    after, now = query.get("after"), service.clock()
    found = await service.database.read(
        lambda c: tuple(
            jobs.view(c, record, now, service.offset_of) for record in jobs.list_own(c, who.user, after, limit)
        )
    )
    return answer_value(api.JobList(found))


async def release_job(service: Service, who: Who, call: Call, job: str) -> Answer:
    """All inputs are here."""
    said = await call.value(api.Release, api.MAX_DOCUMENT_BODY_BYTES)
    entries = await asyncio.to_thread(jobs.parse_inputs_manifest, said.manifest)
    change = _shown(service, lambda tx: jobs.release(tx, who.user, job, said.manifest, entries))
    return answer_value(await service.database.write("release", change))


async def cancel_job(service: Service, who: Who, call: Call, job: str) -> Answer:
    """The job is to end."""
    await call.value(api.Nothing, api.MAX_BODY_BYTES)
    change = _shown(service, lambda tx: jobs.cancel(tx, who.user, job))
    return answer_value(await service.database.write("cancel", change))


async def close_job(service: Service, who: Who, call: Call, job: str) -> Answer:
    """MInt has what it needs."""
    await call.value(api.Nothing, api.MAX_BODY_BYTES)
    change = _shown(service, lambda tx: jobs.close(tx, who.user, job))
    return answer_value(await service.database.write("close", change))


async def _ended(service: Service, who: Who, job: str) -> Record:
    record = await service.database.read(lambda c: jobs.own(c, who.user, job))
    if record.purged or record.state is JobState.CLOSED:
        raise gone()
    if not record.state.final:
        raise Refused(ApiError.CONFLICT, f"the job is {record.state.value}")
    return record


async def get_documents(service: Service, who: Who, call: Call, job: str) -> Answer:
    """What the site says happened."""
    record = await _ended(service, who, job)
    return answer_value(api.Documents(record.out_manifest, record.receipt, record.receipt_signature))


async def get_log(service: Service, who: Who, call: Call, job: str) -> Answer:
    """The log from an offset on."""
    start = call.query(offset=parse_number).get("offset", 0)
    record = await service.database.read(lambda c: jobs.own(c, who.user, job))
    if record.purged or record.state is JobState.CLOSED:
        raise gone()
    size = record.log_bytes
    if start > size:
        raise Refused(ApiError.OFFSET, "the log is shorter", size)
    answer = Answer(media=b"application/octet-stream", headers=[(b"upload-offset", str(size).encode())])
    if start < size:
        path = service.spool.path(record.job, LOG)
        answer.stream, answer.length = service.transfers.stream(path, start, size), size - start
    return answer


async def get_result(service: Service, who: Who, call: Call, job: str, name: str) -> Answer:
    """One result."""
    record = await _ended(service, who, job)
    file = await service.database.read(lambda c: records.find_file(c, record.job, RESULT, name))
    if file is None or not file.whole:
        raise unknown()
    return send_file(service.transfers, call, file, service.spool.path(record.job, RESULT, file.number))
