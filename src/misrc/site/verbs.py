"""What each verb does. Every verb is idempotent and keyed by the job id; refusing leaves no trace but the record."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from typing import BinaryIO, Dict, Iterator, List, Optional, Tuple

from .. import __version__
from ..job.arguments import ArgumentRefused, fill_arguments
from ..job.codec import CodecError
from ..job.faults import reach
from ..job.manifest import (
    MAX_DOCUMENT_BYTES,
    Entry,
    Manifest,
    parse_manifest,
    render_manifest,
    total_bytes,
)
from ..job.names import NameRefused, NameSet, check_input_name
from ..job.policy import Policy, ProgramRule
from ..job.spec import MAX_INLINE_BYTES, MAX_SPEC_BYTES, JobSpec, OpenRequest, parse_open
from ..job.states import JobState
from ..wire.grammar import Command
from ..wire.refusals import Denied, Refusal
from ..wire.replies import FILE_PREFIX, Hello, Reply, Section, render_reply
from . import arrival, door, files, jobs, keeper, workspace
from .jobs import JobFolder, JobRecord
from .observation import Watch, read_log, read_progress
from .release import MANIFEST, RECEIPT, SIGNATURE
from .runner import Runner, way

# Room that a site keeps for records and logs when it says how much is free.
SPACE_MARGIN = 64 << 20


class Session:
    """One request of one connection."""

    def __init__(
        self,
        site: str,
        policy: Policy,
        root: int,
        runner: Runner,
        stdin: BinaryIO,
        stdout: BinaryIO,
    ) -> None:
        self.site = site
        self.policy = policy
        self.root = root
        self.runner = runner
        self.ledger = runner.ledger
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
        from .transfer import rsync_version  # heavy, as all of it, and most verbs move no files

        self._record(command)
        version = ".".join(str(part) for part in rsync_version())
        limits = self.policy.limits
        self._answer(
            Reply(
                hello=Hello(
                    misrc=__version__,
                    python=".".join(map(str, sys.version_info[:3])),
                    rsync=version,
                    site=self.site,
                    programs=tuple(sorted(self.policy.programs)),
                    job_bytes=limits.size("job_bytes") or 0,
                    files=limits.files,
                    free_bytes=self._free(),
                    clock=time.time(),
                    frozen=self.ledger.is_frozen(),
                )
            )
        )

    def _open(self, command: Command) -> None:
        request, inline = self._read_open(command.job)
        spec = request.spec
        job = self._existing(spec)
        if job is None:
            self._check_spec(spec, request.inline)
            self._check_limits(spec)
            if request.dry_run:
                self._record(command, dry_run=True)
                self._answer(Reply(free_bytes=self._free()))
                return
            self._record(command, program=spec.program, files=spec.files, bytes=spec.bytes)
            job = self._create(spec, inline)
        else:
            self._refuse_closed(job)
            self._check_names(self._rule(spec), request.inline or ())
            self._record(command, already=True)
        if request.start and not request.dry_run and not job.read().state.started:
            manifest = request.inline or ()
            self._accept(job, manifest, render_manifest(manifest))
        self._revive(job, job.read().state)
        if request.start and request.wait:
            self._answer_after(job, request.wait, 0)
            return
        self._answer(self._status(job, free_bytes=self._free()))

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
        if request.spec.site != self.site:
            raise Denied(Refusal.SITE, "the job spec is for another site")
        inline = []
        for entry in request.inline or ():
            data = self.stdin.read(min(entry.size, MAX_INLINE_BYTES))
            if len(data) != entry.size or _hash(data) != entry.sha256:
                raise Denied(Refusal.INPUTS, "an input that came along is not the announced one")
            inline.append((entry.name, data))
        self._arrived()
        return request, inline

    def _arrived(self) -> None:
        """The bound is on the client's sending; hashing and starting take as long as they take."""
        signal.alarm(0)

    def _existing(self, spec: JobSpec) -> Optional[JobFolder]:
        try:
            job = jobs.find_job(self.root, self.policy.work_root, spec.job)
        except Denied as denied:
            if denied.refusal is Refusal.GONE:
                raise
            return None
        if job.spec() != spec:
            raise Denied(Refusal.CONFLICT, "this job id was opened with another spec")
        return job

    def _rule(self, spec: JobSpec) -> ProgramRule:
        rule = self.policy.programs.get(spec.program)
        if rule is None:
            raise Denied(Refusal.PROGRAM, "the program is not in the policy")
        return rule

    def _check_spec(self, spec: JobSpec, inline: Optional[Tuple[Entry, ...]]) -> None:
        rule = self._rule(spec)
        try:
            fill_arguments(rule.arguments, spec.arguments)
        except ArgumentRefused as error:
            raise Denied(Refusal.ARGUMENT, str(error)) from None
        self._check_names(rule, inline or ())

    def _check_names(self, rule: ProgramRule, entries: "Tuple[Entry, ...]") -> None:
        allowed = NameSet(rule.inputs)
        for entry in entries:
            if entry.name not in allowed or entry.name == keeper.COMBINED:
                raise Denied(Refusal.NAME, "an input's name is not one that the policy takes")

    def _check_limits(self, spec: JobSpec) -> None:
        limits = self.policy.limits
        if spec.bytes > (limits.size("job_bytes") or 0):
            raise Denied(Refusal.BYTES)
        if spec.files > limits.files:
            raise Denied(Refusal.FILES)
        if spec.bytes * 2 >= self._free():
            raise Denied(Refusal.SPACE)
        records = [record for _, record in jobs.read_jobs(self.root, self.policy.work_root)]
        if sum(not record.state.final for record in records) >= limits.jobs + limits.waiting:
            raise Denied(Refusal.WAITING)

    def _create(self, spec: JobSpec, inline: "List[Tuple[str, bytes]]") -> JobFolder:
        try:
            return jobs.create_job(self.root, self.policy.work_root, spec, inline)
        except OSError as error:
            existing = self._existing(spec)
            if existing is None:
                raise Denied(Refusal.SPACE, f"open: {error.strerror}") from None
            return existing

    def _start(self, command: Command) -> None:
        job = self._find(command)
        self._refuse_closed(job)
        already = job.read().state.started
        self._record(command, already=already)
        if not already:
            self._accept(job, *self._read_manifest(job.spec()))
        self._revive(job, job.read().state)
        self._answer(self._status(job, already=already))

    def _read_manifest(self, spec: JobSpec) -> Tuple[Manifest, bytes]:
        document = self.stdin.read(min(MAX_DOCUMENT_BYTES, 4096 + 8192 * spec.files) + 1)
        self._arrived()
        try:
            manifest = parse_manifest(document, check_input_name, self.policy.limits.files)
        except CodecError as error:
            raise Denied(Refusal.INPUTS, str(error)) from None
        announced = (len(manifest), total_bytes(manifest))
        if announced != (spec.files, spec.bytes) or spec.manifest not in (None, _hash(document)):
            raise Denied(Refusal.INPUTS, "the manifest is not the announced one")
        self._check_names(self._rule(spec), manifest)
        return manifest, document

    def _accept(self, job: JobFolder, manifest: Manifest, document: bytes) -> None:
        """Check what lies in `in/` against the manifest and queue the job, once."""
        with job.lock():
            if job.read().state.started:
                return
            if door.transfer_running(job, "in"):
                raise Denied(Refusal.BUSY, "a transfer is still running")
            arrival.check_inputs(job, manifest)
            files.write_record(job.folder, workspace.INPUTS, document)
            job.advance(*way(job.read().state, JobState.QUEUED))

    # -- put and get --------------------------------------------------------------------------------------------

    def _put(self, command: Command) -> None:
        job = self._find(command)
        self._refuse_closed(job)
        if job.read().state.started:
            raise Denied(Refusal.STATE, "inputs do not change after the start")
        spec = job.spec()
        self._record(command, files=spec.files, bytes=spec.bytes)
        self._move(job, "in", spec.files, spec.bytes)

    def _get(self, command: Command) -> None:
        job = self._find(command)
        self._refuse_closed(job)
        if job.read().state not in (JobState.ENDED, JobState.RETRIEVED):
            raise Denied(Refusal.STATE, "there is nothing to fetch in this state")
        manifest = self._manifest(job)
        # First, since it may be refused: the day's amount may be used up.
        self.runner.leave(job, manifest)
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
        results = self._small_results(job) if self._may_leave(job) else None
        if results is None:
            # What happened may be known; the log and the results wait for another day, and `get` says why.
            return self._status(job), self._documents(job)
        return self._report_log(job, record, offset, {**self._documents(job), **results})

    def _report_log(
        self, job: JobFolder, record: JobRecord, offset: int, rest: Dict[str, bytes]
    ) -> Tuple[Reply, Dict[str, bytes]]:
        log, next_offset = read_log(job, self.policy.programs.get(job.spec().program), record, offset)
        return self._status(job, offset=next_offset), {**({"log": log} if log else {}), **rest}

    def _documents(self, job: JobFolder) -> Dict[str, bytes]:
        found = {}
        for name, file in (("receipt", RECEIPT), ("signature", SIGNATURE), ("manifest", MANIFEST)):
            data = files.read_record(job.folder, file, MAX_DOCUMENT_BYTES)
            if data is not None:
                found[name] = data
        return found

    def _may_leave(self, job: JobFolder) -> bool:
        """Whether what the job made still fits into what may leave today."""
        if self.policy.limits.bytes_out_per_day is None:
            return True
        return self.ledger.allows("leave", job=job.job, out=total_bytes(self._manifest(job)))

    def _small_results(self, job: JobFolder) -> Optional[Dict[str, bytes]]:
        """All results, where they are few and small: they need no transfer of their own. None: none may leave today."""
        manifest = self._manifest(job)
        if total_bytes(manifest) > MAX_INLINE_BYTES or len(manifest) > 64:
            return {}
        try:
            self.runner.leave(job, manifest)
        except Denied as denied:
            if denied.refusal is not Refusal.BYTES_OUT:
                raise
            # Another job's results took the rest of the day's amount just now.
            return None
        found = {}
        with files.opened(job.sub("return")) as folder:
            for entry in manifest:
                with open(files.open_regular(folder, entry.name, single=True), "rb") as file:
                    found[FILE_PREFIX + entry.name] = file.read(entry.size)
        return found

    def _cancel(self, command: Command) -> None:
        job = self._find(command, essential=True)
        self._record(command, essential=True)
        if not job.read().state.final:
            self.runner.cancel(job)
            self.runner.wait_for_end(job, 15)
        self._answer(self._status(job))

    def _close(self, command: Command) -> None:
        job = self._find(command, essential=True)
        record = job.read()
        if not record.state.final:
            raise Denied(Refusal.STATE, "the job has not ended")
        self._record(command, essential=True)
        if record.state is not JobState.CLOSED:
            self.runner.close(job)
        self._answer(self._status(job))
        self.runner.after_close(job)

    # -- shared -------------------------------------------------------------------------------------------------

    def _find(self, command: Command, essential: bool = False) -> JobFolder:
        return jobs.find_job(self.root, self.policy.work_root, command.job)

    def _refuse_closed(self, job: JobFolder) -> None:
        """After `close` nothing is made or fetched any more; `wait` still shows the record, and `close` may repeat."""
        if job.read().state is JobState.CLOSED:
            raise Denied(Refusal.GONE, "the job is closed")

    def _revive(self, job: JobFolder, state: JobState) -> None:
        self.runner.revive(job, state)

    def _manifest(self, job: JobFolder) -> Manifest:
        document = files.read_record(job.folder, MANIFEST, MAX_DOCUMENT_BYTES)
        return () if document is None else parse_manifest(document, lambda name: None, 10**7)

    def _record(self, command: Command, essential: bool = False, **fields: object) -> None:
        self.ledger.append(command.verb.value, essential, decision="allow", job=command.job or None, **fields)

    def _free(self) -> int:
        return max(0, files.free_bytes(self.policy.work_root) - SPACE_MARGIN)

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

    exit_status = 0

    def _answer(self, reply: Reply, sections: Optional[Dict[str, bytes]] = None) -> None:
        parts = sections or {}
        listed = tuple(Section(name, len(data)) for name, data in parts.items())
        full = Reply(**{**reply.__dict__, "sections": listed, "checkpoint": self.ledger.checkpoint})
        self.stdout.write(render_reply(full))
        for data in parts.values():
            self.stdout.write(data)
        self.stdout.flush()


def _hash(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()
