"""What can be seen of a job while it is there: its state as it changes, its progress, and its log within the policy."""

from __future__ import annotations

import os
import re
import select
import time
from typing import BinaryIO, Callable, Optional, Tuple

from ...job.policy import ProgramRule
from ...job.states import JobState
from ...wire.replies import Progress, Reply, render_reply
from .. import files
from ..jobs import JobFolder, JobRecord
from . import monitor
from .release import RELEASED, TAIL_BYTES

LOG_CHUNK = 256 << 10
# How often a waiting connection looks whether somebody still looks after the job.
REVIVE_SECONDS = 1.0
# Who has waited so many seconds can wait some more: hundreds of waiting jobs must cost next to nothing.
PATIENT_AFTER = 60.0


class Watch:
    """Blocks until a job's program cannot run any more; progress goes out as it changes, at most once a second."""

    def __init__(
        self, job: JobFolder, stdout: Optional[BinaryIO], revive: Callable[[JobFolder, JobState], object]
    ) -> None:
        self._job = job
        self._stdout = stdout
        self._revive = revive
        self._told: Tuple[object, ...] = ()
        self._next = 0.0

    def until_final(self, seconds: float) -> JobRecord:
        """The record at the end of the wait; a client that has gone away ends it at once."""
        deadline = time.monotonic() + seconds
        poller = select.poll()
        if self._stdout is not None:
            poller.register(self._stdout.fileno(), 0)
        pause, stamp, record = 0.004, (-1, -1), self._job.read()
        begun = looked = time.monotonic()
        while True:
            status = os.stat("job.json", dir_fd=self._job.folder)
            # Two writes within one tick of the clock have the same time, but not the same file.
            changed = (status.st_mtime_ns, status.st_ino)
            if changed != stamp:
                stamp, record = changed, self._job.read()
            if time.monotonic() - looked > REVIVE_SECONDS:
                looked = time.monotonic()
                self._revive(self._job, record.state)
            left = deadline - time.monotonic()
            if record.state.final or left <= 0:
                return record
            self._tell(record)
            if poller.poll(min(pause, left) * 1000 + 1):
                raise BrokenPipeError
            patient = time.monotonic() - begun > PATIENT_AFTER
            pause = min(pause * 1.25, 5.0 if patient else 2.0)

    def _tell(self, record: JobRecord) -> None:
        if self._stdout is None or time.monotonic() < self._next:
            return
        progress = read_progress(self._job)
        if (record.state, record.reason, progress) != self._told:
            self._told = (record.state, record.reason, progress)
            self._next = time.monotonic() + 1.0
            line = Reply(
                event="progress",
                state=record.state,
                reason=record.reason or None,
                since=record.since,
                progress=progress,
            )
            self._stdout.write(render_reply(line))
            self._stdout.flush()


def read_log(job: JobFolder, rule: Optional[ProgramRule], record: JobRecord, offset: int) -> Tuple[bytes, int]:
    """The log's next bytes as far as the policy lets them leave, and the offset after them."""
    if rule is None or rule.logs == "none" or record.state is JobState.CLOSED:
        return b"", offset
    if rule.logs == "tail" and not record.state.final:
        return b"", offset
    if rule.hold and not (record.state.final and files.exists(job.folder, RELEASED)):
        return b"", offset
    try:
        with files.opened(job.sub("log")) as logs:
            descriptor = files.open_regular(logs, monitor.COMBINED, single=True)
    except OSError:
        return b"", offset
    with open(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        if rule.logs == "tail":
            offset = max(offset, size - TAIL_BYTES)
        if offset >= size:
            return b"", offset
        file.seek(offset)
        data = file.read(LOG_CHUNK)
    return data, offset + len(data)


_PROGRESS = re.compile(rb"([0-9]{1,15}(?:\.[0-9]{1,6})?) ([0-9]{1,15}(?:\.[0-9]{1,6})?) (\S{1,16}) ?([^\n]{0,120})")


def read_progress(job: JobFolder) -> Optional[Progress]:
    """The last whole line that the program wrote to MISRC_PROGRESS: `done total unit text`."""
    try:
        with files.opened(job.sub("log")) as logs:
            descriptor = files.open_regular(logs, "progress", single=True)
    except OSError:
        return None
    with open(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        file.seek(max(0, size - 1024))
        lines = file.read(1024).split(b"\n")[:-1]
    match = _PROGRESS.fullmatch(lines[-1]) if lines else None
    if match is None:
        return None
    unit, text = (part.decode("utf-8", "replace") for part in (match[3], match[4]))
    return Progress(float(match[1]), float(match[2]), _printable(unit), _printable(text))


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
