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
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..job.errors import BadRequest, JobCancelled, MisrcError, Refused
from ..job.faults import reach
from ..job.manifest import Entry, Manifest, digest_manifest, hash_stream, make_manifest, render_manifest
from ..job.spec import MAX_INLINE_BYTES, MAX_SPEC_BYTES, JobSpec, OpenRequest, render_open
from ..job.states import JobState
from ..wire.grammar import Command, Verb, render_command
from ..wire.refusals import Refusal
from ..wire.replies import Reply
from ..wire.rsync import put_argv
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
    hashing = _Hashing(store.read_inputs())
    with _listed(store) as listed:
        reply, _ = connection.retrying(lambda: connection.ask(command, request))
        if reply.state is not None and reply.state.started:
            note_accepted(store, reply)
            return
        connection.retrying(lambda: _put(store, connection, record, listed))
    store.write(INPUTS, render_manifest(hashing.result()))
    store.advance(JobState.STAGED)


def _put(store: JobStore, connection: Connection, record: MintJob, listed: str) -> None:
    argv = put_argv(RSYNC, connection.rsh(), record.job, listed)
    try:
        run_rsync(connection, argv, lambda done: store.tell_progress(phase="stage", done=done, total=record.bytes))
    except Refused as refused:
        # A start that got through before a cut has closed `in/`: then the inputs are there.
        if refused.code != Refusal.STATE.value:
            raise


class _Hashing:
    """Hashes the inputs in a thread while rsync sends them."""

    def __init__(self, inputs: Sequence[InputFile]) -> None:
        self._inputs = inputs
        self._entries: list[Entry] = []
        self._error: MisrcError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for item in self._inputs:
                with _open_input(item).open("rb", buffering=0) as file:
                    size, digest = hash_stream(file, item.size)
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
def _listed(store: JobStore) -> Iterator[str]:
    """A list for rsync of all inputs under their right names, which hard links give where the files do not have them.

    Where no link is possible (another file system, another owner) a copy stands in.
    """
    folder = store.path / "sending"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    names = store.path / "sending.list"
    listed = []
    for item in store.read_inputs():
        if os.path.basename(item.path) == item.name and not os.path.islink(item.path):
            listed.append(item.path)
            continue
        path, named = os.path.realpath(item.path), folder / item.name
        try:
            os.link(path, named)
        except OSError:
            shutil.copy2(path, named)
        listed.append(str(named))
    names.write_bytes(b"".join(os.fsencode(path) + b"\0" for path in listed))
    try:
        yield str(names)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        names.unlink(missing_ok=True)
