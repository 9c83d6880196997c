"""The site's own contract: whether jobs may start now, how many may come in a day, how much may leave in a day.

What must be exact is asked under the ledger's lock, right before the record that it allows is written: no two requests
together go above a limit, and nothing starts after `freeze` has returned.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any, Mapping, Optional, Sequence

from ..job import windows
from ..job.policy import Policy
from ..wire.reasons import Waiting
from ..wire.refusals import Denied, Refusal
from . import files
from .daily_usage import count_today

# Files without content in the ledger's folder, which a full disk does not keep from being made.
FROZEN = "frozen"
STOPPING = "frozen.stop"


class Contract:
    """What the ledger asks before it adds a record."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._limits = policy.limits

    def check(self, folder: int, ledger: int, event: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Raise Denied where the contract forbids what these records stand for; the ledger's lock is held."""
        for record in records:
            if event == "run" and files.exists(folder, FROZEN):
                raise Denied(Refusal.FROZEN, "the site is frozen")
            if event == "open" and not record.get("already"):
                self._check_open(folder, ledger, str(record.get("job")))
            if type(record.get("out")) is int:
                self._check_leaving(folder, ledger, str(record.get("job")), int(record["out"]))

    def _check_open(self, folder: int, ledger: int, job: str) -> None:
        if files.exists(folder, FROZEN):
            raise Denied(Refusal.FROZEN, "the site is frozen")
        limit = self._limits.jobs_per_day
        if limit is None:
            return
        today = count_today(folder, ledger)
        if job not in today.jobs and len(today.jobs) >= limit:
            raise Denied(Refusal.JOBS_PER_DAY, f"{len(today.jobs)} jobs came today")

    def _check_leaving(self, folder: int, ledger: int, job: str, size: int) -> None:
        limit = self._limits.size("bytes_out_per_day")
        if limit is None:
            return
        today = count_today(folder, ledger)
        left = sum(today.out.values())
        if job not in today.out and left + size > limit:
            raise Denied(Refusal.BYTES_OUT, f"{left} bytes left today, these are {size}")


def is_frozen(state: str) -> bool:
    """Whether the site takes and starts no jobs now; `state` is the ledger's folder."""
    return os.path.lexists(f"{state}/{FROZEN}")


def is_stopping(state: str) -> bool:
    """Whether the site was frozen so that running jobs are stopped too."""
    return os.path.lexists(f"{state}/{STOPPING}")


def find_hindrance(state: str, policy: Policy) -> Optional[Waiting]:
    """Why no job may start now, or None where it may."""
    if is_frozen(state):
        return Waiting()
    now = time.time()
    if windows.is_open(policy.opening, now):
        return None
    return Waiting(windows.next_opening(policy.opening, now))


def freeze(folder: int, stop: bool) -> None:
    """Make the marks (under the ledger's lock)."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    for name in (FROZEN, STOPPING) if stop else (FROZEN,):
        os.close(os.open(name, flags, files.PRIVATE_FILE, dir_fd=folder))
    os.fsync(folder)


def thaw(folder: int) -> None:
    """Take the marks away (under the ledger's lock)."""
    for name in (STOPPING, FROZEN):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
    os.fsync(folder)
