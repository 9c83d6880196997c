"""The predecessor's calls of the site's side."""

from __future__ import annotations

import dataclasses
import os
import uuid
from collections.abc import Callable
from functools import partial

from sqlalchemy import Connection, Update, or_, select

from ...job.states import JobState, Outcome
from ...wire import legacy
from ...wire.api import ApiError
from ...wire.legacy import Call as Kind
from ...wire.legacy_answers import Answer, Fault, answer_accepted, answer_fault, answer_ok, answer_params
from ...wire.legacy_files import CalcInfo, InputFile
from ...wire.legacy_progress import STEPS, Delivery, Progress
from .. import jobs, records, uploads
from ..access import Who
from ..call import JSON, Call
from ..database import Transaction
from ..notifier import site_topic
from ..patience import be_patient
from ..problems import Refused, unknown
from ..records import INPUT, RESULT, FileRecord, Record
from ..schema import JOBS
from ..service import Service
from ..sites import DeclaredSite
from ..spool import LOG
from ..times import Times
from . import jobs as legacy_jobs
from .calls import Handler, read_body, read_query
from .files import Intake, copy_files, source_of
from .workflow import (
    add_calcinfo,
    allow_wait_calc,
    calc_progress,
    calc_status,
    cancel_wait_calc,
    get_calc_result,
    get_calcinfo,
    reload_ini,
)

CANDIDATES = 50
ABNORMAL = "the program ended abnormally"
NOTHING = "there is no job for this site"


class Offers:
    """The oldest job for each site and user, kept until anything changes at the site: most calls ask for it."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[int, str | None]] = {}

    async def find(self, service: Service, who: Who, site: DeclaredSite) -> str | None:
        """The job's id, or None."""
        key, stamp = (who.user, site.id), service.notifier.stamp(site_topic(site.id))
        known = self._known.get(key)
        if known is None or known[0] != stamp:
            known = stamp, await service.database.read(lambda c: _oldest(c, who.user, site))
            self._known[key] = known
        return known[1]


OFFERS = Offers()


def _oldest(connection: Connection, user: str, site: DeclaredSite) -> str | None:
    """The oldest released job that nobody has taken, if the old form can hold it."""
    aliased = [name for name, program in site.programs.items() if program.command is not None]
    statement = (
        select(JOBS)
        .where(
            JOBS.c.site == site.id,
            JOBS.c.owner == user,
            JOBS.c.state == JobState.STAGED.value,
            JOBS.c.agent.is_(None),
            JOBS.c.cancel == 0,
            or_(JOBS.c.old.is_not(None), JOBS.c.program.in_(aliased)),
        )
        .order_by(JOBS.c.number)
        .limit(CANDIDATES)
    )
    last = -1
    while found := records.find_all(connection, statement.where(JOBS.c.number > last)):
        for record in found:
            if legacy_jobs.offered(connection, record, site, site.id) is not None:
                return record.job
        last = found[-1].number
    return None


def find_site(service: Service, who: Who, name: str) -> DeclaredSite:
    """The site that the call names, if the token names it too."""
    site = service.sites.by_name(name)
    if site is None or site.id not in who.sites:
        raise Refused(ApiError.FORBIDDEN, "this token does not name that site")
    return site


async def calc_request(service: Service, who: Who, call: Call, kind: Kind) -> Answer:
    """Is there a job? Asking changes nothing."""
    site = find_site(service, who, read_query(call, kind).site_id)
    job = await OFFERS.find(service, who, site)
    return answer_fault(kind, Fault.NOTHING_TO_DO, NOTHING) if job is None else answer_accepted(job)


def claimed(connection: Connection, who: Who, site: DeclaredSite, job: str, lock: bool = False) -> Record:
    """A job of this user at this site."""
    record = jobs.own(connection, who.user, job, lock)
    if record.site != site.id or record.state in (JobState.CREATED, JobState.CLOSED):
        raise unknown()
    return record


def _step(
    kind: Kind,
    who: Who,
    site: DeclaredSite,
    job: str,
    tx: Transaction,
    act: Callable[[Transaction, Record], object],
    taker: str | None = None,
) -> Record:
    """Do what a call does, once: a repetition is answered as the first time, and anything else refused.

    `taker` is who takes the job with this call: another client, which came at the same moment, does not get it too.
    """
    record = claimed(tx.connection, who, site, job, lock=True)
    held = legacy_jobs.is_old_agent(record.agent, who.user, site.id) and taker in (None, record.agent)
    seen = legacy_jobs.face(record)
    progress = Progress.GOT_RETURN if seen is None else seen.progress
    if not held and (record.agent is not None or kind is not Kind.CALC_PARAMS):
        raise Refused(ApiError.FENCED, "another agent has this job")
    step = STEPS[kind]
    if step.repeats(progress):
        if record.agent is None:
            raise Refused(ApiError.CONFLICT, f"the job is {progress.value}")
        return record
    if not step.takes(progress):
        raise Refused(ApiError.CONFLICT, f"the job is {progress.value}")
    act(tx, record)
    return record


