"""The claim handler: takes each claim one step further, at the site and at the server.

The order of steps is what makes a program start exactly once: the claim is noted at the site, then the server hears
`queued` and from then on gives the job to nobody else, and only then is the start accepted. Whatever is killed between
two steps, the next agent repeats the step, and every step may be repeated.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import time
from typing import Callable, Dict, Optional, Tuple, TypeVar

from ...job.codec import CodecError
from ...job.faults import reach
from ...job.manifest import Manifest
from ...job.names import NameRefused
from ...job.spec import JobSpec, parse_spec
from ...job.states import JobState, Outcome
from ...wire.api import ApiError, Claim, End, Orders, Report, decode_small
from ...wire.refusals import Denied, Refusal
from ..jobs import JobFolder, JobRecord
from ..operations import Operations
from . import transfer_worker
from .api_client import ApiRefusal, SiteClient
from .claim import (
    LAST_LOOK,
    ActiveClaim,
    ChildPipes,
    Note,
    Stage,
    drop_note,
    is_delivered,
    list_records,
    mark_delivered,
    read_document,
    read_note,
    write_note,
)
from .reporter import NOT_TAKEN, Offline, Reporter
from .transfer_worker import start_worker

T = TypeVar("T")

# The site's troubles that pass: the claim waits here, and its lease is renewed meanwhile.
WAITS = (Refusal.BUSY, Refusal.INTERNAL, Refusal.WAITING, Refusal.SPACE, Refusal.LEDGER, Refusal.FROZEN)
TROUBLE_SECONDS = 15.0
# How often results are offered that the server does not take.
TRIES = 5
RESULTS_NOT_TAKEN = "MInt's server does not take the results; they are still at the site"
SERVER_FULL = "the server's disk is full: what the site sends waits here until there is room"
SITE_FULL = "the disk of the work root is full: a job waits until there is room"
_NO_ROOM = {transfer_worker.FULL: SERVER_FULL, transfer_worker.NO_ROOM: SITE_FULL}
# A job that ends sooner is never reported as running: the end says more.
FIRST_WORD = 0.25
NEXT_WORD = 2.0
REVIVE_SECONDS = 1.0
_LOG_PIECES = 64


class ClaimHandler(Reporter):
    """Acts for one agent; `clients` makes a connection of its own for a transfer worker, `say` tells people."""

    def __init__(
        self,
        operations: Operations,
        pipes: ChildPipes,
        client: SiteClient,
        server: str,
        clients: Callable[[], SiteClient],
    ) -> None:
        super().__init__(operations, client)
        self.pipes = pipes
        self.server = server
        self.clients = clients
        self.workers = 0
        self.say: Callable[[str], None] = lambda text: None
        self._steps: Dict[Stage, Callable[[ActiveClaim], None]] = {
            Stage.TAKE: self._take,
            Stage.FETCH: self._fetch,
            Stage.START: self._start,
            Stage.WATCH: self._watch,
            Stage.DELIVER: self._deliver,
            Stage.KEPT: lambda claim: claim.rest(3600),
            Stage.DECLINE: self._decline,
        }

    def act(self, claim: ActiveClaim) -> None:
        """Do what is due for one claim; afterwards `claim.due` says when to come again."""
        claim.waits = False
        try:
            if claim.worker is not None:
                if not claim.worker_over:
                    claim.rest(60)
                    return
                self._collect(claim)
            else:
                self._steps[claim.stage](claim)
        except Offline:
            claim.rest(max(0.05, self.silence(claim)))
        except ApiRefusal as refusal:
            self._told_no(claim, refusal)
        except Denied as denied:
            self._denied(claim, denied)
        except Exception as error:
            # One claim's trouble is not the others': it is tried again, later each time.
            full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
            self.say(SITE_FULL if full else f"job {claim.job}: {type(error).__name__}")
            claim.fail(5.0)

    # -- from the claim to the start ----------------------------------------------------------------------------

    def _take(self, claim: ActiveClaim) -> None:
        assert claim.offer is not None
        spec, manifest, inline = self._read_claim(claim.offer)
        note = Note(claim.job, claim.fence, self.server)
        records = list_records(note, claim.offer.manifest.encode("utf-8"))
        job = self.operations.open(spec, manifest, inline, signature=claim.offer.signature, beside=records)
        assert job is not None
        with contextlib.closing(job):
            reach("agent.opened")
            if read_note(job) != note:
                write_note(job, note)
        reach("agent.noted")
        claim.offer, claim.stage = None, Stage.FETCH
        self._fetch(claim)

    def _read_claim(self, offer: Claim) -> "Tuple[JobSpec, Manifest, Tuple[Tuple[str, bytes], ...]]":
        """A claim's documents as typed values, or Denied. Nothing has been written yet."""
        try:
            spec = parse_spec(offer.spec.encode("utf-8"))
            small = decode_small(offer.small or {}, results=False)
        except (CodecError, NameRefused, ValueError) as error:
            raise Denied(Refusal.SPEC, str(error)) from None
        if spec.job != offer.job:
            raise Denied(Refusal.SPEC, "the job spec is another job's")
        manifest = self.operations.parse_inputs(spec, offer.manifest.encode("utf-8", "surrogatepass"))
        named = {entry.name: entry for entry in manifest}
        for name, data in small.items():
            entry = named.get(name)
            if entry is None or (len(data), hashlib.sha256(data).hexdigest()) != (entry.size, entry.sha256):
                raise Denied(Refusal.INPUTS, "an input that came along is not the announced one")
        return spec, manifest, tuple(small.items())

    def _fetch(self, claim: ActiveClaim) -> None:
        with self.job(claim) as job:
            if not job.read().state.started:
                manifest = self.operations.parse_inputs(job.spec(), read_document(job))
                if transfer_worker.missing_inputs(job, manifest):
                    self._send(
                        claim, job, lambda client: transfer_worker.fetch_inputs(client, job, claim.fence, manifest)
                    )
                    return
        claim.stage = Stage.START
        self._start(claim)

    def _start(self, claim: ActiveClaim) -> None:
        """First the server knows that it is ours for good, then it starts."""
        with self.job(claim) as job:
            record = job.read()
            if not record.state.started:
                report = _report(claim, record, JobState.QUEUED)
                orders = self.call(claim, lambda: self.client.report(claim.job, report))
                reach("agent.reported")
                if orders.cancel:
                    self.cancel(claim)
                    return
                document = read_document(job)
                self.operations.accept(job, self.operations.parse_inputs(job.spec(), document), document)
                reach("agent.accepted")
            claim.stage, claim.failures = Stage.WATCH, 0
            claim.next_word = time.monotonic() + FIRST_WORD
            self._look_after(claim, job)
            claim.now()
            if claim.pipe >= 0:
                # Its end will show at once: looking is only for what is told meanwhile.
                claim.pause = FIRST_WORD
                claim.rest(FIRST_WORD)

    def _look_after(self, claim: ActiveClaim, job: JobFolder) -> None:
        """See to it that a supervisor lives, and learn of its end at once where it is a child of ours."""
        claim.looked_after = time.monotonic()
        pipe, end = os.pipe()
        child = 0
        try:
            child = self.operations.runner.revive(job, job.read().state, end)
        finally:
            os.close(end)
            if child:
                claim.pipe = pipe
                self.pipes.watch(pipe, claim)
                self.pipes.children.add(child)
            else:
                os.close(pipe)
        reach("agent.started")

    # -- while it runs ------------------------------------------------------------------------------------------

    def _watch(self, claim: ActiveClaim) -> None:
        with self.job(claim) as job:
            record = self._look(claim, job)
            if record.state.final:
                claim.stage = Stage.DELIVER
                claim.failures = 0
            else:
                now = time.monotonic()
                if now >= claim.next_word:
                    claim.next_word = now + NEXT_WORD
                    with contextlib.suppress(Offline):
                        if self.tell(claim, job, record):
                            self.cancel(claim)
                if now - claim.looked_after > REVIVE_SECONDS:
                    self._revive(claim, job, record)
                claim.rest(min(claim.pause, max(0.01, claim.next_word - now)))
                claim.pause = min(claim.pause * 1.25, LAST_LOOK)
        if claim.stage is Stage.DELIVER:
            self._deliver(claim)

    def _look(self, claim: ActiveClaim, job: JobFolder) -> JobRecord:
        status = os.stat("job.json", dir_fd=job.folder)
        # Two writes within one tick of the clock have the same time, but not the same file.
        stamp = (status.st_mtime_ns, status.st_ino)
        if claim.record is None or stamp != claim.stamp:
            claim.stamp, claim.record = stamp, job.read()
        return claim.record

    def _revive(self, claim: ActiveClaim, job: JobFolder, record: JobRecord) -> None:
        if claim.pipe < 0 and record.state in (JobState.QUEUED, JobState.RUNNING):
            self._look_after(claim, job)
        claim.looked_after = time.monotonic()

    # -- the end ------------------------------------------------------------------------------------------------

    def _deliver(self, claim: ActiveClaim) -> None:
        """Say how it ended; results go along, or by a transfer worker where the server says which are missing."""
        with self.job(claim) as job:
            record = job.read()
            small = self.let_leave(job)
            if small is None and claim.said_end:
                claim.rest(60)
                return
            if small is not None:
                self.send_log(claim, job, record, _LOG_PIECES)
            reach("agent.ending")
            end = self.describe_end(claim, job, record, small)
            orders = self.call(claim, lambda: self.client.end(claim.job, end))
            reach("agent.ended")
            claim.said_end = True
            if small is None:
                claim.rest(60)
            elif orders.missing:
                self._push(claim, job, orders)
            else:
                self._keep(claim, job, orders)

    def _push(self, claim: ActiveClaim, job: JobFolder, orders: Orders) -> None:
        wanted = frozenset(orders.missing)
        # The server's words choose among the names that may leave, and nothing else.
        entries = tuple(entry for entry in self.operations.manifest(job) if entry.name in wanted)
        if not entries:
            claim.fail(10.0)
            return
        self.operations.leave(job)
        self._send(claim, job, lambda client: transfer_worker.push_results(client, job, claim.fence, entries))

    def _keep(self, claim: ActiveClaim, job: JobFolder, orders: Orders) -> None:
        self._drop_pipe(claim)
        mark_delivered(job)
        reach("agent.delivered")
        claim.stage, claim.record = Stage.KEPT, None
        claim.rest(3600)
        if orders.close:
            self.close(claim)

    def _decline(self, claim: ActiveClaim) -> None:
        """Say that the job does not run here."""
        end = End(claim.fence, claim.declined, claim.reason)
        self.call(claim, lambda: self.client.end(claim.job, end))
        claim.over = True
        with contextlib.suppress(Denied, OSError), self.job(claim) as job:
            drop_note(job)

    # -- what the server wishes ---------------------------------------------------------------------------------

    def cancel(self, claim: ActiveClaim) -> None:
        """Stop the job, once."""
        if claim.cancelled or claim.stage in (Stage.DECLINE, Stage.DELIVER, Stage.KEPT):
            return
        claim.cancelled = True
        self._stop_worker(claim)
        claim.now()
        if claim.stage is Stage.TAKE:
            claim.stage, claim.declined, claim.reason = Stage.DECLINE, Outcome.CANCELLED, "cancelled by MInt"
            return
        with self.job(claim) as job:
            self.operations.cancel(job)
            reach("agent.cancelled")
        claim.stage = Stage.WATCH

    def close(self, claim: ActiveClaim) -> None:
        """MInt has what it needs."""
        if claim.stage is not Stage.KEPT:
            return
        with self.job(claim) as job:
            self.operations.close(job)
            reach("agent.closing")
            drop_note(job)
            self.operations.after_close(job)
        claim.over = True

    def give_up(self, claim: ActiveClaim) -> None:
        """The job is not ours any more: what runs of it here is stopped, and nothing more is told."""
        claim.over = True
        self._stop_worker(claim)
        self._drop_pipe(claim)
        with contextlib.suppress(Denied, OSError), self.job(claim) as job:
            state = job.read().state
            if not state.final:
                self.operations.record("cancel", claim.job, essential=True, note="the claim is lost")
                self.operations.runner.cancel(job)
            drop_note(job)

    def renew(self, claim: ActiveClaim, fence: int) -> None:
        """The same claim under a higher fence."""
        claim.fence = fence
        if claim.stage is not Stage.TAKE:
            with self.job(claim) as job:
                write_note(job, Note(claim.job, fence, self.server))

    # -- transfer workers ---------------------------------------------------------------------------------------

    def _send(self, claim: ActiveClaim, job: JobFolder, work: Callable[[SiteClient], None]) -> None:
        if self.workers >= transfer_worker.MAX_WORKERS:
            claim.rest(0.2)
            return
        fetches = claim.stage is Stage.FETCH
        if fetches:
            spec = job.spec()
            self.operations.record("put", claim.job, files=spec.files, bytes=spec.bytes)
        self.workers += 1
        claim.worker, claim.worker_over = start_worker(lambda: work(self.clients())), False
        self.pipes.watch(claim.worker.pipe, claim)
        self.pipes.workers.add(claim.worker.pid)
        claim.rest(3600)

    def _collect(self, claim: ActiveClaim) -> None:
        assert claim.worker is not None
        status = claim.worker.collect()
        self.pipes.workers.discard(claim.worker.pid)
        claim.worker, claim.worker_over = None, False
        self.workers -= 1
        claim.now()
        if status == transfer_worker.FENCED:
            self.give_up(claim)
        elif status == transfer_worker.SPOILT:
            claim.spoilt += 1
            if claim.spoilt > 1:
                raise Denied(Refusal.INPUTS, "an input is not the announced one")
        elif status == transfer_worker.UNWANTED and claim.stage is Stage.DELIVER:
            self._not_taken(claim)
        elif status != transfer_worker.DONE:
            if status in _NO_ROOM:
                self.say(_NO_ROOM[status])
            claim.fail(5.0 if status in _NO_ROOM else 1.0)

    def _drop_pipe(self, claim: ActiveClaim) -> None:
        self.pipes.drop(claim.pipe)
        claim.pipe = -1

    def _stop_worker(self, claim: ActiveClaim) -> None:
        if claim.worker is not None:
            self.pipes.drop(claim.worker.pipe)
            claim.worker.stop()
            self.pipes.workers.discard(claim.worker.pid)
            claim.worker = None
            self.workers -= 1

    # -- trouble ------------------------------------------------------------------------------------------------

    def _told_no(self, claim: ActiveClaim, refusal: ApiRefusal) -> None:
        if refusal.code in (ApiError.FENCED, ApiError.GONE):
            self.give_up(claim)
        elif claim.stage is Stage.DECLINE and refusal.code in (ApiError.UNKNOWN, ApiError.CONFLICT, ApiError.REFUSED):
            claim.over = True
        elif claim.stage is Stage.DELIVER and refusal.code in NOT_TAKEN:
            self._not_taken(claim)
        else:
            if refusal.code is ApiError.FULL:
                self.say(SERVER_FULL)
            # Also `unknown`: only the server's word `lost` ends a job, not its forgetting.
            claim.fail(max(1.0, refusal.wait or 0.0))

    def _not_taken(self, claim: ActiveClaim) -> None:
        """The server takes the end, or the results, not as they are. In the end it hears that, and nobody waits on."""
        claim.not_taken += 1
        if claim.not_taken < TRIES:
            claim.fail()
            return
        claim.stage, claim.declined, claim.reason = Stage.DECLINE, Outcome.REFUSED, RESULTS_NOT_TAKEN
        claim.now()

    def _denied(self, claim: ActiveClaim, denied: Denied) -> None:
        if denied.refusal in (Refusal.UNKNOWN_JOB, Refusal.GONE) and claim.stage not in (Stage.TAKE, Stage.DECLINE):
            # Somebody at the site deleted the job's folder: there is nothing left to tell.
            claim.over = True
            return
        if denied.refusal in WAITS or claim.stage in (Stage.WATCH, Stage.DELIVER, Stage.KEPT):
            claim.waits = claim.stage is Stage.TAKE
            if denied.refusal is Refusal.SPACE:
                self.say(SITE_FULL)
            claim.rest(TROUBLE_SECONDS)
            return
        with contextlib.suppress(Denied):
            self.operations.ledger.append(
                "refuse", essential=True, decision="deny", job=claim.job, reason=denied.refusal.value, note=denied.note
            )
        if claim.stage is not Stage.TAKE:
            with contextlib.suppress(Denied, OSError), self.job(claim) as job:
                self.operations.refuse(job, denied.refusal)
        claim.stage, claim.declined, claim.reason = Stage.DECLINE, Outcome.REFUSED, denied.refusal.value
        claim.now()


def _report(claim: ActiveClaim, record: JobRecord, state: JobState) -> Report:
    return Report(claim.fence, state, record.since)


def adopt(job: JobFolder, record: JobRecord, server: str) -> Optional[ActiveClaim]:
    """The claim that an earlier agent left with this job, if it is one of this server's."""
    note = read_note(job)
    if note is None or note.server != server or note.job != record.job:
        return None
    if record.state is JobState.CLOSED:
        drop_note(job)
        return None
    if record.state.final:
        stage = Stage.KEPT if is_delivered(job) else Stage.DELIVER
    else:
        stage = Stage.WATCH if record.state.started else Stage.FETCH
    claim = ActiveClaim(record.job, note.fence, stage)
    claim.due = 0.0 if stage is not Stage.KEPT else time.monotonic() + 3600
    return claim
