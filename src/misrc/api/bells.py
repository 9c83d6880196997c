"""Who waits for what: a change rings its topics, and whoever waits looks again.

Topics are `site:ID` (something for its agents), `job:ID` (a job's version grew) and `tokens`. A ring may be one too
many, never one too few: subscribe first, then look.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator

TOKENS = "tokens"


def site_topic(site: str) -> str:
    """Rings when an agent of the site may find something new."""
    return f"site:{site}"


def job_topic(job: str) -> str:
    """Rings when the job's version grew."""
    return f"job:{job}"


class Bells:
    """All within one event loop. `stamp` lets a cache see whether anything rang since."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self._stamps: dict[str, int] = {}
        self._everything = 0
        self.stopping = False

    def stamp(self, topic: str) -> int:
        """Grows whenever the topic rings; only for topics that are few, as sites and tokens."""
        return self._stamps.get(topic, 0) + self._everything

    def ring(self, topics: Iterable[str]) -> None:
        """Wake everybody who waits for one of the topics."""
        for topic in topics:
            if not topic.startswith("job:"):
                self._stamps[topic] = self._stamps.get(topic, 0) + 1
            for waiter in self._waiting.pop(topic, ()):
                if not waiter.done():
                    waiter.set_result(None)

    def ring_all(self) -> None:
        """Wake everybody: changes may have been missed, or the server stops."""
        self._everything += 1
        self.ring(list(self._waiting))

    def stop(self) -> None:
        """From now on nobody waits."""
        self.stopping = True
        self.ring_all()

    @contextlib.contextmanager
    def listen(self, topics: Iterable[str]) -> Iterator[asyncio.Future[None]]:
        """A future that is done with the first ring of any topic."""
        rung: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        wanted = tuple(topics)
        for topic in wanted:
            self._waiting.setdefault(topic, set()).add(rung)
        try:
            yield rung
        finally:
            for topic in wanted:
                others = self._waiting.get(topic)
                if others is not None:
                    others.discard(rung)
                    if not others:
                        del self._waiting[topic]
