"""The workflow's calls on the store: register, release, cancel, close, and what a job looks like from there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, func, select

from ..job.arguments import ArgumentRefused, fill_arguments
from ..job.codec import CodecError, decode, parse_json
from ..job.interface import ProgramInterface
from ..job.manifest import (
    Entry,
    Manifest,
    check_manifest,
    digest_manifest,
    make_manifest,
    parse_manifest,
    render_manifest,
    total_bytes,
)
from ..job.names import NameRefused, NameSet, check_input_name, is_job_id
from ..job.spec import MAX_INLINE_BYTES, MAX_SPEC_BYTES, JobSpec
from ..job.states import JobState, Outcome
from ..wire import api
from ..wire.api import ApiError
from . import records
from .database import Transaction
from .notifier import site_topic
from .problems import Refused, gone, malformed, unknown
from .records import INPUT, RESULT, FileRecord, Record
from .schema import JOBS
from .sites import DeclaredSite

MAX_FILES = 100_000
MAX_SIGNATURE = 64 << 10
SITE_LOG = "remote_program_exec.log"
CANCELLED_HERE = "cancelled before a site took it"


@dataclass(frozen=True)
class Prepared:
    """A submission, read and checked as far as that is possible without the store."""

    spec: JobSpec
    text: str
    signature: str | None
    inputs: tuple[tuple[Entry, bytes], ...]
    manifest: str | None


def prepare(job: str, submission: api.Submission) -> Prepared:
    """Read a submission; raises Refused."""
    raw = submission.spec.encode("utf-8", "surrogatepass")
    if len(raw) > MAX_SPEC_BYTES or len(submission.signature or "") > MAX_SIGNATURE:
        raise Refused(ApiError.TOO_LARGE, "the job spec or its signature is longer than 64 KiB")
    try:
        spec = decode(JobSpec, parse_json(raw), "spec")
        inputs = tuple(_small_input(item) for item in submission.inputs or ())
        entries = check_manifest(make_manifest(entry for entry, _ in inputs), check_input_name)
    except CodecError as error:
        raise malformed(str(error)) from None
    except (ValueError, NameRefused):
        raise malformed("a spec, a name or a digest is not well formed") from None
    if spec.job != job:
        raise malformed("the spec is of another job")
    if len(inputs) > api.MAX_SMALL_FILES or total_bytes(entries) > MAX_INLINE_BYTES:
        raise Refused(ApiError.TOO_LARGE, "too much came along; upload the inputs")
    manifest = None
    if submission.release:
        _check_announced(spec, entries)
        manifest = render_manifest(entries).decode()
    elif len(entries) > spec.files or total_bytes(entries) > spec.bytes:
        raise Refused(ApiError.REFUSED, "more came along than the spec announces")
    return Prepared(spec, submission.spec, submission.signature, inputs, manifest)


def _small_input(item: api.SmallInput) -> tuple[Entry, bytes]:
    check_input_name(item.name)
    data = api.decode_bytes(item.content)
    entry = Entry(item.name, item.size, item.sha256)
    if len(data) != item.size or entry.sha256 != _sha256(data):
        raise Refused(ApiError.REFUSED, "an input's size or digest is not that of its content")
    return entry, data


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _check_announced(spec: JobSpec, entries: Manifest) -> None:
    if (len(entries), total_bytes(entries)) != (spec.files, spec.bytes):
        raise Refused(ApiError.REFUSED, "the inputs are not as many, or not as large, as the spec announces")
    if spec.manifest is not None and spec.manifest != digest_manifest(entries):
        raise Refused(ApiError.REFUSED, "the inputs are not those that the spec names")


def check_declared(spec: JobSpec, site: DeclaredSite | None, user: str, now: float, job_bytes: int) -> None:
    """Refuse what the site's declaration does not allow; the site's own policy judges again."""
    if site is None:
        raise Refused(ApiError.REFUSED, "no such site is declared")
    if site.user not in ("", user):
        raise Refused(ApiError.FORBIDDEN, "this site takes another user's jobs")
    if not site.open_for_jobs(now):
        raise Refused(ApiError.REFUSED, "the site takes no new jobs: its declaration has run out")
    program = site.programs.get(spec.program)
    if program is None:
        raise Refused(ApiError.REFUSED, "the site's declaration has no such program")
    try:
        fill_arguments(program.arguments, spec.arguments)
    except ArgumentRefused:
        raise Refused(ApiError.REFUSED, "an argument is not as the program's declaration says") from None
    if spec.files > MAX_FILES or spec.bytes > job_bytes:
        raise Refused(ApiError.TOO_LARGE, "the job's inputs are more than this server takes")


def register(
    tx: Transaction, user: str, prepared: Prepared, max_jobs: int, check: Callable[[], None]
) -> tuple[Record, bool]:
    """The job, and whether it is new; a new one has to pass the `check`."""
    known = records.find(tx.connection, prepared.spec.job, lock=True)
    if known is not None:
        return _repeated(known, user, prepared), False
    check()
    _refuse_buried(tx.connection, user, prepared.spec.job)
    if count_open(tx.connection, user) >= max_jobs:
        raise Refused(ApiError.BUSY, "too many jobs are open; close some")
    spec = prepared.spec
    record = records.add(
        tx,
        {
            "job": spec.job,
            "owner": user,
            "site": spec.site,
            "program": spec.program,
            "spec": prepared.text,
            "signature": prepared.signature,
            "files": spec.files,
            "bytes": spec.bytes,
        },
    )
    rows = [
        FileRecord(spec.job, INPUT, number, entry.name, entry.size, entry.sha256, True, data, None)
        for number, (entry, data) in enumerate(prepared.inputs)
    ]
    records.add_files(tx, rows)
    if prepared.manifest is not None:
        record = _released(tx, record, prepared.manifest)
    return record, True


def _refuse_buried(connection: Connection, user: str, job: str) -> None:
    """An id counts once, also after its record was deleted: nothing that was done is ever done again under it."""
    owner = records.buried_by(connection, job)
    if owner is not None:
        raise gone() if owner == user else Refused(ApiError.CONFLICT, "another job has this id")


def _repeated(known: Record, user: str, prepared: Prepared) -> Record:
    same = (known.owner, known.spec, known.signature) == (user, prepared.text, prepared.signature)
    if not same or known.old is not None:
        raise Refused(ApiError.CONFLICT, "another job has this id")
    if known.state is JobState.CLOSED:
        raise gone()
    return known


_COUNT_OPEN = select(func.count()).where(JOBS.c.owner == bindparam("of"), JOBS.c.state != JobState.CLOSED.value)


def count_open(connection: Connection, user: str) -> int:
    """The user's jobs that are not closed."""
    return int(connection.execute(_COUNT_OPEN, {"of": user}).scalar() or 0)


