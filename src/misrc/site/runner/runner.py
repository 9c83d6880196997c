"""What a door may have done, beyond receiving and sending files: start, stop, close, let leave, record.

In a user install the door's own process does it, under the same account: that protects the site from MInt, not from
the account's own user. In a root install the door asks a root-owned service (`service`), which trusts nothing
from it but verb and job id.
"""

from __future__ import annotations

from typing import Any, Dict, List

from ...job.faults import reach
from ...job.manifest import Manifest, total_bytes
from ...job.policy import Policy, ProgramRule
from ...job.states import JobState, Outcome
from ..jobs import JobFolder
from ..ledger import Ledger
from . import monitor, supervisor, sweep
from .observation import Watch
from .release import Releaser

# How much of a manifest goes into one ledger record.
_RECORD_BYTES = 32 << 10


class Runner:
    """The user install's: everything in this process."""

    def __init__(self, policy: Policy, root: int, ledger: Ledger, releaser: Releaser) -> None:
        self.policy = policy
        self.root = root
        self.ledger = ledger
        self.releaser = releaser

    def run(self, job: JobFolder, pipe: int = -1) -> int:
        """See to it that somebody looks after the job.

        With `pipe`, which the supervisor then holds open as long as it lives, its process id: a child to be waited for.
        """
        reach("verb.spawn")
        return supervisor.spawn(job, self.policy, self.ledger, self.releaser, pipe)

    def revive(self, job: JobFolder, state: JobState, pipe: int = -1) -> int:
        """Start a supervisor for a job that should have one and has none; what `run` says, or 0."""
        if state in (JobState.QUEUED, JobState.RUNNING) and not supervisor.alive(job):
            return self.run(job, pipe)
        return 0

    def cancel(self, job: JobFolder) -> None:
        """Stop whatever the job started; what nobody released does not leave."""
        state = job.read().state
        supervisor.request_cancel(job)
        if not state.started:
            with job.lock():
                if job.read().state in (JobState.CREATED, JobState.STAGED):
                    job.advance(JobState.ENDED, outcome=Outcome.CANCELLED, reason="cancelled by MInt")
        if state is JobState.HELD:
            rule = self.policy.programs.get(job.spec().program) or ProgramRule("/nonexistent", returns=(), logs="none")
            end = monitor.read_end(job.folder)
            self.releaser.finish(job, rule, end, Outcome.CANCELLED, "cancelled by MInt", nothing_leaves=True)
        self.revive(job, state)

    def wait_for_end(self, job: JobFolder, seconds: float) -> None:
        """Until the job's program cannot run any more, or the time is over."""
        Watch(job, None, self.revive).until_final(seconds)

    def close(self, job: JobFolder) -> None:
        """MInt has what it needs."""
        with job.lock():
            state = job.read().state
            if state is not JobState.CLOSED:
                job.advance(*way(state, JobState.CLOSED))

    def after_close(self, job: JobFolder) -> None:
        """What `close` brings about once it is answered."""
        sweep.after_close(job, self.policy, self.ledger)

    def leave(self, job: JobFolder, manifest: Manifest) -> None:
        """Before a byte leaves: record every file's name, size and sha256."""
        records = list_leaving(job.job, manifest)
        if records:
            self.ledger.append_all("leave", records)


def list_leaving(job: str, manifest: Manifest) -> List[Dict[str, Any]]:
    """The ledger's records of what leaves, each of bounded size."""
    records: List[Dict[str, Any]] = []
    start, size = 0, 0
    for end, entry in enumerate(manifest, 1):
        size += len(entry.name.encode("utf-8")) * 2 + 128
        if size > _RECORD_BYTES or end == len(manifest):
            records.append({"job": job, "files": [dict(vars(entry)) for entry in manifest[start:end]]})
            start, size = end, 0
    if records:
        # Said once, whatever the number of records: the day's amount counts it.
        records[0]["out"] = total_bytes(manifest)
    return records


def way(old: JobState, new: JobState) -> List[JobState]:
    """The plain way from one state to a later one, without the states that only some jobs pass."""
    states: List[JobState] = [state for state in JobState if state is not JobState.HELD]
    return states[states.index(old) + 1 : states.index(new) + 1]
