"""Delete jobs whose time is over. What was deleted stands in the ledger first, with the hash of the job's receipt.

A kill at any moment leaves something that the next sweep finishes. Links lead nowhere: see `removal`.

Not covered: a kill between the record and the deletion leaves two records of it after the next sweep.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from dataclasses import dataclass, field
from typing import List, Optional, Tuple

from ...job.policy import Policy
from ...job.states import JobState
from ...wire.refusals import Denied
from .. import files, jobs, transfer_state
from ..jobs import JobFolder, JobRecord
from ..ledger import Ledger
from .release import RECEIPT

DAY_SECONDS = 86400
# A job that MInt never closed is not deleted by itself. From this age on a sweep names it, and deletes it if asked to.
UNCLOSED_DAYS = 30
STAMP = ".swept"
_LOCK = ".sweep.lock"
_UNCLOSED = (JobState.CREATED, JobState.STAGED, JobState.HELD, JobState.ENDED, JobState.RETRIEVED)


@dataclass
class Sweep:
    """What one sweep did: deleted jobs; jobs that nobody closed, with their states; jobs that could not be deleted."""

    deleted: List[str] = field(default_factory=list)
    unclosed: List[Tuple[str, str]] = field(default_factory=list)
    failed: List[Tuple[str, str]] = field(default_factory=list)


def due(record: JobRecord, policy: Policy) -> Optional[float]:
    """When a closed job will be deleted, in UTC seconds; None for a job that is not closed."""
    return record.since + policy.keep_days * DAY_SECONDS if record.state is JobState.CLOSED else None


def unclosed_after(policy: Policy) -> int:
    """Days after which a job that nobody closed is named: twice `keep_days`, and at least 30."""
    return max(2 * policy.keep_days, UNCLOSED_DAYS)


def sweep(policy: Policy, root: int, ledger: Ledger, unclosed: bool = False) -> Sweep:
    """Finish begun deletions, then delete what is due; `unclosed` also what nobody closed, but for held jobs."""
    with files.locked(root, _LOCK):
        return _sweep(policy, root, ledger, unclosed)


def _sweep(policy: Policy, root: int, ledger: Ledger, unclosed: bool) -> Sweep:
    done = Sweep()
    jobs.finish_deletions(root)
    now = time.time()
    for job, record in jobs.read_jobs(root, policy.work_root):
        end = due(record, policy)
        why = "keep_days" if end is not None and end <= now else ""
        if record.state in _UNCLOSED and record.since + unclosed_after(policy) * DAY_SECONDS <= now:
            if not unclosed or record.state is JobState.HELD:
                done.unclosed.append((record.job, record.state.value))
                continue
            why = "unclosed"
        if why:
            _delete_one(job, ledger, why, done)
    return done


def _delete_one(job: JobFolder, ledger: Ledger, why: str, done: Sweep) -> None:
    try:
        delete(job, ledger, why)
        done.deleted.append(job.job)
    except (OSError, Denied) as error:
        done.failed.append((job.job, getattr(error, "strerror", None) or getattr(error, "note", "") or str(error)))


def delete(job: JobFolder, ledger: Ledger, why: str) -> None:
    """Record what goes, then delete it. Denied where the ledger cannot be written: then nothing goes."""
    with job.lock():
        record = job.read()
        if not record.state.final and transfer_state.transfer_running(job, "in"):
            raise OSError(0, "a transfer is still running")
        receipt = files.read_record(job.folder, RECEIPT)
        ledger.append(
            "delete",
            essential=True,
            job=job.job,
            why=why,
            state=record.state.value,
            outcome=record.outcome.value if record.outcome else None,
            receipt=None if receipt is None else hashlib.sha256(receipt).hexdigest(),
        )
        jobs.delete_job(job.root, job.job)


def after_close(job: JobFolder, policy: Policy, ledger: Ledger) -> None:
    """What `close` brings about once it is answered. What is not possible now is left for the next sweep."""
    with contextlib.suppress(OSError, Denied):
        if policy.keep_days == 0:
            delete(job, ledger, "keep_days")
        if policy.install == "user":
            _begin_daily(policy, job.root, ledger)


def _begin_daily(policy: Policy, root: int, ledger: Ledger) -> None:
    """In a user install, which has no timer: sweep in a process of its own, unless that was done within a day."""
    lock = files.try_lock(root, _LOCK)
    if lock is None:
        return
    with files.opened(lock):
        if not _note_day(root):
            return
        if os.fork() == 0:
            status = 1
            try:
                os.setsid()
                _let_go()
                _sweep(policy, root, ledger, unclosed=False)
                status = 0
            finally:
                os._exit(status)


def _note_day(root: int) -> bool:
    """Whether the last sweep is a day old; then this one is noted."""
    now = time.time()
    with contextlib.suppress(FileNotFoundError):
        age = now - os.stat(STAMP, dir_fd=root, follow_symlinks=False).st_mtime
        if 0 <= age < DAY_SECONDS:
            return False
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with files.opened(os.open(STAMP, flags, files.PRIVATE_FILE, dir_fd=root)) as stamp:
        os.utime(stamp, (now, now))
    return True


def _let_go() -> None:
    """MInt's connection must not stay open for as long as a sweep takes."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
