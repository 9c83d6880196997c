"""Execute: start the agreed program, once, and wait for its end. A repeated start is answered "already started"."""

from __future__ import annotations

from collections.abc import Callable

from ..job.errors import Refused
from ..job.faults import reach
from ..job.states import JobState
from ..wire.grammar import MAX_WAIT_SECONDS, Command, Verb, render_command
from ..wire.refusals import Refusal
from ..wire.replies import Reply
from .answers import INPUTS, note_accepted, note_answer
from .connection import SESSION_SECONDS, Connection
from .jobs import JobStore, MintJob


def start(store: JobStore, connection: Connection) -> MintJob:
    """Start the program, unless the site has accepted the start already."""
    reach("start.enter")
    record = store.read()
    if record.state is JobState.STAGED:
        command = render_command(Command(Verb.START, record.job))
        document = store.load(INPUTS) or b""
        try:
            reply, _ = connection.retrying(lambda: connection.ask(command, document))
        except Refused as refused:
            if refused.code == Refusal.INPUTS.value:
                _stage_again(store)
            raise
        note_accepted(store, reply)
    reach("start.leave")
    return store.read()


def _stage_again(store: JobStore) -> None:
    """What arrived is not what was announced: the next call sends it again (rsync mends only what differs)."""
    import dataclasses

    store.save(dataclasses.replace(store.read(), state=JobState.CREATED))


def wait(
    store: JobStore, connection: Connection, seconds: float, on_progress: Callable[[Reply], None] | None = None
) -> bool:
    """Wait up to `seconds` for the program's end; whether it has ended. Does not retry: the caller decides."""
    reach("wait.enter")
    record = store.read()
    if record.state.final:
        return True
    bound = max(0, min(int(seconds), MAX_WAIT_SECONDS))
    command = render_command(Command(Verb.WAIT, record.job, bound, 0))
    reply, sections = connection.ask(command, on_progress=on_progress, seconds=bound + SESSION_SECONDS)
    note_answer(store, reply, sections)
    reach("wait.leave")
    return store.read().state.final
