"""Why a job waits, or was stopped, by the site's own contract: data on the wire, words at each side.

They travel as a reply's `reason` and stand in the job's record. Every other reason is a sentence, or a refusal code.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Optional

WAITS_FROZEN = "waits:frozen"
STOPPED_FROZEN = "stopped:frozen"
_WINDOW = re.compile(r"waits:window ([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})Z", re.ASCII)


@dataclass(frozen=True)
class Waiting:
    """A job that does not start now: until the site's next window opens (`opening`, UTC seconds), or frozen (None)."""

    opening: Optional[int] = None


def render_waiting(waiting: Waiting) -> str:
    """The reason as it travels."""
    if waiting.opening is None:
        return WAITS_FROZEN
    return time.strftime("waits:window %Y-%m-%dT%H:%M:%SZ", time.gmtime(waiting.opening))


def parse_waiting(reason: Optional[str]) -> Optional[Waiting]:
    """What `render_waiting` wrote; None for everything else."""
    if reason == WAITS_FROZEN:
        return Waiting()
    match = _WINDOW.fullmatch(reason or "")
    if not match:
        return None
    import calendar  # heavy, and only MInt's side reads reasons

    year, month, day, hour, minute, second = map(int, match.groups())
    if not (1 <= month <= 12 and 1 <= day <= 31 and year >= 1970):
        return None
    return Waiting(calendar.timegm((year, month, day, hour, minute, second)))
