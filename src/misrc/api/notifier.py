"""Who waits for what: a change notifies its topics, and whoever waits looks again.

Topics are `site:ID` (something for its agents), `job:ID` (a job's version grew) and `tokens`. There may be a
notification too many, never one too few: subscribe first, then look.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator

TOKENS = "tokens"


def site_topic(site: str) -> str:
    """Notified when an agent of the site may find something new."""
    return f"site:{site}"


def job_topic(job: str) -> str:
    """Notified when the job's version grew."""
    return f"job:{job}"


class Notifier:
    """All within one event loop. `stamp` lets a cache see whether anything was notified since."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self._stamps: dict[str, int] = {}
        self._everything = 0
        self.stopping = False

    def stamp(self, topic: str) -> int:
        """Grows whenever the topic is notified; only for topics that are few, as sites and tokens."""
        return self._stamps.get(topic, 0) + self._everything

    def notify(self, topics: Iterable[str]) -> None:
        """Wake everybody who waits for one of the topics."""
        for topic in topics:
            if not topic.startswith("job:"):
                self._stamps[topic] = self._stamps.get(topic, 0) + 1
            for waiter in self._waiting.pop(topic, ()):
                if not waiter.done():
                    waiter.set_result(None)

    def notify_all(self) -> None:
        """Wake everybody: changes may have been missed, or the server stops."""
        self._everything += 1
        self.notify(list(self._waiting))

    def stop(self) -> None:
        """From now on nobody waits."""
        self.stopping = True
        self.notify_all()

    @contextlib.contextmanager
    def subscribe(self, topics: Iterable[str]) -> Iterator[asyncio.Future[None]]:
        """A future that is done with the first notification of any topic."""
        notified: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        wanted = tuple(topics)
        for topic in wanted:
            self._waiting.setdefault(topic, set()).add(notified)
        try:
            yield notified
        finally:
            for topic in wanted:
                others = self._waiting.get(topic)
                if others is not None:
                    others.discard(notified)
                    if not others:
                        del self._waiting[topic]
