"""A transfer worker: one process for the large files of one job, so that the agent itself never waits for a transfer.

It brings inputs to `in/` or results to the server, goes on where a cut stopped it, and says by its exit status how it
went. It dies with the agent (on Linux; elsewhere at its own deadline) and changes no record of the job.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from dataclasses import dataclass
from typing import Callable, Dict, Tuple

from ...job.faults import reach
from ...job.manifest import Entry, Manifest, hash_descriptor
from ...wire.api import ApiError
from .. import files, kernel
from ..jobs import DOOR, JobFolder
from .api_client import ApiRefusal, SiteClient

DONE, AGAIN, FENCED, SPOILT, FULL, UNWANTED, NO_ROOM = 0, 10, 11, 12, 13, 14, 15
_STATUS = {
    ApiError.FENCED: FENCED,
    ApiError.GONE: FENCED,
    ApiError.FULL: FULL,
    ApiError.MALFORMED: UNWANTED,
    ApiError.TOO_LARGE: UNWANTED,
    ApiError.REFUSED: UNWANTED,
}
MAX_WORKERS = 4


@dataclass
class TransferWorker:
    """A running transfer worker; its end closes `pipe`."""

    pid: int
    pipe: int

    def collect(self) -> int:
        """How it went, once `pipe` has said that it is over."""
        status = os.waitpid(self.pid, 0)[1]
        return os.WEXITSTATUS(status) if os.WIFEXITED(status) else AGAIN

    def stop(self) -> None:
        """End it now."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.collect()


def start_worker(work: Callable[[], None]) -> TransferWorker:
    """Start a process that does `work`; the caller has no threads."""
    parent = os.getpid()
    pipe, end = os.pipe()
    pid = os.fork()
    if pid:
        os.close(end)
        return TransferWorker(pid, pipe)
    status = AGAIN
    try:
        os.close(pipe)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        kernel.die_with_parent(signal.SIGKILL)
        if os.getppid() == parent:
            status = _carry_out(work)
    finally:
        os._exit(status)


def _carry_out(work: Callable[[], None]) -> int:
    try:
        work()
    except ApiRefusal as refusal:
        return _STATUS.get(refusal.code, AGAIN)
    except Spoilt:
        return SPOILT
    except OSError as error:
        return NO_ROOM if error.errno in (errno.ENOSPC, errno.EDQUOT) else AGAIN
    return DONE


class Spoilt(Exception):
    """What arrived whole is not the file that was announced."""


def fetch_inputs(client: SiteClient, job: JobFolder, fence: int, manifest: Manifest) -> None:
    """Bring every input that is not there yet whole; Spoilt where one is not the announced one."""
    with files.opened(job.sub(DOOR)) as door, files.opened(job.sub("in")) as inputs:
        lock = files.try_lock(door, "in.lock")
        if lock is None:
            raise OSError(0, "another transfer of this job is running")
        with files.opened(lock):
            for entry in manifest:
                _fetch(client, job.job, fence, inputs, entry)
                reach("transfer_worker.fetched")


def _fetch(client: SiteClient, job: str, fence: int, inputs: int, entry: Entry) -> None:
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    with files.opened(os.open(entry.name, flags, files.PRIVATE_FILE, dir_fd=inputs)) as descriptor:
        start = os.fstat(descriptor).st_size
        if start > entry.size:
            os.ftruncate(descriptor, 0)
            start = 0
        if start < entry.size:
            client.fetch(job, fence, entry.name, descriptor, start, entry.size)
            os.fsync(descriptor)
        os.lseek(descriptor, 0, os.SEEK_SET)
        if hash_descriptor(descriptor, entry.size) != (entry.size, entry.sha256):
            os.ftruncate(descriptor, 0)
            raise Spoilt(entry.name)


def push_results(client: SiteClient, job: JobFolder, fence: int, entries: Tuple[Entry, ...]) -> None:
    """Send these results, which the ledger lists as leaving already."""
    with files.opened(job.sub("return")) as folder:
        for entry in entries:
            with files.opened(files.open_regular(folder, entry.name, single=True)) as descriptor:
                client.push(job.job, fence, entry.name, descriptor, entry.size, entry.sha256)
            reach("transfer_worker.pushed")


def missing_inputs(job: JobFolder, manifest: Manifest) -> bool:
    """Whether an input is still to be brought. Content is checked at the start, as always."""
    sizes: Dict[str, int] = {}
    with files.opened(job.sub("in")) as inputs:
        for name in os.listdir(inputs):
            sizes[name] = os.stat(name, dir_fd=inputs, follow_symlinks=False).st_size
    return any(sizes.get(entry.name) != entry.size for entry in manifest)
