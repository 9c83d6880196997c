"""Times at which jobs may start, as a site writes them: `mon-fri 18:00-08:00 Asia/Tokyo`, `sat,sun 00:00-24:00`.

What it guards: a job never starts at a moment whose wall clock lies outside every window. Each question is "is this
moment inside", asked of the wall clock, so a change to or from summer time needs no rule of its own: an hour that
comes twice counts twice, an hour that does not come opens nothing.

Not covered: two changes of a zone's offset within one hour (no zone has had that).
"""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, FrozenSet, Optional, Sequence, Set, Tuple

if TYPE_CHECKING:
    import datetime

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_SECONDS = 86400
_FORM = re.compile(
    r"([a-z]{3}(?:[,-][a-z]{3}){0,13}) ([0-9]{2}:[0-9]{2})-([0-9]{2}:[0-9]{2})"
    r"(?: ([A-Za-z][A-Za-z0-9_+-]{0,31}(?:/[A-Za-z0-9_+-]{1,31}){0,2}))?",
    re.ASCII,
)
_WANTED = "a window like 'mon-fri 18:00-08:00' or 'sat,sun 00:00-24:00 Asia/Tokyo' is needed"


@dataclass(frozen=True)
class Window:
    """Some hours on some days. A window that ends before it begins ends on the next day; its day is the first one.

    `days` counts from Monday, 0. `start` and `end` are seconds after midnight; `end` itself is outside. `zone` is a
    name of the time zone database, or None for the host's own zone.
    """

    days: FrozenSet[int]
    start: int
    end: int
    zone: Optional[str] = None

    def contains(self, moment: float) -> bool:
        """Whether the wall clock lies inside at `moment` (UTC seconds)."""
        day, second, _ = self._wall(moment)
        if self.start < self.end:
            return day in self.days and self.start <= second < self.end
        return (day in self.days and second >= self.start) or ((day - 1) % 7 in self.days and second < self.end)

    def next_opening(self, moment: float) -> int:
        """The first whole second from `moment` on that lies inside, as UTC seconds."""
        at = math.floor(moment)
        while not self.contains(at):
            due = at + self._until_start(at)
            change = self._first_change(at, due)
            if change is None:
                return due
            at = change
        return at

    def _until_start(self, moment: int) -> int:
        """Seconds to the next start, by a wall clock that nobody changes meanwhile."""
        day, second, _ = self._wall(moment)
        ways = (((first - day) % 7) * DAY_SECONDS + self.start - second for first in self.days)
        return min(way if way > 0 else way + 7 * DAY_SECONDS for way in ways)

    def _first_change(self, low: int, until: int) -> Optional[int]:
        """The first second after `low` and not after `until` at which the zone's offset is another one."""
        while low < until:
            high = min(low + 3600, until)
            if self._wall(low)[2] != self._wall(high)[2]:
                return self._narrow(low, high)
            low = high
        return None

    def _narrow(self, low: int, high: int) -> int:
        before = self._wall(low)[2]
        while high - low > 1:
            middle = (low + high) // 2
            if self._wall(middle)[2] == before:
                low = middle
            else:
                high = middle
        return high

    def _wall(self, moment: float) -> Tuple[int, int, int]:
        """What a clock on the wall shows: the day of the week, the second of the day; and its offset from UTC."""
        if self.zone is None:
            local = time.localtime(moment)
            return local.tm_wday, local.tm_hour * 3600 + local.tm_min * 60 + local.tm_sec, local.tm_gmtoff
        import datetime  # heavy, and only a policy that names a zone needs it

        there = datetime.datetime.fromtimestamp(math.floor(moment), _find_zone(self.zone))
        offset = there.utcoffset() or datetime.timedelta()
        return there.weekday(), there.hour * 3600 + there.minute * 60 + there.second, int(offset.total_seconds())


def parse_window(text: str) -> Window:
    """One window of a policy; ValueError says what is wrong with it."""
    match = _FORM.fullmatch(text)
    if not match:
        raise ValueError(_WANTED)
    start, end = _parse_time(match[2]), _parse_time(match[3])
    if start == end:
        raise ValueError("a window cannot begin and end at the same time; a whole day is 00:00-24:00")
    if start == DAY_SECONDS:
        raise ValueError("24:00 can only be an end")
    if match[4] is not None:
        _find_zone(match[4])
    return Window(_parse_days(match[1]), start, end, match[4])


def is_open(windows: Sequence[Window], moment: float) -> bool:
    """Whether jobs may start at `moment`; without windows they always may."""
    return not windows or any(window.contains(moment) for window in windows)


def next_opening(windows: Sequence[Window], moment: float) -> int:
    """The first whole second from `moment` on at which jobs may start, as UTC seconds."""
    return min((window.next_opening(moment) for window in windows), default=math.floor(moment))


def _parse_time(text: str) -> int:
    hours, minutes = int(text[:2]), int(text[3:])
    if minutes > 59 or hours * 60 + minutes > 24 * 60:
        raise ValueError(f"{text} is not a time between 00:00 and 24:00")
    return hours * 3600 + minutes * 60


def _parse_days(text: str) -> FrozenSet[int]:
    """`mon-fri`, `sat,sun`, `fri-mon`: a range may go over the week's end."""
    days: Set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if first not in DAYS or (last or first) not in DAYS or (dash and not last):
            raise ValueError(_WANTED)
        begin = DAYS.index(first)
        length = (DAYS.index(last or first) - begin) % 7
        days.update((begin + step) % 7 for step in range(length + 1))
    return frozenset(days)


def _find_zone(name: str) -> datetime.tzinfo:
    """A zone of this machine's time zone database; imported only where a policy names one."""
    import zoneinfo

    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, OSError, ValueError):
        raise ValueError(f"this machine does not know the time zone {name}") from None
