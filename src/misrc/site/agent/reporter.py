"""The reporter: what the server is told of a job while it is ours, as far as the policy lets it leave.

Every call may be repeated, and is given up after a few seconds: nothing else is done meanwhile. After one that failed
its job steps aside and the others go first. Where a second job's call fails too, the server is gone: nobody tries again
for a while, however many jobs wait to be told of.
"""

from __future__ import annotations

import contextlib
import time
from typing import Callable, Dict, Iterator, Optional, Set, TypeVar

from ...job.states import JobState, Outcome
from ...wire.api import ApiError, End, Report, encode_bytes
from ..jobs import JobFolder, JobRecord
from ..operations import Operations
from ..runner.observation import read_log, read_progress
from .api_client import ApiRefusal, SiteClient
from .claim import ActiveClaim, backoff
from .http_channel import ChannelError

T = TypeVar("T")

LONGEST_SILENCE = 30.0
# What the server will say again, however often it is asked.
NOT_TAKEN = (ApiError.MALFORMED, ApiError.TOO_LARGE, ApiError.REFUSED, ApiError.MEDIA_TYPE)


class Offline(Exception):
    """The server cannot be asked now."""


class Reporter:
    """Speaks to the server for the claim handler."""

    def __init__(self, operations: Operations, client: SiteClient) -> None:
        self.operations = operations
        self.client = client
        self._failures = 0
        # The jobs whose calls failed since one was answered.
        self._failed: Set[str] = set()
        self._silent_until = 0.0

    def tell(self, claim: ActiveClaim, job: JobFolder, record: JobRecord) -> bool:
        """State, progress and log, as far as they have changed; whether MInt wants the job stopped."""
        progress = read_progress(job)
        told, cancel = (record.state, record.reason, progress), False
        if told != claim.told and record.state in (JobState.QUEUED, JobState.RUNNING, JobState.HELD):
            report = Report(claim.fence, record.state, record.since, record.reason or None, progress)
            orders = self.call(claim, lambda: self.client.report(claim.job, report))
            claim.told, cancel = told, orders.cancel
        self.send_log(claim, job, record, 1)
        return cancel

    def send_log(self, claim: ActiveClaim, job: JobFolder, record: JobRecord, pieces: int) -> None:
        """What the policy lets leave of the log, from where the server has it."""
        rule = self.operations.policy.programs.get(job.spec().program)
        for _ in range(0 if claim.log_full else pieces):
            data, after = read_log(job, rule, record, claim.log_start + claim.log_sent)
            if not data:
                return
            if claim.log_sent == 0:
                claim.log_start = after - len(data)
            if not claim.log_recorded:
                self.operations.record("wait", claim.job)
                claim.log_recorded = True
            offset = claim.log_sent
            try:
                sent = self.call(
                    claim,
                    lambda: self.client.append_log(claim.job, claim.fence, offset, data),  # noqa: B023
                )
            except ApiRefusal as refusal:
                if refusal.code not in NOT_TAKEN:
                    raise
                # The log comes once more among the results. That the server has no room for it now ends no job.
                claim.log_full = True
                return
            if sent <= offset:
                return
            claim.log_sent = sent

    def let_leave(self, job: JobFolder) -> Optional[Dict[str, bytes]]:
        """Results that are few and small, their leaving recorded; None where nothing may leave today."""
        return self.operations.small_results(job) if self.operations.may_leave(job) else None

    def describe_end(
        self, claim: ActiveClaim, job: JobFolder, record: JobRecord, small: Optional[Dict[str, bytes]]
    ) -> End:
        documents = {name: data.decode("utf-8") for name, data in self.operations.documents(job).items()}
        return End(
            fence=claim.fence,
            outcome=record.outcome or Outcome.LOST,
            reason=record.reason,
            log_end=claim.log_sent,
            small={name: encode_bytes(data) for name, data in small.items()} if small else None,
            **documents,
        )

    def call(self, claim: ActiveClaim, call: Callable[[], T]) -> T:
        """One call to the server about this job; Offline where it failed, or may not be made yet."""
        if self.silence(claim) > 0:
            raise Offline
        try:
            answer = call()
        except ChannelError:
            self._fall_silent(claim)
            raise Offline from None
        self._failures = claim.silences = 0
        self._failed.clear()
        return answer

    def silence(self, claim: ActiveClaim) -> float:
        """Seconds until the server may be called about this job."""
        return max(self._silent_until, claim.silent_until) - time.monotonic()

    def _fall_silent(self, claim: ActiveClaim) -> None:
        now = time.monotonic()
        claim.silent_until = now + backoff(claim.silences, 0.5, LONGEST_SILENCE)
        claim.silences += 1
        self._failed.add(claim.job)
        if len(self._failed) > 1:
            self._silent_until = now + backoff(self._failures, 0.5, LONGEST_SILENCE)
            self._failures += 1

    @contextlib.contextmanager
    def job(self, claim: ActiveClaim) -> Iterator[JobFolder]:
        job = self.operations.find(claim.job)
        with contextlib.closing(job):
            yield job
