"""The predecessor's calls of the workflow's side."""

from __future__ import annotations

import uuid
from functools import partial

from sqlalchemy import Connection, Update, select

from ...job.errors import BadRequest
from ...job.states import JobState, Outcome
from ...wire import legacy
from ...wire.api import ApiError
from ...wire.legacy import STDERR_NAME, STDOUT_NAME
from ...wire.legacy import Call as Kind
from ...wire.legacy_answers import (
    Answer,
    JobLine,
    answer_accepted,
    answer_jobs,
    answer_ok,
    answer_progress,
    answer_results,
    answer_status,
)
from ...wire.legacy_files import MISSING_OUTPUT, CalcInfo, ResultFile
from ...wire.legacy_progress import Face, Progress
from .. import jobs, records, uploads
from ..access import Who
from ..call import JSON, Call
from ..database import Transaction
from ..patience import be_patient
from ..problems import Refused, malformed, unknown
from ..records import INPUT, RESULT, FileRecord, Record
from ..schema import JOBS
from ..service import Service
from ..spool import LOG
from . import jobs as legacy_jobs
from .calls import read_body, read_query
from .files import BYTES, Intake, guess_types, source_of
from .jobs import OldInput, Registered

MAX_LISTED = 10_000
LOOK_BYTES = 1 << 20
NOT_RETURNED = "the site returned no such file"


async def add_calcinfo(service: Service, who: Who, call: Call, kind: Kind) -> Answer:
    """Register a computation."""
    call.require_media(JSON)
    job = str(uuid.uuid4())
    intake = Intake(service, job, INPUT)
    files: list[FileRecord] = []
    kept = False
    try:
        document = await intake.read(call, kind)
        said = legacy.parse_request(kind, {}, document)
        if not isinstance(said, legacy.AddCalcinfo):
            raise TypeError("parse_request gives the call's own type")
        info = said.info
        local = info.local_names()
        info.result_names()
        files = await intake.keep({name: (item.content, (item.mime, item.charset)) for name, item in local.items()})
        register = partial(_register, service=service, who=who, info=info, files=files, job=job)
        await service.database.write("register", register)
        kept = True
    finally:
        await intake.drop(files if kept else None)
    return answer_accepted(job)


def _register(tx: Transaction, service: Service, who: Who, info: CalcInfo, files: list[FileRecord], job: str) -> None:
    site = service.sites.by_name(info.remote_site)
    if site is None:
        raise Refused(ApiError.REFUSED, "no such site is declared")
    if site.user not in ("", who.user):
        raise Refused(ApiError.FORBIDDEN, "this site takes another user's jobs")
    if not site.open_for_jobs(tx.now):
        raise Refused(ApiError.REFUSED, "the site takes no new jobs: its declaration has run out")
    program, spec, manifest = legacy_jobs.make_spec(job, site, info.command, info.parameters, files)
    if jobs.count_open(tx.connection, who.user) >= service.server.limits.jobs:
        raise Refused(ApiError.BUSY, "too many jobs are open")
    uploads.check_bounds(tx.connection, service, who.user, sum(file.size for file in files))
    here = {item.name: local for local, item in info.local_names().items()}
    inputs = tuple(OldInput(f.name, here.get(f.name, ""), f.mime, f.charset) for f in info.parameter_files)
    registered = Registered(info.command, info.remote_site, info.parameters, inputs, info.result_files)
    record = {
        "job": job,
        "owner": who.user,
        "site": site.id,
        "program": program,
        "spec": spec,
        "files": len(files),
        "bytes": sum(file.size for file in files),
        "manifest": manifest,
        "old": legacy_jobs.dump(registered),
    }
    records.add(tx, record)
    records.add_files(tx, files)


def own_old(connection: Connection, user: str, job: str, lock: bool = False) -> Record:
    """The user's job as the old calls know it: what was fetched or withdrawn is forgotten."""
    record = jobs.own(connection, user, job, lock)
    if record.state.order >= JobState.RETRIEVED.order or (record.old is not None and record.cancel):
        raise unknown()
    return record


async def allow_wait_calc(service: Service, who: Who, call: Call, kind: Kind) -> Answer:
    """Sites may take the job."""
    said = await read_body(call, kind)
    await service.database.write("release", partial(_allow, user=who.user, job=said.accept_id))
    return answer_ok()


def _allow(tx: Transaction, user: str, job: str) -> None:
    record = own_old(tx.connection, user, job, lock=True)
    if record.released is not None:
        return
    if record.state is not JobState.CREATED or record.manifest is None:
        raise Refused(ApiError.CONFLICT, "the job cannot be released any more")
    records.move(tx, record, JobState.STAGED, released=tx.now)


async def cancel_wait_calc(service: Service, who: Who, call: Call, kind: Kind) -> Answer:
    """Forget the job."""
    said = await read_body(call, kind)
    await service.database.write("cancel", partial(_withdraw, user=who.user, job=said.accept_id, force=said.force))
    return answer_ok()


def _withdraw(tx: Transaction, user: str, job: str, force: bool) -> None:
    record = jobs.own(tx.connection, user, job, lock=True)
    if record.state is JobState.CLOSED or (record.old is not None and record.cancel):
        return  # done before
    busy = record.state.started and not record.state.final
    if busy and not force and record.ending in (None, Outcome.SUCCEEDED):
        raise Refused(ApiError.CONFLICT, "the job is running")
    record = jobs.cancel(tx, user, job)
    if record.state.final:
        records.move(tx, record, JobState.CLOSED)


