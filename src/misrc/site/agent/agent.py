"""Door 2: the agent asks MInt's API server for work, and does what the gate does for a connection.

One thread, one connection that waits for work and one for everything else; transfer workers move large files,
programs run under supervisors that outlive the agent. What the server sends selects a program and fills declared
arguments; there is no way to change policy, configuration or code from there.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import sys
import time
from typing import Callable, Dict, Iterable, List, Tuple

from ...job.faults import reach
from ...job.names import is_job_id
from ...wire.api import MAX_HOLDING, ApiError, Holding, Poll, Work
from ...wire.refusals import Denied
from .. import jobs, kernel
from ..premises import Premises
from .api_client import ApiRefusal, SiteClient
from .claim import ActiveClaim, ChildPipes, Stage, backoff
from .claim_handler import ClaimHandler, adopt
from .http_channel import ChannelError

POLL_SECONDS = 50
# How long after that the server may stay silent before the connection counts as dead.
POLL_GRACE = 25.0
# An answer that brings nothing new this quickly is an error of the server: it must not make us ask without end.
QUICK_SECONDS = 1.0
IDLE_SECONDS = 2.0
FULL = "the disk of the work root is full: no new jobs are asked for until there is room"
ROOM = "the disk of the work root has room again"


class Agent:
    """One agent of one site, for one server."""

    def __init__(self, name: str, server: str, premises: Premises, clients: Callable[[], SiteClient]) -> None:
        self._name = name
        self._server = server
        self._premises = premises
        self._asking = clients()
        self._pipes = ChildPipes()
        self._poller = self._pipes.poller
        self._handler = ClaimHandler(premises.operations(), self._pipes, clients(), server, clients)
        self._handler.say = self.say
        self._claims: Dict[str, ActiveClaim] = {}
        # Whether the policy can be trusted now; if not, nothing begins and nothing leaves.
        self._sound = True
        self._wakeup = -1
        self._stopping = False
        self._asked = 0.0
        self._waits = False
        self._waits_on = -1
        self._ask_at = 0.0
        self._failures = 0
        self._quick = 0
        self._hello = True
        self._room_asked = 0
        self._said = ""
        self._full = False

    def run(self) -> int:
        """Until a signal says to stop. Jobs go on without us, and the next agent takes them up."""
        self._catch_signals()
        self._adopt()
        kernel.load()
        # What is here now stays: forks then share these pages, and never write to them to count.
        gc.collect()
        gc.freeze()
        try:
            while not self._stopping:
                self._ask()
                self._wait()
                self._act()
        finally:
            for claim in self._claims.values():
                if claim.worker is not None:
                    claim.worker.stop()
            self._asking.channel.close()
        return 0

    def say(self, text: str) -> None:
        """One line for the people of the site; the same trouble is told once."""
        if text != self._said:
            self._said = text
            print(f"misrc-agent: {text}", file=sys.stderr, flush=True)

    # -- start --------------------------------------------------------------------------------------------------

    def _catch_signals(self) -> None:
        self._wakeup, end = os.pipe()
        os.set_blocking(end, False)
        os.set_blocking(self._wakeup, False)
        signal.set_wakeup_fd(end, warn_on_full_buffer=False)
        self._poller.register(self._wakeup, select.POLLIN)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _stop(self, number: int, frame: object) -> None:
        self._stopping = True

    def _adopt(self) -> None:
        """The claims that an earlier agent left."""
        operations = self._handler.operations
        for job, record in jobs.read_jobs(operations.root, operations.policy.work_root):
            claim = adopt(job, record, self._server)
            if claim is not None:
                self._claims[claim.job] = claim
        if self._claims:
            self.say(f"{len(self._claims)} claims of an earlier run are taken up")

    # -- asking for work ----------------------------------------------------------------------------------------

    def _ask(self) -> None:
        now = time.monotonic()
        if self._waits and now > self._asked + POLL_SECONDS + POLL_GRACE:
            self._trouble("the server does not answer", 0.0)
        if self._waits or now < self._ask_at:
            return
        room = self._room()
        hello = self._handler.operations.describe("-") if self._hello else None
        try:
            self._asking.ask(Poll(self._name, POLL_SECONDS, room, self._holding(), hello))
        except (ChannelError, OSError) as error:
            self._trouble(str(getattr(error, "strerror", "") or error), 0.0)
            return
        self._room_asked = room
        self._asked, self._waits = now, True
        self._waits_on = self._asking.channel.fileno()
        self._poller.register(self._waits_on, select.POLLIN)

    def _room(self) -> int:
        """How many more jobs are wanted: none while the site could not take them."""
        operations = self._handler.operations
        try:
            if not self._sound or operations.ledger.is_frozen() or not self._has_space(operations.free()):
                return 0
            waiting = sum(claim.stage in (Stage.TAKE, Stage.FETCH) for claim in self._claims.values())
            spare = MAX_HOLDING - len(self._claims)
            stuck = any(claim.waits for claim in self._claims.values())
            return 0 if stuck else max(0, min(operations.room() - waiting, spare, MAX_HOLDING))
        except (OSError, Denied):
            return 0

    def _has_space(self, free: int) -> bool:
        """Whether a job could be taken at all; a change is told."""
        if self._full != (free <= 0):
            self._full = free <= 0
            self.say(FULL if self._full else ROOM)
        return not self._full

    def _holding(self) -> Tuple[Holding, ...]:
        listed = list(self._claims.values())[:MAX_HOLDING]
        return tuple(Holding(claim.job, claim.fence) for claim in listed)

    def _follow_policy(self) -> None:
        """A changed policy holds from the next step on; one that cannot be trusted stops everything but `cancel`."""
        try:
            operations = self._premises.operations()
        except Denied as denied:
            self._sound = False
            self.say(f"nothing is done until this is mended: {denied.note}")
            return
        self._sound = True
        if operations is not self._handler.operations:
            self._handler.operations, self._hello = operations, True
            self.say("the policy was read again")

    def _trouble(self, text: str, least: float) -> None:
        """The server cannot be asked: for ever again, later each time."""
        self._leave_poll()
        self._asking.channel.close()
        pause = max(least, backoff(self._failures, 0.5))
        self._failures += 1
        self._hello = True
        self._ask_at = time.monotonic() + pause
        self.say(f"{self._server} cannot be asked, trying on: {text}")

    def _leave_poll(self) -> None:
        if self._waits:
            self._poller.unregister(self._waits_on)
        self._waits = False

    # -- what came ----------------------------------------------------------------------------------------------

    def _wait(self) -> None:
        """Until something happens or is due."""
        now = time.monotonic()
        due = min([now + IDLE_SECONDS, *(claim.due for claim in self._claims.values() if self._sound)])
        if not self._waits:
            due = min(due, self._ask_at)
        for descriptor, _ in self._poller.poll(max(0.0, due - now) * 1000):
            if descriptor == self._wakeup:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wakeup, 4096)
            elif self._pipes.find(descriptor) is not None:
                self._note_end(descriptor)
            else:
                self._take_answer()

    def _note_end(self, descriptor: int) -> None:
        """A supervisor or a transfer worker has ended."""
        claim = self._pipes.find(descriptor)
        assert claim is not None
        self._pipes.drop(descriptor)
        if claim.worker is not None and claim.worker.pipe == descriptor:
            claim.worker_over = True
        else:
            claim.pipe, claim.looked_after = -1, 0.0
        claim.now()

    def _take_answer(self) -> None:
        try:
            if not self._asking.channel.arrived():
                return
            self._leave_poll()
            work = self._asking.take()
        except ApiRefusal as refusal:
            least = 5.0 if refusal.code in (ApiError.UNAUTHENTICATED, ApiError.FORBIDDEN) else 1.0
            self._trouble(f"it says {refusal.code.value}", max(least, refusal.wait or 0.0))
            return
        except (ChannelError, OSError) as error:
            self._trouble(str(getattr(error, "strerror", "") or error), 0.0)
            return
        reach("agent.claimed")
        self._failures, self._hello = 0, False
        if self._said and not self._full:
            self.say(f"{self._server} is asked for work")
        new = self._obey(work)
        quick = not new and time.monotonic() - self._asked < QUICK_SECONDS
        self._quick = self._quick + 1 if quick else 0
        self._ask_at = time.monotonic() + (backoff(self._quick, 0.02, 10.0) if self._quick > 1 else 0.0)

    def _obey(self, work: Work) -> bool:
        """Take up what is new, as far as there was room; whether there was anything new."""
        new = self._take_up(work)
        for job in self._known(work.lost):
            new = True
            self.say(f"job {job.job} is not ours any more")
            self._handler.give_up(job)
        for job in self._known(work.cancel):
            new |= not job.cancelled
            self._try(self._handler.cancel, job)
        for job in self._known(work.close):
            new |= job.stage is Stage.KEPT
            self._try(self._handler.close, job)
        self._forget()
        return new

    def _take_up(self, work: Work) -> bool:
        new = False
        for offer in work.claims[: self._room_asked]:
            known = self._claims.get(offer.job)
            if known is None and is_job_id(offer.job):
                self._claims[offer.job] = ActiveClaim(offer.job, offer.fence, Stage.TAKE, offer)
                new = True
            elif known is not None and offer.fence > known.fence:
                self._try(lambda claim: self._handler.renew(claim, offer.fence), known)  # noqa: B023
        return new

    def _known(self, names: Iterable[str]) -> List[ActiveClaim]:
        return [self._claims[name] for name in names if name in self._claims]

    def _try(self, action: Callable[[ActiveClaim], None], claim: ActiveClaim) -> None:
        """What cannot be done now is said again by the server."""
        with contextlib.suppress(Denied, OSError):
            action(claim)

    # -- doing --------------------------------------------------------------------------------------------------

    def _act(self) -> None:
        now = time.monotonic()
        self._follow_policy()
        due = [claim for claim in self._claims.values() if claim.due <= now and self._sound]
        for claim in sorted(due, key=lambda one: one.born):
            if claim.over:
                continue
            self._handler.act(claim)
            # A burst of work must not keep the next question waiting.
            if not self._waits and time.monotonic() >= self._ask_at and not self._stopping:
                self._ask()
        self._pipes.reap()
        self._forget()

    def _forget(self) -> None:
        for claim in [claim for claim in self._claims.values() if claim.over]:
            del self._claims[claim.job]
