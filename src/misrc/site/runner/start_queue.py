"""The queue for a job's start: when the site lets jobs start at all, and one of its places is free, oldest job first.

What it guards: never more than `limits.jobs` programs, and no start while the site is frozen or outside its windows.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Callable, Iterator, Optional

from ...job.policy import Policy
from ...job.states import JobState
from ...wire.reasons import render_waiting
from .. import contract, files
from ..jobs import JobFolder, read_unfinished

# How long a job that may not start now sleeps before it looks again; `thaw` and `cancel` wake it.
HELD_BACK_SECONDS = 30.0


class HeldBack(Exception):
    """The site lets no job start now: frozen, or outside its windows."""


class StartQueue:
    """Waits with `sleep`, which a wake cuts short. `check` raises where the job is not to start any more.

    `competes` says of another queued job whether somebody looks after it, so that it can take a place.
    """

    def __init__(
        self,
        job: JobFolder,
        policy: Policy,
        state: str,
        check: Callable[[], None],
        sleep: Callable[[float], None],
        competes: Callable[[JobFolder], bool],
    ) -> None:
        self._job = job
        self._policy = policy
        self._state = state
        self._check = check
        self._sleep = sleep
        self._competes = competes
        self._noted = job.read().reason

    @contextlib.contextmanager
    def take(self) -> Iterator[None]:
        """Wait for a place among the site's running jobs, and hold it for a block."""
        with files.opened(self._open_slots()) as slots:
            pause = 0.05
            while True:
                self._wait_for_opening()
                slot = self._free_slot(slots)
                if slot is not None and self._is_next(1 + self._count_free(slots)):
                    break
                if slot is not None:
                    os.close(slot)
                self._sleep(pause)
                pause = min(pause * 1.5, 2.0)
        with files.opened(slot):
            yield

    def check_opening(self) -> None:
        """Raise HeldBack where the site lets no job start any more."""
        if contract.find_hindrance(self._state, self._policy) is not None:
            raise HeldBack

    def _wait_for_opening(self) -> None:
        """Until the site is not frozen and one of its windows is open; MInt is told why the job waits."""
        while True:
            self._check()
            waiting = contract.find_hindrance(self._state, self._policy)
            self._note(render_waiting(waiting) if waiting else "")
            if waiting is None:
                return
            until = (waiting.opening or float("inf")) - time.time()
            self._sleep(min(max(until, 0.01), HELD_BACK_SECONDS))

    def _note(self, reason: str) -> None:
        if reason == self._noted:
            return
        # A disk that is full now costs MInt the reason, not the job.
        with contextlib.suppress(OSError), self._job.lock():
            if not self._job.read().state.final:
                self._job.note(reason)
        self._noted = reason

    def _open_slots(self) -> int:
        with contextlib.suppress(FileExistsError):
            os.mkdir(".slots", files.PRIVATE_FOLDER, dir_fd=self._job.root)
        return files.open_folder(".slots", self._job.root)

    def _free_slot(self, slots: int) -> Optional[int]:
        for number in range(self._policy.limits.jobs):
            slot = files.try_lock(slots, str(number))
            if slot is not None:
                return slot
        return None

    def _count_free(self, slots: int) -> int:
        return sum(not files.is_locked(slots, str(number)) for number in range(self._policy.limits.jobs))

    def _is_next(self, free: int) -> bool:
        """Whether fewer than `free` older jobs wait; one that nobody looks after now does not hold up the others."""
        own = self._job.read()
        if own.state is not JobState.QUEUED:
            return True
        older = [
            record.job
            for folder, record in read_unfinished(self._job.root, self._policy.work_root)
            if record.state is JobState.QUEUED
            and (record.since, record.job) < (own.since, own.job)
            and self._competes(folder)
        ]
        return len(older) < free
