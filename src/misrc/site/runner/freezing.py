"""freeze and thaw: the site stops taking jobs, by one command that a full disk does not keep from working.

From the moment `freeze` returns no program starts. Running ones go on; with `stop` they are ended, each by its own
supervisor. A job that was about to start at that moment sees the mark after it is running, and ends itself.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import List

from ...job.policy import Policy
from ...job.states import JobState
from .. import contract, jobs
from . import supervisor
from .runner import Runner

STOP_SECONDS = 60.0


class Switch:
    """The site's main switch."""

    def __init__(self, policy: Policy, root: int, runner: Runner) -> None:
        self._policy = policy
        self._root = root
        self._ledger = runner.ledger
        self._runner = runner

    def freeze(self, stop: bool, reason: str) -> List[str]:
        """Freeze; with `stop` also end what runs. The jobs that still run although they were to end."""
        self._ledger.switch(
            "freeze", lambda folder: contract.freeze(folder, stop), stop=stop, reason=reason, uid=os.getuid()
        )
        self._wake(JobState.QUEUED)
        if not stop:
            return []
        end = time.monotonic() + STOP_SECONDS
        while self._stop_running() and time.monotonic() < end:
            time.sleep(0.1)
        return self._stop_running()

    def thaw(self, reason: str) -> None:
        """Take and start jobs again."""
        self._ledger.switch("thaw", contract.thaw, reason=reason, uid=os.getuid())
        self._wake(JobState.QUEUED)

    def _stop_running(self) -> List[str]:
        found = []
        for job, record in jobs.read_jobs(self._root, self._policy.work_root):
            if record.state is JobState.RUNNING:
                found.append(record.job)
                # On a full disk a mark may not be possible: the program must end all the same, and `is_stopping` tells.
                with contextlib.suppress(OSError):
                    supervisor.request_stop(job)
                supervisor.wake(job)
                self._runner.revive(job, JobState.RUNNING)
        return found

    def _wake(self, state: JobState) -> None:
        """Let waiting supervisors look again, so that nobody waits for the next glance."""
        for job, record in jobs.read_jobs(self._root, self._policy.work_root):
            if record.state is state:
                supervisor.wake(job)
                self._runner.revive(job, JobState.RUNNING)
