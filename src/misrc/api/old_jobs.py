"""Jobs that a client of the predecessor registered: what is kept of the registration, and what it asked for."""

from __future__ import annotations

from dataclasses import dataclass

from ..job.codec import decode, dump_json, encode, parse_json
from ..wire.legacy import STDERR_NAME, STDOUT_NAME

LOG_NAMES = (STDOUT_NAME, STDERR_NAME)


@dataclass(frozen=True)
class Registered:
    """The registration without its files' bytes. `inputs` are the names as they were sent, with the name here."""

    command: str
    remote_site: str
    parameters: str
    inputs: tuple[tuple[str, ...], ...] = ()
    results: tuple[str, ...] = ()


def dump(registered: Registered) -> str:
    """As the store keeps it."""
    return dump_json(encode(registered)).decode()


def load(text: str) -> Registered:
    """What `dump` wrote."""
    return decode(Registered, parse_json(text.encode()))


def registered_results(text: str) -> frozenset[str]:
    """The names of results that may come back."""
    return frozenset((*load(text).results, *LOG_NAMES))