async def calc_params(service: Service, who: Who, call: Call, kind: Kind) -> Answer:
    """The site takes the job, and gets what was registered."""
    said = read_query(call, kind)
    site = find_site(service, who, said.site_id)
    record = await service.database.read(lambda c: claimed(c, who, site, said.accept_id))
    registered = await service.database.read(lambda c: legacy_jobs.offered(c, record, site, said.site_id))
    if registered is None:
        raise unknown()
    taker = legacy_jobs.old_agent(who.user, site.id, who.token, call.client)
    take = partial(_take, agent=taker, seconds=service.times.legacy_claim)
    await service.database.write("claim", lambda tx: _step(kind, who, site, said.accept_id, tx, take, taker))
    call.accompany(be_patient(service, call, partial(_hold, job=record.job, agent=taker, times=service.times)))
    files = await service.database.read(lambda c: records.list_files(c, record.job, INPUT, content=True))
    return answer_params(_info(service, registered, {file.name: file for file in files}))


def _take(tx: Transaction, record: Record, agent: str, seconds: float) -> None:
    if record.cancel:
        raise Refused(ApiError.CONFLICT, "the job was withdrawn")
    records.change(tx, record, agent=agent, fence=record.fence + 1, lease=tx.now + seconds)
    tx.notify(site_topic(record.site))


def _hold(renewed: Update, now: float, job: str, agent: str, times: Times) -> Update:
    """The claim, while its inputs are on their way."""
    held = renewed.where(JOBS.c.job == job, JOBS.c.agent == agent, JOBS.c.lease.is_not(None), JOBS.c.confirmed == 0)
    return held.values(lease=now + times.legacy_claim)


def _info(service: Service, registered: legacy_jobs.Registered, files: dict[str, FileRecord]) -> CalcInfo:
    inputs = []
    # The empty name stands for an empty list: no client is asked to make or to find such a file.
    for item in registered.inputs:
        if not item.name:
            continue
        file = files.get(item.here)
        content = b"" if file is None else source_of(service, file)
        inputs.append(InputFile(item.name, content, item.mime, item.charset))
    results = tuple(filter(None, registered.results))
    return CalcInfo(registered.command, registered.remote_site, registered.parameters, tuple(inputs), results)


async def _advance(
    service: Service, who: Who, call: Call, kind: Kind, act: Callable[[Transaction, Record], object]
) -> Answer:
    said = await read_body(call, kind)
    site = find_site(service, who, said.site_id)
    label = kind.value.replace("-", "_")
    await service.database.write(label, lambda tx: _step(kind, who, site, said.accept_id, tx, act))
    return answer_ok()


async def calc_params_complete(service: Service, who: Who, call: Call, kind: Kind) -> Answer:
    """The site has all inputs."""
    seconds = service.times.legacy_claim

    def act(tx: Transaction, record: Record) -> None:
        records.change(tx, record, delivery=Delivery.INPUTS_CONFIRMED, lease=tx.now + seconds)

    return await _advance(service, who, call, kind, act)


async def calc_start(service: Service, who: Who, call: Call, kind: Kind) -> Answer:
    """The program is being started. Nothing is heard of it until its end, so no lease runs."""

    def act(tx: Transaction, record: Record) -> None:
        if record.cancel:
            raise Refused(ApiError.CONFLICT, "the job was withdrawn")
        records.move(tx, record, JobState.RUNNING, confirmed=True, lease=None)

    return await _advance(service, who, call, kind, act)


async def calc_end(service: Service, who: Who, call: Call, kind: Kind) -> Answer:
    """The program has ended."""
    said = await read_body(call, kind)
    site = find_site(service, who, said.site_id)
    outcome, reason = (Outcome.FAILED, ABNORMAL) if said.abnormal else (Outcome.SUCCEEDED, None)

    def act(tx: Transaction, record: Record) -> None:
        records.change(tx, record, ending=outcome, ending_reason=reason, ending_since=tx.now)

    await service.database.write("calc_end", lambda tx: _step(kind, who, site, said.accept_id, tx, act))
    return answer_ok()


async def send_results(service: Service, who: Who, call: Call, kind: Kind) -> Answer:
    """The results, all in one body. They may come again until `end-send`; the last ones count.

    Whose job it is stands in the body, perhaps behind its files: they wait in the spool, in a folder of their own,
    until that is known.
    """
    call.require_media(JSON)
    call.accompany(be_patient(service, call, partial(_await_results, who=who)))
    waiting = str(uuid.uuid4())
    intake = Intake(service, waiting, RESULT)
    try:
        await service.database.read(lambda c: uploads.check_bounds(c, service, who.user, call.content_length() or 0))
        document = await intake.read(call, kind)
        said = legacy.parse_request(kind, {}, document)
        if not isinstance(said, legacy.SendResults):
            raise TypeError("parse_request gives the call's own type")
        site = find_site(service, who, said.site_id)
        said.result_names()
        files = await intake.keep(
            {item.name: (item.content, (item.mimetype1, item.mimetype2)) for item in said.result_files}
        )
        record = await service.database.read(lambda c: claimed(c, who, site, said.accept_id))
        await _check_names(service, record, site, said)
        await service.transfers.in_thread(_move_files, service, waiting, record.job, files)
        new = [_of_job(file, record.job) for file in files]
        await service.database.write("send_results", lambda tx: _keep_results(tx, who, site, said.accept_id, new))
    finally:
        await service.transfers.in_thread(service.spool.remove, waiting)
    return answer_ok()


