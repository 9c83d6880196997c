"""The monitor: the program's parent. It streams output to files, notes how the program ended, and does nothing else.

The supervisor may be killed while the monitor goes on, and the other way round: each alone can still see the end.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from typing import Callable, Dict, Optional, Tuple

from ...job.codec import parse_json
from ...job.faults import reach
from .. import files, kernel

EXIT = "exit.json"
LOGS = ("stdout", "stderr")
COMBINED = "remote_program_exec.log"
TRUNCATED = b"\n[misrc: the output was longer than this site keeps; the rest is not here]\n"
# How long output may still come after the program's end, from helpers that it left behind.
DRAIN_SECONDS = 1.0


class ProgramEnd:
    """How the program ended: an exit status (negative: the signal), or the error that kept it from starting."""

    def __init__(self, status: Optional[int], error: str = "") -> None:
        self.status = status
        self.error = error


class LogWriter:
    """One log file with a cap."""

    def __init__(self, folder: int, name: str, cap: int, mode: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(name, flags, mode, dir_fd=folder)
        self._left = cap - os.fstat(self._descriptor).st_size

    def write(self, data: bytes) -> None:
        """Append, up to the cap; a full disk costs output, not the job."""
        if self._left <= 0:
            return
        data = data[: self._left]
        self._left -= len(data)
        with contextlib.suppress(OSError):
            os.write(self._descriptor, data)
            if self._left <= 0:
                os.write(self._descriptor, TRUNCATED)


def attend(
    job_folder: int,
    pid: int,
    streams: Tuple[int, int],
    log_bytes: int,
    check: Callable[[], None] = lambda: None,
    mode: int = files.PRIVATE_FILE,
) -> int:
    """Stream the program's output to the job's logs until child `pid` has ended; its exit status.

    `check` is called now and then meanwhile, and may raise to give up.
    """
    with files.opened(files.open_folder("log", job_folder)) as logs:
        combined = LogWriter(logs, COMBINED, log_bytes, mode)
        writers: Dict[int, LogWriter] = {
            stream: LogWriter(logs, name, log_bytes, mode) for stream, name in zip(streams, LOGS)
        }
        poller = select.poll()
        for stream in streams:
            os.set_blocking(stream, False)
            poller.register(stream, select.POLLIN)
        watched = kernel.watch_process(pid)
        if watched >= 0:
            poller.register(watched, select.POLLIN)
        try:
            return _pump(poller, writers, combined, pid, check, 1000 if watched >= 0 else 100)
        finally:
            if watched >= 0:
                os.close(watched)


def _pump(
    poller: "select.poll",
    writers: Dict[int, LogWriter],
    combined: LogWriter,
    pid: int,
    check: Callable[[], None],
    pause: int,
) -> int:
    open_streams = set(writers)
    status: Optional[int] = None
    deadline = 0.0
    while status is None or (open_streams and time.monotonic() < deadline):
        for descriptor, _ in poller.poll(pause if status is None else 50):
            if descriptor in open_streams and not _move(descriptor, writers[descriptor], combined):
                poller.unregister(descriptor)
                open_streams.discard(descriptor)
        if status is None:
            check()
            status = kernel.reap(pid)
            deadline = time.monotonic() + DRAIN_SECONDS
    return status


def _move(stream: int, writer: LogWriter, combined: LogWriter) -> bool:
    try:
        data = os.read(stream, 1 << 16)
    except BlockingIOError:
        return True
    writer.write(data)
    combined.write(data)
    return bool(data)


def write_end(job_folder: int, end: ProgramEnd) -> None:
    """Note the end, once: the first word stands. A full disk delays the note and does not lose it."""
    while not files.exists(job_folder, EXIT):
        reach("monitor.exit")
        try:
            files.write_json(job_folder, EXIT, {"status": end.status, "error": end.error})
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            time.sleep(1.0)


def read_end(job_folder: int) -> Optional[ProgramEnd]:
    """The noted end, if there is one."""
    data = files.read_record(job_folder, EXIT)
    if data is None:
        return None
    plain = parse_json(data)
    return ProgramEnd(plain.get("status"), str(plain.get("error", "")))
