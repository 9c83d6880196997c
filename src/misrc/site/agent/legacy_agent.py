"""The agent for a server of the predecessor: it asks every so often, and takes one job at a time through its steps.

The program is chosen by the command's alias in the site's own policy, its words must match the declared arguments, and
no shell is involved. What is done so far is noted in the job's folder, so that the next agent goes on from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import sys
import time
import uuid
from dataclasses import dataclass, replace
from typing import Any, Callable, Dict, Iterator, Optional, Tuple

from ...job.codec import CodecError, decode
from ...job.faults import reach
from ...job.manifest import Entry, Manifest, make_manifest, render_manifest
from ...job.names import JOB_ID, NameRefused
from ...job.policy import Policy
from ...job.spec import JobSpec
from ...job.states import JobState, Outcome
from ...wire.content import Blob, FileSource
from ...wire.legacy import (
    ABNORMAL,
    CALC_END,
    STDERR_NAME,
    STDOUT_NAME,
    CalcEnd,
    CalcParamsComplete,
    CalcStart,
    EndSend,
    SendResults,
    split_parameters,
)
from ...wire.legacy_files import CalcInfo, ResultFile
from ...wire.refusals import Denied, Refusal
from .. import files, jobs, kernel
from ..jobs import DOOR, JobFolder
from ..operations import Operations
from ..premises import Premises
from ..removal import remove_tree
from ..runner import monitor
from ..runner.observation import Watch
from .legacy_client import Forbidden, LegacyClient

NOTE = "legacy.json"
PENDING = "pending.json"
ABNORMAL_SECONDS = 1.0
STEPS = ("opened", "announced", "started", "ended", "sent", "done")
_TEXT = ("text/plain;", "charset=utf-8")
_BYTES = ("application/octet-stream;", "charset=binary")
# Jobs of old clients have ids of any kind; those that misrc does not carry get one that follows from theirs.
_IDS = uuid.UUID("5b1f0c52-2f1e-5d2a-9a55-6a1b8d8c5c11")


@dataclass(frozen=True)
class LegacyNote:
    """What must outlive the agent: the job's name at the server, the results asked for, and the last step done."""

    job: str
    accept_id: str
    server: str
    results: Tuple[str, ...]
    step: str = "opened"


class Stopped(Exception):
    """A signal says to stop."""


class Spool:
    """Inputs while they arrive: files without a name of the server's, in a private folder of the work root."""

    def __init__(self, root: int) -> None:
        self._root = root
        self.name = f".spool-{os.getpid()}"
        self._remove_left()
        os.mkdir(self.name, files.PRIVATE_FOLDER, dir_fd=root)
        self.folder = files.open_folder(self.name, root)
        self.count = 0

    def _remove_left(self) -> None:
        """What killed agents left; in a container the next one may well have the same process id."""
        for name in os.listdir(self._root):
            made = re.fullmatch(r"\.spool-([0-9]{1,10})", name, re.ASCII)
            if made is not None and (name == self.name or not kernel.start_time(int(made[1]))):
                remove_tree(self._root, name)

    def open(self, path: Any) -> SpoolFile:
        """A new file for one input; where the document puts it decides nothing."""
        self.count += 1
        return SpoolFile(self.folder, str(self.count))

    def close(self) -> None:
        """Remove what was not taken."""
        for name in os.listdir(self.folder):
            os.unlink(name, dir_fd=self.folder)
        os.close(self.folder)
        os.rmdir(self.name, dir_fd=self._root)


