"""A job as the store holds it, and the one way to change it.

Every change goes through `change` or `move`: both let the version grow and notify whoever waits; `move` alone sets the
state, along the transition table of `job/states.py`.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Connection, Select, bindparam, delete, insert, select, update

from ..job.codec import decode, dump_json, encode, parse_json
from ..job.states import JobState, Outcome, check_transition
from ..wire.legacy_files import MISSING_OUTPUT
from ..wire.legacy_progress import Delivery
from ..wire.replies import Progress
from .database import Transaction
from .notifier import job_topic, site_topic
from .schema import FILES, GONE, JOBS

INPUT, RESULT = "in", "out"
MAX_REASON = 2000
OLD_AGENT = "old:"  # how the holder's name begins where a client of the predecessor has taken a job


@dataclass(frozen=True)
class Record:
    """One job. Times are the server's clock; `old` is set where a client of the predecessor registered it."""

    number: int
    job: str
    owner: str
    site: str
    program: str
    spec: str
    signature: str | None
    files: int
    bytes: int
    manifest: str | None
    state: JobState
    outcome: Outcome | None
    reason: str | None
    since: float
    created: float
    version: int
    released: float | None
    cancel: bool
    agent: str | None
    fence: int
    lease: float | None
    confirmed: bool
    progress: Progress | None
    log_bytes: int
    ending: Outcome | None
    ending_reason: str | None
    ending_since: float | None
    out_manifest: str | None
    receipt: str | None
    receipt_signature: str | None
    delivery: Delivery | None
    old: str | None
    purged: bool

    @property
    def waiting(self) -> bool:
        """Whether a site may take it now."""
        return self.state is JobState.STAGED and self.agent is None and not self.cancel

    def silent_since(self, now: float) -> float | None:
        """Since when the holder of a job that may be running has not been heard; None where that does not apply."""
        silent = self.confirmed and not self.state.final and self.lease is not None and self.lease < now
        return self.lease if silent else None


@dataclass(frozen=True)
class FileRecord:
    """One file of a job. `content` is set where it lies in the database; `number` names it in the spool."""

    job: str
    side: str
    number: int
    name: str
    size: int
    sha256: str
    whole: bool
    content: bytes | None
    media: str | None

    @property
    def types(self) -> tuple[str, str] | None:
        """The predecessor's two words, where a client of it sent the file."""
        if self.media is None:
            return None
        first, second = parse_json(self.media.encode())
        return str(first), str(second)

    @property
    def failed(self) -> bool:
        """Whether this is the predecessor's word that there is no such result, and why."""
        return self.types is not None and self.types[0] == MISSING_OUTPUT


FILE_COLUMNS = tuple(f.name for f in dataclasses.fields(FileRecord))
_PLAIN = {f.name for f in dataclasses.fields(Record)}


def _record(row: Any) -> Record:
    values = dict(row._mapping)
    values["state"] = JobState(values["state"])
    values["cancel"], values["confirmed"] = bool(values["cancel"]), bool(values["confirmed"])
    values["purged"] = bool(values["purged"])
    values["delivery"] = None if values["delivery"] is None else Delivery(values["delivery"])
    for key in ("outcome", "ending"):
        values[key] = None if values[key] is None else Outcome(values[key])
    if values["progress"] is not None:
        values["progress"] = decode(Progress, parse_json(values["progress"].encode()))
    return Record(**values)


def _column(value: Any) -> Any:
    if isinstance(value, Progress):
        return dump_json(encode(value)).decode()
    if isinstance(value, (JobState, Outcome, Delivery)):
        return value.value
    return int(value) if isinstance(value, bool) else value


# Made once: to build a statement costs more than to run it.
_FIND = select(JOBS).where(JOBS.c.job == bindparam("id"))
_FIND_AND_LOCK = _FIND.with_for_update()
_ADD = insert(JOBS).returning(*JOBS.c)
_CHANGE = update(JOBS).where(JOBS.c.job == bindparam("id"))
_BURIED = select(GONE.c.owner).where(GONE.c.job == bindparam("id"))


def find(connection: Connection, job: str, lock: bool = False) -> Record | None:
    """The job with this id; `lock` keeps other processes from changing it until the transaction ends."""
    row = connection.execute(_FIND_AND_LOCK if lock else _FIND, {"id": job}).first()
    return None if row is None else _record(row)


def find_all(connection: Connection, statement: Select[Any], values: Mapping[str, Any] | None = None) -> list[Record]:
    """The jobs that a `select(JOBS)…` names, with the values of its parameters."""
    return [_record(row) for row in connection.execute(statement, values or {})]


def add(tx: Transaction, values: dict[str, Any]) -> Record:
    """A new job; what is not given is empty."""
    row = {
        "state": JobState.CREATED,
        "since": tx.now,
        "created": tx.now,
        "version": 1,
        "cancel": False,
        "fence": 0,
        "confirmed": False,
        "log_bytes": 0,
        "purged": False,
        **values,
    }
    return _record(tx.connection.execute(_ADD, {key: _column(value) for key, value in row.items()}).one())


