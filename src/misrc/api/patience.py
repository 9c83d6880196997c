"""A job's clocks wait while its files move: a call of the predecessor holds all of them, and may take hours.

Its clients say nothing else meanwhile. A claim that ran out under a slow line was handed out again, for ever, and
results that took longer than the server waits for them were lost behind an answer of success.

Not covered: a transfer that stands still. No byte moves, and the clock goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from sqlalchemy import Update, update

from .call import Call
from .problems import Refused
from .schema import JOBS
from .service import Service


async def be_patient(service: Service, call: Call, renew: Callable[[Update, float], Update]) -> None:
    """Beside a call, for as long as it lasts: `renew` makes the update of JOBS that sets clocks anew, at a moment."""
    times, moved = service.times, 0
    shortest = min(times.legacy_claim, times.legacy_results, times.legacy_abnormal, times.fetched)
    while True:
        await asyncio.sleep(shortest / 4)
        if call.moved != moved:
            moved = call.moved
            with contextlib.suppress(Refused):
                await service.database.write("seen", lambda tx: tx.connection.execute(renew(update(JOBS), tx.now)))
