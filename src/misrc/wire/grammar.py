"""The gate's whole grammar. Bytes in, a typed request out, or nothing: there is no second way to read a command.

    hello | open UUID | put UUID --server --daemon . | start UUID | wait UUID SECONDS OFFSET
    get UUID --server --daemon . | cancel UUID | close UUID

One space between words, no other byte anywhere; numbers without leading zeros.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Optional

from ..job.names import JOB_ID

MAX_WAIT_SECONDS = 3600
MAX_OFFSET_DIGITS = 18
_NUMBER = "0|[1-9][0-9]{0,%d}"


class Verb(str, enum.Enum):
    """What MInt may ask for."""

    HELLO = "hello"
    OPEN = "open"
    PUT = "put"
    START = "start"
    WAIT = "wait"
    GET = "get"
    CANCEL = "cancel"
    CLOSE = "close"


@dataclass(frozen=True)
class Command:
    """One legal command. `seconds` and `offset` belong to `wait`."""

    verb: Verb
    job: str = ""
    seconds: int = 0
    offset: int = 0


_COMMAND = re.compile(
    (
        rf"(?P<hello>hello)"
        rf"|(?P<plain>open|start|cancel|close) (?P<job>{JOB_ID})"
        rf"|(?P<move>put|get) (?P<moved>{JOB_ID}) --server --daemon \."
        rf"|wait (?P<waited>{JOB_ID}) (?P<seconds>{_NUMBER % 3}) (?P<offset>{_NUMBER % (MAX_OFFSET_DIGITS - 1)})"
    ).encode("ascii")
)


def parse_command(data: bytes) -> Optional[Command]:
    """The command that `data` is, or None."""
    match = _COMMAND.fullmatch(data)
    if match is None:
        return None
    part = {name: value.decode("ascii") for name, value in match.groupdict().items() if value is not None}
    if "hello" in part:
        return Command(Verb.HELLO)
    if "plain" in part:
        return Command(Verb(part["plain"]), part["job"])
    if "move" in part:
        return Command(Verb(part["move"]), part["moved"])
    seconds = int(part["seconds"])
    if seconds > MAX_WAIT_SECONDS:
        return None
    return Command(Verb.WAIT, part["waited"], seconds, int(part["offset"]))


def render_command(command: Command) -> str:
    """The command line that `parse_command` reads. For put and get, rsync itself adds the three last words."""
    if command.verb is Verb.HELLO:
        return Verb.HELLO.value
    if command.verb is Verb.WAIT:
        return f"wait {command.job} {command.seconds} {command.offset}"
    return f"{command.verb.value} {command.job}"
