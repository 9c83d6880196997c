"""A workflow that is stopped sends a signal: work then ends in order, and what it began is cancelled."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stopped(BaseException):
    """The workflow was stopped: what was begun is to be cancelled."""


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Turn the signals by which a workflow is stopped into `Stopped`, once.

    Those that the caller ignores stay ignored: `nohup misrc run …` outlives its terminal.
    """

    def stop(number: int, frame: object) -> None:
        for other in _STOPS:
            signal.signal(other, signal.SIG_IGN)
        raise Stopped

    before = {number: signal.getsignal(number) for number in _STOPS}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


def end_quietly() -> None:
    """An interrupt while nothing has begun yet ends us as any program, without Python's account of where."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
