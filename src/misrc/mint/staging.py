"""Stage: announce the job, then bring its inputs to the site. Doing it again goes on where it stopped.

Small inputs travel inside `open`, together with the wish to start: one round trip. Larger ones go by rsync while
they are hashed here; their manifest follows with `start`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import threading
from pathlib import Path

from ..job.errors import BadRequest, MisrcError, Refused
from ..job.faults import reach
from ..job.manifest import Entry, Manifest, digest_manifest, hash_stream, make_manifest, render_manifest
from ..job.spec import MAX_INLINE_BYTES, MAX_SPEC_BYTES, JobSpec, OpenRequest, render_open
from ..job.states import JobState
from ..wire.grammar import Command, Verb, render_command
from ..wire.refusals import Refusal
from ..wire.replies import Reply
from ..wire.rsync import put_argv
from .answers import INPUTS, note_answer
from .connection import Connection
from .jobs import InputFile, JobStore, MintJob
from .messages import say
from .transfer import RSYNC, run_rsync

_INLINE_FILES = 64


def stage(store: JobStore, connection: Connection, patience: int = 0) -> MintJob:
    """Bring the job to `staged` or beyond; a short job with small inputs may end within `patience` seconds."""
    reach("stage.enter")
    record = store.read()
    if record.state is JobState.CREATED:
        small = _load_inline(record)
        if small is not None:
            _stage_inline(store, connection, record, small, patience)
        else:
            _stage_by_rsync(store, connection, record)
    reach("stage.leave")
    return store.read()


def announce(record: MintJob, manifest: str | None) -> JobSpec:
    """The spec of a job."""
    size = sum(item.size for item in record.inputs)
    return JobSpec(record.job, record.site, record.program, record.arguments, len(record.inputs), size, manifest)


def ask_dry(connection: Connection, record: MintJob) -> Reply:
    """Whether the site would take the job; nothing is left there."""
    spec = announce(record, None)
    request = render_open(OpenRequest(spec, dry_run=True))
    return connection.retrying(lambda: connection.ask(render_command(Command(Verb.OPEN, record.job)), request))[0]


def _load_inline(record: MintJob) -> list[tuple[Entry, bytes]] | None:
    """The inputs with their bytes, where they are small enough to come along."""
    if len(record.inputs) > _INLINE_FILES or sum(item.size for item in record.inputs) > MAX_INLINE_BYTES:
        return None
    found = []
    for item in record.inputs:
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
    store: JobStore, connection: Connection, record: MintJob, small: list[tuple[Entry, bytes]], patience: int
) -> None:
    manifest = make_manifest(entry for entry, _ in small)
    store.write(INPUTS, render_manifest(manifest))
    spec = announce(record, digest_manifest(manifest))
    line = render_open(OpenRequest(spec, start=True, inline=manifest, wait=patience))
    if len(line) > MAX_SPEC_BYTES:
        _stage_by_rsync(store, connection, record)
        return
    data = line + b"".join(content for _, content in small)
    command = render_command(Command(Verb.OPEN, record.job))
    reply, sections = connection.retrying(lambda: connection.ask(command, data))
    note_answer(store, reply, sections)


def _stage_by_rsync(store: JobStore, connection: Connection, record: MintJob) -> None:
    request = render_open(OpenRequest(announce(record, None)))
    command = render_command(Command(Verb.OPEN, record.job))
    reply, _ = connection.retrying(lambda: connection.ask(command, request))
    if reply.state is not None and reply.state.started:
        store.advance(reply.state, checkpoint=reply.checkpoint)
        return
    hashing = _Hashing(record)
    with _sources(store, record) as batches:
        for sources, listed in batches:
            connection.retrying(lambda s=sources, f=listed: _put(store, connection, record, s, f))  # type: ignore[misc]
    store.write(INPUTS, render_manifest(hashing.result()))
    store.advance(JobState.STAGED)


def _put(store: JobStore, connection: Connection, record: MintJob, sources: list[str], listed: str | None) -> None:
    total = sum(item.size for item in record.inputs)
    argv = put_argv(RSYNC, connection.rsh(), record.job, sources, listed)
    try:
        run_rsync(connection, argv, lambda done: store.tell_progress("stage", done, total))
    except Refused as refused:
        # A start that got through before a cut has closed `in/`: then the inputs are there.
        if refused.code != Refusal.STATE.value:
            raise


class _Hashing:
    """Hashes the inputs in a thread while rsync sends them."""

    def __init__(self, record: MintJob) -> None:
        self._record = record
        self._entries: list[Entry] = []
        self._error: MisrcError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for item in self._record.inputs:
                with _open_input(item).open("rb", buffering=0) as file:
                    size, digest = hash_stream(file)  # type: ignore[arg-type]
                if size != item.size:
                    raise BadRequest(say("input.changed", path=item.path, name=item.name))
                self._entries.append(Entry(item.name, size, digest))
        except MisrcError as error:
            self._error = error
        except OSError as error:
            self._error = BadRequest(f"{error.filename}: {error.strerror}")

    def result(self) -> Manifest:
        """The manifest, when all is hashed."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return make_manifest(self._entries)


@contextlib.contextmanager
def _sources(store: JobStore, record: MintJob):  # type: ignore[no-untyped-def]
    """What rsync sends: a list of all files that bear their right name, made so by hard links where they do not.

    A file that can get its name neither way (another file system) is sent alone, under its new name.
    """
    folder = store.path / "sending"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    listed: list[str] = []
    alone: list[list[str]] = []
    for item in record.inputs:
        path = os.path.realpath(item.path)
        if os.path.basename(path) == item.name:
            listed.append(path)
            continue
        link = folder / item.name
        try:
            os.link(path, link)
            listed.append(str(link))
        except OSError:
            alone.append([path, item.name])
    batches: list[tuple[list[str], str | None]] = [([path, name], None) for path, name in alone]
    if listed:
        names = store.path / "sending.list"
        names.write_bytes(b"".join(os.fsencode(path) + b"\0" for path in listed))
        batches.append(([], str(names)))
    try:
        yield batches
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        (store.path / "sending.list").unlink(missing_ok=True)
