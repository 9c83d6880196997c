"""A reply: one JSON line, then the bytes of the sections that it announces, in order.

While `wait` blocks, the gate may send lines with `event: progress` first; the reply is the first line without it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import BinaryIO, Callable, Dict, Mapping, Optional, Tuple

from ..job.codec import CodecError, decode, dump_json, encode, parse_json
from ..job.ledger import Checkpoint
from ..job.states import JobState, Outcome
from .grammar import MAX_WAIT_SECONDS

PROTOCOL = 1
MAX_LINE_BYTES = 256 << 10
MAX_SECTIONS = 1024
SECTION_LIMITS = {"log": 1 << 20, "manifest": 64 << 20, "receipt": 64 << 10, "signature": 64 << 10}
FILE_PREFIX = "file:"
MAX_FILE_SECTION = 1 << 20
# More lines of progress than the longest wait has seconds are no progress.
MAX_EVENTS = 2 * MAX_WAIT_SECONDS
MAX_WORDS = 2000


def _plain(text: str) -> str:
    """One printable line of bounded length: a terminal shows it, and does nothing else."""
    return "".join(c if c.isprintable() else "?" for c in text[:MAX_WORDS])


@dataclass(frozen=True)
class Progress:
    """What the program reports of itself: `done` of `total` `unit`, and a text; all of it untrusted."""

    done: float
    total: float
    unit: str = ""
    text: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "unit", _plain(self.unit))
        object.__setattr__(self, "text", _plain(self.text))


@dataclass(frozen=True)
class Section:
    """Bytes that follow the reply's line."""

    name: str
    size: int


@dataclass(frozen=True)
class Hello:
    """What `hello` tells."""

    misrc: str
    python: str
    rsync: str
    site: str
    programs: Tuple[str, ...]
    job_bytes: int
    files: int
    free_bytes: int
    clock: float
    frozen: bool = False


@dataclass(frozen=True)
class Reply:
    """What the gate answers to every verb. Absent means "does not apply", never "unknown"."""

    v: int = PROTOCOL
    event: Optional[str] = None
    refused: Optional[str] = None
    state: Optional[JobState] = None
    outcome: Optional[Outcome] = None
    reason: Optional[str] = None
    since: Optional[float] = None
    already: bool = False
    progress: Optional[Progress] = None
    offset: Optional[int] = None
    free_bytes: Optional[int] = None
    hello: Optional[Hello] = None
    checkpoint: Optional[Checkpoint] = None
    sections: Tuple[Section, ...] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        if self.reason is not None:
            object.__setattr__(self, "reason", _plain(self.reason))


def render_reply(reply: Reply) -> bytes:
    """The reply's line; keys without a value are left out."""
    plain = {
        key: value for key, value in encode(reply).items() if value is not None and value is not False and value != []
    }
    return dump_json(plain) + b"\n"


class ReplyError(ValueError):
    """The other side does not speak our protocol (a login banner, a cut line, a reply beyond all bounds)."""


def _read_exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise ReplyError("the reply was cut")
    return data


def _section_limit(name: str) -> int:
    if name.startswith(FILE_PREFIX):
        return MAX_FILE_SECTION
    return SECTION_LIMITS.get(name, 0)


def parse_reply_line(line: bytes) -> Reply:
    """One line of a reply."""
    if not line.endswith(b"\n"):
        raise ReplyError("the reply was cut" if line else "no reply")
    try:
        reply = decode(Reply, parse_json(line))
    except CodecError:
        raise ReplyError("the reply is not misrc's") from None
    if len(reply.sections) > MAX_SECTIONS:
        raise ReplyError("the reply has too many sections")
    return reply


def read_reply(
    stream: BinaryIO, on_progress: Optional[Callable[[Reply], None]] = None
) -> Tuple[Reply, Mapping[str, bytes]]:
    """Read a whole reply, bounded in every part; raises ReplyError."""
    for _ in range(MAX_EVENTS):
        reply = parse_reply_line(stream.readline(MAX_LINE_BYTES))
        if reply.event is None:
            break
        if on_progress is not None:
            on_progress(reply)
    else:
        raise ReplyError("the reply has no end")
    sections: Dict[str, bytes] = {}
    for section in reply.sections:
        if not 0 <= section.size <= _section_limit(section.name) or section.name in sections:
            raise ReplyError("the reply has a section that is not allowed")
        sections[section.name] = _read_exactly(stream, section.size)
    return reply, sections