def _await_results(renewed: Update, now: float, who: Who) -> Update:
    """Every job that these results may belong to."""
    whose = (JOBS.c.owner == who.user, JOBS.c.site.in_(who.sites), JOBS.c.agent.like(records.OLD_AGENT + "%"))
    return renewed.where(*whose, JOBS.c.ending.is_not(None), JOBS.c.outcome.is_(None)).values(ending_since=now)


async def _check_names(service: Service, record: Record, site: DeclaredSite, said: legacy.SendResults) -> None:
    """Only what the job asked for may come back."""
    registered = await service.database.read(lambda c: legacy_jobs.offered(c, record, site, said.site_id))
    known = set() if registered is None else {*registered.results, *legacy_jobs.LOG_NAMES}
    returnable = service.returnable(record)
    if not all(item.name in known or returnable(item.name) for item in said.result_files):
        raise Refused(ApiError.REFUSED, "a result was not asked for")


def _of_job(file: FileRecord, job: str) -> FileRecord:
    return dataclasses.replace(file, job=job)


def _move_files(service: Service, waiting: str, job: str, files: list[FileRecord]) -> None:
    for file in files:
        if file.content is None:
            target = service.spool.path(job, RESULT, file.number)
            os.close(service.spool.open_writable(target))
            os.rename(service.spool.path(waiting, RESULT, file.number), target)
            service.spool.flush(target.parent)


def _keep_results(tx: Transaction, who: Who, site: DeclaredSite, job: str, files: list[FileRecord]) -> None:
    record = claimed(tx.connection, who, site, job, lock=True)
    if not legacy_jobs.is_old_agent(record.agent, who.user, site.id):
        raise Refused(ApiError.FENCED, "another agent has this job")
    seen = legacy_jobs.face(record)
    if seen is None or seen.progress is Progress.GOT_RETURN:
        return  # a repetition after the end
    if seen.progress.order < Progress.CALC_END.order:
        raise Refused(ApiError.CONFLICT, f"the job is {seen.progress.value}")
    records.drop_files(tx, job, RESULT)
    records.add_files(tx, files)
    records.change(tx, record, delivery=Delivery.RESULTS_ARRIVING, ending_since=tx.now)


async def end_send(service: Service, who: Who, call: Call, kind: Kind) -> Answer:
    """All results have been sent, or will not be."""
    said = await read_body(call, kind)
    site = find_site(service, who, said.site_id)
    record = await service.database.read(lambda c: claimed(c, who, site, said.accept_id))
    log_bytes = 0
    if record.old is None:
        log_bytes = await _make_log(service, record)

    def act(tx: Transaction, record: Record) -> None:
        legacy_jobs.end(tx, record, service.returnable(record), log_bytes)

    await service.database.write("end_send", lambda tx: _step(kind, who, site, said.accept_id, tx, act))
    return answer_ok()


async def _make_log(service: Service, record: Record) -> int:
    """What the program printed, as the log of a v2 job that a client of the predecessor has run."""
    files = await service.database.read(lambda c: records.list_files(c, record.job, RESULT, content=True))
    printed = [file for name in legacy_jobs.LOG_NAMES for file in files if file.name == name and not file.failed]
    path = service.spool.path(record.job, LOG)
    async with service.transfers.hold(path) as descriptor:
        return int(await service.transfers.in_thread(copy_files, service, printed, descriptor))


HANDLERS: dict[Kind, Handler] = {
    Kind.ADD_CALCINFO: add_calcinfo,
    Kind.ALLOW_WAIT_CALC: allow_wait_calc,
    Kind.CANCEL_WAIT_CALC: cancel_wait_calc,
    Kind.CALC_STATUS: calc_status,
    Kind.CALC_PROGRESS: calc_progress,
    Kind.GET_CALC_RESULT: get_calc_result,
    Kind.GET_CALCINFO: get_calcinfo,
    Kind.RELOAD_INI: reload_ini,
    Kind.CALC_REQUEST: calc_request,
    Kind.CALC_PARAMS: calc_params,
    Kind.CALC_PARAMS_COMPLETE: calc_params_complete,
    Kind.CALC_START: calc_start,
    Kind.CALC_END: calc_end,
    Kind.SEND_RESULTS: send_results,
    Kind.END_SEND: end_send,
}