class Told:
    """Jobs whose end a workflow's client has been told by calc-status.

    That client asks for the status and then for the progress, and when the progress is `got return` it believes the
    status that it had before. A job that ends between the two would pass for a success. So the progress's last word
    waits for a status that tells the end, or for `PATIENCE`: no answer from before the end is under way then.
    """

    PATIENCE = 30.0
    MOST = 10_000

    def __init__(self) -> None:
        self._jobs: dict[str, None] = {}

    def note(self, job: str) -> None:
        """The status that was just told is the last one."""
        self._jobs[job] = None
        if len(self._jobs) > self.MOST:
            del self._jobs[next(iter(self._jobs))]

    def allows(self, record: Record, now: float) -> bool:
        """Whether `got return` may be said."""
        return record.job in self._jobs or now - record.since > self.PATIENCE


TOLD = Told()


async def calc_status(service: Service, who: Who, call: Call, kind: Kind) -> Answer:
    """How it ended."""
    record, found = await _face(service, who, call, kind)
    if record.state.final:
        TOLD.note(record.job)
    return answer_status(found)


async def calc_progress(service: Service, who: Who, call: Call, kind: Kind) -> Answer:
    """How far it is."""
    record, found = await _face(service, who, call, kind)
    if found.progress is Progress.GOT_RETURN and not TOLD.allows(record, service.clock()):
        found = Face(Progress.GETTING_RETURN, found.status)
    return answer_progress(found)


async def _face(service: Service, who: Who, call: Call, kind: Kind) -> tuple[Record, Face]:
    said = read_query(call, kind)
    record = await service.database.read(lambda c: own_old(c, who.user, said.accept_id))
    found = legacy_jobs.face(record)
    if found is None:
        raise unknown()
    return record, found


async def get_calcinfo(service: Service, who: Who, call: Call, kind: Kind) -> Answer:
    """The user's own jobs, for debugging."""
    statement = (
        select(JOBS)
        .where(JOBS.c.owner == who.user, JOBS.c.old.is_not(None), JOBS.c.cancel == 0)
        .order_by(JOBS.c.number)
        .limit(MAX_LISTED)
    )
    lines = {}
    for record in await service.database.read(lambda c: records.find_all(c, statement)):
        found = legacy_jobs.face(record)
        if found is not None and record.old is not None:
            registered = legacy_jobs.load(record.old)
            lines[record.job] = JobLine(registered.remote_site, registered.command, found)
    return answer_jobs(lines)


async def reload_ini(service: Service, who: Who, call: Call, kind: Kind) -> Answer:
    """Read the declarations again now."""
    try:
        service.sites.load()
    except BadRequest:
        raise malformed("the declarations are wrong, and what was known stays in force; see the server's log") from None
    return answer_ok()


# -- results -----------------------------------------------------------------------------------------------------------


async def get_calc_result(service: Service, who: Who, call: Call, kind: Kind) -> Answer:
    """The results; the job is forgotten with the answer, but for a client that lost it."""
    said = read_query(call, kind)
    record = await service.database.read(lambda c: jobs.own(c, who.user, said.accept_id))
    if record.state is JobState.CLOSED or record.purged or (record.old is not None and record.cancel):
        raise unknown()
    if not record.state.final:
        raise Refused(ApiError.CONFLICT, "the results are not here yet")
    files = await service.database.read(lambda c: records.list_files(c, record.job, RESULT, content=True))
    wanted = legacy_jobs.load(record.old).results if record.old is not None else [file.name for file in files]
    here = {file.name: file for file in files if file.whole}
    found = [await _result(service, record, name, here.get(name)) for name in dict.fromkeys(wanted)]
    # Not after the answer: whether a client has got it, nobody can see. It may be asked again for a declared time.
    await service.database.write("fetched", partial(_fetched, user=who.user, job=record.job))
    call.accompany(be_patient(service, call, partial(_keep, job=record.job)))
    return answer_results(tuple(found))


def _fetched(tx: Transaction, user: str, job: str) -> None:
    record = jobs.own(tx.connection, user, job, lock=True)
    if record.state is JobState.ENDED:
        records.move(tx, record, JobState.RETRIEVED)


def _keep(renewed: Update, now: float, job: str) -> Update:
    """The results, while they are on their way."""
    return renewed.where(JOBS.c.job == job, JOBS.c.state == JobState.RETRIEVED.value).values(since=now)


async def _result(service: Service, record: Record, name: str, file: FileRecord | None) -> ResultFile:
    if file is not None and not file.failed:
        types = file.types or await _look_types(service, file)
        return ResultFile(name, source_of(service, file), *types)
    if file is not None and file.types is not None:
        return ResultFile(name, b"", *file.types)
    if name == STDOUT_NAME:
        return await _log(service, record)
    if name == STDERR_NAME:
        text = f"{record.reason}\n" if record.reason else ""
        return ResultFile(name, text.encode(), "text/plain;", "charset=utf-8")
    return ResultFile(name, b"", MISSING_OUTPUT, NOT_RETURNED)


async def _log(service: Service, record: Record) -> ResultFile:
    """What the program printed, where an agent of ours has sent it as a log."""
    log = FileRecord(record.job, LOG, 0, STDOUT_NAME, record.log_bytes, "", True, None, None)
    if not record.log_bytes:
        return ResultFile(STDOUT_NAME, b"", "text/plain;", "charset=us-ascii")
    return ResultFile(STDOUT_NAME, source_of(service, log), *await _look_types(service, log))


async def _look_types(service: Service, file: FileRecord) -> tuple[str, str]:
    if file.content is not None:
        return guess_types(file.content)
    if file.size > LOOK_BYTES:
        return BYTES
    path = service.spool.path(file.job, file.side, file.number)
    return guess_types(b"".join([piece async for piece in service.transfers.stream(path, 0, file.size)]))
