"""What has happened on one day, counted out of the ledger: new jobs, and bytes that left.

The ledger alone decides, so a count holds across restarts and cannot be reset by deleting jobs. `tally.json` spares
reading it from the front: it holds the counts up to one line, and that line's hash. Where the ledger has another line
at that place, or the file is missing or spoilt, everything is counted anew.

A day is one of the host's local time zone. A job counts once a day, however often it is opened or fetched on it.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, field
from typing import Any, Dict, Set

from ..job.codec import CodecError, dump_json, parse_json
from ..job.ledger import GENESIS, MAX_LINE_BYTES, hash_line, parse_record
from . import files

FILE = "tally.json"
# How much of the ledger is read again at each question before the counts are written anew.
REFRESH_BYTES = 256 << 10
_MAX_BYTES = 64 << 20


@dataclass
class Day:
    """One day: the jobs that were opened, and for each job whose results left, how many bytes that were."""

    jobs: Set[str] = field(default_factory=set)
    out: Dict[str, int] = field(default_factory=dict)


@dataclass
class DailyUsage:
    """The days from `floor` on, counted over the ledger's first `size` bytes, whose last line has the hash `last`."""

    floor: str
    size: int = 0
    last: str = GENESIS
    days: Dict[str, Day] = field(default_factory=dict)

    def day(self, name: str) -> Day:
        """What is known of one day."""
        return self.days.get(name, Day())


def local_day(moment: float) -> str:
    """The day that the host's own calendar shows, YYYY-MM-DD."""
    return time.strftime("%Y-%m-%d", time.localtime(moment))


def count_today(folder: int, ledger: int) -> Day:
    """Today's counts, up to the ledger's last line. The caller holds the ledger's lock."""
    today = local_day(time.time())
    usage = _load(folder, ledger, today)
    if _catch_up(usage, ledger) > REFRESH_BYTES:
        _save(folder, usage, today)
    return usage.day(today)


def _load(folder: int, ledger: int, today: str) -> DailyUsage:
    """The counts that were kept, or none where they do not fit the ledger or the day."""
    with contextlib.suppress(OSError, CodecError, ValueError, KeyError, TypeError, AttributeError):
        kept = _parse(files.read_record(folder, FILE, _MAX_BYTES))
        if kept.floor <= today and _fits(kept, ledger):
            return kept
    return DailyUsage(today)


def _parse(data: "bytes | None") -> DailyUsage:
    plain: Any = parse_json(data or b"")
    days = {name: Day(set(day["jobs"]), dict(day["out"])) for name, day in plain["days"].items()}
    return DailyUsage(str(plain["floor"]), int(plain["size"]), str(plain["last"]), days)


def _fits(usage: DailyUsage, ledger: int) -> bool:
    """Whether the ledger still has, at the place up to which was counted, the line that stood there."""
    if usage.size == 0 or usage.size > os.fstat(ledger).st_size:
        return False
    start = max(0, usage.size - MAX_LINE_BYTES - 2)
    _, end, line = os.pread(ledger, usage.size - start, start)[:-1].rpartition(b"\n")
    whole = os.pread(ledger, 1, usage.size - 1) == b"\n"
    return whole and (bool(end) or start == 0) and hash_line(line) == usage.last


def _catch_up(usage: DailyUsage, ledger: int) -> int:
    """Count the lines that are new since; how many bytes those were."""
    begun = usage.size
    with open(os.dup(ledger), "rb") as stream:
        stream.seek(begun)
        line = b""
        for line in stream:
            if not line.endswith(b"\n"):
                raise ValueError("the ledger's last line is cut")
            usage.size += len(line)
            # The canonical form has no spaces: a line without these words has nothing to count.
            if b'"event":"open"' in line or b'"out":' in line:
                _count(usage, parse_record(line[:-1]))
        if line:
            usage.last = hash_line(line[:-1])
    return usage.size - begun


def _count(usage: DailyUsage, record: "dict[str, Any]") -> None:
    name, job = local_day(_moment(record["utc"])), record.get("job")
    if name < usage.floor or not isinstance(job, str):
        return
    day = usage.days.setdefault(name, Day())
    if record["event"] == "open" and not record.get("already") and not record.get("dry_run"):
        day.jobs.add(job)
    if type(record.get("out")) is int:
        day.out[job] = max(record["out"], day.out.get(job, 0))


def _moment(utc: str) -> int:
    import calendar  # heavy, and only a site with limits per day needs it

    date, _, clock = utc.rstrip("Z").partition("T")
    year, month, day = map(int, date.split("-"))
    hour, minute, second = map(int, clock.split(":"))
    return calendar.timegm((year, month, day, hour, minute, second))


def _save(folder: int, usage: DailyUsage, today: str) -> None:
    """Keep the counts from today on. Not synced: what is torn or old is counted again."""
    days = {name: {"jobs": sorted(day.jobs), "out": day.out} for name, day in usage.days.items() if name >= today}
    text = dump_json({"floor": today, "size": usage.size, "last": usage.last, "days": days}) + b"\n"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.suppress(OSError):
        with open(os.open(f".{FILE}", flags, files.PRIVATE_FILE, dir_fd=folder), "wb") as file:
            file.write(text)
        os.rename(f".{FILE}", FILE, src_dir_fd=folder, dst_dir_fd=folder)