def bury(tx: Transaction, record: Record) -> None:
    """Delete a job with all that is known of it; its id is kept, so that it is never given again."""
    tx.connection.execute(insert(GONE).values(job=record.job, owner=record.owner, deleted=tx.now))
    drop_files(tx, record.job)
    tx.connection.execute(delete(JOBS).where(JOBS.c.job == record.job))
    tx.notify(job_topic(record.job))


def purge(tx: Transaction, closed: Sequence[str]) -> None:
    """Forget the files of closed jobs: nobody can ask for them any more."""
    tx.connection.execute(delete(FILES).where(FILES.c.job.in_(closed)))
    tx.connection.execute(update(JOBS).where(JOBS.c.job.in_(closed)).values(purged=1))


def buried_by(connection: Connection, job: str) -> str | None:
    """Whose job had this id, where its record was deleted."""
    found = connection.execute(_BURIED, {"id": job}).scalar()
    return None if found is None else str(found)


def change(tx: Transaction, record: Record, *, quiet: bool = False, **values: Any) -> Record:
    """The job with other values and, unless `quiet`, a higher version. The state is `move`'s business alone."""
    if "state" in values or not set(values) <= _PLAIN:
        raise TypeError("a state changes by move(), and only known columns change")
    return _write(tx, record, quiet, values)


def move(tx: Transaction, record: Record, state: JobState, **values: Any) -> Record:
    """The job in a later state, through all that lie between; raises TransitionError where there is no way."""
    old = record.state
    for step in _way(old, state):
        check_transition(old, step)
        old = step
    # What is between being taken and being closed is news for the workflow alone.
    if JobState.STAGED in (record.state, state) or state is JobState.CLOSED:
        tx.notify(site_topic(record.site))
    return _write(tx, record, False, {"state": state, "since": tx.now, **values})


def _way(old: JobState, new: JobState) -> list[JobState]:
    """The states that a job passes: an agent may tell of `running` without having told of `queued`."""
    if new in (JobState.ENDED, old) or new.order < old.order:
        return [new]
    return [state for state in JobState if old.order < state.order <= new.order]


def _write(tx: Transaction, record: Record, quiet: bool, values: dict[str, Any]) -> Record:
    if not quiet:
        values = {**values, "version": record.version + 1}
        tx.notify(job_topic(record.job))
    if not values:
        return record
    tx.connection.execute(_CHANGE, {"id": record.job, **{key: _column(value) for key, value in values.items()}})
    return dataclasses.replace(record, **values)


def end(tx: Transaction, record: Record, outcome: Outcome, reason: str | None = None, **values: Any) -> Record:
    """The job's end: the outcome is set once, together with the state."""
    reason = None if not reason else reason[:MAX_REASON]
    return move(tx, record, JobState.ENDED, outcome=outcome, reason=reason, **values)


# -- files -------------------------------------------------------------------------------------------------------------


def _list_files(*columns: Column[Any]) -> Select[Any]:
    of_job = (FILES.c.job == bindparam("id"), FILES.c.side == bindparam("side"))
    return select(*columns).where(*of_job).order_by(FILES.c.name)


_LIST = {
    True: _list_files(*FILES.c),
    False: _list_files(*(column for column in FILES.c if column.name != "content")),
}


def list_files(connection: Connection, job: str, side: str, content: bool = False) -> list[FileRecord]:
    """The job's files of one side, by name; their bytes only where `content` is wished."""
    return [_file(row) for row in connection.execute(_LIST[content], {"id": job, "side": side})]


def find_file(connection: Connection, job: str, side: str, name: str) -> FileRecord | None:
    """One file of a job."""
    statement = select(FILES).where(FILES.c.job == job, FILES.c.side == side, FILES.c.name == name)
    row = connection.execute(statement).first()
    return None if row is None else _file(row)


def _file(row: Any) -> FileRecord:
    values = {"content": None, **row._mapping}
    return FileRecord(**{**values, "whole": bool(values["whole"])})


def add_files(tx: Transaction, files: Sequence[FileRecord]) -> None:
    """New files of a job."""
    if files:
        tx.connection.execute(insert(FILES), [_column_values(file) for file in files])


def _column_values(file: FileRecord) -> dict[str, Any]:
    return {f.name: _column(getattr(file, f.name)) for f in dataclasses.fields(file)}


def change_file(tx: Transaction, file: FileRecord, **values: Any) -> None:
    """The file with other values."""
    same = (FILES.c.job == file.job, FILES.c.side == file.side, FILES.c.number == file.number)
    tx.connection.execute(update(FILES).where(*same).values({key: _column(value) for key, value in values.items()}))


def drop_files(tx: Transaction, job: str, side: str | None = None, names: Sequence[str] | None = None) -> None:
    """Forget files: all of a job, of one side, or those named."""
    statement = delete(FILES).where(FILES.c.job == job)
    if side is not None:
        statement = statement.where(FILES.c.side == side)
    if names is not None:
        statement = statement.where(FILES.c.name.in_(names))
    tx.connection.execute(statement)


def new_number() -> int:
    """A number that no file of the job has or had, so that nothing left behind in the spool is ever taken up again."""
    return secrets.randbits(62)
