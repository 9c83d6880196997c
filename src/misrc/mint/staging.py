"""Stage: announce the job, then bring its inputs to the site. Doing it again goes on where it stopped.

Small inputs travel inside `open`, together with the wish to start: one round trip. Larger ones go by rsync while
they are hashed here; their manifest follows with `start`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import stat
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..job.errors import BadRequest, JobCancelled, MisrcError, Refused
from ..job.faults import reach
from ..job.manifest import Entry, digest_manifest, hash_descriptor, make_manifest, render_manifest
from ..job.spec import MAX_INLINE_BYTES, MAX_SPEC_BYTES, JobSpec, OpenRequest, render_open
from ..job.states import JobState
from ..wire.grammar import Command, Verb, render_command
from ..wire.refusals import Refusal
from ..wire.replies import Reply
from ..wire.rsync import put_argv, split_names
from .answers import INPUTS, RECEIPT, note_accepted, note_answer, tell_program
from .connection import Connection
from .jobs import InputFile, JobStore, MintJob
from .messages import say
from .transfer import RSYNC, run_rsync

_INLINE_FILES = 64


def stage(store: JobStore, connection: Connection, patience: int = 0) -> MintJob:
    """Bring the job to `staged` or beyond; a short job with small inputs may end within `patience` seconds."""
    reach("stage.enter")
    record = store.read()
    if record.cancel:
        raise JobCancelled(say("job.cancelled", job=record.job))
    if record.state is JobState.CREATED:
        small = _load_inline(store, record)
        if small is not None:
            _stage_inline(store, connection, record, small, patience)
        else:
            _stage_by_rsync(store, connection, record)
    reach("stage.leave")
    return store.read()


def announce(record: MintJob, manifest: str | None) -> JobSpec:
    """The spec of a job."""
    return JobSpec(record.job, record.site, record.program, record.arguments, record.files, record.bytes, manifest)


def ask_dry(connection: Connection, record: MintJob) -> Reply:
    """Whether the site would take the job; nothing is left there."""
    spec = announce(record, None)
    request = render_open(OpenRequest(spec, dry_run=True))
    return connection.retrying(lambda: connection.ask(render_command(Command(Verb.OPEN, record.job)), request))[0]


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
    reply, sections = connection.retrying(lambda: connection.ask(command, data, on_progress=tell_program(store)))
    if reply.state is not None and reply.state.final and RECEIPT not in sections:
        note_accepted(store, reply)
    else:
        note_answer(store, reply, sections)


def _stage_by_rsync(store: JobStore, connection: Connection, record: MintJob) -> None:
    request = render_open(OpenRequest(announce(record, None)))
    command = render_command(Command(Verb.OPEN, record.job))
    # Hashing begins while the connection is still being made.
    inputs = store.read_inputs()
    hashing = _Hashing(inputs)
    with _gathered(store.path / "sending", inputs) as folder:
        reply, _ = connection.retrying(lambda: connection.ask(command, request))
        if reply.state is not None and reply.state.started:
            note_accepted(store, reply)
            return
        connection.retrying(lambda: _put(store, connection, folder, inputs))
    store.write(INPUTS, hashing.result())
    store.advance(JobState.STAGED)


def _put(store: JobStore, connection: Connection, folder: str, inputs: Sequence[InputFile]) -> None:
    sizes = {item.name: item.size for item in inputs}
    total, before = sum(sizes.values()), 0
    try:
        for names in split_names(tuple(sizes)):
            argv = put_argv(RSYNC, connection.rsh(), store.job, names)
            tell = functools.partial(_tell, store, before, total)
            run_rsync(connection, argv, folder, tell)
            before += sum(sizes[name] for name in names)
    except Refused as refused:
        # A start that got through before a cut has closed `in/`: then the inputs are there.
        if refused.code != Refusal.STATE.value:
            raise


def _tell(store: JobStore, before: int, total: int, done: int) -> None:
    store.tell_progress(phase="stage", done=before + done, total=total)


class _Hashing:
    """Makes the manifest's document in a thread while rsync sends the files."""

    def __init__(self, inputs: Sequence[InputFile]) -> None:
        self._inputs = inputs
        self._document = b""
        self._error: MisrcError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._document = render_manifest(make_manifest(map(_hash_input, self._inputs)))
        except MisrcError as error:
            self._error = error
        except OSError as error:
            self._error = BadRequest(f"{error.filename}: {error.strerror}")

    def result(self) -> bytes:
        """The document, when all is hashed."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._document


def _hash_input(item: InputFile) -> Entry:
    descriptor = os.open(item.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BadRequest(say("input.missing", path=item.path, name=item.name))
        size, digest = hash_descriptor(descriptor, item.size)
    finally:
        os.close(descriptor)
    if size != item.size:
        raise BadRequest(say("input.changed", path=item.path, name=item.name))
    return Entry(item.name, size, digest)


@contextlib.contextmanager
def _gathered(private: Path, inputs: Sequence[InputFile]) -> Iterator[str]:
    """A folder in which all inputs lie under their right names.

    Their own, where they share one and have them; else a private one, filled with hard links. Where no link is
    possible (another file system, another owner) a copy stands in.
    """
    folders = {os.path.dirname(item.path) for item in inputs}
    if len(folders) == 1 and all(os.path.basename(i.path) == i.name and not os.path.islink(i.path) for i in inputs):
        yield folders.pop()
        return
    shutil.rmtree(private, ignore_errors=True)
    private.mkdir(mode=0o700)
    try:
        for item in inputs:
            path, named = os.path.realpath(item.path), private / item.name
            try:
                os.link(path, named)
            except OSError:
                shutil.copy2(path, named)
        yield str(private)
    finally:
        shutil.rmtree(private, ignore_errors=True)
