"""Resumable uploads of v2, for a workflow's inputs and an agent's results alike: PUT, HEAD and PATCH."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from ..job.names import NameRefused, check_distinct, check_input_name, check_result_name
from ..job.states import JobState
from ..wire import api
from ..wire.api import ApiError
from . import claims, jobs, records
from .access import Who
from .agents import asker, fence_of
from .call import Answer, Call
from .database import Transaction
from .problems import Refused, gone, malformed, unknown
from .records import INPUT, RESULT, FileRecord, Record
from .schema import FILES, JOBS
from .service import Service
from .spool import full
from .transfers import answer_offset, cut_to_nothing, parse_digest

MAX_LENGTH = 1 << 50


@dataclass(frozen=True)
class Target:
    """Where an upload goes. `find` gives the job if the caller may write to it now, and is asked again at the end."""

    job: str
    side: str
    name: str
    find: Callable[[Connection], Record]


def _input_target(service: Service, who: Who, call: Call, job: str, name: str) -> Target:
    _check_name(check_input_name, name)

    def find(connection: Connection) -> Record:
        record = jobs.own(connection, who.user, job)
        if record.state is JobState.CLOSED or record.purged:
            raise gone()
        return record

    return Target(job, INPUT, name, find)


def _result_target(service: Service, who: Who, call: Call, job: str, name: str) -> Target:
    _check_name(check_result_name, name)
    whose, fence = asker(service, who), fence_of(call)

    def find(connection: Connection) -> Record:
        record = claims.held_claim(connection, whose, job, fence)
        if record.state is JobState.CLOSED or record.purged:
            raise gone()
        if not service.returnable(record)(name):
            raise Refused(ApiError.REFUSED, "the job declares no result of this name")
        return record

    return Target(job, RESULT, name, find)


def _check_name(check: Callable[[str], None], name: str) -> None:
    try:
        check(name)
    except NameRefused:
        raise malformed("the file name is not one that is carried") from None


TargetOf = Callable[[Service, Who, Call, str, str], Target]


async def put_file(service: Service, who: Who, call: Call, target: Target) -> Answer:
    """Make the upload, and take its first bytes."""
    length = call.number_header(api.UPLOAD_LENGTH)
    digest = parse_digest(call.text_header(api.DIGEST))
    if length is None or length > MAX_LENGTH:
        raise malformed(f"the header {api.UPLOAD_LENGTH} is missing, or its number is too large")
    file = await service.database.read(lambda c: _known(c, target))
    if file is None:
        file = await service.database.write("create", lambda tx: _create(tx, service, who.user, target, length, digest))
    elif (file.size, file.sha256) != (length, digest):
        raise Refused(ApiError.CONFLICT, "an upload of this name has another length or digest")
    if file.whole:
        return answer_offset(200, length, length)
    path = service.spool.path(file.job, file.side, file.number)
    async with service.transfers.hold(path) as descriptor:
        start = await service.transfers.in_thread(service.spool.durable_size, path)
        if start and not call.read_to_end:
            raise Refused(ApiError.OFFSET, "the upload has begun; go on where it ends", start)
        return await _receive(service, who, call, target, file, descriptor, start)


async def head_file(service: Service, who: Who, call: Call, target: Target) -> Answer:
    """How much is here. Whoever asks will go on, so a call that still writes is ended first."""
    file = await service.database.read(lambda c: _known(c, target))
    if file is None:
        raise unknown()
    if file.whole:
        return answer_offset(200, file.size, file.size)
    path = service.spool.path(file.job, file.side, file.number)
    await service.transfers.interrupt(path)
    offset = await service.transfers.in_thread(service.spool.durable_size, path)
    return answer_offset(200, min(offset, file.size), file.size)


async def patch_file(service: Service, who: Who, call: Call, target: Target) -> Answer:
    """Append from an offset on."""
    call.require_media(api.PARTIAL.encode())
    offset = call.number_header(api.UPLOAD_OFFSET)
    if offset is None:
        raise malformed(f"the header {api.UPLOAD_OFFSET} is missing")
    file = await service.database.read(lambda c: _known(c, target))
    if file is None:
        raise unknown()
    if call.number_header(api.UPLOAD_LENGTH) not in (None, file.size):
        raise malformed("the length is not the one that the upload was made with")
    if file.whole:
        if offset == file.size and call.read_to_end:
            return answer_offset(200, file.size, file.size)
        raise Refused(ApiError.CONFLICT, "the upload is whole", file.size)
    path = service.spool.path(file.job, file.side, file.number)
    async with service.transfers.hold(path) as descriptor:
        here = await service.transfers.in_thread(service.spool.durable_size, path)
        if offset != here:
            raise Refused(ApiError.OFFSET, "the upload goes on elsewhere", min(here, file.size))
        return await _receive(service, who, call, target, file, descriptor, here)


async def _receive(
    service: Service, who: Who, call: Call, target: Target, file: FileRecord, descriptor: int, start: int
) -> Answer:
    """Take bytes; with the last one judge the whole."""
    path = service.spool.path(file.job, file.side, file.number)
    if start > file.size:  # cannot be, but for a damaged spool
        await service.transfers.in_thread(cut_to_nothing, descriptor)
        raise Refused(ApiError.OFFSET, "the upload starts again", 0)
    end, digest = await service.transfers.receive(call, path, descriptor, file.size, start)
    if digest is None:
        return answer_offset(200, end, file.size)
    if digest != file.sha256:
        await service.transfers.in_thread(cut_to_nothing, descriptor)
        raise Refused(ApiError.REFUSED, "the digest is not that of the bytes; the upload starts from zero", 0)
    await service.access.find(call)  # whoever lost the right meanwhile does not complete it
    await service.database.write("whole", lambda tx: _complete(tx, target, file))
    return answer_offset(201, end, file.size)


def _known(connection: Connection, target: Target) -> FileRecord | None:
    """The upload, if the caller may have to do with it."""
    target.find(connection)
    return records.find_file(connection, target.job, target.side, target.name)


def _create(tx: Transaction, service: Service, user: str, target: Target, length: int, digest: str) -> FileRecord:
    """A new upload; its bytes count against all bounds from now on."""
    record = target.find(tx.connection)
    _check_open(record, target.side)
    known = records.find_file(tx.connection, target.job, target.side, target.name)
    if known is not None:
        return known
    files = records.list_files(tx.connection, target.job, target.side)
    most, room = (record.files, record.bytes) if target.side == INPUT else (jobs.MAX_FILES, service.job_bytes)
    if len(files) >= most or sum(file.size for file in files) + length > room:
        raise Refused(ApiError.TOO_LARGE, "more than the job announces, or than this server takes")
    try:
        check_distinct([target.name, *(file.name for file in files)])
    except NameRefused:
        raise Refused(ApiError.CONFLICT, "another file's name differs only in case, or is a folder of it") from None
    check_bounds(tx.connection, service, user, length)
    file = FileRecord(target.job, target.side, records.new_number(), target.name, length, digest, False, None, None)
    records.add_files(tx, [file])
    records.change(tx, record, quiet=target.side == RESULT)
    return file


def check_bounds(connection: Connection, service: Service, user: str, size: int) -> None:
    """Refuse an upload beyond the quota, or one more beside too many that are not finished."""
    reserved = connection.execute(select(func.coalesce(func.sum(FILES.c.size), 0))).scalar() or 0
    if int(reserved) + size > service.quota:
        raise full()
    joined = FILES.join(JOBS, JOBS.c.job == FILES.c.job)
    unfinished = select(func.count()).select_from(joined).where(FILES.c.whole == 0, JOBS.c.owner == user)
    if int(connection.execute(unfinished).scalar() or 0) >= service.server.limits.uploads:
        raise Refused(ApiError.BUSY, "too many uploads are unfinished")


def _check_open(record: Record, side: str) -> None:
    """Inputs are taken until the release, results until the end."""
    if side == INPUT and (record.released is not None or record.state is not JobState.CREATED):
        raise Refused(ApiError.CONFLICT, "the job's inputs are fixed")
    if side == RESULT and record.state.final:
        raise Refused(ApiError.CONFLICT, "the job has ended")


def _complete(tx: Transaction, target: Target, file: FileRecord) -> None:
    record = target.find(tx.connection)
    known = records.find_file(tx.connection, target.job, target.side, target.name)
    if known is None or known.number != file.number:
        raise Refused(ApiError.CONFLICT, "the upload was given up")
    if known.whole:
        return
    _check_open(record, target.side)
    records.change_file(tx, file, whole=True)
    records.change(tx, record, quiet=target.side == RESULT)


Handler = Callable[[Service, Who, Call, str, str], Awaitable[Answer]]


def _handler(do: Callable[[Service, Who, Call, Target], Awaitable[Answer]], target_of: TargetOf) -> Handler:
    async def handle(service: Service, who: Who, call: Call, job: str, name: str) -> Answer:
        return await do(service, who, call, target_of(service, who, call, job, name))

    handle.__doc__ = do.__doc__
    return handle


put_input, head_input, patch_input = (_handler(do, _input_target) for do in (put_file, head_file, patch_file))
put_result, head_result, patch_result = (_handler(do, _result_target) for do in (put_file, head_file, patch_file))
