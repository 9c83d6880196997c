"""What the agent remembers of one claim, in memory and on disk.

The note lies in the job's own folder, beside what transfers need. It is written before the server hears that we work on
the job, and it goes when the job is closed, or is not ours any more. So an agent that was killed knows what it holds.
"""

from __future__ import annotations

import contextlib
import enum
import os
import random
import select
import time
from dataclasses import dataclass, field
from typing import Dict, Optional, Set, Tuple

from ...job.codec import CodecError, decode, dump_json, encode
from ...job.manifest import MAX_DOCUMENT_BYTES
from ...job.states import Outcome
from ...wire.api import Claim
from .. import files
from ..jobs import DOOR, JobFolder, JobRecord
from ..runner import workspace
from .transfer_worker import TransferWorker

NOTE = "claim.json"
DELIVERED = "claim.delivered"
FIRST_LOOK = 0.004
# A job that has no pipe to us is looked at this often, once it runs for a while.
LAST_LOOK = 2.0


class Stage(enum.Enum):
    """What has to be done next."""

    TAKE = "take"
    FETCH = "fetch"
    START = "start"
    WATCH = "watch"
    DELIVER = "deliver"
    KEPT = "kept"
    DECLINE = "decline"


@dataclass(frozen=True)
class Note:
    """What must outlive the agent. `server` keeps it from being told to another server than the one that gave it."""

    job: str
    fence: int
    server: str


@dataclass
class ActiveClaim:
    """One claim that the agent works on. Times are of the monotonic clock."""

    job: str
    fence: int
    stage: Stage
    # As the server sent it, until it is taken.
    offer: Optional[Claim] = None
    due: float = 0.0
    pause: float = FIRST_LOOK
    failures: int = 0
    # Calls about this job that had no answer, one after the other, and until when none is made.
    silences: int = 0
    silent_until: float = 0.0
    worker: Optional[TransferWorker] = None
    worker_over: bool = False
    spoilt: int = 0
    # The site itself cannot take it now: until that has passed, no more work is asked for.
    waits: bool = False
    # The supervisor's pipe, which closes when it ends; -1 where we have none.
    pipe: int = -1
    record: Optional[JobRecord] = None
    stamp: Tuple[int, int] = (-1, -1)
    looked_after: float = 0.0
    told: Tuple[object, ...] = ()
    next_word: float = 0.0
    log_recorded: bool = False
    log_start: int = 0
    log_sent: int = 0
    # The server takes no more of the log.
    log_full: bool = False
    said_end: bool = False
    # How often the server did not take the end, or the results, as they are.
    not_taken: int = 0
    cancelled: bool = False
    declined: Outcome = Outcome.REFUSED
    reason: str = ""
    over: bool = False
    born: float = field(default_factory=time.monotonic)

    def now(self) -> None:
        """Something has to be done at once."""
        self.due = 0.0
        self.pause = FIRST_LOOK

    def rest(self, seconds: float) -> None:
        """Nothing has to be done for a while."""
        self.due = time.monotonic() + seconds

    def fail(self, least: float = 1.0) -> None:
        """Try again later, and later each time."""
        self.rest(backoff(self.failures, least))
        self.failures += 1


class ChildPipes:
    """The pipes whose closing says that a supervisor or a transfer worker has ended; nobody else closes them."""

    def __init__(self) -> None:
        self.poller = select.poll()
        self._claims: Dict[int, ActiveClaim] = {}
        self.children: Set[int] = set()
        # Those say by their exit status how it went: whoever sent them collects them.
        self.workers: Set[int] = set()

    def reap(self) -> None:
        """Collect the supervisors that have ended, and whatever else of ours has, such as a sweep."""
        for pid in list(self.children):
            if os.waitpid(pid, os.WNOHANG)[0]:
                self.children.discard(pid)
        with contextlib.suppress(ChildProcessError):
            while hasattr(os, "waitid"):
                child = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if child is None or child.si_pid in self.workers | self.children:
                    return
                os.waitpid(child.si_pid, 0)

    def watch(self, descriptor: int, claim: ActiveClaim) -> None:
        """From now on its closing is noticed."""
        self._claims[descriptor] = claim
        self.poller.register(descriptor, select.POLLIN)

    def find(self, descriptor: int) -> Optional[ActiveClaim]:
        """Whose pipe it is."""
        return self._claims.get(descriptor)

    def drop(self, descriptor: int) -> None:
        """It has said what it had to say, or is not needed any more."""
        if self._claims.pop(descriptor, None) is not None:
            self.poller.unregister(descriptor)
            os.close(descriptor)


def backoff(failures: int, least: float = 1.0, most: float = 60.0) -> float:
    """Seconds to wait after so many failures: doubled each time, never above `most`, never all at the same moment."""
    return float(min(most, least * 2 ** min(failures, 16)) * random.uniform(0.5, 1.0))


def list_records(note: Note, document: bytes) -> "Tuple[Tuple[str, bytes], ...]":
    """What a new job's folder gets from the agent: the manifest of the inputs as it came, and the note."""
    return (workspace.INPUTS, document), (f"{DOOR}/{NOTE}", dump_json(encode(note)) + b"\n")


def write_note(job: JobFolder, note: Note) -> None:
    """Keep another note."""
    with files.opened(job.sub(DOOR)) as door:
        files.write_json(door, NOTE, note)


def mark_delivered(job: JobFolder) -> None:
    """Everything has arrived. Not synced: who does not find this mark delivers once more, which changes nothing."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with files.opened(job.sub(DOOR)) as door:
        os.close(os.open(DELIVERED, flags, files.PRIVATE_FILE, dir_fd=door))


def is_delivered(job: JobFolder) -> bool:
    """Whether that was marked."""
    return files.exists(job.folder, f"{DOOR}/{DELIVERED}")


def read_note(job: JobFolder) -> Optional[Note]:
    """The note, or None where this job is no claim of ours (any more)."""
    try:
        with files.opened(job.sub(DOOR)) as door:
            plain = files.read_json(door, NOTE)
        return None if plain is None else decode(Note, plain)
    except (OSError, CodecError, ValueError):
        return None


def read_document(job: JobFolder) -> bytes:
    """The manifest of the inputs as it came with the claim."""
    return files.read_record(job.folder, workspace.INPUTS, MAX_DOCUMENT_BYTES) or b""


def drop_note(job: JobFolder) -> None:
    """The job is not ours any more. Not synced: a note that came back is dropped again, for its record or its fence."""
    with contextlib.suppress(FileNotFoundError), files.opened(job.sub(DOOR)) as door:
        os.unlink(NOTE, dir_fd=door)