class SpoolFile:
    """One input, hashed while it is written."""

    def __init__(self, folder: int, name: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self.name = name
        self._file = open(os.open(name, flags, files.PRIVATE_FILE, dir_fd=folder), "wb")  # noqa: SIM115
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> None:
        """The next bytes."""
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def close(self) -> None:
        """On disk, whole or not."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    @property
    def sha256(self) -> str:
        """Of what was written."""
        return self._digest.hexdigest()


class LegacyAgent:
    """One site's agent for one server of the predecessor."""

    def __init__(
        self, premises: Premises, client: LegacyClient, site: str, server: str, poll: float, state: int
    ) -> None:
        self._premises = premises
        # The agent's own folder, open: there stands which job is being fetched, which the server offers only once.
        self._state = state
        self._client = client
        self._site = site
        self._server = server
        self._poll = poll

    def say(self, text: str) -> None:
        """One line for the people of the site."""
        print(f"misrc-agent: {text}", file=sys.stderr, flush=True)

    def run(self) -> int:
        """Until a signal says to stop; GaveUp (of the client) where the retries of a call are used up."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stop)
        with contextlib.suppress(Stopped):
            self._finish_earlier()
            while True:
                if not self._serve_one():
                    time.sleep(self._poll)
        return 0

    def _finish_earlier(self) -> None:
        """Jobs that an earlier agent left in the middle."""
        operations = self._premises.operations()
        found = [note for note in map(_read_note, _folders(operations)) if note is not None]
        for note in found:
            if note.server == self._server and note.step != "done":
                self._go_on(note, repeated=True)
        pending = files.read_json(self._state, PENDING)
        if isinstance(pending, dict) and pending.get("server") == self._server:
            self._take(str(pending.get("accept_id")))

    def _serve_one(self) -> bool:
        operations = self._premises.operations()
        if operations.ledger.is_frozen() or operations.room() <= 0:
            return False
        accept_id = self._client.find_work(self._site)
        if accept_id is None:
            return False
        files.write_json(self._state, PENDING, {"accept_id": accept_id, "server": self._server})
        reach("legacy.claimed")
        self._take(accept_id)
        return True

    def _take(self, accept_id: str) -> None:
        """One job, from its inputs to its results."""
        operations = self._premises.operations()
        job = accept_id if re.fullmatch(JOB_ID, accept_id, re.ASCII) else str(uuid.uuid5(_IDS, accept_id))
        results: Tuple[str, ...] = ()
        try:
            spool = Spool(operations.root)
            with contextlib.closing(spool):
                limit = operations.policy.limits.size("job_bytes") or 0
                info = self._client.fetch(accept_id, self._site, spool.open, limit)
                results = _fit_names(info)
                note = LegacyNote(job, accept_id, self._server, results)
                self._open(operations, info, note, spool)
        except (Denied, CodecError, NameRefused, ValueError, Forbidden) as error:
            denied = error if isinstance(error, Denied) else Denied(Refusal.SPEC, str(error))
            self._decline(operations, accept_id, job, results, denied)
            self._forget()
            return
        self._forget()
        self._go_on(note)

    def _forget(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(PENDING, dir_fd=self._state)

    # -- taking -------------------------------------------------------------------------------------------------

    def _open(self, operations: Operations, info: CalcInfo, note: LegacyNote, spool: Spool) -> None:
        """The job's folder with its inputs, by their local names, or Denied."""
        sinks = {name: _sink(file.content) for name, file in info.local_names().items()}
        manifest = make_manifest(Entry(name, sink.size, sink.sha256) for name, sink in sinks.items())
        document = render_manifest(manifest)
        program, arguments = choose_program(operations.policy, info.command, info.parameters)
        spec = JobSpec(
            note.job,
            operations.site,
            program,
            arguments,
            len(manifest),
            sum(sink.size for sink in sinks.values()),
            hashlib.sha256(document).hexdigest(),
        )
        job = operations.open(spec, manifest)
        assert job is not None
        with contextlib.closing(job):
            if not job.read().state.started:
                with files.opened(job.sub("in")) as inputs:
                    for name, sink in sinks.items():
                        os.rename(sink.name, name, src_dir_fd=spool.folder, dst_dir_fd=inputs)
                    os.fsync(inputs)
                with files.opened(job.sub(DOOR)) as door:
                    files.write_record(door, "legacy.jsonl", document)
            _write_note(job, note)
        reach("legacy.opened")

    # -- going on -----------------------------------------------------------------------------------------------

    def _go_on(self, note: LegacyNote, repeated: bool = False) -> None:
        """Every step that is left, each noted when it is done."""
        operations = self._premises.operations()
        with contextlib.closing(operations.find(note.job)) as job:
            try:
                self._take_steps(operations, job, note, repeated)
            except Forbidden as error:
                # The workflow has deleted its job, or the server has forgotten it. Here it is over too.
                self.say(f"job {note.job}: {error}")
                operations.cancel(job)
                operations.close(job)
                _write_note(job, replace(note, step="done"))
            operations.after_close(job)

    def _take_steps(self, operations: Operations, job: JobFolder, note: LegacyNote, repeated: bool) -> None:
        for step in STEPS[STEPS.index(note.step) + 1 :]:
            getattr(self, "_be_" + step)(operations, job, note, repeated)
            note, repeated = replace(note, step=step), False
            _write_note(job, note)
            reach(f"legacy.{step}")

    def _be_announced(self, operations: Operations, job: JobFolder, note: LegacyNote, repeated: bool) -> None:
        self._client.tell(CalcParamsComplete(note.accept_id, self._site), repeated)

    def _be_started(self, operations: Operations, job: JobFolder, note: LegacyNote, repeated: bool) -> None:
        self._client.tell(CalcStart(note.accept_id, self._site), repeated)

    def _be_ended(self, operations: Operations, job: JobFolder, note: LegacyNote, repeated: bool) -> None:
        if not job.read().state.started:
            with files.opened(job.sub(DOOR)) as door:
                document = files.read_record(door, "legacy.jsonl", 64 << 20) or b""
            try:
                operations.accept(job, operations.parse_inputs(job.spec(), document), document)
            except Denied as denied:
                operations.refuse(job, denied.refusal)
        while not Watch(job, None, operations.runner.revive).until_final(3600).state.final:
            pass
        record = job.read()
        names = {entry.name for entry in operations.manifest(job)}
        asked = [name for name in note.results if name not in (STDOUT_NAME, STDERR_NAME)]
        # As old clients count: a program that made none of what was asked for has failed.
        good = record.outcome is Outcome.SUCCEEDED and (not asked or any(name in names for name in asked))
        self._tell_end(note.accept_id, good, repeated)

    def _tell_end(self, accept_id: str, good: bool, repeated: bool = False) -> None:
        """How it ended. Old workflow clients ask for status, then progress: both must not change in between."""
        self._client.tell(CalcEnd(accept_id, self._site, CALC_END if good else ABNORMAL), repeated)
        if not good:
            time.sleep(ABNORMAL_SECONDS)

    def _be_sent(self, operations: Operations, job: JobFolder, note: LegacyNote, repeated: bool) -> None:
        manifest = operations.manifest(job)
        while True:
            try:
                if manifest:
                    operations.leave(job)
                break
            except Denied as denied:
                if denied.refusal is not Refusal.BYTES_OUT:
                    raise
                time.sleep(60)
        reach("legacy.leaving")
        with files.opened(job.sub("return")) as folder:
            found = tuple(_result(folder, manifest, name, job.read().reason) for name in note.results)
            self._client.tell(SendResults(note.accept_id, self._site, found), repeated)

    def _be_done(self, operations: Operations, job: JobFolder, note: LegacyNote, repeated: bool) -> None:
        self._client.tell(EndSend(note.accept_id, self._site), repeated)
        operations.close(job)

    def _decline(
        self, operations: Operations, accept_id: str, job: str, results: Tuple[str, ...], denied: Denied
    ) -> None:
        """Bring a job that does not run here to its end at the server, which knows no other word for it."""
        code = denied.refusal.value
        operations.ledger.append(
            "refuse", essential=True, decision="deny", job=job, reason=code, note=denied.note, accept_id=accept_id
        )
        self.say(f"job {job} is refused: {code}")
        with contextlib.suppress(Denied, OSError), contextlib.closing(operations.find(job)) as folder:
            operations.refuse(folder, denied.refusal)
        found = tuple(_declined(name, f"refused by the site ({code})") for name in results or (STDERR_NAME,))
        steps: Tuple[Callable[[], None], ...] = (
            lambda: self._client.tell(CalcParamsComplete(accept_id, self._site)),
            lambda: self._client.tell(CalcStart(accept_id, self._site)),
            lambda: self._tell_end(accept_id, good=False),
            lambda: self._client.tell(SendResults(accept_id, self._site, found)),
            lambda: self._client.tell(EndSend(accept_id, self._site)),
        )
        for step in steps:
            # An earlier agent may have come this far.
            with contextlib.suppress(Forbidden):
                step()


def choose_program(policy: Policy, command: str, parameters: str) -> Tuple[str, Dict[str, str]]:
    """The program whose alias is this command, word for word, and its arguments in the policy's order; or Denied."""
    found = [(name, rule) for name, rule in policy.programs.items() if rule.command == command]
    if not found:
        raise Denied(Refusal.PROGRAM, "no program of the policy has this command")
    name, rule = found[0]
    try:
        words = split_parameters(parameters)
    except ValueError as error:
        raise Denied(Refusal.ARGUMENT, str(error)) from None
    if len(words) > len(rule.arguments):
        raise Denied(Refusal.ARGUMENT, "there are more words than arguments")
    return name, dict(zip(rule.arguments, words))


def _fit_names(info: CalcInfo) -> Tuple[str, ...]:
    return info.result_names()


def _sink(content: Any) -> Any:
    if not isinstance(content, Blob):
        raise CodecError("an input came in an unexpected form")
    return content.sink


def _result(folder: int, manifest: Manifest, name: str, reason: str) -> ResultFile:
    """One result as it was asked for: from what may leave, or the word that it is missing."""
    if name == STDERR_NAME:
        return ResultFile(name, reason.encode("utf-8", "replace"), *_TEXT)
    wanted = monitor.COMBINED if name == STDOUT_NAME else name
    for entry in manifest:
        if entry.name == wanted:
            # A program prints what it likes: old clients break off at text that is none.
            return ResultFile(name, FileSource(entry.size, lambda: _open(folder, wanted)), *_BYTES)
    return _declined(name, "the program did not make it, or the site does not let it leave")


def _open(folder: int, name: str) -> Any:
    return open(files.open_regular(folder, name, single=True), "rb")


def _declined(name: str, why: str) -> ResultFile:
    if name in (STDOUT_NAME, STDERR_NAME):
        return ResultFile(name, why.encode() if name == STDERR_NAME else b"", *_TEXT)
    return ResultFile(name, b"", "Error", why)


def _folders(operations: Operations) -> Iterator[JobFolder]:
    for job, record in jobs.read_jobs(operations.root, operations.policy.work_root):
        if record.state is not JobState.CLOSED:
            yield job


def _read_note(job: JobFolder) -> Optional[LegacyNote]:
    with contextlib.suppress(OSError, CodecError, ValueError), files.opened(job.sub(DOOR)) as door:
        plain = files.read_json(door, NOTE)
        return None if plain is None else decode(LegacyNote, plain)
    return None


def _write_note(job: JobFolder, note: LegacyNote) -> None:
    with files.opened(job.sub(DOOR)) as door:
        files.write_json(door, NOTE, note)


def _stop(number: int, frame: object) -> None:
    raise Stopped
