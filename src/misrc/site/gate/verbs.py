"""What each verb does, as the gate hears and answers it; what is done stands in `operations`.

Every verb is idempotent and keyed by the job id; refusing leaves no trace but the record.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
from typing import BinaryIO, Dict, Iterator, List, Optional, Tuple

from ...job.codec import CodecError
from ...job.faults import reach
from ...job.manifest import MAX_DOCUMENT_BYTES, Manifest, render_manifest
from ...job.names import NameRefused
from ...job.spec import MAX_INLINE_BYTES, MAX_SPEC_BYTES, JobSpec, OpenRequest, parse_open
from ...job.states import JobState
from ...wire.grammar import Command
from ...wire.refusals import Denied, Refusal
from ...wire.replies import FILE_PREFIX, Reply, Section, render_reply
from .. import files, jobs
from ..jobs import JobFolder, JobRecord
from ..operations import Operations
from ..runner.observation import Watch, read_log, read_progress


class Session:
    """One request of one connection."""

    exit_status = 0

    def __init__(self, operations: Operations, stdin: BinaryIO, stdout: BinaryIO) -> None:
        self.operations = operations
        self.policy = operations.policy
        self.root = operations.root
        self.stdin = stdin
        self.stdout = stdout

    def run(self, command: Command) -> None:
        """Carry out a legal command and answer it."""
        reach(f"verb.{command.verb.value}.enter")
        try:
            getattr(self, "_" + command.verb.value)(command)
        except FileNotFoundError:
            # Somebody closed the job, and the site keeps nothing, while this connection still looked at it.
            if command.job and jobs.is_gone(self.root, command.job):
                raise Denied(Refusal.GONE, "the job was deleted meanwhile") from None
            raise
        reach(f"verb.{command.verb.value}.leave")

    # -- hello, open, start -------------------------------------------------------------------------------------

    def _hello(self, command: Command) -> None:
        from ..rsync import rsync_version  # heavy, and most verbs move no files

        self._record(command)
        version = ".".join(str(part) for part in rsync_version())
        self._answer(Reply(hello=self.operations.describe(version)))

    def _open(self, command: Command) -> None:
        request, inline = self._read_open(command.job)
        entries = request.inline or ()
        job = self.operations.open(request.spec, entries, tuple(inline), request.dry_run, request.signature)
        if job is None:
            self._answer(Reply(free_bytes=self.operations.free()))
            return
        if request.start and not request.dry_run and not job.read().state.started:
            self.operations.accept(job, entries, render_manifest(entries))
        self._revive(job, job.read().state)
        if request.start and request.wait:
            self._answer_after(job, request.wait, 0)
            return
        self._answer(self._status(job, free_bytes=self.operations.free()))

    def _read_open(self, job: str) -> Tuple[OpenRequest, List[Tuple[str, bytes]]]:
        line = self.stdin.readline(MAX_SPEC_BYTES + 1)
        try:
            if not line.endswith(b"\n"):
                raise CodecError("the job spec is cut, or longer than 64 KiB")
            request = parse_open(line[:-1])
        except (CodecError, ValueError, NameRefused) as error:
            raise Denied(Refusal.SPEC, str(error)) from None
        if request.spec.job != job:
            raise Denied(Refusal.SPEC, "the job spec is another job's")
        if request.spec.site != self.operations.site:
            raise Denied(Refusal.SITE, "the job spec is for another site")
        inline = []
        for entry in request.inline or ():
            data = self.stdin.read(min(entry.size, MAX_INLINE_BYTES))
            if len(data) != entry.size or hashlib.sha256(data).hexdigest() != entry.sha256:
                raise Denied(Refusal.INPUTS, "an input that came along is not the announced one")
            inline.append((entry.name, data))
        self._arrived()
        return request, inline

    def _arrived(self) -> None:
        """The bound is on the client's sending; hashing and starting take as long as they take."""
        signal.alarm(0)

    def _start(self, command: Command) -> None:
        job = self._find(command)
        self.operations.refuse_closed(job)
        already = job.read().state.started
        self._record(command, already=already)
        if not already:
            self.operations.accept(job, *self._read_manifest(job.spec()))
        self._revive(job, job.read().state)
        self._answer(self._status(job, already=already))

    def _read_manifest(self, spec: JobSpec) -> Tuple[Manifest, bytes]:
        document = self.stdin.read(min(MAX_DOCUMENT_BYTES, 4096 + 8192 * spec.files) + 1)
        self._arrived()
        return self.operations.parse_inputs(spec, document), document

    # -- put and get --------------------------------------------------------------------------------------------

    def _put(self, command: Command) -> None:
        job = self._find(command)
        self.operations.refuse_closed(job)
        if job.read().state.started:
            raise Denied(Refusal.STATE, "inputs do not change after the start")
        spec = job.spec()
        self._record(command, files=spec.files, bytes=spec.bytes)
        self._move(job, "in", spec.files, spec.bytes)

    def _get(self, command: Command) -> None:
        job = self._find(command)
        self.operations.refuse_closed(job)
        # First, since it may be refused: the day's amount may be used up.
        self.operations.leave(job)
        self._record(command)
        self._move(job, "return", 0, 1 << 62)

    def _move(self, job: JobFolder, module: str, max_files: int, max_bytes: int) -> None:
        from . import transfer

        self.exit_status = 0 if transfer.serve(job, module, max_files, max_bytes) == 0 else 1

    # -- wait, cancel, close ------------------------------------------------------------------------------------

    def _wait(self, command: Command) -> None:
        job = self._find(command)
        self._record(command)
        self._revive(job, job.read().state)
        with self._waiting_place(command.seconds):
            self._answer_after(job, command.seconds, command.offset)

    @contextlib.contextmanager
    def _waiting_place(self, seconds: int) -> Iterator[None]:
        """One of the site's places for connections that wait, so that no client fills the machine with them."""
        if not seconds:
            yield
            return
        with contextlib.suppress(FileExistsError):
            os.mkdir(".waits", files.PRIVATE_FOLDER, dir_fd=self.root)
        with files.opened(files.open_folder(".waits", self.root)) as places:
            # Two for each job that can be here: a new connection may come before its cut predecessor is noticed.
            for number in range(2 * (self.policy.limits.jobs + self.policy.limits.waiting)):
                place = files.try_lock(places, str(number))
                if place is not None:
                    break
            else:
                raise Denied(Refusal.BUSY, "too many connections wait")
        with files.opened(place):
            yield

    def _answer_after(self, job: JobFolder, seconds: int, offset: int) -> None:
        record = Watch(job, self.stdout, self._revive).until_final(seconds)
        reply, sections = self._report(job, record, offset)
        self._answer(reply, sections)

    def _report(self, job: JobFolder, record: JobRecord, offset: int) -> Tuple[Reply, Dict[str, bytes]]:
        if record.state is not JobState.ENDED:
            return self._report_log(job, record, offset, {})
        documents = self.operations.documents(job)
        results = self.operations.small_results(job) if self.operations.may_leave(job) else None
        if results is None:
            # What happened may be known; the log and the results wait for another day, and `get` says why.
            return self._status(job), documents
        named = {FILE_PREFIX + name: data for name, data in results.items()}
        return self._report_log(job, record, offset, {**documents, **named})

    def _report_log(
        self, job: JobFolder, record: JobRecord, offset: int, rest: Dict[str, bytes]
    ) -> Tuple[Reply, Dict[str, bytes]]:
        log, next_offset = read_log(job, self.policy.programs.get(job.spec().program), record, offset)
        return self._status(job, offset=next_offset), {**({"log": log} if log else {}), **rest}

    def _cancel(self, command: Command) -> None:
        job = self._find(command)
        if self.operations.cancel(job):
            self.operations.runner.wait_for_end(job, 15)
        self._answer(self._status(job))

    def _close(self, command: Command) -> None:
        job = self._find(command)
        self.operations.close(job)
        self._answer(self._status(job))
        self.operations.after_close(job)

    # -- shared -------------------------------------------------------------------------------------------------

    def _find(self, command: Command) -> JobFolder:
        return self.operations.find(command.job)

    def _revive(self, job: JobFolder, state: JobState) -> None:
        self.operations.runner.revive(job, state)

    def _record(self, command: Command, **fields: object) -> None:
        self.operations.record(command.verb.value, command.job, False, **fields)

    def _status(self, job: JobFolder, **fields: object) -> Reply:
        record = job.read()
        return Reply(
            state=record.state,
            outcome=record.outcome,
            reason=record.reason or None,
            since=record.since,
            progress=read_progress(job),
            **fields,  # type: ignore[arg-type]
        )

    def _answer(self, reply: Reply, sections: Optional[Dict[str, bytes]] = None) -> None:
        parts = sections or {}
        listed = tuple(Section(name, len(data)) for name, data in parts.items())
        full = Reply(**{**reply.__dict__, "sections": listed, "checkpoint": self.operations.ledger.checkpoint})
        self.stdout.write(render_reply(full))
        for data in parts.values():
            self.stdout.write(data)
        self.stdout.flush()
