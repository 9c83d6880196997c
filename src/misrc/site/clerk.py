"""The clerk: takes each claim one step further, at the counter and at the server.

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

from ..job.codec import CodecError
from ..job.faults import reach
from ..job.manifest import Manifest
from ..job.names import NameRefused
from ..job.spec import JobSpec, parse_spec
from ..job.states import JobState, Outcome
from ..wire.api import ApiError, Claim, End, Orders, Report, decode_small
from ..wire.refusals import Denied, Refusal
from . import courier
from .api_client import ApiRefusal, SiteClient
from .counter import Counter
from .courier import send_courier
from .errand import (
    LAST_LOOK,
    Errand,
    Note,
    Stage,
    Ties,
    drop_note,
    is_delivered,
    list_records,
    mark_delivered,
    read_document,
    read_note,
    write_note,
)
from .jobs import JobFolder, JobRecord
from .teller import NOT_TAKEN, Offline, Teller

T = TypeVar("T")

# The site's troubles that pass: the claim waits here, and its lease is renewed meanwhile.
WAITS = (Refusal.BUSY, Refusal.INTERNAL, Refusal.WAITING, Refusal.SPACE, Refusal.LEDGER, Refusal.FROZEN)
TROUBLE_SECONDS = 15.0
# How often results are offered that the server does not take.
TRIES = 5
RESULTS_NOT_TAKEN = "MInt's server does not take the results; they are still at the site"
SERVER_FULL = "the server's disk is full: what the site sends waits here until there is room"
SITE_FULL = "the disk of the work root is full: a job waits until there is room"
_NO_ROOM = {courier.FULL: SERVER_FULL, courier.NO_ROOM: SITE_FULL}
# A job that ends sooner is never reported as running: the end says more.
FIRST_WORD = 0.25
NEXT_WORD = 2.0
REVIVE_SECONDS = 1.0
_LOG_PIECES = 64


class Clerk(Teller):
    """Acts for one agent; `clients` makes a connection of its own for a courier, `say` tells people."""

    def __init__(
        self, counter: Counter, ties: Ties, client: SiteClient, server: str, clients: Callable[[], SiteClient]
    ) -> None:
        super().__init__(counter, client)
        self.ties = ties
        self.server = server
        self.clients = clients
        self.couriers = 0
        self.say: Callable[[str], None] = lambda text: None
        self._steps: Dict[Stage, Callable[[Errand], None]] = {
            Stage.TAKE: self._take,
            Stage.FETCH: self._fetch,
            Stage.START: self._start,
            Stage.WATCH: self._watch,
            Stage.DELIVER: self._deliver,
            Stage.KEPT: lambda errand: errand.rest(3600),
            Stage.DECLINE: self._decline,
        }

    def act(self, errand: Errand) -> None:
        """Do what is due for one claim; afterwards `errand.due` says when to come again."""
        errand.waits = False
        try:
            if errand.courier is not None:
                if not errand.courier_over:
                    errand.rest(60)
                    return
                self._collect(errand)
            else:
                self._steps[errand.stage](errand)
        except Offline:
            errand.rest(max(0.05, self.silence(errand)))
        except ApiRefusal as refusal:
            self._told_no(errand, refusal)
        except Denied as denied:
            self._denied(errand, denied)
        except Exception as error:
            # One claim's trouble is not the others': it is tried again, later each time.
            full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
            self.say(SITE_FULL if full else f"job {errand.job}: {type(error).__name__}")
            errand.fail(5.0)

    # -- from the claim to the start ----------------------------------------------------------------------------

    def _take(self, errand: Errand) -> None:
        assert errand.claim is not None
        spec, manifest, inline = self._read_claim(errand.claim)
        note = Note(errand.job, errand.fence, self.server)
        records = list_records(note, errand.claim.manifest.encode("utf-8"))
        job = self.counter.open(spec, manifest, inline, signature=errand.claim.signature, beside=records)
        assert job is not None
        with contextlib.closing(job):
            reach("agent.opened")
            if read_note(job) != note:
                write_note(job, note)
        reach("agent.noted")
        errand.claim, errand.stage = None, Stage.FETCH
        self._fetch(errand)

    def _read_claim(self, claim: Claim) -> "Tuple[JobSpec, Manifest, Tuple[Tuple[str, bytes], ...]]":
        """A claim's documents as typed values, or Denied. Nothing has been written yet."""
        try:
            spec = parse_spec(claim.spec.encode("utf-8"))
            small = decode_small(claim.small or {}, results=False)
        except (CodecError, NameRefused, ValueError) as error:
            raise Denied(Refusal.SPEC, str(error)) from None
        if spec.job != claim.job:
            raise Denied(Refusal.SPEC, "the job spec is another job's")
        manifest = self.counter.parse_inputs(spec, claim.manifest.encode("utf-8", "surrogatepass"))
        named = {entry.name: entry for entry in manifest}
        for name, data in small.items():
            entry = named.get(name)
            if entry is None or (len(data), hashlib.sha256(data).hexdigest()) != (entry.size, entry.sha256):
                raise Denied(Refusal.INPUTS, "an input that came along is not the announced one")
        return spec, manifest, tuple(small.items())

    def _fetch(self, errand: Errand) -> None:
        with self.job(errand) as job:
            if not job.read().state.started:
                manifest = self.counter.parse_inputs(job.spec(), read_document(job))
                if courier.missing_inputs(job, manifest):
                    self._send(errand, job, lambda client: courier.fetch_inputs(client, job, errand.fence, manifest))
                    return
        errand.stage = Stage.START
        self._start(errand)

    def _start(self, errand: Errand) -> None:
        """First the server knows that it is ours for good, then it starts."""
        with self.job(errand) as job:
            record = job.read()
            if not record.state.started:
                report = _report(errand, record, JobState.QUEUED)
                orders = self.call(errand, lambda: self.client.report(errand.job, report))
                reach("agent.reported")
                if orders.cancel:
                    self.cancel(errand)
                    return
                document = read_document(job)
                self.counter.accept(job, self.counter.parse_inputs(job.spec(), document), document)
                reach("agent.accepted")
            errand.stage, errand.failures = Stage.WATCH, 0
            errand.next_word = time.monotonic() + FIRST_WORD
            self._look_after(errand, job)
            errand.now()
            if errand.tie >= 0:
                # Its end will show at once: looking is only for what is told meanwhile.
                errand.pause = FIRST_WORD
                errand.rest(FIRST_WORD)

    def _look_after(self, errand: Errand, job: JobFolder) -> None:
        """See to it that a supervisor lives, and learn of its end at once where it is a child of ours."""
        errand.looked_after = time.monotonic()
        tie, end = os.pipe()
        child = 0
        try:
            child = self.counter.runner.revive(job, job.read().state, end)
        finally:
            os.close(end)
            if child:
                errand.tie = tie
                self.ties.tie(tie, errand)
                self.ties.children.add(child)
            else:
                os.close(tie)
        reach("agent.started")

    # -- while it runs ------------------------------------------------------------------------------------------

    def _watch(self, errand: Errand) -> None:
        with self.job(errand) as job:
            record = self._look(errand, job)
            if record.state.final:
                errand.stage = Stage.DELIVER
                errand.failures = 0
            else:
                now = time.monotonic()
                if now >= errand.next_word:
                    errand.next_word = now + NEXT_WORD
                    with contextlib.suppress(Offline):
                        if self.tell(errand, job, record):
                            self.cancel(errand)
                if now - errand.looked_after > REVIVE_SECONDS:
                    self._revive(errand, job, record)
                errand.rest(min(errand.pause, max(0.01, errand.next_word - now)))
                errand.pause = min(errand.pause * 1.25, LAST_LOOK)
        if errand.stage is Stage.DELIVER:
            self._deliver(errand)

    def _look(self, errand: Errand, job: JobFolder) -> JobRecord:
        status = os.stat("job.json", dir_fd=job.folder)
        # Two writes within one tick of the clock have the same time, but not the same file.
        stamp = (status.st_mtime_ns, status.st_ino)
        if errand.record is None or stamp != errand.stamp:
            errand.stamp, errand.record = stamp, job.read()
        return errand.record

    def _revive(self, errand: Errand, job: JobFolder, record: JobRecord) -> None:
        if errand.tie < 0 and record.state in (JobState.QUEUED, JobState.RUNNING):
            self._look_after(errand, job)
        errand.looked_after = time.monotonic()

    # -- the end ------------------------------------------------------------------------------------------------

    def _deliver(self, errand: Errand) -> None:
        """Say how it ended; results go along, or by courier where the server says which are missing."""
        with self.job(errand) as job:
            record = job.read()
            small = self.let_leave(job)
            if small is None and errand.said_end:
                errand.rest(60)
                return
            if small is not None:
                self.send_log(errand, job, record, _LOG_PIECES)
            reach("agent.ending")
            end = self.describe_end(errand, job, record, small)
            orders = self.call(errand, lambda: self.client.end(errand.job, end))
            reach("agent.ended")
            errand.said_end = True
            if small is None:
                errand.rest(60)
            elif orders.missing:
                self._push(errand, job, orders)
            else:
                self._keep(errand, job, orders)

    def _push(self, errand: Errand, job: JobFolder, orders: Orders) -> None:
        wanted = frozenset(orders.missing)
        # The server's words choose among the names that may leave, and nothing else.
        entries = tuple(entry for entry in self.counter.manifest(job) if entry.name in wanted)
        if not entries:
            errand.fail(10.0)
            return
        self.counter.leave(job)
        self._send(errand, job, lambda client: courier.push_results(client, job, errand.fence, entries))

    def _keep(self, errand: Errand, job: JobFolder, orders: Orders) -> None:
        self._untie(errand)
        mark_delivered(job)
        reach("agent.delivered")
        errand.stage, errand.record = Stage.KEPT, None
        errand.rest(3600)
        if orders.close:
            self.close(errand)

    def _decline(self, errand: Errand) -> None:
        """Say that the job does not run here."""
        end = End(errand.fence, errand.declined, errand.reason)
        self.call(errand, lambda: self.client.end(errand.job, end))
        errand.over = True
        with contextlib.suppress(Denied, OSError), self.job(errand) as job:
            drop_note(job)

    # -- what the server wishes ---------------------------------------------------------------------------------

    def cancel(self, errand: Errand) -> None:
        """Stop the job, once."""
        if errand.cancelled or errand.stage in (Stage.DECLINE, Stage.DELIVER, Stage.KEPT):
            return
        errand.cancelled = True
        self._stop_courier(errand)
        errand.now()
        if errand.stage is Stage.TAKE:
            errand.stage, errand.declined, errand.reason = Stage.DECLINE, Outcome.CANCELLED, "cancelled by MInt"
            return
        with self.job(errand) as job:
            self.counter.cancel(job)
            reach("agent.cancelled")
        errand.stage = Stage.WATCH

    def close(self, errand: Errand) -> None:
        """MInt has what it needs."""
        if errand.stage is not Stage.KEPT:
            return
        with self.job(errand) as job:
            self.counter.close(job)
            reach("agent.closing")
            drop_note(job)
            self.counter.after_close(job)
        errand.over = True

    def give_up(self, errand: Errand) -> None:
        """The job is not ours any more: what runs of it here is stopped, and nothing more is told."""
        errand.over = True
        self._stop_courier(errand)
        self._untie(errand)
        with contextlib.suppress(Denied, OSError), self.job(errand) as job:
            state = job.read().state
            if not state.final:
                self.counter.record("cancel", errand.job, essential=True, note="the claim is lost")
                self.counter.runner.cancel(job)
            drop_note(job)

    def renew(self, errand: Errand, fence: int) -> None:
        """The same claim under a higher fence."""
        errand.fence = fence
        if errand.stage is not Stage.TAKE:
            with self.job(errand) as job:
                write_note(job, Note(errand.job, fence, self.server))

    # -- couriers -----------------------------------------------------------------------------------------------

    def _send(self, errand: Errand, job: JobFolder, work: Callable[[SiteClient], None]) -> None:
        if self.couriers >= courier.MAX_COURIERS:
            errand.rest(0.2)
            return
        fetches = errand.stage is Stage.FETCH
        if fetches:
            spec = job.spec()
            self.counter.record("put", errand.job, files=spec.files, bytes=spec.bytes)
        self.couriers += 1
        errand.courier, errand.courier_over = send_courier(lambda: work(self.clients())), False
        self.ties.tie(errand.courier.pipe, errand)
        self.ties.couriers.add(errand.courier.pid)
        errand.rest(3600)

    def _collect(self, errand: Errand) -> None:
        assert errand.courier is not None
        status = errand.courier.collect()
        self.ties.couriers.discard(errand.courier.pid)
        errand.courier, errand.courier_over = None, False
        self.couriers -= 1
        errand.now()
        if status == courier.FENCED:
            self.give_up(errand)
        elif status == courier.SPOILT:
            errand.spoilt += 1
            if errand.spoilt > 1:
                raise Denied(Refusal.INPUTS, "an input is not the announced one")
        elif status == courier.UNWANTED and errand.stage is Stage.DELIVER:
            self._not_taken(errand)
        elif status != courier.DONE:
            if status in _NO_ROOM:
                self.say(_NO_ROOM[status])
            errand.fail(5.0 if status in _NO_ROOM else 1.0)

    def _untie(self, errand: Errand) -> None:
        self.ties.cut(errand.tie)
        errand.tie = -1

    def _stop_courier(self, errand: Errand) -> None:
        if errand.courier is not None:
            self.ties.cut(errand.courier.pipe)
            errand.courier.stop()
            self.ties.couriers.discard(errand.courier.pid)
            errand.courier = None
            self.couriers -= 1

    # -- trouble ------------------------------------------------------------------------------------------------

    def _told_no(self, errand: Errand, refusal: ApiRefusal) -> None:
        if refusal.code in (ApiError.FENCED, ApiError.GONE):
            self.give_up(errand)
        elif errand.stage is Stage.DECLINE and refusal.code in (ApiError.UNKNOWN, ApiError.CONFLICT, ApiError.REFUSED):
            errand.over = True
        elif errand.stage is Stage.DELIVER and refusal.code in NOT_TAKEN:
            self._not_taken(errand)
        else:
            if refusal.code is ApiError.FULL:
                self.say(SERVER_FULL)
            # Also `unknown`: only the server's word `lost` ends a job, not its forgetting.
            errand.fail(max(1.0, refusal.wait or 0.0))

    def _not_taken(self, errand: Errand) -> None:
        """The server takes the end, or the results, not as they are. In the end it hears that, and nobody waits on."""
        errand.not_taken += 1
        if errand.not_taken < TRIES:
            errand.fail()
            return
        errand.stage, errand.declined, errand.reason = Stage.DECLINE, Outcome.REFUSED, RESULTS_NOT_TAKEN
        errand.now()

    def _denied(self, errand: Errand, denied: Denied) -> None:
        if denied.refusal in (Refusal.UNKNOWN_JOB, Refusal.GONE) and errand.stage not in (Stage.TAKE, Stage.DECLINE):
            # Somebody at the site deleted the job's folder: there is nothing left to tell.
            errand.over = True
            return
        if denied.refusal in WAITS or errand.stage in (Stage.WATCH, Stage.DELIVER, Stage.KEPT):
            errand.waits = errand.stage is Stage.TAKE
            if denied.refusal is Refusal.SPACE:
                self.say(SITE_FULL)
            errand.rest(TROUBLE_SECONDS)
            return
        with contextlib.suppress(Denied):
            self.counter.ledger.append(
                "refuse", essential=True, decision="deny", job=errand.job, reason=denied.refusal.value, note=denied.note
            )
        if errand.stage is not Stage.TAKE:
            with contextlib.suppress(Denied, OSError), self.job(errand) as job:
                self.counter.refuse(job, denied.refusal)
        errand.stage, errand.declined, errand.reason = Stage.DECLINE, Outcome.REFUSED, denied.refusal.value
        errand.now()


def _report(errand: Errand, record: JobRecord, state: JobState) -> Report:
    return Report(errand.fence, state, record.since)


def adopt(job: JobFolder, record: JobRecord, server: str) -> Optional[Errand]:
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
    errand = Errand(record.job, note.fence, stage)
    errand.due = 0.0 if stage is not Stage.KEPT else time.monotonic() + 3600
    return errand
