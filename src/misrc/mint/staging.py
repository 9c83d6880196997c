"""Stage: announce the job, then bring its inputs to the site. Doing it again goes on where it stopped.

Small inputs travel along, together with the wish to start: one round trip. Larger ones follow the announcement, and
their manifest with `start`; they are hashed here meanwhile, unless a signature, or the way there, needs that first.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from ..job.errors import BadRequest, JobCancelled, Refused
from ..job.faults import reach
from ..job.manifest import Entry, digest_manifest, make_manifest, render_manifest
from ..job.spec import MAX_INLINE_BYTES, MAX_SPEC_BYTES, OpenRequest, render_open
from ..job.states import JobState
from ..wire.refusals import Refusal
from ..wire.replies import Reply
from . import announcement
from .announcement import announce
from .answers import INPUTS, note_accepted, note_answer, tell_program, tells_end
from .hashing import Hashing
from .jobs import InputFile, JobStore, MintJob
from .link.link import Link
from .messages.catalog import say

_INLINE_FILES = 64


def stage(store: JobStore, link: Link, patience: int = 0) -> MintJob:
    """Bring the job to `staged` or beyond; a short job with small inputs may end within `patience` seconds."""
    reach("stage.enter")
    record = store.read()
    if record.cancel:
        raise JobCancelled(say("job.cancelled", job=record.job))
    if record.state is JobState.CREATED:
        try:
            _send(store, link, record, patience)
        except Refused as refused:
            if refused.code == Refusal.STALE.value:
                # The next call signs anew.
                store.drop(announcement.FILE)
            raise
    reach("stage.leave")
    return store.read()


def _send(store: JobStore, link: Link, record: MintJob, patience: int) -> None:
    small = _load_inline(store, record)
    if small is not None:
        _stage_inline(store, link, record, small, patience)
    else:
        _stage_files(store, link, record)


def ask_dry(link: Link, record: MintJob) -> Reply:
    """Whether the site would take the job; nothing is left there."""
    told = announce(link.site, record, None)
    request = OpenRequest(told.spec, dry_run=True, signature=told.signature)
    return link.retrying(lambda: link.announce(request, {}, None))[0]


def _load_inline(store: JobStore, record: MintJob) -> list[tuple[Entry, bytes]] | None:
    """The inputs with their bytes, where they are small enough to come along."""
    if record.files > _INLINE_FILES or record.bytes > MAX_INLINE_BYTES:
        return None
    found = []
    for item in store.read_inputs():
        data = _open_input(item).read_bytes()
        if len(data) != item.size:
            raise BadRequest(say("input.changed", path=item.path, name=item.name))
        found.append((Entry(item.name, len(data), hashlib.sha256(data).hexdigest()), data))
    return sorted(found, key=lambda pair: pair[0].name.encode())


def _open_input(item: InputFile) -> Path:
    path = Path(item.path)
    if not path.is_file():
        raise BadRequest(say("input.missing", path=item.path, name=item.name))
    return path


def _stage_inline(
    store: JobStore, link: Link, record: MintJob, small: list[tuple[Entry, bytes]], patience: int
) -> None:
    manifest = make_manifest(entry for entry, _ in small)
    store.write(INPUTS, render_manifest(manifest))
    told = announce(link.site, record, digest_manifest(manifest), store)
    request = OpenRequest(told.spec, start=True, inline=manifest, wait=patience, signature=told.signature)
    if len(render_open(request)) > MAX_SPEC_BYTES:
        _stage_files(store, link, record)
        return
    data = {entry.name: content for entry, content in small}
    reply, sections = link.retrying(lambda: link.announce(request, data, tell_program(store)))
    if reply.state is not None and reply.state.final and not tells_end(sections):
        note_accepted(store, reply)
    else:
        note_answer(store, reply, sections)


def _stage_files(store: JobStore, link: Link, record: MintJob) -> None:
    # Hashing begins while the connection is still being made.
    inputs = store.read_inputs()
    hashing = Hashing(inputs)
    digest = digest_manifest(hashing.result()) if link.hashes_first or link.site.signed else None
    told = announce(link.site, record, digest, store)
    request = OpenRequest(told.spec, signature=told.signature)
    reply, _ = link.retrying(lambda: link.announce(request, {}, None))
    if reply.state is not None and reply.state.started:
        note_accepted(store, reply)
        return
    tell = functools.partial(_tell, store, record.bytes)
    link.put(store.job, inputs, hashing, store.path / "sending", tell)
    store.write(INPUTS, render_manifest(hashing.result()))
    store.advance(JobState.STAGED)


def _tell(store: JobStore, total: int, done: int) -> None:
    store.tell_progress(phase="stage", done=done, total=total)
