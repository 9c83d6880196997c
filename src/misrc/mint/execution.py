"""Execute: start the agreed program, once, and wait for its end. A repeated start is answered "already started"."""

from __future__ import annotations

from collections.abc import Callable

from ..job.errors import Refused
from ..job.faults import reach
from ..job.states import JobState
from ..wire.grammar import MAX_WAIT_SECONDS
from ..wire.refusals import Refusal
from ..wire.replies import Reply
from .answers import INPUTS, note_accepted, note_answer
from .jobs import JobStore, MintJob
from .link.link import Link


def start(store: JobStore, link: Link) -> MintJob:
    """Start the program, unless the site has accepted the start already."""
    reach("start.enter")
    record = store.read()
    if record.state is JobState.STAGED:
        document = store.load(INPUTS) or b""
        try:
            reply, _ = link.retrying(lambda: link.start(record.job, document))
        except Refused as refused:
            if refused.code == Refusal.INPUTS.value:
                _stage_again(store)
            raise
        note_accepted(store, reply)
    reach("start.leave")
    return store.read()


def _stage_again(store: JobStore) -> None:
    """What arrived is not what was announced: the next call sends what differs."""
    import dataclasses

    store.save(dataclasses.replace(store.read(), state=JobState.CREATED))


def wait(store: JobStore, link: Link, seconds: float, on_progress: Callable[[Reply], None] | None = None) -> bool:
    """Wait up to `seconds` for the program's end; whether it has ended. Does not retry: the caller decides."""
    reach("wait.enter")
    record = store.read()
    if record.state.final:
        return True
    bound = max(0, min(int(seconds), MAX_WAIT_SECONDS))
    reply, sections = link.wait(record.job, bound, on_progress=on_progress)
    note_answer(store, reply, sections)
    reach("wait.leave")
    return store.read().state.final
