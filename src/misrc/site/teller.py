"""The teller: what the server is told of a job while it is ours, as far as the policy lets it leave.

Every call may be repeated, and is given up after a few seconds: nothing else is done meanwhile. After one that failed
its job steps aside and the others go first. Where a second job's call fails too, the server is gone: nobody tries again
for a while, however many jobs wait to be told of.
"""

from __future__ import annotations

import contextlib
import time
from typing import Callable, Dict, Iterator, Optional, Set, TypeVar

from ..job.states import JobState, Outcome
from ..wire.api import ApiError, End, Report, encode_bytes
from .api_client import ApiRefusal, SiteClient
from .channel import ChannelError
from .counter import Counter
from .errand import Errand, backoff
from .jobs import JobFolder, JobRecord
from .observation import read_log, read_progress

T = TypeVar("T")

LONGEST_SILENCE = 30.0
# What the server will say again, however often it is asked.
NOT_TAKEN = (ApiError.MALFORMED, ApiError.TOO_LARGE, ApiError.REFUSED, ApiError.MEDIA_TYPE)


class Offline(Exception):
    """The server cannot be asked now."""


class Teller:
    """Speaks to the server for the clerk."""

    def __init__(self, counter: Counter, client: SiteClient) -> None:
        self.counter = counter
        self.client = client
        self._failures = 0
        # The jobs whose calls failed since one was answered.
        self._failed: Set[str] = set()
        self._silent_until = 0.0

    def tell(self, errand: Errand, job: JobFolder, record: JobRecord) -> bool:
        """State, progress and log, as far as they have changed; whether MInt wants the job stopped."""
        progress = read_progress(job)
        told, cancel = (record.state, record.reason, progress), False
        if told != errand.told and record.state in (JobState.QUEUED, JobState.RUNNING, JobState.HELD):
            report = Report(errand.fence, record.state, record.since, record.reason or None, progress)
            orders = self.call(errand, lambda: self.client.report(errand.job, report))
            errand.told, cancel = told, orders.cancel
        self.send_log(errand, job, record, 1)
        return cancel

    def send_log(self, errand: Errand, job: JobFolder, record: JobRecord, pieces: int) -> None:
        """What the policy lets leave of the log, from where the server has it."""
        rule = self.counter.policy.programs.get(job.spec().program)
        for _ in range(0 if errand.log_full else pieces):
            data, after = read_log(job, rule, record, errand.log_start + errand.log_sent)
            if not data:
                return
            if errand.log_sent == 0:
                errand.log_start = after - len(data)
            if not errand.log_recorded:
                self.counter.record("wait", errand.job)
                errand.log_recorded = True
            offset = errand.log_sent
            try:
                sent = self.call(errand, lambda: self.client.append_log(errand.job, errand.fence, offset, data))  # noqa: B023
            except ApiRefusal as refusal:
                if refusal.code not in NOT_TAKEN:
                    raise
                # The log comes once more among the results. That the server has no room for it now ends no job.
                errand.log_full = True
                return
            if sent <= offset:
                return
            errand.log_sent = sent

    def let_leave(self, job: JobFolder) -> Optional[Dict[str, bytes]]:
        """Results that are few and small, their leaving recorded; None where nothing may leave today."""
        return self.counter.small_results(job) if self.counter.may_leave(job) else None

    def describe_end(self, errand: Errand, job: JobFolder, record: JobRecord, small: Optional[Dict[str, bytes]]) -> End:
        documents = {name: data.decode("utf-8") for name, data in self.counter.documents(job).items()}
        return End(
            fence=errand.fence,
            outcome=record.outcome or Outcome.LOST,
            reason=record.reason,
            log_end=errand.log_sent,
            small={name: encode_bytes(data) for name, data in small.items()} if small else None,
            **documents,
        )

    def call(self, errand: Errand, call: Callable[[], T]) -> T:
        """One call to the server about this job; Offline where it failed, or may not be made yet."""
        if self.silence(errand) > 0:
            raise Offline
        try:
            answer = call()
        except ChannelError:
            self._fall_silent(errand)
            raise Offline from None
        self._failures = errand.silences = 0
        self._failed.clear()
        return answer

    def silence(self, errand: Errand) -> float:
        """Seconds until the server may be called about this job."""
        return max(self._silent_until, errand.silent_until) - time.monotonic()

    def _fall_silent(self, errand: Errand) -> None:
        now = time.monotonic()
        errand.silent_until = now + backoff(errand.silences, 0.5, LONGEST_SILENCE)
        errand.silences += 1
        self._failed.add(errand.job)
        if len(self._failed) > 1:
            self._silent_until = now + backoff(self._failures, 0.5, LONGEST_SILENCE)
            self._failures += 1

    @contextlib.contextmanager
    def job(self, errand: Errand) -> Iterator[JobFolder]:
        job = self.counter.find(errand.job)
        with contextlib.closing(job):
            yield job