def own(connection: Connection, user: str, job: str, lock: bool = False) -> Record:
    """The user's job; Refused `unknown` for everybody else's, `gone` where its record was deleted."""
    record = records.find(connection, job, lock) if is_job_id(job) else None
    if record is None and is_job_id(job) and records.buried_by(connection, job) == user:
        raise gone()
    if record is None or record.owner != user:
        raise unknown()
    return record


def parse_inputs_manifest(text: str) -> Manifest:
    """The manifest that a release brings."""
    try:
        return parse_manifest(text.encode("utf-8"), check_input_name, MAX_FILES)
    except (CodecError, UnicodeEncodeError):
        raise malformed("the manifest is not well formed") from None


def release(tx: Transaction, user: str, job: str, text: str, entries: Manifest) -> Record:
    """All inputs are here: a site may take the job."""
    record = own(tx.connection, user, job, lock=True)
    if record.state is JobState.CLOSED:
        raise gone()
    if record.released is not None:
        if record.manifest != text:
            raise Refused(ApiError.CONFLICT, "the job was released with other inputs")
        return record
    if record.state is not JobState.CREATED:
        raise Refused(ApiError.CONFLICT, f"the job is {record.state.value}")
    _check_announced(decode(JobSpec, parse_json(record.spec.encode())), entries)
    here = {(file.name, file.size, file.sha256) for file in records.list_files(tx.connection, job, INPUT) if file.whole}
    if here != {(entry.name, entry.size, entry.sha256) for entry in entries}:
        raise Refused(ApiError.CONFLICT, "the inputs that are here are not those of the manifest")
    return _released(tx, record, text)


