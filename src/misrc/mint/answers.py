"""What a gate's answer changes here: documents are kept first, so that an ended record always has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..job.codec import encode
from ..job.states import JobState
from ..wire.replies import FILE_PREFIX, Reply
from .jobs import JobStore

INPUTS = "inputs.jsonl"
MANIFEST = "manifest.jsonl"
RECEIPT = "receipt.json"
SIGNATURE = "receipt.sig"
_DOCUMENTS = {"manifest": MANIFEST, "receipt": RECEIPT, "signature": SIGNATURE}


def tell_program(store: JobStore) -> Callable[[Reply], None]:
    """For a play that waits a little: passes on what the program reports of itself."""

    def tell(reply: Reply) -> None:
        if reply.state is not None:
            store.tell_progress(
                phase="program",
                state=reply.state.value,
                reason=reply.reason,
                since=reply.since,
                progress=encode(reply.progress),
            )

    return tell


def tells_end(sections: Mapping[str, bytes]) -> bool:
    """Whether an answer brought the documents of a job's end, and is not just its state."""
    return "receipt" in sections


def note_accepted(store: JobStore, reply: Reply) -> None:
    """Keep that a start was accepted. An end that comes without its documents is left for `wait`, which brings them."""
    state = reply.state or JobState.QUEUED
    store.advance(JobState.RUNNING if state.final else state, checkpoint=reply.checkpoint)


def note_answer(store: JobStore, reply: Reply, sections: Mapping[str, bytes]) -> None:
    """Keep what the site said of a job."""
    if reply.state is None:
        return
    for name, file in _DOCUMENTS.items():
        if name in sections:
            store.write(file, sections[name])
    for name, data in sections.items():
        if name.startswith(FILE_PREFIX):
            store.keep_small(name[len(FILE_PREFIX) :], data)
    # Retrieved and closed are our own words: the site may have heard `close` although its answer was lost.
    state = JobState.ENDED if reply.state.final else reply.state
    store.advance(state, outcome=reply.outcome, reason=reply.reason or "", checkpoint=reply.checkpoint)
