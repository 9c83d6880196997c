"""`misrc site retire`: no more jobs, no more key, and a record that stays. The id is never given again.

The record is written first and holds all that is needed to go on: killed at any point, the same call finishes the rest.
Not covered: a `misrc run` that begins in the very moment of the retirement; it ends with "no such site".
"""

from __future__ import annotations

import contextlib
import datetime
import json
import re
from dataclasses import dataclass
from pathlib import Path

from ...job.codec import CodecError, decode, dump_json, encode, parse_json
from ...job.errors import BadRequest, JobCancelled, MisrcError
from ...job.faults import reach
from ...job.interface import WEBAPI
from ...job.ledger import Checkpoint
from ...job.names import SITE_ID
from ...job.records import write_record
from ...job.states import JobState
from .. import keys
from ..display import Display
from ..jobs import JobStore, MintJob, latest_checkpoint, list_jobs
from ..link.api_token import token_place
from ..link.connection import Connection
from ..messages.catalog import say
from ..places import inventory_folder, jump_identity, next_identity, retired_folder
from ..run import cancel_job, resume
from .declarations import Declaration, find_declaration

RECORD = "record.json"
MAX_REASON = 2000


@dataclass(frozen=True)
class Retirement:
    """What stays of a site. `checkpoint` is the last word of its ledger; `heard` says whether it was asked for now.

    `left` are the jobs that a forced retirement could not end: nobody knows how they ended, or whether they did.
    """

    site: str
    day: str
    reason: str
    checkpoint: Checkpoint | None
    heard: bool
    fingerprints: tuple[str, ...]
    identity: str
    declaration: str
    jobs: int
    left: tuple[str, ...] = ()


def retire_site(site: str, inventory: str | None, reason: str, force: bool, as_json: bool) -> int:
    """`misrc site retire`."""
    if not re.fullmatch(SITE_ID, site, re.ASCII):
        raise BadRequest(say("add.id", site=site))
    if len(reason) > MAX_REASON:
        raise BadRequest(say("option.value", option="--reason", why=f"> {MAX_REASON}"))
    folder = retired_folder(inventory_folder(inventory)) / site
    retirement = _load(folder)
    if retirement is None:
        declaration = find_declaration(site, inventory)
        left = _end_jobs(declaration, force)
        retirement = _make_record(declaration, reason, left)
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder, RECORD, dump_json(encode(retirement)) + b"\n")
        reach("retire.recorded")
    _remove(folder, retirement)
    _tell(folder, retirement, as_json)
    return 0


def _end_jobs(declaration: Declaration, force: bool) -> tuple[str, ...]:
    """Nothing should be left that needs the key; by force, the jobs that could not be ended are named."""
    unfinished = _unfinished(declaration.site.id)
    if not unfinished:
        return ()
    if not force:
        raise BadRequest(_name_jobs(declaration, unfinished))
    for record in unfinished:
        store, display = JobStore(record.job), Display(quiet=True)
        with contextlib.suppress(JobCancelled, MisrcError):
            cancel_job(store, declaration.site, display)
        with contextlib.suppress(MisrcError):
            resume(store, display)
    return tuple(record.job for record in _unfinished(declaration.site.id))


def _unfinished(site: str) -> list[MintJob]:
    return [record for record in list_jobs() if record.site == site and record.state is not JobState.CLOSED]


def _name_jobs(declaration: Declaration, records: list[MintJob]) -> str:
    named = ", ".join(f"{record.job} ({record.state.value})" for record in records[:20])
    return say("retire.jobs", site=declaration.site.id, count=len(records), jobs=named)


def _make_record(declaration: Declaration, reason: str, left: tuple[str, ...]) -> Retirement:
    identity = declaration.identity_place()
    if declaration.site.method == WEBAPI:
        # What opens the way there is the token; it goes with the site, and is revoked at the server.
        identity = token_place(declaration.site)
        privates = []
    else:
        privates = [path for path in (identity, next_identity(identity)) if path.is_file()]
    checkpoint = _ask_checkpoint(declaration)
    known = latest_checkpoint(declaration.site.id)
    return Retirement(
        declaration.site.id,
        datetime.date.today().isoformat(),
        reason,
        checkpoint or known,
        checkpoint is not None,
        tuple(keys.fingerprint(keys.read_public(path)) for path in privates),
        str(identity),
        str(declaration.path),
        sum(record.site == declaration.site.id for record in list_jobs()),
        left,
    )


def _ask_checkpoint(declaration: Declaration) -> Checkpoint | None:
    """From the site itself; None where it cannot be reached (any more), which must not keep its key alive."""
    if declaration.site.method == WEBAPI:
        return None
    try:
        connection = Connection.make(declaration.site)
    except BadRequest:
        return None
    try:
        return connection.ask("hello", seconds=60)[0].checkpoint
    except MisrcError:
        return None
    finally:
        connection.close()


def _remove(folder: Path, retirement: Retirement) -> None:
    """The declaration and the public key move to the record's folder; every private key is destroyed."""
    declaration, identity = Path(retirement.declaration), Path(retirement.identity)
    with keys.locked(identity):
        _move(declaration, folder / f"{retirement.site}.yml")
        reach("retire.moved")
        _move(keys.public_file(identity), folder / f"{retirement.site}.pub")
        for private in (identity, next_identity(identity), jump_identity(identity)):
            keys.destroy(private)
            reach("retire.destroyed")
        identity.with_name(f"{identity.name}.rotation.json").unlink(missing_ok=True)


def _move(source: Path, target: Path) -> None:
    """Across file systems too: whole at its new place before it leaves the old one."""
    with contextlib.suppress(FileNotFoundError):
        _write(target.parent, target.name, source.read_bytes())
        source.unlink()


def _write(folder: Path, name: str, data: bytes) -> None:
    with keys.folder(folder) as descriptor:
        write_record(descriptor, name, data)


def _load(folder: Path) -> Retirement | None:
    try:
        return decode(Retirement, parse_json((folder / RECORD).read_bytes()))
    except FileNotFoundError:
        return None
    except CodecError as error:
        raise MisrcError(f"{folder / RECORD}: {error}") from None


def _tell(folder: Path, retirement: Retirement, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"folder": str(folder), **encode(retirement)}, ensure_ascii=False))
        return
    checkpoint = retirement.checkpoint
    seq, line = (checkpoint.seq, checkpoint.hash) if checkpoint else ("-", "-")
    print(say("retire.done", site=retirement.site, folder=folder))
    print(say("retire.checkpoint" if retirement.heard else "retire.checkpoint_old", seq=seq, hash=line))
    if retirement.left:
        print(say("retire.left", count=len(retirement.left), jobs=", ".join(retirement.left[:20])))
    print(say("retire.admin", site=retirement.site, fingerprints=", ".join(retirement.fingerprints)))