def _released(tx: Transaction, record: Record, manifest: str) -> Record:
    record = records.move(tx, record, JobState.STAGED, manifest=manifest, released=tx.now)
    return record


def cancel(tx: Transaction, user: str, job: str) -> Record:
    """The job is to end: at once where no site has it, else through its agent."""
    record = own(tx.connection, user, job, lock=True)
    if record.state.final or record.cancel:
        return record
    if record.agent is None:
        return records.end(tx, record, Outcome.CANCELLED, CANCELLED_HERE, cancel=True)
    tx.notify(site_topic(record.site))
    return records.change(tx, record, cancel=True)


def close(tx: Transaction, user: str, job: str) -> Record:
    """MInt has what it needs; everything but the record goes."""
    record = own(tx.connection, user, job, lock=True)
    if record.state is JobState.CLOSED:
        return record
    if not record.state.final:
        raise Refused(ApiError.CONFLICT, f"the job is {record.state.value}; cancel it first")
    return records.move(tx, record, JobState.CLOSED)


# -- what may return ---------------------------------------------------------------------------------------------------


def returnable(record: Record, program: ProgramInterface | None) -> Callable[[str], bool]:
    """Which results count: those that the declaration names, or that a client of the predecessor asked for."""
    from .legacy.jobs import registered_results

    if record.old is not None:
        names = registered_results(record.old)
        return lambda name: name in names
    declared = NameSet([*(program.outputs if program is not None else ()), SITE_LOG])
    return lambda name: name in declared


# -- the view ----------------------------------------------------------------------------------------------------------


def view(
    connection: Connection, record: Record, now: float, offset_of: Callable[[FileRecord], int], small: bool = False
) -> api.Job:
    """The job as the workflow sees it; `offset_of` tells how much of an input is here."""
    inputs: Sequence[FileRecord] = ()
    results: Sequence[FileRecord] = ()
    if not record.purged and record.state is not JobState.CLOSED:
        inputs = records.list_files(connection, record.job, INPUT)
        if record.state.final:
            wanted = small and record.ending is not None
            found = records.list_files(connection, record.job, RESULT, content=wanted)
            results = [file for file in found if file.whole and not file.failed]
    contents = {file.name: file.content for file in results if file.content is not None}
    return api.Job(
        job=record.job,
        site=record.site,
        program=record.program,
        state=record.state,
        since=record.since,
        version=record.version,
        released=record.released is not None,
        cancel=record.cancel,
        outcome=record.outcome,
        reason=record.reason,
        progress=record.progress,
        log_bytes=record.log_bytes,
        silent_since=record.silent_since(now),
        inputs=tuple(api.InputState(f.name, f.size, f.size if f.whole else offset_of(f)) for f in inputs),
        results=tuple(api.ResultFile(f.name, f.size, f.sha256) for f in results),
        small={name: api.encode_bytes(data) for name, data in contents.items()} if contents else None,
    )


def list_own(connection: Connection, user: str, after: str | None, limit: int) -> list[Record]:
    """The user's jobs, oldest first, behind the one named."""
    statement = select(JOBS).where(JOBS.c.owner == user).order_by(JOBS.c.number).limit(limit)
    if after is not None:
        statement = statement.where(JOBS.c.number > own(connection, user, after).number)
    return records.find_all(connection, statement)
