"""When a job is released, hundreds of agents wake; one look at the store tells all of them how many jobs there are.

Each that reserves a job then claims in the store, which alone decides; the others sleep on without having asked it.
"""

from __future__ import annotations

import asyncio

from sqlalchemy import Connection, select

from ..job.states import JobState
from .notifier import site_topic
from .problems import Refused
from .schema import JOBS
from .service import Service

MAX_UNCLAIMED = 1000


class UnclaimedJobs:
    """Jobs that nobody has claimed, for each site and user, as of the site's last change."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[int, asyncio.Task[set[str]]]] = {}

    async def reserve(self, service: Service, user: str, site: str, room: int) -> bool:
        """Whether there is something to be claimed; what this caller will claim is offered to nobody else."""
        key, stamp = (user, site), service.notifier.stamp(site_topic(site))
        known = self._known.get(key)
        if known is None or known[0] != stamp:
            task = asyncio.ensure_future(service.database.read(lambda c: _unclaimed(c, user, site)))
            known = self._known[key] = (stamp, task)
        try:
            free = await asyncio.shield(known[1])
        except Refused:
            self._known.pop(key, None)
            raise
        mine = [free.pop() for _ in range(min(room, len(free)))]
        return bool(mine)


def _unclaimed(connection: Connection, user: str, site: str) -> set[str]:
    statement = select(JOBS.c.job).where(
        JOBS.c.site == site,
        JOBS.c.owner == user,
        JOBS.c.state == JobState.STAGED.value,
        JOBS.c.agent.is_(None),
        JOBS.c.cancel == 0,
        JOBS.c.spec != "",
    )
    return {row.job for row in connection.execute(statement.limit(MAX_UNCLAIMED))}


UNCLAIMED = UnclaimedJobs()
