"""A copy of the job store that belongs together, taken while the server runs, and the way back.

The database is copied first, as one view of one moment; then every file that this view counts as whole. A job that was
closed in between has taken its files away: then the view is taken again, and what is there already stays. Whole files
never change, so they are linked where the disk allows it; what still grows (unfinished uploads, logs) is copied.

What a backup does not know: whatever happened after it. A token that was revoked since then counts again, and a job
that a site took since then is offered again; the site's own ledger then keeps it from starting twice.

The copy of the database is a SQLite file, also where the store is on PostgreSQL: a backup of either can be restored on
either, which is also the way from one host to several.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from ..declare.server import Server
from ..job.codec import CodecError, decode, dump_json, encode, parse_json
from ..job.errors import BadRequest
from ..job.records import PRIVATE_FILE, PRIVATE_FOLDER
from . import rows
from .spool import LOG, Spool

STORE = "store.db"
FILES = "spool"
NOTE = "backup.json"
PARTIAL = ".partial"
MAX_TRIES = 20
_BLOCK = 1 << 20
_STAMP = "%Y-%m-%dT%H%M%SZ"


@dataclass(frozen=True)
class Note:
    """What a backup says of itself. `time` is UTC seconds, of the view of the database."""

    time: float
    sha256: str
    jobs: int
    files: int
    bytes: int


@dataclass(frozen=True)
class _Held:
    """A file that the view knows. `whole` ones have `size` bytes and do not change any more."""

    job: str
    side: str
    number: int
    size: int
    whole: bool


def back_up(server: Server, folder: Path, keep: int) -> Path:
    """Write one backup below `folder`, and remove older ones beyond `keep`; where it lies."""
    source = _database_file(server)
    if source is not None and not source.is_file():
        raise BadRequest(f"{source}: there is no database to back up")
    folder.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
    for left in folder.glob(f"*{PARTIAL}"):
        shutil.rmtree(left)
    target = folder / time.strftime(_STAMP, time.gmtime())
    if target.exists():
        raise BadRequest(f"{target} is there already")
    partial = folder / (target.name + PARTIAL)
    partial.mkdir(PRIVATE_FOLDER)
    try:
        note = _copy_all(server, Spool(Path(server.spool), 0), partial)
        _write(partial / NOTE, dump_json(encode(note)) + b"\n")
        _flush(partial)
        partial.rename(target)
        _flush(folder)
    except OSError as error:
        raise BadRequest(f"the backup is not complete: {error.strerror}; nothing of it counts") from None
    except sqlite3.Error as error:
        raise BadRequest(f"{source or 'the database'}: {error}") from None
    for old in list_backups(folder)[: -max(1, keep)]:
        shutil.rmtree(old)
    return target


def restore(server: Server, backup: Path) -> Note:
    """Put a backup where the declaration says; refused where anything is there, or where the backup is not whole.

    The server must not run: the refusal of what is there takes care of that.
    """
    target, spool = _database_file(server), Path(server.spool)
    if target is None:
        rows.check_empty(server.database)
    else:
        for path in (target, Path(f"{target}-wal"), Path(f"{target}-journal")):
            if path.exists():
                raise BadRequest(f"{path} is there: stop the server and move its database and spool away first")
    if spool.exists() and any(spool.iterdir()):
        raise BadRequest(f"{spool} is not empty: stop the server and move its database and spool away first")
    note = check(backup)
    try:
        Spool(spool, 0).prepare()
        held = list(_read_held(backup / STORE))
        for file in held:
            _take(file, Spool(backup / FILES, 0), Spool(spool, 0))
        # Last, so that a restore which was cut off leaves no database that a server would start with.
        if target is None:
            _fill(server.database, backup / STORE)
        else:
            _place(backup / STORE, target)
    except OSError as error:
        raise BadRequest(f"the restore is not complete: {error.strerror}") from None
    return note


def _place(store: Path, target: Path) -> None:
    """The database of a store on SQLite, whole or not at all."""
    staged = Path(f"{target}.restoring")
    shutil.copyfile(store, staged)
    staged.chmod(PRIVATE_FILE)
    _flush(staged)
    staged.rename(target)
    _flush(target.parent)


def _fill(url: str, store: Path) -> None:
    """The same for PostgreSQL; the backup itself is never written to."""
    with tempfile.TemporaryDirectory(prefix="misrc-restore-") as folder:
        copy = Path(folder) / STORE
        shutil.copyfile(store, copy)
        rows.copy_in(copy, url)


def check(backup: Path) -> Note:
    """That a backup is whole: its database by its hash, every file by its size; BadRequest says what is wrong."""
    try:
        note = decode(Note, parse_json((backup / NOTE).read_bytes()))
    except (OSError, CodecError) as error:
        raise BadRequest(f"{backup} is not a backup: {getattr(error, 'strerror', None) or error}") from None
    if _hash(backup / STORE) != note.sha256:
        raise BadRequest(f"{backup / STORE} is not what was backed up")
    spool = Spool(backup / FILES, 0)
    for file in _read_held(backup / STORE):
        path = spool.path(file.job, file.side, file.number)
        if file.whole and spool.size(path) != file.size:
            raise BadRequest(f"{path} is missing or damaged")
    return note


def list_backups(folder: Path) -> list[Path]:
    """The complete backups below a folder, the oldest first."""
    return sorted(path.parent for path in folder.glob(f"*/{NOTE}") if not path.parent.name.endswith(PARTIAL))


def _database_file(server: Server) -> Path | None:
    """Where the store is a file; None for PostgreSQL."""
    if not server.database.startswith("sqlite:///"):
        return None
    return Path(server.database.removeprefix("sqlite:///"))


def _copy_all(server: Server, spool: Spool, partial: Path) -> Note:
    """Views of the database until one holds together with its files."""
    taken = Spool(partial / FILES, 0)
    taken.prepare()
    for _ in range(MAX_TRIES):
        moment = time.time()
        _copy_database(server, partial / STORE)
        held = list(_read_held(partial / STORE))
        # All that can be had, also of a view that does not hold: the next one then lacks only what is younger.
        if not all([_take(file, spool, taken) for file in held]):
            continue
        _drop_others(taken, held)
        jobs, size = len({file.job for file in held}), sum(file.size for file in held)
        return Note(moment, _hash(partial / STORE), jobs, len(held), size)
    raise BadRequest("jobs are closed faster than they can be backed up; try again")


def _copy_database(server: Server, target: Path) -> None:
    target.unlink(missing_ok=True)
    source = _database_file(server)
    if source is None:
        rows.copy_out(server.database, target)
        _flush(target)
        return
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE))
    with closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as live, closing(sqlite3.connect(target)) as copy:
        live.execute("PRAGMA busy_timeout=10000")
        live.backup(copy)
        # One file without companions, whatever the journal of the original is.
        copy.execute("PRAGMA journal_mode=DELETE")
    _flush(target)


def _read_held(store: Path) -> Iterator[_Held]:
    """Every file in the spool that the copied database counts on, and the jobs' logs; not those of closed jobs."""
    with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as connection:
        yield from (
            _Held(job, side, number, size, bool(whole))
            for job, side, number, size, whole in connection.execute(
                "SELECT f.job, f.side, f.number, f.size, f.whole FROM files f JOIN jobs j ON j.job = f.job"
                " WHERE f.content IS NULL AND j.state <> 'closed'"
            )
        )
        yield from (
            _Held(job, LOG, 0, size, False)
            for job, size in connection.execute(
                "SELECT job, log_bytes FROM jobs WHERE log_bytes > 0 AND state <> 'closed'"
            )
        )


def _take(file: _Held, source: Spool, target: Spool) -> bool:
    """One file from one spool to another; whether all that the view counts on is there."""
    origin, place = (spool.path(file.job, file.side, file.number) for spool in (source, target))
    if file.whole and place.exists():
        return True
    place.parent.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
    try:
        if file.whole:
            with suppress(OSError):
                os.link(origin, place, follow_symlinks=False)
                return True
        shutil.copyfile(origin, place, follow_symlinks=False)
        place.chmod(PRIVATE_FILE)
        _flush(place)
    except FileNotFoundError:
        # Of an upload that has not begun there is nothing yet.
        return not (file.whole and file.size)
    return True


def _drop_others(taken: Spool, held: list[_Held]) -> None:
    """What an earlier view knew and the last one does not."""
    known = {taken.path(file.job, file.side, file.number) for file in held}
    for path in taken.root.glob("*/*/*"):
        if path not in known:
            path.unlink()


def _hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadRequest(f"{path}: {error.strerror}") from None


def _write(path: Path, data: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
